"""One thing at a time for each volume, and one run for those who ask for the same thing.

The kubelet gives up on a slow callout and asks again, the reconciler prepares what a mount waits for: all of them must
join what runs already, and none of them may break it off. So work runs in a task of its own, and a caller only waits
for it. Work for one volume is queued, first come first served; different volumes know nothing of each other.
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Protocol, TypeVar, cast

T = TypeVar("T")


class VolumeQueue(Protocol):
    """The queue of a volume. Work is observed, its errors are worded for the pod's owner: daemon.storage.volumes."""

    async def __call__(self, kind: str, pv: str, request: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of that kind of work for a volume."""
        ...


class KeyedQueue:
    """A queue of tasks for each key, run one after the other."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[Hashable, asyncio.Task[Any]]] = {}
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, key: str, request: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of `work`, run when everything asked for `key` before has ended, well or badly.

        Joins the last in the queue if that is the same request. An equal one further ahead is no good: what stands
        between them (an unmount between two mounts) would undo it.
        """
        last = self._last.get(key)
        if last is not None and last[0] == request and not last[1].done():
            return cast(T, await asyncio.shield(last[1]))
        task = asyncio.create_task(self._after(last[1] if last else None, work), name=key)
        self._last[key] = (request, task)
        self._running.add(task)
        task.add_done_callback(lambda done: self._leave(key, done))
        return await asyncio.shield(task)

    async def drain(self) -> None:
        """Returns when nothing runs or waits any more."""
        while self._running:
            await asyncio.wait(self._running)

    async def _after(self, previous: asyncio.Task[Any] | None, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if previous is not None:
            await asyncio.wait([previous])
        return await work()

    def _leave(self, key: str, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if (last := self._last.get(key)) is not None and last[1] is task:
            del self._last[key]
