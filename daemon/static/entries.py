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

from daemon.static import diskevidence
from daemon.static.diskidentity import DiskIdentity, device_identity, mount_identity
from daemon.static.diskrecord import DiskRecord
from host import blockdevice, mounttable, usage
from host.diskthreads import DEADLINE, DiskThreads, Hung
from host.mounttable import Mount

_USERS_SECONDS = 4 * DEADLINE
"""The users of a device are looked for among all processes of a busy node."""


class PatternError(ValueError):
    """A malformed pattern."""

    def __init__(self, pattern: str, what: str) -> None:
        super().__init__(f"malformed name pattern {pattern!r}: {what}")


def name_matcher(patterns: str) -> Callable[[str], bool]:
    """Whether a name matches one of the patterns, which are separated by commas and those of Go's filepath.Match. Not
    fnmatch: there `[!x]` negates and a backslash is a literal; here it is `[^x]`, and the backslash escapes. A
    malformed pattern is an error at once, and not only when a name is matched against it. Raises PatternError."""
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
    """The expression of a character class and the position after it. `position`: after the opening bracket."""
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


class EntryKind(Enum):
    FOLDER = "folder"
    BLOCK = "block device"
    OTHER = "neither"
    UNRESPONSIVE = "unresponsive"


@dataclass(frozen=True)
class Entry:
    name: str
    path: Path
    """In this container."""
    kind: EntryKind
    mounted: bool = False
    """It is a mount point."""
    identity: DiskIdentity | None = None
    """Of a device or a mounted folder. None: unknown."""
    record: DiskRecord | None = None
    """By which its disk is known again. None: unknown."""


async def scan(folder: Path, matches: Callable[[str], bool], disk_threads: DiskThreads) -> list[Entry]:
    """The entries whose names match, in their order. Raises OSError for a folder that can't be listed, and Hung."""
    mounts = await disk_threads.at(folder, partial(_list, folder, matches))
    # In parallel: if all disks of a controller hang, that takes one deadline.
    return list(await asyncio.gather(*(_examine(folder / name, mounts[name], disk_threads) for name in mounts)))


def _list(folder: Path, matches: Callable[[str], bool]) -> dict[str, Mount | None]:
    """Names in their order, with the mount there."""
    names = sorted(path.name for path in folder.iterdir() if matches(path.name))
    # The mount table has no symbolic links in its paths, the folder's path may have.
    real = folder.resolve()
    mounts = {mount.path: mount for mount in mounttable.read()}
    return {name: mounts.get(str(real / name)) for name in names}


async def _examine(path: Path, mount: Mount | None, disk_threads: DiskThreads) -> Entry:
    try:
        return await disk_threads.at(path, partial(_entry, path, mount))
    except Hung:
        return Entry(path.name, path, EntryKind.UNRESPONSIVE, mount is not None)


def _entry(path: Path, mount: Mount | None) -> Entry:
    kind, identity, record = _kind(path), None, None
    with contextlib.suppress(OSError):  # it was removed a moment ago
        status = path.stat()
        if kind is EntryKind.BLOCK:
            identity = device_identity(status.st_rdev)
            record = diskevidence.of_device(status.st_rdev)
        elif kind is EntryKind.FOLDER and mount:
            identity = mount_identity(mount)
            record = diskevidence.of_mount(mount, status.st_ino)
    return Entry(path.name, path, kind, mount is not None, identity, record)


def _kind(path: Path) -> EntryKind:
    try:
        mode = path.stat().st_mode
    except OSError:  # a dangling link, or not permitted
        return EntryKind.OTHER
    return EntryKind.FOLDER if stat.S_ISDIR(mode) else EntryKind.BLOCK if stat.S_ISBLK(mode) else EntryKind.OTHER


async def user(entry: Entry, disk_threads: DiskThreads) -> str:
    """Who uses the device or a part of it: a filesystem, device-mapper, LVM or md that holds it, or a process that has
    it open to write. Empty: nobody. Raises OSError and Hung."""
    if entry.kind is not EntryKind.BLOCK:
        return ""
    return await disk_threads.at(entry.path, partial(_user, entry.path), deadline=_USERS_SECONDS)


def _user(device: Path) -> str:
    if blockdevice.is_claimed(device):
        return "something is mounted from it or built on it (lsblk shows both)"
    return next(usage.device_users(device.stat().st_rdev), "")


async def capacity(entry: Entry, disk_threads: DiskThreads) -> int:
    """Bytes: the size of the device, or of the filesystem including its metadata. Raises OSError and Hung."""
    return await disk_threads.at(entry.path, partial(_capacity, entry))


def _capacity(entry: Entry) -> int:
    if entry.kind is EntryKind.BLOCK:
        return blockdevice.size(entry.path)
    filesystem = os.statvfs(entry.path)
    return filesystem.f_blocks * filesystem.f_frsize
