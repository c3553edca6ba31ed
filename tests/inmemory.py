"""The sandbox's API server in the process of a test: the real registry over a store that nothing is written from, and
the objects in it for tests to set and to look at."""

import copy
import json
import uuid
from collections.abc import Iterable

from kube.resources import EVENTS, Resource
from tests.sandbox.apiserver import builtin, defaults, validation
from tests.sandbox.apiserver.journal import NoJournal
from tests.sandbox.apiserver.registry import Registry
from tests.sandbox.apiserver.resources import BY_PATH, NAMESPACES, Json
from tests.sandbox.apiserver.resources import Resource as Kind
from tests.sandbox.apiserver.store import Store, Stored

Objects = list[Json]

_HISTORY = 100_000
"""Changes that a watch can begin at: all that a test makes."""


class InMemory:
    """`namespaces` are there from the start, beside those that every cluster has."""

    def __init__(self, namespaces: Iterable[str] = ()) -> None:
        self.store = Store(NoJournal(), _HISTORY)
        self.registry = Registry(self.store)
        builtin.provide(self.registry)
        for name in namespaces:
            self.registry.create(NAMESPACES, "", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    def put(self, resource: Resource, body: Json) -> Json:
        """Creates or replaces, status and all, without being asked through the API. Takes only what the API server
        would have stored: it fills in the defaults, and what is not valid fails the test."""
        kind = kind_of(resource)
        body = {**copy.deepcopy(body), "apiVersion": kind.api_version, "kind": kind.kind}
        metadata = body["metadata"]
        present = self.store.get(kind, metadata.get("namespace", ""), metadata["name"])
        metadata.setdefault("uid", present.uid if present else str(uuid.uuid4()))
        defaults.fill_in(body)
        causes = [str(cause) for cause in validation.check(kind, body)]
        assert not causes, f"{kind.kind} {metadata['name']}: {', '.join(causes)}"
        return decoded(self.store.write(kind, body))

    def remove(self, resource: Resource, name: str, namespace: str = "") -> None:
        """Removes without being asked through the API, whatever the finalizers."""
        stored = self.store.get(kind_of(resource), namespace, name)
        assert stored, f"there is no {resource} {name}"
        self.store.remove(stored)

    def stored(self, resource: Resource, name: str, namespace: str = "") -> Json | None:
        stored = self.store.get(kind_of(resource), namespace, name)
        return decoded(stored) if stored else None

    def all(self, resource: Resource) -> Objects:
        """In the order of their names."""
        return [decoded(stored) for stored in self.store.all(kind_of(resource))]

    def messages(self, reason: str) -> list[str]:
        """Of the events of that reason."""
        return [str(body["message"]) for body in self.all(EVENTS) if body["reason"] == reason]


def kind_of(resource: Resource) -> Kind:
    """The resource as the sandbox knows it."""
    return BY_PATH[resource.group, resource.version, resource.plural]


def decoded(stored: Stored) -> Json:
    """A copy that a test may change."""
    body: Json = json.loads(stored.encoded)
    return body
