"""What an API does by itself in the background: objects whose owners are gone go too, and namespaces that are being
deleted are emptied first. Level-triggered: a change marks what to look at, and a look decides from the present state.

Source: the "Garbage collection" part of the Kubernetes documentation, pkg/controller/garbagecollector, pkg/controller/
namespace.
"""

import asyncio
import logging

from tests.sandbox.apiserver.errors import ApiError
from tests.sandbox.apiserver.registry import DeleteOptions, Registry
from tests.sandbox.apiserver.resources import BY_KIND, NAMESPACES, RESOURCES, Json
from tests.sandbox.apiserver.store import ADDED, DELETED, Change, Stored

_log = logging.getLogger(__name__)
_FOREGROUND, _ORPHAN = "foregroundDeletion", "orphan"


class Collector:
    """Runs beside the server, in the same event loop."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._store = registry.store
        self._living: set[str] = set()
        self._dependents: dict[str, dict[tuple[str, str], Stored]] = {}
        self._marked: dict[tuple[str, str], Stored] = {}
        self._news = asyncio.Event()

    async def run(self) -> None:
        for resource in RESOURCES:
            self._store.follow(resource, self._heard)
        for stored in self._store.everything():
            self._learn(stored)
            self._mark(stored)
        while True:
            while self._marked:
                _, stored = self._marked.popitem()
                try:
                    self._look(stored)
                except ApiError as error:
                    _log.info("%s %s: %s", stored.resource.qualified, stored.key, error.message)
                await asyncio.sleep(0)
            self._news.clear()
            await self._news.wait()

    def _heard(self, change: Change) -> None:
        if change.before is not None:
            for owner in _owners(change.before.object):
                dependents = self._dependents.get(owner["uid"], {})
                dependents.pop(_identity(change.before), None)
                if not dependents:
                    self._dependents.pop(owner["uid"], None)
        if change.type == DELETED:
            self._living.discard(change.now.uid)
            for dependent in self._dependents.get(change.now.uid, {}).values():
                self._mark(dependent)
            self._mark_holders(change.now)
            return
        self._learn(change.now)
        metadata = change.now.object["metadata"]
        if "deletionTimestamp" in metadata or (change.type == ADDED and metadata.get("ownerReferences")):
            self._mark(change.now)

    def _learn(self, stored: Stored) -> None:
        self._living.add(stored.uid)
        for owner in _owners(stored.object):
            self._dependents.setdefault(owner["uid"], {})[_identity(stored)] = stored

    def _mark_holders(self, gone: Stored) -> None:
        """Whoever waits for this object to go: its namespace, and owners deleted in the foreground."""
        home = self._store.get(NAMESPACES, "", gone.namespace) if gone.namespace else None
        if home is not None and "deletionTimestamp" in home.object["metadata"]:
            self._mark(home)
        for reference in _owners(gone.object):
            resource = BY_KIND.get((reference["apiVersion"], reference["kind"]))
            if resource is not None:
                owner = self._store.get(resource, gone.namespace if resource.namespaced else "", reference["name"])
                if owner is not None and owner.uid == reference["uid"]:
                    self._mark(owner)

    def _mark(self, stored: Stored) -> None:
        self._marked[_identity(stored)] = stored
        self._news.set()

    def _look(self, marked: Stored) -> None:
        stored = self._store.get(marked.resource, marked.namespace, marked.name)
        if stored is None or stored.uid != marked.uid:
            return
        metadata = stored.object["metadata"]
        owners = _owners(stored.object)
        if owners and not any(self._may_live(owner) for owner in owners):
            self._delete(stored)
        if "deletionTimestamp" not in metadata:
            return
        finalizers = metadata.get("finalizers") or []
        if _ORPHAN in finalizers:
            self._orphan(stored)
        elif _FOREGROUND in finalizers:
            self._delete_in_foreground(stored)
        if stored.resource is NAMESPACES:
            self._empty(stored)

    def _may_live(self, owner: Json) -> bool:
        """Of an owner of a kind that is not served nothing is known, so its dependents stay."""
        return owner["uid"] in self._living or (owner["apiVersion"], owner["kind"]) not in BY_KIND

    def _delete(self, stored: Stored) -> None:
        if "deletionTimestamp" not in stored.object["metadata"]:
            options = DeleteOptions(uid=stored.uid)
            self._registry.delete(stored.resource, stored.namespace, stored.name, options)

    def _orphan(self, owner: Stored) -> None:
        for dependent in list(self._dependents.get(owner.uid, {}).values()):

            def let_go(body: Json) -> Json:
                references = body["metadata"].get("ownerReferences") or []
                body["metadata"]["ownerReferences"] = [each for each in references if each["uid"] != owner.uid]
                return body

            self._registry.update(dependent.resource, dependent.namespace, dependent.name, let_go)
        self._release(owner, _ORPHAN)

    def _delete_in_foreground(self, owner: Stored) -> None:
        blocking = list(self._dependents.get(owner.uid, {}).values())
        for dependent in blocking:
            self._delete(dependent)
        if not self._dependents.get(owner.uid):
            self._release(owner, _FOREGROUND)

    def _release(self, stored: Stored, finalizer: str) -> None:
        def release(body: Json) -> Json:
            body["metadata"]["finalizers"] = [each for each in body["metadata"]["finalizers"] if each != finalizer]
            return body

        self._registry.update(stored.resource, stored.namespace, stored.name, release)

    def _empty(self, namespace: Stored) -> None:
        left = False
        for resource in RESOURCES:
            if resource.namespaced:
                for stored in self._store.all(resource, namespace.name):
                    self._delete(stored)
                left = left or bool(self._store.all(resource, namespace.name))
        if not left:

            def finalize(body: Json) -> Json:
                body["spec"]["finalizers"] = []
                return body

            self._registry.update(NAMESPACES, "", namespace.name, finalize, subresource="finalize")


def _owners(body: Json) -> list[Json]:
    return body["metadata"].get("ownerReferences") or []


def _identity(stored: Stored) -> tuple[str, str]:
    return stored.resource.qualified, stored.uid
