"""What an API does by itself in the background: objects whose owners are gone go too, and namespaces that are being
deleted are emptied first. Level-triggered: a change marks what to look at, and a look decides from the present state.

Source: pkg/controller/garbagecollector/garbagecollector.go and pkg/controller/namespace of Kubernetes 1.36.2.
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
            for dependent in self._dependents.get(change.now.uid, {}).values():
                self._mark(dependent)
            self._mark_holders(change.now)
            return
        self._learn(change.now)
        metadata = change.now.object["metadata"]
        if "deletionTimestamp" in metadata or (change.type == ADDED and metadata.get("ownerReferences")):
            self._mark(change.now)

    def _learn(self, stored: Stored) -> None:
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
        if "deletionTimestamp" not in metadata:
            self._collect(stored)
            return
        finalizers = metadata.get("finalizers") or []
        if _ORPHAN in finalizers:
            self._orphan(stored)
        elif _FOREGROUND in finalizers:
            self._delete_in_foreground(stored)
        if stored.resource is NAMESPACES:
            self._empty(stored)

    def _collect(self, stored: Stored) -> None:
        """The object goes when none of its owners keeps it, and forgets those that don't while one does
        (attemptToDeleteItem)."""
        kinds = {owner["uid"]: self._standing(stored, owner) for owner in _owners(stored.object)}
        if not kinds:
            return
        if "solid" not in kinds.values():
            waited_for = "waiting" in kinds.values() and self._dependents.get(stored.uid)
            self._delete(stored, "Foreground" if waited_for else "")
        elif lost := {uid for uid, standing in kinds.items() if standing != "solid"}:
            self._let_go(stored, lost)

    def _standing(self, stored: Stored, reference: Json) -> str:
        """Of an owner: solid, dangling (it is gone), or waiting until its dependents are. Of one of a kind that is not
        served nothing is known, nor of one in a namespace that the dependent does not have: it counts as solid."""
        resource = BY_KIND.get((reference["apiVersion"], reference["kind"]))
        if resource is None or (resource.namespaced and not stored.namespace):
            return "solid"
        owner = self._store.get(resource, stored.namespace if resource.namespaced else "", reference["name"])
        if owner is None or owner.uid != reference["uid"]:
            return "dangling"
        going = "deletionTimestamp" in owner.object["metadata"]
        return "waiting" if going and _FOREGROUND in (owner.object["metadata"].get("finalizers") or []) else "solid"

    def _delete(self, stored: Stored, propagation: str = "") -> None:
        if "deletionTimestamp" not in stored.object["metadata"]:
            options = DeleteOptions(uid=stored.uid, propagation=propagation)
            self._registry.delete(stored.resource, stored.namespace, stored.name, options)

    def _let_go(self, dependent: Stored, owners: set[str]) -> None:
        """The dependent forgets the owners of these uids."""

        def let_go(body: Json) -> Json:
            references = body["metadata"].get("ownerReferences") or []
            body["metadata"]["ownerReferences"] = [each for each in references if each["uid"] not in owners]
            return body

        self._registry.update(dependent.resource, dependent.namespace, dependent.name, let_go)

    def _orphan(self, owner: Stored) -> None:
        for dependent in list(self._dependents.get(owner.uid, {}).values()):
            self._let_go(dependent, {owner.uid})
        self._release(owner, _ORPHAN)

    def _delete_in_foreground(self, owner: Stored) -> None:
        """Only dependents that block are waited for; the others are collected when it is gone."""
        for dependent in self._blocking(owner):
            if "deletionTimestamp" not in dependent.object["metadata"]:
                self._collect(dependent)
        if not self._blocking(owner):
            self._release(owner, _FOREGROUND)

    def _blocking(self, owner: Stored) -> list[Stored]:
        return [
            dependent
            for dependent in self._dependents.get(owner.uid, {}).values()
            if any(each["uid"] == owner.uid and each.get("blockOwnerDeletion") for each in _owners(dependent.object))
        ]

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
