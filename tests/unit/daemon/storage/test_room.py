"""Who may take what is free in a pool."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from daemon.storage.record import Pool, Thin
from daemon.storage.room import Promise, room_for

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
