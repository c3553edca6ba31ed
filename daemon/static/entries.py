"""What stands in a discovery folder.

Looked at with stat alone: opening a FIFO would wait for its writer. Links are followed, because a link to a device
under /dev/disk/by-id is the usual way to offer one.
"""

import asyncio
import contextlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

from daemon.static.identity import Identity, of_device, of_mount
from host import blockdevice, mounttable
from host.diskthreads import DiskThreads, Hung
from host.mounttable import Mount


class Kind(Enum):
    FOLDER = "folder"
    BLOCK = "block device"
    OTHER = "neither"
    HUNG = "no answer"


@dataclass(frozen=True)
class Entry:
    name: str
    path: Path
    """As we see it."""
    kind: Kind
    mounted: bool = False
    """A filesystem is mounted right here."""
    identity: Identity | None = None
    """What stands behind a device or a mounted folder. None: it can't be told."""


async def look(folder: Path, wanted: Callable[[str], bool], looks: DiskThreads) -> list[Entry]:
    """The entries whose names are wanted, by name. Raises OSError for a folder that can't be listed, and Hung."""
    mounts = await looks.at(folder, partial(_list, folder, wanted))
    # At once: if all disks of a controller hang, one deadline is waited for.
    return list(await asyncio.gather(*(_answer(folder / name, mounts[name], looks) for name in mounts)))


def _list(folder: Path, wanted: Callable[[str], bool]) -> dict[str, Mount | None]:
    """Names, in their order, and what is mounted there."""
    found = sorted(path.name for path in folder.iterdir() if wanted(path.name))
    # The kernel's table has no links in it, and the folder itself may be reached through one.
    real = folder.resolve()
    mounts = {mount.path: mount for mount in mounttable.read()}
    return {name: mounts.get(str(real / name)) for name in found}


async def _answer(path: Path, mount: Mount | None, looks: DiskThreads) -> Entry:
    try:
        return await looks.at(path, partial(_entry, path, mount))
    except Hung:
        return Entry(path.name, path, Kind.HUNG, mount is not None)


def _entry(path: Path, mount: Mount | None) -> Entry:
    kind, identity = _kind(path), None
    with contextlib.suppress(OSError):  # it went away a moment ago
        if kind is Kind.BLOCK:
            identity = of_device(path.stat().st_rdev)
        elif kind is Kind.FOLDER and mount:
            identity = of_mount(mount)
    return Entry(path.name, path, kind, mount is not None, identity)


def _kind(path: Path) -> Kind:
    try:
        mode = path.stat().st_mode
    except OSError:  # a link to nothing, or to what may not be read
        return Kind.OTHER
    return Kind.FOLDER if stat.S_ISDIR(mode) else Kind.BLOCK if stat.S_ISBLK(mode) else Kind.OTHER


async def is_claimed(entry: Entry, looks: DiskThreads) -> bool:
    """Whether somebody has the device for himself: a filesystem, device-mapper, LVM or md on it or on a part of it.
    Raises OSError and Hung."""
    return entry.kind is Kind.BLOCK and await looks.at(entry.path, partial(blockdevice.is_claimed, entry.path))


async def capacity(entry: Entry, looks: DiskThreads) -> int:
    """Bytes: of the device, or of the filesystem with what it keeps for itself. Raises OSError and Hung."""
    return await looks.at(entry.path, partial(_capacity, entry))


def _capacity(entry: Entry) -> int:
    if entry.kind is Kind.BLOCK:
        return blockdevice.size(entry.path)
    figures = os.statvfs(entry.path)
    return figures.f_blocks * figures.f_frsize
