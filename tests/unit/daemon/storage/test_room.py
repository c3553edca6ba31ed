"""Who may take what is free in a pool."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from contract.parameters import RAID1, VolumeParameters
from daemon.storage.inventory import Pool, Thin
from daemon.storage.room import Promise, room_for
from lvm.allocation import FreeExtents

GIB = 1024**3


def room(
    pv: str, free: int, promises: Sequence[Promise] = (), made: Mapping[str, int] | None = None, reserve: int = 0
) -> int:
    pool = Pool(name="pool", size=100, free=free, ours=100 - free, granularity=1, reserve=reserve)
    return room_for(pv, pool, made or {}, promises, ratio=1.0)


def test_what_is_promised_to_others_and_the_reserve_are_left_alone() -> None:
    promises = [Promise("a", "pool", 10), Promise("b", "another pool", 30), Promise("c", "pool", 7)]
    assert room("newcomer", 50, promises, made={"c": 7}, reserve=5) == 50 - 10 - 5


def test_ones_own_promise_is_ones_own() -> None:
    assert room("a", 10, [Promise("a", "pool", 10)]) == 10


def test_what_a_volume_lacks_of_its_promise_is_kept_for_it() -> None:
    """Of one that is to grow that is the difference; beyond its promise it takes what nobody was promised."""
    promises = [Promise("grows", "pool", 10), Promise("small", "pool", 4)]
    assert room("small", 10, promises, made={"grows": 7}) == 7
    assert room("grows", 10, promises, made={"grows": 7}) == 10
    assert room("grows", 10, promises, made={"grows": 10}) == 6
    assert room("newcomer", 10, promises, made={"grows": 7}) == 3


def test_who_asks_for_more_than_there_is_keeps_nobody_else_waiting() -> None:
    promises = [Promise("greedy", "pool", 1000), Promise("small", "pool", 4)]
    assert room("small", 10, promises, made={"greedy": 1}) == 10
    assert room("greedy", 10, promises, made={"greedy": 1}) == 10


def test_the_ratio_of_a_thin_pool_counts() -> None:
    pool = Pool("pool", size=100, free=-20, ours=120, granularity=1, thin=Thin(10.0, 1.0))
    assert room_for("a", pool, {}, (), ratio=1.0) == -20
    assert room_for("a", replace(pool, reserve=10), {}, (), ratio=2.0) == 70


PROMISES = st.lists(
    st.builds(Promise, st.sampled_from("abcdefgh"), st.just("pool"), st.integers(1, 40)),
    unique_by=lambda promise: promise.pv,
)


@given(PROMISES, st.integers(0, 100), st.lists(st.sampled_from("abcdefghxyz"), unique=True), st.integers(1, 40))
def test_nothing_promised_is_taken_and_nobody_waits_for_ever(
    promises: list[Promise], free: int, order: list[str], newcomers_size: int
) -> None:
    """Volumes are made in any order. When the promises fit, each of them is kept, whoever else comes first; when they
    don't, there is never more made than there is room, nor one refused that would still fit in the end."""
    sizes = {promise.pv: promise.footprint for promise in promises}
    left, made = free, dict[str, int]()
    for pv in [*order, *sorted(sizes)]:
        size = sizes.get(pv, newcomers_size)
        if pv not in made and size <= room(pv, left, promises, made):
            made[pv] = size
            left -= size
    assert left >= 0
    if sum(sizes.values()) <= free:
        assert set(sizes) <= set(made)
    assert not [pv for pv, size in sizes.items() if pv not in made and size <= left]


MIRROR = VolumeParameters(raid=RAID1)


def beside(pv: str, free: Sequence[int], *promises: Promise, parameters: VolumeParameters = VolumeParameters()) -> int:  # noqa: B008
    """On devices with so much free."""
    extents = FreeExtents(tuple((each,) for each in free))
    pool = Pool("pool", size=1000, free=sum(free), ours=0, granularity=1, extents=extents)
    return room_for(pv, pool, {}, promises, ratio=1.0, parameters=parameters)


def test_a_mirror_has_what_two_devices_have_side_by_side() -> None:
    assert beside("a", [200, 40], parameters=MIRROR) == 80
    assert beside("a", [200], parameters=MIRROR) == 0


def test_nothing_is_taken_from_the_devices_that_a_promised_mirror_needs() -> None:
    """With 100 free on each, 60 of them promised to the legs of a mirror, 80 for a plain volume are left in all; but
    where LVM would put them they leave 20, and the mirror can't be made any more."""
    mirror = Promise("m", "pool", 120, MIRROR)
    assert beside("a", [100, 100], mirror, Promise("a", "pool", 80)) == 40
    assert beside("m", [100, 100], mirror, Promise("a", "pool", 80), parameters=MIRROR) == 120
    assert beside("a", [40, 40], Promise("a", "pool", 80)) == 80


def test_mirrors_that_wait_for_each_other_are_made_in_the_order_of_their_names() -> None:
    promises = [Promise("a", "pool", 100, MIRROR), Promise("b", "pool", 80, MIRROR)]
    assert beside("a", [100, 100], *promises, parameters=MIRROR) >= 100
    assert beside("b", [100, 100], *promises, parameters=MIRROR) == 100
    assert beside("b", [60, 60], *promises, parameters=MIRROR) == 20
    assert beside("b", [60, 60], Promise("a", "pool", 200, MIRROR), promises[1], parameters=MIRROR) == 120


@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=4),
    st.lists(st.tuples(st.integers(1, 60), st.booleans()), max_size=4),
)
def test_whoever_was_promised_what_can_be_made_is_not_kept_waiting_for_ever(
    free: list[int], sizes: list[tuple[int, bool]]
) -> None:
    """The first mirror that fits may be made; without one, the first plain volume."""
    promises = [
        Promise(f"pvc-{number}", "pool", 2 * size if mirror else size, MIRROR if mirror else VolumeParameters())
        for number, (size, mirror) in enumerate(sizes)
    ]
    mirrors = [each for each in promises if each.parameters == MIRROR]
    fit = [each for each in mirrors if each.footprint <= beside("", free, parameters=MIRROR)]
    if fit:
        first = fit[0]
        assert beside(
            first.pv, free, first, *(each for each in promises if each.parameters != MIRROR), parameters=MIRROR
        )
    elif not mirrors and promises and promises[0].footprint <= sum(free):
        assert beside(promises[0].pv, free, *promises) >= promises[0].footprint
