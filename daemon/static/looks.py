"""Looks at disks that end in time or are given up.

A system call on a disk that hangs may never come back, and nothing can end it. The passes are serial, so one such disk
would stop them all. Each look therefore has a thread of its own, for which nobody waits longer than the deadline. A
place that is given up is not looked at again before its look came back: however long the disk hangs, it holds one
thread. These are not the threads that the rest of the daemon works with, and they do not keep it from ending.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Seen = TypeVar("Seen")

DEADLINE = 5.0
"""Seconds. A disk that has to spin up may take longer, and is found in a later pass."""


class Hung(Exception):
    """The place gives no answer: says what to do."""

    def __init__(self, place: Path) -> None:
        super().__init__(
            f'path "{place}" gives no answer, its disk hangs: see the kernel\'s log on the node, and replace the disk '
            "or restart the node"
        )


class Looks:
    def __init__(self, deadline: float = DEADLINE) -> None:
        self._deadline = deadline
        self._hung: set[Path] = set()

    async def at(self, place: Path, look: Callable[[], Seen]) -> Seen:
        """What `look` returns or raises. Raises Hung when it does not end in time, or an earlier one has not yet."""
        if place in self._hung:
            raise Hung(place)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Seen] = loop.create_future()

        def settle(seen: Seen | None, error: BaseException | None) -> None:
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

        threading.Thread(target=run, name=f"look at {place}", daemon=True).start()
        done, _ = await asyncio.wait({answer}, timeout=self._deadline)
        if done:
            return answer.result()
        self._hung.add(place)
        answer.add_done_callback(lambda late: self._back(place, late))
        raise Hung(place)

    def _back(self, place: Path, late: asyncio.Future[Seen]) -> None:
        """The answer is too old to be of use; what it is will be seen in the next pass."""
        self._hung.discard(place)
        if not late.cancelled():
            late.exception()
