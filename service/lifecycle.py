"""How a long-running program runs: until it is asked to end, with parts that are begun anew when they fail and work
that is repeated.

A part of a program may fail without ending the others. A disk that does not answer, a full table of open files or a
fault of our own in one part must not keep pods from their volumes: the part is begun anew, after a time that grows, and
readiness says meanwhile what is wrong.
"""

import asyncio
import contextlib
import logging
import resource
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

_ASKING = (signal.SIGTERM, signal.SIGINT)
_OPEN_FILES = 65536
"""More than everything here may take together, and few enough for a tool that closes each of them."""


def raise_open_files() -> None:
    """Lets the program have as many open files as it is allowed: the soft limit of 1024 is for programs that use
    select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))


async def run_until_signal(work: Coroutine[None, None, None]) -> None:
    """Runs `work` until it ends, or until SIGTERM or SIGINT cancels it; returns when it has cleaned up after itself.
    What it raises by itself passes through."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    asked = False

    def end() -> None:
        nonlocal asked
        asked = True
        task.cancel()

    for number in _ASKING:
        loop.add_signal_handler(number, end)
    try:
        await task
    except asyncio.CancelledError:
        if not asked:
            raise
    finally:
        for number in _ASKING:
            loop.remove_signal_handler(number)
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


log = logging.getLogger(__name__)

_FIRST, _LIMIT = 1.0, 60.0
"""Seconds before the first and before each later new beginning."""
_WELL = 60.0
"""Seconds that a part has to run before its failures are forgotten."""


class Supervisor:
    """Keeps parts running. `fatal`: errors that are meant to end the program, which pass through."""

    def __init__(self, fatal: tuple[type[Exception], ...] = (), *, first: float = _FIRST) -> None:
        self._fatal = fatal
        self._first = first
        self._failed: dict[str, str] = {}

    @property
    def problem(self) -> str:
        """What failed and was not well long enough since, for readiness."""
        return "; ".join(f"{name} failed and was begun anew ({error})" for name, error in self._failed.items())

    async def keep(self, name: str, part: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Runs the part for ever. A part that returns has come to its end, and is not begun anew."""
        failures = 0
        while True:
            well = asyncio.get_running_loop().call_later(_WELL, self._failed.pop, name, None)
            try:
                await part()
                return
            except self._fatal:
                raise
            except Exception as error:
                failures = failures + 1 if name in self._failed else 1
                self._failed[name] = f"{type(error).__name__}: {error}"[:200]
                pause = min(self._first * 2 ** min(failures - 1, 16), _LIMIT)
                log.error("%s failed and begins anew in %.0f s", name, pause, exc_info=error)
            finally:
                well.cancel()
            await asyncio.sleep(pause)


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
