"""How a pod may use its volume: read-only, and by group."""

from typing import Any

from kube.client import CLAIMS, PODS
from tests.cluster import onnode
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.waiting import until
from tests.sandbox.workloads import Namespace, claim, pod

Json = dict[str, Any]


def read_only(body: Json) -> Json:
    """A pod whose claims are read-only, not only its containers' mounts."""
    for volume in body["spec"]["volumes"]:
        volume["persistentVolumeClaim"]["readOnly"] = True
    return body


async def ended(namespace: Namespace, name: str) -> str:
    """The phase in which a pod ended."""
    body = await namespace.until(
        PODS, name, lambda body: body["status"].get("phase") in ("Succeeded", "Failed"), what="has ended"
    )
    return str(body["status"]["phase"])


async def test_a_read_only_pod_reads_what_another_writes(sandbox: Sandbox, namespace: Namespace) -> None:
    await namespace.create(CLAIMS, claim("data", "16Mi"))
    await namespace.create(PODS, pod("writer", {"/data": "data"}, script="echo kept > /data/file; exec sleep infinity"))
    writer = await namespace.until_running("writer")
    volume = (await namespace.until_bound("data"))["metadata"]["name"]
    node = sandbox.node_of(writer)
    file = node.volume_folder(writer["metadata"]["uid"], volume) / "file"
    await until(file.exists, what="the writer has written")

    script = "grep kept /data/file; if touch /data/mine; then exit 1; fi; exec sleep infinity"
    await namespace.create(PODS, read_only(pod("reader", {"/data": "data"}, script=script, restartPolicy="Never")))
    reader = await namespace.until_running("reader")
    log = node.container_log(reader["metadata"]["uid"], "main")
    await until(lambda: "Read-only file system" in log.read_text(), what="the reader was kept from writing")
    mount = onnode.mount_on(node.volume_folder(reader["metadata"]["uid"], volume))
    assert mount is not None
    assert "ro" in mount.options
    staged = onnode.staged(node, volume)
    assert staged is not None
    assert "rw" in staged.options


async def test_a_claim_that_is_only_read_is_mounted_read_only(sandbox: Sandbox, namespace: Namespace) -> None:
    await namespace.create(CLAIMS, claim("data", "16Mi", accessModes=["ReadOnlyMany"]))
    await namespace.create(PODS, pod("user", {"/data": "data"}, script="touch /data/mine", restartPolicy="Never"))
    assert await ended(namespace, "user") == "Failed"


async def test_a_group_may_write(sandbox: Sandbox, namespace: Namespace) -> None:
    await namespace.create(CLAIMS, claim("data", "16Mi"))
    security = {"fsGroup": 4242, "runAsUser": 1000, "runAsGroup": 1000}
    script = "touch /data/mine; exec sleep infinity"
    await namespace.create(PODS, pod("user", {"/data": "data"}, script=script, securityContext=security))
    running = await namespace.until_running("user")
    volume = (await namespace.until_bound("data"))["metadata"]["name"]
    file = sandbox.node_of(running).volume_folder(running["metadata"]["uid"], volume) / "mine"
    await until(file.exists, what="the pod may write")
    assert (file.stat().st_uid, file.stat().st_gid) == (1000, 4242)
