"""What one look at a node's storage finds: volumes, the pools that they take their space from, and what is not ours.

What is found is the truth (daemon.storage.record). Of a pool that can't be seen whole nobody says that a volume is
gone.
"""

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from contract import names
from contract.capacity import leg_count
from contract.parameters import VolumeParameters
from daemon.storage.record import Record
from lvm.allocation import FreeExtents


class VolumeHealth(enum.Enum):
    """What the storage under a volume complains of. The values are what people and metrics read."""

    OK = "ok"
    MISSING_DEVICE = "missing-device"
    READ_ONLY = "read-only"
    RAID_DEGRADED = "raid-degraded"
    RAID_MISMATCH = "raid-mismatch"
    CACHE_FAILED = "cache-failed"
    THIN_POOL_FAILED = "thin-pool-failed"
    THIN_POOL_FULL = "thin-pool-full"
    UNRESPONSIVE = "unresponsive"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class PoolName:
    """The name of a pool of LVM: "<group>", or "<group>/<thin pool>" for thin volumes."""

    group: str
    thin_pool: str = ""

    def __str__(self) -> str:
        return f"{self.group}/{self.thin_pool}" if self.thin_pool else self.group

    @classmethod
    def of(cls, pool: str) -> "PoolName":
        return cls(*pool.split("/", 1))


@dataclass(frozen=True)
class Volume:
    """A volume of ours as it was found."""

    record: Record
    size: int
    """Bytes it really has for its pod; the size that was asked for where nothing limits it. 0 when its making stopped
    before it had any."""
    pool: str
    health: VolumeHealth = VolumeHealth.OK
    overhead: int = 0
    """Bytes that it takes of its pool beyond its size: the second leg of a mirror, and what mirrors note of
    themselves; the header of an encrypted one."""

    @property
    def pv(self) -> str:
        return self.record.pv

    @property
    def device_size(self) -> int:
        """Bytes of its device: those of an encrypted one begin with the header."""
        return self.size + self.record.header_size


@dataclass(frozen=True)
class ThinPoolUsage:
    """How full a thin pool really is, in percent; None while it is not active. One with full metadata fails like one
    with full data."""

    data_percent: float | None
    metadata_percent: float | None
    metadata_size: int = 0
    """Bytes, beside the pool's size."""


@dataclass(frozen=True)
class SharedFilesystem:
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
    """What is written in the files, where that counts; None where it can't be distinguished from what others write."""


@dataclass(frozen=True)
class Pool:
    """What volumes take their space from. Sizes in bytes."""

    name: str
    """As in the pool annotation: "<group>", "<group>/<thin pool>", or the backend's one pool."""
    size: int
    free: int
    """Not taken by any volume yet. Negative when a thin pool is overprovisioned."""
    ours: int
    """What our volumes take of it: mirrors twice, sparse and thin volumes at their full size."""
    granularity: int
    thin: ThinPoolUsage | None = None
    reserve: int = 0
    """Kept back: no volume may take it."""
    blocked: str = ""
    """Why nothing new can be made here, whatever is free, and what to do about it."""
    notices: tuple[str, ...] = ()
    """What gives less room than it could, and what to do about it."""
    extents: FreeExtents | None = None
    """Where its free space is, if it has devices, as of the last look."""
    allocated_since_look: int = 0
    """Bytes that we took since that look: from which of the devices, only the next one shows."""
    more_volumes: int | None = None
    """How many more it can note. None: any number."""
    filesystem: SharedFilesystem | None = None
    """Of files and folders: where they are, if other pools of this node are there too."""

    def allocatable(self, overprovision_ratio: float = 1.0) -> int:
        """What all our volumes together may take: it stays the same whenever one is made or removed."""
        overprovisioned = int(self.size * (overprovision_ratio - 1)) if self.thin else 0
        return self.free + self.ours + overprovisioned - self.reserve

    def available(self, overprovision_ratio: float = 1.0) -> int:
        """What volumes not made yet may take."""
        return self.allocatable(overprovision_ratio) - self.ours

    def placeable(self, parameters: VolumeParameters) -> int | None:
        """Bytes that the largest new volume with these parameters would take, by where free space is. None: all that is
        free, wherever it is. What was taken since the last look is taken to have come from where it hurts most."""
        legs = leg_count(parameters)
        if self.extents is None or self.extents.is_sum(legs):
            return None
        return self.extents.most(legs) * self.granularity - self.weight(parameters) * self.allocated_since_look

    def weight(self, parameters: VolumeParameters, other: VolumeParameters | None = None) -> int:
        """By how many bytes at most `placeable` falls when a volume with parameters `other`, None for any, takes one.
        Volumes that all lie on all devices take nothing else from each other. (On devices in many small pieces it may
        be a little more, where a leg more or less of a piece decides.)"""
        legs = leg_count(parameters)
        if self.extents is None or self.extents.is_sum(legs):
            return 1
        alike = other is not None and leg_count(other) == legs == len(self.extents.areas)
        return 1 if alike else legs

    def sharing(self) -> tuple[str, ...]:
        """Other pools that take their space from the same filesystem."""
        return tuple(name for name in self.filesystem.pools if name != self.name) if self.filesystem else ()


