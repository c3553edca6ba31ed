"""System calls that block, in a thread, on files that are closed after them.

asyncio.to_thread leaves a thread to itself when the task that waits for it is cancelled. The file is closed then, and
the thread may read from, or write to, whatever file gets its number next.
"""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def undisturbed(work: Callable[..., T], *arguments: Any) -> T:
    """Runs in a thread, and is waited for also by a task that is cancelled."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
