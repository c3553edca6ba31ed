"""A node whose volumes are folders: all works as elsewhere, but that nothing holds a volume to its size."""

from kube.resources import CLAIMS, PODS, VOLUMES
from tests.cluster import onnode
from tests.cluster.conftest import MakeSandbox
from tests.cluster.published import is_all_free
from tests.sandbox import mountspace
from tests.sandbox.nodes import NodeSpec
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until


async def test_a_claim_lives_in_a_folder(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(NodeSpec("only", backend="folder", capacity="64Mi"))
    node = sandbox.nodes["only"]
    async with Namespace(sandbox, "work") as namespace:
        await namespace.create(CLAIMS, claim("data", "48Mi"))
        await namespace.create(CLAIMS, claim("more", "48Mi"))
        script = "echo kept > /data/file; exec sleep infinity"
        await namespace.create(PODS, pod("writer", {"/data": "data"}, script=script))
        writer = await namespace.until_running("writer")
        volume = (await namespace.until_bound("data"))["metadata"]["name"]
        mount = onnode.mount_on(node.volume_folder(writer["metadata"]["uid"], volume))
        assert mount is not None
        assert mount.filesystem == "tmpfs", "that of the node itself"

        await namespace.create(PODS, pod("waiting", {"/data": "more"}))
        await namespace.until_event("waiting", "FailedScheduling", "did not have enough free storage")

        await namespace.delete(PODS, "writer")
        await namespace.until_gone(PODS, "writer")
        assert mountspace.mounts_below(node.staging) == []
        script = "grep kept /data/file && exec sleep infinity"
        await namespace.create(PODS, pod("reader", {"/data": "data"}, script=script))
        await namespace.until_running("reader")

        await namespace.delete(PODS, "reader")
        await namespace.delete(CLAIMS, "data")
        await namespace.until_gone(VOLUMES, volume)
        assert not list(node.data.rglob(f"*{volume}*"))
        await namespace.until_running("waiting")
    await until(lambda: is_all_free(sandbox), what="all room is free again")
