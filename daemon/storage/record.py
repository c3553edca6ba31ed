"""What a node remembers of its volumes, and what it finds when it looks.

A volume carries its own record, as LVM tags or in a file beside its data, and there is no other database: what
is found is the truth, so nothing can disagree with it after a crash. Only what carries our owner mark is ours. An
owner mark without a whole record is damaged: it is reported, and nobody but a person may touch it.
"""

import enum
import re
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from contract.capacity import legs_of
from contract.filesystems import FILESYSTEMS
from contract.parameters import ERASE, ZERO, VolumeParameters
from contract.volume import DELETE, RETAIN, Original
from lvm.allocation import FreeExtents

_PREFIX = "elastic-local/"
_OWNER_MARK = "record"
_VERSION = "1"
_AUTOEXTEND = "thin-pool-autoextend"
_SNAPSHOT_OF = "snapshot-of"
_CLUSTER = "cluster"

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
"""Names of PersistentVolumes are DNS subdomains. They become names of logical volumes and of files, so no more."""
_SNAPSHOT = re.compile(r"cow_[0-9a-f]{12}")
"""Names of snapshots, by what they are made of: copy on write. No PersistentVolume can have such a name."""
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,127}")


class State(enum.Enum):
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


class Health(enum.Enum):
    """What the storage under a volume complains of. The values are what people and metrics read."""

    OK = "ok"
    MISSING_DEVICE = "missing-device"
    READ_ONLY = "read-only"
    RAID_DEGRADED = "raid-degraded"
    RAID_MISMATCH = "raid-mismatch"
    THIN_POOL_FAILED = "thin-pool-failed"
    THIN_POOL_FULL = "thin-pool-full"
    UNKNOWN = "unknown"


class DamagedRecord(ValueError):
    """Our owner mark, but no record that can be relied on. The words say what is wrong."""


@dataclass(frozen=True)
class Record:
    """What a volume knows about itself. Raises DamagedRecord for what no daemon of ours would write."""

    pv: str
    uid: str
    policy: str
    filesystem: str
    state: State
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

    def __post_init__(self) -> None:
        for key, value, good in (
            ("pv", self.pv, (_SNAPSHOT if self.snapshot_of else _NAME).fullmatch(self.pv)),
            (_SNAPSHOT_OF, self.snapshot_of, not self.snapshot_of or _NAME.fullmatch(self.snapshot_of)),
            ("uid", self.uid, _UID.fullmatch(self.uid)),
            (_CLUSTER, self.cluster, not self.cluster or _UID.fullmatch(self.cluster)),
            ("policy", self.policy, self.policy in (DELETE, RETAIN)),
            ("filesystem", self.filesystem, self.filesystem in FILESYSTEMS),
            ("erase", self.erase, self.erase in ERASE),
            (_AUTOEXTEND, self.thin_pool_autoextend, 0 <= self.thin_pool_autoextend <= 100),
        ):
            if not good:
                raise DamagedRecord(f"{key} is {value!r}")

    def to_tags(self) -> frozenset[str]:
        return frozenset(f"{_PREFIX}{key}={value}" for key, value in self.to_fields().items())

    def owner_tags(self) -> frozenset[str]:
        """Those that say whose it is."""
        return self._tags_of("pv", "uid", _CLUSTER, _SNAPSHOT_OF)

    def deciding_tags(self) -> frozenset[str]:
        """Those that decide what may become of it: see `differences`."""
        return self._tags_of("pv", "uid", _CLUSTER, "policy", "state", _SNAPSHOT_OF)

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
            **({"erased": str(self.erased)} if self.state is State.ERASING else {}),
            **({_AUTOEXTEND: str(self.thin_pool_autoextend)} if self.thin_pool_autoextend else {}),
            **({_SNAPSHOT_OF: self.snapshot_of} if self.snapshot_of else {}),
            **({_CLUSTER: self.cluster} if self.cluster else {}),
        }

    def of_snapshot(self) -> "Record":
        """That of a new snapshot of this one's volume, under a name of its own. It holds the same data, which goes as
        its class wants it."""
        return replace(
            self,
            pv=f"cow_{uuid.uuid4().hex[:12]}",
            policy=DELETE,
            state=State.COPYING,
            thin_pool_autoextend=0,
            snapshot_of=self.pv,
        )


