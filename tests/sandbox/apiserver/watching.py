"""Watches: replay what was missed, then follow. An object that leaves the selector is told as deleted.

Source: k8s.io/apiserver/pkg/storage/cacher and the "Efficient detection of changes" part of the API concepts.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from tests.sandbox.apiserver import errors, selectors
from tests.sandbox.apiserver.reading import revision_of
from tests.sandbox.apiserver.resources import Resource
from tests.sandbox.apiserver.store import ADDED, DELETED, Change, Store, Stored

BOOKMARK, ERROR = "BOOKMARK", "ERROR"


@dataclass(frozen=True)
class Notice:
    """One event of a watch. A bookmark carries nothing but the revision; an error, nothing but the status."""

    type: str
    stored: Stored | None = None
    change: Change | None = None
    """The change whose line may be sent as it is."""
    revision: int = 0
    initial_end: bool = False


@dataclass
class Watch:
    """One client's watch. Iterating it ends after `seconds`, and never otherwise."""

    store: Store
    resource: Resource
    namespace: str
    selector: selectors.Selector
    bookmarks: bool
    bookmark_seconds: float
    seconds: float
    _waiting: deque[Change] = field(default_factory=deque)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _first: list[Notice] = field(default_factory=list)

    def begin(self, query: Mapping[str, str]) -> None:
        """Takes the place in history that the query asks for. Raises Expired."""
        revision = revision_of(query)
        initial = query.get("sendInitialEvents")
        if initial is not None and query.get("resourceVersionMatch") != "NotOlderThan":
            message = (
                "sendInitialEvents: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            )
            raise errors.ApiError(422, "Invalid", message)
        if initial == "true" or (initial is None and not revision):
            if revision and revision > self.store.revision:
                raise errors.too_new(revision, self.store.revision)
            for each in self.store.all(self.resource, self.namespace):
                if self.selector.admits(each.object):
                    self._first.append(Notice(ADDED, each))
            if initial == "true" and self.bookmarks:
                self._first.append(Notice(BOOKMARK, revision=self.store.revision, initial_end=True))
        else:
            self._waiting.extend(self.store.since(self.resource, revision or self.store.revision))
        self.store.follow(self.resource, self._heard)

    def end(self) -> None:
        self.store.unfollow(self.resource, self._heard)

    def _heard(self, change: Change) -> None:
        self._waiting.append(change)
        self._news.set()

    async def batches(self) -> AsyncIterator[list[Notice]]:
        """What there is to say, as soon as there is any."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self.seconds
        next_bookmark = clock() + self.bookmark_seconds
        batch, self._first = self._first, []
        while True:
            self._news.clear()
            batch += self._drain()
            if self.bookmarks and clock() >= next_bookmark:
                next_bookmark = clock() + self.bookmark_seconds
                batch.append(Notice(BOOKMARK, revision=self.store.revision))
            if batch:
                yield batch
                batch = []
            if clock() >= deadline:
                return
            until = min(deadline, next_bookmark) if self.bookmarks else deadline
            try:
                async with asyncio.timeout_at(until):
                    await self._news.wait()
            except TimeoutError:
                continue

    def _drain(self) -> list[Notice]:
        notices = []
        while self._waiting:
            notice = self._seen(self._waiting.popleft())
            if notice is not None:
                notices.append(notice)
        return notices

    def _seen(self, change: Change) -> Notice | None:
        """The change as the selector shows it."""
        if self.namespace and change.now.namespace != self.namespace:
            return None
        before = change.before is not None and self.selector.admits(change.before.object)
        now = change.type != DELETED and self.selector.admits(change.now.object)
        if (now and before) or (change.type == ADDED and now) or (change.type == DELETED and before):
            return Notice(change.type, change.now, change)
        if now:
            return Notice(ADDED, change.now)
        if before:
            return Notice(DELETED, change.now)
        return None
