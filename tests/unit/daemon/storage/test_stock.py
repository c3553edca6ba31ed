"""The inventory in memory, when looks and changes overlap."""

import asyncio
from dataclasses import replace
from typing import cast

import pytest

from contract.volume import DELETE
from daemon.errors import BackendFailed
from daemon.storage.backend import Backend
from daemon.storage.inventory import Inventory, Pool, Volume
from daemon.storage.record import Record, VolumeState
from daemon.storage.stock import Stock


def volume(pv: str, state: VolumeState = VolumeState.READY, size: int = 10) -> Volume:
    return Volume(Record(pv, "uid", DELETE, "ext4", state), size, "pool")


def inventory(*volumes: Volume) -> Inventory:
    ours = sum(volume.size for volume in volumes)
    return Inventory(volumes, (Pool("pool", 100, 100 - ours, ours, granularity=1),))


class Answers:
    """A backend whose looks end when the test says so."""

    def __init__(self) -> None:
        self.looks: list[asyncio.Future[Inventory]] = []

    async def inspect(self) -> Inventory:
        self.looks.append(asyncio.get_running_loop().create_future())
        return await self.looks[-1]


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def stock(answers: Answers) -> Stock:
    return Stock(cast(Backend, answers))


async def begun(stock: Stock) -> asyncio.Task[None]:
    look = asyncio.create_task(stock.look())
    await asyncio.sleep(0)
    return look


async def looked(stock: Stock, answers: Answers, found: Inventory) -> None:
    look = await begun(stock)
    answers.looks[-1].set_result(found)
    await look


async def test_a_look_does_not_undo_a_change_that_it_may_have_missed(stock: Stock, answers: Answers) -> None:
    await looked(stock, answers, inventory(volume("old"), volume("stale")))
    look = await begun(stock)
    with stock.changing("new"):
        stock.put(volume("new"), taken=10)
    with stock.changing("old"):
        stock.drop(volume("old"))
    answers.looks[-1].set_result(inventory(volume("old"), volume("other")))
    await look
    assert {known.pv for known in stock.inventory.volumes} == {"new", "other"}
    assert stock.inventory.pools == inventory(volume("stale"), volume("new")).pools


async def test_a_change_in_progress_is_not_counted_twice(stock: Stock, answers: Answers) -> None:
    await looked(stock, answers, inventory())
    with stock.changing("new"):
        await looked(stock, answers, inventory(volume("new", VolumeState.FORMATTING)))
        stock.put(volume("new"), taken=10)
    assert stock.inventory == inventory(volume("new"))


async def test_snapshots_are_kept_apart_and_a_look_overtakes_them_no_more_than_volumes(
    stock: Stock, answers: Answers
) -> None:
    made, gone = (Volume(volume("pv").record.of_snapshot(), 10, "pool") for _ in range(2))
    both = inventory(volume("pv"), gone)
    await looked(stock, answers, replace(both, volumes=(volume("pv"),), snapshots=(gone,)))
    look = await begun(stock)
    with stock.changing(made.pv), stock.changing(gone.pv):
        stock.put(made, taken=10)
        stock.drop(gone)
    answers.looks[-1].set_result(replace(both, volumes=(volume("pv"),), snapshots=(gone,)))
    await look
    assert stock.inventory.volumes == (volume("pv"),)
    assert stock.inventory.snapshots == (made,)
    assert stock.inventory.pools == both.pools


async def test_a_mirror_gives_back_both_of_its_legs(stock: Stock, answers: Answers) -> None:
    mirror = replace(volume("mirror"), overhead=12)
    await looked(stock, answers, replace(inventory(mirror), pools=(Pool("pool", 100, 78, 22, granularity=1),)))
    with stock.changing("mirror"):
        stock.drop(mirror)
    assert stock.inventory == inventory()


async def test_those_who_ask_during_a_look_share_the_next_one(stock: Stock, answers: Answers) -> None:
    first = await begun(stock)
    waiting = [await begun(stock) for _ in range(5)]
    answers.looks[0].set_result(inventory())
    await first
    await asyncio.sleep(0)
    answers.looks[1].set_result(inventory(volume("seen")))
    await asyncio.gather(*waiting)
    assert len(answers.looks) == 2
    assert stock.inventory.volume("seen")


async def test_a_look_that_failed_serves_nobody(stock: Stock, answers: Answers) -> None:
    first = await begun(stock)
    waiting = [await begun(stock) for _ in range(2)]
    answers.looks[0].set_result(inventory())
    await first
    await asyncio.sleep(0)
    answers.looks[1].set_exception(BackendFailed("hung"))
    with pytest.raises(BackendFailed):
        await waiting[0]
    await asyncio.sleep(0)
    answers.looks[2].set_result(inventory(volume("seen")))
    await waiting[1]
    assert stock.inventory.volume("seen")


async def test_a_volume_in_doubt_is_looked_at(stock: Stock, answers: Answers) -> None:
    await looked(stock, answers, inventory(volume("pv")))
    assert await stock.volume("pv") == volume("pv")
    with pytest.raises(BackendFailed), stock.changing("pv"):
        raise BackendFailed("in the middle")
    asked = asyncio.create_task(stock.volume("pv"))
    await asyncio.sleep(0)
    grown = replace(volume("pv"), size=20)
    answers.looks[-1].set_result(inventory(grown))
    assert await asked == grown
    assert await stock.volume("pv") == grown
    assert len(answers.looks) == 2
