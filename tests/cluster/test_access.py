"""How a pod's volume is mounted that is only read, beside one that writes to it."""

from typing import Any

from kube.resources import CLAIMS, PODS
from tests.cluster import onnode
from tests.cluster.conftest import ClassLike
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until

Json = dict[str, Any]


def read_only(body: Json) -> Json:
    """A pod whose claims are read-only, not only its containers' mounts."""
    for volume in body["spec"]["volumes"]:
        volume["persistentVolumeClaim"]["readOnly"] = True
    return body


async def test_a_read_only_pod_reads_what_another_writes(
    sandbox: Sandbox, namespace: Namespace, volume_source: str, class_like: ClassLike
) -> None:
    await namespace.create(CLAIMS, claim("data", "16Mi", class_like()))
    await namespace.create(PODS, pod("writer", {"/data": "data"}, script="echo kept > /data/file; exec sleep infinity"))
    writer = await namespace.until_running("writer")
    volume = (await namespace.until_bound("data"))["metadata"]["name"]
    node = sandbox.node_of(writer)
    file = node.volume_folder(writer["metadata"]["uid"], volume, volume_source) / "file"
    await until(file.exists, what="the writer has written")

    script = "grep kept /data/file; if touch /data/mine; then exit 1; fi; exec sleep infinity"
    await namespace.create(PODS, read_only(pod("reader", {"/data": "data"}, script=script, restartPolicy="Never")))
    reader = await namespace.until_running("reader")
    log = node.container_log(reader["metadata"]["uid"], "main")
    await until(lambda: "Read-only file system" in log.read_text(), what="the reader was kept from writing")
    mount = onnode.mount_on(node.volume_folder(reader["metadata"]["uid"], volume, volume_source))
    assert mount is not None
    assert "ro" in mount.options
    staged = onnode.staged(node, volume)
    assert staged is not None
    assert "rw" in staged.options


async def test_the_flags_of_a_mount_on_the_node_end_at_the_container(
    sandbox: Sandbox, namespace: Namespace, volume_source: str, class_like: ClassLike
) -> None:
    """So says docs/limitations.md: by runc, what the pod says of its mount is all that holds in it."""
    await namespace.create(CLAIMS, claim("data", "16Mi", class_like(), accessModes=["ReadOnlyMany"]))
    script = "touch /data/mine && exec sleep infinity"
    await namespace.create(PODS, pod("user", {"/data": "data"}, script=script, restartPolicy="Never"))
    user = await namespace.until_running("user")
    volume = (await namespace.until_bound("data"))["metadata"]["name"]
    folder = sandbox.node_of(user).volume_folder(user["metadata"]["uid"], volume, volume_source)
    mount = onnode.mount_on(folder)
    assert mount is not None
    assert "ro" in mount.options
    await until((folder / "mine").exists, what="the pod has written")
