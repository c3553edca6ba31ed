"""One block device copied to another.

Past the page cache: it may hold what the source's filesystem has overwritten since, and would be of no use to anybody.
Zeroes are written only over what is not zero, so that a sparse file or a thin volume stays as small as its source.
"""

import asyncio
import mmap
import os
import threading
import time
from collections.abc import Hashable
from functools import partial
from pathlib import Path

from host import blockdevice
from host.diskthreads import threads

_CHUNK = 4 << 20
_STEP = 4 * _CHUNK
"""Bytes after which is asked whether to go on."""
_ZEROES = bytes(_CHUNK)
_LAST_STEP = 5.0
"""Seconds that one step may take after the deadline before its disk counts as hung."""


async def copy(source: Path, target: Path, *, deadline: float, place: str | None = None, disk: Hashable = None) -> None:
    """`target`, as large at least, begins with all of `source`, which nobody writes to meanwhile; on disk when this
    returns. `place` and `disk`: see host.diskthreads. Raises OSError, TimeoutError after `deadline` seconds, and Hung
    when a disk does not even answer then: the target may still be written to."""
    stop = threading.Event()
    work = partial(_copied, source, target, deadline, stop)
    limit = max(deadline, 0) + _LAST_STEP
    copying = asyncio.ensure_future(threads.at(place or target, work, disk=disk, deadline=limit))
    try:
        await asyncio.shield(copying)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([copying])
        raise
    finally:
        stop.set()


def _copied(source: Path, target: Path, deadline: float, stop: threading.Event) -> None:
    end = time.monotonic() + deadline
    flags = os.O_DIRECT | os.O_CLOEXEC
    size = blockdevice.size(source)
    origin = os.open(source, os.O_RDONLY | flags)
    try:
        copied = os.open(target, os.O_RDWR | flags)
        try:
            for begin in range(0, size, _STEP):
                if stop.is_set() or time.monotonic() > end:
                    raise TimeoutError(f"only {begin} of {size} bytes were copied in {deadline:g} s")
                _copy(origin, copied, range(begin, min(begin + _STEP, size)))
            os.fsync(copied)
        finally:
            os.close(copied)
    finally:
        os.close(origin)


def _copy(source: int, target: int, part: range) -> None:
    with mmap.mmap(-1, _CHUNK) as buffer, mmap.mmap(-1, _CHUNK) as present:  # aligned, as O_DIRECT wants it
        for offset in range(part.start, part.stop, _CHUNK):
            length = min(_CHUNK, part.stop - offset)
            _read(source, buffer, offset, length)
            if buffer[:length] == _ZEROES[:length]:
                _read(target, present, offset, length)
                if present[:length] == _ZEROES[:length]:
                    continue
            with memoryview(buffer) as view, view[:length] as data:
                if os.pwrite(target, data, offset) != length:
                    raise OSError(f"{length} bytes at {offset} were not written whole")


def _read(device: int, buffer: mmap.mmap, offset: int, length: int) -> None:
    with memoryview(buffer) as view, view[:length] as data:
        if os.preadv(device, [data], offset) != length:
            raise OSError(f"{length} bytes at {offset} were not read whole")
