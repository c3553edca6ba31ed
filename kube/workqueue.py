"""A queue of keys: what should be looked at, never what happened to it.

A key is in the queue once however often it is added, and is handled by one task at a time, so the handler needs
no locks. A key added while it is being handled is handled again afterwards: the handler may have read the old state.
A key whose handler failed comes back after a time that grows, for as long as it fails: nothing is ever dropped.

It is written here because the library has no work queue.

While the API server can't be reached, all keys fail, and when it is back none should still wait for minutes: so one of
them asks for all every few seconds, and when it is answered the others are tried too.
"""

import asyncio
import itertools
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable

from kube.backoff import Backoff
from kube.errors import ApiError, Unreachable

_log = logging.getLogger(__name__)

_CATCH_UP = Backoff(first=0.1, factor=2, limit=30)
"""Watches show a change in a moment, or when they are there again."""
_PROBE = 2.0, 3.0
"""Seconds between two tries of the key that asks for all: between the least and the most, by chance."""


class WorkQueue:
    """First in, first out. To be used from one event loop."""

    def __init__(
        self,
        handle: Callable[[str], Awaitable[None]],
        *,
        parallelism: int,
        backoff: Backoff = Backoff(first=0.5, factor=2, limit=300),  # noqa: B008 - frozen
        expected: tuple[type[Exception], ...] = (ApiError,),
        of: str = "",
        group: Callable[[str], Hashable] | None = None,
    ) -> None:
        """So many keys of one `group` are handled at once: where one group's wait for something, the others go on.
        `expected` are failures that are the world's and not the program's: their log line has no traceback. `of`
        says what the keys name ("volume", "claim"), for the log's field of that name."""
        self._handle = handle
        self._parallelism = parallelism
        self._backoff = backoff
        self._expected = expected
        self._of = of
        self._one_group = group is None
        self._group = group or (lambda key: None)
        self._waiting: dict[str, None] = {}
        self._running: dict[str, Hashable] = {}
        """With their groups."""
        self._again: set[str] = set()
        self._later: dict[str, asyncio.TimerHandle] = {}
        self._failures: dict[str, int] = {}
        self._behind: dict[str, int] = {}
        """How often in succession the caches were behind for a key."""
        self._cut_off: set[str] = set()
        """Keys that failed last because the API server did not answer."""
        self._probe = ""
        self._changed = asyncio.Event()

    @property
    def depth(self) -> int:
        """Keys that wait for a free task. Those being handled and those that are to come later do not count."""
        return len(self._waiting)

    def add(self, key: str) -> None:
        """Handle the key as soon as there is a free task, also when it was to come later."""
        if timer := self._later.pop(key, None):
            timer.cancel()
        if key in self._running:
            self._again.add(key)
        else:
            self._waiting[key] = None
            self._changed.set()

    def add_after(self, key: str, seconds: float) -> None:
        """Handle the key in that many seconds, or sooner if it was to come sooner."""
        if key in self._waiting:
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if timer := self._later.get(key):
            if timer.when() <= due:
                return
            timer.cancel()
        self._later[key] = loop.call_at(due, self.add, key)

    def catch_up(self, key: str) -> None:
        """What was decided on was not any more what there is. What the caches show next adds the key by itself, mostly;
        else it is handled again in a moment, and later each time that this is so."""
        behind = self._behind[key] = self._behind.get(key, 0) + 1
        self.add_after(key, _CATCH_UP.delay(behind))

    def hurry(self) -> None:
        """What failed is tried again now, as if it had not failed before: whatever it was waiting for is there."""
        failed = self._failures.keys() & self._later.keys()
        self._failures.clear()
        self._cut_off.clear()
        for key in sorted(failed):
            self.add(key)

    async def run(self) -> None:
        """For ever. After cancellation the keys that were being handled are in the queue again."""
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    self._begin(tasks)
                    self._changed.clear()
                    await self._changed.wait()
        finally:
            # Only a cancelled run leaves any: a task cancelled before its first step can't do this itself.
            for key in list(self._running):
                self._again.add(key)
                self._done(key)

    def _begin(self, tasks: asyncio.TaskGroup) -> None:
        busy = Counter(self._running.values())
        # Thousands may wait, and are not gone through for each of them.
        free = max(self._parallelism - len(self._running), 0)
        for key in list(itertools.islice(self._waiting, free) if self._one_group else self._waiting):
            group = self._group(key)
            if busy[group] >= self._parallelism:
                continue
            busy[group] += 1
            del self._waiting[key]
            self._running[key] = group
            tasks.create_task(self._work(key), name=f"handle {key}")

    async def _work(self, key: str) -> None:
        behind = self._behind.get(key)
        try:
            await self._handle(key)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not we were cancelled but something that the handler waited for.
            self._failed(key, error)
        except Exception as error:
            self._failed(key, error)
        else:
            self._failures.pop(key, None)
            self._answered(key)
            if self._behind.get(key) == behind:
                self._behind.pop(key, None)
        self._done(key)

    def _done(self, key: str) -> None:
        self._running.pop(key, None)
        if key in self._again:
            self._again.discard(key)
            self.add(key)
        self._changed.set()

    def _answered(self, key: str) -> None:
        """The API server can be reached, if it could not be before."""
        if key not in self._cut_off:
            return
        self._cut_off.discard(key)
        others, self._cut_off = self._cut_off, set()
        for other in sorted(others & self._later.keys()):
            self._failures.pop(other, None)
            self.add(other)

    def _failed(self, key: str, error: BaseException) -> None:
        failures = self._failures.get(key, 0) + 1
        self._failures[key] = failures
        seconds = self._backoff.delay(failures)
        if _is_cut_off(error):
            self._cut_off.add(key)
            asks = self._probe in self._later or self._probe in self._running or self._probe in self._waiting
            if self._probe == key or not asks:
                self._probe = key
                seconds = min(seconds, random.uniform(*_PROBE))  # noqa: S311
        else:
            self._answered(key)
        _log.warning(
            "%s: %s; next try in %.1f s",
            key,
            str(error) or repr(error),
            seconds,
            exc_info=None if isinstance(error, self._expected) else error,
            extra={self._of: key} if self._of else None,
        )
        if key not in self._again:
            self.add_after(key, seconds)


def _is_cut_off(error: BaseException) -> bool:
    """Whether it says that the API server did not answer, whatever the caller made of that error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Unreachable):
            return True
        cause = cause.__cause__
    return False
