"""When the next pass is due: soon after something happened, and after the period in any case.

One disk that is plugged in makes a dozen events, a node that boots makes thousands, and one on which pods come and go
never falls silent. So events are gathered for a moment, which grows while they keep coming, but not beyond what people
who have just mounted a disk would wait for. Where a pass is slow the gaps are longer, and looking stays a small part of
the node's work.
"""

import asyncio

FIRST, LIMIT, QUIET = 0.1, 0.5, 1.0
"""Seconds: from an event to its pass when all was quiet before, when events keep coming, and what counts as quiet."""
_SHARE = 5
"""A pause is at least so many times as long as the pass before it."""


class Pace:
    def __init__(self) -> None:
        self._woken = asyncio.Event()
        self._pause = FIRST
        self._began: float | None = None
        """When the pass that runs now began, by the clock of the event loop."""

    def wake(self) -> None:
        """Something happened that a pass should look at."""
        self._woken.set()

    async def wait(self, period: float) -> None:
        """Returns when the next pass is due, at the latest `period` seconds from now."""
        clock = asyncio.get_running_loop().time
        begin = clock()
        taken = begin - self._began if self._began is not None else 0.0
        try:
            async with asyncio.timeout(period):
                await self._woken.wait()
                waited = clock() - begin
                self._pause = FIRST if waited >= QUIET else min(self._pause * 2, LIMIT)
                await asyncio.sleep(max(self._pause, taken * _SHARE - waited))
        except TimeoutError:
            self._pause = FIRST
        # What happens from here on, while the pass looks, is for the next one.
        self._woken.clear()
        self._began = clock()
