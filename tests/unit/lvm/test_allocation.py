"""What LVM finds room for. The rows are what lvcreate of lvm2 2.03.16 did; tests/node/test_allocation.py asks anew."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvm.allocation import CLING, CONTIGUOUS, FreeExtents

Areas = tuple[tuple[int, ...], ...]


@pytest.mark.parametrize(
    ("areas", "legs", "most"),
    [
        (((199,), (39,)), 2, 39),
        (((199,), (199,)), 2, 199),
        (((199,),), 2, 0),
        (((199,), ()), 2, 0),
        ((), 1, 0),
        (((60,), (60,), (60,)), 2, 60),
        (((100,), (50,), (50,)), 2, 100),
        (((55, 64), (98,), (8,)), 2, 106),
        (((55, 64), (98,), (8,)), 3, 8),
        (((156,), (115,), (52, 7, 2, 14)), 2, 156),
        (((156,), (115,), (52, 7, 2, 14)), 3, 75),
        (((41, 43), (199,), (28, 138)), 2, 199),
        (((20, 133), (42, 15, 111), (26, 55, 48)), 2, 168),
        (((38, 33, 3, 1), (57, 97), (43, 11, 4)), 2, 133),
        (((199,), (49, 45), (15, 19, 42)), 2, 170),
    ],
)
def test_the_longest_leg(areas: Areas, legs: int, most: int) -> None:
    free = FreeExtents(areas)
    assert free.most(legs) == legs * most
    assert free.fits(legs, most)
    assert not free.fits(legs, most + 1)


@pytest.mark.parametrize(
    ("policy", "most"), [("normal", 118), ("anywhere", 118), ("inherit", 118), (CLING, 70), (CONTIGUOUS, 60)]
)
def test_a_policy_of_the_group_is_one_of_its_volumes(policy: str, most: int) -> None:
    free = FreeExtents(((60, 10), (48,)), policy)
    assert free.most(1) == most
    assert free.is_sum(1) == (most == 118)
    assert not free.is_sum(2)


AREAS = st.lists(st.lists(st.integers(1, 30), max_size=3).map(tuple), max_size=5).map(tuple)


@given(AREAS, st.integers(1, 3), st.integers(1, 200))
def test_what_is_smaller_than_the_largest_fits_too(areas: Areas, legs: int, extents: int) -> None:
    free = FreeExtents(areas)
    longest = free.most(legs) // legs
    assert free.fits(legs, extents) == (extents <= longest)
    assert legs * longest <= sum(map(sum, areas))


@given(AREAS)
def test_one_leg_gets_all_that_is_free(areas: Areas) -> None:
    assert FreeExtents(areas).most(1) == sum(map(sum, areas))


@given(st.lists(st.integers(1, 100), min_size=2, max_size=2), st.integers(1, 100))
def test_with_as_many_devices_as_legs_each_volume_costs_what_it_takes(free: list[int], leg: int) -> None:
    before = FreeExtents(tuple((size,) for size in free)).most(2)
    if 2 * leg <= before:
        assert FreeExtents(tuple((size - leg,) for size in free)).most(2) == before - 2 * leg


@given(st.lists(st.integers(1, 40), min_size=2, max_size=5), st.integers(0, 4), st.integers(1, 40), st.integers(2, 3))
def test_a_plain_volume_costs_at_most_its_size_for_each_leg(free: list[int], at: int, size: int, legs: int) -> None:
    at %= len(free)
    size = min(size, free[at])
    before = FreeExtents(tuple((each,) for each in free)).most(legs)
    after = FreeExtents(tuple((each - size * (number == at),) for number, each in enumerate(free))).most(legs)
    assert before - after <= legs * size
