"""The real client's verbs on the sandbox's API server in this process, without HTTP.

It takes requests where the client would send them, so what a verb puts into its request is the client's own, and what
becomes of it is the registry's. Added here is what races are made of: a watch that comes later than the write it
reports, disturbances before and after a request, and requests that are carried out although their answer is lost.
"""

import asyncio
import copy
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

from contract import names
from kube.client import Cluster
from kube.errors import Json, Unreachable, from_status
from kube.resources import Resource
from tests.inmemory import InMemory, decoded, kind_of
from tests.sandbox.apiserver import admission, codec, errors, selectors
from tests.sandbox.apiserver.reading import select
from tests.sandbox.apiserver.resources import CLAIMS, VOLUMES
from tests.sandbox.apiserver.resources import Resource as Kind
from tests.sandbox.apiserver.routing import Target, target, verb
from tests.sandbox.apiserver.server import patching
from tests.sandbox.apiserver.store import DELETED, Change, Stored
from tests.sandbox.apiserver.watching import Watch

Disturbance = Callable[[], Awaitable[None]]
Disturbances = dict[tuple[str, str], list[Disturbance]]

_PROTECTION = {VOLUMES: admission.PV_PROTECTION, CLAIMS: admission.PVC_PROTECTION}


class MemoryCluster(InMemory, Cluster):
    """`before` and `after` hold disturbances by (verb of RBAC, plural), each used once: what happens just before a
    request is carried out, or after it and before its answer. They may raise what the request is to raise."""

    def __init__(self, namespaces: Iterable[str] = (names.NAMESPACE,)) -> None:
        super().__init__(namespaces)
        self.requests: list[tuple[str, str, str]] = []
        self.before: Disturbances = {}
        self.after: Disturbances = {}
        self.watching = asyncio.Event()
        """Cleared: watches are silent, caches grow stale."""
        self.watching.set()
        self._held: dict[Kind, asyncio.Event] = {}
        for kind in _PROTECTION:
            self.store.follow(kind, self._unprotect)

    def hold(self, resource: Resource) -> asyncio.Event:
        """Until it is set, watches of this kind alone are silent."""
        return self._held.setdefault(kind_of(resource), asyncio.Event())

    async def close(self) -> None:
        return

    def guarded(self, before_write: Callable[[], None]) -> "MemoryCluster":
        """Without a guard: what it is for is tested with the lease."""
        return self

    async def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
        timeout_seconds: int = 300,
        gather: float = 0.0,
    ) -> AsyncGenerator[tuple[str, Json], None]:
        """Each change as it comes: how late a watch may be is what `watching` is for."""
        kind = kind_of(resource)
        selector = selectors.parse(kind, label_selector, field_selector)
        watch = Watch(self.store, kind, namespace or "", selector, False, math.inf, timeout_seconds)
        try:
            watch.begin({"resourceVersion": resource_version})
            async for batch in watch.batches():
                for notice in batch:
                    await self.watching.wait()
                    if held := self._held.get(kind):
                        await held.wait()
                    assert notice.stored
                    yield notice.type, decoded(notice.stored)
        except errors.ApiError as error:
            raise from_status(error.status()) from None
        finally:
            watch.end()

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
        aim = target(path)
        assert aim, path
        given: Json = copy.deepcopy(body or {})
        action = verb(method, aim, watch=False)
        self.requests.append((action, aim.resource.plural, aim.name or given.get("metadata", {}).get("name", "")))
        await asyncio.sleep(0)
        if not self.registry.serves(aim.resource):
            raise from_status(errors.no_such_path().status())
        await _disturb(self.before, action, aim.resource)
        try:
            if action == "list":
                answer = self._list(aim, query or {})
            else:
                answer = decoded(self._one(action, aim, given, content_type))
        except errors.ApiError as error:
            raise from_status(error.status()) from None
        await _disturb(self.after, action, aim.resource)
        await asyncio.sleep(0)
        return answer

    def _list(self, aim: Target, query: dict[str, str]) -> Json:
        page = select(self.store, aim.resource, aim.namespace, query)
        metadata = {"resourceVersion": str(page.revision), "continue": page.proceed}
        return {"items": [decoded(each) for each in page.items], "metadata": metadata}

    def _one(self, action: str, aim: Target, body: Json, content_type: str) -> Stored:
        where = aim.resource, aim.namespace
        match action:
            case "create":
                codec.check_kind(aim, body)
                return self.registry.create(*where, body)
            case "update":
                codec.check_kind(aim, body)
                return self.registry.replace(*where, aim.name, body, subresource=aim.subresource)[0]
            case "patch":
                change = patching(content_type, body, aim)
                return self.registry.update(*where, aim.name, change, subresource=aim.subresource)
            case "delete":
                return self.registry.delete(*where, aim.name, codec.delete_options(body, {}))[0]
        return self.registry.get(*where, aim.name)

    def _unprotect(self, change: Change) -> None:
        """What the protection controllers do a moment later: a claim that is deleted is used by no pod, and a volume
        may go when it is not bound."""
        stored = change.now
        metadata, protection = stored.object["metadata"], _PROTECTION[stored.resource]
        bound = stored.resource is VOLUMES and (stored.object.get("status") or {}).get("phase") == "Bound"
        if change.type == DELETED or bound or "deletionTimestamp" not in metadata:
            return
        if protection in (metadata.get("finalizers") or []):
            asyncio.get_running_loop().call_soon(self._remove_finalizer, stored, protection)

    def _remove_finalizer(self, stored: Stored, finalizer: str) -> None:
        def without(body: Json) -> Json:
            body["metadata"]["finalizers"] = [each for each in body["metadata"]["finalizers"] if each != finalizer]
            return body

        if self.store.get(stored.resource, stored.namespace, stored.name):
            self.registry.update(stored.resource, stored.namespace, stored.name, without)


async def lose_answer() -> None:
    raise Unreachable(0, "", "connection reset by peer")


async def _disturb(disturbances: Disturbances, action: str, resource: Kind) -> None:
    waiting = disturbances.get((action, resource.plural))
    if waiting:
        await waiting.pop(0)()