@dataclass(frozen=True)
class ForeignVolume:
    """Something without our mark in a place where ours are kept, or with that of another cluster. Listed, never
    touched."""

    name: str
    pool: str
    size: int
    cluster: str = ""
    """Whose it is. Empty: it has no mark of ours."""


@dataclass(frozen=True)
class DamagedVolume:
    """Something with our mark that nobody but a person may touch, and why."""

    name: str
    pool: str
    reason: str


@dataclass(frozen=True)
class UnavailablePool:
    """A place of which not everything can be seen now: what is not found there may come back."""

    pool: str
    """As in Pool.name; of a volume group, its thin pools too."""
    reason: str
    """Why, and what to do about it. A whole sentence without its full stop."""
    unresponsive: bool = False
    """It gives no answer: what is shown of it is what was seen last."""


@dataclass(frozen=True)
class Inventory:
    """All that one look at the node found."""

    volumes: Collection[Volume] = ()
    pools: Collection[Pool] = ()
    foreign: Collection[ForeignVolume] = ()
    damaged: Collection[DamagedVolume] = ()
    snapshots: Collection[Volume] = ()
    """Ours, and no volumes of PersistentVolumes: they live while they are copied, and until their data is erased."""
    unavailable: Collection[UnavailablePool] = ()

    @cached_property
    def _by_name(self) -> Mapping[str, Volume]:
        return {volume.pv: volume for volume in reversed(tuple(self.volumes))}

    def volume(self, pv: str) -> Volume | None:
        return self._by_name.get(pv)

    def snapshot(self, name: str) -> Volume | None:
        return next((snapshot for snapshot in self.snapshots if snapshot.pv == name), None)

    def pool(self, name: str) -> Pool | None:
        return next((pool for pool in self.pools if pool.name == name), None)

    def why_unavailable(self, pool: str) -> str:
        """Why nobody can say of a volume that is not found that it is not in that pool. Empty: all of it was seen.
        `pool` is empty where its object lost the note of that: then it may be in one that this node does not show."""
        if not pool:
            return (
                f"nothing says which pool it is in: write that into the annotation {names.POOL_ANNOTATION} of its "
                f"object (this node shows {', '.join(each.name for each in self.pools) or 'none'} now)"
            )
        for each in self.unavailable:
            if each.pool in (pool, pool.partition("/")[0]):
                return each.reason
        return "" if self.pool(pool) else f"this node does not show {pool} now: bring its disks back"


def of_cluster(inventory: Inventory, cluster: str) -> Inventory:
    """What a look found, as a daemon of that cluster has to see it: volumes of another one are foreign. As long as it
    does not know its cluster, all are served."""

    def ours(volume: Volume) -> bool:
        return not cluster or volume.record.cluster in ("", cluster)

    theirs = [volume for volume in (*inventory.volumes, *inventory.snapshots) if not ours(volume)]
    if not theirs:
        return inventory
    return replace(
        inventory,
        volumes=[volume for volume in inventory.volumes if ours(volume)],
        snapshots=[snapshot for snapshot in inventory.snapshots if ours(snapshot)],
        foreign=[
            *inventory.foreign,
            *(ForeignVolume(volume.pv, volume.pool, volume.size, volume.record.cluster) for volume in theirs),
        ],
    )
