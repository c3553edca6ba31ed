"""Removing a tree of files that somebody else made, who may have meant it as a trap for a program that runs as root.

No path is ever looked up twice: folders are opened from their open parent without following links, names are removed
from open folders, and each open folder must show the very mount that was opened first. A link that takes the place of
a folder meanwhile is removed as the link that it is.

However deep a tree is, a few folders are open: folders in a folder are moved to the top and emptied there. A walk that
goes down would run out of open files, of the length of a path or of Python's stack, at a depth of its owner's choice.
Where nothing can be moved to the top, because the filesystem is full to the last block or it is a subvolume, the walk
goes down all the same, with one folder open at a time, and up again by `..`.

All functions block.
"""

import contextlib
import errno
import fcntl
import math
import os
import re
import secrets
import struct
import time
from itertools import count
from pathlib import Path

OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# include/uapi/linux/fs.h: struct fsxattr
_FS_IOC_FSGETXATTR, _FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
_ATTRIBUTES = struct.Struct("IIIII8s")

_NOT_MOVED = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EXDEV, errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL})
"""Errors of what can't be moved to the top, and can be removed where it is."""


class NotEmptied(Exception):
    """Something stands in the way: says what, and what to do."""


def remove(path: Path, seconds: float = math.inf) -> bool:
    """Whether the folder `path` and all in it are gone; who wants that to outlast a power cut flushes its parent.
    False: not yet, after so many seconds of removing. Raises NotEmptied when a part of it can't go, and OSError when
    `path` is no folder or can't be opened."""
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        folder = os.open(path.name, OPEN, dir_fd=parent)
        try:
            _empty(folder, path, mount_id(parent), seconds)
        except _TimeUp:
            return False
        finally:
            os.close(folder)
        try:
            os.rmdir(path.name, dir_fd=parent)
        except OSError as error:
            raise _refused(path, error) from None
    finally:
        os.close(parent)
    return True


def empty(folder: int, path: Path, mount: int) -> int:
    """Removes all that is in an open folder, which stays. The answer is the number of entries removed. `path` is its
    name in messages, and `mount` the mount that all of it must be on. Raises NotEmptied."""
    return _empty(folder, path, mount, math.inf)


def _empty(folder: int, path: Path, mount: int, seconds: float) -> int:
    if mount_id(folder) != mount:
        raise _mounted(path)
    return Emptying(folder, path, mount, seconds).run()


def mount_id(descriptor: int) -> int:
    """Of the mount that an open file is seen through (proc_pid_fdinfo(5))."""
    match = re.search(r"^mnt_id:\s*(\d+)$", Path(f"/proc/self/fdinfo/{descriptor}").read_text(), re.MULTILINE)
    assert match, "Linux 3.15 shows it for every open file"
    return int(match[1])


class _NotMoved(Exception):
    """The top folder can't take one more name, until something else is removed, or can't take what is in a
    subvolume."""


class _TimeUp(Exception):
    """It has been removing for as long as it may."""


