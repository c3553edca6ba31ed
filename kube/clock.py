"""The passing of time, as one thing that can be handed in, so that a test of fifteen seconds takes milliseconds."""

import asyncio
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """Monotonic seconds, also those that a suspended machine slept through: for everybody else they went by. `speed`:
    how many of them go by in one real second."""

    speed: float = 1.0

    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME) * self.speed

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self.speed)

    def timeout(self, seconds: float) -> asyncio.Timeout:
        """As asyncio.timeout."""
        return asyncio.timeout(seconds / self.speed)
