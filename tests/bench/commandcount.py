"""What an operation takes: seconds, and the commands that it runs."""

import contextlib
import time
from collections.abc import Awaitable, Iterator

from host import command
from host.command import Completed


@contextlib.contextmanager
def counted() -> Iterator[list[Completed]]:
    """The commands that run meanwhile."""
    seen: list[Completed] = []
    note = seen.append
    command.observers.append(note)
    try:
        yield seen
    finally:
        command.observers.remove(note)


async def seconds(work: Awaitable[object]) -> float:
    begin = time.perf_counter()
    await work
    return time.perf_counter() - begin
