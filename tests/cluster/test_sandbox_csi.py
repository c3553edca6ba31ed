"""The sandbox's kubelet treats a CSI driver as the real one does: which calls it makes, in which order, what it makes
of an error, what it writes down. Source: as in tests/sandbox/README.md."""

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from grpclib import Status

from daemon.csi.proto.csi_pb2 import NodeServiceCapability, VolumeCapability
from kube.resources import CLAIMS, DRIVERS, NODES, PODS, SECRETS, VOLUMES
from tests.cluster.csirecorder import CsiRecorder
from tests.sandbox.controlplane import resizing
from tests.sandbox.controlplane.caches import CSI_NODES
from tests.sandbox.nodes import Node
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Json, Namespace, claim, pod
from tests.waiting import until

_MODE = VolumeCapability.AccessMode
_RPC = NodeServiceCapability.RPC
_FAILED = "desc = no such disk: plug one in"


@pytest.fixture
def node(sandbox: Sandbox) -> Node:
    return sandbox.nodes["node-a"]


@pytest_asyncio.fixture(loop_scope="session")
async def driver(node: Node, namespace: Namespace) -> AsyncIterator[CsiRecorder]:
    """Registered, with a CSIDriver; what pods still have of it is let go at the end."""
    name = f"{namespace.name}.example.com"
    recorder = CsiRecorder(name, node)
    spec = {"attachRequired": False, "podInfoOnMount": True, "fsGroupPolicy": "File"}
    api = namespace.sandbox.api
    body = {"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": name}, "spec": spec}
    await api.create(DRIVERS, body)
    async with recorder.serving():
        await until(lambda: recorder.statuses, what="the kubelet has registered the driver")
        yield recorder
        recorder.failures.clear()
        for each in await api.list(PODS, namespace.name):
            await namespace.delete(PODS, each["metadata"]["name"])
            await namespace.until_gone(PODS, each["metadata"]["name"])
        for volume in await namespace.volumes():
            claimed = volume["spec"]["claimRef"]["name"]
            await namespace.delete(CLAIMS, claimed)
            await api.delete(VOLUMES, volume["metadata"]["name"])
        staged = node.kubelet_root / "plugins" / "kubernetes.io" / "csi" / name
        await until(lambda: not staged.exists() or not any(staged.iterdir()), what="all is unstaged")
    await api.delete(DRIVERS, name)


async def bound(
    namespace: Namespace, driver: CsiRecorder, size: str = "16Mi", references: Json | None = None, **spec: Any
) -> str:
    """The name of a volume of the driver, to which the claim `data` is bound. `references` are to Secrets."""
    name = f"pv-{namespace.name}"
    source = {"driver": driver.name, "volumeHandle": f"handle-{name}", "fsType": "ext4", "volumeAttributes": {"a": "b"}}
    source |= references or {}
    body: Json = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "claimRef": {"namespace": namespace.name, "name": "data"},
            "csi": source,
            **spec,
        },
    }
    await namespace.sandbox.api.create(VOLUMES, body)
    modes = body["spec"]["accessModes"]
    await namespace.create(CLAIMS, claim("data", size, "", volumeName=name, accessModes=modes))
    await namespace.until_bound("data")
    return name


def folder_of(node: Node, uid: str, volume: str) -> Path:
    return node.kubelet_root / "pods" / uid / "volumes" / "kubernetes.io~csi" / volume


async def started(namespace: Namespace, name: str = "user", **spec: Any) -> str:
    created = await namespace.create(PODS, pod(name, {"/data": "data"}, nodeName="node-a", **spec))
    return str(created["metadata"]["uid"])


