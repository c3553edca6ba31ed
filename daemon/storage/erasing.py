"""Erases the data of volumes that are being removed, so that the next tenant of their space can't read it.

A volume that is removed leaves its blocks as they are. The next volume's mkfs writes little of them, so whoever reads
the device itself, or a filesystem that is tricked into showing what it never wrote, finds the last tenant's bytes. What
is to be done about that depends on what the class asks for and on how the storage gives out blocks again.

Erasing takes minutes or hours, so it is nobody's turn and holds up nobody: whoever asks for the removal hears "not
yet" and, when the erasure has ended, asks again. The record alone says how far it is. It is marked before the first
byte goes, so a volume with half its data gone is never mounted; and it says where to go on every few seconds, so what a
crash costs is those seconds. That all is gone need not be written down: the volume goes at once.

Whether it may go at all is asked anew whenever bytes are about to: when its turn among those of its pool has come, and
each time when the record notes how far it is. An erasure that meets another owner, or Retain, ends there; so does one
that can't ask.

Volumes of one pool go one after the other: they lie on the same disks, and two at once would only make heads seek.
All together keep to one rate.
"""

import asyncio
import contextlib
import enum
import errno
import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from contract.parameters import DISCARD, NO_ERASE
from daemon.errors import ApiUnavailable, BackendFailed, InUse, NotAuthorized, VolumeError, message_of
from daemon.storage.backend import Backend, StaleData
from daemon.storage.deletionguard import Precondition
from daemon.storage.disks import CALL_SECONDS, Disks
from daemon.storage.inventory import Volume, VolumeHealth
from daemon.storage.keyedqueue import KeyedQueue
from daemon.storage.record import Record, VolumeState
from host import erasure
from host.command import CommandError
from host.diskthreads import Hung

log = logging.getLogger(__name__)

MIB = 2**20

REMEMBER_SECONDS = 10.0
"""How often the record says how far it is, and is asked whether to go on. Each time is two LVM commands, a request to
the API server and a flush of the disk."""

_STEP_SECONDS = 5 * CALL_SECONDS
"""What one step may take before the disk counts as hung: discarding may be slow."""

RETRY_SECONDS = 30.0
"""How long a failure counts: those who ask meanwhile get it again, who asks later has it tried again."""


class Method(enum.Enum):
    DISCARD = "discard"
    """The device learns that nobody needs the blocks. What they read as from then on, it alone knows."""
    ZERO = "zero"
    ZERO_WRITTEN = "zero-written"
    """Reads, and writes zeroes only over what is not zero."""
    FORGET = "forget"
    """Of an encrypted volume the header goes, and with it the key: what is left is noise to everybody."""


_STEP = {Method.DISCARD: 1024 * MIB, Method.ZERO: 16 * MIB, Method.ZERO_WRITTEN: 16 * MIB, Method.FORGET: 16 * MIB}
"""Bytes in one go. Others wait for the disk that long, which for 16 MiB is a tenth of a second on a slow one."""


def method(policy: str, stale: StaleData, *, encrypted: bool = False) -> Method | None:
    """How the data of a volume goes. None: there is nothing to do. The header of an encrypted one goes also where the
    next tenant would not see it: who has the disk itself, and the key, would."""
    if encrypted and policy != NO_ERASE and (policy != DISCARD or stale is StaleData.CLEAN):
        return Method.FORGET
    if policy == NO_ERASE or stale is StaleData.CLEAN:
        return None
    if policy == DISCARD:
        return Method.DISCARD
    return Method.ZERO if stale is StaleData.RAW else Method.ZERO_WRITTEN


def steps(chosen: Method, begin: int, size: int) -> Iterator[range]:
    """The bytes from `begin` to `size`, in the order in which they go. What is below `begin` is gone already."""
    step = _STEP[chosen]
    for offset in range(begin, size, step):
        yield range(offset, min(offset + step, size))


def erasure_steps(chosen: Method, begin: int, size: int, header: int) -> Iterator[tuple[Method, range]]:
    """The same, and how each part goes. The header of an encrypted volume is always overwritten, and first: a disk may
    keep what is discarded."""
    if begin < header:
        yield from ((Method.ZERO, part) for part in steps(Method.ZERO, begin, min(header, size)))
    if chosen is not Method.FORGET:
        yield from ((chosen, part) for part in steps(chosen, max(begin, header), size))


