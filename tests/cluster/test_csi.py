"""Volumes behind the CSI driver, in the sandbox: what the kubelet, the driver and the cluster make of them."""

import json
import os

import aiohttp

from contract import names
from contract.volume import CSI
from kube.resources import CLAIMS, CLASSES, PODS
from tests.cluster.conftest import MakeClass
from tests.sandbox.controlplane.caches import CSI_NODES
from tests.sandbox.nodes import Node
from tests.sandbox.workloads import Json, Namespace, claim, pod
from tests.sandbox.workloads import storage_class as class_body
from tests.waiting import until


async def test_a_volume_of_a_csi_class_is_written_and_read(namespace: Namespace, make_class: MakeClass) -> None:
    storage_class = await make_class(volume_source=CSI)
    await namespace.create(CLAIMS, claim("data", "16Mi", storage_class))
    await namespace.create(PODS, pod("writer", {"/data": "data"}))
    running = await namespace.until_running("writer")
    volume = await namespace.until_bound("data")
    assert volume["spec"]["csi"]["driver"] == names.CSI_DRIVER
    node = namespace.sandbox.node_of(running)
    folder = node.kubelet_root / "pods" / running["metadata"]["uid"] / "volumes" / "kubernetes.io~csi"
    assert (folder / volume["metadata"]["name"] / "mount").is_mount()
    await namespace.delete(PODS, "writer")
    await namespace.until_gone(PODS, "writer")
    await until(lambda: not folder.parents[1].exists(), what="the pod's folder is gone")
    staged = node.kubelet_root / "plugins" / "kubernetes.io" / "csi" / names.CSI_DRIVER
    await until(lambda: not any(staged.iterdir()), what="the volume is unstaged")


async def test_a_block_volume_is_a_device_in_the_pod(namespace: Namespace, make_class: MakeClass) -> None:
    storage_class = await make_class(volume_source=CSI)
    await namespace.create(CLAIMS, claim("data", "16Mi", storage_class, volumeMode="Block"))
    script = "test -b /dev/xvda; echo hello | dd of=/dev/xvda conv=fsync; dd if=/dev/xvda bs=5 count=1; sleep infinity"
    body = pod("user", script=script, volumes=[{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}])
    body["spec"]["containers"][0]["volumeDevices"] = [{"name": "data", "devicePath": "/dev/xvda"}]
    await namespace.create(PODS, body)
    running = await namespace.until_running("user")
    node = namespace.sandbox.node_of(running)
    log = node.container_log(running["metadata"]["uid"], "main")
    await until(lambda: "hello" in log.read_text(), what="the device was written and read")
    await namespace.delete(PODS, "user")
    await namespace.until_gone(PODS, "user")
    devices = node.kubelet_root / "plugins" / "kubernetes.io" / "csi" / "volumeDevices"
    await until(lambda: not any(devices.glob("*/*")), what="nothing of the device is left")


async def test_a_claim_for_one_pod_is_for_one_pod(namespace: Namespace, make_class: MakeClass) -> None:
    """The scheduler keeps the second one away, and where somebody went past it, the kubelet does."""
    storage_class = await make_class(volume_source=CSI)
    await namespace.create(CLAIMS, claim("data", "16Mi", storage_class, accessModes=["ReadWriteOncePod"]))
    await namespace.create(PODS, pod("first", {"/data": "data"}))
    running = await namespace.until_running("first")
    await namespace.create(PODS, pod("second", {"/data": "data"}))
    await namespace.until_event("second", "FailedScheduling", "and ReadWriteOncePod access mode")
    await namespace.create(PODS, pod("pinned", {"/data": "data"}, nodeName=running["spec"]["nodeName"]))
    message = "volume uses the ReadWriteOncePod access mode and is already in use by another pod"
    await namespace.until_event("pinned", "FailedMount", message)
    await namespace.delete(PODS, "pinned")
    await namespace.delete(PODS, "first")
    await namespace.until_running("second")


async def test_the_cluster_knows_the_driver_of_each_node_while_its_daemon_runs(shaken: Namespace) -> None:
    api, node = shaken.sandbox.api, shaken.sandbox.nodes["node-b"]

    async def drivers() -> list[Json]:
        found: list[Json] = (await api.get(CSI_NODES, node.name))["spec"].get("drivers") or []
        return found

    [driver] = await until(drivers, what="the driver is registered")
    assert (driver["name"], driver["nodeID"]) == (names.CSI_DRIVER, node.name)
    assert driver["topologyKeys"] == [names.HOSTNAME_LABEL]
    assert driver["allocatable"]["count"] > 0
    await node.daemon.stop()

    async def gone() -> bool:
        return not await drivers()

    await until(gone, what="the driver is gone with its socket")
    await node.daemon.start()
    await until(drivers, what="the driver is registered again")


