"""Mounting and unmounting by system call.

By system call and not by mount(8), because only so a mount can be tied to an open directory: it appears on the very
folder that was checked, whatever is renamed or linked meanwhile. A bind mount is built aside (open_tree), made
read-only there (mount_setattr) and then attached whole (move_mount): there is no moment at which it can be written to
and no half-made mount to undo. Needs Linux 5.12.

A filesystem is mounted by mount(2), which takes a tenth of what starting mount(8) takes. What mount(8) makes of its
options is done here for those that need no more than a flag: `is_mountable` says which. Source: mount(2), mount(8),
libmount's optmap.c and context_mount.c.

The calls may block as long as the disk does: call them from a thread. Errors are OSErrors with the kernel's errno,
worded for people.
"""

import ctypes
import enum
import errno
import functools
import os
from collections.abc import Sequence
from pathlib import Path

from host import mountpoint, presence
from host.mountpoint import MountPoint

_libc = ctypes.CDLL(None, use_errno=True)

# The numbers are the same on every architecture that Kubernetes runs on; C libraries got wrappers only in 2022.
# Source: include/uapi/asm-generic/unistd.h and include/uapi/linux/mount.h.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_FROM_EMPTY_PATH, _MOVE_MOUNT_TO_EMPTY_PATH = 0x04, 0x40
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000

_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8


_FLAGS = {
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "sync": 16,
    "dirsync": 128,
    "noatime": 1 << 10,
    "nodiratime": 1 << 11,
    "relatime": 1 << 21,
    "strictatime": 1 << 24,
    "lazytime": 1 << 25,
}
"""Words of mount(8) that are flags of mount(2)."""
_ACCESS_TIMES = frozenset({"noatime", "relatime", "strictatime"})
_OF_MOUNT_8 = frozenset({
    "ro", "rw", "exec", "suid", "dev", "async", "remount", "bind", "rbind", "sub", "nosub", "silent", "loud", "mand",
    "nomand", "atime", "iversion", "noiversion", "diratime", "norelatime", "nostrictatime", "nolazytime",
    "unbindable", "runbindable", "private", "rprivate", "slave", "rslave", "shared", "rshared", "symfollow",
    "nosymfollow", "defaults", "auto", "noauto", "user", "nouser", "users", "nousers", "owner", "noowner", "group",
    "nogroup", "_netdev", "comment", "loop", "offset", "sizelimit", "encryption", "nofail", "uhelper", "helper",
    "context", "fscontext", "defcontext", "rootcontext", "seclabel",
})  # fmt: skip
"""Its other words, with which it does more, or with which it is of no use to us."""
_OF_MOUNT_8_BY_PREFIX = ("x-", "X-", "verity.")
_LONGEST_DATA = 4095
"""Bytes that mount(2) takes, of a page: what is longer is cut off without a word."""


class Attribute(enum.IntFlag):
    """Of one mount, whatever others show of the same filesystem. Source: MOUNT_ATTR_* in include/uapi/linux/mount.h."""

    READ_ONLY = 0x01
    NOSUID = 0x02
    NODEV = 0x04


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


@functools.lru_cache  # those of a node's classes come again and again
def is_mountable(options: tuple[str, ...]) -> bool:
    """Whether `mount` does with these options what mount(8) does: no word of them is one that it takes for itself,
    beyond a flag."""
    words = [option.partition("=")[0] for option in options]
    return (
        not any(not word or word in _OF_MOUNT_8 or word.startswith(_OF_MOUNT_8_BY_PREFIX) for word in words)
        and not any(option != word and word in _FLAGS for option, word in zip(options, words, strict=True))
        and not any(sign in option for option in options for sign in ',"\\\0')
        and len(_ACCESS_TIMES.intersection(words)) <= 1
        and len(_data(options)) <= _LONGEST_DATA
    )


def _data(options: Sequence[str]) -> bytes:
    return os.fsencode(",".join(option for option in options if option not in _FLAGS))


