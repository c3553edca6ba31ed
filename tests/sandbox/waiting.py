"""Waiting, without stopping the event loop, for what has to become true by itself."""

import asyncio
import inspect
import math
import os
from collections.abc import Callable
from typing import Any

_PAUSE = 0.02

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
    loop = asyncio.get_running_loop()
    seconds = min(seconds * patience(), at_most)
    deadline = loop.time() + seconds
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if loop.time() > deadline:
            raise NeverHappened(f"{what or 'the condition'}: still not so after {seconds:g} s")
        # Where all takes longer, asking as often as here would be a load of its own.
        await asyncio.sleep(_PAUSE * patience())
