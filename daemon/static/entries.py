"""What stands in a discovery folder.

Looked at with stat alone: opening a FIFO would wait for its writer. Links are followed, because a link to a device
under /dev/disk/by-id is the usual way to offer one.
"""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from host import blockdevice, mounttable


class Kind(Enum):
    FOLDER = "folder"
    BLOCK = "block device"
    OTHER = "neither"


@dataclass(frozen=True)
class Entry:
    name: str
    path: Path
    """As we see it."""
    kind: Kind
    mounted: bool = False
    """A filesystem is mounted right here."""


def look(folder: Path, wanted: Callable[[str], bool]) -> list[Entry]:
    """The entries whose names are wanted, by name. Blocking. Raises OSError for a folder that can't be listed."""
    found = sorted(path.name for path in folder.iterdir() if wanted(path.name))
    # The kernel's table has no links in it, and the folder itself may be reached through one.
    real = folder.resolve()
    mounts = {mount.path for mount in mounttable.read()}
    return [Entry(name, folder / name, _kind(folder / name), str(real / name) in mounts) for name in found]


def _kind(path: Path) -> Kind:
    try:
        mode = path.stat().st_mode
    except OSError:  # a link to nothing, or to what may not be read
        return Kind.OTHER
    return Kind.FOLDER if stat.S_ISDIR(mode) else Kind.BLOCK if stat.S_ISBLK(mode) else Kind.OTHER


def capacity(entry: Entry) -> int:
    """Bytes: of the device, or of the filesystem with what it keeps for itself. Blocking. Raises OSError."""
    if entry.kind is Kind.BLOCK:
        return blockdevice.size(entry.path)
    figures = os.statvfs(entry.path)
    return figures.f_blocks * figures.f_frsize
