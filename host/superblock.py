"""What the superblock of a filesystem that is not mounted says: whether it needs no check, how large it is, and what it
needs of its device.

xfs and btrfs are not checked before a mount (host.filesystem says why), so it is enough that the device shows the
filesystem and that it is whole there. Checksums are not looked at: the kernel does, of the same blocks and before
anything else, and refuses the mount. All functions block, and raise OSError.

Source: xfs_dsb of the kernel's fs/xfs/libxfs/xfs_format.h; btrfs_super_block and btrfs_dev_item of
include/uapi/linux/btrfs_tree.h; ext4_super_block of fs/ext4/ext4.h.
"""

import enum
import os
import struct
import uuid
from pathlib import Path

from host import blockdevice, ext4


class Fit(enum.Enum):
    """A filesystem that may be mounted as it is."""

    FILLS = "it fills its device"
    SMALLER = "its device has grown since"


def of_ext4(device: int) -> Fit | None:
    """How an ext4 on this open device fits it. None: it must be checked before that can be said."""
    size = blockdevice.end(device)
    geometry = ext4.needs_no_check(device, size)
    if geometry is None:
        return None
    return Fit.SMALLER if geometry.lacks(size) else Fit.FILLS


def of_xfs(device: int) -> Fit | None:
    """The same of an xfs. A log that is still to be replayed may say that it is larger, never that it is smaller."""
    magic, block_size, blocks = struct.unpack(">4sIQ", _read_open(device, 0, 16))
    if magic != b"XFSB" or not 512 <= block_size <= 65536:
        return None
    return _fit(blockdevice.end(device) // block_size, blocks)


def of_btrfs(device: int) -> Fit | None:
    """The same of a btrfs on a single device."""
    superblock = _read_open(device, 65536, 4096)
    (devices, sector), (size,) = struct.unpack_from("<QI", superblock, 0x88), struct.unpack_from("<Q", superblock, 0xD1)
    if superblock[0x40:0x48] != b"_BHRfS_M" or devices != 1 or not 4096 <= sector <= 65536:
        return None
    return _fit(blockdevice.end(device) // sector, size // sector)


def size_of_xfs(device: Path) -> int:
    """Bytes that the filesystem says it has; 0: there is none. For that of ext4: host.ext4."""
    magic, block_size, blocks = struct.unpack(">4sIQ", _read(device, 0, 16))
    return int(block_size * blocks) if magic == b"XFSB" else 0


def size_of_btrfs(device: Path) -> int:
    """The same, of what it has on this device."""
    superblock = _read(device, 65536, 4096)
    return int(struct.unpack_from("<Q", superblock, 0xD1)[0]) if superblock[0x40:0x48] == b"_BHRfS_M" else 0


_UUIDS = ((0x438, b"\x53\xef", 0x468), (0, b"XFSB", 0x20), (0x10040, b"_BHRfS_M", 0x10020))
"""Of ext2 to ext4, xfs and btrfs: where the magic is, the magic, where the UUID is."""


def filesystem_uuid(descriptor: int) -> str:
    """Of the filesystem that is mounted from an open block device. Empty: it is of another kind."""
    for place, magic, begin in _UUIDS:
        if os.pread(descriptor, len(magic), place) == magic:
            return str(uuid.UUID(bytes=os.pread(descriptor, 16, begin).ljust(16, b"\0")))
    return ""


def unit_of_xfs(device: Path) -> int:
    """Bytes of the smallest piece that the filesystem reads or writes; 0: there is none. That of ext4: host.ext4."""
    superblock = _read(device, 0, 512)
    return int(struct.unpack_from(">H", superblock, 102)[0]) if superblock.startswith(b"XFSB") else 0


def unit_of_btrfs(device: Path) -> int:
    """The same."""
    superblock = _read(device, 65536, 4096)
    return int(struct.unpack_from("<I", superblock, 0x90)[0]) if superblock[0x40:0x48] == b"_BHRfS_M" else 0


def _fit(device: int, filesystem: int) -> Fit | None:
    """Of the sizes of both, in blocks."""
    if not 0 < filesystem <= device:
        return None
    return Fit.FILLS if filesystem == device else Fit.SMALLER


def _read(device: Path, offset: int, length: int) -> bytes:
    with blockdevice.opened(device) as descriptor:
        return _read_open(descriptor, offset, length)


def _read_open(device: int, offset: int, length: int) -> bytes:
    return os.pread(device, length, offset).ljust(length, b"\0")
