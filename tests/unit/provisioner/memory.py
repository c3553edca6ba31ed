"""kube.client.Cluster in memory: what the provisioner sees of an API server, without one.

Faithful in what its races are about: versions and conflicts, uids, preconditions, finalizers, a watch that comes later
than the write it tells of, and requests that are carried out although their answer is lost. Not in the rest.
"""

import asyncio
import copy
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from kube.client import (
    MERGE,
    AlreadyExists,
    Cluster,
    Conflict,
    Json,
    NotFound,
    Page,
    Resource,
    Unreachable,
)

Key = tuple[Resource, str, str]
Disturbance = Callable[[], Awaitable[None]]
Disturbances = dict[tuple[str, str], list[Disturbance]]
Objects = list[Json]


@dataclass(frozen=True)
class Change:
    version: int
    resource: Resource
    kind: str
    body: Json


class MemoryCluster(Cluster):
    """`before` and `after` hold disturbances by (verb, plural), each used once: what happens just before a request is
    carried out, or after it and before its answer. They may raise what the request is to raise."""

    def __init__(self) -> None:
        self.objects: dict[Key, Json] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.before: Disturbances = {}
        self.after: Disturbances = {}
        self.watching = asyncio.Event()
        """Cleared: watches are silent, caches grow stale."""
        self.watching.set()
        self._versions = itertools.count(1)
        self._history: list[Change] = []
        self._changed = asyncio.Condition()

    async def close(self) -> None:
        return

    def guarded(self, before_write: Callable[[], None]) -> "MemoryCluster":
        """Without a guard: what it is for is tested with the lease."""
        return self

    def version(self) -> int:
        return self._history[-1].version if self._history else 0

    def put(self, resource: Resource, body: Json) -> Json:
        """Creates or replaces without being asked through the API."""
        metadata = body["metadata"]
        key = _key(resource, metadata["name"], metadata.get("namespace"))
        known = self.objects.get(key)
        body = copy.deepcopy(body)
        uid = known["metadata"]["uid"] if known else f"uid-{next(self._versions)}"
        body["metadata"].setdefault("uid", uid)
        return self._store(key, body, "MODIFIED" if known else "ADDED")

    def remove(self, resource: Resource, name: str, namespace: str | None = None) -> None:
        key = _key(resource, name, namespace)
        body = self.objects.pop(key)
        self._record(resource, "DELETED", body)

    def all(self, resource: Resource) -> Objects:
        return [body for (kind, _, _), body in self.objects.items() if kind == resource]

    def messages(self, reason: str) -> list[str]:
        return [
            str(body["message"])
            for (kind, _, _), body in self.objects.items()
            if kind.plural == "events" and body["reason"] == reason
        ]

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> Json:
        await self._begin("get", resource, name)
        found = self.objects.get(_key(resource, name, namespace))
        if found is None:
            raise _not_found(resource, name)
        return copy.deepcopy(found)

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
    ) -> Objects:
        assert not field_selector
        await self._begin("list", resource, "")
        key, _, value = label_selector.partition("=")
        return [
            copy.deepcopy(body)
            for body in self.all(resource)
            if not key or (body["metadata"].get("labels") or {}).get(key) == value
        ]

    async def pages(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        limit: int = 500,
    ) -> AsyncGenerator[Page, None]:
        version = str(self.version())
        yield Page(await self.list(resource, namespace, label_selector=label_selector), version)

    async def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
        timeout_seconds: int = 300,
    ) -> AsyncGenerator[tuple[str, Json], None]:
        told = int(resource_version)
        while True:
            await self.watching.wait()
            for change in [change for change in self._history if change.version > told]:
                told = change.version
                if change.resource == resource:
                    yield change.kind, copy.deepcopy(change.body)
            async with self._changed:
                while self.version() <= told:
                    await self._changed.wait()

    async def create(
        self, resource: Resource, body: Json, namespace: str | None = None, subresource: str | None = None
    ) -> Json:
        name = body["metadata"]["name"]
        await self._begin("create", resource, name)
        key = _key(resource, name, namespace or body["metadata"].get("namespace"))
        if key in self.objects:
            raise AlreadyExists(409, "AlreadyExists", f"{resource} {name!r} already exists")
        created = copy.deepcopy(body)
        created["metadata"]["uid"] = f"uid-{next(self._versions)}"
        self._store(key, created, "ADDED")
        await self._end("create", resource)
        return copy.deepcopy(created)

    async def replace(
        self,
        resource: Resource,
        name: str,
        body: Json,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> Json:
        await self._begin("replace", resource, name)
        key = _key(resource, name, namespace)
        if key not in self.objects:
            raise _not_found(resource, name)
        if body["metadata"].get("resourceVersion") != self.objects[key]["metadata"]["resourceVersion"]:
            raise _conflict(name)
        self._store(key, copy.deepcopy(body), "MODIFIED")
        return copy.deepcopy(self.objects[key])

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: Json | Objects,
        namespace: str | None = None,
        subresource: str | None = None,
        content_type: str = MERGE,
    ) -> Json:
        assert isinstance(body, dict)
        await self._begin("patch", resource, name)
        key = _key(resource, name, namespace)
        if key not in self.objects:
            raise _not_found(resource, name)
        changed = copy.deepcopy(self.objects[key])
        wanted = (body.get("metadata") or {}).get("resourceVersion")
        if wanted not in (None, changed["metadata"]["resourceVersion"]):
            raise _conflict(name)
        _merge(changed, body)
        self._store(key, changed, "MODIFIED")
        await self._end("patch", resource)
        return copy.deepcopy(changed)

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        await self._begin("delete", resource, name)
        key = _key(resource, name, namespace)
        found = self.objects.get(key)
        if found is None:
            raise _not_found(resource, name)
        metadata = found["metadata"]
        if uid not in (None, metadata["uid"]) or resource_version not in (None, metadata["resourceVersion"]):
            raise _conflict(name)
        if metadata.get("finalizers"):
            going = copy.deepcopy(found)
            going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            self._store(key, going, "MODIFIED")
        else:
            self.remove(resource, name, namespace)
        await self._end("delete", resource)

    async def _begin(self, verb: str, resource: Resource, name: str) -> None:
        self.requests.append((verb, resource.plural, name))
        await asyncio.sleep(0)
        await self._disturb(self.before, verb, resource)

    async def _end(self, verb: str, resource: Resource) -> None:
        async with self._changed:
            self._changed.notify_all()
        await self._disturb(self.after, verb, resource)
        await asyncio.sleep(0)

    async def _disturb(self, disturbances: Disturbances, verb: str, resource: Resource) -> None:
        waiting = disturbances.get((verb, resource.plural))
        if waiting:
            await waiting.pop(0)()

    def _store(self, key: Key, body: Json, kind: str) -> Json:
        version = next(self._versions)
        body["metadata"]["resourceVersion"] = str(version)
        self.objects[key] = body
        self._record(key[0], kind, body, version)
        return body

    def _record(self, resource: Resource, kind: str, body: Json, version: int | None = None) -> None:
        body = copy.deepcopy(body)
        version = version or next(self._versions)
        body["metadata"]["resourceVersion"] = str(version)
        self._history.append(Change(version, resource, kind, body))
        asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(self._notify()))

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


async def lose_answer() -> None:
    raise Unreachable(0, "", "connection reset by peer")


def _key(resource: Resource, name: str, namespace: str | None) -> Key:
    return resource, (namespace or "") if resource.namespaced else "", name


def _not_found(resource: Resource, name: str) -> NotFound:
    return NotFound(404, "NotFound", f"{resource} {name!r} not found")


def _conflict(name: str) -> Conflict:
    return Conflict(409, "Conflict", f"{name} has been modified")


def _merge(target: Json, patch: Json) -> None:
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            _merge(target.setdefault(key, {}), value)
        else:
            target[key] = value
