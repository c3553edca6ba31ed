"""For clients of a CSI socket (doctor, tests): a lost connection fails the call, and cancels nothing else."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from grpclib.exceptions import StreamTerminatedError

Answer = TypeVar("Answer")


async def apart(calls: Coroutine[None, None, Answer]) -> Answer:
    """The calls in a task of their own. grpclib cancels the task that calls when its connection is lost, also when that
    has no more to wait for: then the next thing it waits for is cancelled, whatever that is. And it never takes that
    back, so the task counts as cancelled from then on. Raises StreamTerminatedError for that."""
    task = asyncio.create_task(calls)
    try:
        await asyncio.wait({task})
    finally:
        task.cancel()
    if task.cancelled():
        raise StreamTerminatedError("Connection lost")
    return task.result()
