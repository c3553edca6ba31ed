import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from kube.backoff import Backoff
from kube.errors import Conflict, Unreachable
from kube.workqueue import WorkQueue
from tests.waiting import drained, until

QUICK = Backoff(first=0.001, factor=1, jitter=0)


@asynccontextmanager
async def working(
    handle: Callable[[str], Awaitable[None]], parallelism: int = 2, backoff: Backoff = QUICK
) -> AsyncIterator[WorkQueue]:
    queue = WorkQueue(handle, parallelism=parallelism, backoff=backoff, of="volume")
    task = asyncio.create_task(queue.run())
    try:
        yield queue
    finally:
        task.cancel()
        await asyncio.wait({task})


class Gate:
    """A handler that notes what it begins and goes on when it is told to."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.open = asyncio.Event()

    async def __call__(self, key: str) -> None:
        self.begun.append(key)
        await self.open.wait()


async def test_first_in_first_out_and_each_key_once() -> None:
    gate = Gate()
    gate.open.set()
    async with working(gate, parallelism=1) as queue:
        for key in "cabcacb":
            queue.add(key)
        assert queue.depth == 3
        await drained(queue)
    assert gate.begun == ["c", "a", "b"]


async def test_parallel_but_never_one_key_twice() -> None:
    gate = Gate()
    async with working(gate) as queue:
        for key in "abc":
            queue.add(key)
        await until(lambda: gate.begun == ["a", "b"])
        queue.add("a")
        queue.add("a")
        assert queue.depth == 1
        gate.open.set()
        await drained(queue)
    assert gate.begun == ["a", "b", "c", "a"]


async def test_a_failing_key_is_tried_until_it_works(caplog: pytest.LogCaptureFixture) -> None:
    waits: list[int] = []

    class Noting(Backoff):
        def delay(self, failures: int) -> float:
            waits.append(failures)
            return 0

    errors: list[BaseException | None] = [
        Conflict(409, "Conflict", "changed"),
        ValueError("a bug"),
        asyncio.CancelledError(),
        None,
        ValueError("again"),
    ]
    tries = 0

    async def handle(_: str) -> None:
        nonlocal tries
        tries += 1
        if error := errors.pop(0) if errors else None:
            raise error

    with caplog.at_level(logging.WARNING):
        async with working(handle, backoff=Noting()) as queue:
            queue.add("a")
            await until(lambda: tries == 4)
            await drained(queue)
            queue.add("a")
            await until(lambda: tries == 6)
    assert waits == [1, 2, 3, 1]
    assert [bool(record.exc_info) for record in caplog.records] == [False, True, True, True]
    assert {vars(record)["volume"] for record in caplog.records} == {"a"}


async def test_a_cache_that_stays_behind_is_asked_less_and_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its watch may be refused while all else is answered. What it shows in the end is looked at at once."""
    waits: list[float] = []
    up_to_date = False

    async def handle(key: str) -> None:
        if not up_to_date:
            queue.catch_up(key)

    async with working(handle) as queue:
        later = queue.add_after

        def note(key: str, seconds: float) -> None:
            waits.append(seconds)
            later(key, seconds / 1000)

        monkeypatch.setattr(queue, "add_after", note)
        queue.add("key")
        await until(lambda: len(waits) >= 9)
        assert all(0.1 * 2**number <= wait <= 0.12 * 2**number for number, wait in enumerate(waits[:9]))
        up_to_date = True
        queue.add("key")
        await drained(queue)
        up_to_date = False
        before = len(waits)
        queue.add("key")
        await until(lambda: len(waits) > before)
        assert waits[before] <= 0.12, "it is counted anew"


async def test_later_means_the_earliest_time_asked_for() -> None:
    gate = Gate()
    gate.open.set()
    async with working(gate) as queue:
        queue.add_after("soon", 3600)
        queue.add_after("soon", 0.001)
        queue.add_after("soon", 3600)
        queue.add_after("now", 3600)
        queue.add("now")
        await until(lambda: gate.begun == ["now", "soon"])
        queue.add("last")
        await drained(queue)
    assert gate.begun == ["now", "soon", "last"]


