"""What a StorageClass may ask for, and how it travels to the node in the options of a PersistentVolume: those of its
flexVolume, or the attributes of its csi source.

The provisioner parses the parameters of the class, so that a wrong key becomes an event on the claim; the daemon
parses the options of the PersistentVolume again, because it runs as root and believes nobody. Options have the names
of the parameters, so that one table and one parser serve both ways.
"""

import functools
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any

from contract import filesystems, fsrules, quantity
from contract.filesystems import FILESYSTEMS, RAW, OptionRefused

SIZE_OPTION = "size"
MOUNT_OPTIONS_OPTION = "mountOptions"
CLONE_OF_OPTION, CLONE_OF_UID_OPTION = "cloneOf", "cloneOfUid"
"""Of a volume that begins as a copy: name and uid of the PersistentVolume that it copies."""
_OF_ONE_VOLUME = frozenset({SIZE_OPTION, MOUNT_OPTIONS_OPTION, CLONE_OF_OPTION, CLONE_OF_UID_OPTION})
"""Options that are no parameters of a class."""
VOLUME_SOURCE = "volumeSource"
VOLUME_SOURCES = ("flexVolume", "csi")
"""Of a class: by which driver the kubelet mounts its volumes, as the spec of a PersistentVolume calls it. The first one
is the default: classes that exist go on. No option of a volume: its PersistentVolume shows it."""
FS_TYPE = "fsType"
CSI_FS_TYPE = "csi.storage.k8s.io/fstype"
"""Of a class: the name that all CSI drivers have for FS_TYPE (external-provisioner)."""
DEVICE_CLASS = "device-class"
LINEAR, RAID1 = "none", "raid1"
NO_ERASE, DISCARD, ZERO = "none", "discard", "zero"
ERASE = (NO_ERASE, DISCARD, ZERO)
ENCRYPTION = "encryption"
LUKS2 = "luks2"
LUKS_HEADER = 16 << 20
"""Bytes that the header of an encrypted volume takes at its beginning, on top of what its claim asks for. cryptsetup's
own default: less would leave no room to change the volume's key (cryptsetup reencrypt)."""
SECRET_NAME, SECRET_NAMESPACE = (f"csi.storage.k8s.io/node-stage-secret-{each}" for each in ("name", "namespace"))
"""Of a class: the Secret with the passphrase of its volumes, under the names that all CSI drivers have for it. No
options of a volume: its PersistentVolume has a field for them, csi.nodeStageSecretRef, and the kubelet reads the
Secret."""
EXPAND_SECRET_NAME, EXPAND_SECRET_NAMESPACE = (
    f"csi.storage.k8s.io/node-expand-secret-{each}" for each in ("name", "namespace")
)
"""Likewise, for csi.nodeExpandSecretRef. Growing needs none, but a class may name one, as for other drivers."""
SECRET_KEY = "encryptionPassphrase"  # noqa: S105  the name, not what it holds
"""Under which that Secret has it."""
_SECRETS = (SECRET_NAME, SECRET_NAMESPACE, EXPAND_SECRET_NAME, EXPAND_SECRET_NAMESPACE)
_OF_CLASS = (VOLUME_SOURCE, *_SECRETS)
"""Parameters that are no options of a volume."""
IO_LIMITS = ("readBandwidth", "writeBandwidth", "readIOPS", "writeIOPS")
"""What a VolumeAttributesClass may say, and so what may change of a volume that exists."""
NO_LIMIT = "max"
"""As the kernel says it (io.max)."""
DEFAULT_DEVICE_CLASS = "default"
"""What the node has for StorageClasses that name no device class."""


class ParameterError(ValueError):
    """A parameter that can't be served: says which key, what it holds and what is allowed."""

    def __init__(self, key: str, value: str, remedy: str) -> None:
        super().__init__(f"parameter {key!r} is {value!r}: {remedy}")
        self.key = key


# LVM's alphabet; the first character keeps a name from being read as an option or a path (lvm(8), VALID NAMES).
_LVM_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_+.-]{0,126}", re.ASCII)

_SECRET_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
"""Names of Secrets are DNS subdomains, those of namespaces DNS labels."""

DEVICE_CLASS_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)


