import asyncio
import threading

import pytest

from host.thread import undisturbed


async def test_a_task_that_is_cancelled_waits_for_its_thread() -> None:
    begun, may_end = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        may_end.wait(10)

    task = asyncio.create_task(undisturbed(work))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.wait([task], timeout=0.05)
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_the_thread_gives_or_raises_is_what_the_caller_gets() -> None:
    assert await undisturbed(max, 1, 2) == 2
    with pytest.raises(ValueError, match="invalid literal"):
        await undisturbed(int, "x")
