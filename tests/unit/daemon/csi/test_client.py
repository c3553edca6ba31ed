"""A CSI driver that dies while it is called."""

import asyncio

import pytest
from grpclib.exceptions import StreamTerminatedError

from daemon.csi.client import apart


async def test_a_call_that_grpclib_cancels_ends_nothing_but_itself() -> None:
    async def cancelled() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    with pytest.raises(StreamTerminatedError):
        await apart(cancelled())
    await asyncio.sleep(0)
    current = asyncio.current_task()
    assert current is not None
    assert not current.cancelling()


async def test_a_caller_that_is_cancelled_takes_its_call_along() -> None:
    ended = asyncio.Event()

    async def calls() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    caller = asyncio.create_task(apart(calls()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await asyncio.wait_for(ended.wait(), 10)
