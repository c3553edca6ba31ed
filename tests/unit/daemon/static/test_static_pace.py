"""When passes are made, with a time of our own: what is waited for is known to the millisecond."""

import asyncio

import pytest

from daemon.static.eventsources import FIRST, LIMIT, QUIET, Pace

pytestmark = pytest.mark.virtual_time


def now() -> float:
    return asyncio.get_running_loop().time()


async def waited(pace: Pace, period: float = 60) -> float:
    """Seconds until the next pass is due."""
    begin = now()
    await pace.wait(period)
    return now() - begin


async def test_an_event_is_answered_at_once() -> None:
    pace = Pace()
    asyncio.get_running_loop().call_later(QUIET, pace.wake)
    assert await waited(pace) == pytest.approx(QUIET + FIRST)


async def test_the_period_is_the_safety_net() -> None:
    pace = Pace()
    assert [await waited(pace) for _ in range(2)] == pytest.approx([60, 60])


async def test_what_happens_during_a_pass_makes_another() -> None:
    pace = Pace()
    pace.wake()
    await pace.wait(period=60)
    pace.wake()  # while the pass runs
    assert await waited(pace) < 1
    assert await waited(pace) == pytest.approx(60), "and only one"


async def test_a_storm_of_a_thousand_events_makes_a_handful_of_passes() -> None:
    pace, passes = Pace(), list[float]()

    async def loop() -> None:
        while True:
            await pace.wait(period=60)
            passes.append(now())

    running = asyncio.create_task(loop())
    for _ in range(1000):
        pace.wake()
        await asyncio.sleep(0.001)
    calm = now()
    await asyncio.sleep(10)
    running.cancel()
    await asyncio.wait([running])
    # The pauses grow to 0.2, 0.4 and 0.5 s: the last is that of the last event.
    assert passes == pytest.approx([0.2, 0.6, 1.1], abs=0.005)
    assert passes[-1] - calm < LIMIT


async def test_while_events_never_cease_nobody_waits_for_long() -> None:
    pace, waits = Pace(), list[float]()
    for _ in range(6):
        pace.wake()
        waits.append(await waited(pace))
    assert waits == pytest.approx([0.2, 0.4, LIMIT, LIMIT, LIMIT, LIMIT])


async def test_after_a_silence_the_next_event_is_answered_as_the_first_one() -> None:
    pace = Pace()
    for _ in range(6):
        pace.wake()
        await pace.wait(period=60)
    asyncio.get_running_loop().call_later(QUIET, pace.wake)
    assert await waited(pace) == pytest.approx(QUIET + FIRST)


async def test_slow_passes_have_longer_gaps() -> None:
    pace = Pace()
    pace.wake()
    await pace.wait(period=60)
    await asyncio.sleep(0.2)  # the pass
    pace.wake()
    assert await waited(pace) == pytest.approx(5 * 0.2)


async def test_the_period_holds_also_where_the_pause_would_be_longer() -> None:
    pace = Pace()
    pace.wake()
    await pace.wait(period=60)
    await asyncio.sleep(0.5)  # a pass whose pause would be 2.5 s
    pace.wake()
    assert await waited(pace, period=0.2) == pytest.approx(0.2)