async def test_cancelled_work_stands_in_the_queue_again() -> None:
    gate = Gate()
    queue = WorkQueue(gate, parallelism=2)
    task = asyncio.create_task(queue.run())
    queue.add("a")
    queue.add("b")
    await until(lambda: gate.begun == ["a", "b"])
    queue.add("c")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert queue.depth == 3
    gate.open.set()
    task = asyncio.create_task(queue.run())
    await drained(queue)
    assert sorted(gate.begun) == ["a", "a", "b", "b", "c"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_waits_grow_to_their_limit_and_jitter_only_adds() -> None:
    plain = Backoff(first=0.5, factor=2, limit=300, jitter=0)
    assert [plain.delay(n) for n in (1, 2, 3, 10, 11, 10_000)] == [0.5, 1, 2, 256, 300, 300]
    assert all(300 <= Backoff().delay(99) <= 360 for _ in range(20))


async def test_what_failed_is_tried_at_once_when_what_it_waited_for_is_there() -> None:
    asked: list[str] = []

    async def fail(key: str) -> None:
        asked.append(key)
        if len(asked) < 4:
            raise Conflict(409, "Conflict", "because")

    async with working(fail, backoff=Backoff(first=60, factor=2)) as queue:
        queue.add("failed")
        queue.add_after("later", 60)
        for times in (1, 2, 3, 4):
            await until(lambda times=times: len(asked) == times)  # type: ignore[misc]
            await drained(queue)
            queue.hurry()
        await drained(queue)
    assert asked == ["failed"] * 4


async def test_one_key_asks_for_all_whether_the_api_server_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait as long as they would, and go on when it is answered: nobody asks a server that is away a
    thousand times."""
    monkeypatch.setattr("kube.workqueue._PROBE", (0.01, 0.01))
    away = True
    asked: list[str] = []
    done: set[str] = set()

    async def ask(key: str) -> None:
        asked.append(key)
        if away:
            try:
                raise Unreachable(0, "", "nobody answers")
            except Unreachable as error:
                raise OSError("in the caller's words") from error
        done.add(key)

    keys = {f"key-{number}" for number in range(5)}
    async with working(ask, backoff=Backoff(first=600)) as queue:
        for key in sorted(keys):
            queue.add(key)
        await until(lambda: len(asked) >= 15)
        assert sum(asked.count(key) > 1 for key in keys) == 1
        away = False
        await until(lambda: done == keys)


async def test_a_group_that_waits_for_something_holds_up_no_other() -> None:
    gate = Gate()
    queue = WorkQueue(gate, parallelism=2, group=lambda key: key[0])
    task = asyncio.create_task(queue.run())
    for key in ("a1", "a2", "a3", "a4", "b1", "b2", "b3"):
        queue.add(key)
    await until(lambda: gate.begun == ["a1", "a2", "b1", "b2"])
    assert queue.depth == 3
    gate.open.set()
    await drained(queue)
    assert sorted(gate.begun) == ["a1", "a2", "a3", "a4", "b1", "b2", "b3"]
    task.cancel()
    await asyncio.wait({task})


class Counted(dict[str, None]):
    """Counts the keys that were looked at."""

    looks = 0

    def __iter__(self) -> Iterator[str]:
        for key in super().__iter__():
            self.looks += 1
            yield key


async def test_a_burst_of_thousands_is_not_gone_through_for_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    number = 3_000
    handled = 0

    async def handle(_: str) -> None:
        nonlocal handled
        handled += 1

    async with working(handle, parallelism=1) as queue:
        waiting = Counted()
        monkeypatch.setattr(queue, "_waiting", waiting)
        for key in range(number):
            queue.add(str(key))
        await until(lambda: handled == number)
    assert number <= waiting.looks < 3 * number
