"""The arithmetic that keeps a node from being over-committed."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from contract.capacity import footprint
from contract.parameters import RAID1, VolumeParameters
from contract.volume import DELETE, RETAIN
from daemon.cluster.capacity import available_capacity, largest_volume, reservations
from daemon.storage.freespace import Reservation
from daemon.storage.inventory import Inventory, Pool, SharedFilesystem, ThinPoolUsage, Volume
from daemon.storage.record import Record, VolumeState
from lvm.allocation import FreeExtents
from tests.unit.daemon.cluster.pv import pv

EXTENT = 4
THICK = VolumeParameters()


def volume(name: str, size: int) -> Volume:
    return Volume(Record(name, f"uid-{name}", DELETE, "ext4", VolumeState.READY), size, "vg")


def pool(free: int, size: int = 1000, thin: ThinPoolUsage | None = None) -> Pool:
    return Pool("vg", size, free, size - free, EXTENT, thin)


def test_making_a_promised_volume_changes_neither_figure() -> None:
    before = available_capacity(replace(pool(free=1000), reserve=40), THICK, [], [pv("a", 100)])
    after = available_capacity(replace(pool(free=900), reserve=40), THICK, [volume("a", 100)], [pv("a", 100)])
    assert before == after
    assert (before.allocatable, before.available) == (960, 860)


def test_a_wish_is_promised_by_nobody() -> None:
    inventory = Inventory([], [pool(free=1000)])
    for options, granted, reserved in (
        ({"size": "100"}, None, 100),
        ({"size": "100"}, 100, 100),
        ({"size": "100"}, 160, 160),
        ({}, 160, 160),
        ({}, None, 200),
        ({"size": "lots"}, None, 200),
        ({"size": "900"}, None, 200),
    ):
        assert reservations([pv("a", 200, options=options, granted=granted)], inventory) == [
            Reservation("a", "vg", reserved)
        ]


def test_a_removed_volumes_space_is_free_when_its_persistent_volume_goes() -> None:
    removed = available_capacity(pool(free=1000), THICK, [], [pv("a", 100, deleting=True)])
    gone = available_capacity(pool(free=1000), THICK, [], [])
    assert (removed.available, gone.available) == (900, 1000)
    assert removed.allocatable == gone.allocatable == 1000


def test_an_orphan_and_a_foreign_volume_are_taken_from_what_is_offered() -> None:
    orphan = available_capacity(pool(free=900), THICK, [volume("a", 100)], [])
    assert (orphan.allocatable, orphan.available) == (900, 900)


def test_a_namesake_with_another_uid_does_not_make_a_volume_live() -> None:
    figures = available_capacity(pool(free=900), THICK, [volume("a", 100)], [pv("a", 100, uid="other")])
    assert (figures.allocatable, figures.available) == (900, 800)


def test_a_retained_volume_leaves_the_figure_before_its_finalizer_goes() -> None:
    leaving = pv("a", 100, deleting=True, phase="Released", reclaim_policy=RETAIN)
    before = available_capacity(pool(free=900), THICK, [volume("a", 100)], [replace(leaving, phase="Bound")])
    ready_to_go = available_capacity(pool(free=900), THICK, [volume("a", 100)], [leaving])
    gone = available_capacity(pool(free=900), THICK, [volume("a", 100)], [])
    assert (before.allocatable, ready_to_go.allocatable, gone.allocatable) == (1000, 900, 900)
    assert ready_to_go.available <= gone.available


def test_a_grant_counts_before_the_volume_has_it_and_a_wish_never() -> None:
    for granted, available in ((100, 900), (300, 700)):
        figures = available_capacity(pool(free=900), THICK, [volume("a", 100)], [pv("a", 5000, granted=granted)])
        assert (figures.allocatable, figures.available) == (1000, available)


def test_a_volume_counts_with_what_it_has_where_that_is_more() -> None:
    """Volumes never shrink, whatever was written on the PersistentVolume since."""
    figures = available_capacity(pool(free=700), THICK, [volume("a", 300)], [pv("a", 100, granted=100)])
    assert (figures.allocatable, figures.available) == (1000, 700)


def test_of_one_without_a_grant_all_that_it_may_have_counts() -> None:
    """It may have grown under a provisioner that wrote no grants down."""
    figures = available_capacity(pool(free=1000), THICK, [], [pv("a", 300, options={"size": "100"})])
    assert figures.available == 700


def test_a_thin_pool_is_offered_as_often_as_the_class_says() -> None:
    thin = pool(free=400, thin=ThinPoolUsage(1.0, 1.0))
    figures = available_capacity(thin, VolumeParameters(overprovision_ratio=2.5), [volume("a", 600)], [pv("a", 600)])
    assert (figures.allocatable, figures.available) == (2500, 1900)


def test_other_pools_have_other_promises() -> None:
    figures = available_capacity(pool(free=1000), THICK, [], [pv("a", 100, pool="other")])
    assert figures.available == 1000
    inventory = Inventory(pools=(pool(free=1000),))
    assert reservations([pv("a", 99), pv("b", 1, pool="other")], inventory) == [Reservation("a", "vg", 100)]


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
    size = largest_volume(room, wanted, granularity)
    assert size >= 0
    assert size == 0 or footprint(size, wanted, granularity) <= room
    assert footprint(size + 1, wanted, granularity) > room


MIRROR, PAIR = VolumeParameters(raid=RAID1), VolumeParameters(stripes=2)


def devices(*free: int) -> Pool:
    """A group of devices with so many extents free."""
    extents = FreeExtents(tuple((each,) for each in free))
    return replace(pool(free=sum(free) * EXTENT), extents=extents)


def test_legs_are_offered_what_unlike_disks_have_side_by_side() -> None:
    uneven = devices(50, 10)
    assert available_capacity(uneven, THICK, [], []).largest_volume == 60 * EXTENT
    assert available_capacity(uneven, PAIR, [], []).largest_volume == 20 * EXTENT
    assert available_capacity(uneven, MIRROR, [], []).largest_volume == 9 * EXTENT
    assert available_capacity(devices(50), MIRROR, [], []).largest_volume == 0


def test_what_the_provisioner_has_left_is_what_the_scheduler_reads() -> None:
    """A mirror of 9 extents takes 20 with its own notes."""
    figures = available_capacity(devices(50, 10), MIRROR, [], [])
    assert (figures.allocatable, figures.available, figures.reserved) == (20 * EXTENT, 20 * EXTENT, 0)


def test_a_promise_may_lie_where_it_hurts_most() -> None:
    plain = pv("a", 5 * EXTENT)
    assert available_capacity(devices(50, 10), PAIR, [], [plain]).largest_volume == (20 - 2 * 5) * EXTENT
    made = available_capacity(devices(45, 10), PAIR, [volume("a", 5 * EXTENT)], [plain])
    assert (made.largest_volume, made.reserved) == (20 * EXTENT, 5 * EXTENT)
    assert made.allocatable - made.reserved == 20 * EXTENT
    alike = pv("a", 10 * EXTENT, options={"stripes": "2"})
    assert available_capacity(devices(50, 10), PAIR, [], [alike]).largest_volume == (20 - 10) * EXTENT
    assert available_capacity(devices(50, 10, 10), PAIR, [], [alike]).largest_volume == (40 - 2 * 10) * EXTENT


def test_what_was_taken_since_the_last_look_may_too() -> None:
    assert (
        available_capacity(replace(devices(50, 10), allocated_since_look=4 * EXTENT), PAIR, [], []).largest_volume
        == 12 * EXTENT
    )


def test_a_group_that_lvm_does_not_change_offers_nothing() -> None:
    figures = available_capacity(replace(pool(free=1000), blocked="a disk is missing"), THICK, [], [pv("a", 100)])
    assert (figures.allocatable, figures.available, figures.largest_volume) == (0, 0, 0)


def test_volumes_that_can_be_noted_are_promised_too() -> None:
    few = replace(pool(free=1000), more_volumes=2)
    one, two = pv("a", 100), pv("b", 100)
    assert available_capacity(few, THICK, [], [one]).largest_volume == 900
    assert available_capacity(few, THICK, [], [one, two]).largest_volume == 0
    assert (
        available_capacity(
            replace(few, free=800), THICK, [volume("a", 100), volume("b", 100)], [one, two]
        ).largest_volume
        == 800
    )
    assert available_capacity(few, THICK, [], [one, replace(two, pool="vg/pool")]).largest_volume == 0


def test_pools_on_one_filesystem_are_offered_its_room_once() -> None:
    shared = SharedFilesystem("8:1", ("folder:b", "loop:a"), allocatable=100, ours=0)
    images = Pool("loop:a", 100, 100, 0, 1, filesystem=shared)
    folders = Pool("folder:b", 80, 80, 0, 1, filesystem=shared)
    reserved = [replace(pv("a", 30), pool="loop:a"), replace(pv("b", 40), pool="folder:b")]
    assert [available_capacity(each, THICK, [], reserved).largest_volume for each in (images, folders)] == [30, 30]
    made = [replace(volume("b", 40), pool="folder:b")]
    after = replace(images, filesystem=replace(shared, ours=40))
    figures = available_capacity(after, THICK, made, reserved)
    assert (figures.allocatable, figures.largest_volume, figures.shared) == (100, 30, 100)
