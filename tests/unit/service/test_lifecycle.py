"""Parts that fail are begun anew, and readiness says so."""

import asyncio
import errno
import logging

import pytest

from service.lifecycle import Supervisor
from tests.waiting import until


class Asked(Exception):
    """Meant to end the program."""


async def test_a_part_that_fails_is_begun_anew_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    supervisor, begun, turns = Supervisor(first=0.001), [], 0

    async def failing() -> None:
        begun.append(supervisor.problem)
        if len(begun) <= 3:
            raise OSError(errno.EMFILE, "Too many open files")
        await asyncio.Event().wait()

    async def turning() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as parts:
        tasks = [parts.create_task(supervisor.keep(part.__name__, part)) for part in (failing, turning)]
        await until(lambda: len(begun) == 4)
        seen = turns
        await until(lambda: turns > seen)
        for task in tasks:
            task.cancel()
    assert begun[0] == ""
    assert begun[1] == "failing failed and was begun anew (OSError: [Errno 24] Too many open files)"
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 3


async def test_what_is_meant_to_end_the_program_ends_it() -> None:
    async def changed() -> None:
        raise Asked("start over")

    with pytest.raises(Asked):
        await Supervisor(fatal=(Asked,)).keep("node", changed)


async def test_a_part_that_runs_well_again_is_well_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.lifecycle._WELL", 0.01)
    supervisor, begun = Supervisor(first=0.001), []

    async def part() -> None:
        begun.append(supervisor.problem)
        if len(begun) == 1:
            raise ValueError("a fault of our own")
        await asyncio.Event().wait()

    task = asyncio.create_task(supervisor.keep("part", part))
    await until(lambda: len(begun) == 2 and not supervisor.problem)
    assert begun[1] == "part failed and was begun anew (ValueError: a fault of our own)"
    task.cancel()