def _boolean(text: str) -> bool:
    return {"true": True, "false": False}[text]


def lvm_name(text: str) -> str:
    """Raises ValueError for what LVM takes for no name."""
    if not _LVM_NAME.fullmatch(text) or set(text) == {"."}:
        raise ValueError
    return text


def _device_class(text: str) -> str:
    if not DEVICE_CLASS_NAME.fullmatch(text):
        raise ValueError
    return text


def _ratio(text: str) -> float:
    if not re.fullmatch(r"\d{1,3}(\.\d{1,3})?", text, re.ASCII) or not 1 <= (ratio := float(text)) <= 100:
        raise ValueError
    return ratio


def _share(text: str) -> int:
    if not re.fullmatch(r"\d{1,3}%?", text, re.ASCII) or not 0 <= (share := int(text.removesuffix("%"))) <= 100:
        raise ValueError
    return share


def _stripes(text: str) -> int:
    if not re.fullmatch(r"\d{1,3}", text, re.ASCII) or not 1 <= (stripes := int(text)) <= 128:
        raise ValueError
    return stripes


def _limit(least: int, most: int) -> Callable[[str], int]:
    """A whole quantity. Fewer would keep a pod's processes waiting for minutes, in a way that can't be interrupted."""

    def read(text: str) -> int:
        if text == NO_LIMIT:
            return 0
        if not least <= (figure := quantity.parse(text)) <= most:
            raise ValueError
        return figure

    return read


