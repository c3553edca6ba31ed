"""The entries of a discovery folder whose names match the class's namePattern.

An entry is examined with stat alone: opening a FIFO would wait for its writer. Links are followed, because a link to a
device under /dev/disk/by-id is the usual way to offer one.
"""

import asyncio
import contextlib
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

from daemon.static.diskidentity import Identity, of_device, of_mount
from host import blockdevice, mounttable
from host.diskthreads import DiskThreads, Hung
from host.mounttable import Mount


class PatternError(ValueError):
    """A pattern that can't be read."""

    def __init__(self, pattern: str, what: str) -> None:
        super().__init__(f"malformed name pattern {pattern!r}: {what}")


def matcher(patterns: str) -> Callable[[str], bool]:
    """Whether a name matches one of the patterns. Raises PatternError."""
    compiled = [re.compile(_expression(pattern), re.DOTALL) for pattern in patterns.split(",")]
    return lambda name: any(expression.fullmatch(name) for expression in compiled)


def _expression(pattern: str) -> str:
    expression, position = "", 0
    while position < len(pattern):
        character = pattern[position]
        position += 1
        if character == "*":
            expression += "[^/]*"
        elif character == "?":
            expression += "[^/]"
        elif character == "[":
            ranges, position = _class(pattern, position)
            expression += ranges
        elif character == "\\":
            if position == len(pattern):
                raise PatternError(pattern, "a backslash needs a character after it")
            expression += re.escape(pattern[position])
            position += 1
        else:
            expression += re.escape(character)
    return expression


def _class(pattern: str, position: int) -> tuple[str, int]:
    """The expression of a character class and where it ends. `position` is that after the opening bracket."""
    negated = pattern[position : position + 1] == "^"
    position += negated
    ranges: list[str] = []
    while pattern[position : position + 1] != "]" or not ranges:
        low, position = _member(pattern, position)
        high = low
        if pattern[position : position + 1] == "-":
            high, position = _member(pattern, position + 1)
        ranges.append(f"{re.escape(low)}-{re.escape(high)}" if low <= high else "")
    members = "".join(ranges)
    if negated:
        return (f"[^{members}]" if members else "."), position + 1
    return (f"[{members}]" if members else "(?!)"), position + 1


def _member(pattern: str, position: int) -> tuple[str, int]:
    character = pattern[position : position + 1]
    if character == "\\":
        position += 1
        character = pattern[position : position + 1]
    elif character in ("-", "]"):
        raise PatternError(pattern, f"{character!r} in a character class needs a backslash before it")
    if not character or position + 1 == len(pattern):
        raise PatternError(pattern, "a character class needs a closing bracket")
    return character, position + 1


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
