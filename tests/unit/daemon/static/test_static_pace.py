import asyncio
import time
from statistics import median

from daemon.static.pace import LIMIT, Pace


async def test_an_event_is_answered_at_once() -> None:
    pace = Pace()
    asyncio.get_running_loop().call_later(0.05, pace.wake)
    begin = time.monotonic()
    await pace.wait(period=60)
    assert time.monotonic() - begin < 5


async def test_the_period_is_the_safety_net() -> None:
    begin = time.monotonic()
    await Pace().wait(period=0.2)
    assert time.monotonic() - begin >= 0.2


async def test_what_happens_during_a_pass_makes_another() -> None:
    pace = Pace()
    pace.wake()
    await pace.wait(period=60)
    pace.wake()  # while the pass runs
    async with asyncio.timeout(5):
        await pace.wait(period=60)


async def test_a_storm_of_a_thousand_events_makes_a_handful_of_passes() -> None:
    pace, passes = Pace(), 0

    async def loop() -> None:
        nonlocal passes
        while True:
            await pace.wait(period=60)
            passes += 1

    running = asyncio.create_task(loop())
    begin = time.monotonic()
    for _ in range(1000):
        pace.wake()
        await asyncio.sleep(0.001)
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])
    # Three while the pauses grow, and then one for each of the longest pauses.
    assert 1 <= passes <= 3 + (time.monotonic() - begin) / LIMIT


async def test_while_events_never_cease_nobody_waits_for_long() -> None:
    pace = Pace()
    waits = []
    for _ in range(6):
        begin = time.monotonic()
        pace.wake()
        await pace.wait(period=60)
        waits.append(time.monotonic() - begin)
    assert median(waits) < 2 * LIMIT


async def test_slow_passes_have_longer_gaps() -> None:
    pace = Pace()
    pace.wake()
    await pace.wait(period=60)
    await asyncio.sleep(0.2)  # the pass
    begin = time.monotonic()
    pace.wake()
    await pace.wait(period=60)
    assert time.monotonic() - begin >= 0.9


async def test_the_period_holds_also_where_the_pause_would_be_longer() -> None:
    pace = Pace()
    pace.wake()
    await pace.wait(period=60)
    await asyncio.sleep(0.5)  # a pass whose pause would be 2.5 s
    begin = time.monotonic()
    pace.wake()
    await pace.wait(period=0.2)
    assert time.monotonic() - begin < 2
