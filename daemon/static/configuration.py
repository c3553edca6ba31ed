"""The configuration of static volumes: the daemon's environment says where its folder is, and the folder says which
classes there are, where their volumes are and how they are cleaned.

The folder is a mounted ConfigMap: one file for each key, its content a YAML value. Keys, defaults and messages are
those of the local static provisioner, so its ConfigMap can be mounted here unchanged; keys that only we have are
marked. An unknown key is no error, as there, but it is reported: a misspelt key looks the same.
"""

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from daemon.static.cleaners import QUICK_RESET
from service import duration, yamldecoder
from service.environment import Environment, period
from service.yamldecoder import DecodeError, Fields

Json = dict[str, Any]


CONFIG_DIR = "STATIC_CONFIG_DIR"


@dataclass(frozen=True)
class StaticSettings:
    config_dir: Path
    """The mounted ConfigMap."""
    namespace: str
    """Where cleaning Jobs run."""
    job_image: str = ""
    """The image of cleaning Jobs. Empty: none is configured, and useJobForCleaning can't work."""
    discovery_period: float = 10.0
    """Seconds between two passes when nothing happens."""
    config_sync_period: float = 5.0
    """Seconds between two looks at the configuration folder."""


def read_settings(set_to: Environment, namespace: str) -> StaticSettings | None:
    """None when no configuration folder is set: then this node offers no static volumes. `namespace` is the
    daemon's. Raises SettingsError."""
    config_dir = set_to.value(CONFIG_DIR, _config_dir, None)
    if config_dir is None:
        return None
    default = StaticSettings(config_dir, namespace)
    return StaticSettings(
        config_dir,
        set_to.text("MY_NAMESPACE") or namespace,
        set_to.text("JOB_CONTAINER_IMAGE"),
        set_to.value("DISCOVERY_PERIOD", period, default.discovery_period),
        set_to.value("CONFIG_SYNC_PERIOD", period, default.config_sync_period),
    )


def _config_dir(text: str) -> Path:
    if not text.startswith("/"):
        raise ValueError("allowed is an absolute path, that of the mounted ConfigMap")
    return Path(text)


FILESYSTEM, BLOCK = "Filesystem", "Block"
ACCESS_MODES = ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")

_SELECTOR_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")
_TOLERATION_OPERATORS = ("Exists", "Equal")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


class ConfigurationError(ValueError):
    """A folder that can't be used: says which file, which key and what is allowed there."""


@dataclass(frozen=True)
class ClassConfiguration:
    """One StorageClass whose volumes stand ready on this node."""

    name: str
    host_dir: str
    """The folder of its volumes, as the node sees it: what PersistentVolumes point into."""
    mount_dir: Path
    """The same folder as we see it."""
    block_cleaner: tuple[str, ...] = QUICK_RESET
    """Command that cleans a block device, named in LOCAL_PV_BLKDEVICE."""
    filesystem_cleaner: tuple[str, ...] = ()
    """Command that cleans a folder (our own key). Empty: its contents are removed in this process."""
    volume_mode: str = FILESYSTEM
    access_mode: str = ACCESS_MODES[0]
    fs_type: str = ""
    name_pattern: str = "*"
    selector: tuple[Json, ...] = ()
    """NodeSelectorTerms, alternatives to the term that names this node."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """On the PersistentVolumes of this class (our own key labelsForPV in the class). They win over the others."""
    refused: str = ""
    """Why nothing of this class is offered or cleaned (ownfolders.py). Empty: it is served."""


@dataclass(frozen=True)
class Configuration:
    classes: Mapping[str, ClassConfiguration] = field(default_factory=dict)
    node_labels: tuple[str, ...] = ()
    """Keys of the Node's labels that PersistentVolumes get too."""
    labels: Mapping[str, str] = field(default_factory=dict)
    use_alpha_api: bool = False
    use_job_for_cleaning: bool = False
    job_tolerations: tuple[Json, ...] = ()
    min_resync_period: float = 300.0
    """Seconds. Read for the sake of old ConfigMaps and without effect: every pass looks at every volume."""
    use_node_name_only: bool = False
    set_owner: bool = False
    remove_taint: bool = False
    taint_key: str = ""
    parallel_cleanings: int = 4
    """How many volumes are cleaned at the same time (our own key maxParallelCleanings)."""
    cleaning_timeout: float = 86400.0
    """Seconds that a cleaning may take before it is killed and counts as failed (our own key cleaningTimeout). Long,
    because overwriting a large disk takes most of a day."""
    unknown_keys: tuple[str, ...] = ()


