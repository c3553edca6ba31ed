"""Which disk an entry is: one disk may have many paths, and must not be given to two pods.

A device is identified by its number and not by its path, together with all devices that it is built on: the disk of a
partition, the disks under device-mapper and md, the device or file behind a loop device, the multipath device of
several paths. Two devices overlap when one is among those that the other is built on; two partitions or logical volumes
of one disk do not. A mounted filesystem is identified by its mount and by its device.

Source: sysfs-block and sysfs-block-dm in the kernel's Documentation/ABI, loop(4).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from host import loopdevice, presence
from host.loopdevice import Backing
from host.mounttable import Mount

_SYSFS = Path("/sys/dev/block")
_UNIQUE = ("naa.", "eui.", "uuid.")
"""Prefixes of world-wide names (WWIDs) that are unique. Other kinds may be the same for a whole batch of disks."""


@dataclass(frozen=True)
class DiskIdentity:
    device_ids: frozenset[str] = frozenset()
    """Of the device: "major:minor", and its WWID if it has a unique one."""
    stack_ids: frozenset[str] = frozenset()
    """These, and those of all devices that it is built on."""
    backing: Backing | None = None
    """Of a loop device."""
    mount: Mount | None = None
    """Of a folder. The other fields are those of its device then, if it has one."""

    def overlaps(self, other: "DiskIdentity") -> bool:
        """Whether both are the same disk, or one is a part of the other."""
        if self.mount and other.mount:
            return mounts_overlap(self.mount, other.mount)
        if self.backing and other.backing and self.backing.overlaps(other.backing):
            return True
        return bool(self.device_ids & other.stack_ids or other.device_ids & self.stack_ids)


def mounts_overlap(one: Mount, other: Mount) -> bool:
    """Whether two mounts have the same folder of one filesystem as their root, or one a folder in that of the other."""
    if one.device != other.device:
        return False
    shorter, longer = sorted((one.root, other.root), key=len)
    return longer == shorter or longer.startswith(shorter.rstrip("/") + "/")


def device_identity(number: int) -> DiskIdentity:
    """`number`: st_rdev. Blocking, but does not read from the disk itself. Raises OSError."""
    return _identity(f"{os.major(number)}:{os.minor(number)}")


def mount_identity(mount: Mount) -> DiskIdentity:
    """Blocking. Raises OSError."""
    number = mount.device
    if not presence.exists(_SYSFS / number) and mount.source.startswith("/"):
        # btrfs has an anonymous device number, and one of its devices as the source.
        try:
            status = Path(mount.source).stat()
        except FileNotFoundError:
            return DiskIdentity(mount=mount)
        number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    if not presence.exists(_SYSFS / number):
        return DiskIdentity(mount=mount)
    return replace(_identity(number), mount=mount)


def _identity(number: str) -> DiskIdentity:
    number = _multipath(number) or number
    stack_ids, waiting = set[str](), [number]
    seen = set[str]()
    while waiting:
        each = waiting.pop()
        if each not in seen:
            seen.add(each)
            stack_ids |= _device_ids(each)
            waiting += _lower_devices(each)
    return DiskIdentity(frozenset(_device_ids(number)), frozenset(stack_ids), _backing(number))


def _folder(number: str) -> Path:
    return Path(os.path.realpath(_SYSFS / number))


def _device_ids(number: str) -> set[str]:
    folder, part = _folder(number), ""
    if partition := _read(folder / "partition"):
        folder, part = folder.parent, f" part {partition}"
    name = _read(folder / "wwid") or _read(folder / "device/wwid")
    return {number, f"{name}{part}"} if name.startswith(_UNIQUE) else {number}


def _lower_devices(number: str) -> Iterator[str]:
    folder = _folder(number)
    if presence.exists(folder / "partition"):
        yield _read(folder.parent / "dev")
    if presence.is_folder(folder / "slaves"):
        for slave in (folder / "slaves").iterdir():
            yield _read(slave / "dev")
    backing = _backing(number)
    if backing and backing.block_device:
        yield f"{os.major(backing.block_device)}:{os.minor(backing.block_device)}"


def _multipath(number: str) -> str:
    """The number of the multipath device over this path, or empty."""
    holders = _folder(number) / "holders"
    for holder in holders.iterdir() if presence.is_folder(holders) else ():
        if _read(holder / "dm/uuid").startswith("mpath-"):
            return _read(holder / "dev")
    return ""


def _backing(number: str) -> Backing | None:
    folder = _folder(number)
    return loopdevice.backing(Path("/dev", folder.name)) if presence.is_folder(folder / "loop") else None


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
