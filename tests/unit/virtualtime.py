"""An event loop in which seconds pass only when nobody has anything to do, and then at once. What waits for a time is
tested with that time, to the millisecond and in no time; `asyncio.sleep` returns when all that can happen before has
happened.

For tests that talk to nobody outside of their process: of threads it is known whether they still work, and then time
stands still; of sockets and child processes it is not.
"""

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_PATIENCE = 30.0
"""Real seconds that a thread may take."""


class _Selector(selectors.DefaultSelector):
    """Instead of waiting for a time it lets the time come."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.threads = 0
        """How many calls threads of the loop's executor are busy with."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        if timeout is None or self.threads:
            woken = super().select(_PATIENCE)  # the thread that ends wakes us
            assert woken, "nothing can happen any more: the test waits for what never comes"
            return woken
        ready = super().select(0)
        if not ready:
            self.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        self._clock.threads += 1
        running = super().run_in_executor(executor, func, *args)
        running.add_done_callback(self._ended)
        return running

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Without its limit of time, which would come at once."""
        self._clock.threads += 1
        try:
            await super().shutdown_default_executor()
        finally:
            self._clock.threads -= 1

    def _ended(self, _: asyncio.Future[Any]) -> None:
        self._clock.threads -= 1
