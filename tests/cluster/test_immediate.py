"""A class with Immediate: the volume has no node until the first mount ties it to one, for good."""

import asyncio
from typing import Any

from contract import names
from kube.resources import CLAIMS, PODS, VOLUMES
from tests.cluster import onnode
from tests.cluster.conftest import MakeClass
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, is_ready, pod

Json = dict[str, Any]

_KUBELETS_WORDS = "no matching NodeSelectorTerms"
"""Once the volume is tied to a node, the other nodes' kubelets don't even ask our driver."""


def hostnames(volume: Json) -> list[str]:
    """Of its node affinity."""
    [term] = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
    [expression] = term["matchExpressions"]
    values: list[str] = expression["values"]
    return values


async def test_the_first_mount_ties_the_volume_to_its_node(
    sandbox: Sandbox, namespace: Namespace, make_class: MakeClass
) -> None:
    await namespace.create(CLAIMS, claim("data", "16Mi", await make_class("Immediate")))
    unplaced = await namespace.until_bound("data")
    name = unplaced["metadata"]["name"]
    assert "nodeAffinity" not in unplaced["spec"]
    assert names.FINALIZER not in unplaced["metadata"]["finalizers"]
    assert names.NODE_LABEL not in unplaced["metadata"].get("labels", {})
    assert not any(name in onnode.sizes(node) for node in sandbox.nodes.values())

    await namespace.create(PODS, pod("first", {"/data": "data"}, nodeName="node-b"))
    await namespace.until_running("first")
    placed = await sandbox.api.get(VOLUMES, name)
    assert hostnames(placed) == ["ip-10-0-0-2.internal"]
    assert placed["metadata"]["labels"][names.NODE_LABEL] == "node-b"
    assert placed["metadata"]["annotations"][names.POOL_ANNOTATION] == "loop"
    assert set(unplaced["metadata"]["finalizers"]) | {names.FINALIZER} == set(placed["metadata"]["finalizers"])

    await namespace.create(PODS, pod("second", {"/data": "data"}))
    assert sandbox.node_of(await namespace.until_running("second")).name == "node-b"


async def test_of_two_nodes_that_mount_at_once_one_gets_the_volume(
    sandbox: Sandbox, namespace: Namespace, make_class: MakeClass
) -> None:
    await namespace.create(CLAIMS, claim("data", "16Mi", await make_class("Immediate")))
    name = (await namespace.until_bound("data"))["metadata"]["name"]
    await asyncio.gather(
        *(namespace.create(PODS, pod(node, {"/data": "data"}, nodeName=node)) for node in sandbox.nodes)
    )
    tasks = [asyncio.create_task(namespace.until_running(node)) for node in sandbox.nodes]
    done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    winner = sandbox.node_of(next(iter(done)).result())
    for task in others:
        task.cancel()

    assert hostnames(await sandbox.api.get(VOLUMES, name)) == [winner.hostname]
    for node in sandbox.nodes.values():
        if node is not winner:
            message = await namespace.until_event(node.name, "FailedMount")
            assert f"lives on node {winner.hostname} and" in message or _KUBELETS_WORDS in message
            assert not is_ready(await namespace.get(PODS, node.name))
            assert name not in onnode.sizes(node)
            assert onnode.staged(node, name) is None


async def test_a_pod_that_is_forced_to_another_node_gets_nothing_there(
    sandbox: Sandbox, namespace: Namespace, make_class: MakeClass
) -> None:
    await namespace.create(CLAIMS, claim("data", "16Mi", await make_class("Immediate")))
    await namespace.create(PODS, pod("first", {"/data": "data"}, nodeName="node-a"))
    await namespace.until_running("first")
    name = (await namespace.until_bound("data"))["metadata"]["name"]
    await namespace.create(PODS, pod("stray", {"/data": "data"}, nodeName="node-c"))
    await namespace.until_event("stray", "FailedMount", _KUBELETS_WORDS)
    assert name not in onnode.sizes(sandbox.nodes["node-c"])
    await namespace.delete(PODS, "stray")
    await namespace.until_gone(PODS, "stray")


async def test_a_volume_is_not_tied_to_a_node_that_has_no_room_for_it(
    sandbox: Sandbox, namespace: Namespace, make_class: MakeClass
) -> None:
    await namespace.create(CLAIMS, claim("large", "700Mi", await make_class("Immediate")))
    await namespace.create(CLAIMS, claim("early", "600Mi"))
    name = (await namespace.until_bound("large"))["metadata"]["name"]
    await namespace.create(PODS, pod("early", {"/data": "early"}, nodeSelector={"kubernetes.io/hostname": "node-c"}))
    await namespace.until_running("early")

    await namespace.create(PODS, pod("user", {"/data": "large"}, nodeName="node-c"))
    await namespace.until_event("user", "FailedMount", "needs 700Mi of loop on this node, which has 424Mi left for it")
    assert "nodeAffinity" not in (await sandbox.api.get(VOLUMES, name))["spec"]
    await namespace.delete(PODS, "user")
    await namespace.until_gone(PODS, "user")
    await namespace.create(PODS, pod("elsewhere", {"/data": "large"}, nodeName="node-a"))
    await namespace.until_running("elsewhere")


async def test_no_more_is_promised_than_all_nodes_have_together(namespace: Namespace, make_class: MakeClass) -> None:
    """Three nodes have a gibibyte each."""
    storage_class = await make_class("Immediate")
    for name in ("one", "two", "three"):
        await namespace.create(CLAIMS, claim(name, "900Mi", storage_class))
        await namespace.until_bound(name)
    await namespace.create(CLAIMS, claim("four", "900Mi", storage_class))
    message = await namespace.until_event("four", "ProvisioningFailed", "free up space")
    assert message.endswith(
        "the claim asks for 900Mi, and of the 3Gi that all nodes have left, 2.6Gi are reserved for volumes that wait "
        "for their first pod: free up space"
    )
    await namespace.delete(CLAIMS, "two")
    await namespace.until_bound("four")
