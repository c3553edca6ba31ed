"""Who may take what is free in a pool."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import example, given
from hypothesis import strategies as st

from contract.parameters import RAID1, VolumeParameters
from daemon.storage.freespace import Reservation, space_for
from daemon.storage.inventory import Pool, ThinPoolUsage
from lvm.allocation import FreeExtents

GIB = 1024**3


def room(
    pv: str,
    free: int,
    reservations: Sequence[Reservation] = (),
    made: Mapping[str, int] | None = None,
    reserve: int = 0,
) -> int:
    pool = Pool(name="pool", size=100, free=free, ours=100 - free, granularity=1, reserve=reserve)
    return space_for(pv, pool, made or {}, reservations, ratio=1.0)


def test_what_is_promised_to_others_and_the_reserve_are_left_alone() -> None:
    reservations = [Reservation("a", "pool", 10), Reservation("b", "another pool", 30), Reservation("c", "pool", 7)]
    assert room("newcomer", 50, reservations, made={"c": 7}, reserve=5) == 50 - 10 - 5


def test_ones_own_promise_is_ones_own() -> None:
    assert room("a", 10, [Reservation("a", "pool", 10)]) == 10


def test_what_a_volume_lacks_of_its_promise_is_kept_for_it() -> None:
    """Of one that is to grow that is the difference; beyond its promise it takes what nobody was promised."""
    reservations = [Reservation("grows", "pool", 10), Reservation("small", "pool", 4)]
    assert room("small", 10, reservations, made={"grows": 7}) == 7
    assert room("grows", 10, reservations, made={"grows": 7}) == 10
    assert room("grows", 10, reservations, made={"grows": 10}) == 6
    assert room("newcomer", 10, reservations, made={"grows": 7}) == 3


def test_who_asks_for_more_than_there_is_keeps_nobody_else_waiting() -> None:
    reservations = [Reservation("greedy", "pool", 1000), Reservation("small", "pool", 4)]
    assert room("small", 10, reservations, made={"greedy": 1}) == 10
    assert room("greedy", 10, reservations, made={"greedy": 1}) == 10


def test_the_ratio_of_a_thin_pool_counts() -> None:
    pool = Pool("pool", size=100, free=-20, ours=120, granularity=1, thin=ThinPoolUsage(10.0, 1.0))
    assert space_for("a", pool, {}, (), ratio=1.0) == -20
    assert space_for("a", replace(pool, reserve=10), {}, (), ratio=2.0) == 70


PROMISES = st.lists(
    st.builds(Reservation, st.sampled_from("abcdefgh"), st.just("pool"), st.integers(1, 40)),
    unique_by=lambda reservation: reservation.pv,
)


@given(PROMISES, st.integers(0, 100), st.lists(st.sampled_from("abcdefghxyz"), unique=True), st.integers(1, 40))
def test_nothing_promised_is_taken_and_nobody_waits_for_ever(
    reservations: list[Reservation], free: int, order: list[str], newcomers_size: int
) -> None:
    """Volumes are made in any order. When the promises fit, each of them is kept, whoever else comes first; when they
    don't, there is never more made than there is room, nor one refused that would still fit in the end."""
    sizes = {reservation.pv: reservation.footprint for reservation in reservations}
    left, made = free, dict[str, int]()
    for pv in [*order, *sorted(sizes)]:
        size = sizes.get(pv, newcomers_size)
        if pv not in made and size <= room(pv, left, reservations, made):
            made[pv] = size
            left -= size
    assert left >= 0
    if sum(sizes.values()) <= free:
        assert set(sizes) <= set(made)
    assert not [pv for pv, size in sizes.items() if pv not in made and size <= left]


PLAIN, MIRROR = VolumeParameters(), VolumeParameters(raid=RAID1)


def beside(pv: str, free: Sequence[int], *reservations: Reservation, parameters: VolumeParameters = PLAIN) -> int:
    """On devices with so much free."""
    extents = FreeExtents(tuple((each,) for each in free))
    pool = Pool("pool", size=1000, free=sum(free), ours=0, granularity=1, extents=extents)
    return space_for(pv, pool, {}, reservations, ratio=1.0, parameters=parameters)


def test_a_mirror_has_what_two_devices_have_side_by_side() -> None:
    assert beside("a", [200, 40], parameters=MIRROR) == 80
    assert beside("a", [200], parameters=MIRROR) == 0


def test_nothing_is_taken_from_the_devices_that_a_promised_mirror_needs() -> None:
    """With 100 free on each, 60 of them promised to the legs of a mirror, 80 for a plain volume are left in all; but
    where LVM would put them they leave 20, and the mirror can't be made any more."""
    mirror = Reservation("m", "pool", 120, MIRROR)
    assert beside("a", [100, 100], mirror, Reservation("a", "pool", 80)) == 40
    assert beside("m", [100, 100], mirror, Reservation("a", "pool", 80), parameters=MIRROR) == 120
    assert beside("a", [40, 40], Reservation("a", "pool", 80)) == 80


def test_mirrors_that_wait_for_each_other_are_created_in_order_of_name() -> None:
    reservations = [Reservation("a", "pool", 100, MIRROR), Reservation("b", "pool", 80, MIRROR)]
    assert beside("a", [100, 100], *reservations, parameters=MIRROR) >= 100
    assert beside("b", [100, 100], *reservations, parameters=MIRROR) == 100
    assert beside("b", [60, 60], *reservations, parameters=MIRROR) == 20
    assert beside("b", [60, 60], Reservation("a", "pool", 200, MIRROR), reservations[1], parameters=MIRROR) == 120


@example([1, 1], [(2, False), (1, True)])
@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=4),
    st.lists(st.tuples(st.integers(1, 60), st.booleans()), max_size=4),
)
def test_whoever_was_promised_what_can_be_made_is_not_kept_waiting_for_ever(
    free: list[int], sizes: list[tuple[int, bool]]
) -> None:
    """The first mirror that fits may be made; without one, the first plain volume."""
    reservations = [
        Reservation(f"pvc-{number}", "pool", 2 * size if mirror else size, MIRROR if mirror else VolumeParameters())
        for number, (size, mirror) in enumerate(sizes)
    ]
    mirrors = [each for each in reservations if each.parameters == MIRROR]
    fit = [each for each in mirrors if each.footprint <= beside("", free, parameters=MIRROR)]
    if fit:
        first = fit[0]
        assert beside(
            first.pv, free, first, *(each for each in reservations if each.parameters != MIRROR), parameters=MIRROR
        )
    elif not mirrors and reservations and reservations[0].footprint <= sum(free):
        assert beside(reservations[0].pv, free, *reservations) >= reservations[0].footprint
