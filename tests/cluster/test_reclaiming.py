"""What is left when a claim goes: nothing under policy Delete, everything under Retain."""

import json
from typing import Any

from kube.resources import CLAIMS, PODS, VOLUMES
from tests.cluster import onnode
from tests.cluster.conftest import MakeClass, MakeSandbox
from tests.cluster.published import has_room
from tests.sandbox.nodes import Node, NodeSpec
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, pod, storage_class
from tests.waiting import until

Json = dict[str, Any]

_MIB = 1024**2


async def written(namespace: Namespace, name: str = "data") -> tuple[Node, str]:
    """A pod wrote a file into the claim's volume and is gone: the node and the volume's name."""
    script = "echo kept > /data/file; sync; exec sleep infinity"
    await namespace.create(PODS, pod("writer", {"/data": name}, script=script))
    running = await namespace.until_running("writer")
    node = namespace.sandbox.node_of(running)
    volume = (await namespace.until_bound(name))["metadata"]["name"]
    file = node.volume_folder(running["metadata"]["uid"], volume) / "file"
    await until(lambda: file.exists() and file.read_text() == "kept\n", what="the pod has written")
    await namespace.delete(PODS, "writer")
    await namespace.until_gone(PODS, "writer")
    return node, volume


async def until_released(sandbox: Sandbox, volume: str) -> None:
    async def released() -> bool:
        body = await sandbox.api.get(VOLUMES, volume)
        return bool(body["status"]["phase"] == "Released")

    await until(released, what=f"{volume} is Released")


def content(node: Node, volume: str) -> str:
    """Of the file that `written` left."""
    return onnode.output("debugfs", "-R", "cat /file", onnode.image(node, volume))


def policy_on_node(node: Node, volume: str) -> str:
    """What the volume's own record says."""
    return str(json.loads(onnode.image(node, volume).with_suffix(".json").read_text())["policy"])


async def test_what_is_retained_outlives_claim_and_persistent_volume(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(NodeSpec("only", capacity="96Mi"))
    await sandbox.apply(storage_class("keeping", reclaimPolicy="Retain"))
    async with Namespace(sandbox, "work") as namespace:
        await namespace.create(CLAIMS, claim("data", "32Mi", "keeping"))
        node, volume = await written(namespace)
        await namespace.delete(CLAIMS, "data")
        await until_released(sandbox, volume)
        # Until the container's mounts have gone, what it wrote may be in the journal, which is not read here.
        await until(lambda: content(node, volume) == "kept\n", what="the data is there")

        await sandbox.api.delete(VOLUMES, volume)
        await namespace.until_gone(VOLUMES, volume)
        assert content(node, volume) == "kept\n"
        await until(lambda: has_room(sandbox, "only", 64 * _MIB), what="its space stays taken")

        # The rest, to the last byte, is all that others get.
        await namespace.create(CLAIMS, claim("more", "65Mi"))
        await namespace.create(PODS, pod("more", {"/data": "more"}))
        await namespace.until_event("more", "FailedScheduling", "did not have enough free storage")
        await namespace.create(CLAIMS, claim("rest", "64Mi"))
        await namespace.create(PODS, pod("rest", {"/data": "rest"}))
        await namespace.until_running("rest")
        assert content(node, volume) == "kept\n"


async def test_under_delete_data_and_space_go_with_the_claim(namespace: Namespace) -> None:
    await namespace.create(CLAIMS, claim("data", "16Mi"))
    node, volume = await written(namespace)
    await namespace.delete(CLAIMS, "data")
    await namespace.until_gone(VOLUMES, volume)
    assert not [path for path in node.folder.rglob("*") if volume in path.name]
    await until(lambda: has_room(namespace.sandbox, node.hostname, 1024 * _MIB), what="all room is free again")


async def test_the_policy_that_counts_is_that_of_the_moment(
    sandbox: Sandbox, namespace: Namespace, make_class: MakeClass
) -> None:
    await namespace.create(CLAIMS, claim("data", "16Mi"))
    node, volume = await written(namespace)
    assert policy_on_node(node, volume) == "Delete"
    await sandbox.api.patch(VOLUMES, volume, {"spec": {"persistentVolumeReclaimPolicy": "Retain"}})
    await until(lambda: policy_on_node(node, volume) == "Retain", what="the node knows")
    await namespace.delete(CLAIMS, "data")
    await until_released(sandbox, volume)
    assert content(node, volume) == "kept\n"

    await sandbox.api.patch(VOLUMES, volume, {"spec": {"persistentVolumeReclaimPolicy": "Delete"}})
    await namespace.until_gone(VOLUMES, volume)
    assert volume not in onnode.sizes(node)


async def test_a_volume_that_is_deleted_while_it_is_used_stays_until_it_is_not(
    sandbox: Sandbox, namespace: Namespace
) -> None:
    await namespace.create(CLAIMS, claim("data", "16Mi"))
    node, volume = await written(namespace)
    script = "grep kept /data/file && exec sleep infinity"
    await namespace.create(PODS, pod("reader", {"/data": "data"}, script=script))
    await namespace.until_running("reader")
    await sandbox.api.delete(VOLUMES, volume)
    await namespace.delete(CLAIMS, "data")
    await until(lambda: content(node, volume) == "kept\n", what="the data is there")
    assert "deletionTimestamp" in (await namespace.get(CLAIMS, "data"))["metadata"]

    await namespace.delete(PODS, "reader")
    await namespace.until_gone(VOLUMES, volume)
    assert volume not in onnode.sizes(node)