async def test_a_kubelet_that_starts_anew_knows_its_csi_volumes(shaken: Namespace) -> None:
    """By vol_data.json alone: what is wanted stays, and what is no longer is unmounted and unstaged."""
    storage_class = (await shaken.sandbox.api.create(CLASSES, class_body("restarted", volume_source=CSI)))["metadata"]
    for name in ("kept", "ended"):
        await shaken.create(CLAIMS, claim(name, "16Mi", storage_class["name"]))
        on = {names.HOSTNAME_LABEL: "node-a"}
        await shaken.create(PODS, pod(name, {"/data": name}, nodeSelector=on))
    node = shaken.sandbox.nodes["node-a"]
    uids = {name: (await shaken.until_running(name))["metadata"]["uid"] for name in ("kept", "ended")}
    volumes = {name: (await shaken.until_bound(name))["metadata"]["name"] for name in ("kept", "ended")}
    folders = {name: node.volume_folder(uids[name], volumes[name], CSI) for name in uids}
    data = json.loads((folders["kept"].parent / "vol_data.json").read_text())
    assert (data["specVolID"], data["driverName"]) == (volumes["kept"], names.CSI_DRIVER)

    await node.kubelet.kill()
    await shaken.sandbox.api.delete(PODS, "ended", shaken.name, grace_seconds=0)
    await node.kubelet.start()
    await until(lambda: not folders["ended"].exists(), what="the volume of the pod that is gone is unmounted")
    staged = node.kubelet_root / "plugins" / "kubernetes.io" / "csi" / names.CSI_DRIVER
    await until(lambda: len(list(staged.iterdir())) == 1, what="it is unstaged, and the other is not")
    assert folders["kept"].is_mount()
    after = await shaken.until_running("kept")
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0
    await shaken.delete(PODS, "kept")
    await until(lambda: not any(staged.iterdir()), what="the last one is unstaged")
    await shaken.sandbox.api.delete(CLASSES, storage_class["name"])


async def figures(node: Node, namespace: Namespace) -> dict[str, int]:
    """What the kubelet says of the claim `data`."""
    async with aiohttp.ClientSession() as session, session.get(node.kubelet_metrics, raise_for_status=True) as answer:
        text = await answer.text()
    labels = f'{{namespace="{namespace.name}",persistentvolumeclaim="data"}}'
    parts = (line.partition(labels) for line in text.splitlines())
    return {name.removeprefix("kubelet_volume_stats_"): int(value) for name, found, value in parts if found}


async def test_the_kubelet_says_how_full_a_volume_is(namespace: Namespace, make_class: MakeClass) -> None:
    await namespace.create(CLAIMS, claim("data", "16Mi", await make_class(volume_source=CSI)))
    await namespace.create(PODS, pod("user", {"/data": "data"}))
    running = await namespace.until_running("user")
    node, volume = namespace.sandbox.node_of(running), (await namespace.until_bound("data"))["metadata"]["name"]
    seen = os.statvfs(node.volume_folder(running["metadata"]["uid"], volume, CSI))
    found = await figures(node, namespace)
    assert found["capacity_bytes"] == seen.f_blocks * seen.f_frsize
    assert found["available_bytes"] == seen.f_bavail * seen.f_frsize
    assert (found["inodes"], found["inodes_free"]) == (seen.f_files, seen.f_ffree)


async def test_the_kubelet_says_how_large_a_device_is(namespace: Namespace, make_class: MakeClass) -> None:
    storage_class = await make_class(volume_source=CSI)
    await namespace.create(CLAIMS, claim("data", "16Mi", storage_class, volumeMode="Block"))
    body = pod("user", volumes=[{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}])
    body["spec"]["containers"][0]["volumeDevices"] = [{"name": "data", "devicePath": "/dev/xvda"}]
    await namespace.create(PODS, body)
    running = await namespace.until_running("user")
    found = await figures(namespace.sandbox.node_of(running), namespace)
    assert (found["capacity_bytes"], found["inodes"]) == (16 << 20, 0)
