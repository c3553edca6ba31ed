"""What the accounts of daemon and provisioner must be allowed to do: deploy/base grants it, and of snapshots
deploy/components/snapshots. `doctor` asks for it."""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from kube.client import Cluster
from kube.errors import ApiError
from kube.resources import (
    ATTRIBUTES_CLASSES,
    CAPACITIES,
    CLAIMS,
    CLASSES,
    EVENTS,
    LEASES,
    NAMESPACES,
    NODES,
    PODS,
    SNAPSHOT_CONTENTS,
    VOLUMES,
    Resource,
)
from kube.resources import SNAPSHOTS as VOLUME_SNAPSHOTS

Json = dict[str, Any]

IDENTITY = "kube-system"
"""The namespace whose uid identifies the cluster."""

LEASE = "elastic-local-provisioner"

_AT_ONCE = 8
"""Questions to the API server."""

_SELF = Resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews", namespaced=False)
_WHO = Resource("authentication.k8s.io", "v1", "selfsubjectreviews", namespaced=False)
_SUBJECT = Resource("authorization.k8s.io", "v1", "subjectaccessreviews", namespaced=False)


@dataclass(frozen=True)
class Permission:
    resource: Resource
    verbs: tuple[str, ...]
    subresource: str = ""
    own_namespace: bool = False
    """Only there; else in the whole cluster."""
    name: str = ""
    """Of the one object. Empty: all."""


DAEMON = (
    Permission(NODES, ("get",)),
    Permission(NAMESPACES, ("get",), name=IDENTITY),
    Permission(PODS, ("get", "list", "watch")),
    Permission(CLAIMS, ("get",)),
    Permission(VOLUMES, ("get", "list", "watch", "patch")),
    Permission(CLASSES, ("list", "watch")),
    Permission(EVENTS, ("create", "patch")),
    Permission(CAPACITIES, ("list", "watch", "create", "patch", "delete"), own_namespace=True),
)
PROVISIONER = (
    Permission(VOLUMES, ("get", "list", "watch", "create", "patch", "delete")),
    Permission(CLAIMS, ("get", "list", "watch", "patch")),
    Permission(CLAIMS, ("patch",), subresource="status"),
    Permission(PODS, ("list", "watch")),
    Permission(NODES, ("get", "list", "watch")),
    Permission(CLASSES, ("list", "watch")),
    Permission(ATTRIBUTES_CLASSES, ("list", "watch")),
    Permission(EVENTS, ("create", "patch")),
    Permission(CAPACITIES, ("list", "watch"), own_namespace=True),
    Permission(LEASES, ("create",), own_namespace=True),
    Permission(LEASES, ("get", "update"), own_namespace=True, name=LEASE),
)
ACCOUNTS = {"daemon": DAEMON, "provisioner": PROVISIONER}
_CONTENTS = (
    Permission(SNAPSHOT_CONTENTS, ("get", "list", "watch", "patch")),
    Permission(SNAPSHOT_CONTENTS, ("patch",), subresource="status"),
)
_OF_SNAPSHOTS = (*_CONTENTS, Permission(VOLUME_SNAPSHOTS, ("get",)))
SNAPSHOTS = {"daemon": _OF_SNAPSHOTS, "provisioner": _OF_SNAPSHOTS}
"""Where the component is deployed."""


async def missing(
    cluster: Cluster, account: str, namespace: str, *, own: bool, rights: Iterable[Permission] = ()
) -> list[str]:
    """What the account lacks, as text: of `rights`, or of what it always needs. `own`: it is the one that asks; else
    asking takes an administrator. Raises ApiError."""
    user = {} if own else {"user": f"system:serviceaccount:{namespace}:{account}"}
    turns = asyncio.Semaphore(_AT_ONCE)

    async def allowed(attributes: Json) -> bool:
        body = {"metadata": {}, "spec": {"resourceAttributes": attributes, **user}}
        async with turns:
            answer = await cluster.create(_SELF if own else _SUBJECT, body)
        return bool((answer.get("status") or {}).get("allowed"))

    asked = [*_attributes(rights or ACCOUNTS[account], namespace)]
    answers = await asyncio.gather(*map(allowed, asked))
    return [_text(attributes) for attributes, answer in zip(asked, answers, strict=True) if not answer]


def _text(attributes: Json) -> str:
    where = f" in {attributes['namespace']}" if "namespace" in attributes else ""
    below = f"/{attributes['subresource']}" if "subresource" in attributes else ""
    return f"{attributes['verb']} {attributes['resource']}{below}{where}"


def _attributes(permissions: Iterable[Permission], namespace: str) -> Iterator[Json]:
    for permission in permissions:
        for verb in permission.verbs:
            yield {
                "verb": verb,
                "group": permission.resource.group,
                "resource": permission.resource.plural,
                **({"subresource": permission.subresource} if permission.subresource else {}),
                **({"namespace": namespace} if permission.own_namespace else {}),
                **({"name": permission.name} if permission.name else {}),
            }


async def own_account(cluster: Cluster, namespace: str) -> str:
    """The account of ours that asks, or nothing when it is a person."""
    try:
        answer = await cluster.create(_WHO, {"metadata": {}})
    except ApiError:
        return ""
    user = str(((answer.get("status") or {}).get("userInfo") or {}).get("username") or "")
    return next((account for account in ACCOUNTS if user == f"system:serviceaccount:{namespace}:{account}"), "")