async def test_a_volume_gets_the_documented_calls(namespace: Namespace, node: Node, driver: CsiRecorder) -> None:
    volume = await bound(namespace, driver, mountOptions=["noatime"])
    uid = await started(namespace)
    await namespace.until_running("user")
    folder = folder_of(node, uid, volume)
    assert folder.stat().st_mode & 0o777 == 0o750
    assert json.loads((folder / "vol_data.json").read_text())["volumeHandle"] == f"handle-{volume}"
    await namespace.delete(PODS, "user")
    await namespace.until_gone(PODS, "user")
    await until(lambda: len(driver.calls) == 4, what="the volume is unstaged")

    assert driver.rpcs == ["Stage", "Publish", "Unpublish", "Unstage"]
    [staged] = driver.requests("NodeStageVolume")
    [published] = driver.requests("NodePublishVolume")
    plugin = f"{node.kubelet_root}/plugins/kubernetes.io/csi/{driver.name}/"
    assert staged.staging_target_path.startswith(plugin)
    assert staged.staging_target_path.endswith("/globalmount")
    assert published.staging_target_path == staged.staging_target_path
    assert published.target_path == f"{folder}/mount"
    assert dict(staged.volume_context) == {"a": "b"}
    assert dict(published.volume_context) == {
        "a": "b",
        "csi.storage.k8s.io/pod.name": "user",
        "csi.storage.k8s.io/pod.namespace": namespace.name,
        "csi.storage.k8s.io/pod.uid": uid,
        "csi.storage.k8s.io/serviceAccount.name": "default",
        "csi.storage.k8s.io/ephemeral": "false",
    }
    for request in (staged, published):
        assert request.volume_id == f"handle-{volume}"
        assert request.volume_capability.access_mode.mode == _MODE.SINGLE_NODE_MULTI_WRITER
        assert request.volume_capability.mount.fs_type == "ext4"
        assert list(request.volume_capability.mount.mount_flags) == ["noatime"]
    assert not published.readonly


@pytest.mark.parametrize(
    ("access_mode", "old_driver", "new_driver"),
    [
        ("ReadWriteOnce", _MODE.SINGLE_NODE_WRITER, _MODE.SINGLE_NODE_MULTI_WRITER),
        ("ReadWriteOncePod", _MODE.SINGLE_NODE_WRITER, _MODE.SINGLE_NODE_SINGLE_WRITER),
        ("ReadOnlyMany", _MODE.MULTI_NODE_READER_ONLY, _MODE.MULTI_NODE_READER_ONLY),
        ("ReadWriteMany", _MODE.MULTI_NODE_MULTI_WRITER, _MODE.MULTI_NODE_MULTI_WRITER),
    ],
)
async def test_access_modes_in_the_words_of_csi(
    namespace: Namespace, driver: CsiRecorder, access_mode: str, old_driver: int, new_driver: int
) -> None:
    await bound(namespace, driver, accessModes=[access_mode])
    for capabilities, expected in (
        ((_RPC.STAGE_UNSTAGE_VOLUME,), old_driver),
        ((_RPC.STAGE_UNSTAGE_VOLUME, _RPC.SINGLE_NODE_MULTI_WRITER), new_driver),
    ):
        driver.capabilities = capabilities
        driver.calls.clear()
        await started(namespace)
        await namespace.until_running("user")
        await namespace.delete(PODS, "user")
        await namespace.until_gone(PODS, "user")
        await until(lambda: driver.rpcs[-1:] == ["Unstage"], what="the volume is unstaged")
        [request] = driver.requests("NodePublishVolume")
        assert request.volume_capability.access_mode.mode == expected


async def test_two_pods_share_what_is_staged_once(namespace: Namespace, driver: CsiRecorder) -> None:
    await bound(namespace, driver)
    for name in ("one", "two"):
        await started(namespace, name)
        await namespace.until_running(name)
    await namespace.delete(PODS, "one")
    await namespace.until_gone(PODS, "one")
    assert driver.rpcs == ["Stage", "Publish", "Publish", "Unpublish"]
    await namespace.delete(PODS, "two")
    await until(lambda: driver.rpcs[-2:] == ["Unpublish", "Unstage"], what="with the last pod it is unstaged")


