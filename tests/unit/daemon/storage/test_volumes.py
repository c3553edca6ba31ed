"""Decisions about volumes, over a backend in memory that counts and delays what it is asked. What touches disks and
mounts is on the node floor."""

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract.parameters import VolumeParameters
from contract.volume import DELETE, RETAIN
from daemon.errors import BackendFailed, Damaged, Foreign, Lost, NoSpace, PoolMissing, VolumeNotFound
from daemon.storage.backend import StaleData
from daemon.storage.freespace import Reservation
from daemon.storage.inventory import DamagedVolume, Inventory, Pool, UnavailablePool, Volume
from daemon.storage.record import Record, VolumeSpec, VolumeState
from daemon.storage.thinpools import PoolExtension
from daemon.storage.volumes import Volumes
from host import filesystem
from tests.agreeing import CLUSTER, Agreeing

pytestmark = pytest.mark.virtual_time

POOL = "pool"


class Memory:
    """A backend of folders, none of which exist."""

    reserve = 0

    def __init__(self, size: int = 1000) -> None:
        self.size = size
        self.volumes: dict[str, Volume] = {}
        self.damaged: list[DamagedVolume] = []
        self.unavailable: list[UnavailablePool] = []
        self.calls: list[str] = []
        self.running = self.most_running = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Exception | None = None

    def on_device(self, pool: str) -> bool:
        return False

    def pool_of(self, parameters: VolumeParameters) -> str:
        return POOL

    async def establish(self) -> None:
        pass

    async def inspect(self) -> Inventory:
        await self._called("inspect")
        ours = sum(volume.size for volume in self.volumes.values())
        return Inventory(
            tuple(self.volumes.values()),
            (Pool(POOL, self.size, self.size - ours, ours, granularity=10, reserve=self.reserve),),
            (),
            tuple(self.damaged),
            unavailable=tuple(self.unavailable),
        )

    async def create(self, spec: VolumeSpec) -> Volume:
        volume = Volume(spec.record(VolumeState.READY), -(-spec.size // 10) * 10, POOL)
        self.volumes[spec.pv] = volume
        await self._called("create")
        return volume

    async def clone_sharing_blocks(self, spec: VolumeSpec, source: Volume) -> Volume | None:
        assert self.volumes[source.pv] == source
        return await self.create(spec)

    def snapshot_storage(self, pool: str) -> None:
        return None

    async def reread(self, volume: Volume) -> Volume:
        if volume.pv not in self.volumes:
            raise VolumeNotFound(volume.pv)
        return self.volumes[volume.pv]

    async def rewrite(self, volume: Volume, record: Record) -> Volume:
        await self._called("rewrite")
        self.volumes[volume.pv] = replace(volume, record=record)
        return self.volumes[volume.pv]

    @contextlib.asynccontextmanager
    async def device(self, volume: Volume) -> AsyncIterator[Path]:
        yield Path("/nowhere", volume.pv)

    def opened(self, volume: Volume, likely: int = 0) -> AbstractContextManager[Path]:
        return contextlib.nullcontext(Path("/nowhere", volume.pv))

    async def extend(self, volume: Volume, size: int) -> Volume:
        await self._called("extend")
        self.volumes[volume.pv] = replace(volume, size=max(volume.size, -(-size // 10) * 10))
        return self.volumes[volume.pv]

    async def stale_data(self, volume: Volume) -> StaleData:
        return StaleData.CLEAN

    async def back_up(self) -> None:
        await self._called("back_up")

    async def extend_pool(self, pool: Pool, more: PoolExtension) -> None:
        await self._called("extend_pool")

    async def remove(self, volume: Volume) -> None:
        await self._called("remove")
        del self.volumes[volume.pv]

    async def _called(self, name: str) -> None:
        self.calls.append(name)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if name != "inspect":
                await self.gate.wait()
                await asyncio.sleep(0)
                if self.failure:
                    raise self.failure
        finally:
            self.running -= 1


def spec(pv: str = "pv", size: int = 100, uid: str = "uid", policy: str = DELETE) -> VolumeSpec:
    return VolumeSpec(pv, uid, size, policy, VolumeParameters(), cluster=CLUSTER)


async def until_nothing_moves() -> None:
    """All wait for a gate: time passes only when nobody has anything to do."""
    await asyncio.sleep(1)


def begun(task: asyncio.Task[Any]) -> bool:
    """Whether it ran at all; a task that is cancelled before it did has tried nothing."""
    coroutine = task.get_coro()
    assert inspect.iscoroutine(coroutine)
    return inspect.getcoroutinestate(coroutine) != inspect.CORO_CREATED


@pytest.fixture
def backend() -> Memory:
    return Memory()


@pytest.fixture
async def volumes(backend: Memory, tmp_path: Path) -> Volumes:
    volumes = Volumes(backend, tmp_path, Agreeing())
    await volumes.start()
    return volumes


async def test_those_who_want_the_same_volume_join_one_run(backend: Memory, tmp_path: Path) -> None:
    runs: list[str] = []
    volumes = Volumes(backend, tmp_path, Agreeing(), observe=lambda kind, outcome, seconds: runs.append(outcome))
    await volumes.start()
    backend.gate.clear()
    callers = [asyncio.create_task(volumes.prepare(spec())) for _ in range(20)]
    await until_nothing_moves()
    assert all(begun(caller) for caller in callers)
    for caller in callers[:10]:
        caller.cancel()
    await asyncio.wait(callers[:10])
    assert backend.running == 1, "those who gave up did not break it off"
    backend.gate.set()
    assert {volume.size for volume in await asyncio.gather(*callers[10:])} == {100}
    assert runs == ["success"]
    assert (await volumes.prepare(spec())).size == 100
    assert backend.calls == ["inspect", "create"]


async def test_many_volumes_at_once_load_the_disks_in_bounds(backend: Memory, tmp_path: Path) -> None:
    volumes = Volumes(backend, tmp_path, Agreeing(), parallelism=3)
    await volumes.start()
    await asyncio.gather(*(volumes.prepare(spec(f"pv-{number}", 10)) for number in range(50)))
    assert backend.most_running == 3
    assert backend.calls == ["inspect", *["create"] * 50]
    (pool,) = volumes.inventory.pools
    assert (pool.free, pool.ours) == (500, 500)


async def test_the_disks_have_their_turns_back_before_volumes_are_noted_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that many of them go with one command."""
    formatting, most = 0, 0

    class Formatted(Memory):
        noting = 0

        async def create(self, spec: VolumeSpec) -> Volume:
            self.volumes[spec.pv] = replace(await super().create(spec), record=spec.record(VolumeState.FORMATTING))
            return self.volumes[spec.pv]

        async def rewrite(self, volume: Volume, record: Record) -> Volume:
            self.noting += 1
            await noted.wait()
            return await super().rewrite(volume, record)

    async def make(*_: object) -> None:
        nonlocal formatting, most
        formatting += 1
        most = max(most, formatting)
        await asyncio.sleep(0)
        formatting -= 1

    monkeypatch.setattr(filesystem, "make", make)
    backend, noted = Formatted(), asyncio.Event()
    volumes = Volumes(backend, tmp_path, Agreeing(), parallelism=3)
    await volumes.start()
    callers = [asyncio.create_task(volumes.prepare(spec(f"pv-{number}", 10))) for number in range(10)]
    await until_nothing_moves()
    assert backend.noting == 10
    assert most == 3, "the disks themselves are loaded in bounds"
    noted.set()
    assert {volume.record.state for volume in await asyncio.gather(*callers)} == {VolumeState.READY}


async def test_a_burst_takes_no_more_than_there_is(backend: Memory, tmp_path: Path) -> None:
    reservations = [Reservation("promised", POOL, 200)]
    volumes = Volumes(backend, tmp_path, Agreeing(), reservations=lambda: reservations)
    backend.reserve = 100
    await volumes.start()
    outcomes = await asyncio.gather(
        *(volumes.prepare(spec(f"pv-{number}", 100)) for number in range(20)), return_exceptions=True
    )
    assert sum(isinstance(outcome, Volume) for outcome in outcomes) == 7
    refused = [outcome for outcome in outcomes if isinstance(outcome, NoSpace)]
    assert len(refused) == 13
    assert "needs 100 bytes of pool on this node, which has 0 bytes left for it" in str(refused[-1])
    assert (await volumes.prepare(spec("promised", 200))).size == 200


async def test_space_that_others_freed_is_seen_before_it_is_refused(volumes: Volumes, backend: Memory) -> None:
    await volumes.prepare(spec("first", 1000))
    with pytest.raises(NoSpace):
        await volumes.prepare(spec("second"))
    del backend.volumes["first"]
    await volumes.prepare(spec("second"))


@pytest.mark.parametrize(
    ("state", "made", "policy"),
    [
        (VolumeState.FORMATTING, False, DELETE),
        (VolumeState.COPYING, False, DELETE),
        (VolumeState.READY, False, RETAIN),
        (VolumeState.ERASING, False, RETAIN),
        (VolumeState.FORMATTING, True, RETAIN),
    ],
)
async def test_what_was_never_whole_is_not_retained(
    volumes: Volumes, backend: Memory, state: VolumeState, made: bool, policy: str
) -> None:
    """Nobody could ever use it, and nobody would ever remove it."""
    backend.volumes["pv"] = Volume(spec(policy=RETAIN).record(state), 100, POOL)
    await volumes.refresh()
    await volumes.retain("pv", "uid", POOL, made=made)
    assert backend.volumes["pv"].record.policy == policy
    assert backend.volumes["pv"].record.state is state


async def test_a_volume_of_another_uid_is_refused(volumes: Volumes, backend: Memory) -> None:
    await volumes.prepare(spec(uid="theirs"))
    for attempt in (volumes.prepare, volumes.expand):
        with pytest.raises(Foreign, match="does not show its data"):
            await attempt(spec(uid="mine", size=200))
    await volumes.reclaim("pv", "mine", POOL)
    await volumes.retain("pv", "mine", POOL, made=False)
    with pytest.raises(Foreign, match=r"noted as that of uid theirs.*adopt pv"):
        await volumes.retain("pv", "mine", POOL, made=True)
    assert backend.volumes["pv"].record == spec(uid="theirs").record(VolumeState.READY)
    assert backend.volumes["pv"].size == 100


async def test_a_volume_is_not_gone_while_its_pool_is_missing(volumes: Volumes, backend: Memory) -> None:
    with pytest.raises(PoolMissing, match="bring its disks back"):
        await volumes.reclaim("pv", "uid", "another pool")
    with pytest.raises(PoolMissing, match="bring its disks back"):
        await volumes.retain("pv", "uid", "another pool", made=False)


async def test_nor_is_it_gone_while_a_part_of_its_pool_can_not_be_seen(volumes: Volumes, backend: Memory) -> None:
    backend.unavailable = [UnavailablePool(POOL, "a disk is missing: bring it back")]
    await volumes.refresh()
    for attempt in (
        volumes.reclaim("pv", "uid", POOL),
        volumes.reclaim("pv", "uid", f"{POOL}/thin"),
        volumes.retain("pv", "uid", POOL, made=False),
        volumes.prepare(replace(spec(), made=True)),
    ):
        with pytest.raises(PoolMissing, match="a disk is missing: bring it back"):
            await attempt


async def test_retain_is_not_done_before_it_is_noted(volumes: Volumes, backend: Memory) -> None:
    """One that was made and is not found is somewhere else, whatever its pool shows."""
    await volumes.retain("pv", "uid", POOL, made=False)
    with pytest.raises(PoolMissing, match="bring back the disk that it lies on"):
        await volumes.retain("pv", "uid", POOL, made=True)
    await volumes.prepare(spec())
    await volumes.retain("pv", "uid", POOL, made=True)
    assert backend.volumes["pv"].record.policy == RETAIN


async def test_a_volume_that_was_made_and_is_not_there_is_lost_and_not_made_anew(
    volumes: Volumes, backend: Memory
) -> None:
    once_made = replace(spec(), made=True)
    with pytest.raises(Lost, match="bring back the disks"):
        await volumes.prepare(once_made)
    assert backend.volumes == {}
    await volumes.prepare(spec())
    assert (await volumes.prepare(once_made)).record.state is VolumeState.READY


async def test_a_damaged_record_is_left_to_a_person(volumes: Volumes, backend: Memory) -> None:
    backend.damaged = [DamagedVolume("pv", POOL, "it has no uid")]
    await volumes.refresh()
    with pytest.raises(Damaged, match="it has no uid"):
        await volumes.prepare(spec())
    with pytest.raises(Damaged, match="it has no uid"):
        await volumes.reclaim("pv", "uid", POOL)
    assert backend.volumes == {}


async def test_a_changed_policy_is_remembered_with_the_volume(volumes: Volumes, backend: Memory) -> None:
    await volumes.prepare(spec())
    await volumes.prepare(spec(policy=RETAIN))
    assert backend.volumes["pv"].record.policy == RETAIN
    await volumes.prepare(spec(policy=DELETE))
    await volumes.retain("pv", "uid", POOL, made=True)
    assert backend.volumes["pv"].record.policy == RETAIN
    assert backend.calls.count("rewrite") == 3


async def test_after_a_failure_the_node_is_asked_and_not_memory(volumes: Volumes, backend: Memory) -> None:
    backend.failure = BackendFailed("no answer in time")
    with pytest.raises(BackendFailed, match="no answer"):
        await volumes.prepare(spec())
    backend.failure = None
    assert (await volumes.prepare(spec())).size == 100  # it was made all the same
    assert backend.calls == ["inspect", "create", "inspect"]


async def test_growing(volumes: Volumes, backend: Memory) -> None:
    await volumes.prepare(spec(size=100))
    assert (await volumes.expand(spec(size=255))).size == 260
    assert (await volumes.expand(spec(size=120))).size == 260
    with pytest.raises(NoSpace, match="needs 750 bytes of pool on this node, which has 740 bytes left"):
        await volumes.expand(spec(size=1010))
    assert backend.volumes["pv"].size == volumes.inventory.volumes[0].size == 260  # type: ignore[index]


async def test_neither_creation_nor_growth_takes_from_the_reserve(backend: Memory, tmp_path: Path) -> None:
    backend.reserve = 200
    volumes = Volumes(backend, tmp_path, Agreeing())
    await volumes.start()
    await volumes.prepare(spec(size=500))
    with pytest.raises(NoSpace, match="needs 310 bytes of pool on this node, which has 300 bytes left"):
        await volumes.prepare(spec("other", 310))
    with pytest.raises(NoSpace, match="needs 310 bytes of pool on this node, which has 300 bytes left"):
        await volumes.expand(spec(size=810))
    assert (await volumes.expand(spec(size=800))).size == 800


async def test_who_grows_takes_nothing_that_others_were_promised(backend: Memory, tmp_path: Path) -> None:
    reservations = [Reservation("a", POOL, 400), Reservation("b", POOL, 600)]
    volumes = Volumes(backend, tmp_path, Agreeing(), reservations=lambda: reservations)
    await volumes.start()
    await volumes.prepare(spec("a", 400))
    with pytest.raises(NoSpace, match="needs 200 bytes of pool on this node, which has 0 bytes left"):
        await volumes.extend(spec("a", 600))
    await volumes.prepare(spec("b", 600))
    await volumes.reclaim("b", "uid", POOL)
    reservations.pop()
    assert (await volumes.extend(spec("a", 600))).size == 600


async def test_reclaimed_space_is_there_for_the_next(volumes: Volumes, backend: Memory) -> None:
    await volumes.prepare(spec(size=1000))
    await volumes.reclaim("pv", "uid", POOL)
    await volumes.reclaim("pv", "uid", POOL)
    assert (await volumes.prepare(spec("next", 1000))).size == 1000
    assert list(backend.volumes) == ["next"]


async def test_who_says_gone_has_looked(volumes: Volumes, backend: Memory) -> None:
    backend.volumes["pv"] = Volume(spec().record(VolumeState.READY), 100, POOL)
    await volumes.reclaim("pv", "uid", POOL)
    assert backend.volumes == {}


async def test_a_node_that_answered_nothing_at_start_is_asked_again(backend: Memory, tmp_path: Path) -> None:
    volumes = Volumes(backend, tmp_path, Agreeing())
    assert (await volumes.prepare(spec())).size == 100
    assert volumes.inventory.volume("pv")


async def test_operations_are_observed(backend: Memory, tmp_path: Path) -> None:
    seen = []
    volumes = Volumes(
        backend, tmp_path, Agreeing(), observe=lambda kind, outcome, seconds: seen.append((kind, outcome))
    )
    await volumes.start()
    await volumes.prepare(spec())
    with pytest.raises(NoSpace):
        await volumes.expand(spec(size=9999))
    await volumes.reclaim("pv", "uid", POOL)
    assert seen == [("prepare", "success"), ("expand", "NoSpace"), ("reclaim", "success")]


async def test_close_waits_for_what_nobody_waits_for(volumes: Volumes, backend: Memory) -> None:
    backend.gate.clear()
    caller = asyncio.create_task(volumes.prepare(spec()))
    await until_nothing_moves()
    assert backend.calls[-1] == "create"
    caller.cancel()
    closed = asyncio.create_task(volumes.close())
    await until_nothing_moves()
    assert caller.cancelled()
    assert begun(closed)
    assert not closed.done()
    backend.gate.set()
    await closed
    assert volumes.inventory.volume("pv")
