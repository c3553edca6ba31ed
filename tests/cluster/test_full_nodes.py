"""A node without room for a claim: the claim goes to another node, or its owner is told why it waits."""

from kube.resources import CLAIMS, PODS
from tests.cluster import onnode
from tests.cluster.conftest import MakeClass, MakeSandbox
from tests.cluster.published import is_all_free, room
from tests.sandbox.nodes import NodeSpec
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until

_MIB = 1024**2
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
    message = await namespace.until_event("data", "ProvisioningFailed", "node-a")
    assert message.endswith(
        "the claim asks for 200Mi, node node-a has 124Mi left in pool loop: another node is asked for"
    )
    node = sandbox.node_of(await namespace.until_running("user"))
    assert node.name != "node-a"
    volume = (await namespace.until_bound("data"))["metadata"]["name"]
    assert volume in onnode.sizes(node)
    assert volume not in onnode.sizes(sandbox.nodes["node-a"])


async def test_two_claims_of_a_pod_that_do_not_fit_together(fresh_sandbox: MakeSandbox) -> None:
    """Each fits by itself, which is all that the scheduler looks at. So both are told, and neither is made; room for
    both lets the pod start."""
    sandbox = await fresh_sandbox(NodeSpec("only", capacity="256Mi"))
    node = sandbox.nodes["only"]
    async with Namespace(sandbox, "work") as namespace:
        await namespace.create(CLAIMS, claim("filling", "32Mi"))
        await namespace.create(PODS, pod("filling", {"/data": "filling"}))
        await namespace.until_running("filling")
        for name in ("first", "second"):
            await namespace.create(CLAIMS, claim(name, "120Mi"))
        await namespace.create(PODS, pod("user", {"/first": "first", "/second": "second"}))
        for name in ("first", "second"):
            message = await namespace.until_event(name, "ProvisioningFailed")
            assert message.endswith(
                "the claims first, second of pod user take 240Mi together, node only has 224Mi left in pool loop, and "
                "no node has space for all of them: ask for less, or free up space"
            )
        await namespace.until_event("user", "FailedScheduling")
        assert list(onnode.sizes(node).values()) == [32 * _MIB]

        await namespace.delete(PODS, "filling")
        await namespace.delete(CLAIMS, "filling")
        await namespace.until_running("user")
        assert sorted(onnode.sizes(node).values()) == [120 * _MIB] * 2


async def test_the_claims_of_a_pod_go_together_to_the_node_that_has_room_for_both(fresh_sandbox: MakeSandbox) -> None:
    """The scheduler has no reason to prefer it, and would choose the other one again and again."""
    sandbox = await fresh_sandbox(NodeSpec("node-a", capacity="1Gi"), NodeSpec("node-b", capacity="2Gi"))
    node = sandbox.nodes["node-b"]
    async with Namespace(sandbox, "work") as namespace:
        for name in ("one", "two"):
            await namespace.create(CLAIMS, claim(name, "700Mi"))
        await namespace.create(PODS, pod("p", {"/x": "one", "/y": "two"}))
        assert sandbox.node_of(await namespace.until_running("p")) is node
        assert sorted(onnode.sizes(node).values()) == [700 * _MIB] * 2
        assert not onnode.sizes(sandbox.nodes["node-a"])
        for name in ("one", "two"):
            message = await namespace.until_event(name, "ProvisioningFailed")
            assert message.endswith("node node-b, which has space for them, is asked for instead")

        # Also where its own claims are made for the pod.
        await namespace.delete(PODS, "p")
        for name in ("one", "two"):
            await namespace.delete(CLAIMS, name)
        await until(lambda: is_all_free(sandbox), what="all is free")
        template = {"spec": claim("any", "700Mi")["spec"]}
        volumes = [{"name": name, "ephemeral": {"volumeClaimTemplate": template}} for name in ("one", "two")]
        await namespace.create(PODS, {**pod("q"), "spec": {**pod("q")["spec"], "volumes": volumes}})
        assert sandbox.node_of(await namespace.until_running("q")) is node


async def test_a_proposed_node_that_is_no_place_for_the_pod_ties_nothing(
    fresh_sandbox: MakeSandbox,
) -> None:
    """Only the scheduler knows what else a pod needs."""
    sandbox = await fresh_sandbox(NodeSpec("node-a", capacity="1Gi"), NodeSpec("node-b", capacity="2Gi"))
    async with Namespace(sandbox, "work") as namespace:
        for name in ("one", "two"):
            await namespace.create(CLAIMS, claim(name, "700Mi"))
        await namespace.create(PODS, pod("p", {"/x": "one", "/y": "two"}, nodeSelector=on("node-a")))
        await namespace.until_event("one", "ProvisioningFailed", "node node-b, which has space for them, is asked for")
        await namespace.until_event(
            "one", "ProvisioningFailed", "node node-b was not chosen for the other claims of pod"
        )
        assert not onnode.sizes(sandbox.nodes["node-b"])
        assert not onnode.sizes(sandbox.nodes["node-a"])


async def test_an_event_says_why_the_claim_of_a_pod_with_a_node_name_waits(
    sandbox: Sandbox, namespace: Namespace
) -> None:
    await namespace.create(CLAIMS, claim("d", "16Mi"))
    await namespace.create(PODS, pod("byhand", {"/d": "d"}, nodeName="node-a"))
    message = await namespace.until_event("d", "ProvisioningFailed", "pod byhand names its node itself")
    assert "(spec.nodeName: node-a)" in message
    assert "make the pod anew without nodeName, and with a nodeSelector for kubernetes.io/hostname" in message


async def test_a_node_outside_of_the_topologies_of_a_class_is_not_taken(
    sandbox: Sandbox, namespace: Namespace, make_class: MakeClass
) -> None:
    """The scheduler heeds them, but anybody may write a node's name into a claim."""
    only_b = [
        {"matchLabelExpressions": [{"key": "kubernetes.io/hostname", "values": [sandbox.nodes["node-c"].hostname]}]}
    ]
    name = await make_class(allowedTopologies=only_b)
    by_hand = claim("data", "16Mi", name)
    by_hand["metadata"]["annotations"] = {SELECTED_NODE: "node-a"}
    await until(lambda: has_room_for(sandbox, name), what="the nodes publish room for the class")
    await namespace.create(CLAIMS, by_hand)
    message = await namespace.until_event("data", "ProvisioningFailed")
    assert message.endswith(
        f"node node-a is none of the allowedTopologies of StorageClass {name}: another node is asked for"
    )
    await namespace.create(PODS, pod("user", {"/data": "data"}))
    assert sandbox.node_of(await namespace.until_running("user")).name == "node-c"


async def has_room_for(sandbox: Sandbox, storage_class: str) -> bool:
    return len(await room(sandbox, storage_class)) == len(sandbox.nodes)