async def test_a_final_error_leaves_nothing_and_is_no_reason_to_undo(
    namespace: Namespace, node: Node, driver: CsiRecorder
) -> None:
    volume = await bound(namespace, driver)
    driver.failures["NodePublishVolume"] = Status.INTERNAL
    uid = await started(namespace)
    message = f'MountVolume.SetUp failed for volume "{volume}" : rpc error: code = Internal {_FAILED}'
    await namespace.until_event("user", "FailedMount", message)
    assert not folder_of(node, uid, volume).exists()
    await namespace.delete(PODS, "user")
    await namespace.until_gone(PODS, "user")
    await until(lambda: driver.rpcs[-1] == "Unstage", what="what was staged is unstaged")
    assert "Unpublish" not in driver.rpcs


async def test_an_uncertain_error_is_undone(namespace: Namespace, node: Node, driver: CsiRecorder) -> None:
    volume = await bound(namespace, driver)
    driver.failures["NodePublishVolume"] = Status.UNAVAILABLE
    uid = await started(namespace)
    message = f'MountVolume.SetUp failed for volume "{volume}" : rpc error: code = Unavailable {_FAILED}'
    await namespace.until_event("user", "FailedMount", message)
    assert (folder_of(node, uid, volume) / "vol_data.json").exists()
    await namespace.delete(PODS, "user")
    await namespace.until_gone(PODS, "user")
    await until(lambda: driver.rpcs[-1] == "Unstage", what="what was staged is unstaged")
    assert "Unpublish" in driver.rpcs


@pytest.mark.parametrize(("status", "undone"), [(Status.NOT_FOUND, False), (Status.ABORTED, True)])
async def test_a_stage_that_failed(namespace: Namespace, driver: CsiRecorder, status: Status, undone: bool) -> None:
    volume = await bound(namespace, driver)
    driver.failures["NodeStageVolume"] = status
    await started(namespace)
    message = f'MountVolume.MountDevice failed for volume "{volume}" : rpc error: code = '
    await namespace.until_event("user", "FailedMount", message)
    await namespace.delete(PODS, "user")
    await namespace.until_gone(PODS, "user")
    if undone:
        await until(lambda: driver.rpcs[-1] == "Unstage", what="what may be staged is unstaged")
    assert set(driver.rpcs) == ({"Stage", "Unstage"} if undone else {"Stage"})


async def test_an_unmount_that_fails_holds_the_pod(namespace: Namespace, driver: CsiRecorder) -> None:
    await bound(namespace, driver)
    await started(namespace)
    await namespace.until_running("user")
    driver.failures["NodeUnpublishVolume"] = Status.INTERNAL
    await namespace.delete(PODS, "user")
    await until(lambda: driver.rpcs.count("Unpublish") > 1, what="it is tried again")
    assert "deletionTimestamp" in (await namespace.get(PODS, "user"))["metadata"]
    driver.failures.clear()
    await namespace.until_gone(PODS, "user")


async def test_a_driver_that_is_not_there(namespace: Namespace, node: Node, driver: CsiRecorder) -> None:
    absent = CsiRecorder(f"absent.{namespace.name}.example.com", node)
    spec = {"attachRequired": False}
    body = {"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": absent.name}, "spec": spec}
    await namespace.sandbox.api.create(DRIVERS, body)
    volume = await bound(namespace, absent)
    await started(namespace)
    await namespace.until_event(
        "user",
        "FailedMount",
        f'MountVolume.MountDevice failed for volume "{volume}" : kubernetes.io/csi: attacher.MountDevice failed to '
        f"create newCsiDriverClient: driver name {absent.name} not found in the list of registered CSI drivers",
    )
    async with absent.serving():
        await namespace.until_running("user")
        await namespace.delete(PODS, "user")
        await namespace.until_gone(PODS, "user")
        await until(lambda: absent.rpcs[-1] == "Unstage", what="it is unstaged")
    await namespace.sandbox.api.delete(DRIVERS, absent.name)


