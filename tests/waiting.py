"""Waiting for what has to become true by itself: `until` lets the event loop go on, `eventually` does not."""

import asyncio
import inspect
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from kube.workqueue import WorkQueue

_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.02
"""Seconds, of a wait that has just begun."""
_SHARE, _LONGEST_OF_ALL = 1 / 40, 0.1
"""Who has waited long looks seldom: after such a share of what it waited already, but at least every 0.1 s. A look at
the API server takes 2 ms of a processor, which others need to bring about what is waited for."""

PATIENCE_VARIABLE = "SANDBOX_PATIENCE"
"""Environment variable: how many times longer everything may take, as on an emulated machine or in a real cluster."""


class NeverHappened(AssertionError):
    """What was waited for did not come true in time."""


def patience() -> float:
    """How many times longer than usual everything may take."""
    return float(os.environ.get(PATIENCE_VARIABLE, "1"))


async def until(condition: Callable[[], Any], *, what: str = "", seconds: float = 30, at_most: float = math.inf) -> Any:
    """The first value of `condition`, or of what it has to be awaited for, that is true. `seconds` is for a machine of
    usual speed, `at_most` for any.

    Raises NeverHappened, naming `what` was waited for."""
    for pause in _pauses(what, min(seconds * patience(), at_most)):
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        await asyncio.sleep(pause)
    raise AssertionError("the pauses end with NeverHappened")


def eventually(condition: Callable[[], Any], *, what: str = "", seconds: float = 30) -> Any:
    """`until` for a test that has no event loop."""
    for pause in _pauses(what, seconds * patience()):
        if value := condition():
            return value
        time.sleep(pause)
    raise AssertionError("the pauses end with NeverHappened")


async def drained(queue: WorkQueue) -> None:
    """Until no key is waiting or being handled. Those that are to come later do not count."""
    await until(lambda: not queue._waiting and not queue._running, what="an empty queue")


def _pauses(what: str, seconds: float) -> Iterator[float]:
    """A pause after each look. Where all takes longer, looking as often as here would be a load of its own. The last
    look begins after `seconds`."""
    begin = time.monotonic()
    pause = _FIRST_PAUSE
    last = False
    while True:
        waited = time.monotonic() - begin
        yield max(pause * patience(), min(waited * _SHARE, _LONGEST_OF_ALL))
        if last:
            raise NeverHappened(f"{what or 'the condition'}: still not so after {seconds:g} s")
        last = time.monotonic() > begin + seconds
        pause = min(1.5 * pause, _LONGEST_PAUSE)
