"""A claim that goes while its volume is being provisioned, made or formatted: nothing of it is left anywhere."""

import asyncio
import functools
from collections.abc import Awaitable, Callable

import pytest

from kube.client import Cluster
from kube.resources import CLAIMS, PODS, VOLUMES
from tests.cluster import onnode
from tests.cluster.conftest import MakeClass
from tests.cluster.published import is_all_free
from tests.sandbox.nodes import Node
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until

Moment = Callable[[Sandbox, Namespace, str], Awaitable[None]]

_NUMBER = 6


async def created(sandbox: Sandbox, namespace: Namespace, name: str) -> None:
    """At once."""


async def selected(sandbox: Sandbox, namespace: Namespace, name: str) -> None:
    """When the scheduler has chosen a node."""
    await namespace.until(
        CLAIMS,
        name,
        lambda body: "volume.kubernetes.io/selected-node" in body["metadata"].get("annotations", {}),
        what="has a node",
    )


async def provisioned(sandbox: Sandbox, namespace: Namespace, name: str) -> None:
    """When it has a PersistentVolume."""
    uid = (await namespace.get(CLAIMS, name))["metadata"]["uid"]
    await namespace.until(VOLUMES, f"pvc-{uid}", lambda body: True, what="exists")


async def begun(sandbox: Sandbox, namespace: Namespace, name: str) -> None:
    """When its node has begun to make the volume."""
    volume = f"pvc-{(await namespace.get(CLAIMS, name))['metadata']['uid']}"
    await until(
        lambda: any(volume in onnode.sizes(node) for node in sandbox.nodes.values()), what="the volume is being made"
    )


@pytest.mark.parametrize("moment", [created, selected, provisioned, begun])
async def test_nothing_is_left_of_claims_that_go(sandbox: Sandbox, namespace: Namespace, moment: Moment) -> None:
    claims = [f"data-{number}" for number in range(_NUMBER)]

    async def live_and_let_die(name: str) -> None:
        await namespace.create(CLAIMS, claim(name, "16Mi"))
        await namespace.create(PODS, pod(name, {"/data": name}))
        await moment(sandbox, namespace, name)
        await namespace.delete(CLAIMS, name)
        await namespace.delete(PODS, name)

    await asyncio.gather(*(live_and_let_die(name) for name in claims))
    await until_nothing_is_left(sandbox, namespace, claims)
    await until(lambda: is_all_free(sandbox), what="all room is free again")


@pytest.mark.parametrize("moment", [created, provisioned])
async def test_nothing_is_left_of_claims_without_a_pod(
    sandbox: Sandbox, namespace: Namespace, make_class: MakeClass, moment: Moment
) -> None:
    storage_class = await make_class("Immediate")
    claims = [f"data-{number}" for number in range(_NUMBER)]

    async def live_and_let_die(name: str) -> None:
        await namespace.create(CLAIMS, claim(name, "16Mi", storage_class))
        await moment(sandbox, namespace, name)
        await namespace.delete(CLAIMS, name)

    await asyncio.gather(*(live_and_let_die(name) for name in claims))
    await until_nothing_is_left(sandbox, namespace, claims)


async def until_nothing_is_left(sandbox: Sandbox, namespace: Namespace, claims: list[str]) -> None:
    for name in claims:
        await namespace.until_gone(PODS, name)
        await namespace.until_gone(CLAIMS, name)
    await until(lambda: _is_clean(sandbox.api, namespace.name), what="no volume is left")
    for node in sandbox.nodes.values():
        await until(functools.partial(_is_empty, node), what=f"nothing is left on {node.name}")


def _is_empty(node: Node) -> bool:
    return not list(node.data.rglob("*pvc-*")) and not list(node.staging.iterdir())


async def _is_clean(api: Cluster, namespace: str) -> bool:
    return not [
        volume
        for volume in await api.list(VOLUMES)
        if (volume["spec"].get("claimRef") or {}).get("namespace") == namespace
    ]
