"""Overwrites or discards a range of a block device.

By ioctl and not with blkdiscard(8): an erasure takes many small steps, so that others get the disk between them, and a
process for each would cost more than the step. All functions block, as long as the disk does: call them from a thread.
They raise OSError.

Source: block/ioctl.c, block/fops.c (fallocate) and include/uapi/linux/fs.h of Linux; the numbers hold on x86, arm,
riscv and s390.
"""

import ctypes
import errno
import fcntl
import itertools
import os
import struct
from pathlib import Path

_BLKDISCARD = 0x1277
_BLKZEROOUT = 0x127F
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

PIECE = 64 * 1024
"""Bytes that are looked at together: the smallest block of a thin pool, so what holds data is never spread to what
takes no space yet."""
_ZEROES = bytes(PIECE)


def open_alone(device: Path) -> int:
    """The device for writing, and nobody else's as long as it is open. Raises OSError with EBUSY when it is mounted
    anywhere, in whatever mount namespace, or part of another device."""
    return os.open(device, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)


def zero(descriptor: int, extent: range) -> None:
    """The bytes read as zero from now on. A device that promises zeroes for blocks that it lets go, lets them go: that
    is fast and wears it least. Others write zeroes by themselves or, if they can't, are sent them."""
    if _libc.fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, extent.start, len(extent)) == 0:
        return
    # Whatever the reason was: if this does not work either, it says why.
    fcntl.ioctl(descriptor, _BLKZEROOUT, struct.pack("QQ", extent.start, len(extent)))


def discards(descriptor: int) -> bool:
    """Whether the device takes the command that blocks are no longer needed (discard)."""
    device = os.fstat(descriptor).st_rdev
    queue = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/queue")
    return int((queue / "discard_max_bytes").read_text()) > 0


def discard(descriptor: int, extent: range) -> None:
    """The device knows from now on that nobody needs the bytes. What they read as is its own affair: the kernel no
    longer says whether a device promises zeroes, because those that promised did not all keep to it."""
    fcntl.ioctl(descriptor, _BLKDISCARD, struct.pack("QQ", extent.start, len(extent)))


def zero_written(descriptor: int, extent: range) -> None:
    """The bytes read as zero from now on, and what did so before was not written to."""
    content = os.pread(descriptor, len(extent), extent.start)
    if len(content) != len(extent):
        raise OSError(errno.EIO, f"the device ended {len(extent) - len(content)} bytes too early")
    # What was read once is of no use to anybody: it must not drive other things out of memory.
    os.posix_fadvise(descriptor, extent.start, len(extent), os.POSIX_FADV_DONTNEED)

    def is_written(offset: int) -> bool:
        piece = content[offset : offset + PIECE]
        return piece != _ZEROES[: len(piece)]

    for written, run in itertools.groupby(range(0, len(content), PIECE), is_written):
        if written:
            offsets = list(run)
            end = min(offsets[-1] + PIECE, len(content))
            zero(descriptor, range(extent.start + offsets[0], extent.start + end))


def flush(descriptor: int) -> None:
    """After this, what was done survives a power cut."""
    os.fsync(descriptor)
