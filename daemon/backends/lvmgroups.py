"""What LVM will do with a volume group, and what a person reads where it will not. Pure.

A group may have room and LVM may still refuse to make a volume in it: what is published must be what would be given.
Each condition names the disk, and the command that ends it. No figures that change: a message that changes is reported
again.
"""

from collections.abc import Iterator, Mapping

import lvm
from contract import quantity
from lvm import HealthStatus, LogicalVolume, PhysicalVolume, VolumeGroup

_METADATA_OF_VOLUME = 2 << 10
"""Bytes of LVM's metadata that a volume takes at most as a rule, tags and all: a plain one takes 0.7 KiB, a mirror,
which is five volumes to LVM, 2. Each piece that it lies in takes 0.1 KiB more."""
_METADATA_KEPT = 64 << 10
"""Bytes that are left to the volumes there are: each change of a state or a size is a change of the metadata, and what
can't be written can't be removed either."""
_KEPT_SHARE = 16
"""That much is too much of the small areas of old groups: one part in so many of the area is enough there."""
_FEW_VOLUMES = 100
"""When room in the metadata is left for fewer, it is reported."""

NOT_SHARED = ("", "none")


def unusable(group: VolumeGroup) -> str:
    """Why nothing in the group can be used here, and what to do. Empty: it can."""
    name = group.name
    if group.exported:
        return f"volume group {name} is exported: `vgimport {name}`, if it is to be used on this node"
    if group.system_id:
        return (
            f"volume group {name} belongs to the host with LVM's system ID {group.system_id}: if that is this node, or "
            f'is gone, run `vgchange --systemid "" {name}` with that identity (lvmsystemid(7))'
        )
    if group.lock_type not in NOT_SHARED:
        return (
            f"volume group {name} is shared by several hosts (lock type {group.lock_type}), which is not served: name "
            f"another group, or `vgchange --lock-type none {name}` when no other host uses it"
        )
    return ""


def refusal(state: lvm.Report, group: VolumeGroup) -> str:
    """Why LVM makes no new volumes in a group that can be used, and what to do. Empty: it makes them."""
    name = group.name
    for device in state.devices_of(name):
        if device.missing:
            return f"LVM changes nothing in volume group {name} while a disk is missing: {_missing(name, device)}"
        if device.duplicates:
            return (
                f"LVM changes nothing in volume group {name} while it finds one disk under several names, "
                f"{device.path} and {' '.join(device.duplicates)}: detach the copy, or have multipathd join the paths "
                "of one disk (`lsblk`, `multipath -ll`)"
            )
    if not group.writable:
        return (
            f"volume group {name} is read-only by its metadata: restore a backup of them that is not "
            f"(`vgcfgrestore --list {name}`)"
        )
    if group.most_volumes and group.volume_count >= group.most_volumes:
        return (
            f"volume group {name} has the {group.most_volumes} volumes that its administrator allows: "
            f"`vgchange --logicalvolume 0 {name}`"
        )
    if room_for_volumes(group) == 0:
        return f"LVM's metadata area of volume group {name} is nearly full: {_larger_area(state, group)}"
    return ""


def unlike_sectors(sizes: Mapping[str, int]) -> str:
    """Why LVM makes no group of these devices, of which each path has its size of a sector. Empty: it does."""
    small, large = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    if sizes[small] == sizes[large]:
        return ""
    return (
        f"{small} has sectors of {sizes[small]} bytes and {large} of {sizes[large]}, and LVM makes no group of both: "
        "make one of each kind, each with a device class of its own (many NVMe disks can be formatted with either: "
        "`nvme id-ns -H` lists what they know, `nvme format --lbaf` takes all their data)"
    )


def sector_sizes(state: lvm.Report, group: str) -> dict[str, int]:
    """Of the devices of a group, by path, as far as the kernel says."""
    return {device.path: device.sector_size for device in state.devices_of(group) if device.sector_size}


