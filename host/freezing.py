"""Freezes and thaws a mounted filesystem (FIFREEZE): while it is frozen, writers wait, and its device is consistent.

It stays frozen when the process that froze it is killed, so whoever starts again has to thaw what it finds. Freezing
waits for the disk: call it from a thread. Source: linux/fs.h.
"""

import ctypes
import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878


_libc = ctypes.CDLL(None, use_errno=True)


def flush(path: Path) -> None:
    """The filesystem mounted on `path` has little left to write, so that holding it still takes little time. Raises
    OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor):
            raise OSError(ctypes.get_errno(), "syncfs", str(path))
    finally:
        os.close(descriptor)


def freeze(path: Path) -> None:
    """The filesystem mounted on `path`. Raises OSError, EBUSY when it is frozen already."""
    _control(path, _FIFREEZE)


def thaw(path: Path) -> bool:
    """Whether the filesystem mounted on `path` was frozen; it no longer is. Raises OSError."""
    try:
        _control(path, _FITHAW)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # not frozen, can't be frozen
            return False
        raise
    return True


def hold(path: Path, limit: float, frozen: Callable[[], None], release: threading.Event) -> bool:
    """Keeps the filesystem mounted on `path` frozen until `release`, and for `limit` seconds at most: whether it was
    for so long as that. `frozen` is called when it is. The thread that freezes thaws, and waits for nothing else
    between: a filesystem that took so long to be frozen that nobody wants it any more does not stay so. Raises
    OSError."""
    end = time.monotonic() + limit
    freeze(path)
    try:
        frozen()
        return release.wait(max(end - time.monotonic(), 0))
    finally:
        thaw(path)


def _control(path: Path, request: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, request, 0)
    finally:
        os.close(descriptor)
