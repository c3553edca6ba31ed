"""What is to be erased, in which steps and how fast: decisions, with a clock of our own."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.parameters import DISCARD, ERASE, NO_ERASE, ZERO
from daemon.storage.backend import StaleData
from daemon.storage.erasing import MIB, Method, Throttle, erasure_steps, method, steps


@pytest.mark.parametrize(
    ("policy", "stale_data", "expected"),
    [
        (ZERO, StaleData.RAW, Method.ZERO),
        (ZERO, StaleData.THIN_RAW, Method.ZERO_WRITTEN),
        (DISCARD, StaleData.RAW, Method.DISCARD),
        (DISCARD, StaleData.THIN_RAW, Method.DISCARD),
        *((policy, StaleData.CLEAN, None) for policy in ERASE),
        *((NO_ERASE, stale_data, None) for stale_data in StaleData),
    ],
)
def test_how_data_goes(policy: str, stale_data: StaleData, expected: Method | None) -> None:
    assert method(policy, stale_data) is expected


@pytest.mark.parametrize(
    ("policy", "stale_data", "expected"),
    [
        (ZERO, StaleData.RAW, Method.FORGET),
        (ZERO, StaleData.THIN_RAW, Method.FORGET),
        (ZERO, StaleData.CLEAN, Method.FORGET),
        (DISCARD, StaleData.RAW, Method.DISCARD),
        (DISCARD, StaleData.THIN_RAW, Method.DISCARD),
        (DISCARD, StaleData.CLEAN, Method.FORGET),
        *((NO_ERASE, stale_data, None) for stale_data in StaleData),
    ],
)
def test_of_an_encrypted_volume_the_header_goes(policy: str, stale_data: StaleData, expected: Method | None) -> None:
    assert method(policy, stale_data, encrypted=True) is expected


@pytest.mark.parametrize(
    ("chosen", "begin", "expected"),
    [
        (Method.FORGET, 0, [(Method.ZERO, range(16 * MIB))]),
        (Method.FORGET, 4 * MIB, [(Method.ZERO, range(4 * MIB, 16 * MIB))]),
        (Method.FORGET, 16 * MIB, []),
        (Method.DISCARD, 0, [(Method.ZERO, range(16 * MIB)), (Method.DISCARD, range(16 * MIB, 90 * MIB))]),
        (Method.DISCARD, 20 * MIB, [(Method.DISCARD, range(20 * MIB, 90 * MIB))]),
    ],
)
def test_the_header_is_overwritten_before_anything_else_goes(
    chosen: Method, begin: int, expected: list[tuple[Method, range]]
) -> None:
    assert list(erasure_steps(chosen, begin, 90 * MIB, 16 * MIB)) == expected


@pytest.mark.parametrize("chosen", [Method.ZERO, Method.ZERO_WRITTEN, Method.DISCARD])
def test_without_a_header_all_goes_in_one_way(chosen: Method) -> None:
    parts = list(erasure_steps(chosen, 3, 90 * MIB, 0))
    assert {how for how, _ in parts} == {chosen}
    assert [part for _, part in parts] == list(steps(chosen, 3, 90 * MIB))


@given(chosen=st.sampled_from(Method), begin=st.integers(0, 5 << 30), more=st.integers(0, 5 << 30))
def test_steps_leave_nothing_out_and_take_nothing_twice(chosen: Method, begin: int, more: int) -> None:
    at = begin
    for extent in steps(chosen, begin, begin + more):
        assert extent.start == at
        assert len(extent) > 0
        at = extent.stop
    assert at == begin + more


class Hours:
    """Time that passes when somebody sleeps."""

    now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(("rate", "seconds"), [(10 * MIB, 9.9), (100 * MIB, 0.99), (0, 0)])
async def test_a_rate_is_kept(rate: int, seconds: float) -> None:
    clock = Hours()
    throttle = Throttle(rate, clock=clock, sleep=clock.sleep)
    for _ in range(100):
        await throttle.admit(MIB)
    assert clock.now - 100 == pytest.approx(seconds)


async def test_idle_hours_are_not_saved_up() -> None:
    clock = Hours()
    throttle = Throttle(MIB, clock=clock, sleep=clock.sleep)
    clock.now += 3600
    begin = clock.now
    for _ in range(5):
        await throttle.admit(MIB)
    assert clock.now - begin == 4


async def test_the_rate_is_of_all_together() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    throttle = Throttle(MIB, clock=lambda: 0.0, sleep=sleep)
    await asyncio.gather(*(throttle.admit(2 * MIB) for _ in range(4)))
    assert slept == [2, 4, 6]
