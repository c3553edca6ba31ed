"""What a node remembers of its volumes.

A volume carries its own record, as LVM tags or in a file beside its data, and there is no other database: what
is found is the truth, so nothing can disagree with it after a crash. Only what carries our owner mark is ours. An
owner mark without a whole record is damaged: it is reported, and nobody but a person may touch it.
"""

import enum
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from contract.filesystems import FILESYSTEMS, RAW
from contract.parameters import ENCRYPTION, ERASE, LUKS2, LUKS_HEADER, ZERO, VolumeParameters
from contract.snapshot import is_snapshot
from contract.volume import DELETE, RETAIN, Original

_PREFIX = "elastic-local/"
_OWNER_MARK = "record"
_VERSION = "1"
_AUTOEXTEND = "thin-pool-autoextend"
_SNAPSHOT_OF = "snapshot-of"
_CLUSTER = "cluster"
_GROWING = "growing"
_CONTENT, _TAKEN = "snapshot-content", "taken"
_CLEARED = "cleared"
_UUID_INHERITED = "uuid-inherited"

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
"""Names of PersistentVolumes are DNS subdomains. They become names of logical volumes and of files, so no more."""
_SNAPSHOT = re.compile(r"cow_[0-9a-f]{12}")
"""Names of snapshots, by what they are made of: copy on write. No PersistentVolume can have such a name."""
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,127}")


class VolumeState(enum.Enum):
    FORMATTING = "formatting"
    """It holds nothing that counts: not made to its end, or about to be removed. May be formatted, never mounted."""
    COPYING = "copying"
    """It may hold a part of another volume's data: never mounted, copied anew from the beginning, and erased like
    a ready one before its space is free. Of a snapshot: it shows, or has just ceased to show, what is copied."""
    READY = "ready"
    """It may hold data: never formatted again, whatever is found on it."""
    ERASING = "erasing"
    """It is about to be removed, and its data is being taken away: never mounted, never formatted, its space not free.
    A daemon too old to know of it finds the record damaged, and leaves it alone too."""


class DamagedRecord(ValueError):
    """Our owner mark, but no record that can be relied on. The message says what is wrong."""


