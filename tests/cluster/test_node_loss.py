"""Nodes that are deleted: for good, for a moment, to be made anew, and to come back under another name."""

import shutil
from collections.abc import Mapping

import aiohttp

from contract import names
from kube.resources import CLAIMS, NODES, PODS, VOLUMES
from tests.cluster import onnode
from tests.cluster.conftest import MakeSandbox
from tests.cluster.test_reclaiming import content, written
from tests.forkserver import REPOSITORY
from tests.sandbox.nodes import Node, NodeSpec
from tests.sandbox.programs import Program
from tests.sandbox.sandbox import DAEMON_ACCOUNT, Sandbox
from tests.sandbox.workloads import Json, Namespace, claim, pod, storage_class
from tests.waiting import until

_RIGHT_TO_DELETE_CLAIMS = REPOSITORY / "deploy" / "components" / "node-cleanup" / "rbac.yaml"
_READ = "grep -qx kept /data/file; exec sleep infinity"


async def told_to(program: Program, settings: Mapping[str, str]) -> None:
    """It starts again with these settings. It ends in order, so that a lease is given back."""
    await program.stop()
    program.environment = {**program.environment, **settings}
    await program.start()


async def lose(sandbox: Sandbox, node: Node) -> None:
    """The machine is switched off, and somebody deletes its Node."""
    await node.kubelet.kill()
    await node.daemon.kill()
    await sandbox.kubectl("delete", "node", node.name)


async def until_warned(namespace: Namespace, name: str, message: str) -> None:
    await namespace.until_event(name, "ReferencedNodeDeleted", message)


async def test_a_released_volume_of_a_lost_node_is_erased_when_it_returns(
    fresh_sandbox: MakeSandbox,
) -> None:
    sandbox = await fresh_sandbox(NodeSpec("lost", hostname="ip-10-0-0-1"))
    node = sandbox.nodes["lost"]
    await told_to(sandbox.provisioners[0], {"NODE_LOSS_DELAY": "2s"})
    async with Namespace(sandbox, "work") as namespace:
        await namespace.create(CLAIMS, claim("data", "16Mi"))
        await namespace.create(CLAIMS, claim("kept", "16Mi"))
        _, volume = await written(namespace)
        _, kept = await written(namespace, "kept")
        await lose(sandbox, node)
        await until_warned(namespace, "data", "bring the node back, or give the data up by deleting this claim")

        await namespace.delete(CLAIMS, "data")
        await namespace.until_gone(VOLUMES, volume)
        events = await sandbox.kubectl("get", "events", "--all-namespaces", "-o", "jsonpath={.items[*].message}")
        assert "the volume's finalizer was removed" in events
        # Nobody gave up the other one, so it waits for its node.
        assert (await namespace.get(CLAIMS, "kept"))["status"]["phase"] == "Bound"
        assert names.FINALIZER in (await sandbox.api.get(VOLUMES, kept))["metadata"]["finalizers"]
        assert content(node, volume) == "kept\n"

        node.daemon.environment = {**node.daemon.environment, "ORPHAN_GRACE": "1s"}
        node.kubelet.launch()
        await node.daemon.start()
        await until(lambda: volume not in onnode.sizes(node), what="the volume that nobody knows any more is removed")
        assert content(node, kept) == "kept\n"


