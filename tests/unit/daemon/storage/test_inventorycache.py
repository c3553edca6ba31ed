"""The inventory in memory, when looks and changes overlap."""

import asyncio
from dataclasses import replace
from typing import cast

import pytest

from contract.volume import DELETE
from daemon.errors import BackendFailed
from daemon.storage.backend import Backend
from daemon.storage.inventory import Inventory, Pool, UnavailablePool, Volume
from daemon.storage.inventorycache import InventoryCache
from daemon.storage.record import Record, VolumeState


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
def cache(answers: Answers) -> InventoryCache:
    return InventoryCache(cast(Backend, answers))


async def begun(cache: InventoryCache) -> asyncio.Task[None]:
    look = asyncio.create_task(cache.refresh())
    await asyncio.sleep(0)
    return look


async def looked(cache: InventoryCache, answers: Answers, inventory: Inventory) -> None:
    look = await begun(cache)
    answers.looks[-1].set_result(inventory)
    await look


async def test_a_look_does_not_undo_a_change_that_it_may_have_missed(cache: InventoryCache, answers: Answers) -> None:
    await looked(cache, answers, inventory(volume("old"), volume("stale")))
    look = await begun(cache)
    with cache.changing("new"):
        cache.put(volume("new"), taken=10)
    with cache.changing("old"):
        cache.remove(volume("old"))
    answers.looks[-1].set_result(inventory(volume("old"), volume("other")))
    await look
    assert {known.pv for known in cache.inventory.volumes} == {"new", "other"}
    assert cache.inventory.pools == inventory(volume("stale"), volume("new")).pools


async def test_a_change_in_progress_is_not_counted_twice(cache: InventoryCache, answers: Answers) -> None:
    await looked(cache, answers, inventory())
    with cache.changing("new"):
        await looked(cache, answers, inventory(volume("new", VolumeState.FORMATTING)))
        cache.put(volume("new"), taken=10)
    assert cache.inventory == inventory(volume("new"))


async def test_snapshots_are_cached_apart_and_survive_a_stale_inspection(
    cache: InventoryCache, answers: Answers
) -> None:
    made, gone = (Volume(volume("pv").record.of_snapshot(), 10, "pool") for _ in range(2))
    both = inventory(volume("pv"), gone)
    await looked(cache, answers, replace(both, volumes=(volume("pv"),), snapshots=(gone,)))
    look = await begun(cache)
    with cache.changing(made.pv), cache.changing(gone.pv):
        cache.put(made, taken=10)
        cache.remove(gone)
    answers.looks[-1].set_result(replace(both, volumes=(volume("pv"),), snapshots=(gone,)))
    await look
    assert cache.inventory.volumes == (volume("pv"),)
    assert cache.inventory.snapshots == (made,)
    assert cache.inventory.pools == both.pools


async def test_a_mirror_gives_back_both_of_its_legs(cache: InventoryCache, answers: Answers) -> None:
    mirror = replace(volume("mirror"), overhead=12)
    await looked(cache, answers, replace(inventory(mirror), pools=(Pool("pool", 100, 78, 22, granularity=1),)))
    with cache.changing("mirror"):
        cache.remove(mirror)
    assert cache.inventory == inventory()


async def test_those_who_ask_during_a_look_share_the_next_one(cache: InventoryCache, answers: Answers) -> None:
    first = await begun(cache)
    waiting = [await begun(cache) for _ in range(5)]
    answers.looks[0].set_result(inventory())
    await first
    await asyncio.sleep(0)
    answers.looks[1].set_result(inventory(volume("seen")))
    await asyncio.gather(*waiting)
    assert len(answers.looks) == 2
    assert cache.inventory.volume("seen")


async def test_a_look_that_failed_serves_nobody(cache: InventoryCache, answers: Answers) -> None:
    first = await begun(cache)
    waiting = [await begun(cache) for _ in range(2)]
    answers.looks[0].set_result(inventory())
    await first
    await asyncio.sleep(0)
    answers.looks[1].set_exception(BackendFailed("hung"))
    with pytest.raises(BackendFailed):
        await waiting[0]
    await asyncio.sleep(0)
    answers.looks[2].set_result(inventory(volume("seen")))
    await waiting[1]
    assert cache.inventory.volume("seen")


async def test_a_volume_in_doubt_is_looked_at(cache: InventoryCache, answers: Answers) -> None:
    await looked(cache, answers, inventory(volume("pv")))
    assert await cache.volume("pv") == volume("pv")
    with pytest.raises(BackendFailed), cache.changing("pv"):
        raise BackendFailed("in the middle")
    asked = asyncio.create_task(cache.volume("pv"))
    await asyncio.sleep(0)
    grown = replace(volume("pv"), size=20)
    answers.looks[-1].set_result(inventory(grown))
    assert await asked == grown
    assert await cache.volume("pv") == grown
    assert len(answers.looks) == 2


async def test_of_a_pool_that_gives_no_answer_what_is_known_is_served_without_room(
    cache: InventoryCache, answers: Answers
) -> None:
    look = await begun(cache)
    answers.looks[-1].set_result(inventory(volume("a")))
    await look
    cache.put(volume("made-since"))
    look = await begun(cache)
    answers.looks[-1].set_result(Inventory(unavailable=[UnavailablePool("pool", "it hangs", unresponsive=True)]))
    await look
    assert {each.pv for each in cache.inventory.volumes} == {"a", "made-since"}
    (pool,) = cache.inventory.pools
    assert pool.blocked == "it hangs"
    assert cache.inventory.why_unavailable("pool") == "it hangs"
    look = await begun(cache)
    answers.looks[-1].set_result(inventory(volume("a")))
    await look
    assert cache.inventory == inventory(volume("a"))


async def test_what_was_known_of_a_pool_that_gives_no_answer_ends_no_doubt(
    cache: InventoryCache, answers: Answers
) -> None:
    look = await begun(cache)
    answers.looks[-1].set_result(inventory(volume("a")))
    await look
    with pytest.raises(BackendFailed), cache.changing("a"):
        raise BackendFailed("half done, or all of it")
    asked = asyncio.create_task(cache.volume("a"))
    await asyncio.sleep(0)
    answers.looks[-1].set_result(Inventory(unavailable=[UnavailablePool("pool", "it hangs", unresponsive=True)]))
    with pytest.raises(BackendFailed, match="nobody can see how far volume a was changed: it hangs"):
        await asked
    asked = asyncio.create_task(cache.volume("a"))
    await asyncio.sleep(0)
    answers.looks[-1].set_result(inventory(volume("a", VolumeState.ERASING)))
    assert await asked == volume("a", VolumeState.ERASING)
