"""What the accounts of daemon and provisioner must be allowed to do: deploy/base grants it, `doctor` asks for it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from kube.client import (
    CAPACITIES,
    CLAIMS,
    CLASSES,
    EVENTS,
    LEASES,
    NAMESPACES,
    NODES,
    PODS,
    VOLUMES,
    ApiError,
    Cluster,
    Resource,
)

Json = dict[str, Any]

IDENTITY = "kube-system"
"""The namespace whose uid tells the cluster from others."""

LEASE = "elastic-local-provisioner"

_SELF = Resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews", namespaced=False)
_WHO = Resource("authentication.k8s.io", "v1", "selfsubjectreviews", namespaced=False)
_SUBJECT = Resource("authorization.k8s.io", "v1", "subjectaccessreviews", namespaced=False)


@dataclass(frozen=True)
class Right:
    resource: Resource
    verbs: tuple[str, ...]
    own_namespace: bool = False
    """Only there; else in the whole cluster."""
    name: str = ""
    """Of the one object. Empty: all."""


DAEMON = (
    Right(NODES, ("get",)),
    Right(NAMESPACES, ("get",), name=IDENTITY),
    Right(PODS, ("get", "list", "watch")),
    Right(CLAIMS, ("get",)),
    Right(VOLUMES, ("get", "list", "watch", "patch")),
    Right(CLASSES, ("list", "watch")),
    Right(EVENTS, ("create", "patch")),
    Right(CAPACITIES, ("list", "watch", "create", "patch", "delete"), own_namespace=True),
)
PROVISIONER = (
    Right(VOLUMES, ("get", "list", "watch", "create", "patch", "delete")),
    Right(CLAIMS, ("get", "list", "watch", "patch")),
    Right(NODES, ("get", "list", "watch")),
    Right(CLASSES, ("list", "watch")),
    Right(EVENTS, ("create", "patch")),
    Right(CAPACITIES, ("list", "watch"), own_namespace=True),
    Right(LEASES, ("create",), own_namespace=True),
    Right(LEASES, ("get", "update"), own_namespace=True, name=LEASE),
)
ACCOUNTS = {"daemon": DAEMON, "provisioner": PROVISIONER}


async def missing(cluster: Cluster, account: str, namespace: str, *, own: bool) -> list[str]:
    """What the account lacks, in words. `own`: it is the one that asks; else asking takes an administrator. Raises
    ApiError."""
    absent = []
    for attributes in _attributes(ACCOUNTS[account], namespace):
        user = {} if own else {"user": f"system:serviceaccount:{namespace}:{account}"}
        body = {"metadata": {}, "spec": {"resourceAttributes": attributes, **user}}
        answer = await cluster.create(_SELF if own else _SUBJECT, body)
        if not (answer.get("status") or {}).get("allowed"):
            where = f" in {attributes['namespace']}" if "namespace" in attributes else ""
            absent.append(f"{attributes['verb']} {attributes['resource']}{where}")
    return absent


def _attributes(rights: Iterable[Right], namespace: str) -> Iterator[Json]:
    for right in rights:
        for verb in right.verbs:
            yield {
                "verb": verb,
                "group": right.resource.group,
                "resource": right.resource.plural,
                **({"namespace": namespace} if right.own_namespace else {}),
                **({"name": right.name} if right.name else {}),
            }


async def own_account(cluster: Cluster, namespace: str) -> str:
    """The account of ours that asks, or nothing when it is a person."""
    try:
        answer = await cluster.create(_WHO, {"metadata": {}})
    except ApiError:
        return ""
    user = str(((answer.get("status") or {}).get("userInfo") or {}).get("username") or "")
    return next((account for account in ACCOUNTS if user == f"system:serviceaccount:{namespace}:{account}"), "")
