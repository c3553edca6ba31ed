"""Which disks this node has, and whether one of them may become part of a volume group.

May it? Only if it holds nothing at all: no partition, no mount, no signature, no user, and nothing where filesystems
keep what they need to be found. The kernel is asked by an exclusive open, which sees users in every mount namespace:
from inside a container, the host's mounts can't be seen. What to refuse is a pure function of what was found.
"""

import asyncio
import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from command.running import Stop
from contract import quantity
from host import blockdevice, mounttable
from host.command import run

_SYSFS = Path("/sys")
_EDGE = 1 << 20
"""Bytes at both ends of a disk that must be zero: partition tables, superblocks and headers of what blkid does not know
are there."""

_NOT_DISKS = ("loop", "ram", "zram", "sr", "fd", "mtdblock")


@dataclass(frozen=True)
class Disk:
    """A block device and what was found on it. `size` in bytes."""

    path: str
    size: int
    read_only: bool = False
    partitions: tuple[str, ...] = ()
    holders: tuple[str, ...] = ()
    """Devices that are built on it."""
    mounted_on: tuple[str, ...] = ()
    signatures: tuple[str, ...] = ()
    busy: bool = False
    """The kernel lets nobody have it alone."""
    blank: bool = True
    """Both of its ends are zero."""


def objection(disk: Disk) -> str:
    """Why a disk must not be taken, and what to do if it may go all the same. Empty: nothing speaks against it."""
    wipe = f"if all of that may go: wipefs --all --force {disk.path}"
    if disk.size == 0:
        return "it has no medium: name another disk"
    if disk.read_only:
        return "it is read-only: name another disk"
    if disk.mounted_on:
        return f"it is mounted on {', '.join(disk.mounted_on)}: name another disk"
    if disk.partitions:
        return f"it has partitions ({', '.join(disk.partitions)}): name another disk, or {wipe}"
    if disk.holders:
        return f"{', '.join(disk.holders)} is built on it: name another disk, or take that apart first"
    if "LVM2_member" in disk.signatures:
        return (
            f"it belongs to LVM: see `pvs {disk.path}`; if it may go: vgremove its group, then `pvremove {disk.path}`"
        )
    if disk.signatures:
        return f"it holds {', '.join(disk.signatures)}: name another disk, or {wipe}"
    if disk.busy:
        return "something uses it, perhaps outside this container: name another disk, or see `lsblk` on the node"
    if not disk.blank:
        return (
            "it holds data of an unknown kind: name another disk, or if it may go: "
            f"blkdiscard --zeroout --force {disk.path}"
        )
    return ""


def choose(disks: Iterable[Disk]) -> Disk | None:
    """The largest that nothing speaks against; of equals the first by name."""
    free = [disk for disk in disks if not objection(disk)]
    return min(free, key=lambda disk: (-disk.size, disk.path), default=None)


def described(disks: Iterable[Disk]) -> str:
    """A line for each disk that was looked at."""
    return "\n".join(f"  {disk.path} ({quantity.humane(disk.size)}): {objection(disk) or 'empty'}" for disk in disks)


def whole_disks() -> list[Path]:
    """The disks of this node, without those that are made of something else (loop, device-mapper, md)."""
    found = []
    for entry in sorted((_SYSFS / "block").iterdir()):
        if entry.name.startswith(_NOT_DISKS) or (_SYSFS / "devices/virtual/block") in entry.resolve().parents:
            continue
        found.append(Path("/dev", entry.name.replace("!", "/")))
    return [path for path in found if blockdevice.is_block_device(path)]


async def look(path: Path) -> Disk:
    """What is on a block device. Raises Stop for what is none, and CommandError."""
    disk = await asyncio.to_thread(_without_signatures, path)
    return replace(disk, signatures=await _signatures(disk.path)) if disk.size else disk


def _without_signatures(path: Path) -> Disk:
    try:
        status = path.stat()
    except OSError as error:
        raise Stop(f"{path}: {error.strerror}. `lsblk` lists the disks of this node") from None
    if not stat.S_ISBLK(status.st_mode):
        raise Stop(f"{path} is no block device: name a disk such as /dev/sdb, or give --loop-size for a file")
    device = path.resolve()
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    facts = (_SYSFS / "dev/block" / number).resolve()
    try:
        size = blockdevice.size(device)
        return Disk(
            path=str(device),
            size=size,
            read_only=(facts / "ro").read_text().strip() == "1",
            partitions=tuple(sorted(part.parent.name for part in facts.glob("*/partition"))),
            holders=tuple(sorted(holder.name for holder in facts.glob("holders/*"))),
            mounted_on=tuple(mount.path for mount in mounttable.read() if mount.device == number),
            busy=_is_busy(device),
            blank=_is_blank(device, size),
        )
    except OSError as error:
        raise Stop(f"{device} can't be looked at: {error.strerror}. Is it broken, or is this not root?") from None


async def _signatures(device: str) -> tuple[str, ...]:
    answer = await run("wipefs", "--no-act", "--json", device, deadline=30)
    found = json.loads(answer.stdout)["signatures"] if answer.stdout.strip() else []
    return tuple(dict.fromkeys(signature["type"] for signature in found))


def _is_busy(device: Path) -> bool:
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError:
        return True
    return False


def _is_blank(device: Path, size: int) -> bool:
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        ends = (os.pread(descriptor, _EDGE, 0), os.pread(descriptor, _EDGE, max(0, size - _EDGE)))
    finally:
        os.close(descriptor)
    return not any(end.strip(b"\0") for end in ends)
