"""Removes everything in the filesystem that is mounted on LOCAL_PV_FILESYSTEM, and keeps the folder.

What lies in a volume was written by a user of the cluster, who may have meant it as a trap for a program that runs as
root. So no path is ever looked up twice: folders are opened from their open parent without following links, names are
removed from open folders, and each open folder must show the very mount that was opened first. A link that takes the
place of a folder meanwhile is removed as the link that it is.

However deep a tree is, two folders are open: folders in a folder are moved to the top and emptied there. A walk that
goes down would run out of open files, or of the length of a path, at a depth of the user's choice.

A program of its own, and not a thread of the daemon: it can be killed when its time is up, also while a disk that went
away keeps it waiting.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import struct
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from daemon.static.cleaners import FOLDER
from host import mounttable
from host.mounttable import Mount

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# include/uapi/linux/fs.h: struct fsxattr
_FS_IOC_FSGETXATTR, _FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
_ATTRIBUTES = struct.Struct("IIIII8s")


class NotCleaned(Exception):
    """The folder could not be emptied: says what stands in the way and what to do."""


def main() -> int:
    path = os.environ.get(FOLDER, "")
    try:
        if not path:
            raise NotCleaned(f"{FOLDER} is not set: set it to the path of the mounted volume to clean")
        removed = clean(Path(path))
    except NotCleaned as error:
        sys.stderr.write(f"folder clean: {error}\n")
        return 1
    sys.stdout.write(f"folder clean of {path} done, {removed} entries removed\n")
    return 0


def clean(path: Path) -> int:
    """Empties the mount point `path`. The answer is the number of entries removed. Raises NotCleaned."""
    with _opened(path) as top:
        volume = _mount_of(top, path)
        nested = [mount.path for mount in mounttable.read() if mount.path.startswith(f"{volume.path}/")]
        if nested:
            raise NotCleaned(f"another filesystem is mounted in it, at {nested[0]}: unmount that first")
        return _Emptying(path, top, volume.id).run()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The folder itself may not be a link. Those on the way to it are the administrator's."""
    try:
        descriptor = os.open(path, _OPEN)
    except FileNotFoundError:
        raise NotCleaned(f"{path} does not exist: mount the volume there") from None
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise NotCleaned(f"{path} is no folder, and links are not followed: mount the volume there") from None
        raise NotCleaned(f"{path} can't be opened: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def mount_id(descriptor: int) -> int:
    """Of the mount that an open file is seen through (proc_pid_fdinfo(5))."""
    match = re.search(r"^mnt_id:\s*(\d+)$", Path(f"/proc/self/fdinfo/{descriptor}").read_text(), re.MULTILINE)
    assert match, "Linux 3.15 tells it of every open file"
    return int(match[1])


def _mount_of(top: int, path: Path) -> Mount:
    """The mount that is mounted right on the open folder."""
    shown = mount_id(top)
    real = os.path.realpath(path)
    for mount in mounttable.read():
        if mount.id == shown and mount.path == real:
            return mount
    raise NotCleaned(f"{path} is not a mount point: mount the volume there, an empty folder has nothing to clean")


class _Full(Exception):
    """The filesystem has no room for one more name in the top folder, until something else is removed."""


class _Emptying:
    def __init__(self, path: Path, top: int, mount: int) -> None:
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
                    with contextlib.suppress(_Full):  # what was lifted until then is emptied in the next round
                        self._remove_folder(name)
            if before == (self._removed, self._lifted):
                raise NotCleaned(f"{self._path} is full to the last block: remove any file in it by hand")
        # What was removed must not come back after a power cut, when others are using the volume.
        try:
            os.fsync(self._top)
        except OSError as error:
            raise NotCleaned(
                f"{self._path} can't be written to its disk ({error.strerror}): see the kernel's log"
            ) from None
        return self._removed

    def _remove_folder(self, name: str) -> None:
        """Of the top folder."""
        try:
            descriptor = os.open(name, _OPEN, dir_fd=self._top)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENOENT):
                return  # it was a folder a moment ago: the next round sees what it is now
            raise _refused(self._path / name, error) from None
        try:
            if mount_id(descriptor) != self._mount:
                raise NotCleaned(f"another filesystem is mounted in it, at {self._path / name}: unmount that first")
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
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _Full from None
            raise _refused(path / name, error) from None
        self._lifted += 1

    def _take_into_project(self, name: str, folder: int) -> None:
        """Gives a folder the quota project of the top (ioctl_fsgetxattr in xfsctl(3), the same for ext4)."""
        top = fcntl.ioctl(self._top, _FS_IOC_FSGETXATTR, bytes(_ATTRIBUTES.size))
        project = _ATTRIBUTES.unpack(top)[3]
        descriptor = os.open(name, _OPEN, dir_fd=folder)
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
        return True


def _refused(path: Path, error: OSError) -> NotCleaned:
    remedy = {
        errno.EBUSY: "another filesystem is mounted there: unmount that first",
        errno.EPERM: "it may be immutable: lsattr shows it and chattr -i ends it",
        errno.EROFS: "the filesystem is read-only: see the kernel's log for why, and mount it anew",
    }.get(error.errno or 0, "see the kernel's log for errors of the disk")
    return NotCleaned(f"{path} can't be removed ({error.strerror}): {remedy}")


_AT_ONCE = 10_000
"""Names taken from a folder at a time: one with millions of files must not fill the memory."""


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry, _ in zip(entries, range(_AT_ONCE), strict=False)]


if __name__ == "__main__":
    sys.exit(main())
