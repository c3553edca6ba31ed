"""A daemon that is killed, by a real SIGKILL, at each step of a mount and of a removal: the next one goes on."""

import asyncio
import os
from pathlib import Path

from contract import names, quantity
from contract.volume import CSI
from kube.resources import CAPACITIES, CLAIMS, PODS, VOLUMES
from tests.cluster.conftest import ClassesAlike, ClassLike
from tests.cluster.deaths import launch_dying, revive, until_dead
from tests.sandbox import mountspace
from tests.sandbox.nodes import Node
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until

_SIZE = 32 * 1024**2

# One daemon after the other dies on a node, each a step further.
_MAKING = {
    "node-a": ["before os.rename *.json", "before open *.img"],
    "node-b": ["after os.rename *.json", "before subprocess.Popen mkfs.ext4"],
    "node-c": ["before subprocess.Popen mkfs.ext4", "before os.rename *.json"],
}
_MOUNTING = {
    "node-a": ["before open /dev/loop[0-9]*"],
    "node-b": ["before ctypes.dlsym mount"],  # mount(2) is looked up when it is first called
    "node-c": ["before open */staging/pvc-*"],
}
_REMOVING = {
    "node-a": ["before os.rename *.json", "after os.rename *.json"],
    "node-b": ["before os.remove *.img", "after os.remove *.img"],
    "node-c": ["before os.remove *.json", "after os.remove *.json"],
}


async def test_a_mount_cut_off_at_any_step_goes_on_and_data_is_never_formatted(
    shaken: Namespace, volume_source: str, shaken_class_like: ClassLike
) -> None:
    nodes = shaken.sandbox.nodes.values()
    # Volumes are made ahead of the first mount, and a kubelet that is refused waits longer each time.
    await asyncio.gather(*(node.kubelet.kill() for node in nodes))
    await asyncio.gather(*(launch_dying(node.daemon, _MAKING[node.name][0]) for node in nodes))
    await asyncio.gather(*(shaken.create(CLAIMS, claim(node.name, "32Mi", shaken_class_like())) for node in nodes))
    await asyncio.gather(*(_start_pod(shaken, node) for node in nodes))
    await asyncio.gather(*(_die_one_after_the_other(node, _MAKING[node.name]) for node in nodes))
    await asyncio.gather(*(node.kubelet.start() for node in nodes))
    for node in nodes:
        await _until_written(await _folder(shaken, node, volume_source), lines=1)
        assert _sizes(node) == [_SIZE]

    await asyncio.gather(*(_end_pod(shaken, node) for node in nodes))
    await asyncio.gather(*(launch_dying(node.daemon, _MOUNTING[node.name][0]) for node in nodes))
    await asyncio.gather(*(node.daemon.wait_ready() for node in nodes))
    await asyncio.gather(*(_start_pod(shaken, node) for node in nodes))
    await asyncio.gather(*(_die_one_after_the_other(node, _MOUNTING[node.name]) for node in nodes))
    for node in nodes:
        folder = await _folder(shaken, node, volume_source)
        await _until_written(folder, lines=2)
        volume = (await shaken.until_bound(node.name))["metadata"]["name"]
        assert sorted(mountspace.mounts_below(node.folder)) == sorted([folder, node.staging / volume])


async def test_a_removal_cut_off_at_any_step_is_done_whole(
    shaken: Namespace, shaken_classes_alike: ClassesAlike
) -> None:
    nodes = shaken.sandbox.nodes.values()
    storage_class = shaken_classes_alike[CSI, "elastic-local"]
    await asyncio.gather(*(shaken.create(CLAIMS, claim(node.name, "32Mi", storage_class)) for node in nodes))
    await asyncio.gather(*(_start_pod(shaken, node) for node in nodes))
    volumes = {node.name: (await _folder(shaken, node, CSI)).parent.name for node in nodes}
    await asyncio.gather(*(_end_pod(shaken, node) for node in nodes))

    await asyncio.gather(*(launch_dying(node.daemon, _REMOVING[node.name][0]) for node in nodes))
    await asyncio.gather(*(shaken.delete(CLAIMS, node.name) for node in nodes))
    for node in nodes:
        await until_dead(node.daemon)
        kept = await shaken.sandbox.api.get(VOLUMES, volumes[node.name])
        assert names.FINALIZER in kept["metadata"]["finalizers"]
    await asyncio.gather(*(_die_one_after_the_other(node, _REMOVING[node.name]) for node in nodes))

    for node in nodes:
        await shaken.until_gone(VOLUMES, volumes[node.name])
        assert list((node.data / "loop").iterdir()) == []
        assert list(node.staging.iterdir()) == []
        assert _sizes(node) == []
    await until(lambda: _all_room_is_free(shaken), what="each node offers all of its room again")


async def _die_one_after_the_other(node: Node, steps: list[str]) -> None:
    """The daemon runs that dies at the first step; in the end there is one that lives."""
    for step in steps[1:]:
        await until_dead(node.daemon)
        await launch_dying(node.daemon, step)
    await until_dead(node.daemon)
    await revive(node.daemon)


async def _start_pod(namespace: Namespace, node: Node) -> None:
    body = pod(
        node.name,
        {"/data": node.name},
        script="echo line >> /data/file; exec sleep infinity",
        nodeSelector={names.HOSTNAME_LABEL: node.hostname},
    )
    await namespace.create(PODS, body)


async def _end_pod(namespace: Namespace, node: Node) -> None:
    await namespace.delete(PODS, node.name)
    await namespace.until_gone(PODS, node.name)
    # A CSI volume is unstaged after its last pod, which nobody waits for. One whose unstaging dies with the daemon is
    # staged for the next pod, and nothing is done of what the next daemon is to die at.
    await until(lambda: not any(node.staging.iterdir()), what=f"{node.name} has the volume staged no more")


async def _folder(namespace: Namespace, node: Node, volume_source: str) -> Path:
    """What the running pod of the node sees as its volume."""
    running = await namespace.until_running(node.name)
    volume = await namespace.until_bound(node.name)
    return node.volume_folder(running["metadata"]["uid"], volume["metadata"]["name"], volume_source)


async def _until_written(folder: Path, lines: int) -> None:
    """Each pod writes a line below those of the pods before it."""
    file = folder / "file"
    await until(lambda: file.exists() and file.read_text() == "line\n" * lines, what=f"{file} has {lines} lines")


def _sizes(node: Node) -> list[int]:
    """Bytes of the block devices that the node's volumes are."""
    sizes = []
    for device in mountspace.loop_devices(node.data):
        with device.open("rb") as opened:
            sizes.append(opened.seek(0, os.SEEK_END))
    return sizes


async def _all_room_is_free(namespace: Namespace) -> bool:
    capacities = await namespace.sandbox.api.list(CAPACITIES, names.NAMESPACE)
    whole = {node.hostname: quantity.parse(node.spec.capacity) for node in namespace.sandbox.nodes.values()}
    return whole == {
        item["nodeTopology"]["matchLabels"][names.HOSTNAME_LABEL]: quantity.parse(item["capacity"])
        for item in capacities
        if item["storageClassName"] == "elastic-local"
    }
