"""Cleaning by Jobs and the taint of a new node, with the rights of their components and of no other."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from contract import names
from daemon.static.volume import job_volume_name
from kube.resources import CLAIMS, CLASSES, JOBS, NODES, PODS
from tests.cluster.staticnode import MIB, Offered, configure, disk, folder, served
from tests.sandbox.apiserver.guard import Request
from tests.sandbox.nodes import NodeSpec
from tests.sandbox.sandbox import DAEMON_ACCOUNT, Sandbox
from tests.sandbox.workloads import Namespace, claim, storage_class
from tests.unit.deploy.rendered import DEPLOY, with_components
from tests.waiting import until

Json = dict[str, Any]

COMPONENTS = [DEPLOY / "components" / name for name in ("static", "static-jobs", "startup-taint")]
IMAGE = "example.org/cleaner:1"
COMMAND = ["sh", "-ec", 'dd if=/dev/zero of="$LOCAL_PV_BLKDEVICE" bs=1M count=12 && echo clean']
TAINT = {"key": "storage/not-ready", "value": "", "effect": "NoSchedule"}
OTHER = {"key": "somebody/elses", "value": "", "effect": "PreferNoSchedule"}
TOLERATION = {"key": "dedicated", "operator": "Exists"}


async def test_a_device_is_cleaned_by_the_pod_of_a_job(short_folders: Callable[[], Path], tmp_path: Path) -> None:
    manifests = short_folders()
    image = {"name": "JOB_CONTAINER_IMAGE", "value": IMAGE}
    containers = [{"name": "daemon", "env": [image]}]
    pods = {"spec": {"template": {"spec": {"containers": containers}}}}
    ours = {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "daemon", "namespace": names.NAMESPACE}}
    with_components(manifests, COMPONENTS, patches=[{"patch": yaml.safe_dump(ours | pods)}])
    sandbox = Sandbox(short_folders(), [NodeSpec("one", hostname="host-1", static=True)], manifests=manifests)
    node = sandbox.nodes["one"]
    # How a Job ended is seen in the next pass.
    node.daemon.environment = {**node.daemon.environment, "JOB_CONTAINER_IMAGE": IMAGE, "DISCOVERY_PERIOD": "300ms"}
    with ExitStack() as disks:
        block = disks.enter_context(disk(tmp_path / "block", 12 * MIB))
        async with sandbox:
            await sandbox.api.patch(NODES, node.name, {"spec": {"taints": [TAINT, OTHER]}})
            await sandbox.api.create(CLASSES, storage_class("raw", provisioner="kubernetes.io/no-provisioner"))
            raw = folder(node, "raw")
            (raw / "disk").symlink_to(block)
            offered = Offered(sandbox, node, "disk", "raw")
            for key, value in (
                ("useJobForCleaning", True),
                ("jobTolerations", [TOLERATION]),
                ("provisionerNotReadyNodeTaintKey", TAINT["key"]),
                ("removeNodeNotReadyTaint", True),
                ("storageClassMap", {"raw": served(raw, volumeMode="Block", blockCleanerCommand=COMMAND)}),
            ):
                configure(node, key, value)
            before = (await offered.until("Available"))["metadata"]["uid"]
            await until(lambda: _taints(sandbox, node.name, [OTHER]), what="the taint is gone, and the other is not")

            async with Namespace(sandbox, "work") as namespace:
                await namespace.create(
                    CLAIMS, claim("device", "1Mi", "raw", volumeMode="Block", volumeName=offered.name)
                )
                bound = await offered.until("Bound")
                with block.open("wb") as written:
                    written.write(b"secret" * MIB)
                await namespace.delete(CLAIMS, "device")
                own = Namespace(sandbox, names.NAMESPACE)
                job = await own.until(JOBS, f"cleanup-{offered.name}", bool, what="is there")
                _is_as_the_original_makes_it(job, offered.name, raw, bound)
                await _is_run(own, job)
                assert (await offered.body() or {})["metadata"]["uid"] == before, "a Job that runs is not done"
                await sandbox.api.patch(
                    JOBS, job["metadata"]["name"], {"status": {"succeeded": 1}}, names.NAMESPACE, subresource="status"
                )
                await offered.until("Available", not_uid=before)
                await own.until_gone(JOBS, job["metadata"]["name"])
            assert not block.read_bytes().strip(b"\0")
            _used_these_rights(sandbox)


def _is_as_the_original_makes_it(job: Json, volume: str, raw: Path, bound: Json) -> None:
    metadata, spec = job["metadata"], job["spec"]["template"]["spec"]
    labels = {"kubernetes.io/hostname": "host-1", "pv": volume, "pvuuid": bound["metadata"]["uid"]}
    assert metadata["labels"] == labels
    assert labels.items() <= job["spec"]["template"]["metadata"]["labels"].items()
    assert metadata["annotations"]["device"] == f"{raw}/disk"
    assert metadata["annotations"]["start-time"].endswith("Z")
    assert spec["nodeSelector"] == {"kubernetes.io/hostname": "host-1"}
    assert (spec["restartPolicy"], spec["tolerations"]) == ("OnFailure", [TOLERATION])
    [container] = spec["containers"]
    assert (container["name"], container["image"], container["args"]) == ("cleaner", IMAGE, COMMAND)
    assert container["env"][0] == {"name": "LOCAL_PV_BLKDEVICE", "value": f"{raw}/disk"}
    assert container["securityContext"]["privileged"]
    paths = {each["name"]: each["hostPath"]["path"] for each in spec["volumes"]}
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert paths == mounts == {"dev": "/dev", job_volume_name(str(raw), str(raw)): str(raw)}


async def _is_run(namespace: Namespace, job: Json) -> None:
    """What a cluster's Job controller does."""
    template = job["spec"]["template"]
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "cleaner", "labels": template["metadata"]["labels"]},
        "spec": template["spec"],
    }
    await namespace.create(PODS, body)
    await namespace.until(PODS, "cleaner", lambda pod: pod["status"].get("phase") == "Succeeded", what="has succeeded")


async def _taints(sandbox: Sandbox, node: str, wanted: list[Json]) -> bool:
    taints = (await sandbox.api.get(NODES, node))["spec"].get("taints") or []
    return [each["key"] for each in taints] == [each["key"] for each in wanted]


def _used_these_rights(sandbox: Sandbox) -> None:
    """All that the three components give. That nothing else is asked for, every sandbox asserts at its end."""
    used = {_right(request) for request in sandbox.requests() if request.user.endswith(f":{DAEMON_ACCOUNT}")}
    volumes = {("persistentvolumes", verb, "") for verb in ("create", "delete")}
    jobs = {("jobs", verb, names.NAMESPACE) for verb in ("list", "create", "delete")}
    assert used >= volumes | jobs | {("nodes", "patch", "")}
    assert {right for right in used if right[0] == "jobs"} == jobs


def _right(request: Request) -> tuple[str, str, str]:
    return request.asked.resource, request.asked.verb, request.asked.namespace