def growth_refusal(state: lvm.Report, group: VolumeGroup) -> str:
    """Why no volume or pool of a group is extended, and what to do. Empty: LVM extends them. In a group with several
    sizes of sectors, which an administrator can make and old versions of LVM made, it would take any device; and a
    volume has the largest sectors of all that it lies on."""
    smallest = min(sector_sizes(state, group.name).values(), default=0)
    larger = sorted(
        device.path
        for device in state.devices_of(group.name)
        if device.sector_size and device.sector_size > smallest and device.allocatable and device.free
    )
    if not larger:
        return ""
    return (
        f"volume group {group.name} has disks with sectors of {smallest} bytes and with larger ones: what grows from "
        f"one onto the other may not be mounted any more, so nothing in it grows while those take new volumes: "
        f"`pvchange -xn {' '.join(larger)}`"
    )


def needs_check(pool: LogicalVolume) -> bool:
    """The kernel takes no changes of a thin pool any more, because it could not write down an earlier one."""
    return pool.is_thin_pool and pool.health in (HealthStatus.FAILED, HealthStatus.METADATA_READ_ONLY)


def refusal_of_pool(state: lvm.Report, group: VolumeGroup, pool: LogicalVolume) -> str:
    """The same of a thin pool."""
    if needs_check(pool):
        name = f"{pool.group}/{pool.name}"
        return (
            f"the kernel takes no changes of thin pool {name} since its disk failed to write the metadata of it: stop "
            "the pods that use its volumes, then restart this node's daemon, which has the pool checked; if that does "
            f"not help, `lvconvert --repair {name}` (lvmthin(7))"
        )
    return refusal(state, group)


def notices(state: lvm.Report, group: VolumeGroup) -> Iterator[str]:
    """What gives less room than it could, while the rest serves on."""
    name = group.name
    for device in state.devices_of(name):
        if not device.allocatable and not device.missing:
            yield (
                f"disk {device.path} of volume group {name} takes no new volumes, the {quantity.humane(device.free)} "
                f"free on it are not offered: `pvchange -xy {device.path}`"
            )
    if why := growth_refusal(state, group):
        yield why
    left = room_for_volumes(group)
    if left is not None and 0 < left < _FEW_VOLUMES and group.metadata_size:
        yield (
            f"LVM's metadata area of volume group {name} has room for fewer than {_FEW_VOLUMES} more volumes: "
            f"{_larger_area(state, group)}"
        )


def usable_free(state: lvm.Report, group: VolumeGroup) -> int:
    """Bytes that are free on devices which take new volumes."""
    return group.free - sum(
        device.free for device in state.devices_of(group.name) if device.missing or not device.allocatable
    )


def room_for_volumes(group: VolumeGroup) -> int | None:
    """How many more volumes LVM can note. None: nothing limits that."""
    limits = []
    if group.metadata_size:
        kept = min(_METADATA_KEPT, group.metadata_size // _KEPT_SHARE)
        limits.append(max(group.metadata_free - kept, 0) // _METADATA_OF_VOLUME)
    if group.most_volumes:
        limits.append(max(group.most_volumes - group.volume_count, 0))
    return min(limits, default=None)


def _missing(group: str, device: PhysicalVolume) -> str:
    if device.path.startswith("/dev/"):
        return f"{device.path} was away and is back: `vgextend --restoremissing {group} {device.path}`"
    last = f", last seen as {device.last_path}" if device.last_path else ""
    return (
        f"the one with uuid {device.uuid}{last}. Bring it back, or if it is lost for good with all that was on it: "
        f"`vgreduce --removemissing {group}` (docs/operations.md, A disk is replaced)"
    )


def _larger_area(state: lvm.Report, group: VolumeGroup) -> str:
    small = " ".join(sorted(device.path for device in state.devices_of(group.name)))
    return (
        "delete volumes, or add a disk with a larger area, NEW, and let LVM leave the small ones aside: "
        f"`pvcreate --metadatasize 64m NEW && vgextend {group.name} NEW && pvchange --metadataignore y {small}`"
    )
