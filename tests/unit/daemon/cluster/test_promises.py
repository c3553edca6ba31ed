"""The arithmetic that keeps a node from being over-committed."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from contract.capacity import footprint
from contract.parameters import RAID1, VolumeParameters
from contract.volume import DELETE, RETAIN
from daemon.cluster.promises import largest, offer, promises
from daemon.storage.record import Inventory, Pool, Record, State, Thin, Volume
from daemon.storage.room import Promise
from tests.unit.daemon.cluster.pv import pv

EXTENT = 4
THICK = VolumeParameters()


def volume(name: str, size: int) -> Volume:
    return Volume(Record(name, f"uid-{name}", DELETE, "ext4", State.READY), size, "vg")


def pool(free: int, size: int = 1000, thin: Thin | None = None) -> Pool:
    return Pool("vg", size, free, size - free, EXTENT, thin)


def test_making_a_promised_volume_changes_neither_figure() -> None:
    before = offer(replace(pool(free=1000), reserve=40), THICK, [], [pv("a", 100)])
    after = offer(replace(pool(free=900), reserve=40), THICK, [volume("a", 100)], [pv("a", 100)])
    assert before == after
    assert (before.allocatable, before.available) == (960, 860)


def test_a_wish_is_promised_by_nobody() -> None:
    inventory = Inventory([], [pool(free=1000)])
    for options, granted, promised in (
        ({"size": "100"}, None, 100),
        ({"size": "100"}, 100, 100),
        ({"size": "100"}, 160, 160),
        ({}, 160, 160),
        ({}, None, 200),
        ({"size": "lots"}, None, 200),
        ({"size": "900"}, None, 200),
    ):
        assert promises([pv("a", 200, options=options, granted=granted)], inventory) == [Promise("a", "vg", promised)]


def test_removing_a_volume_gives_its_space_back_when_its_persistent_volume_goes() -> None:
    removed = offer(pool(free=1000), THICK, [], [pv("a", 100, deleting=True)])
    gone = offer(pool(free=1000), THICK, [], [])
    assert (removed.available, gone.available) == (900, 1000)
    assert removed.allocatable == gone.allocatable == 1000


def test_an_orphan_and_a_foreign_volume_are_taken_from_what_is_offered() -> None:
    orphan = offer(pool(free=900), THICK, [volume("a", 100)], [])
    assert (orphan.allocatable, orphan.available) == (900, 900)


def test_a_namesake_with_another_uid_does_not_make_a_volume_live() -> None:
    found = offer(pool(free=900), THICK, [volume("a", 100)], [pv("a", 100, uid="other")])
    assert (found.allocatable, found.available) == (900, 800)


def test_a_retained_volume_leaves_the_figure_before_its_finalizer_goes() -> None:
    leaving = pv("a", 100, deleting=True, phase="Released", reclaim_policy=RETAIN)
    before = offer(pool(free=900), THICK, [volume("a", 100)], [replace(leaving, phase="Bound")])
    ready_to_go = offer(pool(free=900), THICK, [volume("a", 100)], [leaving])
    gone = offer(pool(free=900), THICK, [volume("a", 100)], [])
    assert (before.allocatable, ready_to_go.allocatable, gone.allocatable) == (1000, 900, 900)
    assert ready_to_go.available <= gone.available


def test_a_grant_counts_before_the_volume_has_it_and_a_wish_never() -> None:
    for granted, available in ((100, 900), (300, 700)):
        found = offer(pool(free=900), THICK, [volume("a", 100)], [pv("a", 5000, granted=granted)])
        assert (found.allocatable, found.available) == (1000, available)


def test_a_volume_counts_with_what_it_has_where_that_is_more() -> None:
    """Volumes never shrink, whatever was written on the PersistentVolume since."""
    found = offer(pool(free=700), THICK, [volume("a", 300)], [pv("a", 100, granted=100)])
    assert (found.allocatable, found.available) == (1000, 700)


def test_of_one_without_a_grant_all_that_it_may_have_counts() -> None:
    """It may have grown under a provisioner that wrote no grants down."""
    found = offer(pool(free=1000), THICK, [], [pv("a", 300, options={"size": "100"})])
    assert found.available == 700


def test_a_thin_pool_is_offered_as_often_as_the_class_says() -> None:
    thin = pool(free=400, thin=Thin(1.0, 1.0))
    found = offer(thin, VolumeParameters(overprovision_ratio=2.5), [volume("a", 600)], [pv("a", 600)])
    assert (found.allocatable, found.available) == (2500, 1900)


def test_other_pools_have_other_promises() -> None:
    found = offer(pool(free=1000), THICK, [], [pv("a", 100, pool="other")])
    assert found.available == 1000
    inventory = Inventory(pools=(pool(free=1000),))
    assert promises([pv("a", 99), pv("b", 1, pool="other")], inventory) == [Promise("a", "vg", 100)]


@given(
    room=st.integers(-100, 10_000),
    stripes=st.integers(1, 5),
    mirrored=st.booleans(),
    granularity=st.sampled_from([1, 4, 7]),
)
def test_the_largest_volume_fits_and_a_byte_more_does_not(
    room: int, stripes: int, mirrored: bool, granularity: int
) -> None:
    wanted = VolumeParameters(stripes=stripes, raid=RAID1 if mirrored else "none")
    size = largest(room, wanted, granularity)
    assert size >= 0
    assert size == 0 or footprint(size, wanted, granularity) <= room
    assert footprint(size + 1, wanted, granularity) > room
