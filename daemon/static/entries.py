"""What stands in a discovery folder.

Looked at with stat alone: opening a FIFO would wait for its writer. Links are followed, because a link to a device
under /dev/disk/by-id is the usual way to offer one.
"""

import asyncio
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

from daemon.static.looks import Hung, Looks
from host import blockdevice, mounttable


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


async def look(folder: Path, wanted: Callable[[str], bool], looks: Looks) -> list[Entry]:
    """The entries whose names are wanted, by name. Raises OSError for a folder that can't be listed, and Hung."""
    mounted = await looks.at(folder, partial(_list, folder, wanted))
    # At once: if all disks of a controller hang, one deadline is waited for.
    kinds = await asyncio.gather(*(_answer(folder / name, looks) for name in mounted))
    return [Entry(name, folder / name, kind, mounted[name]) for name, kind in zip(mounted, kinds, strict=True)]


def _list(folder: Path, wanted: Callable[[str], bool]) -> dict[str, bool]:
    """Names, in their order, and whether something is mounted there."""
    found = sorted(path.name for path in folder.iterdir() if wanted(path.name))
    # The kernel's table has no links in it, and the folder itself may be reached through one.
    real = folder.resolve()
    mounts = {mount.path for mount in mounttable.read()}
    return {name: str(real / name) in mounts for name in found}


async def _answer(path: Path, looks: Looks) -> Kind:
    try:
        return await looks.at(path, partial(_kind, path))
    except Hung:
        return Kind.HUNG


def _kind(path: Path) -> Kind:
    try:
        mode = path.stat().st_mode
    except OSError:  # a link to nothing, or to what may not be read
        return Kind.OTHER
    return Kind.FOLDER if stat.S_ISDIR(mode) else Kind.BLOCK if stat.S_ISBLK(mode) else Kind.OTHER


async def capacity(entry: Entry, looks: Looks) -> int:
    """Bytes: of the device, or of the filesystem with what it keeps for itself. Raises OSError and Hung."""
    return await looks.at(entry.path, partial(_capacity, entry))


def _capacity(entry: Entry) -> int:
    if entry.kind is Kind.BLOCK:
        return blockdevice.size(entry.path)
    figures = os.statvfs(entry.path)
    return figures.f_blocks * figures.f_frsize
