"""Work that a program does again and again: when a time is over, or at once when somebody asks for it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable


class PeriodicLoop:
    """Does `work` at once and then again, `period` seconds after it ended. The period is asked for each time: it may
    depend on what the work found."""

    def __init__(self, work: Callable[[], Awaitable[object]], period: Callable[[], float]) -> None:
        self._work = work
        self._period = period
        self._triggered = asyncio.Event()

    def trigger(self) -> None:
        """The work is wanted now. While it is being done: once more, as soon as it has ended."""
        self._triggered.set()

    async def run(self) -> None:
        """For ever. Raises what the work raises."""
        while True:
            self._triggered.clear()
            await self._work()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._period()):
                    await self._triggered.wait()
