"""A claim of a class with WaitForFirstConsumer: the volume is made where the pod goes, under either of our names."""

import pytest

from contract import names
from contract.volume import FLEX_VOLUME
from kube.resources import CLAIMS, PODS
from tests.cluster import onnode
from tests.cluster.conftest import MakeClass
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, options_of, pod


async def test_the_volume_follows_the_pod_to_its_node(sandbox: Sandbox, namespace: Namespace) -> None:
    await namespace.create(CLAIMS, claim("data", "24Mi"))
    # Its hostname label is not its name.
    selector = {"kubernetes.io/hostname": sandbox.nodes["node-b"].hostname}
    await namespace.create(PODS, pod("user", {"/data": "data"}, nodeSelector=selector))
    running = await namespace.until_running("user")
    wanted = await namespace.get(CLAIMS, "data")
    volume = await namespace.until_bound("data")

    name, uid = volume["metadata"]["name"], wanted["metadata"]["uid"]
    assert name == f"pvc-{uid}"
    assert volume["spec"]["claimRef"]["uid"] == uid
    assert options_of(volume) == {"size": str(24 * 1024**2)}
    assert volume["metadata"]["labels"] == {names.NODE_LABEL: "node-b"}
    assert names.FINALIZER in volume["metadata"]["finalizers"]
    annotations = volume["metadata"]["annotations"]
    assert annotations[names.PROVISIONED_BY] == names.PROVISIONER
    assert annotations[names.POOL_ANNOTATION] == "loop"
    [term] = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": ["ip-10-0-0-2.internal"]}
    ]
    assert sandbox.node_of(running).name == "node-b"
    assert onnode.sizes(sandbox.nodes["node-b"])[name] == 24 * 1024**2
    await namespace.until_event("data", "ProvisioningSucceeded", name)


async def test_nothing_is_made_before_there_is_a_pod(sandbox: Sandbox, namespace: Namespace) -> None:
    """The claim that has a pod is the proof that the provisioner looked at both."""
    await namespace.create(CLAIMS, claim("alone", "16Mi"))
    await namespace.create(CLAIMS, claim("used", "16Mi"))
    await namespace.create(PODS, pod("user", {"/data": "used"}))
    await namespace.until_running("user")
    alone = await namespace.get(CLAIMS, "alone")
    assert alone["status"]["phase"] == "Pending"
    assert "volumeName" not in alone["spec"]
    assert not any(f"pvc-{alone['metadata']['uid']}" in onnode.sizes(node) for node in sandbox.nodes.values())


@pytest.mark.parametrize("mode", ["WaitForFirstConsumer", "Immediate"])
async def test_the_name_that_clusters_of_the_original_use(
    namespace: Namespace, make_class: MakeClass, mode: str
) -> None:
    # It has a slash, as no CSIDriver may: with that name there are FlexVolumes only.
    storage_class = await make_class(mode, volume_source=FLEX_VOLUME, provisioner=names.PROVISIONER_OF_ELASTIC)
    await namespace.create(CLAIMS, claim("data", "16Mi", storage_class))
    await namespace.create(PODS, pod("user", {"/data": "data"}))
    await namespace.until_running("user")
    volume = await namespace.until_bound("data")
    assert volume["metadata"]["annotations"][names.PROVISIONED_BY] == names.PROVISIONER_OF_ELASTIC
    await namespace.delete(PODS, "user")
    await namespace.delete(CLAIMS, "data")


async def test_a_size_is_rounded_up_to_the_next_whole_block(sandbox: Sandbox, namespace: Namespace) -> None:
    await namespace.create(CLAIMS, claim("data", str(16 * 1024**2 + 1)))
    await namespace.create(PODS, pod("user", {"/data": "data"}))
    node = sandbox.node_of(await namespace.until_running("user"))
    volume = await namespace.until_bound("data")
    assert onnode.sizes(node)[volume["metadata"]["name"]] == 16 * 1024**2 + 4096
