"""Waiting for what has to become true by itself."""

import time
from collections.abc import Callable


def eventually(condition: Callable[[], bool], *, seconds: float = 20) -> None:
    """Returns as soon as the condition holds, fails when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.01)
