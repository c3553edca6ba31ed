"""Lines of work: order, joining, and callers that give up."""

import asyncio

import pytest

from daemon.storage.keyedqueue import KeyedQueue


class Work:
    """Work that begins when it may and ends when it is told to."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._gates: dict[str, asyncio.Event] = {}

    async def do(self, name: str) -> str:
        self.begun.append(name)
        await self._gate(name).wait()
        return name

    def end(self, *names: str) -> None:
        for name in names:
            self._gate(name).set()

    def _gate(self, name: str) -> asyncio.Event:
        return self._gates.setdefault(name, asyncio.Event())


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def asked(queue: KeyedQueue, work: Work, key: str, request: str, name: str) -> asyncio.Task[str]:
    return asyncio.create_task(queue.run(key, request, lambda: work.do(name)))


async def test_equal_requests_are_done_once() -> None:
    queue, work = KeyedQueue(), Work()
    first, second = (asked(queue, work, "pv", "prepare", name) for name in ("one", "two"))
    await settled()
    work.end("one")
    assert [await first, await second] == ["one", "one"]
    assert work.begun == ["one"]


async def test_first_come_first_served_and_others_do_not_wait() -> None:
    queue, work = KeyedQueue(), Work()
    line = [asked(queue, work, "pv", name, name) for name in ("mount", "unmount", "expand")]
    other = asked(queue, work, "other", "mount", "other")
    await settled()
    assert work.begun == ["mount", "other"]
    work.end("unmount", "expand", "other")
    await other
    assert work.begun == ["mount", "other"]
    work.end("mount")
    await asyncio.gather(*line)
    assert work.begun == ["mount", "other", "unmount", "expand"]


async def test_a_request_does_not_join_across_another_one() -> None:
    queue, work = KeyedQueue(), Work()
    line = [
        asked(queue, work, "pv", "mount", "first mount"),
        asked(queue, work, "pv", "unmount", "unmount"),
        asked(queue, work, "pv", "mount", "second mount"),
    ]
    await settled()
    work.end("first mount", "unmount", "second mount")
    assert await asyncio.gather(*line) == ["first mount", "unmount", "second mount"]


async def test_a_caller_that_gives_up_breaks_nothing_off() -> None:
    queue, work = KeyedQueue(), Work()
    gave_up = asked(queue, work, "pv", "prepare", "work")
    await settled()
    gave_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gave_up
    again = asked(queue, work, "pv", "prepare", "again")
    await settled()
    work.end("work")
    assert await again == "work"


async def test_a_failure_reaches_all_who_joined_and_does_not_hold_up_the_line() -> None:
    queue, work = KeyedQueue(), Work()
    gate = asyncio.Event()

    async def fail() -> str:
        await gate.wait()
        raise ValueError("broken")

    joined = [asyncio.create_task(queue.run("pv", "prepare", fail)) for _ in range(2)]
    after = asked(queue, work, "pv", "mount", "after")
    await settled()
    gate.set()
    work.end("after")
    for task in joined:
        with pytest.raises(ValueError, match="broken"):
            await task
    assert await after == "after"


async def test_drain_waits_for_work_that_nobody_waits_for() -> None:
    queue, work = KeyedQueue(), Work()
    gave_up = asked(queue, work, "pv", "prepare", "work")
    await settled()
    gave_up.cancel()
    drained = asyncio.create_task(queue.drain())
    await settled()
    assert not drained.done()
    work.end("work")
    await drained