@dataclass(frozen=True)
class Record:
    """What a volume knows about itself. Raises DamagedRecord for what no daemon of ours would write."""

    pv: str
    uid: str
    policy: str
    filesystem: str
    state: VolumeState
    erase: str = ZERO
    """What the class asks for. Records of daemons that did not erase say nothing: their volumes get the default."""
    erased: int = 0
    """Of one that is being erased: bytes from its beginning that hold nothing any more."""
    thin_pool_autoextend: int = 0
    """By how many percent of its size its thin pool may grow for it, each time it fills up."""
    snapshot_of: str = ""
    """Of a snapshot that lives while it is copied: the PersistentVolume whose volume it shows. `pv` is then the
    snapshot's own name, and `uid` is that PersistentVolume's."""
    cluster: str = ""
    """Uid of the namespace kube-system of the cluster that it belongs to. Empty: it was made by a daemon that did not
    ask, and is marked as soon as a PersistentVolume of its uid is seen."""
    cleared: int = 0
    """Of a block volume: bytes from its beginning in which is nothing that others wrote (see blockdevices)."""
    content: str = ""
    """Of a snapshot that users asked for: the VolumeSnapshotContent that owns it. `pv` is then the snapshot's own name
    (contract.snapshot), and `uid` is that content's. Empty: a PersistentVolume owns it."""
    taken: int = 0
    """Of such a snapshot: of which moment it is, in seconds since 1970."""
    growing: bool = False
    """Its filesystem, which was sound, is being grown while it is not mounted: a process that was killed meanwhile has
    left it half done (daemon.storage.filesystems). Of a block volume: what lies beyond `cleared` is added by us."""
    encryption: str = ""
    """LUKS2: whatever is found on a ready one is opened as that, or refused. Empty: it is not encrypted."""
    uuid_inherited: bool = False
    """Of an encrypted copy: its filesystem has the UUID of its source's, and is mounted all the same."""

    @property
    def header_size(self) -> int:
        """Bytes at the beginning of its device that are not its pod's."""
        return LUKS_HEADER if self.encryption else 0

    def __post_init__(self) -> None:
        for key, value, good in (
            ("pv", self.pv, self._is_name(self.pv)),
            (_CONTENT, self.content, not self.content or _NAME.fullmatch(self.content)),
            (_SNAPSHOT_OF, self.snapshot_of, not self.snapshot_of or _NAME.fullmatch(self.snapshot_of)),
            ("uid", self.uid, _UID.fullmatch(self.uid)),
            (_CLUSTER, self.cluster, not self.cluster or _UID.fullmatch(self.cluster)),
            ("policy", self.policy, self.policy in (DELETE, RETAIN)),
            ("filesystem", self.filesystem, self.filesystem in FILESYSTEMS or self.filesystem == RAW),
            ("erase", self.erase, self.erase in ERASE),
            (ENCRYPTION, self.encryption, self.encryption in ("", LUKS2)),
            (_AUTOEXTEND, self.thin_pool_autoextend, 0 <= self.thin_pool_autoextend <= 100),
        ):
            if not good:
                raise DamagedRecord(f"{key} is {value!r}")

    def _is_name(self, pv: str) -> bool:
        if self.content:
            return is_snapshot(pv)
        return (_SNAPSHOT if self.snapshot_of else _NAME).fullmatch(pv) is not None

    def to_tags(self) -> frozenset[str]:
        return frozenset(f"{_PREFIX}{key}={value}" for key, value in self.to_fields().items())

    def owner_tags(self) -> frozenset[str]:
        """Those that say whose it is."""
        return self._tags_of("pv", "uid", _CLUSTER, _SNAPSHOT_OF, _CONTENT)

    def deciding_tags(self) -> frozenset[str]:
        """Those that decide what may become of it: see `differences`."""
        return self._tags_of("pv", "uid", _CLUSTER, "policy", "state", _SNAPSHOT_OF, _CONTENT)

    def _tags_of(self, *keys: str) -> frozenset[str]:
        return frozenset(f"{_PREFIX}{key}={value}" for key, value in self.to_fields().items() if key in keys)

    def to_fields(self) -> dict[str, str]:
        """What is written where there are no tags: daemon.backends.recordfiles."""
        return {
            _OWNER_MARK: _VERSION,
            "pv": self.pv,
            "uid": self.uid,
            "policy": self.policy,
            "filesystem": self.filesystem,
            "state": self.state.value,
            "erase": self.erase,
            **({"erased": str(self.erased)} if self.state is VolumeState.ERASING else {}),
            **({_AUTOEXTEND: str(self.thin_pool_autoextend)} if self.thin_pool_autoextend else {}),
            **({_SNAPSHOT_OF: self.snapshot_of} if self.snapshot_of else {}),
            **({_CLUSTER: self.cluster} if self.cluster else {}),
            **({_CLEARED: str(self.cleared)} if self.filesystem == RAW else {}),
            **({_CONTENT: self.content, _TAKEN: str(self.taken)} if self.content else {}),
            **({_GROWING: "yes"} if self.growing else {}),
            **({ENCRYPTION: self.encryption} if self.encryption else {}),
            **({_UUID_INHERITED: "yes"} if self.uuid_inherited else {}),
        }

    def of_snapshot(self) -> "Record":
        """That of a new snapshot of this one's volume, under a name of its own. It holds the same data, which goes as
        its class wants it. What it keeps of an encrypted volume is no volume with a header, and erased whole: an old
        header may be in it, which a key opens that was taken away since."""
        return replace(
            self,
            pv=f"cow_{uuid.uuid4().hex[:12]}",
            policy=DELETE,
            state=VolumeState.COPYING,
            thin_pool_autoextend=0,
            snapshot_of=self.pv,
            content="",
            growing=False,
            encryption="",
            uuid_inherited=False,
        )


