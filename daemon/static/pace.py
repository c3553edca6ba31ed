"""When the next pass is due: soon after something happened, and after the period in any case.

One disk that is plugged in makes a dozen events, and a node that boots makes thousands. A pass that was asked for soon
after the last one waits twice as long as that one did, up to a limit, so a storm costs a handful of passes while a
single event is still answered at once.
"""

import asyncio
import time

FIRST, LIMIT, QUIET = 0.1, 5.0, 1.0
"""Seconds: from an event to its pass when all was quiet before, at most, and what counts as quiet."""


class Pace:
    def __init__(self) -> None:
        self._woken = asyncio.Event()
        self._pause = FIRST

    def wake(self) -> None:
        """Something happened that a pass should look at."""
        self._woken.set()

    async def wait(self, period: float) -> None:
        """Returns when the next pass is due, at the latest `period` seconds from now."""
        begin = time.monotonic()
        try:
            async with asyncio.timeout(period):
                await self._woken.wait()
                quiet = time.monotonic() - begin >= QUIET
                self._pause = FIRST if quiet else min(self._pause * 2, LIMIT)
                await asyncio.sleep(self._pause)
        except TimeoutError:
            self._pause = FIRST
        # What happens from here on, while the pass looks, is for the next one.
        self._woken.clear()
