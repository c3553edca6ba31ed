"""What every cluster has from its first second: the namespaces, and a service account `default` in each namespace."""

from tests.sandbox.apiserver.registry import Registry
from tests.sandbox.apiserver.resources import NAMESPACES, SERVICE_ACCOUNTS
from tests.sandbox.apiserver.store import ADDED, Change

_NAMES = ("default", "kube-node-lease", "kube-public", "kube-system")


def provide(registry: Registry) -> None:
    """Creates what is missing, and from now on the account of each new namespace, before its creator is answered: the
    real controller does it a moment later, and every client has to wait for it."""

    def heard(change: Change) -> None:
        if change.type == ADDED:
            _account(registry, change.now.name)

    registry.store.follow(NAMESPACES, heard)
    for name in _NAMES:
        if registry.store.get(NAMESPACES, "", name) is None:
            registry.create(NAMESPACES, "", _object("Namespace", name))
    for namespace in registry.store.all(NAMESPACES):
        if "deletionTimestamp" not in namespace.object["metadata"]:
            _account(registry, namespace.name)


def _account(registry: Registry, namespace: str) -> None:
    if registry.store.get(SERVICE_ACCOUNTS, namespace, "default") is None:
        registry.create(SERVICE_ACCOUNTS, namespace, _object("ServiceAccount", "default"))


def _object(kind: str, name: str) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}}