def mount(kind: str, device: Path, path: Path, options: Sequence[str]) -> None:
    """Mounts the filesystem on `device`, of that kind, on a folder. The options are some of which `is_mountable` is
    true: flags, and those of the filesystem. Raises OSError."""
    flags = sum({_FLAGS[option] for option in options if option in _FLAGS})
    source = os.fsencode(_shown_name(device))
    if _libc.mount(source, os.fsencode(path), kind.encode(), ctypes.c_ulong(flags), _data(options)) != 0:
        raise _error("mount", path)


def _shown_name(device: Path) -> str:
    """Which the mount table shows: as mount(8) has it, without links, and of device-mapper with a name that says what
    it is."""
    real = os.path.realpath(device)
    if not real.startswith("/dev/dm-"):
        return real
    try:
        name = Path("/dev/mapper", Path("/sys/block", Path(real).name, "dm/name").read_text().rstrip("\n"))
    except FileNotFoundError:
        return real
    return str(name) if presence.exists(name) else real


def bind(
    source: Path | int,
    target: Path | int,
    *,
    add: Attribute = Attribute(0),  # noqa: B008 - a number
    drop: Attribute = Attribute(0),  # noqa: B008
) -> MountPoint | None:
    """Shows `source`, a path or an open directory, on `target`, the same, with the attributes that `source` is mounted
    with, those of `add` and not those of `drop`. What is mounted below `source` is not shown. Returns what is seen at
    `target` from now on, unless somebody mounts or unmounts there. Raises OSError."""
    tree = _open_tree(source)
    try:
        shown = mountpoint.at(tree)
        if add or drop:
            attributes = _MountAttributes(attr_set=add, attr_clr=drop)
            _call(
                "set the attributes of the mount",
                source,
                _MOUNT_SETATTR,
                tree,
                ctypes.c_char_p(b""),
                _AT_EMPTY_PATH,
                ctypes.byref(attributes),
                ctypes.c_size_t(ctypes.sizeof(attributes)),
            )
        folder, path = (target, b"") if isinstance(target, int) else (_AT_FDCWD, os.fsencode(target))
        empty_path = _MOVE_MOUNT_TO_EMPTY_PATH if isinstance(target, int) else 0
        _call(
            "mount",
            target,
            _MOVE_MOUNT,
            tree,
            ctypes.c_char_p(b""),
            folder,
            ctypes.c_char_p(path),
            _MOVE_MOUNT_FROM_EMPTY_PATH | empty_path,
        )
        return shown
    finally:
        os.close(tree)


def _open_tree(source: Path | int) -> int:
    folder, path = (source, b"") if isinstance(source, int) else (_AT_FDCWD, os.fsencode(source))
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_EMPTY_PATH if isinstance(source, int) else 0)
    return _call("bind", source, _OPEN_TREE, folder, ctypes.c_char_p(path), flags)


def unmount(path: Path, *, detach: bool = False) -> None:
    """Takes away what is mounted on `path`, of which the last component is not followed if it is a link; to unmount
    below an open directory, give /proc/self/fd/N/name. With `detach` it goes out of sight at once and is really
    unmounted when nobody uses it any more. Raises OSError: EINVAL when nothing is mounted there, EBUSY, ENOENT."""
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if detach else 0)
    if _libc.umount2(os.fsencode(path), flags) != 0:
        raise _error("unmount", path)


def _call(verb: str, where: Path | int, number: int, *arguments: object) -> int:
    result = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise _error(verb, where)
    return int(result)


def _error(verb: str, where: Path | int) -> OSError:
    number = ctypes.get_errno()
    name = f"/proc/self/fd/{where}" if isinstance(where, int) else str(where)
    explanation = {
        errno.EBUSY: "it is in use, stop the processes that have files open there (fuser -vm shows them)",
        errno.EINVAL: "nothing is mounted there" if verb == "unmount" else os.strerror(number),
        errno.ENOSYS: "the kernel is too old, Linux 5.12 or newer is needed",
        errno.EPERM: "not permitted, it takes CAP_SYS_ADMIN (a privileged container)",
    }.get(number, os.strerror(number))
    return OSError(number, f"can't {verb} ({explanation})", name)
