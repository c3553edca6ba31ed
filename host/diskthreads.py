"""System calls on disks that end in time or are given up.

A system call on a disk that hangs may never come back, and nothing can end it. So each has a thread of its own, for
which nobody waits longer than the deadline. At a place that was given up nothing is begun before that thread came back:
however long the disk hangs, one place holds one thread, and what is done late is never done beside what came after it.
One disk with many places (volumes) holds a few. These are not the threads that the rest of the process works with, and
they do not keep it from ending.

    status = await threads.at("volume a", folder.stat, disk="pool", deadline=30)
"""

import asyncio
import contextlib
import logging
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

log = logging.getLogger(__name__)

Seen = TypeVar("Seen")
Held = TypeVar("Held")

DEADLINE = 5.0
"""Seconds. A disk that has to spin up may take longer, and is found in a later pass."""
MOST = 32
"""Threads of one disk: enough to keep it busy, and nothing to a process."""


class Unresponsive(Exception):
    """What was asked of a disk gets no answer, and can't be broken off."""

    def lasts(self) -> bool:
        """Whether that is still so."""
        raise NotImplementedError


def unresponsive(error: BaseException | None) -> Unresponsive | None:
    """The disk without an answer that an error comes from, if it comes from one."""
    while error is not None:
        if isinstance(error, Unresponsive):
            return error
        error = error.__cause__
    return None


class Hung(Unresponsive):
    """The place gives no answer: says what to do."""

    def __init__(self, place: Path | str, lasts: Callable[[], bool] = lambda: True) -> None:
        what = f'path "{place}"' if isinstance(place, Path) else place
        super().__init__(
            f"{what} gives no answer, its disk hangs: see the kernel's log on the node, and replace the disk "
            "or restart the node"
        )
        self._lasts = lasts

    def lasts(self) -> bool:
        return self._lasts()


_IDLE_SECONDS = 2.0
_IDLE = "waits for another disk"


