"""What a thin pool's fullness means, who is told, and what it gets from its group."""

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.parameters import VolumeParameters
from contract.volume import ObjectReference
from daemon.cluster.capacity import AvailableCapacity, available_capacity
from daemon.cluster.events import NodeEvents
from daemon.cluster.thinpoolmonitor import ThinPoolMonitor
from daemon.errors import BackendFailed
from daemon.storage.inventory import Inventory, Pool, ThinPoolUsage, Volume
from daemon.storage.record import Record, VolumeState
from daemon.storage.thinpools import Level, PoolExtension, autoextend_percent, level, monitored, pool_extension
from daemon.storage.volumes import Volumes
from kube.events import Recorder

MIB = 2**20
EXTENT = 4 * MIB
NODE = ObjectReference("Node", "v1", "", "node", "node")
GROUP = Pool("vg", 1000 * EXTENT, 500 * EXTENT, 0, EXTENT)


def pool(data: float | None = 0.0, metadata: float | None = 0.0, name: str = "vg/pool", ours: int = 0) -> Pool:
    return Pool(name, 100 * EXTENT, 10 * EXTENT, ours, EXTENT, ThinPoolUsage(data, metadata, 2 * EXTENT))


@pytest.mark.parametrize(
    ("seen", "before", "now"),
    [
        (pool(79.99), Level.OK, Level.OK),
        (pool(80), Level.OK, Level.WARNING),
        (pool(3, 80), Level.OK, Level.WARNING),
        (pool(95, 3), Level.OK, Level.CRITICAL),
        (pool(100), Level.WARNING, Level.CRITICAL),
        (pool(78), Level.WARNING, Level.WARNING),
        (pool(76.9), Level.WARNING, Level.OK),
        (pool(93), Level.CRITICAL, Level.CRITICAL),
        (pool(93), Level.WARNING, Level.WARNING),
        (pool(91), Level.CRITICAL, Level.WARNING),
        (pool(5), Level.CRITICAL, Level.OK),
        (pool(None, None), Level.OK, Level.OK),
        (GROUP, Level.OK, Level.OK),
    ],
)
def test_levels(seen: Pool, before: Level, now: Level) -> None:
    assert level(seen, before) is now


@given(
    data=st.floats(0, 100),
    metadata=st.floats(0, 100),
    percent=st.integers(0, 100),
    spare=st.integers(-EXTENT, 200 * EXTENT),
)
def test_a_pool_is_extended_by_whole_extents_and_never_beyond_the_spare_ones(
    data: float, metadata: float, percent: int, spare: int
) -> None:
    got = pool_extension(pool(data, metadata), percent, spare)
    assert got.data % EXTENT == got.metadata % EXTENT == 0
    assert got.data == 0 or (data >= 80 and percent)
    assert got.metadata == 0 or (metadata >= 80 and percent)
    assert 0 <= got.taken <= max(spare, 0)
    if data >= 80 and spare >= 110 * EXTENT:
        assert got.data == percent * EXTENT


def test_metadata_comes_before_data() -> None:
    assert pool_extension(pool(90, 90), 50, 5 * EXTENT) == PoolExtension(3 * EXTENT, EXTENT)


def volume_in(pool: str, autoextend: int) -> Volume:
    record = Record("pvc-1", "uid", "Delete", "ext4", VolumeState.READY, thin_pool_autoextend=autoextend)
    return Volume(record, EXTENT, pool)


def test_a_pool_is_extended_by_the_most_that_any_of_its_classes_allows() -> None:
    others = [volume_in("vg/other", 50), volume_in("vg", 60)]
    assert autoextend_percent(pool(), others) == 0
    assert autoextend_percent(pool(), [*others, volume_in("vg/pool", 0)]) == 0
    assert autoextend_percent(pool(), [*others, volume_in("vg/pool", 10), volume_in("vg/pool", 20)]) == 20


def test_pools_of_the_nodes_own_system_are_left_alone() -> None:
    ours, system = pool(name="vg2/data", ours=EXTENT), pool(name="pve/data")
    assert monitored(Inventory((), (GROUP, pool(), ours, system)), {"vg/pool"}) == [pool(), ours]


def test_a_pool_that_is_nearly_full_offers_nothing() -> None:
    fine = available_capacity(pool(94), VolumeParameters(thin=True, overprovision_ratio=10.0), (), ())
    assert fine.available > 0
    assert available_capacity(
        pool(95), VolumeParameters(thin=True, overprovision_ratio=10.0), (), ()
    ) == AvailableCapacity(0, 0, 0)


