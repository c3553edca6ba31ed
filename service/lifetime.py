"""A program runs until it is asked to end, and then ends in order."""

import asyncio
import contextlib
import resource
import signal
from collections.abc import Coroutine

_ASKING = (signal.SIGTERM, signal.SIGINT)
_OPEN_FILES = 65536
"""More than everything here may take together, and few enough for a tool that closes each of them."""


def raise_open_files() -> None:
    """Lets the program have as many open files as it is allowed: the soft limit of 1024 is for programs that use
    select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def until_asked(work: Coroutine[None, None, None]) -> None:
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
