"""What LVM reports, as frozen records. All sizes are in bytes."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from lvm.allocation import NORMAL, FreeExtents


class HealthStatus(Enum):
    """State of a volume's data. The values are those of LVM's lv_health_status, lvs(8)."""

    OK = ""
    PARTIAL = "partial"
    """A device that it lies on is missing."""
    REFRESH_NEEDED = "refresh needed"
    """A mirror leg failed for a moment: `lvchange --refresh` brings it back."""
    MISMATCHES = "mismatches exist"
    FAILED = "failed"
    """A thin pool, or the cache of a volume, that the kernel switched off."""
    ERROR = "error"
    """Of a volume with a writecache: that has failed."""
    OUT_OF_DATA = "out_of_data"
    """A thin pool that is full: writes wait or fail."""
    METADATA_READ_ONLY = "metadata_read_only"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class PhysicalVolume:
    """A device that belongs to LVM. `group` is empty while it is in none."""

    path: str
    uuid: str
    group: str
    size: int
    free: int
    missing: bool
    tags: frozenset[str]
    allocatable: bool = True
    """Takes new volumes: `pvchange -xn` says that it doesn't, and so does LVM of one that is missing."""
    areas: tuple[int, ...] = ()
    """What is free on it, in extents, piece by piece."""
    duplicates: tuple[str, ...] = ()
    """Other paths under which LVM finds the same device: it uses none of them, and does not change the group."""
    last_path: str = ""
    """Of one that is missing: under which path LVM saw it last."""
    sector_size: int | None = None
    """Bytes. LVM does not report it, the kernel does; None: it does not either, as of one that is missing."""


@dataclass(frozen=True)
class VolumeGroup:
    """A volume group. Free counts whole extents, as size does."""

    name: str
    uuid: str
    size: int
    free: int
    extent_size: int
    tags: frozenset[str]
    missing_devices: int
    exported: bool
    writable: bool = True
    system_id: str = ""
    """Whose group it is. Our lvm.conf has no identity of its own, so a group that has one is somebody else's."""
    lock_type: str = ""
    """Of a group that several hosts share: `sanlock`, `dlm`. It takes lvmlockd to use one. Also `none`."""
    allocation: str = NORMAL
    metadata_size: int = 0
    """Of the area on a device that holds the metadata. LVM writes a new copy beside the old one, so one may take half
    of it. 0: of no device is it known."""
    metadata_free: int = 0
    """How many bytes longer the metadata may become, where the least is left."""
    most_volumes: int = 0
    """An administrator's limit (`vgchange --logicalvolume`). 0: none."""
    volume_count: int = 0
    seqno: int = 0
    """LVM's count of the changes of its metadata."""


@dataclass(frozen=True)
class LogicalVolume:
    """A volume or a thin pool: the parts that LVM makes for itself are left out."""

    name: str
    group: str
    uuid: str
    size: int
    """What a program may write to it: of a thin volume its virtual size, of a pool the room for data."""
    tags: frozenset[str]
    path: str
    """Its device, there while it is active. Empty for a pool, which nobody may write to."""
    layout: frozenset[str]
    """LVM's lv_layout, as {"linear"}, {"striped"}, {"raid", "raid1"}, {"thin", "pool"}, {"thin", "sparse"}."""
    pool: str
    """Of a thin volume: the name of its pool."""
    origin: str
    """Of a snapshot: the name of the volume that it is of."""
    zeroes_new_blocks: bool
    """Of a pool or thin volume: nobody reads in a new block what an earlier volume left there."""
    active: bool
    suspended: bool
    open: bool
    """Some process, a mount included, holds the device."""
    health: HealthStatus
    data_percent: float | None
    """Of a pool: used room; of a thin volume: the written part of its size. None while it is not active."""
    metadata_percent: float | None
    """Of a pool. A pool whose metadata is full is as bad as one whose data is."""
    metadata_size: int
    """Of a pool: room for metadata, which is not in `size`."""
    overflowed: bool
    """Of a thick snapshot: it had no room for what was written to its origin, and can't be read any more."""

    @property
    def is_thin_pool(self) -> bool:
        return {"thin", "pool"} <= self.layout

    @property
    def is_cached(self) -> bool:
        """By lvmcache(7), in either way."""
        return bool(self.layout & {"cache", "writecache"})

    @property
    def is_thin(self) -> bool:
        return "thin" in self.layout and "pool" not in self.layout


@dataclass(frozen=True)
class Report:
    """All that LVM has on this node. A group that is missing is a normal state: it is just not here."""

    groups: tuple[VolumeGroup, ...]
    volumes: tuple[LogicalVolume, ...]
    devices: tuple[PhysicalVolume, ...]

    def group(self, name: str) -> VolumeGroup | None:
        return next((group for group in self.groups if group.name == name), None)

    def devices_of(self, group: str) -> Iterator[PhysicalVolume]:
        return (device for device in self.devices if device.group == group)

    def free_extents(self, group: VolumeGroup) -> FreeExtents:
        """What new volumes of the group may lie on."""
        usable = (device for device in self.devices_of(group.name) if device.allocatable and not device.missing)
        return FreeExtents(tuple(device.areas for device in usable), group.allocation)

    def volume(self, group: str, name: str) -> LogicalVolume | None:
        return next((volume for volume in self.volumes_of(group) if volume.name == name), None)

    def thick_snapshots(self, group: str, origin: str) -> Iterator[LogicalVolume]:
        """Those that LVM removes together with their origin, and that keep it from growing."""
        return (volume for volume in self.volumes_of(group) if volume.origin == origin and not volume.is_thin)

    def volumes_of(self, group: str) -> Iterator[LogicalVolume]:
        return (volume for volume in self.volumes if volume.group == group)

    def thin_volumes(self, group: str, pool: str) -> Iterator[LogicalVolume]:
        return (volume for volume in self.volumes_of(group) if volume.pool == pool)