def differences(expected: Record, actual: Record) -> str:
    """In what decides whose a volume is and what may become of it. Empty: in nothing."""
    pairs = (
        ("uid", expected.uid, actual.uid),
        ("policy", expected.policy, actual.policy),
        ("state", expected.state.value, actual.state.value),
        ("cluster", expected.cluster, actual.cluster),
        ("snapshot-of", expected.snapshot_of, actual.snapshot_of),
        ("snapshot-content", expected.content, actual.content),
    )
    return ", ".join(f"{key}: {now or 'none'} for {then or 'none'}" for key, then, now in pairs if then != now)


def from_tags(tags: Iterable[str]) -> Record | None:
    """The record in a logical volume's tags, or None for a volume that is not ours. Raises DamagedRecord."""
    fields: dict[str, str] = {}
    doubtful = []
    for tag in tags:
        key, _, value = tag.removeprefix(_PREFIX).partition("=")
        if not tag.startswith(_PREFIX):
            continue
        if fields.setdefault(key, value) != value:
            doubtful.append(key)
    if doubtful and _OWNER_MARK in fields:
        raise DamagedRecord(f"it has more than one value for {', '.join(sorted(set(doubtful)))}")
    return from_fields(fields)


def from_fields(fields: Mapping[str, object]) -> Record | None:
    """The record in named fields, of which foreign ones are ignored, or None without our mark. Raises
    DamagedRecord."""
    if _OWNER_MARK not in fields:
        return None
    version = fields[_OWNER_MARK]
    if version != _VERSION:
        raise DamagedRecord(f"it was written by another version of elastic-local (format {version!r})")
    text = {}
    for key in ("pv", "uid", "policy", "filesystem", "state"):
        value = fields.get(key)
        if not isinstance(value, str):
            raise DamagedRecord(f"it has no {key}")
        text[key] = value
    try:
        state = VolumeState(text.pop("state"))
    except ValueError as error:
        raise DamagedRecord(str(error)) from error
    cluster = fields.get(_CLUSTER, "")
    if not isinstance(cluster, str):
        raise DamagedRecord(f"{_CLUSTER} is {cluster!r}")
    return Record(
        **text,
        state=state,
        erase=str(fields.get("erase", ZERO)),
        erased=_number(fields, "erased") if state is VolumeState.ERASING else 0,
        thin_pool_autoextend=_number(fields, _AUTOEXTEND),
        snapshot_of=str(fields.get(_SNAPSHOT_OF, "")),
        cluster=cluster,
        content=str(fields.get(_CONTENT, "")),
        taken=_number(fields, _TAKEN),
        cleared=_number(fields, _CLEARED) if text["filesystem"] == RAW else 0,
        growing=_GROWING in fields,
        encryption=str(fields.get(ENCRYPTION, "")),
        uuid_inherited=_UUID_INHERITED in fields,
    )


def _number(fields: Mapping[str, object], key: str) -> int:
    """Of a field that need not be there: 0 without it."""
    value = fields.get(key, "0")
    if not isinstance(value, str) or not re.fullmatch(r"\d{1,18}", value, re.ASCII):
        raise DamagedRecord(f"{key} is {value!r}")
    return int(value)


@dataclass(frozen=True)
class VolumeSpec:
    """A volume that a PersistentVolume has a right to. `size` in bytes: the least that it may have, and no more than it
    was granted, whatever its claim asks for."""

    pv: str
    uid: str
    size: int
    policy: str
    parameters: VolumeParameters
    made: bool = False
    """It was ready once: if it is not there, it is lost and not to be made anew."""
    original: Original | None = None
    """What it begins as a copy of. None: it begins empty."""
    cluster: str = ""
    """The cluster that it is for. See Record."""
    content: str = ""
    """See Record."""

    def record(self, state: VolumeState) -> Record:
        """Raises DamagedRecord when the PersistentVolume holds what no record may."""
        return Record(
            self.pv,
            self.uid,
            self.policy,
            self.parameters.filesystem,
            state,
            self.parameters.erase,
            thin_pool_autoextend=self.parameters.thin_pool_autoextend,
            cluster=self.cluster,
            content=self.content,
            encryption=self.parameters.encryption,
        )
