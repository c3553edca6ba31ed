"""A limit in bytes a second on work that nobody waits for, so that those who do wait for the disk get it."""

import asyncio
import time
from collections.abc import Awaitable, Callable


class Throttle:
    """`rate` in bytes a second, 0: no limit. Time that passes unused is not saved up for a burst."""

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