class Emptying:
    """`seconds` begin with the first removal, so that each one gets on, whatever it takes to find something."""

    def __init__(self, top: int, path: Path, mount: int, seconds: float = math.inf) -> None:
        self._seconds = seconds
        self._end = math.inf
        self._path = path
        self._top = top
        self._mount = mount
        self._removed = 0
        self._lifted = 0
        token = secrets.token_hex(8)
        self._fresh_names = (f".cleaning-{token}-{number}" for number in count())

    def run(self) -> int:
        # What is moved to the top while it is listed may or may not be listed: so again, until nothing is left.
        while names := _names(self._top):
            before = self._removed, self._lifted
            for name in names:
                if not self._unlink(name, self._top, self._path):
                    with contextlib.suppress(_NotMoved):  # what was lifted until then is emptied in the next round
                        self._remove_folder(name)
            if before == (self._removed, self._lifted):
                self._remove_deepest()
            if before == (self._removed, self._lifted):
                raise NotEmptied(f"{self._path} changes while it is emptied: stop what uses it")
        # What was removed must not come back after a power cut, when others are using the volume.
        try:
            os.fsync(self._top)
        except OSError as error:
            raise NotEmptied(
                f"{self._path} can't be written to its disk ({error.strerror}): see the kernel's log"
            ) from None
        return self._removed

    def _remove_folder(self, name: str) -> None:
        """Of the top folder."""
        try:
            descriptor = os.open(name, OPEN, dir_fd=self._top)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENOENT):
                return  # it was a folder a moment ago: the next round sees what it is now
            raise _refused(self._path / name, error) from None
        try:
            if mount_id(descriptor) != self._mount:
                raise _mounted(self._path / name)
            while names := _names(descriptor):
                for below in names:
                    if not self._unlink(below, descriptor, self._path / name):
                        self._lift(below, descriptor, self._path / name)
        finally:
            os.close(descriptor)
        try:
            os.rmdir(name, dir_fd=self._top)
        except OSError as error:
            raise _refused(self._path / name, error) from None
        self._removed += 1

    def _remove_deepest(self) -> None:
        """A folder that has no folder in it, and those above it that are empty then. Takes no room at all."""
        trail: list[tuple[str, tuple[int, int]]] = []
        """The name of each folder from the top down, and what its parent is."""
        path = self._path  # of each folder the last name alone: all of them may be longer than memory is for
        folder = os.open(".", OPEN, dir_fd=self._top)
        try:
            while name := self._first_folder(folder, path):
                path = self._path / "..." / name if trail else self._path / name
                trail.append((name, _identity(folder)))
                below = os.open(name, OPEN, dir_fd=folder)
                os.close(folder)
                folder = below
                if mount_id(folder) != self._mount:
                    raise _mounted(path)
            while trail:
                name, parent = trail.pop()
                above = os.open("..", OPEN, dir_fd=folder)
                os.close(folder)
                folder = above
                if mount_id(folder) != self._mount or _identity(folder) != parent:
                    return  # it was moved: the next round sees where to
                os.rmdir(name, dir_fd=folder)
                self._removed += 1
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOTDIR, errno.ELOOP, errno.ENOENT):
                raise _refused(path, error) from None
        finally:
            os.close(folder)

    def _first_folder(self, folder: int, path: Path) -> str:
        """The name of a folder in that one, of which other things are removed until there is one. Empty: it is empty
        now."""
        while names := _names(folder):
            for name in names:
                if not self._unlink(name, folder, path):
                    return name
        return ""

    def _lift(self, name: str, folder: int, path: Path) -> None:
        fresh = next(self._fresh_names)
        try:
            try:
                os.rename(name, fresh, src_dir_fd=folder, dst_dir_fd=self._top)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                # It belongs to another quota project than the top, which the owner of the files may have chosen.
                self._take_into_project(name, folder)
                os.rename(name, fresh, src_dir_fd=folder, dst_dir_fd=self._top)
        except OSError as error:
            if error.errno in _NOT_MOVED:
                raise _NotMoved from None
            raise _refused(path / name, error) from None
        self._lifted += 1
        self._raise_if_late()

    def _take_into_project(self, name: str, folder: int) -> None:
        """Gives a folder the quota project of the top (ioctl_fsgetxattr in xfsctl(3), the same for ext4)."""
        top = fcntl.ioctl(self._top, _FS_IOC_FSGETXATTR, bytes(_ATTRIBUTES.size))
        project = _ATTRIBUTES.unpack(top)[3]
        descriptor = os.open(name, OPEN, dir_fd=folder)
        try:
            flags, extent_size, extents, _, *rest = _ATTRIBUTES.unpack(
                fcntl.ioctl(descriptor, _FS_IOC_FSGETXATTR, bytes(_ATTRIBUTES.size))
            )
            changed = _ATTRIBUTES.pack(flags, extent_size, extents, project, *rest)
            fcntl.ioctl(descriptor, _FS_IOC_FSSETXATTR, changed)
        finally:
            os.close(descriptor)

    def _unlink(self, name: str, folder: int, path: Path) -> bool:
        """False for a folder."""
        try:
            os.unlink(name, dir_fd=folder)
        except IsADirectoryError:
            return False
        except FileNotFoundError:
            return True
        except OSError as error:
            raise _refused(path / name, error) from None
        self._removed += 1
        self._raise_if_late()
        return True

    def _raise_if_late(self) -> None:
        """After a removal."""
        now = time.monotonic()
        self._end = min(self._end, now + self._seconds)
        if now >= self._end:
            raise _TimeUp


def _identity(folder: int) -> tuple[int, int]:
    status = os.fstat(folder)
    return status.st_dev, status.st_ino


def _mounted(path: Path) -> NotEmptied:
    return NotEmptied(f"another filesystem is mounted in it, at {path}: unmount that first")


def _refused(path: Path, error: OSError) -> NotEmptied:
    remedy = {
        errno.EBUSY: "another filesystem is mounted there: unmount that first",
        errno.EPERM: "it may be immutable: lsattr shows it and chattr -i ends it",
        errno.EROFS: "the filesystem is read-only: see the kernel's log for why, and mount it anew",
    }.get(error.errno or 0, "see the kernel's log for errors of the disk")
    return NotEmptied(f"{path} can't be removed ({error.strerror}): {remedy}")


_AT_ONCE = 10_000
"""Names taken from a folder at a time: one with millions of files must not fill the memory."""


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry, _ in zip(entries, range(_AT_ONCE), strict=False)]