def _one_of(*allowed: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError
        return text

    return read


@dataclass(frozen=True)
class SecretReference:
    """A Secret that the kubelet reads for a volume."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class NodeSecrets:
    """Those that the kubelet hands to the driver with its calls."""

    stage: SecretReference
    """It has the passphrase."""
    expand: SecretReference | None = None


@dataclass(frozen=True)
class _Key:
    """One parameter: its name, what is allowed as an error message says it, and how it is read."""

    name: str
    allowed: str
    read: Callable[[str], object]
    """Raises ValueError or KeyError."""
    thin_only: bool = False


def _bandwidth(name: str) -> _Key:
    allowed = f"a quantity of bytes a second from 64Ki to 1Ti, such as 100Mi, or {NO_LIMIT}"
    return _Key(name, allowed, _limit(64 << 10, 1 << 40))


def _iops(name: str) -> _Key:
    allowed = f"operations a second from 10 to 100M, such as 500 or 2k, or {NO_LIMIT}"
    return _Key(name, allowed, _limit(10, 100_000_000))


def _parameter(key: _Key, default: Any) -> Any:
    return field(default=default, metadata={"key": key})


@dataclass(frozen=True)
class VolumeParameters:
    """How a volume is to be made. None and empty mean: as the node is configured. A field is all that a parameter needs
    here (docs/development.md)."""

    filesystem: str = _parameter(_Key(FS_TYPE, " ".join(FILESYSTEMS), _one_of(*FILESYSTEMS)), default=filesystems.EXT4)
    """RAW: none, it is a block device to its pod (volumeMode Block)."""
    mkfs_options: tuple[str, ...] = ()
    mount_options: tuple[str, ...] = ()
    # Not in camel case like the others: so it is spelled where people know it from, topolvm.io/device-class.
    device_class: str = _parameter(
        _Key(DEVICE_CLASS, "the name of a device class: small letters, digits and -", _device_class),
        default=DEFAULT_DEVICE_CLASS,
    )
    volume_group: str = _parameter(_Key("volumeGroup", "the name of an LVM volume group", lvm_name), default="")
    thin: bool | None = _parameter(_Key("thin", "true false", _boolean), default=None)
    thin_pool: str = _parameter(_Key("thinPool", "the name of an LVM thin pool", lvm_name, thin_only=True), default="")
    overprovision_ratio: float = _parameter(
        _Key("overprovisionRatio", "a number from 1 to 100, such as 2.5", _ratio, thin_only=True), default=1.0
    )
    """How many times its size may be reserved in a thin pool."""
    thin_pool_autoextend: int = _parameter(
        _Key("thinPoolAutoextend", "a whole number of percent up to 100, such as 20%", _share, thin_only=True),
        default=0,
    )
    """By how many percent of its size the volume's thin pool may grow by itself, each time it fills up. 0: not."""
    stripes: int = _parameter(_Key("stripes", "a whole number from 1 to 128", _stripes), default=1)
    raid: str = _parameter(_Key("raid", f"{LINEAR} {RAID1}", _one_of(LINEAR, RAID1)), default=LINEAR)
    erase: str = _parameter(_Key("erase", " ".join(ERASE), _one_of(*ERASE)), default=ZERO)
    """What becomes of the data when the volume is removed. The default is the one after which nobody can read it."""
    read_bandwidth: int = _parameter(_bandwidth(IO_LIMITS[0]), default=0)
    """Bytes a second that each pod may read from the volume. 0: no limit. The others likewise."""
    write_bandwidth: int = _parameter(_bandwidth(IO_LIMITS[1]), default=0)
    read_iops: int = _parameter(_iops(IO_LIMITS[2]), default=0)
    write_iops: int = _parameter(_iops(IO_LIMITS[3]), default=0)
    encryption: str = _parameter(_Key(ENCRYPTION, LUKS2, _one_of(LUKS2)), default="")
    """LUKS2, or empty: what is written is on the disk as it is."""

    @property
    def needs_thick(self) -> bool:
        """Stripes and mirrors are laid out in the volume group itself; a thin pool brings its own layout."""
        return self.stripes > 1 or self.raid != LINEAR

    @property
    def block(self) -> bool:
        """It is a raw block device: volumeMode Block."""
        return self.filesystem == RAW

    @property
    def limits_io(self) -> bool:
        """Pods may not read or write as much of it as they like."""
        return bool(self.read_bandwidth or self.write_bandwidth or self.read_iops or self.write_iops)

    @property
    def needs_device(self) -> bool:
        """It can't be a folder: it is a block device to its pod, or its I/O is limited, which the kernel does by
        device."""
        return self.block or self.limits_io

    @property
    def header_size(self) -> int:
        """Bytes that the volume needs beyond those that its pod gets."""
        return LUKS_HEADER if self.encryption else 0

    @property
    def minimum_size(self) -> int:
        """Bytes below which the volume can't be made."""
        return 1 if self.block else FILESYSTEMS[self.filesystem].minimum_size

    def as_block_device(self) -> "VolumeParameters":
        """Those of a volume that has no filesystem: what a class says of one does not hold for it."""
        return replace(self, filesystem=RAW, mkfs_options=(), mount_options=())


_FIELDS: Mapping[str, Field[Any]] = {
    each.metadata["key"].name: each for each in fields(VolumeParameters) if "key" in each.metadata
}
"""The parameters that are read one by one, by their names."""
_MKFS_OPTIONS = "mkfsOptions"
_NAMES = (*_FIELDS, _MKFS_OPTIONS, CSI_FS_TYPE, *_OF_CLASS)


def _key(name: str) -> _Key:
    key: _Key = _FIELDS[name].metadata["key"]
    return key


def parse(parameters: Mapping[str, str], mount_options: Sequence[str] = (), *, block: bool = False) -> VolumeParameters:
    """The parameters and mountOptions of a StorageClass. Raises ParameterError for the first that is wrong. For a raw
    `block` device all that is about filesystems is checked and means nothing: one class serves both modes. Each claim
    asks for it several times, so it is kept."""
    return _parse_class(tuple(parameters.items()), tuple(mount_options), block)


@functools.lru_cache(maxsize=256)
def _parse_class(items: tuple[tuple[str, str], ...], mount_options: tuple[str, ...], block: bool) -> VolumeParameters:
    parameters = _with_own_names(dict(items))
    volume_source(parameters)
    parsed = _parse({key: text for key, text in parameters.items() if key not in _OF_CLASS}, mount_options)
    node_secrets(parameters)
    try:
        fsrules.check(parsed.filesystem, parsed.mkfs_options, parsed.mount_options)
    except fsrules.Contradiction as error:
        raise ParameterError(error.key, error.option, f"allowed for {parsed.filesystem} is {error.allowed}") from None
    return parsed.as_block_device() if block else parsed


def _with_own_names(parameters: Mapping[str, str]) -> Mapping[str, str]:
    """Raises ParameterError for a value that can't be, and where both names of one parameter are there, and differ."""
    if CSI_FS_TYPE not in parameters:
        return parameters
    chosen = parameters[CSI_FS_TYPE]
    if chosen not in FILESYSTEMS:
        raise ParameterError(CSI_FS_TYPE, chosen, f"allowed is {_key(FS_TYPE).allowed}")
    if parameters.get(FS_TYPE, chosen) != chosen:
        raise ParameterError(CSI_FS_TYPE, chosen, f"{FS_TYPE} is {parameters[FS_TYPE]!r}, keep one of the two")
    return {key: text for key, text in parameters.items() if key != CSI_FS_TYPE} | {FS_TYPE: chosen}


def volume_source(parameters: Mapping[str, str]) -> str:
    """Which of VOLUME_SOURCES the volumes of a class have. Raises ParameterError."""
    chosen = parameters.get(VOLUME_SOURCE, VOLUME_SOURCES[0])
    if chosen not in VOLUME_SOURCES:
        raise ParameterError(VOLUME_SOURCE, chosen, f"allowed is {' '.join(VOLUME_SOURCES)}")
    return chosen


def node_secrets(parameters: Mapping[str, str]) -> NodeSecrets | None:
    """The Secrets that a class names for its volumes. None: they are not encrypted. Their names are taken as they are:
    a template (${pvc.namespace}) would let who makes a claim choose the key. Raises ParameterError."""
    for key in _SECRETS:
        if key in parameters and ENCRYPTION not in parameters:
            raise ParameterError(key, parameters[key], f"allowed with {ENCRYPTION} only")
    if ENCRYPTION not in parameters:
        return None
    if volume_source(parameters) == VOLUME_SOURCES[0]:
        raise ParameterError(
            ENCRYPTION, parameters[ENCRYPTION], f"allowed with {VOLUME_SOURCE} csi only, where the kubelet has the key"
        )
    expand = None
    if EXPAND_SECRET_NAME in parameters or EXPAND_SECRET_NAMESPACE in parameters:
        expand = _secret(parameters, EXPAND_SECRET_NAME, EXPAND_SECRET_NAMESPACE)
    return NodeSecrets(_secret(parameters, SECRET_NAME, SECRET_NAMESPACE), expand)


def _secret(parameters: Mapping[str, str], of_name: str, of_namespace: str) -> SecretReference:
    for key, names in ((of_name, _SECRET_NAME), (of_namespace, _NAMESPACE)):
        if not names.fullmatch(parameters.get(key, "")):
            raise ParameterError(
                key, parameters.get(key, ""), f"{ENCRYPTION} needs the name of a Secret and its namespace, no templates"
            )
    return SecretReference(parameters[of_namespace], parameters[of_name])


def _parse(parameters: Mapping[str, str], mount_options: Sequence[str]) -> VolumeParameters:
    """Each option for itself. All volumes of a class share what is read of its parameters."""
    return _parse_once(tuple(parameters.items()), tuple(mount_options))


@functools.lru_cache(maxsize=256)
def _parse_once(items: tuple[tuple[str, str], ...], mount_options: tuple[str, ...]) -> VolumeParameters:
    parameters = dict(items)
    values: dict[str, object] = {}
    for key, text in parameters.items():
        if key == _MKFS_OPTIONS:
            continue
        if key not in _FIELDS:
            raise ParameterError(key, text, "there is no such parameter, there are " + " ".join(sorted(_NAMES)))
        try:
            values[_FIELDS[key].name] = _key(key).read(text)
        except (ValueError, KeyError):
            raise ParameterError(key, text, f"allowed is {_key(key).allowed}") from None
    parsed = VolumeParameters(**values)  # type: ignore[arg-type]  # each field has the reader of its type
    _check_layout(parsed, parameters)
    try:
        parsed = replace(
            parsed,
            mkfs_options=filesystems.mkfs_options(parsed.filesystem, parameters.get(_MKFS_OPTIONS, "")),
        )
    except OptionRefused as error:
        raise ParameterError(
            _MKFS_OPTIONS, error.option, f"allowed for {parsed.filesystem} is {error.allowed}"
        ) from None
    try:
        return replace(parsed, mount_options=filesystems.mount_options(parsed.filesystem, mount_options))
    except OptionRefused as error:
        raise ParameterError(
            MOUNT_OPTIONS_OPTION, error.option, f"allowed for {parsed.filesystem} is {error.allowed}"
        ) from None


def _check_layout(parsed: VolumeParameters, parameters: Mapping[str, str]) -> None:
    if parsed.device_class != DEFAULT_DEVICE_CLASS and parsed.volume_group:
        raise ParameterError(
            "volumeGroup", parsed.volume_group, f"allowed without {DEVICE_CLASS} only, which says the group: keep one"
        )
    if parsed.needs_thick and parsed.thin:
        key = "stripes" if parsed.stripes > 1 else "raid"
        raise ParameterError(
            key, parameters[key], "allowed with thin false only, stripe or mirror the thin pool itself"
        )
    if parsed.raid != LINEAR and parsed.stripes > 1:
        raise ParameterError(
            "stripes", parameters["stripes"], "allowed is 1 with raid1, striped mirrors (raid10) are not served"
        )
    for key in _FIELDS:
        if _key(key).thin_only and key in parameters and (parsed.thin is False or parsed.needs_thick):
            raise ParameterError(key, parameters[key], "allowed for thin volumes only")


def to_options(parameters: VolumeParameters, size: int) -> dict[str, str]:
    """The options of a volume of `size` bytes: strings, and only what differs from the default. The filesystem is not
    among them: a PersistentVolume has a field for it, flexVolume.fsType or csi.fsType."""
    options = {SIZE_OPTION: str(size)}
    for key, of_key in _FIELDS.items():
        value = getattr(parameters, of_key.name)
        if of_key.name != "filesystem" and value != of_key.default:
            options[key] = (
                str(value).lower()
                if isinstance(value, bool)
                else f"{value:g}"
                if isinstance(value, float)
                else str(value)
            )
    if parameters.mkfs_options:
        options[_MKFS_OPTIONS] = shlex.join(parameters.mkfs_options)
    if parameters.mount_options:
        options[MOUNT_OPTIONS_OPTION] = ",".join(parameters.mount_options)
    return options


def from_options(options: Mapping[str, str], filesystem: str) -> VolumeParameters:
    """The inverse of to_options. Raises ParameterError. A volume that exists is mounted with what it has, also where a
    newer version would not make it any more."""
    if filesystem == RAW:
        of_device = {key: value for key, value in options.items() if key not in (*_OF_ONE_VOLUME, _MKFS_OPTIONS)}
        return _parse(of_device, ()).as_block_device()
    mount_options = options.get(MOUNT_OPTIONS_OPTION, "")
    parameters = {key: value for key, value in options.items() if key not in _OF_ONE_VOLUME}
    return _parse({**parameters, FS_TYPE: filesystem}, [mount_options] if mount_options else [])


def limited(parameters: VolumeParameters, limits: Mapping[str, str]) -> VolumeParameters:
    """The parameters with the I/O limits that are named in `limits`, those of a VolumeAttributesClass. What it does not
    name stays as it is: so says ControllerModifyVolume in the specification of CSI. Raises ParameterError."""
    values: dict[str, Any] = {}
    for key, text in limits.items():
        if key not in IO_LIMITS:
            raise ParameterError(
                key, text, f"only I/O limits can be changed, so allowed here are {' '.join(IO_LIMITS)}"
            )
        try:
            values[_FIELDS[key].name] = _key(key).read(text)
        except ValueError:
            raise ParameterError(key, text, f"allowed is {_key(key).allowed}") from None
    return replace(parameters, **values)


def render_limits(parameters: VolumeParameters) -> str:
    """All four I/O limits as one text, so that none of earlier stays: how they travel to the node once changed."""
    return " ".join(f"{key}={getattr(parameters, _FIELDS[key].name) or NO_LIMIT}" for key in IO_LIMITS)


def parse_limits(text: str) -> dict[str, str]:
    """The inverse of render_limits, for `limited` to check."""
    return {key: limit for key, _, limit in (word.partition("=") for word in text.split())}
