"""When passes are made, with a time of our own: what is waited for is known to the millisecond."""

import asyncio

import pytest

from daemon.static.eventsources import MAX_DELAY, MIN_DELAY, QUIET_PERIOD, Debouncer

pytestmark = pytest.mark.virtual_time


def now() -> float:
    return asyncio.get_running_loop().time()


async def waited(debouncer: Debouncer, period: float = 60) -> float:
    """Seconds until the next pass is due."""
    begin = now()
    await debouncer.wait(period)
    return now() - begin


async def test_an_event_is_answered_at_once() -> None:
    debouncer = Debouncer()
    asyncio.get_running_loop().call_later(QUIET_PERIOD, debouncer.trigger)
    assert await waited(debouncer) == pytest.approx(QUIET_PERIOD + MIN_DELAY)


async def test_the_period_is_the_safety_net() -> None:
    debouncer = Debouncer()
    assert [await waited(debouncer) for _ in range(2)] == pytest.approx([60, 60])


async def test_an_event_during_a_pass_triggers_another() -> None:
    debouncer = Debouncer()
    debouncer.trigger()
    await debouncer.wait(period=60)
    debouncer.trigger()  # while the pass runs
    assert await waited(debouncer) < 1
    assert await waited(debouncer) == pytest.approx(60), "and only one"


async def test_a_thousand_events_make_a_handful_of_passes() -> None:
    debouncer, passes = Debouncer(), list[float]()

    async def loop() -> None:
        while True:
            await debouncer.wait(period=60)
            passes.append(now())

    running = asyncio.create_task(loop())
    for _ in range(1000):
        debouncer.trigger()
        await asyncio.sleep(0.001)
    calm = now()
    await asyncio.sleep(10)
    running.cancel()
    await asyncio.wait([running])
    # The pauses grow to 0.2, 0.4 and 0.5 s: the last is that of the last event.
    assert passes == pytest.approx([0.2, 0.6, 1.1], abs=0.005)
    assert passes[-1] - calm < MAX_DELAY


async def test_continuous_events_have_a_bounded_delay() -> None:
    debouncer, waits = Debouncer(), list[float]()
    for _ in range(6):
        debouncer.trigger()
        waits.append(await waited(debouncer))
    assert waits == pytest.approx([0.2, 0.4, MAX_DELAY, MAX_DELAY, MAX_DELAY, MAX_DELAY])


async def test_after_a_quiet_period_the_delay_is_short_again() -> None:
    debouncer = Debouncer()
    for _ in range(6):
        debouncer.trigger()
        await debouncer.wait(period=60)
    asyncio.get_running_loop().call_later(QUIET_PERIOD, debouncer.trigger)
    assert await waited(debouncer) == pytest.approx(QUIET_PERIOD + MIN_DELAY)


async def test_slow_passes_have_longer_gaps() -> None:
    debouncer = Debouncer()
    debouncer.trigger()
    await debouncer.wait(period=60)
    await asyncio.sleep(0.2)  # the pass
    debouncer.trigger()
    assert await waited(debouncer) == pytest.approx(5 * 0.2)


async def test_the_period_is_an_upper_bound_of_the_delay() -> None:
    debouncer = Debouncer()
    debouncer.trigger()
    await debouncer.wait(period=60)
    await asyncio.sleep(0.5)  # a pass whose pause would be 2.5 s
    debouncer.trigger()
    assert await waited(debouncer, period=0.2) == pytest.approx(0.2)
