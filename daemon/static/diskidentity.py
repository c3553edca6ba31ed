"""What stands behind an entry: the same bytes may be offered under many paths, and two pods must not get one disk.

A device is known by its number and not by its path, and together with it by all that it is built on: the disk of a
partition, the disks under device-mapper and md, the device or file behind a loop device, the disk that several paths
of a multipath lead to. Two devices show the same bytes when one is among what the other is built on; two partitions, or
two logical volumes, beside each other do not. A mounted filesystem is known by its mount, and by the device behind it.

Source: sysfs-block and sysfs-block-dm in the kernel's Documentation/ABI, loop(4).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from host import loopdevice
from host.loopdevice import Backing
from host.mounttable import Mount

_SYSFS = Path("/sys/dev/block")
_UNIQUE = ("naa.", "eui.", "uuid.")
"""Names of disks that no other disk in the world has. What others say of themselves may be the same for a whole
batch."""


@dataclass(frozen=True)
class Identity:
    own: frozenset[str] = frozenset()
    """What the device is called: "major:minor", and its name in the world if it has one."""
    stack: frozenset[str] = frozenset()
    """These, and those of all that it is built on."""
    backing: Backing | None = None
    """Of a loop device."""
    mount: Mount | None = None
    """Of a folder. The device is the one behind it then, if there is one."""

    def same(self, other: "Identity") -> bool:
        """Whether both show the same bytes, or one a part of the other's."""
        if self.mount and other.mount:
            return overlap(self.mount, other.mount)
        if self.backing and other.backing and self.backing.overlaps(other.backing):
            return True
        return bool(self.own & other.stack or other.own & self.stack)


def same_disk(one: Path, other: Path) -> bool:
    """Whether two devices, by their folders in sysfs, are the same, or one is a partition of the other: where the disks
    in /dev are offered, a careless name pattern takes both."""
    return one == other or one in other.parents or other in one.parents


def overlap(one: Mount, other: Mount) -> bool:
    """Whether two mounts show folders of one filesystem of which one is the other, or is in it."""
    if one.device != other.device:
        return False
    shorter, longer = sorted((one.root, other.root), key=len)
    return longer == shorter or longer.startswith(shorter.rstrip("/") + "/")


def of_device(number: int) -> Identity:
    """`number`: st_rdev. Blocking, without a look at the disk itself. Raises OSError."""
    return _identity(f"{os.major(number)}:{os.minor(number)}")


def of_mount(mount: Mount) -> Identity:
    """Blocking. Raises OSError."""
    number = mount.device
    if not (_SYSFS / number).exists() and mount.source.startswith("/"):
        # btrfs has a number of its own, and names one of its devices.
        try:
            found = Path(mount.source).stat()
        except FileNotFoundError:
            return Identity(mount=mount)
        number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    if not (_SYSFS / number).exists():
        return Identity(mount=mount)
    behind = _identity(number)
    return Identity(behind.own, behind.stack, behind.backing, mount)


def _identity(number: str) -> Identity:
    number = _multipath(number) or number
    stack, waiting = set[str](), [number]
    seen = set[str]()
    while waiting:
        each = waiting.pop()
        if each not in seen:
            seen.add(each)
            stack |= _called(each)
            waiting += _below(each)
    return Identity(frozenset(_called(number)), frozenset(stack), _backing(number))


def _folder(number: str) -> Path:
    return Path(os.path.realpath(_SYSFS / number))


def _called(number: str) -> set[str]:
    folder, part = _folder(number), ""
    if partition := _read(folder / "partition"):
        folder, part = folder.parent, f" part {partition}"
    name = _read(folder / "wwid") or _read(folder / "device/wwid")
    return {number, f"{name}{part}"} if name.startswith(_UNIQUE) else {number}


def _below(number: str) -> Iterator[str]:
    folder = _folder(number)
    if (folder / "partition").exists():
        yield _read(folder.parent / "dev")
    if (folder / "slaves").is_dir():
        for slave in (folder / "slaves").iterdir():
            yield _read(slave / "dev")
    backing = _backing(number)
    if backing and backing.block_device:
        yield f"{os.major(backing.block_device)}:{os.minor(backing.block_device)}"


def _multipath(number: str) -> str:
    """The device that all paths to this disk are joined in, or nothing."""
    holders = _folder(number) / "holders"
    for holder in holders.iterdir() if holders.is_dir() else ():
        if _read(holder / "dm/uuid").startswith("mpath-"):
            return _read(holder / "dev")
    return ""


def _backing(number: str) -> Backing | None:
    folder = _folder(number)
    return loopdevice.backing(Path("/dev", folder.name)) if (folder / "loop").is_dir() else None


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
