"""The objects, one growing revision for all of them, and per resource the bounded history that watches replay.

An object is never changed once stored: whoever wants another one stores another one. That makes reads free of copies
and lets an earlier state be told from the present one and the history, which is how a list is paged consistently. The
keys are kept in order, so that a page costs what it has, and not what the whole list has.
"""

import json
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

from tests.sandbox.apiserver import errors
from tests.sandbox.apiserver.journal import Journal
from tests.sandbox.apiserver.resources import BY_QUALIFIED, RESOURCES, Json, Resource

ADDED, MODIFIED, DELETED = "ADDED", "MODIFIED", "DELETED"


@dataclass(frozen=True)
class Stored:
    """An object as stored, and its encoding, made once however many clients ask."""

    resource: Resource
    object: Json

    @cached_property
    def item(self) -> bytes:
        """Without kind and apiVersion, as in the items of a list."""
        return encode({key: value for key, value in self.object.items() if key not in ("kind", "apiVersion")})

    @property
    def encoded(self) -> bytes:
        head = f'{{"kind":"{self.resource.kind}","apiVersion":"{self.resource.api_version}",'
        return head.encode() + self.item[1:]

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.object["metadata"].get("namespace", ""))

    @property
    def key(self) -> str:
        return key_of(self.namespace, self.name)

    @property
    def uid(self) -> str:
        return str(self.object["metadata"]["uid"])

    @property
    def revision(self) -> int:
        return int(self.object["metadata"]["resourceVersion"])


@dataclass(frozen=True)
class Change:
    """One step of the history."""

    type: str
    revision: int
    now: Stored
    before: Stored | None

    @cached_property
    def line(self) -> bytes:
        return watch_line(self.type, self.now)


def watch_line(change: str, stored: Stored) -> bytes:
    return f'{{"type":"{change}","object":'.encode() + stored.encoded + b"}\n"


def encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def key_of(namespace: str, name: str) -> str:
    return f"{namespace}/{name}" if namespace else name


class Store:
    """All objects. Not for threads: the event loop's single one is what makes a request atomic."""

    def __init__(self, journal: Journal, history: int) -> None:
        self._journal = journal
        self.revision = 1
        self._objects: dict[Resource, dict[str, Stored]] = {each: {} for each in RESOURCES}
        self._keys: dict[Resource, list[str]] = {each: [] for each in RESOURCES}
        """In the order of a list."""
        self._history: dict[Resource, deque[Change]] = {each: deque(maxlen=history) for each in RESOURCES}
        self._followers: dict[Resource, set[Callable[[Change], None]]] = {each: set() for each in RESOURCES}
        self._load()
        self._oldest = dict.fromkeys(RESOURCES, self.revision)

    def _load(self) -> None:
        for entry in self._journal.read():
            self.revision = max(self.revision, entry.revision)
            resource = BY_QUALIFIED.get(entry.resource)
            if resource is None:
                continue
            if entry.object is None:
                self._objects[resource].pop(entry.key, None)
            else:
                self._objects[resource][entry.key] = Stored(resource, entry.object)
        self._keys = {resource: sorted(objects) for resource, objects in self._objects.items()}
        self._journal.compact(
            self.revision,
            (
                (resource.qualified, key, stored.encoded, stored.revision)
                for resource, objects in self._objects.items()
                for key, stored in objects.items()
            ),
        )

    def get(self, resource: Resource, namespace: str, name: str) -> Stored | None:
        return self._objects[resource].get(key_of(namespace, name))

    def all(self, resource: Resource, namespace: str = "") -> list[Stored]:
        """In the order of their keys, which is the order of a list."""
        objects = self._objects[resource]
        return [objects[key] for key in _within(self._keys[resource], namespace)]

    def at(self, resource: Resource, namespace: str, revision: int, start: str) -> tuple[list[str], "Lookup"]:
        """As of an earlier revision, or the present one: the keys from `start` on, in order, and what they stand for.
        Raises Expired when the history does not reach back so far."""
        objects = self._objects[resource]
        past = {change.now.key: change.before for change in reversed(self.since(resource, revision))}
        keys = _within(self._keys[resource], namespace, start)
        if not past:
            return keys, objects.__getitem__
        gone = (key for key, stored in past.items() if stored is not None and key not in objects)
        keys = [key for key in keys if past.get(key, objects[key]) is not None]
        keys = sorted([*keys, *_within(sorted(gone), namespace, start)])
        return keys, lambda key: past.get(key) or objects[key]

    def everything(self) -> Iterable[Stored]:
        for objects in self._objects.values():
            yield from list(objects.values())

    def write(self, resource: Resource, body: Json) -> Stored:
        """Stores `body`, which is the store's from now on, under a new revision."""
        self.revision += 1
        body["metadata"]["resourceVersion"] = str(self.revision)
        now = Stored(resource, body)
        self._journal.append(self.revision, resource.qualified, now.key, now.encoded)
        before = self._objects[resource].get(now.key)
        if before is None:
            insort(self._keys[resource], now.key)
        self._objects[resource][now.key] = now
        self._publish(Change(MODIFIED if before else ADDED, self.revision, now, before))
        return now

    def remove(self, stored: Stored) -> Stored:
        """Removes the object; the answer is its last state under the revision of its removal."""
        self.revision += 1
        last = stored.object | {"metadata": stored.object["metadata"] | {"resourceVersion": str(self.revision)}}
        now = Stored(stored.resource, last)
        self._journal.append(self.revision, stored.resource.qualified, stored.key, None)
        before = self._objects[stored.resource].pop(stored.key)
        keys = self._keys[stored.resource]
        del keys[bisect_left(keys, stored.key)]
        self._publish(Change(DELETED, self.revision, now, before))
        return now

    def _publish(self, change: Change) -> None:
        resource = change.now.resource
        history = self._history[resource]
        if len(history) == history.maxlen:
            self._oldest[resource] = history[0].revision
        history.append(change)
        for follower in tuple(self._followers[resource]):
            follower(change)

    def since(self, resource: Resource, revision: int) -> list[Change]:
        """The changes after `revision`. Raises Expired when some of them are forgotten."""
        if revision > self.revision:
            raise errors.too_new(revision, self.revision)
        if revision < self._oldest[resource]:
            raise errors.expired(f"too old resource version: {revision} ({self._oldest[resource]})")
        recent = takewhile(lambda change: change.revision > revision, reversed(self._history[resource]))
        return list(recent)[::-1]

    def follow(self, resource: Resource, follower: Callable[[Change], None]) -> None:
        self._followers[resource].add(follower)

    def unfollow(self, resource: Resource, follower: Callable[[Change], None]) -> None:
        self._followers[resource].discard(follower)

    def close(self) -> None:
        self._journal.close()


Lookup = Callable[[str], Stored]


def _within(keys: list[str], namespace: str, start: str = "") -> list[str]:
    """Those of a namespace, empty for all, from `start` on. `keys` are in order."""
    first, end = (f"{namespace}/", f"{namespace}0") if namespace else ("", None)  # "0" comes right after "/"
    return keys[bisect_left(keys, max(first, start)) : len(keys) if end is None else bisect_left(keys, end)]
