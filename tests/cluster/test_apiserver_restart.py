"""The API server dies, several times, in the middle of everything: that is only a delay, and for unmounting not even
that."""

import asyncio
import os
import signal

import pytest

from contract import names, quantity
from kube.resources import CAPACITIES, CLAIMS, PODS, VOLUMES
from tests.cluster.callouts import caller_of
from tests.cluster.conftest import ClassLike
from tests.sandbox import mountspace
from tests.sandbox.kubelet.driver import CallFailed
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, is_ready, pod
from tests.waiting import until

_NEW, _OLD = 10, 4


async def test_a_burst_with_mounts_and_deletions_ends_right(shaken: Namespace) -> None:
    sandbox = shaken.sandbox
    old = [f"old-{number}" for number in range(_OLD)]
    new = [f"new-{number}" for number in range(_NEW)]
    await asyncio.gather(*(_create(shaken, name) for name in old))
    for name in old:
        await shaken.until_running(name)
    gone = {volume["metadata"]["name"] for volume in await sandbox.api.list(VOLUMES)}

    for resource in (PODS, CLAIMS):
        await asyncio.gather(*(shaken.delete(resource, name) for name in old))
    await asyncio.gather(*(_create(shaken, name) for name in new))
    await sandbox.apiserver.restart()
    for enough in (1, _NEW // 2):
        await _until_made(sandbox, enough, gone)
        await sandbox.apiserver.restart()

    for name in new:
        await shaken.until_running(name, seconds=60)
    for name in gone:
        await shaken.until_gone(VOLUMES, name)
    await _until_the_books_are_right(shaken)


async def test_a_pods_folder_is_freed_without_the_api_server(
    shaken: Namespace, volume_source: str, shaken_class_like: ClassLike
) -> None:
    sandbox = shaken.sandbox
    await _create(shaken, "data", shaken_class_like())
    running = await shaken.until_running("data")
    node = sandbox.node_of(running)
    uid = running["metadata"]["uid"]
    volume = (await shaken.until_bound("data"))["metadata"]["name"]
    folder = node.volume_folder(uid, volume, volume_source)
    # As after a reboot: what was mounted is there, and nobody holds it but the folder.
    await node.kubelet.kill()
    container = node.container_log(uid, "main").with_name("pid")
    os.kill(int(container.read_text()), signal.SIGINT)
    await until(lambda: container.with_name("exit").exists(), what="the container has ended")
    await sandbox.apiserver.kill()
    driver = caller_of(node, volume_source)
    try:
        await driver.unmount(folder, volume)
        assert mountspace.mounts_below(node.kubelet_root) == []
        assert mountspace.mounts_below(node.staging) == []
        assert not list(mountspace.loop_devices(node.data))
        await driver.unmount(folder, volume)  # again, as a kubelet does whose answer was lost

        with pytest.raises(CallFailed, match="can't ask the API server whether the pod may mount"):
            await driver.mount(folder, volume, running)
        assert mountspace.mounts_below(node.kubelet_root) == []
    finally:
        await sandbox.apiserver.start()
    await node.kubelet.start()
    await until(lambda: folder in mountspace.mounts_below(node.kubelet_root), what="the pod has its volume again")


async def _create(namespace: Namespace, name: str, storage_class: str = "elastic-local") -> None:
    await namespace.create(CLAIMS, claim(name, "16Mi", storage_class))
    await namespace.create(PODS, pod(name, {"/data": name}))


def _made(sandbox: Sandbox) -> set[str]:
    """The volumes that lie on the nodes."""
    return {image.stem for node in sandbox.nodes.values() for image in node.data.glob("loop/*.img")}


async def _until_made(sandbox: Sandbox, number: int, besides: set[str]) -> None:
    await until(lambda: len(_made(sandbox) - besides) >= number, what=f"{number} volumes are made", seconds=60)


async def _until_the_books_are_right(namespace: Namespace) -> None:
    """Each pod runs with a volume of its own; objects, disks, mounts and published room say the same."""
    sandbox = namespace.sandbox
    pods = await sandbox.api.list(PODS, namespace.name)
    volumes = await sandbox.api.list(VOLUMES)
    assert len(volumes) == len(pods) == _NEW
    assert all(is_ready(body) for body in pods)
    assert len({volume["spec"]["claimRef"]["uid"] for volume in volumes}) == _NEW
    assert _made(sandbox) == {volume["metadata"]["name"] for volume in volumes}
    for node in sandbox.nodes.values():
        here = [volume for volume in volumes if volume["metadata"]["labels"][names.NODE_LABEL] == node.name]
        assert len(mountspace.mounts_below(node.folder)) == 2 * len(here)
        left = quantity.parse(node.spec.capacity) - len(here) * quantity.parse("16Mi")
        await _until_offered(sandbox, node.hostname, left)


async def _until_offered(sandbox: Sandbox, hostname: str, size: int) -> None:
    async def offered() -> bool:
        return any(
            quantity.parse(item["capacity"]) == size
            for item in await sandbox.api.list(CAPACITIES, names.NAMESPACE)
            if item["storageClassName"] == "elastic-local"
            and item["nodeTopology"]["matchLabels"][names.HOSTNAME_LABEL] == hostname
        )

    await until(offered, what=f"{hostname} offers {size} bytes")
