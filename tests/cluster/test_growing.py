"""A claim that asks for more: its volume and filesystem grow under the running pod, or its owner is told why not.

With xfs, because the kernel grows a mounted ext4 for the fully privileged only, and these tests run in containers too.
"""

import os
from typing import Any

from kube.client import CLAIMS, PODS, VOLUMES
from tests.cluster import onnode
from tests.cluster.conftest import MakeClass
from tests.cluster.published import has_room
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.waiting import until
from tests.sandbox.workloads import Namespace, claim, pod

Json = dict[str, Any]

_MIB = 1024**2


async def ask(namespace: Namespace, size: str) -> None:
    """The claim `data` asks for more."""
    await namespace.sandbox.api.patch(
        CLAIMS, "data", {"spec": {"resources": {"requests": {"storage": size}}}}, namespace.name
    )


async def until_grown(namespace: Namespace, size: str) -> None:
    await namespace.until(
        CLAIMS, "data", lambda body: body["status"]["capacity"]["storage"] == size, what=f"has {size}"
    )


async def test_a_volume_grows_under_its_pod(sandbox: Sandbox, namespace: Namespace) -> None:
    await namespace.create(CLAIMS, claim("data", "300Mi", "elastic-local-xfs"))
    await namespace.create(PODS, pod("user", {"/data": "data"}, script="touch /data/file; exec sleep infinity"))
    running = await namespace.until_running("user")
    node = sandbox.node_of(running)
    volume = (await namespace.until_bound("data"))["metadata"]["name"]
    folder = node.volume_folder(running["metadata"]["uid"], volume)
    await until((folder / "file").exists, what="the pod has written")
    before = os.statvfs(folder)

    await ask(namespace, "400Mi")
    await until_grown(namespace, "400Mi")
    after = os.statvfs(folder)
    assert (after.f_blocks - before.f_blocks) * after.f_frsize == 100 * _MIB
    assert onnode.sizes(node)[volume] == 400 * _MIB
    assert (folder / "file").exists()
    await until(lambda: has_room(sandbox, node.hostname, 624 * _MIB), what="the room is less")


async def test_more_than_the_node_has_is_refused_until_there_is_room(
    sandbox: Sandbox, namespace: Namespace, make_class: MakeClass
) -> None:
    on_a = {"kubernetes.io/hostname": "node-a"}
    await namespace.create(CLAIMS, claim("neighbour", "500Mi"))
    await namespace.create(PODS, pod("neighbour", {"/data": "neighbour"}, nodeSelector=on_a))
    await namespace.create(CLAIMS, claim("data", "300Mi", "elastic-local-xfs"))
    await namespace.create(PODS, pod("user", {"/data": "data"}, nodeSelector=on_a))
    await namespace.until_running("neighbour")
    await namespace.until_running("user")
    volume = (await namespace.until_bound("data"))["metadata"]["name"]

    await ask(namespace, "600Mi")
    await namespace.until_told(
        "user", "VolumeResizeFailed", "needs 300Mi of loop on this node, which has 224Mi left for it: delete volumes"
    )
    assert onnode.sizes(sandbox.nodes["node-a"])[volume] == 300 * _MIB

    await namespace.delete(PODS, "neighbour")
    await namespace.delete(CLAIMS, "neighbour")
    await until_grown(namespace, "600Mi")
    assert onnode.sizes(sandbox.nodes["node-a"])[volume] == 600 * _MIB


async def test_an_immediate_volume_that_grew_before_its_first_pod_is_made_in_its_new_size(
    sandbox: Sandbox, namespace: Namespace, make_class: MakeClass
) -> None:
    await namespace.create(CLAIMS, claim("data", "16Mi", await make_class("Immediate", allowVolumeExpansion=True)))
    volume = (await namespace.until_bound("data"))["metadata"]["name"]
    await ask(namespace, "32Mi")
    await namespace.until(
        VOLUMES, volume, lambda body: body["spec"]["capacity"]["storage"] == "32Mi", what="is to have 32Mi"
    )
    await namespace.create(PODS, pod("user", {"/data": "data"}))
    node = sandbox.node_of(await namespace.until_running("user"))
    await until_grown(namespace, "32Mi")
    assert onnode.sizes(node)[volume] == 32 * _MIB