class _Threads(Executor):
    """One for each call. They do not keep the process from ending. One that is back waits a moment for another call:
    most calls take less than the start of a thread.

    They serve as an executor of the loop, which takes a future of its own as it is: those of concurrent.futures, which
    a thread could wait for as well, would take longer than all the rest."""

    def __init__(self) -> None:
        self._begin()
        os.register_at_fork(after_in_child=self._begin)  # which has none of our threads

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[SimpleQueue[Callable[[], None]]] = []

    def submit(  # type: ignore[override]
        self, work: Callable[[], Seen], /
    ) -> "asyncio.Future[Seen]":
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Seen] = loop.create_future()
        calls = self._queue_of_idle_thread()

        def run() -> None:
            try:
                seen = work()
            except BaseException as error:
                self._done(calls)
                _call(loop, _settle, answer, answer.set_exception, error)
            else:
                self._done(calls)
                _call(loop, _settle, answer, answer.set_result, seen)

        calls.put(run)
        return answer

    def _queue_of_idle_thread(self) -> "SimpleQueue[Callable[[], None]]":
        """What is put there, that thread runs. It is started if none is idle."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
        calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        threading.Thread(target=self._serve, args=(calls,), daemon=True).start()
        return calls

    def _done(self, calls: "SimpleQueue[Callable[[], None]]") -> None:
        """The thread is idle. To be called before the answer is given, so that who calls again finds it so."""
        threading.current_thread().name = _IDLE
        with self._lock:
            self._idle.append(calls)

    def _serve(self, calls: "SimpleQueue[Callable[[], None]]") -> None:
        while True:
            try:
                run = calls.get(timeout=_IDLE_SECONDS)
            except Empty:
                with self._lock:
                    if calls in self._idle:
                        self._idle.remove(calls)
                        return
                continue  # it was taken a moment ago
            run()
            del run


_executor = _Threads()


def _settle(answer: "asyncio.Future[Any]", settle: Callable[..., None], *what: object) -> None:
    """Unless nobody waits for it any more."""
    if not answer.done():
        settle(*what)


def _call(loop: asyncio.AbstractEventLoop, work: Callable[..., None], *arguments: object) -> None:
    """From a thread."""
    with contextlib.suppress(RuntimeError):  # the loop has ended, and who waited with it
        loop.call_soon_threadsafe(work, *arguments)


@dataclass
class _Call:
    place: Path | str
    disk: Hashable
    over: bool = False
    """The thread is back."""
    given_up: bool = False
    """Nobody waits for it."""


class DiskThreads:
    """`deadline` in seconds, if a call has no other. At most `most` threads of each disk."""

    def __init__(self, deadline: float = DEADLINE, most: int = MOST) -> None:
        self._deadline = deadline
        self._most = most
        self._lock = threading.Lock()
        """Of all that follows: a thread that comes back notes that itself, whether there still is a loop or not."""
        self._left: Counter[Path | str] = Counter()
        """Threads that were given up and are not back, by place."""
        self._lost: Counter[Hashable] = Counter()
        """The same by disk."""
        self._running: Counter[Hashable] = Counter()
        self._waiting: set[asyncio.Future[None]] = set()
        """For a thread of any disk to end."""

    def refuse(self, place: Path | str) -> None:
        """Raises Hung while a thread that was given up has not come back from there."""
        if self._left.get(place):
            raise self._hung(place, place)

    async def at(
        self,
        place: Path | str,
        look: Callable[[], Seen],
        *,
        disk: Hashable = None,
        deadline: float | None = None,
        late: Callable[[Seen], None] = lambda seen: None,
    ) -> Seen:
        """What `look` returns or raises. Raises Hung when it does not end in time, or an earlier one has not yet, or
        all threads of its `disk` are taken for so long. None: the place is a disk of its own. `late` gives back, in
        a thread, what nobody waits for any more."""
        deadline = self._deadline if deadline is None else deadline
        disk = place if disk is None else disk
        await self._turn(place, disk, deadline)
        return await self._run(place, look, disk, deadline, late)

    async def at_file(
        self,
        place: Path | str,
        descriptor: int,
        work: Callable[[int], Seen],
        *,
        disk: Hashable = None,
        deadline: float | None = None,
    ) -> Seen:
        """The same on an open file, which the thread has open itself: when it is given up and the file closed, it
        does not work on whatever file gets its number next."""
        deadline = self._deadline if deadline is None else deadline
        disk = place if disk is None else disk
        await self._turn(place, disk, deadline)
        own = os.dup(descriptor)

        def run() -> Seen:
            try:
                return work(own)
            finally:
                os.close(own)

        return await self._run(place, run, disk, deadline, lambda seen: None)

    @contextlib.asynccontextmanager
    async def holding(
        self,
        place: Path | str,
        take: Callable[[], Held],
        give_back: Callable[[Held], None],
        *,
        disk: Hashable = None,
        deadline: float | None = None,
    ) -> AsyncIterator[Held]:
        """What `take` returns, as an open file is: `give_back` may block too, and is called whatever happens."""
        deadline = self._deadline if deadline is None else deadline
        disk = place if disk is None else disk
        held = await self.at(place, take, disk=disk, deadline=deadline, late=give_back)
        try:
            yield held
        finally:
            await self._give_back(place, partial(give_back, held), disk, deadline)

    async def _give_back(
        self, place: Path | str, give_back: Callable[[], None], disk: Hashable, deadline: float
    ) -> None:
        """Also where others hang: it begins nothing."""
        try:
            await self._run(place, give_back, disk, deadline, lambda seen: None)
        except Hung as error:
            log.warning("%s", error)  # whoever comes next gets the error

    async def _run(
        self,
        place: Path | str,
        look: Callable[[], Seen],
        disk: Hashable,
        deadline: float,
        late: Callable[[Seen], None],
    ) -> Seen:
        """Begins at once, before anything is waited for."""
        call = _Call(place, disk)
        seen: list[Seen] = []

        def run() -> Seen:
            threading.current_thread().name = f"look at {place}"
            try:
                seen.append(look())
                return seen[0]
            finally:
                if self._back(call) and seen:
                    late(seen[0])

        with self._lock:
            self._running[disk] += 1
        loop = asyncio.get_running_loop()
        try:
            answer = loop.run_in_executor(_executor, run)
        except BaseException:
            self._back(call)
            raise
        timer = loop.call_later(deadline, self._expire, call, answer)
        try:
            return await answer
        except asyncio.CancelledError:
            if not self._give_up(call):
                for unheard in seen:  # waited for: who comes next must not find it at work
                    await self._give_back(place, partial(late, unheard), disk, deadline)
            raise
        finally:
            timer.cancel()

    def _expire(self, call: _Call, answer: "asyncio.Future[Any]") -> None:
        if not answer.done() and self._give_up(call):
            answer.set_exception(self._hung(call.place, call.disk))

    async def _turn(self, place: Path | str, disk: Hashable, deadline: float) -> None:
        self.refuse(place)
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline
        while (ended := self._all_taken(place, disk)) is not None:
            try:
                await asyncio.wait({ended}, timeout=end - loop.time())
            finally:
                with self._lock:
                    self._waiting.discard(ended)
            self.refuse(place)
            if loop.time() >= end:
                raise self._hung(place, disk)

    def _all_taken(self, place: Path | str, disk: Hashable) -> "asyncio.Future[None] | None":
        """What to wait for when a disk has as many threads as it may. Raises Hung when none of them is to come back."""
        if self._running.get(disk, 0) < self._most:
            return None
        with self._lock:  # none of them comes back unheard
            if self._running[disk] < self._most:
                return None
            if self._lost[disk] < self._most:
                ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.add(ended)
                return ended
        raise self._hung(place, disk)

    def _hung(self, place: Path | str, disk: Hashable) -> Hung:
        return Hung(place, lambda: bool(self._left[place]) or self._running[disk] >= self._most)

    def _give_up(self, call: _Call) -> bool:
        """False: it has just come back."""
        with self._lock:
            if not call.over and not call.given_up:
                call.given_up = True
                self._left[call.place] += 1
                self._lost[call.disk] += 1
            return call.given_up

    def _back(self, call: _Call) -> bool:
        """Whether it was given up. What it saw is too old to be of use then; what is there is seen in the next pass."""
        with self._lock:
            call.over = True
            _decrease(self._running, call.disk)
            if call.given_up:
                _decrease(self._left, call.place)
                _decrease(self._lost, call.disk)
            for ended in self._waiting:
                _call(ended.get_loop(), _settle, ended, ended.set_result, None)
            return call.given_up


def _decrease(counter: Counter[Any], key: Hashable) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


threads = DiskThreads()
"""Those of everything that is done to volumes: what hangs in one part is not begun by another."""
