"""An API server in memory, behind the verbs of the real client: what the provisioner sees of one.

It takes requests where the client would send them, so what a verb puts into its request is the client's own.
Faithful in what its races are about: versions and conflicts, uids, preconditions, finalizers, a watch that comes later
than the write it tells of, and requests that are carried out although their answer is lost. Not in the rest.
"""

import asyncio
import copy
import itertools
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass

from kube import resources
from kube.client import (
    MERGE,
    STRATEGIC,
    AlreadyExists,
    Cluster,
    Conflict,
    Json,
    NotFound,
    Resource,
    Unreachable,
)

Key = tuple[Resource, str, str]
Disturbance = Callable[[], Awaitable[None]]
Disturbances = dict[tuple[str, str], list[Disturbance]]
Objects = list[Json]

_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/v1(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?"
    r"(?:/status)?"
)
_RESOURCES = {(each.group, each.plural): each for each in vars(resources).values() if isinstance(each, Resource)}
_VERBS = {"GET": "get", "POST": "create", "PUT": "replace", "PATCH": "patch", "DELETE": "delete"}


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

    async def _request(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        query: dict[str, str] | None = None,
        content_type: str = "application/json",
        most: int | None = None,
    ) -> Json:
        where = _PATH.fullmatch(path)
        assert where, path
        resource = _RESOURCES[where["group"] or "", where["plural"]]
        given = body if isinstance(body, dict) else {}
        verb = _VERBS[method] if where["name"] or method == "POST" else "list"
        name = where["name"] or given.get("metadata", {}).get("name", "")
        namespace = where["namespace"]
        await self._begin(verb, resource, name)
        match verb:
            case "list":
                answer = self._list(resource, namespace, query or {})
            case "create":
                answer = self._create(resource, name, given, namespace)
            case "replace":
                answer = self._replace(resource, name, given, namespace)
            case "patch":
                assert content_type in (MERGE, STRATEGIC)  # one and the same where no list is patched
                answer = self._patch(resource, name, given, namespace)
            case "delete":
                answer = self._delete(resource, name, given.get("preconditions", {}), namespace)
            case _:
                answer = self._known(resource, name, namespace)
        await self._end(verb, resource)
        return copy.deepcopy(answer)

    def _known(self, resource: Resource, name: str, namespace: str | None) -> Json:
        try:
            return self.objects[_key(resource, name, namespace)]
        except KeyError:
            raise NotFound(404, "NotFound", f"{resource} {name!r} not found") from None

    def _list(self, resource: Resource, namespace: str | None, query: Mapping[str, str]) -> Json:
        field, _, phase = query["fieldSelector"].partition("=")
        assert field in ("", "status.phase")
        key, _, value = query["labelSelector"].partition("=")
        items = [
            body
            for body in self.all(resource)
            if namespace in (None, body["metadata"].get("namespace"))
            and (not key or (body["metadata"].get("labels") or {}).get(key) == value)
            and (not field or body["status"]["phase"] == phase)
        ]
        return {"items": items, "metadata": {"resourceVersion": str(self.version())}}

    def _create(self, resource: Resource, name: str, body: Json, namespace: str | None) -> Json:
        key = _key(resource, name, namespace)
        if key in self.objects:
            raise AlreadyExists(409, "AlreadyExists", f"{resource} {name!r} already exists")
        created = copy.deepcopy(body)
        created["metadata"]["uid"] = f"uid-{next(self._versions)}"
        return self._store(key, created, "ADDED")

    def _replace(self, resource: Resource, name: str, body: Json, namespace: str | None) -> Json:
        _check_version(self._known(resource, name, namespace), body["metadata"]["resourceVersion"])
        return self._store(_key(resource, name, namespace), copy.deepcopy(body), "MODIFIED")

    def _patch(self, resource: Resource, name: str, body: Json, namespace: str | None) -> Json:
        changed = copy.deepcopy(self._known(resource, name, namespace))
        _check_version(changed, (body.get("metadata") or {}).get("resourceVersion"))
        _merge(changed, body)
        return self._store(_key(resource, name, namespace), changed, "MODIFIED")

    def _delete(self, resource: Resource, name: str, preconditions: Json, namespace: str | None) -> Json:
        found = self._known(resource, name, namespace)
        if preconditions.get("uid") not in (None, found["metadata"]["uid"]):
            raise _conflict(found)
        _check_version(found, preconditions.get("resourceVersion"))
        if not found["metadata"].get("finalizers"):
            self.remove(resource, name, namespace)
            return {}
        going = copy.deepcopy(found)
        going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        return self._store(_key(resource, name, namespace), going, "MODIFIED")

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


def _check_version(known: Json, wanted: str | None) -> None:
    if wanted not in (None, known["metadata"]["resourceVersion"]):
        raise _conflict(known)


def _conflict(known: Json) -> Conflict:
    return Conflict(409, "Conflict", f"{known['metadata']['name']} has been modified")


def _merge(target: Json, patch: Json) -> None:
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            _merge(target.setdefault(key, {}), value)
        else:
            target[key] = value
