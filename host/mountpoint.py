"""What is mounted at one path, asked of the kernel for that path alone.

The mount table (host.mounttable) says more, but has to be read as a whole, and twice: on a node with some hundred
mounts that takes longer than a mount. Source: statx(2). Needs Linux 5.8.
"""

import ctypes
import errno
import os
import struct
from dataclasses import dataclass
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH = 0x100, 0x1000
_OF_MEMORY = 0x800 | 0x4000
"""AT_NO_AUTOMOUNT and AT_STATX_DONT_SYNC: no server is asked."""
_STATX_INO, _STATX_MNT_ID = 0x100, 0x1000
_STATX_ATTR_MOUNT_ROOT = 0x2000
_STATUS = struct.Struct("=8xQ16xQ88xIIIIQ104x")
"""Of struct statx: attributes, inode, major and minor of the node, and of the filesystem, mount."""
_Buffer = ctypes.c_char * _STATUS.size


@dataclass(frozen=True)
class MountPoint:
    """What one sees at a path on which something is mounted: the uppermost of all that is."""

    id: int
    """As in the mount table."""
    device: int
    """Of the filesystem that the folder, or file, is in: its block device's, or a number of its own (btrfs)."""
    inode: int
    node: int
    """st_rdev of what is itself the node of a device, else 0."""

    def is_same(self, other: "MountPoint") -> bool:
        """Whether both show the same folder of the same filesystem."""
        return (self.device, self.inode) == (other.device, other.inode)


def at(place: Path | str | int) -> MountPoint | None:
    """Of a path, whose last part may be a link that is not followed, or of what is open. None: nothing is mounted
    there, or there is no such path. May block as long as what is mounted there does. Raises OSError."""
    if isinstance(place, int):
        folder, path, how = place, b"", _AT_EMPTY_PATH
    else:
        folder, path, how = _AT_FDCWD, os.fsencode(place), _AT_SYMLINK_NOFOLLOW
    status = _Buffer()
    if _libc.statx(folder, ctypes.c_char_p(path), how | _OF_MEMORY, _STATX_INO | _STATX_MNT_ID, status) != 0:
        number = ctypes.get_errno()
        if number in (errno.ENOENT, errno.ENOTDIR):
            return None
        name = str(Path(f"/proc/self/fd/{place}").readlink() if isinstance(place, int) else place)
        raise OSError(number, os.strerror(number), name)
    attributes, inode, *numbers, mount = _STATUS.unpack_from(status)
    if not attributes & _STATX_ATTR_MOUNT_ROOT:
        return None
    return MountPoint(mount, os.makedev(*numbers[2:]), inode, os.makedev(*numbers[:2]))