async def test_a_node_that_is_made_anew_within_the_delay_has_its_data(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(NodeSpec("reimaged"))
    node = sandbox.nodes["reimaged"]
    async with Namespace(sandbox, "work") as namespace:
        await namespace.create(CLAIMS, claim("data", "16Mi"))
        _, volume = await written(namespace)
        before = await sandbox.api.get(NODES, node.name)
        await lose(sandbox, node)
        await until_warned(namespace, "data", volume)
        # A new system disk: all is gone but the disk that holds volumes.
        for path in (node.kubelet_root, node.plugins, node.staging):
            shutil.rmtree(path)
        node.make_folders()
        node.kubelet.launch()
        await node.daemon.start()

        await namespace.create(PODS, pod("reader", {"/data": "data"}, script=_READ))
        await namespace.until_running("reader")
        assert (await namespace.until_bound("data"))["metadata"]["name"] == volume
        after = await sandbox.api.get(NODES, node.name)
        assert after["metadata"]["uid"] != before["metadata"]["uid"]


async def test_a_node_that_comes_back_under_another_name_has_its_data(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(NodeSpec("old-name", hostname="ip-10-0-0-1"))
    node = sandbox.nodes["old-name"]
    async with Namespace(sandbox, "work") as namespace:
        await namespace.create(CLAIMS, claim("data", "16Mi"))
        _, volume = await written(namespace)
        await lose(sandbox, node)
        await until_warned(namespace, "data", volume)
        node.kubelet.argv = ["new-name" if word == "old-name" else word for word in node.kubelet.argv]
        token = {"KUBECONFIG": str(sandbox.issue_token(DAEMON_ACCOUNT, "new-name"))}
        node.daemon.environment = {**node.daemon.environment, "NODE_NAME": "new-name", **token}
        node.kubelet.launch()
        await node.daemon.start()

        await namespace.create(PODS, pod("reader", {"/data": "data"}, script=_READ))
        await namespace.until_running("reader")
        body = await sandbox.api.get(VOLUMES, volume)
        assert body["metadata"]["labels"][names.NODE_LABEL] == "new-name"
        assert names.FINALIZER in body["metadata"]["finalizers"]


async def test_claims_and_volumes_of_opted_in_classes_go_with_their_node(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(NodeSpec("lost"))
    node, provisioner = sandbox.nodes["lost"], sandbox.provisioners[0]
    await told_to(provisioner, {"NODE_LOSS_DELAY": "2s", "NODE_CLEANUP_CLASSES": "fleeting,disks"})
    await sandbox.kubectl("apply", "-f", str(_RIGHT_TO_DELETE_CLAIMS))
    await sandbox.apply(storage_class("fleeting"), local_volume("disk", "disks"), local_volume("stays", "others"))
    async with Namespace(sandbox, "work") as namespace:
        await namespace.create(CLAIMS, claim("fleeting", "16Mi", "fleeting"))
        await namespace.create(CLAIMS, claim("kept", "16Mi"))
        _, fleeting = await written(namespace, "fleeting")
        _, kept = await written(namespace, "kept")
        await namespace.create(PODS, pod("user", {"/data": "fleeting"}))
        await namespace.until_running("user")
        await lose(sandbox, node)
        await until_warned(namespace, "fleeting", "this claim is deleted in 2 s unless the node comes back")
        await namespace.until_gone(CLAIMS, "fleeting")
        await namespace.until_gone(VOLUMES, fleeting)
        await namespace.until_gone(VOLUMES, "disk")
        assert (await namespace.get(CLAIMS, "kept"))["spec"]["volumeName"] == kept
        assert (await sandbox.api.get(VOLUMES, "stays"))["status"]["phase"] == "Available"
        figures = await scraped(provisioner)
        assert figures["local_volume_node_cleanup_persistentvolumeclaim_delete_total"] == 1
        assert figures['local_volume_node_cleanup_persistentvolume_delete_total{phase="Available"}'] == 1
        assert figures['elastic_local_provisioner_volumes_let_go_total{class="fleeting"}'] == 1

        # What was kept can be given up at last, and then nothing holds the namespace.
        await namespace.delete(CLAIMS, "kept")
        await namespace.until_gone(VOLUMES, kept)


async def test_a_node_that_is_registered_again_at_once_loses_nothing(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(NodeSpec("back"))
    node = sandbox.nodes["back"]
    await sandbox.kubectl("apply", "-f", str(_RIGHT_TO_DELETE_CLAIMS))
    # Longer than a kubelet takes to start on any machine.
    await told_to(sandbox.provisioners[0], {"NODE_LOSS_DELAY": "15s", "NODE_CLEANUP_CLASSES": "elastic-local"})
    async with Namespace(sandbox, "work") as namespace:
        await namespace.create(CLAIMS, claim("data", "16Mi"))
        _, volume = await written(namespace)
        before = await sandbox.api.get(VOLUMES, volume)
        await lose(sandbox, node)
        await until_warned(namespace, "data", "deleted in 15 s")
        await node.kubelet.start()
        await until(lambda: "node back is back" in sandbox.provisioners[0].output, what="the provisioner has seen it")
        # A second node is deleted later and cleaned up: so the first one's time is over, and nothing came of it.
        await sandbox.apply(lone_node("second"), local_volume("disk", "elastic-local", "second"))
        await sandbox.kubectl("delete", "node", "second")
        await namespace.until_gone(VOLUMES, "disk")
        after = await sandbox.api.get(VOLUMES, volume)
        assert after["metadata"]["uid"] == before["metadata"]["uid"]
        assert after["metadata"]["finalizers"] == before["metadata"]["finalizers"]
        assert "deletionTimestamp" not in (await namespace.get(CLAIMS, "data"))["metadata"]
        await node.daemon.start()


def lone_node(name: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {names.HOSTNAME_LABEL: name}},
    }


def local_volume(name: str, storage_class: str, node: str = "lost") -> Json:
    """A disk that somebody prepared."""
    term = {"matchExpressions": [{"key": names.HOSTNAME_LABEL, "operator": "In", "values": [node]}]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "10Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": storage_class,
            "local": {"path": f"/mnt/disks/{name}"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}},
        },
    }


async def scraped(provisioner: Program) -> dict[str, float]:
    url = f"http://{provisioner.environment['LISTEN_ADDRESS']}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        lines = (await response.text()).splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}