def differences(believed: Record, found: Record) -> str:
    """In what decides whose a volume is and what may become of it. Empty: in nothing."""
    pairs = (
        ("uid", believed.uid, found.uid),
        ("policy", believed.policy, found.policy),
        ("state", believed.state.value, found.state.value),
        ("cluster", believed.cluster, found.cluster),
        ("snapshot-of", believed.snapshot_of, found.snapshot_of),
    )
    return ", ".join(f"{key}: {now or 'none'} for {then or 'none'}" for key, then, now in pairs if then != now)


def from_tags(tags: Iterable[str]) -> Record | None:
    """The record in a logical volume's tags, or None for a volume that is not ours. Raises DamagedRecord."""
    found: dict[str, str] = {}
    doubtful = []
    for tag in tags:
        key, _, value = tag.removeprefix(_PREFIX).partition("=")
        if not tag.startswith(_PREFIX):
            continue
        if found.setdefault(key, value) != value:
            doubtful.append(key)
    if doubtful and _OWNER_MARK in found:
        raise DamagedRecord(f"it has more than one value for {', '.join(sorted(set(doubtful)))}")
    return from_fields(found)


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
        state = State(text.pop("state"))
    except ValueError as error:
        raise DamagedRecord(str(error)) from error
    cluster = fields.get(_CLUSTER, "")
    if not isinstance(cluster, str):
        raise DamagedRecord(f"{_CLUSTER} is {cluster!r}")
    return Record(
        **text,
        state=state,
        erase=str(fields.get("erase", ZERO)),
        erased=_number(fields, "erased") if state is State.ERASING else 0,
        thin_pool_autoextend=_number(fields, _AUTOEXTEND),
        snapshot_of=str(fields.get(_SNAPSHOT_OF, "")),
        cluster=cluster,
    )


def _number(fields: Mapping[str, object], key: str) -> int:
    """Of a field that need not be there: 0 without it."""
    value = fields.get(key, "0")
    if not isinstance(value, str) or not re.fullmatch(r"\d{1,18}", value, re.ASCII):
        raise DamagedRecord(f"{key} is {value!r}")
    return int(value)


@dataclass(frozen=True)
class Wanted:
    """A volume that a PersistentVolume has a right to. `size` in bytes: the least that it may have, and no more than it
    was promised, whatever its claim wishes."""

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

    def record(self, state: State) -> Record:
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
        )


@dataclass(frozen=True)
class Volume:
    """A volume of ours as it was found."""

    record: Record
    size: int
    """Bytes it really has; what it was promised where nothing limits it. 0 when its making stopped before it had
    any."""
    pool: str
    health: Health = Health.OK
    overhead: int = 0
    """Bytes that it takes of its pool beyond its size: the second leg of a mirror, and what mirrors note of
    themselves."""

    @property
    def pv(self) -> str:
        return self.record.pv


@dataclass(frozen=True)
class Thin:
    """How full a thin pool really is, in percent; None while it is not active. One with full metadata fails like one
    with full data."""

    data_percent: float | None
    metadata_percent: float | None
    metadata_size: int = 0
    """Bytes, beside the pool's size."""


@dataclass(frozen=True)
class Filesystem:
    """Where the files or folders of a pool are, and of others perhaps. Sizes in bytes."""

    identity: str
    """The same for pools on the same filesystem."""
    pools: tuple[str, ...]
    """Names of the pools that are there."""
    allocatable: int
    """What all volumes of these pools together may take."""
    ours: int
    """What they take of it, by their sizes."""
    reserve: int = 0
    """What these pools keep back together."""
    written: int | None = None
    """What is written in the files, where that counts; None where it can't be told from what others write."""


