"""One claim and several pods at a time: the same data, on the same node, mounted once."""

import asyncio
from pathlib import Path

from host import loopdevice
from kube.resources import CLAIMS, PODS
from tests.cluster import onnode
from tests.cluster.conftest import ClassLike
from tests.sandbox import mountspace
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until


async def test_two_pods_share_what_is_mounted_once(
    sandbox: Sandbox, namespace: Namespace, volume_source: str, class_like: ClassLike
) -> None:
    await namespace.create(CLAIMS, claim("data", "16Mi", class_like()))
    for name in ("first", "second"):
        script = f"echo {name} > /data/{name}; exec sleep infinity"
        await namespace.create(PODS, pod(name, {"/data": "data"}, script=script))
    pods = await asyncio.gather(namespace.until_running("first"), namespace.until_running("second"))
    volume = (await namespace.until_bound("data"))["metadata"]["name"]
    node, other = (sandbox.node_of(body) for body in pods)
    assert node is other
    folders = [node.volume_folder(body["metadata"]["uid"], volume, volume_source) for body in pods]
    await until(
        lambda: all(_names(folder) >= {"first", "second"} for folder in folders), what="both see what both wrote"
    )
    mounts = [onnode.mount_on(folder) for folder in folders]
    staged = onnode.staged(node, volume)
    assert staged is not None
    assert [mount.device for mount in mounts if mount] == [staged.device, staged.device]
    assert len(list(mountspace.loop_devices(node.data))) == 1

    await namespace.delete(PODS, "first")
    await namespace.until_gone(PODS, "first")
    assert onnode.mount_on(folders[0]) is None
    assert onnode.staged(node, volume) == staged
    assert _names(folders[1]) >= {"first", "second"}

    await namespace.delete(PODS, "second")
    await namespace.until_gone(PODS, "second")
    # The kubelet lets the pod go before it has unstaged a CSI volume.
    await until(lambda: onnode.staged(node, volume) is None, what="the volume is mounted nowhere")
    await until(lambda: not list(mountspace.loop_devices(node.data)), what="its device is free")


async def test_many_pods_mount_one_claim_at_once(
    sandbox: Sandbox, namespace: Namespace, volume_source: str, class_like: ClassLike
) -> None:
    await namespace.create(CLAIMS, claim("data", "16Mi", class_like()))
    names = [f"user-{number}" for number in range(8)]
    await asyncio.gather(*(namespace.create(PODS, pod(name, {"/data": "data"})) for name in names))
    pods = await asyncio.gather(*(namespace.until_running(name) for name in names))
    [node] = {sandbox.node_of(body) for body in pods}
    volume = (await namespace.until_bound("data"))["metadata"]["name"]
    folders = [node.volume_folder(body["metadata"]["uid"], volume, volume_source) for body in pods]
    mounts = [path for path in mountspace.mounts_below(node.folder) if volume in path.parts]
    assert sorted(mounts) == sorted([node.staging / volume, *folders]), "once staged, and once in each pod's folder"
    await asyncio.gather(*(namespace.delete(PODS, name) for name in names))
    await asyncio.gather(*(namespace.until_gone(PODS, name) for name in names))
    mounted = [path for path in mountspace.mounts_below(node.kubelet_root) if volume in path.parts]
    assert not mounted
    await until(lambda: onnode.staged(node, volume) is None, what="the volume is mounted nowhere")
    assert loopdevice.find(onnode.image(node, volume)) is None


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