class Node:
    """Volumes of which only the inventory counts, one volume in the pool; a pool that is enlarged has room."""

    def __init__(self, *pools: Pool, autoextend: int = 0) -> None:
        self._volume = volume_in("vg/pool", autoextend)
        self.inspected(*pools)
        self.gives: PoolExtension | Exception = PoolExtension()
        self.asked = 0

    def inspected(self, *pools: Pool) -> None:
        self.inventory = Inventory((self._volume,), pools)

    async def enlarge(self, name: str) -> PoolExtension:
        self.asked += 1
        if isinstance(self.gives, Exception):
            raise self.gives
        if self.gives.taken:
            self.inspected(pool(40, 4))
        return self.gives


class RecordedEvents:
    def __init__(self) -> None:
        self.words: list[tuple[str, str]] = []

    def warning(self, reference: ObjectReference, reason: str, message: str) -> None:
        assert reference is NODE
        self.words.append((reason, message))

    normal = warning

    def reasons(self) -> list[str]:
        reasons = [reason for reason, _ in self.words]
        self.words.clear()
        return reasons


async def test_each_threshold_is_reported_once_and_recovery_too() -> None:
    node, recorded, recovered = Node(pool(10)), RecordedEvents(), []
    events = NodeEvents(cast(Recorder, recorded))
    events.set_node(NODE)
    monitor = ThinPoolMonitor(cast(Volumes, node), {"vg/pool"}, events, lambda: recovered.append(1))
    for percent in (10, 79, 80, 79, 81, 94, 95, 99, 94, 95):
        node.inspected(pool(percent))
        await monitor.check()
    assert "has used 80 % of its data and 0 % of its metadata: extend it" in recorded.words[0][1]
    assert recorded.reasons() == ["ThinPoolFilling", "ThinPoolNearlyFull"]
    assert not recovered
    node.inspected(pool(50))
    await monitor.check()
    assert recorded.reasons() == ["ThinPoolHasRoom"]
    assert recovered == [1]
    assert node.asked == 0


async def test_the_last_volume_that_goes_is_a_recovery_too() -> None:
    node, recorded, recovered = Node(pool(99, ours=EXTENT)), RecordedEvents(), []
    events = NodeEvents(cast(Recorder, recorded))
    events.set_node(NODE)
    monitor = ThinPoolMonitor(cast(Volumes, node), (), events, lambda: recovered.append(1))
    await monitor.check()
    node.inspected(pool(0))
    await monitor.check()
    await monitor.check()
    assert recorded.reasons() == ["ThinPoolNearlyFull", "ThinPoolHasRoom"]
    assert recovered == [1]


async def test_events_from_before_the_node_was_known_are_written_then() -> None:
    node, recorded = Node(pool(85)), RecordedEvents()
    events = NodeEvents(cast(Recorder, recorded))
    monitor = ThinPoolMonitor(cast(Volumes, node), {"vg/pool"}, events, lambda: None)
    await monitor.check()
    events.set_node(NODE)
    await monitor.check()
    assert recorded.reasons() == ["ThinPoolFilling"]


async def test_a_pool_grows_before_anybody_needs_to_be_warned() -> None:
    node, recorded = Node(pool(85), autoextend=20), RecordedEvents()
    node.gives = PoolExtension(20 * EXTENT, EXTENT)
    events = NodeEvents(cast(Recorder, recorded))
    events.set_node(NODE)
    monitor = ThinPoolMonitor(cast(Volumes, node), {"vg/pool"}, events, lambda: None)
    await monitor.check()
    assert "it got 80Mi for data and 4Mi for metadata" in recorded.words[0][1]
    assert recorded.reasons() == ["ThinPoolExtended"]


@pytest.mark.parametrize("gives", [PoolExtension(), BackendFailed("LVM says no")])
async def test_a_pool_that_can_not_grow_is_reported_once(gives: PoolExtension | Exception) -> None:
    node, recorded = Node(pool(85), autoextend=20), RecordedEvents()
    node.gives = gives
    events = NodeEvents(cast(Recorder, recorded))
    events.set_node(NODE)
    monitor = ThinPoolMonitor(cast(Volumes, node), {"vg/pool"}, events, lambda: None)
    for _ in range(3):
        await monitor.check()
    assert recorded.reasons() == ["ThinPoolNotExtended", "ThinPoolFilling"]
    assert node.asked == 3
    node.gives = PoolExtension(20 * EXTENT)
    await monitor.check()
    assert recorded.reasons() == ["ThinPoolExtended", "ThinPoolHasRoom"]
