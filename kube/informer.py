"""A cache of one kind of object that follows the API server: list once, then watch.

The cache holds records, made by the caller's `parse`, not the objects: a record is frozen, small, and says what the
program looks at. Nobody hears of a change that leaves the record as it was. A lost connection is only a delay: the
watch goes on from where it was, and a new list is taken only when the server says that this is too long ago. What
was deleted meanwhile is then reported like any other deletion.

The library's informer (kubernetes.informer) is not used: it needs a thread for each kind of object, keeps the whole
objects, and does not notice a server that went back in time.

A server whose data was restored from a backup goes back in time. It does not refuse a watch from a future that it has
not reached, it is silent until it gets there, and what happens until then is never reported. So versions are compared:
those of watch events, and that of the server after a lost connection or a silent watch. When they go backwards, all is
listed again.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Generic, TypeVar

from kube.backoff import Backoff
from kube.client import Cluster
from kube.errors import TOO_MANY_REQUESTS, ApiError, Forbidden, Gone, Json, Unreachable, is_not_served
from kube.resources import Resource

T = TypeVar("T")
Subscriber = Callable[[str, T | None, T | None], None]

_log = logging.getLogger(__name__)
_WATCH_SECONDS = 180
_BACKOFF = Backoff(first=0.1, factor=2, limit=10, jitter=0.5)
_AWAY = 2.0, 3.0
"""Seconds between two tries at most while nobody answers, or a proxy answers in the server's place: between the least
and the most, by chance. What comes back is found soon, and costs nobody anything until then. A server that has too much
to do (429) is another matter."""
_NOT_SERVED = 20.0, 40.0
"""Seconds between two looks for an optional kind that is not served: between the least and the most, by chance."""
_STARTING = 5
"""Tries after which a kind that was served is taken for one that is not any more."""
_SHORT_WATCH = 1.0
"""Seconds. A watch that says nothing and ends sooner is a failure too, or a server that ends each at once would be
asked without pause."""


class Informer(Generic[T]):
    """Keys are "namespace/name", or "name" for what has no namespace."""

    def __init__(
        self,
        cluster: Cluster,
        resource: Resource,
        parse: Callable[[Json], T | None],
        *,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        optional: bool = False,
        older: Resource | None = None,
        gather: float = 0.0,
    ) -> None:
        """`parse` makes the record of an object, or None for one that is not kept. `optional`: not every cluster serves
        this kind (errors.is_not_served). That is no failure: it is said once, and asked again within a minute. Who
        waits for its first list may wait for ever. `older`: such a kind in the version that is asked for where
        `resource` is not served. `gather`: see Cluster.watch."""
        self._cluster = cluster
        self._resource = resource
        self._parse = parse
        self._namespace = namespace
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._optional = optional
        self._other_version = older
        self._gather = gather
        self._not_served = 0
        """Answers in succession that it is not served."""
        self._records: dict[str, T] = {}
        self._unreadable: set[str] = set()
        self._subscribers: list[Subscriber[T]] = []
        self._version: str | None = None
        self._synced = asyncio.Event()
        self._lost = False
        self._on_return: list[Callable[[], None]] = []
        self._unverified = False
        """Whether the server may have gone back in time since its last answer."""

    def get(self, key: str) -> T | None:
        return self._records.get(key)

    def values(self) -> list[T]:
        return list(self._records.values())

    def subscribe(self, callback: Subscriber[T]) -> None:
        """Calls `callback(key, old, new)` for each record there is, and for each change from now on, after the cache
        has it. `old` is None for a new one, `new` is None for one that went. It must not block: add to a queue."""
        self._subscribers.append(callback)
        for key, record in list(self._records.items()):
            self._call(callback, key, None, record)

    def on_return(self, callback: Callable[[], None]) -> None:
        """Calls it each time that the server answers again after it did not: what failed meanwhile can be tried."""
        self._on_return.append(callback)

    @property
    def synced(self) -> bool:
        """The first whole list is in the cache."""
        return self._synced.is_set()

    @property
    def not_served(self) -> bool:
        """Of an optional kind: the server said so when it was asked last."""
        return self._not_served >= self._versions

    @property
    def _versions(self) -> int:
        return 1 if self._other_version is None else 2

    async def wait_synced(self) -> None:
        await self._synced.wait()

    async def run(self) -> None:
        """For ever. Only cancellation ends it."""
        failures = 0
        away = soon = False
        while True:
            started = time.monotonic()
            try:
                if self._version is not None and self._unverified:
                    await self._compare()
                if self._version is None:
                    await self._relist()
                self._unverified = False
                received = await self._follow()
                self._unverified = not received
                away = soon = False
                if received or time.monotonic() - started > _SHORT_WATCH:
                    failures = 0
                    continue
                failures += 1
            except Gone as error:
                _log.info("%s: listing again: %s", self._resource, error)
                self._version = None
                # Its first answer after an outage often is that it forgot this version: it is there, and can be listed.
                failures, away, soon = (1 if soon else failures + 1), False, False
            except Exception as error:
                if self._optional and is_not_served(error):
                    await self._wait_until_served(error)
                    continue
                # One that answers "not yet" is coming back: its failures are counted anew.
                was_away, away = away, isinstance(error, Unreachable) and not error.status
                anew = time.monotonic() - started > _SHORT_WATCH or away is not was_away
                failures = 1 if anew else failures + 1
                self._lost = self._unverified = True
                self._report(error, failures)
                if isinstance(error, Unreachable) and error.retry_after:
                    await asyncio.sleep(error.retry_after)
                soon = isinstance(error, Unreachable) and error.status != TOO_MANY_REQUESTS
            pause = _BACKOFF.delay(failures)
            await asyncio.sleep(min(pause, random.uniform(*_AWAY)) if soon else pause)  # noqa: S311

    async def _wait_until_served(self, error: Exception) -> None:
        # What is served again may have been emptied meanwhile, and a watch would not show it.
        self._version = None
        self._not_served += 1
        if self._other_version is not None:
            self._resource, self._other_version = self._other_version, self._resource
            if self._not_served % 2:
                return
        if self._not_served == self._versions:
            _log.info("%s: not served to us, which is looked at again: %s", self._resource, error)
        # A server that has just started answers like one that does not have the kind.
        soon = self.synced and self._not_served <= _STARTING
        await asyncio.sleep(random.uniform(*(_AWAY if soon else _NOT_SERVED)))  # noqa: S311

    def _report(self, error: Exception, failures: int) -> None:
        if isinstance(error, Forbidden):
            _log.warning("%s: RBAC does not let us list and watch them: %s", self._resource, error)
        elif isinstance(error, ApiError):
            _log.log(logging.INFO if failures == 1 else logging.WARNING, "%s: %s", self._resource, error)
        else:
            _log.error("%s: the informer starts over after a fault of its own", self._resource, exc_info=error)
            self._version = None

    def _contact(self) -> None:
        if self._lost:
            self._lost = False
            for callback in self._on_return:
                callback()

    async def _compare(self) -> None:
        """Lists again next if the server is at an older version than we. One object of the list is enough to know."""
        pages = self._cluster.pages(
            self._resource,
            self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
            limit=1,
        )
        async with aclosing(pages):
            async for page in pages:
                self._contact()
                if _is_older(page.resource_version, self._version):
                    _log.warning(
                        "%s: the API server went back in time, from version %s to %s: listing again",
                        self._resource, self._version, page.resource_version,
                    )  # fmt: skip
                    self._version = None
                return

    async def _relist(self) -> None:
        """Takes the whole list. Nothing is deleted from the cache before all of it was read."""
        seen: set[str] = set()
        version = ""
        pages = self._cluster.pages(
            self._resource,
            self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        )
        async with aclosing(pages):
            async for page in pages:
                self._contact()
                version = page.resource_version
                for body in page.items:
                    seen.add(_key(body))
                    self._take(body)
        for key in [key for key in self._records if key not in seen]:
            self._put(key, None)
        self._unreadable &= seen
        self._version = version
        self._not_served = 0
        self._synced.set()

    async def _follow(self) -> bool:
        """Watches until the server ends it. False: without having received an event."""
        received = False
        events = self._cluster.watch(
            self._resource,
            self._namespace,
            resource_version=self._version or "",
            label_selector=self._label_selector,
            field_selector=self._field_selector,
            timeout_seconds=random.randint(_WATCH_SECONDS // 2, _WATCH_SECONDS),  # noqa: S311
            gather=self._gather,
        )
        async with aclosing(events):
            async for kind, body in events:
                received = True
                self._contact()
                version = body["metadata"]["resourceVersion"]
                if _is_older(version, self._version):
                    raise Gone(0, "", f"the API server went back in time, from version {self._version} to {version}")
                if kind == "DELETED":
                    self._unreadable.discard(_key(body))
                    self._put(_key(body), None)
                elif kind in ("ADDED", "MODIFIED"):
                    self._take(body)
                self._version = version
        self._contact()
        return received

    def _take(self, body: Json) -> None:
        """An object that can't be read keeps its last good record: to say that it is gone would be a lie, and
        somebody might act on it."""
        key = _key(body)
        try:
            record = self._parse(body)
        except Exception as error:
            if key not in self._unreadable:
                self._unreadable.add(key)
                _log.warning("%s %s can't be read and is left out: %r", self._resource, key, error)
            return
        self._unreadable.discard(key)
        self._put(key, record)

    def _put(self, key: str, record: T | None) -> None:
        old = self._records.get(key)
        if old == record:
            return
        if record is None:
            del self._records[key]
        else:
            self._records[key] = record
        for callback in list(self._subscribers):
            self._call(callback, key, old, record)

    def _call(self, callback: Subscriber[T], key: str, old: T | None, new: T | None) -> None:
        try:
            callback(key, old, new)
        except Exception:
            _log.exception("%s %s: a subscriber failed", self._resource, key)


def _key(body: Json) -> str:
    metadata = body["metadata"]
    namespace = metadata.get("namespace")
    return f"{namespace}/{metadata['name']}" if namespace else str(metadata["name"])


def _is_older(version: str, known: str | None) -> bool:
    """Versions are numbers that grow, for any one kind of objects (KEP-5504). What is none can't be compared."""
    return bool(version.isdecimal() and known and known.isdecimal() and int(version) < int(known))
