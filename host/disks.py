"""Which disks this node has, and whether one of them may be taken for something.

May it? Only if it holds nothing at all: no partition, no mount, no signature, no user, and nothing where filesystems
keep what they need to be found. The kernel is asked by an exclusive open, which sees users in every mount namespace:
from inside a container, the host's mounts can't be seen. What to refuse is a pure function of what was found.
"""

import itertools
import json
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from host import blockdevice, mounttable, presence
from host.command import run
from host.diskthreads import Hung, threads

T = TypeVar("T")

_SYSFS = Path("/sys")
_EDGE = 1 << 20
"""Bytes at both ends of a disk that must be zero: partition tables, superblocks and headers of what blkid does not know
are there."""

Ends = tuple[bytes, bytes]
"""The first and the last of these bytes of a disk."""

_LOOK_SECONDS = 30.0
_NOT_DISKS = ("loop", "ram", "zram", "sr", "fd", "mtdblock")


class NotADisk(Exception):
    """The path can't be looked at as a disk. The message says why and what to name."""


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
    number: str = ""
    """"major:minor": the same under all its names."""
    lies_on: frozenset[str] = frozenset()
    """Numbers of the devices that it is a part of or built on."""
    hardware: str = ""
    """What names a whole disk in all the world, or the file of a loop device: the same for each path to it."""
    model: str = ""
    """As its maker calls it. Empty: it does not say."""
    rotational: bool = False
    sector_size: int = 512
    """Bytes: 4096 of a 4Kn disk."""
    links: frozenset[str] = frozenset()
    """Its other names below /dev, as udev makes them: /dev/disk/by-id/... and the like."""


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
            f"it belongs to LVM: see `pvs {disk.path}`; if it may go: vgremove its group, then `pvremove {disk.path}`, "
            "with -ff where LVM finds no group that uses it"
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


def named_twice(named: Sequence[tuple[str, Disk]]) -> str:
    """Which two of the names mean one disk, or a part of it, and what to do. Empty: each is a disk of its own."""
    for (one, first), (other, second) in itertools.combinations(named, 2):
        if first.number == second.number:
            return f"{one} and {other} are one disk, {first.path}: name it once"
        for part, whole, inner, outer in ((one, other, first, second), (other, one, second, first)):
            if outer.number in inner.lies_on:
                return f"{part} lies on {whole}: name one of them"
        if first.hardware and first.hardware == second.hardware:
            return (
                f"{one} and {other} are two paths to one disk ({first.hardware}): name one of them, or the device of "
                "multipathd that joins them (`multipath -ll`)"
            )
    return ""


def choose(disks: Iterable[Disk]) -> Disk | None:
    """The largest empty disk (see `objection`); of equals the first by name."""
    free = [disk for disk in disks if not objection(disk)]
    return min(free, key=lambda disk: (-disk.size, disk.path), default=None)


def whole_disks() -> list[Path]:
    """The disks of this node, without those that are made of something else (loop, device-mapper, md)."""
    disks = []
    for entry in sorted((_SYSFS / "block").iterdir()):
        if entry.name.startswith(_NOT_DISKS) or (_SYSFS / "devices/virtual/block") in entry.resolve().parents:
            continue
        disks.append(Path("/dev", entry.name.replace("!", "/")))
    return [path for path in disks if blockdevice.is_block_device(path)]


async def look(path: Path) -> Disk:
    """What is on a block device. Raises NotADisk for what is none or gives no answer, and CommandError."""
    try:
        disk = await threads.at(path, partial(_without_signatures, path), deadline=_LOOK_SECONDS)
    except Hung as error:
        raise NotADisk(str(error)) from error
    return replace(disk, signatures=await _signatures(disk.path)) if disk.size else disk


def _without_signatures(path: Path) -> Disk:
    try:
        status = path.stat()
    except OSError as error:
        raise NotADisk(f"{path}: {error.strerror}. `lsblk` lists the disks of this node") from None
    if not stat.S_ISBLK(status.st_mode):
        raise NotADisk(f"{path} is no block device: name a disk such as /dev/sdb")
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
            number=number,
            lies_on=_below(facts),
            hardware=_hardware(facts),
            model=_text(facts / "device/model"),
            rotational=_text(facts / "queue/rotational") == "1",
            sector_size=blockdevice.sector_size(device),
            links=_links(device),
        )
    except OSError as error:
        raise NotADisk(f"{device} can't be looked at: {error.strerror}. Is it broken, or is this not root?") from None


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""


def _links(device: Path) -> frozenset[str]:
    links = Path("/dev/disk").glob("by-*/*")
    return frozenset(str(link) for link in links if presence.is_link(link) and link.resolve() == device)


def _below(facts: Path) -> frozenset[str]:
    """Numbers of the disk of a partition, of what a mapped device is made of, and of what those lie on."""
    direct = [slave.resolve() for slave in facts.glob("slaves/*")]
    if presence.exists(facts / "partition"):
        direct.append(facts.parent)
    numbers = frozenset((each / "dev").read_text().strip() for each in direct)
    return numbers.union(*map(_below, direct))


_WORLDWIDE = ("naa.", "eui.", "nvme.", "uuid.")
"""What a wwid begins with that no two disks have. Others are made of models and numbers that some vendors repeat."""


def _hardware(facts: Path) -> str:
    """Empty for what is no whole disk, or does not say."""
    for name in ("loop/backing_file", "wwid", "device/wwid"):
        try:
            said = (facts / name).read_text().strip()
        except OSError:
            continue
        if name.startswith("loop/") or said.startswith(_WORLDWIDE):
            return said
    return ""


async def ends(disk: Disk) -> Ends:
    """What stands there. Raises NotADisk."""
    return await _at(disk, partial(_ends_of, Path(disk.path), disk.size))


async def make_blank(disk: Disk, *, only: Callable[[Ends], bool] = lambda ends: True) -> bool:
    """Zeroes both ends again of a disk whose ends were zero when it was looked at. `only` is asked before, while nobody
    else has the disk; False: it said no, and nothing was done. Raises NotADisk, also when somebody uses it by now."""
    return await _at(disk, partial(_zero_ends, Path(disk.path), disk.size, only))


async def _at(disk: Disk, work: Callable[[], T]) -> T:
    try:
        return await threads.at(Path(disk.path), work, deadline=_LOOK_SECONDS)
    except (Hung, OSError) as error:
        raise NotADisk(str(error)) from error


def _zero_ends(device: Path, size: int, only: Callable[[Ends], bool]) -> bool:
    descriptor = os.open(device, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    try:
        if not only(_ends(descriptor, size)):
            return False
        for start in (0, max(0, size - _EDGE)):
            os.pwrite(descriptor, bytes(min(_EDGE, size)), start)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True


async def _signatures(device: str) -> tuple[str, ...]:
    answer = await run("wipefs", "--no-act", "--json", device, deadline=_LOOK_SECONDS)
    signatures = json.loads(answer.stdout)["signatures"] if answer.stdout.strip() else []
    return tuple(dict.fromkeys(signature["type"] for signature in signatures))


def _is_busy(device: Path) -> bool:
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError:
        return True
    return False


def _is_blank(device: Path, size: int) -> bool:
    return not any(end.strip(b"\0") for end in _ends_of(device, size))


def _ends_of(device: Path, size: int) -> Ends:
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _ends(descriptor, size)
    finally:
        os.close(descriptor)


def _ends(descriptor: int, size: int) -> Ends:
    return os.pread(descriptor, _EDGE, 0), os.pread(descriptor, _EDGE, max(0, size - _EDGE))
