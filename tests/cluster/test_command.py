"""The command against a running cluster: what a person at a terminal, or in a daemon's pod, reads of it."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command.main import EXECUTABLE
from host.command import run
from kube.resources import CLAIMS, NODES, PODS, VOLUMES
from tests import forkserver
from tests.cluster.conftest import MakeSandbox
from tests.sandbox.nodes import COMMAND, Node, NodeSpec
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until
from tools import krew

_MIB = 1024**2


@dataclass(frozen=True)
class Answer:
    code: int
    output: str
    errors: str

    @property
    def json(self) -> Any:
        assert self.output, self.errors
        return json.loads(self.output)


async def elastic_local(*arguments: str, environment: Mapping[str, str]) -> Answer:
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = forkserver.start(
            [COMMAND, *arguments],
            stdout=output.fileno(),
            stderr=errors.fileno(),
            environment={**os.environ, **environment},
        )
        await until(lambda: process.poll() is not None, what=f"elastic-local {' '.join(arguments)} has ended")
        for written in (output, errors):
            written.seek(0)
        answer = Answer(process.wait(0), output.read().decode(), errors.read().decode())
    assert "Traceback" not in answer.errors, answer.errors
    return answer


async def on_node(node: Node, *arguments: str, **more: str) -> Answer:
    """As in the daemon's pod: its settings and its account."""
    return await elastic_local(*arguments, environment={**node.daemon.environment, **more})


async def as_administrator(sandbox: Sandbox, *arguments: str, **more: str) -> Answer:
    return await elastic_local(*arguments, environment={"KUBECONFIG": str(sandbox.kubeconfig), **more})


async def running_volume(namespace: Namespace) -> tuple[Node, str]:
    """A pod with a volume of 64 MiB, of which it uses some: its node and the name of the volume."""
    await namespace.create(CLAIMS, claim("data", "64Mi"))
    script = "head -c 8000000 /dev/zero > /data/file; exec sleep infinity"
    await namespace.create(PODS, pod("writer", {"/data": "data"}, script=script))
    node = namespace.sandbox.node_of(await namespace.until_running("writer"))
    name = (await namespace.until_bound("data"))["metadata"]["name"]
    file = node.staging / name / "file"
    await until(lambda: file.exists() and file.stat().st_size == 8000000, what="the pod has written")
    return node, name


async def test_volumes_of_a_node_and_of_the_cluster(namespace: Namespace, tmp_path: Path) -> None:
    sandbox = namespace.sandbox
    node, name = await running_volume(namespace)

    [row] = [row for row in (await on_node(node, "volumes", "--output", "json")).json if row["volume"] == name]
    assert row["used"] > 8000000
    assert row == {
        **row,
        "node": node.name,
        "claim": f"{namespace.name}/data",
        "pods": [f"{namespace.name}/writer"],
        "size": 64 * _MIB,
        "filesystem": "ext4",
        "policy": "Delete",
        "state": "ready",
        "remark": "",
    }
    table = (await on_node(node, "volumes")).output
    assert name in table
    assert f"{namespace.name}/data" in table

    local = await on_node(node, "volumes", "--local", "--output", "json", KUBECONFIG="/nowhere")
    [alone] = [row for row in local.json if row["volume"] == name]
    writer = await namespace.get(PODS, "writer")
    assert (alone["claim"], alone["pods"], alone["state"]) == ("", [writer["metadata"]["uid"]], "ready")

    answer = await as_administrator(sandbox, "doctor", "--uninstall", "--output", "json")
    [left] = [each for each in answer.json if each["check"] == f"PersistentVolume {name}"]
    assert answer.code == 1
    assert "snapshots" not in {each["check"] for each in answer.json}, "this cluster has no such kind"
    assert (left["verdict"], left["remedy"]) == ("wrong", f"kubectl -n {namespace.name} delete pvc data")

    # Nothing here runs daemons in pods, so no node answers, and that is said instead of guessed.
    answer = await as_administrator(sandbox, "volumes", "--cluster", "--output", "json")
    [unseen] = [row for row in answer.json if row["volume"] == name]
    assert (unseen["state"], unseen["node"], unseen["used"]) == ("unseen", node.name, None)
    assert "no daemon of namespace elastic-local runs on" in answer.errors

    # As krew unpacks the plugin, and with nothing else installed.
    subprocess.run(["tar", "--extract", "--gzip", "--directory", tmp_path], input=krew.archive("1.2.0"), check=True)
    listed = await run(
        *(sys.executable, "-I", "-S", str(tmp_path / EXECUTABLE), "volumes", "--cluster", "--output", "wide"),
        deadline=60,
        env={"KUBECONFIG": str(sandbox.kubeconfig)},
        check=False,
    )
    [line] = [line for line in listed.stdout.splitlines() if name in line]
    assert f"{namespace.name}/data" in line
    assert (listed.exit_code, "no daemon of namespace" in listed.stderr) == (1, True)


async def test_capacity_shows_what_every_node_published(namespace: Namespace) -> None:
    rows = (await as_administrator(namespace.sandbox, "capacity", "--output", "json")).json
    nodes = {row["node"] for row in rows if row["storage_class"] == "elastic-local"}
    assert nodes == set(namespace.sandbox.nodes)
    assert all(0 < row["available"] <= row["allocatable"] == 1024 * _MIB for row in rows if row["pool"] == "loop")
    assert "░" in (await on_node(namespace.sandbox.nodes["node-a"], "capacity")).output


