"""Work that is done again and again, and at once when it is asked for."""

import asyncio
import itertools

import pytest

from service.lifecycle import PeriodicLoop
from tests.waiting import until


async def test_it_is_done_at_once_and_again_when_its_period_is_over() -> None:
    done: list[float] = []
    clock = asyncio.get_running_loop().time

    async def work() -> None:
        done.append(clock())

    loop = asyncio.create_task(PeriodicLoop(work, lambda: 0.05).run())
    await until(lambda: len(done) == 3)
    loop.cancel()
    assert all(later - earlier >= 0.04 for earlier, later in itertools.pairwise(done))


async def test_a_trigger_ends_the_wait_and_one_during_the_work_is_not_lost() -> None:
    done: list[int] = []

    async def work() -> None:
        done.append(len(done))
        if len(done) == 1:
            periodic.trigger()

    periodic = PeriodicLoop(work, lambda: 3600.0)
    loop = asyncio.create_task(periodic.run())
    await until(lambda: len(done) == 2)
    periodic.trigger()
    await until(lambda: len(done) == 3)
    await asyncio.sleep(0)
    assert not loop.done()
    loop.cancel()


async def test_what_the_work_raises_ends_it() -> None:
    async def work() -> None:
        raise ValueError("the work's")

    with pytest.raises(ValueError, match="the work's"):
        await PeriodicLoop(work, lambda: 1.0).run()
