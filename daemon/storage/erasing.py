"""Volumes that are on their way out, until nothing is left on them that the next tenant could read.

That takes minutes or hours, so it is nobody's turn and holds up nobody: whoever asks for the removal is told "not yet"
and, when the erasure has ended, to ask again. The record alone says how far it is. It is marked before the first byte
goes, so a volume with half its data gone is never mounted; it says where to go on every few seconds, so what a crash
costs is those seconds; and it says that all is gone, so a crash after that costs nothing.

Whether it may go at all is asked anew whenever bytes are about to: when its turn among those of its pool has come, and
each time when the record is told how far it is. An erasure that meets another owner, or Retain, ends there; so does one
that can't ask.

Volumes of one pool go one after the other: they lie on the same disks, and two at once would only make heads seek.
All together keep to one rate.
"""

import asyncio
import contextlib
import errno
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from daemon.errors import ApiUnavailable, BackendFailed, InUse, NotAuthorized, VolumeError, words
from daemon.storage.backend import Backend
from daemon.storage.deletionguard import Precondition
from daemon.storage.erase import Method, method, steps
from daemon.storage.inventory import Volume, VolumeHealth
from daemon.storage.ordering import Turns
from daemon.storage.record import Record, VolumeState
from daemon.storage.throttle import Throttle
from host import erasure
from host.command import CommandError
from host.thread import undisturbed

log = logging.getLogger(__name__)

REMEMBER_SECONDS = 10.0
"""How often the record says how far it is, and is asked whether to go on. Each time is two LVM commands, a request to
the API server and a flush of the disk."""

RETRY_SECONDS = 30.0
"""How long a failure counts: those who ask meanwhile are told of it, who asks later has it tried again."""


_WORK: Mapping[Method, Callable[[int, range], None]] = {
    Method.DISCARD: erasure.discard,
    Method.ZERO: erasure.zero,
    Method.ZERO_WRITTEN: erasure.zero_written,
}


Rewrite = Callable[[Volume, Record], Awaitable[Volume]]
"""Exchanges the record of a volume whose turn it is."""


class Listener(Protocol):
    """Is told how erasures go."""

    def begun(self, volume: Volume) -> None: ...

    def progressed(self, size: int) -> None:
        """So many more bytes are gone."""
        ...

    def ended(self, volume: Volume, error: VolumeError | None) -> None:
        """For good without an error: the volume waits for its removal to be asked for again."""
        ...


class Silent:
    """A Listener that does not care."""

    def begun(self, volume: Volume) -> None:
        pass

    def progressed(self, size: int) -> None:
        pass

    def ended(self, volume: Volume, error: VolumeError | None) -> None:
        pass


@dataclass(frozen=True)
class _Failure:
    error: VolumeError
    at: float


class Erasures:
    """`turns` gives turns."""

    def __init__(
        self,
        backend: Backend,
        turns: Turns,
        rewrite: Rewrite,
        throttle: Throttle,
        listener: Listener,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend = backend
        self._turns = turns
        self._rewrite = rewrite
        self._throttle = throttle
        self._listener = listener
        self._clock = clock
        self._running: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, _Failure] = {}
        self._lines: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def done(self, volume: Volume, precondition: Precondition) -> bool:
        """Whether nothing is left of the data of a volume that is not mounted, so that it may be removed. Else that is
        being seen to, for as long as `precondition` gives it. To be called when it is the volume's turn, with what
        `precondition` gave a moment ago. Raises VolumeError: why it failed the last time."""
        record = volume.record
        if record.state is VolumeState.FORMATTING:  # nobody ever had it mounted
            return True
        if volume.pv in self._running:
            return False
        if record.state is VolumeState.ERASING and record.erased >= volume.size:
            return True
        if failure := self._failures.get(volume.pv):
            if self._clock() - failure.at < RETRY_SECONDS:
                raise failure.error.with_traceback(None)
            del self._failures[volume.pv]
        chosen = method(record.erase, await self._backend.reuse(volume))
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

    async def settled(self, pv: str) -> None:
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
            async with self._lines[volume.pool]:
                log.info(
                    "erasing (%s) from byte %d on", chosen.value, volume.record.erased, extra={"volume": volume.pv}
                )
                self._listener.begun(volume)
                await self._erase(await precondition(volume), chosen, precondition)
        except VolumeError as failed:
            error = failed
        except Exception as failed:
            foreseen = isinstance(failed, CommandError | OSError)
            if not foreseen:
                log.exception("erasing failed", extra={"volume": volume.pv})
            error = BackendFailed(
                f"the data of volume {volume.pv} can't be erased: {failed if foreseen else words(failed)}; it stays, "
                "with its space, until its disk works again, and is tried again until then"
            )
        finally:
            del self._running[volume.pv]
        if error:
            log.warning("%s", error, extra={"volume": volume.pv})
            if not isinstance(error, NotAuthorized | ApiUnavailable):  # who asks again is told by who is asked
                self._failures[volume.pv] = _Failure(error, self._clock())
        self._listener.ended(volume, error)

    async def _erase(self, volume: Volume, chosen: Method, precondition: Precondition) -> None:
        async with self._backend.device(volume) as device:
            with _opened(volume.pv, device) as descriptor:
                if chosen is Method.DISCARD and not erasure.discards(descriptor):
                    chosen = Method.ZERO  # a device that knows no discard would keep everything
                remembered = self._clock()
                for extent in steps(chosen, volume.record.erased, volume.size):
                    if chosen is not Method.DISCARD:
                        await self._throttle.admit(len(extent))
                    await undisturbed(_WORK[chosen], descriptor, extent)
                    self._listener.progressed(len(extent))
                    if self._clock() - remembered >= REMEMBER_SECONDS:
                        await undisturbed(erasure.flush, descriptor)
                        volume = await self._remember(volume, extent.stop, precondition)
                        remembered = self._clock()
                await undisturbed(erasure.flush, descriptor)
            await self._remember(volume, volume.size, precondition)

    async def _remember(self, volume: Volume, erased: int, precondition: Precondition) -> Volume:
        async def rewrite() -> Volume:
            found = await precondition(volume)
            return await self._rewrite(found, replace(found.record, erased=erased))

        return await self._turns.take(volume.pv, ("erased", erased), rewrite)


@contextlib.contextmanager
def _opened(pv: str, device: Path) -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        try:
            descriptor = stack.enter_context(erasure.opened(device))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise InUse(f"volume {pv} can't be erased, {device} is in use: stop what uses it on the node") from error
        yield descriptor