async def test_a_healthy_node_and_cluster_have_no_fault(namespace: Namespace) -> None:
    sandbox = namespace.sandbox
    answer = await as_administrator(sandbox, "doctor", "--cluster", "--output", "json")
    assert (answer.code, [finding for finding in answer.json if finding["verdict"] == "wrong"]) == (0, [])
    checks = {finding["check"] for finding in answer.json}
    assert {"ok"} == {finding["verdict"] for finding in answer.json if finding["check"] == "snapshots"}
    assert {
        "provisioner",
        "reclaim",
        "permissions of the daemon",
        "permissions of the provisioner",
        "StorageClasses",
    } <= checks

    node = sandbox.nodes["node-b"]
    findings = (await on_node(node, "doctor", "--output", "json")).json
    verdicts = {finding["check"]: finding["verdict"] for finding in findings}
    assert verdicts["permissions of the daemon"] == "ok"
    assert verdicts["node node-b: published capacity"] == "ok"
    assert verdicts["socket"] == verdicts["driver"] == verdicts["storage (LOOP)"] == "ok"
    # The sandbox keeps its mounts from the machine, and that is just what this check is for.
    faults = {check for check, verdict in verdicts.items() if verdict == "wrong"}
    assert faults <= {"mount propagation"}


async def test_doctor_names_what_is_broken_and_what_mends_it(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(NodeSpec("node-a"))
    node = sandbox.nodes["node-a"]
    await asyncio.gather(node.daemon.stop(), sandbox.provisioners[0].stop())
    await asyncio.gather(
        sandbox.kubectl("delete", "csidriver", "elastic-local.volumes.k8s.elastic.co"),
        sandbox.kubectl("delete", "clusterrolebinding", "elastic-local-daemon"),
        sandbox.kubectl("delete", "csistoragecapacities", "--all", "--namespace", "elastic-local"),
    )
    node.driver.unlink()

    answer = await as_administrator(sandbox, "doctor", "--cluster")
    assert answer.code == 1
    for message in (
        "WRONG  permissions of the daemon: it may not get nodes; get namespaces; get pods",
        "-> kubectl apply -k deploy/base",
        "WRONG  CSIDriver elastic-local.volumes.k8s.elastic.co: without it",
        "WRONG  provisioner: none leads now",
        "WRONG  node node-a: published capacity: none",
    ):
        assert message in answer.output, answer.output

    await sandbox.api.patch(NODES, "node-a", {"metadata": {"labels": {"kubernetes.io/hostname": None}}})
    answer = await on_node(node, "doctor", KUBECONFIG=str(sandbox.kubeconfig))
    assert answer.code == 1
    for message in (
        "WRONG  socket: nobody answers",
        "WRONG  driver: there is no executable",
        f"-> elastic-local flexdriver install --plugin-dir {node.plugins}",
        "WRONG  node node-a: hostname label",
        "-> kubectl label node node-a kubernetes.io/hostname=node-a",
    ):
        assert message in answer.output, answer.output


async def test_an_orphan_gets_its_data_to_the_claim_that_is_named(namespace: Namespace) -> None:
    sandbox = namespace.sandbox
    node, name = await running_volume(namespace)
    await sandbox.api.patch(VOLUMES, name, {"spec": {"persistentVolumeReclaimPolicy": "Retain"}})
    await namespace.delete(PODS, "writer")
    await namespace.until_gone(PODS, "writer")
    await namespace.delete(CLAIMS, "data")
    await namespace.until_gone(CLAIMS, "data")
    await sandbox.api.delete(VOLUMES, name)
    await namespace.until_gone(VOLUMES, name)

    async def state() -> str:
        rows = (await on_node(node, "volumes", "--output", "json")).json
        return str(next(row["state"] for row in rows if row["volume"] == name))

    assert await state() == "orphan"
    administrator = {"KUBECONFIG": str(sandbox.kubeconfig)}
    assert "--claim NAMESPACE/NAME" in (await on_node(node, "adopt", **administrator)).output
    heir = ("adopt", name, "--claim", f"{namespace.name}/heir")
    dry = await on_node(node, *heir, **administrator)
    assert "nothing was changed" in dry.errors
    assert await state() == "orphan"

    # Of another cluster it is nobody's here, and only taken over by name.
    record = node.data / "loop" / f"{name}.json"
    ours = record.read_text()
    record.write_text(json.dumps({**json.loads(ours), "cluster": "another"}))
    assert await state() == "foreign"
    assert "of another cluster (another)" in (await on_node(node, "adopt", **administrator)).output
    record.write_text(json.dumps({**json.loads(ours), "policy": "Delete"}))

    # As in a daemon's pod, whose account may tie a PersistentVolume but not make one. From here on it waits for that.
    manifest = (await on_node(node, *heir, "--manifest")).output
    assert json.loads(record.read_text())["policy"] == "Retain"
    await sandbox.kubectl("create", "-f", "-", stdin=manifest)
    done = await on_node(node, "adopt", name, "--yes")
    assert done.code == 0, done.errors
    assert await state() == "ready"

    await namespace.create(CLAIMS, claim("heir", "64Mi"))
    script = "test $(wc -c < /data/file) = 8000000 && exec sleep infinity"
    await namespace.create(PODS, pod("reader", {"/data": "heir"}, script=script))
    await namespace.until_running("reader", seconds=90)
    assert (await namespace.until_bound("heir"))["metadata"]["name"] == name
    assert "nothing on this node is to be adopted" in (await on_node(node, "adopt", **administrator)).errors

    # With policy Delete again, the namespace's end shows that the new PersistentVolume is reclaimed like any other.
    await sandbox.api.patch(VOLUMES, name, {"spec": {"persistentVolumeReclaimPolicy": "Delete"}})


async def test_a_wrong_kubeconfig_is_a_line_and_no_traceback() -> None:
    answer = await elastic_local("capacity", environment={"KUBECONFIG": "/nowhere"})
    assert answer.code == 1
    assert "elastic-local: kubeconfig /nowhere can't be used" in answer.errors
