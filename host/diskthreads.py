"""System calls on disks that end in time or are given up.

A system call on a disk that hangs may never come back, and nothing can end it. So each has a thread of its own, for
which nobody waits longer than the deadline. At a place that was given up nothing is begun before that thread came back:
however long the disk hangs, one place holds one thread, and what is done late is never done beside what came after it.
One disk with many places (volumes) holds a few. These are not the threads that the rest of the process works with, and
they do not keep it from ending.
"""

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TypeVar

Seen = TypeVar("Seen")

DEADLINE = 5.0
"""Seconds. A disk that has to spin up may take longer, and is found in a later pass."""
MOST = 16
"""Threads of one disk: enough to keep it busy, and nothing to a process."""


class Hung(Exception):
    """The place gives no answer: says what to do."""

    def __init__(self, place: Path | str) -> None:
        what = f'path "{place}"' if isinstance(place, Path) else place
        super().__init__(
            f"{what} gives no answer, its disk hangs: see the kernel's log on the node, and replace the disk "
            "or restart the node"
        )


class DiskThreads:
    """`deadline` in seconds, if a call has no other. At most `most` threads of each disk."""

    def __init__(self, deadline: float = DEADLINE, most: int = MOST) -> None:
        self._deadline = deadline
        self._most = most
        self._hung: set[Path | str] = set()
        self._running: Counter[Hashable] = Counter()
        self._waiting: set[asyncio.Future[None]] = set()
        """For a thread of their disk to end."""

    def refuse(self, place: Path | str) -> None:
        """Raises Hung while a thread that was given up has not come back from there."""
        if place in self._hung:
            raise Hung(place)

    async def at(
        self,
        place: Path | str,
        look: Callable[[], Seen],
        *,
        disk: Hashable = None,
        deadline: float | None = None,
    ) -> Seen:
        """What `look` returns or raises. Raises Hung when it does not end in time, or an earlier one has not yet, or
        all threads of its `disk` are taken for so long. None: the place is a disk of its own."""
        deadline = self._deadline if deadline is None else deadline
        disk = place if disk is None else disk
        self.refuse(place)
        await self._turn(place, disk, deadline)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Seen] = loop.create_future()

        def settle(seen: Seen | None, error: BaseException | None) -> None:
            self._ended(disk)
            if answer.cancelled():
                return
            if error is None:
                answer.set_result(seen)  # type: ignore[arg-type]
            else:
                answer.set_exception(error)

        def run() -> None:
            seen, error = None, None
            try:
                seen = look()
            except Exception as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop ended while the disk hung
                loop.call_soon_threadsafe(settle, seen, error)

        self._running[disk] += 1
        threading.Thread(target=run, name=f"look at {place}", daemon=True).start()
        try:
            done, _ = await asyncio.wait({answer}, timeout=deadline)
        except asyncio.CancelledError:
            self._give_up(place, answer)
            raise
        if done:
            return answer.result()
        self._give_up(place, answer)
        raise Hung(place)

    async def _turn(self, place: Path | str, disk: Hashable, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline
        while self._running[disk] >= self._most:
            ended: asyncio.Future[None] = loop.create_future()
            self._waiting.add(ended)
            try:
                await asyncio.wait({ended}, timeout=end - loop.time())
            finally:
                self._waiting.discard(ended)
            self.refuse(place)
            if loop.time() >= end:
                raise Hung(place)

    def _ended(self, disk: Hashable) -> None:
        self._running[disk] -= 1
        if not self._running[disk]:
            del self._running[disk]
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    def _give_up(self, place: Path | str, answer: asyncio.Future[Seen]) -> None:
        self._hung.add(place)
        answer.add_done_callback(lambda late: self._back(place, late))

    def _back(self, place: Path | str, late: asyncio.Future[Seen]) -> None:
        """The answer is too old to be of use; what it is will be seen in the next pass."""
        self._hung.discard(place)
        if not late.cancelled():
            late.exception()
