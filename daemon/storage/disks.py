"""Bounds for what is done to the disk of each pool at a time, so that one that hangs or is busy holds up no other.

Operations that load a disk take turns, a few at a time. A system call on a volume has a thread and a deadline
(host.diskthreads); where one was given up, nothing is begun on that volume before it is back.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

from daemon.storage.inventory import Volume
from host.diskthreads import DiskThreads

T = TypeVar("T")

CALL_SECONDS = 60.0
"""What a system call on a volume may take before its disk counts as hung: unmounting, or flushing a record, waits for
all that is to be written to the disk, also by others."""
_COPIES = 4
"""Copies block by block of one disk. They take long, and others want it too; but a small one should not have to wait
for one large one."""


def place_of(pv: str) -> str:
    """What host.diskthreads remembers when a disk hangs under a volume."""
    return f"volume {pv}"


def disk_of(pool: str) -> str:
    """A volume group and its thin pools lie on the same disks."""
    return pool.partition("/")[0]


class Disks:
    """`parallelism` bounds the operations that load one disk for a moment, `volume` is what is known of a volume."""

    def __init__(self, threads: DiskThreads, parallelism: int, volume: Callable[[str], Volume | None]) -> None:
        self._threads = threads
        self._volume = volume
        self._loads: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(parallelism))
        self._copies: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(_COPIES))

    def load(self, pool: str) -> asyncio.Semaphore:
        """To be held while a pool's disk is loaded for a moment."""
        return self._loads[disk_of(pool)]

    def copy(self, pool: str) -> asyncio.Semaphore:
        """To be held while a volume of the pool is filled block by block."""
        return self._copies[disk_of(pool)]

    def refuse(self, pv: str) -> None:
        """Raises host.diskthreads.Hung while a system call on the volume hangs that was given up."""
        self._threads.refuse(place_of(pv))

    async def at(
        self,
        pv: str,
        work: Callable[[], T],
        *,
        deadline: float | None = None,
        late: Callable[[T], None] = lambda done: None,
    ) -> T:
        """What `work` returns or raises, which blocks on the volume's disk. `late` undoes it, in the thread, when
        nobody waits any more. Raises host.diskthreads.Hung."""
        seconds = deadline or CALL_SECONDS
        return await self._threads.at(place_of(pv), work, disk=self.disk(pv), deadline=seconds, late=late)

    async def at_file(self, pv: str, descriptor: int, work: Callable[[int], T], *, deadline: float) -> T:
        """The same on an open file of the volume."""
        return await self._threads.at_file(place_of(pv), descriptor, work, disk=self.disk(pv), deadline=deadline)

    def holding(
        self, pv: str, take: Callable[[], T], give_back: Callable[[T], None]
    ) -> contextlib.AbstractAsyncContextManager[T]:
        """What `take` returns, until it is given back: both block on the volume's disk."""
        return self._threads.holding(place_of(pv), take, give_back, disk=self.disk(pv), deadline=CALL_SECONDS)

    def disk(self, pv: str) -> str | None:
        """None: it is not known, so the volume counts as one."""
        volume = self._volume(pv)
        return disk_of(volume.pool) if volume else None
