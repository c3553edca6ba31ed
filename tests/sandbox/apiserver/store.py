"""The objects, one growing revision for all of them, and per resource the bounded history that watches replay.

An object is never changed once stored: whoever wants another one stores another one. That makes reads free of copies
and lets an earlier state be told from the present one and the history, which is how a list is paged consistently.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from tests.sandbox.apiserver import errors
from tests.sandbox.apiserver.journal import Journal
from tests.sandbox.apiserver.resources import BY_QUALIFIED, RESOURCES, Json, Resource

ADDED, MODIFIED, DELETED = "ADDED", "MODIFIED", "DELETED"


@dataclass(frozen=True)
class Stored:
    """An object as stored, and its encodings, made once however many clients ask."""

    resource: Resource
    object: Json

    @cached_property
    def item(self) -> bytes:
        """Without kind and apiVersion, as in the items of a list."""
        return encode({key: value for key, value in self.object.items() if key not in ("kind", "apiVersion")})

    @cached_property
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
        return _ordered(self._objects[resource], namespace)

    def all_at(self, resource: Resource, namespace: str, revision: int) -> list[Stored]:
        """As of an earlier revision. Raises Expired when the history does not reach back so far."""
        objects = dict(self._objects[resource])
        for change in reversed(self.since(resource, revision)):
            if change.before is None:
                objects.pop(change.now.key, None)
            else:
                objects[change.now.key] = change.before
        return _ordered(objects, namespace)

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
        return [change for change in self._history[resource] if change.revision > revision]

    def follow(self, resource: Resource, follower: Callable[[Change], None]) -> None:
        self._followers[resource].add(follower)

    def unfollow(self, resource: Resource, follower: Callable[[Change], None]) -> None:
        self._followers[resource].discard(follower)

    def close(self) -> None:
        self._journal.close()


def _ordered(objects: dict[str, Stored], namespace: str) -> list[Stored]:
    prefix = f"{namespace}/" if namespace else ""
    return [objects[key] for key in sorted(objects) if key.startswith(prefix)]