def read(folder: Path) -> Configuration:
    """What the folder says now. Raises ConfigurationError."""
    values: Json = {}
    try:
        for file in sorted(folder.iterdir()):
            # A mounted ConfigMap is links to files in a folder that is swapped: `..data` and what it points to.
            if file.name.startswith("..") or file.is_dir():
                continue
            values[file.name] = yamldecoder.load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename or folder}: {error.strerror}: make it the mounted ConfigMap with a file for each key"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file}: not UTF-8 text: {error}") from None
    except DecodeError as error:
        raise ConfigurationError(f"{file}: {error}") from None
    try:
        return parse(values)
    except DecodeError as error:
        raise ConfigurationError(f"{folder}/{error}") from None


def parse(values: Json) -> Configuration:
    """The configuration of decoded keys. Raises DecodeError, whose message begins with the key."""
    default = Configuration()
    keys = Fields.of("", values)
    unknown: list[str] = []
    classes = keys.take("storageClassMap", yamldecoder.mapping, {})
    found = Configuration(
        classes={
            name: _class(f"storageClassMap.{name}", name, {} if value is None else value, unknown)
            for name, value in classes.items()
        },
        node_labels=keys.take("nodeLabelsForPV", yamldecoder.strings, ()),
        labels=keys.take("labelsForPV", yamldecoder.string_map, {}),
        use_alpha_api=keys.take("useAlphaAPI", yamldecoder.boolean, False),
        use_job_for_cleaning=keys.take("useJobForCleaning", yamldecoder.boolean, False),
        job_tolerations=keys.take("jobTolerations", _tolerations, ()),
        min_resync_period=keys.take("minResyncPeriod", _duration, default.min_resync_period),
        use_node_name_only=keys.take("useNodeNameOnly", yamldecoder.boolean, False),
        set_owner=keys.take("setPVOwnerRef", yamldecoder.boolean, False),
        remove_taint=keys.take("removeNodeNotReadyTaint", yamldecoder.boolean, False),
        taint_key=keys.take("provisionerNotReadyNodeTaintKey", yamldecoder.string, ""),
        parallel_cleanings=keys.take("maxParallelCleanings", _positive, default.parallel_cleanings),
        cleaning_timeout=keys.take("cleaningTimeout", _some_time, default.cleaning_timeout),
        unknown_keys=(*keys.unknown(), *unknown),
    )
    if found.remove_taint and not found.taint_key:
        raise DecodeError(
            "provisionerNotReadyNodeTaintKey is empty: allowed with removeNodeNotReadyTaint is the key of the taint"
        )
    return found


def _class(where: str, name: str, value: object, unknown: list[str]) -> ClassConfiguration:
    """Checked in the original's order: cleaner, folders, mode."""
    fields = Fields.of(where, value)
    cleaner = fields.take("blockCleanerCommand", yamldecoder.strings, QUICK_RESET)
    if not cleaner:
        raise DecodeError(
            f"{where}.blockCleanerCommand: Invalid empty block cleaner command for class {name}: "
            "give a program and its arguments, or leave the key out for the quick reset"
        )
    host_dir = fields.take("hostDir", yamldecoder.string, "")
    mount_dir = fields.take("mountDir", yamldecoder.string, "")
    if not host_dir or not mount_dir:
        raise DecodeError(
            f"{where}: Storage Class {name} is misconfigured, missing HostDir or MountDir parameter: give both, "
            "the folder on the node and the same folder in this container"
        )
    mode = fields.take("volumeMode", yamldecoder.string, FILESYSTEM) or FILESYSTEM
    if mode not in (FILESYSTEM, BLOCK):
        raise DecodeError(f"{where}.volumeMode: unsupported volume mode {mode}: allowed is {FILESYSTEM} or {BLOCK}")
    access = fields.take("accessMode", yamldecoder.string, ACCESS_MODES[0]) or ACCESS_MODES[0]
    if access not in ACCESS_MODES:
        raise DecodeError(f"{where}.accessMode is {access!r}: allowed is {', '.join(ACCESS_MODES)}")
    found = ClassConfiguration(
        name=name,
        host_dir=_folder(f"{where}.hostDir", host_dir),
        mount_dir=Path(_folder(f"{where}.mountDir", mount_dir)),
        block_cleaner=cleaner,
        filesystem_cleaner=fields.take("filesystemCleanerCommand", yamldecoder.strings, ()),
        volume_mode=mode,
        access_mode=access,
        fs_type=fields.take("fsType", yamldecoder.string, ""),
        name_pattern=fields.take("namePattern", yamldecoder.string, "*") or "*",
        selector=fields.take("selector", _selector, ()),
        labels=fields.take("labelsForPV", yamldecoder.string_map, {}),
    )
    unknown.extend(fields.unknown())
    return found


