"""A node without room for a claim: the claim goes to another node, or its owner is told why it waits."""

import asyncio

from kube.client import CLAIMS, PODS
from tests.cluster import onnode
from tests.cluster.conftest import MakeSandbox
from tests.sandbox.nodes import NodeSpec
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, pod

SELECTED_NODE = "volume.kubernetes.io/selected-node"


def on(node: str) -> dict[str, str]:
    """A node selector."""
    return {"kubernetes.io/hostname": node}


async def test_a_claim_for_a_full_node_is_sent_on_to_another(sandbox: Sandbox, namespace: Namespace) -> None:
    await namespace.create(CLAIMS, claim("filling", "900Mi"))
    await namespace.create(PODS, pod("filling", {"/data": "filling"}, nodeSelector=on("node-a")))
    await namespace.until_running("filling")

    # As a scheduler whose figures are old: it chose the full node.
    stale = claim("data", "200Mi")
    stale["metadata"]["annotations"] = {SELECTED_NODE: "node-a"}
    await namespace.create(CLAIMS, stale)
    await namespace.create(PODS, pod("user", {"/data": "data"}))
    message = await namespace.until_told("data", "ProvisioningFailed", "node-a")
    assert message.endswith(
        "the claim asks for 200Mi, node node-a has 124Mi left in pool loop: another node is asked for"
    )
    node = sandbox.node_of(await namespace.until_running("user"))
    assert node.name != "node-a"
    volume = (await namespace.until_bound("data"))["metadata"]["name"]
    assert volume in onnode.sizes(node)
    assert volume not in onnode.sizes(sandbox.nodes["node-a"])


async def test_two_claims_of_a_pod_that_do_not_fit_together(fresh_sandbox: MakeSandbox) -> None:
    """Each fits by itself, which is all that the scheduler looks at. So one claim is told, and nothing is
    over-committed; room for both lets the pod start."""
    sandbox = await fresh_sandbox(NodeSpec("only", capacity="256Mi"))
    node = sandbox.nodes["only"]
    async with Namespace(sandbox, "work") as namespace:
        await namespace.create(CLAIMS, claim("filling", "32Mi"))
        await namespace.create(PODS, pod("filling", {"/data": "filling"}))
        await namespace.until_running("filling")
        for name in ("first", "second"):
            await namespace.create(CLAIMS, claim(name, "120Mi"))
        await namespace.create(PODS, pod("user", {"/first": "first", "/second": "second"}))
        tasks = [
            asyncio.create_task(namespace.until_told(name, "ProvisioningFailed", "104Mi left"))
            for name in ("first", "second")
        ]
        _, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in others:
            task.cancel()
        await namespace.until_told("user", "FailedScheduling")
        assert sum(onnode.sizes(node).values()) <= (32 + 120) * 1024**2

        await namespace.delete(PODS, "filling")
        await namespace.delete(CLAIMS, "filling")
        await namespace.until_running("user")
        assert sorted(onnode.sizes(node).values()) == [120 * 1024**2] * 2