async def test_a_registration_that_failed_is_tried_again(namespace: Namespace, node: Node) -> None:
    recorder, api = CsiRecorder(f"{namespace.name}.example.com", node), namespace.sandbox.api
    recorder.failures["NodeGetInfo"] = Status.UNAVAILABLE
    recorder.topology, recorder.limit = {f"{namespace.name}.example.com/zone": "a"}, 7

    async def drivers() -> dict[str, Json]:
        found = (await api.get(CSI_NODES, node.name))["spec"].get("drivers") or []
        return {each["name"]: each for each in found}

    async with recorder.serving():
        await until(lambda: recorder.statuses, what="the driver is told")
        assert not recorder.statuses[0].plugin_registered
        message = (
            f"RegisterPlugin error -- plugin registration failed with err: rpc error: code = Unavailable {_FAILED}"
        )
        assert recorder.statuses[0].error == message
        recorder.failures.clear()
        await until(lambda: recorder.statuses[-1].plugin_registered, what="it is registered")
        assert (await drivers())[recorder.name] == {
            "name": recorder.name,
            "nodeID": node.name,
            "topologyKeys": [f"{namespace.name}.example.com/zone"],
            "allocatable": {"count": 7},
        }
        assert (await api.get(NODES, node.name))["metadata"]["labels"][f"{namespace.name}.example.com/zone"] == "a"

    async def gone() -> bool:
        return recorder.name not in await drivers()

    await until(gone, what="it goes with its socket")


async def resized(namespace: Namespace, step: str, size: str) -> None:
    """What an external resizer does: the node is to give the claim so much."""
    name = f"pv-{namespace.name}"
    status = {"allocatedResources": {"storage": size}, "allocatedResourceStatuses": {"storage": step}}
    await namespace.sandbox.api.patch(CLAIMS, "data", {"status": status}, namespace.name, "status")
    await namespace.sandbox.api.patch(VOLUMES, name, {"spec": {"capacity": {"storage": size}}})


async def test_a_volume_grows_under_its_pod_and_before_the_next(namespace: Namespace, driver: CsiRecorder) -> None:
    await bound(namespace, driver)
    await started(namespace)
    await namespace.until_running("user")
    await resized(namespace, resizing.NODE_PENDING, "32Mi")
    grown = await namespace.until(
        CLAIMS, "data", lambda body: body["status"]["capacity"]["storage"] == "32Mi", what="has 32Mi"
    )
    assert "allocatedResourceStatuses" not in grown["status"] or not grown["status"]["allocatedResourceStatuses"]
    [request] = driver.requests("NodeExpandVolume")
    [published] = driver.requests("NodePublishVolume")
    assert request.volume_path == published.target_path
    assert request.staging_target_path == published.staging_target_path
    assert request.capacity_range.required_bytes == 32 << 20
    await namespace.delete(PODS, "user")
    await namespace.until_gone(PODS, "user")
    await resized(namespace, resizing.NODE_PENDING, "48Mi")
    driver.calls.clear()
    await started(namespace)
    await namespace.until_running("user")
    assert driver.rpcs[-3:] == ["Stage", "Publish", "Expand"]


async def secret(namespace: Namespace, name: str, content: bytes) -> None:
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}
    await namespace.create(SECRETS, body | {"data": {"key": base64.b64encode(content).decode()}})


