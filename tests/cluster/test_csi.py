"""Volumes behind the CSI driver, in the sandbox: what the kubelet, the driver and the cluster make of them."""

from contract import names
from kube.resources import CLAIMS, PODS
from tests.cluster.conftest import MakeClass
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until


async def test_a_volume_of_a_csi_class_is_written_and_read(namespace: Namespace, make_class: MakeClass) -> None:
    storage_class = await make_class(parameters={"volumeSource": "csi"})
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
    storage_class = await make_class(parameters={"volumeSource": "csi"})
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
