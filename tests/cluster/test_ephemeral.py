"""Volumes that a pod brings along and takes with it: generic ephemeral volumes, on any kind of driver."""

from kube.client import CLAIMS, PODS, VOLUMES
from tests.cluster import onnode
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.waiting import until
from tests.sandbox.workloads import Json, Namespace, claim, pod

_MIB = 1024**2


def with_scratch(name: str, script: str) -> Json:
    """A pod with 16 MiB of its own, at /data."""
    body = pod(name, {"/data": "scratch"}, script=script)
    body["spec"]["volumes"] = [
        {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": claim("", "16Mi")["spec"]}}}
    ]
    return body


async def test_a_volume_comes_and_goes_with_its_pod(sandbox: Sandbox, namespace: Namespace) -> None:
    await namespace.create(PODS, with_scratch("user", "echo kept > /data/file; exec sleep infinity"))
    running = await namespace.until_running("user")
    node = sandbox.node_of(running)
    volume = (await namespace.until_bound("user-scratch"))["metadata"]["name"]
    file = node.volume_folder(running["metadata"]["uid"], volume) / "file"
    await until(file.exists, what="the pod has written")
    assert onnode.sizes(node)[volume] == 16 * _MIB

    await namespace.delete(PODS, "user")
    await namespace.until_gone(CLAIMS, "user-scratch")
    await namespace.until_gone(VOLUMES, volume)
    assert volume not in onnode.sizes(node)


async def test_another_ones_claim_of_that_name_is_not_the_pods(namespace: Namespace) -> None:
    await namespace.create(CLAIMS, claim("user-scratch", "16Mi"))
    await namespace.create(PODS, with_scratch("user", "exec sleep infinity"))
    await namespace.until_told("user", "FailedPersistentVolumeClaimCreation", "was not created for the pod")
    assert (await namespace.get(PODS, "user"))["status"].get("phase") == "Pending"
