"""What has to happen to a volume's blocks before others may have them. Pure.

A volume that is removed leaves its blocks as they are. The next volume's mkfs writes little of them, so whoever reads
the device itself, or a filesystem that is tricked into showing what it never wrote, finds the last tenant's bytes. What
is to be done about that depends on what the class asks for and on how the storage gives out blocks again.
"""

import enum
from collections.abc import Iterator

from contract.parameters import DISCARD, NO_ERASE

MIB = 2**20


class Reuse(enum.Enum):
    """How storage hands out again what a volume gave back."""

    CLEAN = "clean"
    """It reads as zeroes: a new sparse file, a new folder, a thin pool that zeroes new blocks."""
    RAW = "raw"
    """As it was left."""
    THIN_RAW = "thin-raw"
    """As it was left, and only what was written takes space: zeroes written all over would fill the pool."""


class Method(enum.Enum):
    DISCARD = "discard"
    """The device is told that nobody needs the blocks. What they read as from then on, it alone knows."""
    ZERO = "zero"
    ZERO_WRITTEN = "zero-written"
    """Reads, and writes zeroes only over what is not zero."""


_STEP = {Method.DISCARD: 1024 * MIB, Method.ZERO: 16 * MIB, Method.ZERO_WRITTEN: 16 * MIB}
"""Bytes in one go. Others wait for the disk that long, which for 16 MiB is a tenth of a second on a slow one."""


def method(policy: str, reuse: Reuse) -> Method | None:
    """How the data of a volume goes. None: there is nothing to do."""
    if policy == NO_ERASE or reuse is Reuse.CLEAN:
        return None
    if policy == DISCARD:
        return Method.DISCARD
    return Method.ZERO if reuse is Reuse.RAW else Method.ZERO_WRITTEN


def steps(chosen: Method, begin: int, size: int) -> Iterator[range]:
    """The bytes from `begin` to `size`, in the order in which they go. What is below `begin` is gone already."""
    step = _STEP[chosen]
    for offset in range(begin, size, step):
        yield range(offset, min(offset + step, size))
