"""A claim that asks for more: its volume and filesystem grow under the running pod, or its owner is told why not.

With xfs, because the kernel grows a mounted ext4 for the fully privileged only, and these tests run in containers too.
"""

import os
from typing import Any

from contract import names, quantity
from kube.resources import CLAIMS, PODS, VOLUMES
from tests.cluster import onnode
from tests.cluster.conftest import ClassLike, MakeClass
from tests.cluster.deaths import revive
from tests.cluster.published import has_room
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until

Json = dict[str, Any]

_MIB = 1024**2


async def ask(namespace: Namespace, size: str) -> None:
    """The claim `data` asks for more."""
    await namespace.sandbox.api.patch(
        CLAIMS, "data", {"spec": {"resources": {"requests": {"storage": size}}}}, namespace.name
    )


async def beside_a_neighbour(namespace: Namespace) -> str:
    """The volume of `data` is on node-a, whose room is 224Mi beside it and that of the neighbour."""
    on_a = {"kubernetes.io/hostname": "node-a"}
    await namespace.create(CLAIMS, claim("neighbour", "500Mi"))
    await namespace.create(PODS, pod("neighbour", {"/data": "neighbour"}, nodeSelector=on_a))
    await namespace.create(CLAIMS, claim("data", "300Mi", "elastic-local-xfs"))
    await namespace.create(PODS, pod("user", {"/data": "data"}, nodeSelector=on_a))
    await namespace.until_running("neighbour")
    await namespace.until_running("user")
    return str((await namespace.until_bound("data"))["metadata"]["name"])


_BACKED_OFF = 90
"""Seconds: a kubelet that was refused for half a minute tries again after another one."""


async def until_grown(namespace: Namespace, size: str) -> None:
    grown = f"has {size}"
    await namespace.until(
        CLAIMS, "data", lambda body: body["status"]["capacity"]["storage"] == size, what=grown, seconds=_BACKED_OFF
    )


async def until_has_capacity(namespace: Namespace, volume: str, size: int) -> None:
    """The PersistentVolume says no more than it has."""
    await namespace.until(
        VOLUMES,
        volume,
        lambda body: quantity.parse(body["spec"]["capacity"]["storage"]) == size,
        what=f"has a capacity of {size}",
    )


async def test_a_volume_grows_under_its_pod(
    sandbox: Sandbox, namespace: Namespace, volume_source: str, class_like: ClassLike
) -> None:
    await namespace.create(CLAIMS, claim("data", "300Mi", class_like("elastic-local-xfs")))
    await namespace.create(PODS, pod("user", {"/data": "data"}, script="touch /data/file; exec sleep infinity"))
    running = await namespace.until_running("user")
    node = sandbox.node_of(running)
    volume = (await namespace.until_bound("data"))["metadata"]["name"]
    folder = node.volume_folder(running["metadata"]["uid"], volume, volume_source)
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
    volume = await beside_a_neighbour(namespace)
    await ask(namespace, "600Mi")
    message = await namespace.until_event("data", "VolumeResizeFailed", "the claim asks for 600Mi")
    assert "300Mi more than it has, and node node-a has 224Mi left in pool loop" in message
    assert onnode.sizes(sandbox.nodes["node-a"])[volume] == 300 * _MIB

    await namespace.delete(PODS, "neighbour")
    await namespace.delete(CLAIMS, "neighbour")
    await until_grown(namespace, "600Mi")
    assert onnode.sizes(sandbox.nodes["node-a"])[volume] == 600 * _MIB


async def test_a_wish_takes_nothing_from_anybody_and_keeps_no_pod_from_starting(
    sandbox: Sandbox, namespace: Namespace, volume_source: str, class_like: ClassLike
) -> None:
    """A typing mistake of one tenant, and how it is taken back."""
    await namespace.create(CLAIMS, claim("data", "300Mi", class_like("elastic-local-xfs")))
    user = pod("user", {"/data": "data"}, script="touch /data/file; exec sleep infinity")
    await namespace.create(PODS, user)
    node = sandbox.node_of(await namespace.until_running("user"))
    bound = await namespace.until_bound("data")
    volume, room = bound["metadata"]["name"], 724 * _MIB
    await until(lambda: has_room(sandbox, node.hostname, room), what="the volume is charged")

    await ask(namespace, "50Gi")
    message = await namespace.until_event(
        "data", "VolumeResizeFailed", "the claim asks for 50Gi, 49.7Gi more than it has"
    )
    assert (
        "has 724Mi left in pool loop: it keeps the 300Mi that it has and grows by itself when there is space" in message
    )
    assert "or lower the claim again, to anything above 300Mi" in message
    await until_has_capacity(namespace, volume, 300 * _MIB)
    await namespace.delete(PODS, "user")
    await namespace.until_gone(PODS, "user")
    await namespace.create(PODS, user)
    await namespace.until_running("user")
    assert await has_room(sandbox, node.hostname, room)
    assert (await namespace.get(CLAIMS, "data"))["status"]["capacity"]["storage"] == "300Mi"
    await namespace.create(CLAIMS, claim("other", "700Mi"))
    await namespace.create(PODS, pod("other", {"/data": "other"}, nodeSelector={names.HOSTNAME_LABEL: node.hostname}))
    await namespace.until_running("other")
    await namespace.delete(PODS, "other")
    await namespace.delete(CLAIMS, "other")

    await ask(namespace, "400M")
    grown = await namespace.until(
        CLAIMS,
        "data",
        lambda body: quantity.parse(body["status"]["capacity"]["storage"]) == 400_000_000,
        what="has 400M",
    )
    assert "conditions" not in grown["status"] or not grown["status"]["conditions"]
    await until_has_capacity(namespace, volume, 400_000_000)
    assert 400_000_000 <= onnode.sizes(node)[volume] < 401_000_000
    folder = node.volume_folder((await namespace.get(PODS, "user"))["metadata"]["uid"], volume, volume_source)
    assert (folder / "file").exists()


async def test_a_wish_outlives_the_programs(shaken_sandbox: Sandbox, shaken: Namespace) -> None:
    """Nobody remembers it but the claim: a provisioner and a daemon that start anew grant it when there is room."""
    volume = await beside_a_neighbour(shaken)
    await ask(shaken, "600Mi")
    await shaken.until_event("data", "VolumeResizeFailed", "node node-a has 224Mi left")
    node = shaken_sandbox.nodes["node-a"]
    for program in (*shaken_sandbox.provisioners, node.daemon):
        await program.kill()
        await revive(program)
    await shaken.delete(PODS, "neighbour")
    await shaken.delete(CLAIMS, "neighbour")
    await until_grown(shaken, "600Mi")
    assert onnode.sizes(node)[volume] == 600 * _MIB


async def test_an_immediate_volume_expanded_before_its_first_pod_has_the_new_size(
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
