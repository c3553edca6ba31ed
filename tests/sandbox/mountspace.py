"""Where the sandbox mounts: a mount namespace that no other process sees, and a clean one afterwards."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from host import mounttable

_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE, _MS_SHARED = 0x4000, 1 << 18, 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)


class NotRoot(Exception):
    """The sandbox mounts real filesystems."""

    def __init__(self) -> None:
        super().__init__("the sandbox mounts real filesystems and needs root: run it with sudo")


def enter_private() -> None:
    """Give this process, and all that it starts from now on, mounts of its own: they go when the last of them ends,
    however it ends. Must be called from the thread that starts programs. Raises NotRoot."""
    if os.geteuid() != 0:
        raise NotRoot
    _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
    _checked(_libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None), "make / private")


def mount_memory(folder: Path) -> None:
    """Mount a tmpfs whose mounts are shared with the namespaces of containers, as on a node: what is unmounted here
    must not stay busy there."""
    _checked(_libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(0), b"mode=755"), f"tmpfs on {folder}")
    _checked(_libc.mount(b"none", os.fsencode(folder), None, ctypes.c_ulong(_MS_SHARED), None), f"share {folder}")


def mounts_below(folder: Path) -> list[Path]:
    """Mount points in the folder and on it, the last mounted first."""
    below = [Path(mount.path) for mount in mounttable.read()]
    return [path for path in reversed(below) if path == folder or folder in path.parents]


def unmount_all(folder: Path) -> None:
    """Unmount what is mounted in the folder, but not what is mounted on it. Raises OSError: EBUSY while it is used."""
    for path in mounts_below(folder):
        if path != folder:
            unmount(path)


def unmount(path: Path) -> None:
    _checked(_libc.umount2(os.fsencode(path), 0), f"unmount {path}")


def loop_devices(folder: Path) -> Iterator[Path]:
    """Loop devices whose file is in the folder."""
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            file = Path(backing.read_text().rstrip("\n"))
        except OSError:
            continue  # freed meanwhile
        if folder in file.parents:
            yield Path("/dev") / backing.parents[1].name


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