_WORK: Mapping[Method, Callable[..., None]] = {
    Method.DISCARD: erasure.discard,
    Method.ZERO: erasure.zero,
    Method.ZERO_WRITTEN: erasure.zero_written,
}


Rewrite = Callable[[Volume, Record], Awaitable[Volume]]
"""Exchanges the record of a volume whose turn it is."""


class Listener(Protocol):
    """Hears how erasures go."""

    def begun(self, volume: Volume) -> None: ...

    def progressed(self, size: int) -> None:
        """So many more bytes are gone."""
        ...

    def ended(self, volume: Volume, error: VolumeError | None) -> None:
        """For good without an error: the volume waits for its removal to be asked for again."""
        ...


class Silent:
    """A Listener that ignores everything."""

    def begun(self, volume: Volume) -> None:
        pass

    def progressed(self, size: int) -> None:
        pass

    def ended(self, volume: Volume, error: VolumeError | None) -> None:
        pass


class Throttle:
    """A limit on work that nobody waits for, so that those who do wait for the disk get it. `rate` in bytes a second,
    0: no limit. Time that passes unused is not saved up for a burst."""

    def __init__(
        self,
        rate: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._next = clock()
        """When the next may begin."""

    async def admit(self, size: int) -> None:
        """Returns when work on `size` bytes may begin. Those who wait at the same time come one after the other."""
        if not self._rate:
            return
        now = self._clock()
        begin = max(now, self._next)
        self._next = begin + size / self._rate
        if begin > now:
            await self._sleep(begin - now)


@dataclass(frozen=True)
class _Erased:
    uid: str
    size: int
    """Bytes."""


@dataclass(frozen=True)
class _Failure:
    error: VolumeError
    at: float


class Eraser:
    """Erases the volumes of one node."""

    def __init__(
        self,
        backend: Backend,
        queue: KeyedQueue,
        rewrite: Rewrite,
        throttle: Throttle,
        listener: Listener,
        disks: Disks,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend = backend
        self._queue = queue
        self._rewrite = rewrite
        self._throttle = throttle
        self._listener = listener
        self._disks = disks
        self._clock = clock
        self._running: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, _Failure] = {}
        self._erased: dict[str, _Erased] = {}
        """Volumes of which this process has left nothing, until they are gone."""
        self._lines: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._in_line: Counter[str] = Counter()
        """By pool, whose turn it is and who waits. A lock that was just let go, for the next one, is not locked."""

    async def ensure_erased(self, volume: Volume, precondition: Precondition) -> bool:
        """Whether nothing is left of the data of a volume that is not mounted, so that it may be removed. Else that is
        being seen to, for as long as `precondition` gives it. To be called when it is the volume's turn, with what
        `precondition` gave a moment ago. Raises VolumeError: why it failed the last time."""
        record = volume.record
        if record.state is VolumeState.FORMATTING:  # nobody ever had it mounted
            return True
        if volume.pv in self._running:
            return False
        if record.state is VolumeState.ERASING and (
            record.erased >= volume.device_size
            or self._erased.get(volume.pv) == _Erased(record.uid, volume.device_size)
        ):
            return True
        if failure := self._failures.get(volume.pv):
            if self._clock() - failure.at < RETRY_SECONDS:
                raise failure.error.with_traceback(None)
            del self._failures[volume.pv]
        stale = await self._backend.stale_data(volume)
        chosen = method(record.erase, stale, encrypted=bool(record.encryption))
        if chosen is None:
            return True
        if volume.health is VolumeHealth.MISSING_DEVICE:
            group = volume.pool.partition("/")[0]
            raise BackendFailed(
                f"the data of volume {volume.pv} can't be erased, a disk that it lies on is missing: bring it back, or "
                f"if it is gone for good remove the volume by hand on the node (lvremove {group}/{volume.pv})"
            )
        if record.state is not VolumeState.ERASING:
            volume = await self._rewrite(volume, replace(record, state=VolumeState.ERASING, erased=0))
        task = asyncio.create_task(self._run(volume, chosen, precondition), name=f"erase {volume.pv}")
        self._running[volume.pv] = task
        return False

    def forget(self, pv: str) -> None:
        """The volume is gone."""
        self._erased.pop(pv, None)

    async def wait_idle(self, pv: str) -> None:
        """Returns when the volume is not being erased, or not any more."""
        if task := self._running.get(pv):
            await asyncio.wait([task])

    async def close(self) -> None:
        """Breaks off what runs; the next daemon goes on with it."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    async def _run(self, volume: Volume, chosen: Method, precondition: Precondition) -> None:
        error: VolumeError | None = None
        try:
            async with self._turn(volume.pool) as waited:
                log.info(
                    "erasing (%s) from byte %d on", chosen.value, volume.record.erased, extra={"volume": volume.pv}
                )
                self._listener.begun(volume)
                if waited:  # else it was asked a moment ago
                    volume = await precondition(volume)
                await self._erase(volume, chosen, precondition)
        except VolumeError as failed:
            error = failed
        except Exception as failed:
            foreseen = isinstance(failed, CommandError | OSError | Hung)
            if not foreseen:
                log.exception("erasing failed", extra={"volume": volume.pv})
            error = BackendFailed(
                f"the data of volume {volume.pv} can't be erased: {failed if foreseen else message_of(failed)}; it "
                "stays, with its space, until its disk works again, and is tried again until then"
            )
            error.__cause__ = failed
        finally:
            del self._running[volume.pv]
        if error:
            log.warning("%s", error, extra={"volume": volume.pv})
            if not isinstance(
                error, NotAuthorized | ApiUnavailable
            ):  # who asks again is refused again, with the reason
                self._failures[volume.pv] = _Failure(error, self._clock())
        self._listener.ended(volume, error)

    @contextlib.asynccontextmanager
    async def _turn(self, pool: str) -> AsyncIterator[bool]:
        """Whether there was anybody before it among those of its pool."""
        others = self._in_line[pool] > 0
        self._in_line[pool] += 1
        try:
            async with self._lines[pool]:
                yield others
        finally:
            self._in_line[pool] -= 1

    async def _erase(self, volume: Volume, chosen: Method, precondition: Precondition) -> None:
        async with self._backend.device(volume) as device:
            take = partial(_opened, volume.pv, device)
            async with self._disks.holding(volume.pv, take, os.close) as descriptor:
                header, size = volume.record.header_size, volume.device_size
                if chosen is Method.DISCARD and not erasure.discards(descriptor):
                    # A device that knows no discard would keep everything.
                    chosen = Method.FORGET if header else Method.ZERO
                remembered = self._clock()
                for how, extent in erasure_steps(chosen, volume.record.erased, size, header):
                    if how is not Method.DISCARD:
                        await self._throttle.admit(len(extent))
                    await self._work(volume, descriptor, partial(_WORK[how], extent=extent))
                    self._listener.progressed(len(extent))
                    if self._clock() - remembered >= REMEMBER_SECONDS:
                        await self._work(volume, descriptor, erasure.flush)
                        volume = await self._remember(volume, extent.stop, precondition)
                        remembered = self._clock()
                await self._work(volume, descriptor, erasure.flush)
        self._erased[volume.pv] = _Erased(volume.record.uid, volume.device_size)

    async def _work(self, volume: Volume, descriptor: int, work: Callable[[int], None]) -> None:
        """Who breaks it off waits for it: the next daemon must not find it at work."""
        working = asyncio.ensure_future(self._disks.at_file(volume.pv, descriptor, work, deadline=_STEP_SECONDS))
        try:
            await asyncio.shield(working)
        except asyncio.CancelledError:
            await asyncio.wait([working])
            raise

    async def _remember(self, volume: Volume, erased: int, precondition: Precondition) -> Volume:
        async def rewrite() -> Volume:
            present = await precondition(volume)
            return await self._rewrite(present, replace(present.record, erased=erased))

        return await self._queue.run(volume.pv, ("erased", erased), rewrite)


def _opened(pv: str, device: Path) -> int:
    try:
        return erasure.open_alone(device)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise InUse(f"volume {pv} can't be erased, {device} is in use: stop what uses it on the node") from error
