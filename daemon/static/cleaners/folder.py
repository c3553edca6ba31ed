"""Removes everything in the filesystem that is mounted on LOCAL_PV_FILESYSTEM, and keeps the folder.

How that is done to what a user of the cluster wrote, host.foldertree says.

A program of its own, and not a thread of the daemon: it can be killed when its time is up, also while a disk that went
away keeps it waiting.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from daemon.static.cleaners import FOLDER, OPEN_FOLDER
from host import foldertree, mounttable
from host.foldertree import NotEmptied
from host.mounttable import Mount


class NotCleaned(Exception):
    """The folder could not be emptied: says why and what to do."""


def main() -> int:
    path = os.environ.get(FOLDER, "")
    try:
        if not path:
            raise NotCleaned(f"{FOLDER} is not set: set it to the path of the mounted volume to clean")
        inherited = os.environ.get(OPEN_FOLDER, "")
        removed = clean(Path(path), int(inherited) if inherited else None)
    except NotCleaned as error:
        sys.stderr.write(f"folder clean: {error}\n")
        return 1
    sys.stdout.write(f"folder clean of {path} done, {removed} entries removed\n")
    return 0


def clean(path: Path, inherited: int | None = None) -> int:
    """Empties the mount point `path`, or the folder that is open already. The answer is the number of entries removed.
    Raises NotCleaned."""
    with _opened(path) if inherited is None else contextlib.nullcontext(inherited) as top:
        volume = _mount_of(top, path)
        nested = [mount.path for mount in mounttable.read() if mount.path.startswith(f"{volume.path}/")]
        if nested:
            raise NotCleaned(f"another filesystem is mounted in it, at {nested[0]}: unmount that first")
        try:
            return foldertree.empty(top, path, volume.id)
        except NotEmptied as error:
            raise NotCleaned(str(error)) from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The folder itself may not be a link. Those on the way to it are the administrator's."""
    try:
        descriptor = os.open(path, foldertree.OPEN)
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


def _mount_of(top: int, path: Path) -> Mount:
    """The mount that is mounted right on the open folder."""
    shown = foldertree.mount_id(top)
    real = os.path.realpath(path)
    for mount in mounttable.read():
        if mount.id == shown and mount.path == real:
            return mount
    raise NotCleaned(f"{path} is not a mount point: mount the volume there, an empty folder has nothing to clean")


if __name__ == "__main__":
    sys.exit(main())
