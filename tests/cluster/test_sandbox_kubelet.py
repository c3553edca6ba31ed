"""The sandbox's kubelet treats a driver as the real one does: the product is only as proven as this is true."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kube.resources import CLAIMS, PODS, VOLUMES
from tests.cluster.conftest import MakeClass
from tests.cluster.recorder import Recorder
from tests.sandbox.controlplane import resizing
from tests.sandbox.nodes import Node, NodeSpec
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until

Json = dict[str, Any]

FAILURE = '{"status": "Failure", "message": "no such disk: plug one in"}'
EXPANDFS_FAILED = "expandfs command failed, status: Failure, reason: no such disk: plug one in"


@pytest.fixture
def node(sandbox: Sandbox) -> Node:
    return sandbox.nodes["node-a"]


@pytest.fixture
def driver(node: Node, namespace: Namespace, tmp_path: Path) -> Recorder:
    """Stays installed: the pods that go when the test is over need it for their unmounts."""
    recorder = Recorder(f"example.com/{namespace.name}", node.plugins, tmp_path)
    recorder.install()
    return recorder


def inline(driver: Recorder, **source: Any) -> Json:
    """A pod on node-a with an inline volume `scratch` of the driver."""
    volume = {"name": "scratch", "flexVolume": {"driver": driver.name, **source}}
    body = pod("user", nodeName="node-a", volumes=[volume])
    body["spec"]["containers"][0]["volumeMounts"] = [{"name": "scratch", "mountPath": "/scratch"}]
    return body


def folder_of(node: Node, body: Json, driver: Recorder, name: str) -> Path:
    return node.kubelet_root / "pods" / str(body["metadata"]["uid"]) / "volumes" / driver.name.replace("/", "~") / name


async def bound_claim(
    namespace: Namespace, driver: Recorder, size: str, storage_class: str = "", *, name: str = "data", **spec: Any
) -> str:
    """A claim bound to a volume of the driver that nobody provisions; the name of the volume."""
    volume_name = f"pv-{namespace.name}"
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": volume_name},
        "spec": {
            "capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": storage_class,
            "claimRef": {"namespace": namespace.name, "name": name},
            "flexVolume": {"driver": driver.name, "fsType": "ext4", "options": {"size": "16777216"}},
            **spec,
        },
    }
    await namespace.sandbox.api.create(VOLUMES, volume)
    await namespace.create(CLAIMS, claim(name, size, storage_class, volumeName=volume_name))
    await namespace.until_bound(name)
    return volume_name


async def ask(namespace: Namespace, size: str) -> None:
    more = {"spec": {"resources": {"requests": {"storage": size}}}}
    await namespace.sandbox.api.patch(CLAIMS, "data", more, namespace.name)


async def until_has(namespace: Namespace, size: str) -> Json:
    return await namespace.until(
        CLAIMS, "data", lambda body: body["status"]["capacity"]["storage"] == size, what=f"has {size}"
    )


async def drop(namespace: Namespace, volume: str, name: str = "data") -> None:
    await namespace.delete(PODS, "user")
    await namespace.until_gone(PODS, "user")
    await namespace.delete(CLAIMS, name)
    await namespace.sandbox.api.delete(VOLUMES, volume)
    await namespace.until_gone(VOLUMES, volume)


async def test_a_volume_of_a_claim_gets_the_documented_calls(
    namespace: Namespace, node: Node, driver: Recorder
) -> None:
    volume = await bound_claim(namespace, driver, "16Mi")
    created = await namespace.create(PODS, pod("user", {"/data": "data"}, nodeName="node-a"))
    await namespace.until_running("user")
    folder = folder_of(node, created, driver, volume)
    assert folder.parent.stat().st_mode & 0o777 == 0o750
    await drop(namespace, volume)

    uid = created["metadata"]["uid"]
    of_volume = f'"kubernetes.io/pvOrVolumeName":"{volume}","kubernetes.io/readwrite":"rw"'
    of_pod = (
        f'"kubernetes.io/pod.name":"user","kubernetes.io/pod.namespace":"{namespace.name}",'
        f'"kubernetes.io/pod.uid":"{uid}"'
    )
    assert driver.calls == [
        ["init"],
        ["getvolumename", '{"kubernetes.io/fsType":"ext4",' + of_volume + ',"size":"16777216"}'],
        [
            "mount",
            str(folder),
            '{"kubernetes.io/fsType":"ext4",'
            + f"{of_pod},{of_volume}"
            + ',"kubernetes.io/serviceAccount.name":"default","size":"16777216"}',
        ],
        ["unmount", str(folder)],
    ]
    assert driver.working_folders == {"/"}
    assert not folder.exists()


async def test_a_grown_claim_gets_expandfs_and_then_its_new_size(
    namespace: Namespace, node: Node, driver: Recorder, make_class: MakeClass
) -> None:
    growing = await make_class("Immediate", provisioner="example.com/nobody", allowVolumeExpansion=True)
    volume = await bound_claim(namespace, driver, "16Mi", growing)
    created = await namespace.create(PODS, pod("user", {"/data": "data"}, nodeName="node-a"))
    await namespace.until_running("user")
    driver.answer("expandfs", FAILURE)
    await ask(namespace, "32Mi")

    message = await namespace.until_event("user", "VolumeResizeFailed")
    assert message == f'NodeExpandVolume.NodeExpandVolume failed for volume "{volume}" : {EXPANDFS_FAILED}'
    stuck = await namespace.get(CLAIMS, "data")
    assert stuck["status"]["capacity"]["storage"] == "16Mi"
    assert resizing.step_of(stuck) == "NodeResizeInProgress"
    conditions = {condition["type"]: condition for condition in stuck["status"]["conditions"]}
    assert list(conditions) == ["Resizing", "FileSystemResizePending", "NodeResizeError"]
    assert conditions["NodeResizeError"]["message"] == f"failed to expand pvc with {EXPANDFS_FAILED}"

    driver.answer_as_usual("expandfs")
    grown = await until_has(namespace, "32Mi")
    assert not grown["status"].get("conditions")
    assert not grown["status"].get("allocatedResourceStatuses")
    assert grown["status"]["allocatedResources"]["storage"] == "32Mi"
    succeeded = f'MountVolume.NodeExpandVolume succeeded for volume "{volume}" node-a'
    assert await namespace.until_event("user", "FileSystemResizeSuccessful") == succeeded
    assert await namespace.until_event("data", "FileSystemResizeSuccessful") == succeeded
    folder = folder_of(node, created, driver, volume)
    of_volume = f'"kubernetes.io/pvOrVolumeName":"{volume}","kubernetes.io/readwrite":"rw"'
    options = '{"kubernetes.io/fsType":"ext4",' + of_volume + ',"size":"16777216"}'
    assert driver.of("expandfs")[-1] == ["expandfs", options, "", str(folder), "33554432", "16777216"]
    await drop(namespace, volume)


async def test_a_claim_lowered_after_a_failure_is_tried_once_more(
    namespace: Namespace, node: Node, driver: Recorder, make_class: MakeClass
) -> None:
    growing = await make_class("Immediate", provisioner="example.com/nobody", allowVolumeExpansion=True)
    volume = await bound_claim(namespace, driver, "16Mi", growing)
    await namespace.create(PODS, pod("user", {"/data": "data"}, nodeName="node-a"))
    await namespace.until_running("user")
    driver.answer("expandfs", FAILURE)
    await ask(namespace, "64Mi")
    await namespace.until_event("user", "VolumeResizeFailed")
    await ask(namespace, "32Mi")
    given_up = await namespace.until(
        CLAIMS, "data", lambda body: resizing.step_of(body) == "NodeResizeInfeasible", what="is given up"
    )
    assert given_up["status"]["capacity"]["storage"] == "16Mi"
    assert given_up["status"]["allocatedResources"]["storage"] == "64Mi"
    calls = len(driver.of("expandfs"))
    assert {call[4] for call in driver.of("expandfs")} == {str(64 * 1024**2)}

    await namespace.delete(PODS, "user")
    await namespace.until_gone(PODS, "user")
    await namespace.create(PODS, pod("user", {"/data": "data"}, nodeName="node-a"))
    await namespace.until_running("user")
    assert len(driver.of("expandfs")) == calls

    # The owner asks for a little more: the node is to try again, and still at the size that was asked for first.
    driver.answer_as_usual("expandfs")
    await ask(namespace, "33Mi")
    await until_has(namespace, "64Mi")
    await drop(namespace, volume)


async def test_a_volume_that_can_not_grow_before_its_pod_starts_keeps_it_waiting(
    namespace: Namespace, node: Node, driver: Recorder, make_class: MakeClass
) -> None:
    growing = await make_class("Immediate", provisioner="example.com/nobody", allowVolumeExpansion=True)
    volume = await bound_claim(namespace, driver, "16Mi", growing)
    await ask(namespace, "32Mi")
    await namespace.until(CLAIMS, "data", resizing.step_of, what="waits for its node")
    driver.answer("expandfs", FAILURE)
    await namespace.create(PODS, pod("user", {"/data": "data"}, nodeName="node-a"))
    message = await namespace.until_event("user", "FailedMount")
    assert message == f'MountVolume.Setup failed while expanding volume for volume "{volume}" : {EXPANDFS_FAILED}'
    assert (await namespace.get(PODS, "user"))["status"]["phase"] == "Pending"
    driver.answer_as_usual("expandfs")
    await namespace.until_running("user")
    await until_has(namespace, "32Mi")
    assert len(driver.of("mount")) == 1
    await drop(namespace, volume)


async def test_a_capacity_raised_by_hand_grows_and_the_claim_says_nothing(
    namespace: Namespace, node: Node, driver: Recorder
) -> None:
    volume = await bound_claim(namespace, driver, "16Mi")
    await namespace.create(PODS, pod("user", {"/data": "data"}, nodeName="node-a"))
    await namespace.until_running("user")
    driver.answer("expandfs", FAILURE)
    await namespace.sandbox.api.patch(VOLUMES, volume, {"spec": {"capacity": {"storage": "32Mi"}}})
    await namespace.until_event("user", "VolumeResizeFailed", EXPANDFS_FAILED)
    assert not (await namespace.get(CLAIMS, "data"))["status"].get("conditions")
    driver.answer_as_usual("expandfs")
    await until_has(namespace, "32Mi")
    await drop(namespace, volume)


async def test_a_failed_mount_is_reported_undone_tried_again_and_never_unmounted(
    namespace: Namespace, node: Node, driver: Recorder
) -> None:
    driver.answer("mount", FAILURE, exit_code=1)
    created = await namespace.create(PODS, inline(driver))
    message = await namespace.until_event("user", "FailedMount")
    assert message == (
        'MountVolume.SetUp failed for volume "scratch" : mount command failed, status: Failure, '
        "reason: no such disk: plug one in"
    )
    assert not folder_of(node, created, driver, "scratch").exists()
    await until(lambda: len(driver.of("mount")) == 3, what="it is tried again")
    first, second, third = driver.times("mount")
    assert 0.4 < second - first < third - second
    await namespace.delete(PODS, "user")
    await namespace.until_gone(PODS, "user")
    assert driver.of("unmount") == []


@pytest.mark.parametrize(
    ("output", "code", "expected"),
    [
        ('warning: slow disk\n{"status": "Success"}', 0, "invalid character 'w' looking for beginning of value"),
        ("", 0, "unexpected end of JSON input"),
        ('{"status": "Success"}', 3, "exit status 3"),
        ('{"status": "success"}', 0, "mount command failed, status: success, reason: "),
    ],
)
async def test_only_a_clean_success_counts(
    namespace: Namespace, driver: Recorder, output: str, code: int, expected: str
) -> None:
    driver.answer("mount", output, code)
    await namespace.create(PODS, inline(driver))
    await namespace.until_event("user", "FailedMount", expected)


async def test_not_supported_is_remembered_until_the_driver_changes(namespace: Namespace, driver: Recorder) -> None:
    driver.answer("mount", '{"status": "Not supported"}')
    await namespace.create(PODS, inline(driver))
    await namespace.until_event("user", "FailedMount")
    driver.answer_as_usual("mount")
    await namespace.create(PODS, inline(driver) | {"metadata": {"name": "other"}})
    await namespace.until_event("other", "FailedMount")
    assert len(driver.of("mount")) == 1
    driver.install()
    await namespace.until_running("other")
    assert len(driver.of("init")) == 2


async def test_what_the_user_writes_is_written_over_the_kubelets_own(namespace: Namespace, driver: Recorder) -> None:
    forged = {"kubernetes.io/pod.uid": "somebody-else", "kubernetes.io/pvOrVolumeName": "pvc-of-another"}
    await namespace.create(PODS, inline(driver, options=forged, readOnly=True))
    await namespace.until_running("user")
    _, folder, options = driver.of("mount")[0]
    assert Path(folder).name == "scratch"
    assert forged.items() <= json.loads(options).items()
    assert json.loads(options)["kubernetes.io/readwrite"] == "ro"


async def test_a_pod_goes_while_its_mount_runs_and_the_unmount_follows(
    namespace: Namespace, node: Node, driver: Recorder
) -> None:
    driver.hold("mount")
    created = await namespace.create(PODS, inline(driver))
    await until(lambda: driver.of("mount"), what="the mount runs")
    await namespace.delete(PODS, "user")
    await namespace.until_gone(PODS, "user")
    assert driver.of("unmount") == []
    driver.let_go("mount")
    await until(lambda: not folder_of(node, created, driver, "scratch").exists(), what="the folder is gone")
    assert len(driver.of("unmount")) == 1


async def test_a_failing_unmount_keeps_the_pod(namespace: Namespace, driver: Recorder) -> None:
    driver.answer("unmount", FAILURE)
    await namespace.create(PODS, inline(driver))
    await namespace.until_running("user")
    await namespace.delete(PODS, "user")
    await until(lambda: len(driver.of("unmount")) >= 2, what="it is tried again")
    assert "deletionTimestamp" in (await namespace.get(PODS, "user"))["metadata"]
    driver.answer_as_usual("unmount")
    await namespace.until_gone(PODS, "user")


async def test_mount_options_on_the_volume_are_refused(namespace: Namespace, driver: Recorder) -> None:
    volume = await bound_claim(namespace, driver, "16Mi", mountOptions=["noatime"])
    await namespace.create(PODS, pod("user", {"/data": "data"}, nodeName="node-a"))
    message = await namespace.until_event("user", "FailedMount")
    why = "mount options are not supported for this volume type"
    assert message == f'MountVolume.MountOptionSupport check failed for volume "{volume}" : {why}'
    assert driver.of("mount") == []
    await drop(namespace, volume)


async def test_what_is_unknown_of_a_pods_volumes_is_one_event(namespace: Namespace, driver: Recorder) -> None:
    """Pods that were put on a node by hand: no scheduler waited for their claims."""
    await namespace.create(CLAIMS, claim("data", "16Mi", storage_class=""))
    body = inline(driver)
    volumes = body["spec"]["volumes"]
    volumes[0]["name"] = "ours"
    mounts = body["spec"]["containers"][0]["volumeMounts"]
    mounts[0]["name"] = "ours"
    volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": "data"}})
    volumes.append({"name": "gone", "persistentVolumeClaim": {"claimName": "none"}})
    volumes.append({"name": "foreign", "flexVolume": {"driver": "example.com/absent"}})
    mounts += [{"name": name, "mountPath": f"/{name}"} for name in ("data", "gone", "foreign")]
    await namespace.create(PODS, body)
    message = await namespace.until_event("user", "FailedMount")
    assert message == (
        "Unable to attach or mount volumes: unmounted volumes=[data foreign gone ours], unattached volumes=[], failed "
        "to process volumes=[data foreign gone]: "
        f"error processing PVC {namespace.name}/data: PVC is not bound; "
        f"error processing PVC {namespace.name}/none: failed to fetch PVC from API server: "
        'persistentvolumeclaims "none" not found; '
        'failed to get Plugin from volumeSpec for volume "foreign" err=no volume plugin matched'
    )
    await until(lambda: driver.of("mount"), what="what can be mounted is mounted")


async def test_a_claim_that_is_not_the_pods_is_not_mounted_for_it(namespace: Namespace, driver: Recorder) -> None:
    volume = await bound_claim(namespace, driver, "16Mi", name="user-scratch")
    body = inline(driver)
    template = {"spec": claim("", "16Mi", storage_class="")["spec"]}
    body["spec"]["volumes"] = [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": template}}]
    await namespace.create(PODS, body)
    await namespace.until_event("user", "FailedMount", f"PVC {namespace.name}/user-scratch was not created for pod")
    assert not driver.of("mount")
    await drop(namespace, volume, "user-scratch")


async def test_a_volume_that_no_container_mounts_is_not_mounted(namespace: Namespace, driver: Recorder) -> None:
    body = inline(driver)
    body["spec"]["volumes"].append({"name": "unused", "flexVolume": {"driver": driver.name}})
    await namespace.create(PODS, body)
    await namespace.until_running("user")
    assert len(driver.of("mount")) == 1


async def test_folders_have_the_modes_that_a_kubelet_gives_them(
    namespace: Namespace, node: Node, driver: Recorder, tmp_path: Path
) -> None:
    body = inline(driver)
    body["spec"]["volumes"].append({"name": "empty", "emptyDir": {}})
    body["spec"]["volumes"].append(
        {"name": "host", "hostPath": {"path": str(tmp_path / "made" / "anew"), "type": "DirectoryOrCreate"}}
    )
    body["spec"]["containers"][0]["volumeMounts"] += [
        {"name": name, "mountPath": f"/{name}"} for name in ("empty", "host")
    ]
    created = await namespace.create(PODS, body)
    await namespace.until_running("user")
    of_pod = node.kubelet_root / "pods" / created["metadata"]["uid"]
    modes = {
        node.kubelet_root: 0o750,
        of_pod.parent: 0o750,
        of_pod: 0o750,
        of_pod / "volumes": 0o750,
        of_pod / "plugins": 0o750,
        of_pod / "containers" / "main": 0o750,
        folder_of(node, created, driver, "scratch").parent: 0o750,
        of_pod / "volumes" / "kubernetes.io~empty-dir": 0o755,
        of_pod / "volumes" / "kubernetes.io~empty-dir" / "empty": 0o777,
        tmp_path / "made": 0o755,
        tmp_path / "made" / "anew": 0o755,
        node.plugins: 0o755,
    }
    assert {path: path.stat().st_mode & 0o7777 for path in modes} == modes
    assert {(path.stat().st_uid, path.stat().st_gid) for path in modes} == {(0, 0)}


def test_a_daemon_finds_the_folders_that_the_kubelet_made_for_its_pod(tmp_path: Path) -> None:
    """Whatever the umask of whoever runs this."""
    before = os.umask(0o077)
    try:
        spec = NodeSpec("n", static=True, device_classes={"fast": "1Gi"})
        node = Node(
            spec, tmp_path / "node", tmp_path / "a", tmp_path / "b", tmp_path, lifeline=0, port=0, kubelet_port=0
        )
        node.make_folders()
    finally:
        os.umask(before)
    made = (node.plugins, node.staging, node.data, node.disks, node.static_config, node.class_folder("fast"))
    assert {path.stat().st_mode & 0o7777 for path in made} == {0o755}
    assert node.kubelet_root.stat().st_mode & 0o7777 == 0o750


async def test_fs_group_owns_what_is_in_the_volume(namespace: Namespace, node: Node, driver: Recorder) -> None:
    body = inline(driver)
    body["spec"]["securityContext"] = {"fsGroup": 4242, "runAsUser": 1000, "runAsGroup": 1000}
    body["spec"]["containers"][0]["command"] = ["sh", "-ec", "touch /scratch/mine; exec sleep infinity"]
    created = await namespace.create(PODS, body)
    await namespace.until_running("user")
    assert json.loads(driver.of("mount")[0][2])["kubernetes.io/mounterArgs.FsGroup"] == "4242"
    file = folder_of(node, created, driver, "scratch") / "mine"
    await until(file.exists, what="the container may write")
    assert (file.stat().st_uid, file.stat().st_gid) == (1000, 4242)


async def test_a_sub_path_is_made_as_the_volumes_root_is(namespace: Namespace, node: Node, driver: Recorder) -> None:
    body = inline(driver)
    body["spec"]["securityContext"] = {"fsGroup": 4242, "runAsUser": 1000, "runAsGroup": 1000}
    body["spec"]["containers"][0]["volumeMounts"][0]["subPath"] = "below/data"
    body["spec"]["containers"][0]["command"] = ["sh", "-ec", "touch /scratch/mine; exec sleep infinity"]
    created = await namespace.create(PODS, body)
    await namespace.until_running("user")
    folder = folder_of(node, created, driver, "scratch") / "below" / "data"
    await until((folder / "mine").exists, what="the container may write")
    found = folder.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o2070) == (0, 4242, 0o2070)


@pytest.mark.parametrize(("policy", "changed"), [("Always", True), ("OnRootMismatch", False)])
async def test_fs_group_goes_through_all_files_again_unless_told_otherwise(
    namespace: Namespace, make_class: MakeClass, policy: str, *, changed: bool
) -> None:
    """Databases hide their files from the group, and mind when a kubelet changes that."""
    await namespace.create(CLAIMS, claim("data", "32Mi", await make_class()))
    security = {"fsGroup": 4242, "runAsUser": 1000, "runAsGroup": 1000, "fsGroupChangePolicy": policy}
    script = "test -e /data/own || mkdir -m 700 /data/own; touch /data/ready; exec sleep infinity"
    body = pod("user", {"/data": "data"}, script=script, securityContext=security)
    modes = []
    for _ in range(2):
        created = await namespace.create(PODS, body)
        running = await namespace.until_running("user")
        volume = (await namespace.until_bound("data"))["metadata"]["name"]
        folder = namespace.sandbox.node_of(running).volume_folder(created["metadata"]["uid"], volume)
        await until((folder / "ready").exists, what="the container has written")
        modes.append((folder / "own").stat().st_mode & 0o7070)
        (folder / "ready").unlink()
        await namespace.delete(PODS, "user")
        await namespace.until_gone(PODS, "user")
    # The folder has the bit that hands the group down from its making on.
    assert modes == [0o2000, 0o2070 if changed else 0o2000]


async def test_a_broken_driver_leaves_the_one_before_it_in_use(namespace: Namespace, driver: Recorder) -> None:
    await until(lambda: driver.answered("init"), what="the driver was probed")
    driver.answer("init", "broken")
    driver.install()
    await until(lambda: driver.answered("init") >= 2, what="the new one was probed")
    await namespace.create(PODS, inline(driver))
    await namespace.until_running("user")


async def test_containers_see_only_their_volumes_and_change_nothing_else(
    namespace: Namespace, node: Node, driver: Recorder
) -> None:
    body = inline(driver)
    body["spec"]["restartPolicy"] = "Never"
    body["spec"]["containers"][0]["volumeMounts"][0]["readOnly"] = True
    script = f"touch /{namespace.name}; touch /scratch/file; cut -d' ' -f5 /proc/self/mountinfo"
    body["spec"]["containers"][0]["command"] = ["sh", "-c", script]
    created = await namespace.create(PODS, body)
    await namespace.until(PODS, "user", lambda pod: pod["status"]["phase"] in ("Succeeded", "Failed"), what="ends")
    # Of all the sandbox's mounts the container has its volume alone: whatever else it had would stay busy.
    log = node.container_log(created["metadata"]["uid"], "main").read_text().splitlines()
    assert log[0].endswith("Read-only file system")
    assert "/scratch" in log
    assert not [path for path in log if str(node.folder) in path]
    assert not Path(f"/{namespace.name}").exists()
    # A pod that has ended keeps no volume.
    await until(lambda: driver.of("unmount"), what="the volume is unmounted")