@dataclass(frozen=True)
class Pool:
    """What volumes take their space from. Sizes in bytes."""

    name: str
    """As in the pool annotation: "<group>", "<group>/<thin pool>", or the backend's one pool."""
    size: int
    free: int
    """Not promised to any volume yet. Negative when a thin pool is overprovisioned."""
    ours: int
    """What our volumes take of it: mirrors twice, sparse and thin volumes at their full size."""
    granularity: int
    thin: Thin | None = None
    reserve: int = 0
    """Kept back: no volume may take it."""
    blocked: str = ""
    """Why nothing new can be made here, whatever is free, and what to do about it."""
    notices: tuple[str, ...] = ()
    """What gives less room than it could, and what to do about it."""
    extents: FreeExtents | None = None
    """Where its free space is, if it has devices, as of the last look."""
    disturbed: int = 0
    """Bytes that we took since that look: from which of the devices, only the next one tells."""
    more_volumes: int | None = None
    """How many more it can note. None: any number."""
    filesystem: Filesystem | None = None
    """Of files and folders: where they are, if other pools of this node are there too."""

    def allocatable(self, overprovision_ratio: float = 1.0) -> int:
        """What all our volumes together may take: it stays the same whenever one is made or removed."""
        promised_more = int(self.size * (overprovision_ratio - 1)) if self.thin else 0
        return self.free + self.ours + promised_more - self.reserve

    def available(self, overprovision_ratio: float = 1.0) -> int:
        """What volumes not made yet may take."""
        return self.allocatable(overprovision_ratio) - self.ours

    def placeable(self, parameters: VolumeParameters) -> int | None:
        """Bytes that the largest new volume with these parameters would take, by where free space is. None: all that is
        free, wherever it is. What was taken since the last look is taken to have come from where it hurts most."""
        legs = legs_of(parameters)
        if self.extents is None or self.extents.is_sum(legs):
            return None
        return self.extents.most(legs) * self.granularity - self.weight(parameters) * self.disturbed

    def weight(self, parameters: VolumeParameters, other: VolumeParameters | None = None) -> int:
        """By how many bytes at most `placeable` falls when a volume with parameters `other`, None for any, takes one.
        Volumes that all lie on all devices take nothing else from each other. (On devices in many small pieces it may
        be a little more, where a leg more or less of a piece decides.)"""
        legs = legs_of(parameters)
        if self.extents is None or self.extents.is_sum(legs):
            return 1
        alike = other is not None and legs_of(other) == legs == len(self.extents.areas)
        return 1 if alike else legs

    def sharing(self) -> tuple[str, ...]:
        """Other pools that take their space from the same filesystem."""
        return tuple(name for name in self.filesystem.pools if name != self.name) if self.filesystem else ()


@dataclass(frozen=True)
class Foreign:
    """Something without our mark in a place where ours are kept, or with that of another cluster. Listed, never
    touched."""

    name: str
    pool: str
    size: int
    cluster: str = ""
    """Whose it is. Empty: it has no mark of ours."""


@dataclass(frozen=True)
class Damaged:
    """Something with our mark that nobody but a person may touch, and why."""

    name: str
    pool: str
    reason: str


@dataclass(frozen=True)
class Unseen:
    """A place of which not everything can be seen now: what is not found there may come back."""

    pool: str
    """As in Pool.name; of a volume group, its thin pools too."""
    reason: str
    """Why, and what to do about it. A whole sentence without its full stop."""


@dataclass(frozen=True)
class Inventory:
    """All that one look at the node found."""

    volumes: Collection[Volume] = ()
    pools: Collection[Pool] = ()
    foreign: Collection[Foreign] = ()
    damaged: Collection[Damaged] = ()
    snapshots: Collection[Volume] = ()
    """Ours, and no volumes of PersistentVolumes: they live while they are copied, and until their data is erased."""
    unseen: Collection[Unseen] = ()

    def volume(self, pv: str) -> Volume | None:
        return next((volume for volume in self.volumes if volume.pv == pv), None)

    def snapshot(self, name: str) -> Volume | None:
        return next((snapshot for snapshot in self.snapshots if snapshot.pv == name), None)

    def pool(self, name: str) -> Pool | None:
        return next((pool for pool in self.pools if pool.name == name), None)

    def blind(self, pool: str) -> str:
        """Why nobody can say of a volume that is not found that it is not in that pool. Empty: all of it was seen."""
        for each in self.unseen:
            if each.pool in (pool, pool.partition("/")[0]):
                return each.reason
        return "" if self.pool(pool) else f"this node does not show {pool} now: bring its disks back"


def of_cluster(found: Inventory, cluster: str) -> Inventory:
    """What a look found, as a daemon of that cluster has to see it: volumes of another one are foreign. As long as it
    does not know its cluster, all are served."""

    def ours(volume: Volume) -> bool:
        return not cluster or volume.record.cluster in ("", cluster)

    theirs = [volume for volume in (*found.volumes, *found.snapshots) if not ours(volume)]
    if not theirs:
        return found
    return replace(
        found,
        volumes=[volume for volume in found.volumes if ours(volume)],
        snapshots=[snapshot for snapshot in found.snapshots if ours(snapshot)],
        foreign=[
            *found.foreign,
            *(Foreign(volume.pv, volume.pool, volume.size, volume.record.cluster) for volume in theirs),
        ],
    )