def _folder(where: str, path: str) -> str:
    """Cleaned: it is compared with paths in PersistentVolumes and in the mount table. The root is refused because
    everything would be a volume."""
    clean = posixpath.normpath(path).replace("//", "/")
    if not path.startswith("/") or ".." in path.split("/") or clean == "/":
        raise DecodeError(f"{where} is {path!r}: allowed is an absolute path without `..`, and not /")
    return clean


def _duration(where: str, value: object) -> float:
    try:
        return duration.parse(yamldecoder.string(where, value))
    except ValueError as error:
        raise DecodeError(f"{where}: {error}") from None


def _some_time(where: str, value: object) -> float:
    seconds = _duration(where, value)
    if not seconds:
        raise DecodeError(f"{where} is {value!r}: allowed is a duration above zero, such as 24h")
    return seconds


def _positive(where: str, value: object) -> int:
    number = yamldecoder.integer(where, value)
    if number < 1:
        raise DecodeError(f"{where} is {number}: allowed is a whole number of at least 1")
    return number


def _selector(where: str, value: object) -> tuple[Json, ...]:
    return tuple(_term(place, item) for place, item in yamldecoder.items(where, value))


def _term(where: str, value: object) -> Json:
    fields = Fields.of(where, value)
    kinds = ("matchExpressions", "matchFields")
    term = {kind: [_requirement(*item) for item in fields.take(kind, yamldecoder.items, [])] for kind in kinds}
    _none_unknown(fields, kinds)
    return {kind: requirements for kind, requirements in term.items() if requirements}


def _requirement(where: str, value: object) -> Json:
    fields = Fields.of(where, value)
    operator = fields.take("operator", yamldecoder.string, "")
    if operator not in _SELECTOR_OPERATORS:
        raise DecodeError(f"{where}.operator is {operator!r}: allowed is {', '.join(_SELECTOR_OPERATORS)}")
    requirement: Json = {"key": fields.take("key", yamldecoder.string, ""), "operator": operator}
    if values := fields.take("values", yamldecoder.strings, ()):
        requirement["values"] = list(values)
    _none_unknown(fields, ("key", "operator", "values"))
    return requirement


def _tolerations(where: str, value: object) -> tuple[Json, ...]:
    return tuple(_toleration(place, item) for place, item in yamldecoder.items(where, value))


def _toleration(where: str, value: object) -> Json:
    fields = Fields.of(where, value)
    names = ("key", "operator", "value", "effect")
    toleration: Json = {name: fields.take(name, yamldecoder.string, "") for name in names}
    toleration["tolerationSeconds"] = fields.take("tolerationSeconds", yamldecoder.integer, None)
    for name, allowed in (("operator", _TOLERATION_OPERATORS), ("effect", _EFFECTS)):
        if toleration[name] and toleration[name] not in allowed:
            raise DecodeError(f"{where}.{name} is {toleration[name]!r}: allowed is {', '.join(allowed)}")
    _none_unknown(fields, toleration)
    return {name: item for name, item in toleration.items() if item not in ("", None)}


def _none_unknown(fields: Fields, allowed: Iterable[str]) -> None:
    """What goes to the API server as it is must be whole: a misspelt key would make a selector or toleration wider."""
    if unknown := next(fields.unknown(), None):
        raise DecodeError(f"{unknown} is not known: allowed is {', '.join(allowed)}")


OwnFolders = Sequence[tuple[str, Path]]
"""What says where the folder is, such as STAGING_DIR, and the folder."""


def keep_apart(found: Configuration, own: OwnFolders) -> Configuration:
    """The configuration, with the classes refused that would offer one of our own folders."""
    judged = {name: replace(each, refused=_clash(each, own)) for name, each in found.classes.items()}
    return replace(found, classes=judged)


def _clash(settings: ClassConfiguration, own: OwnFolders) -> str:
    """By the path on the node and by the path in our container: each alone can lead there. Empty: there is none."""
    for key, folder in (("hostDir", Path(settings.host_dir)), ("mountDir", settings.mount_dir)):
        for source, ours in own:
            if place := _place(folder, ours):
                return (
                    f"{key} {folder} is {place} where the daemon works ({source} is {ours}), and what is there would "
                    "be offered and cleaned as disks: give the class a folder of its own, such as /mnt/disks"
                )
    return ""


def _place(folder: Path, ours: Path) -> str:
    if ours.is_relative_to(folder):
        return "above the folder" if ours != folder else "the folder"
    return "inside the folder" if folder.is_relative_to(ours) else ""
