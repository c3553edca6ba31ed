"""Volumes whose PersistentVolume was torn out of the API server, finalizer and all, and volumes that fell ill."""

import subprocess

import aiohttp

from kube.resources import CLAIMS, PODS
from tests.cluster import onnode
from tests.cluster.conftest import MakeSandbox
from tests.cluster.test_reclaiming import content, written
from tests.sandbox.nodes import Node, NodeSpec
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, pod, storage_class
from tests.waiting import until


async def tear_out(sandbox: Sandbox, volume: str) -> None:
    """What impatient people do to a PersistentVolume that does not go."""
    await sandbox.kubectl("delete", "pv", volume, "--wait=false")
    await sandbox.kubectl("patch", "pv", volume, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')


async def with_grace(node: Node, grace: str) -> None:
    await node.daemon.stop()
    node.daemon.environment = {**node.daemon.environment, "ORPHAN_GRACE": grace}
    await node.daemon.start()


async def until_node_event(sandbox: Sandbox, reason: str, message: str) -> None:
    """An event on a node. They are in the namespace default, where the API keeps what is about the cluster."""

    async def reported() -> bool:
        path = '{range .items[*]}{.involvedObject.kind} {.reason} {.message}{"\\n"}{end}'
        events = await sandbox.kubectl("get", "events", "-n", "default", "-o", f"jsonpath={path}")
        return any(line.startswith(f"Node {reason} ") and message in line for line in events.splitlines())

    await until(reported, what=f"{reason} with {message!r} is told of the node")


async def figure(node: Node, name: str) -> float:
    async with aiohttp.ClientSession() as session, session.get(f"{node.url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(f"{name} "))


async def test_an_orphan_goes_when_nobody_uses_it_and_its_record_says_delete(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(NodeSpec("only"))
    node = sandbox.nodes["only"]
    await with_grace(node, "1s")
    await sandbox.apply(storage_class("keeping", reclaimPolicy="Retain"))
    async with Namespace(sandbox, "work") as namespace:
        await namespace.create(CLAIMS, claim("kept", "16Mi", "keeping"))
        await namespace.create(CLAIMS, claim("data", "16Mi"))
        _, kept = await written(namespace, "kept")
        script = "while :; do echo alive >> /data/file || exit; sleep 0.1; done"
        await namespace.create(PODS, pod("user", {"/data": "data"}, script=script))
        running = await namespace.until_running("user")
        volume = (await namespace.until_bound("data"))["metadata"]["name"]
        file = node.volume_folder(running["metadata"]["uid"], volume) / "file"

        for name in (kept, volume):
            await tear_out(sandbox, name)
            await until_node_event(sandbox, "VolumeOrphaned", name)
        await until(lambda: f"volume {volume} is mounted at" in node.daemon.output, what="the removal was refused")
        size = file.stat().st_size
        await until(lambda: file.stat().st_size > size, what="the pod goes on writing")
        assert await figure(node, 'elastic_local_volumes{state="orphan"}') == 2

        await namespace.delete(PODS, "user")
        await until(lambda: volume not in onnode.sizes(node), what="the orphan is removed")
        await until_node_event(sandbox, "OrphanRemoved", volume)
        assert content(node, kept) == "kept\n"
        assert await figure(node, 'elastic_local_volumes{state="orphan"}') == 1


async def test_no_orphan_is_removed_while_the_api_server_is_away(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(NodeSpec("only"))
    node = sandbox.nodes["only"]
    await with_grace(node, "2s")
    async with Namespace(sandbox, "work") as namespace:
        await namespace.create(CLAIMS, claim("data", "16Mi"))
        _, volume = await written(namespace)
        await tear_out(sandbox, volume)
        await until_node_event(sandbox, "VolumeOrphaned", volume)
        await sandbox.apiserver.kill()
        # The first question after the grace goes unanswered.
        await until(
            lambda: f"can't be asked for PersistentVolume {volume}" in node.daemon.output,
            what="the daemon asked in vain",
        )
        assert content(node, volume) == "kept\n"
        await sandbox.apiserver.start()
        await until(lambda: volume not in onnode.sizes(node), what="the orphan is removed")


async def test_a_volume_that_became_read_only_is_reported_and_counted(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(NodeSpec("only"))
    node = sandbox.nodes["only"]
    ill = 'elastic_local_unhealthy_volumes{state="read-only"}'
    async with Namespace(sandbox, "work") as namespace:
        await namespace.create(CLAIMS, claim("data", "16Mi"))
        await namespace.create(PODS, pod("user", {"/data": "data"}))
        await namespace.until_running("user")
        volume = (await namespace.until_bound("data"))["metadata"]["name"]
        assert await figure(node, ill) == 0
        # What ext4 does by itself after an error of its disk (errors=remount-ro), for the whole filesystem.
        subprocess.run(["mount", "-o", "remount,ro", str(node.staging / volume)], check=True)
        await until_node_event(sandbox, "VolumeUnhealthy", f"volume {volume} is read-only")
        assert await figure(node, ill) == 1
        described = await sandbox.kubectl("describe", "pv", volume)
        assert "VolumeUnhealthy" in described

        subprocess.run(["mount", "-o", "remount,rw", str(node.staging / volume)], check=True)
        await until_node_event(sandbox, "VolumeHealthy", volume)
        assert await figure(node, ill) == 0