async def test_each_call_has_its_secret_and_waits_for_it(namespace: Namespace, driver: CsiRecorder) -> None:
    calls = ("Stage", "Publish", "Expand")
    references = {f"node{call}SecretRef": {"name": call.lower(), "namespace": namespace.name} for call in calls}
    await bound(namespace, driver, references=references)
    await started(namespace)

    def missing(call: str) -> str:
        return f'Node{call}SecretRef {namespace.name}/{call.lower()} failed: secrets "{call.lower()}" not found'

    await namespace.until_event("user", "FailedMount", f"fetching {missing('Stage')}")
    assert not driver.rpcs
    await secret(namespace, "stage", "schlüssel".encode())
    await namespace.until_event("user", "FailedMount", f"fetching {missing('Publish')}")
    await secret(namespace, "publish", b"\xff")
    await namespace.until_event("user", "FailedMount", "string field contains invalid UTF-8")
    assert driver.rpcs == ["Stage"], "what is no text can't be sent"
    await namespace.delete(SECRETS, "publish")
    await secret(namespace, "publish", b"")
    await namespace.until_running("user")
    await resized(namespace, resizing.NODE_PENDING, "32Mi")
    words = f"expander.NodeExpand failed to get NodeExpandSecretRef {namespace.name}/expand: secrets"
    await namespace.until_event("user", "VolumeResizeFailed", words)
    assert "Expand" not in driver.rpcs
    claimed = await namespace.get(CLAIMS, "data")
    assert claimed["status"]["conditions"][0]["type"] == "NodeResizeError"
    assert resizing.step_of(claimed) == resizing.NODE_IN_PROGRESS
    await secret(namespace, "expand", b"bytes")
    await until(lambda: "Expand" in driver.rpcs, what="it grows")
    for call, content in (("Stage", "schlüssel"), ("Publish", ""), ("Expand", "bytes")):
        [request] = driver.requests(f"Node{call}Volume")
        assert dict(request.secrets) == {"key": content}


async def test_a_block_volume_waits_for_its_secrets_in_words_of_its_own(
    namespace: Namespace, driver: CsiRecorder
) -> None:
    references = {f"node{call}SecretRef": {"name": "key", "namespace": namespace.name} for call in ("Stage", "Publish")}
    volume = await bound(namespace, driver, references=references, volumeMode="Block")
    body = pod("user", {"/data": "data"}, nodeName="node-a")
    [container] = body["spec"]["containers"]
    del container["volumeMounts"]
    container["volumeDevices"] = [{"name": "data", "devicePath": "/dev/data"}]
    await namespace.create(PODS, body)
    about = f'for volume "{volume}" : kubernetes.io/csi:'
    missing = f'{namespace.name}/key: secrets "key" not found'
    words = f"MapVolume.SetUpDevice failed {about} failed to get NodeStageSecretRef {missing}"
    await namespace.until_event("user", "FailedMapVolume", words)
    await secret(namespace, "key", b"key")
    await until(lambda: "Stage" in driver.rpcs, what="it is staged")
    [staged] = driver.requests("NodeStageVolume")
    assert dict(staged.secrets) == {"key": "key"}
    await until(lambda: "Publish" in driver.rpcs, what="it is published")
    assert dict(driver.requests("NodePublishVolume")[0].secrets) == {"key": "key"}


@pytest.mark.parametrize(
    ("status", "step"),
    [
        (Status.INVALID_ARGUMENT, resizing.NODE_INFEASIBLE),
        (Status.OUT_OF_RANGE, resizing.NODE_INFEASIBLE),
        (Status.NOT_FOUND, resizing.NODE_INFEASIBLE),
        (Status.INTERNAL, resizing.NODE_IN_PROGRESS),
        (Status.FAILED_PRECONDITION, resizing.NODE_IN_PROGRESS),
    ],
)
async def test_an_expansion_that_failed(namespace: Namespace, driver: CsiRecorder, status: Status, step: str) -> None:
    """Infeasible is what the driver says can't be; in use is what it does not try now; else it is tried again."""
    await bound(namespace, driver)
    await started(namespace)
    await namespace.until_running("user")
    driver.failures["NodeExpandVolume"] = status
    await resized(namespace, resizing.NODE_PENDING, "32Mi")
    claimed = await namespace.until(
        CLAIMS, "data", lambda body: body["status"].get("conditions"), what="says that it failed"
    )
    [condition] = claimed["status"]["conditions"]
    assert condition["type"] == "NodeResizeError"
    assert condition["message"].startswith("failed to expand pvc with Expander.NodeExpand failed to expand the volume")
    assert resizing.step_of(claimed) == step
    if status is Status.INTERNAL:
        await until(lambda: driver.rpcs.count("Expand") > 1, what="it is tried again")
    if status is not Status.FAILED_PRECONDITION:
        await namespace.until_event("user", "VolumeResizeFailed", _FAILED)
