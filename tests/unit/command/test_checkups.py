"""Verdicts of doctor: what is wrong is seen, and has a remedy."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from grpclib.server import Server
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event, StreamEnded

from command import classcheckup, clustercheckup, nodecheckup, thisnode
from command.checkup import Finding, Verdict
from command.clustercheckup import Published
from contract import names
from contract.capacity import Capacity
from contract.parameters import SecretReference
from daemon.csi import server
from daemon.csi.identity import IdentityService
from host.mounttable import parse
from kube.errors import ApiError, Forbidden, Json, NotFound
from kube.records import StorageClass
from service.rootsocket import root_socket
from tests.memorycluster import MemoryCluster
from tests.unit.command.objects import NODE, persistent_volume

_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_CAPACITY = Capacity("node-1", "host-1", "elastic-local", "vg", 10, 5, 1)
_PUBLISHED = Published(_CAPACITY, "node-uid", _NOW - timedelta(hours=3))
_CLASS = StorageClass("elastic-local", names.PROVISIONER, {}, "Delete", (), "WaitForFirstConsumer", ())


def wrong(finding: Finding, expected: str) -> None:
    assert finding.verdict is Verdict.WRONG, finding
    assert expected in finding.message
    assert finding.remedy


def test_a_node_without_control_groups_of_version_2_is_told(tmp_path: Path) -> None:
    finding = nodecheckup.io_limits(tmp_path)
    assert (finding.verdict, finding.remedy) == (Verdict.UNKNOWN, "for classes with I/O limits: as it says")
    assert "systemd.unified_cgroup_hierarchy=1" in finding.message
    (tmp_path / "cgroup.controllers").touch()
    assert nodecheckup.io_limits(tmp_path).verdict is Verdict.OK


def test_published_capacity_is_this_nodes_for_every_class_and_not_stale() -> None:
    def verdict(*published: Published) -> Finding:
        return clustercheckup.capacity_of(NODE, [_CLASS], published, _NOW)

    fine = verdict(_PUBLISHED)
    assert fine.verdict is Verdict.OK
    assert "3 hours ago" in fine.message
    wrong(verdict(), "none")
    wrong(verdict(replace(_PUBLISHED, owner_uid="earlier")), "earlier node")
    wrong(verdict(replace(_PUBLISHED, capacity=replace(_CAPACITY, hostname="old"))), "names the hostname old")
    wrong(verdict(replace(_PUBLISHED, capacity=replace(_CAPACITY, storage_class="other"))), "none for elastic-local")
    wrong(verdict(replace(_PUBLISHED, written=_NOW + timedelta(minutes=5))), "clocks differ")


def test_the_provisioners_lease_shows_a_dead_leader_and_a_wrong_clock() -> None:
    def verdict(age: float) -> Finding:
        renewed = (_NOW - timedelta(seconds=age)).isoformat().replace("+00:00", "Z")
        return clustercheckup.leader({"holderIdentity": "p-1", "renewTime": renewed}, _NOW, "elastic-local")

    assert verdict(3).verdict is Verdict.OK
    wrong(verdict(300), "300 s ago")
    wrong(verdict(-300), "ahead")
    wrong(clustercheckup.leader({"renewTime": None}, _NOW, "elastic-local"), "none leads")


def test_a_volume_that_waits_for_a_node_that_is_gone_is_reported() -> None:
    pv = replace(persistent_volume(), deleting=True)
    assert clustercheckup.stuck([(pv, 5.0), (pv, None)], [NODE]).verdict is Verdict.OK
    wrong(clustercheckup.stuck([(pv, 5000.0)], [NODE]), "pvc-1")
    wrong(clustercheckup.stuck([(pv, 5000.0)], []), "the node of pvc-1 is gone")


def test_a_class_with_the_old_name_is_pointed_out() -> None:
    wrong(classcheckup.storage_classes([])[0], "none has the provisioner")
    [old] = classcheckup.storage_classes([replace(_CLASS, provisioner=names.PROVISIONER_OF_ELASTIC)])
    assert old.verdict is Verdict.UNKNOWN
    wrong(clustercheckup.hostname(replace(NODE, hostname="")), names.HOSTNAME_LABEL)


def test_a_class_whose_secret_is_missing_is_told() -> None:
    def told(found: ApiError | set[str], *, opens: bool = True) -> Finding:
        return classcheckup.secret(_CLASS, SecretReference("storage", "key"), found, opens=opens)

    assert told({"encryptionPassphrase"}).verdict is Verdict.OK
    wrong(told({"passphrase"}), "Secret storage/key has no encryptionPassphrase")
    assert told({"passphrase"}, opens=False).verdict is Verdict.OK, "of an expansion nothing is needed"
    missing = told(NotFound(404, "NotFound", "no such secret"))
    wrong(missing, "there is no Secret storage/key")
    assert missing.remedy.startswith("kubectl create secret generic key --namespace storage --from-file=")
    assert told(Forbidden(403, "Forbidden", "no")).verdict is Verdict.UNKNOWN


def test_a_node_says_what_encryption_lacks() -> None:
    def verdict(modules: set[str], *programs: str) -> Finding:
        return nodecheckup.encryption(modules, lambda program: program if program in programs else None)

    assert verdict({"dm_crypt"}, "cryptsetup").verdict is Verdict.OK
    assert verdict({"dm_crypt"}).remedy.endswith("apt-get install cryptsetup-bin")
    assert verdict({"dm_mod"}, "cryptsetup").remedy.endswith("modprobe dm_crypt")


def test_a_csi_driver_object_must_be_as_it_is_shipped() -> None:
    (shipped,) = yaml.safe_load_all((Path(__file__).parents[3] / "deploy/base/csidriver.yaml").read_text())
    assert classcheckup.driver_object(shipped["spec"]).verdict is Verdict.OK
    wrong(classcheckup.driver_object({**shipped["spec"], "storageCapacity": False}), "storageCapacity is not True")
    wrong(classcheckup.driver_object({**shipped["spec"], "attachRequired": True}), "attachRequired is not False")
    both = ["Persistent", "Ephemeral"]
    wrong(classcheckup.driver_object({**shipped["spec"], "volumeLifecycleModes": both}), "inline volumes")


def test_a_kubelet_that_does_not_know_the_csi_driver_is_told_where_a_class_needs_it() -> None:
    csi = replace(_CLASS, parameters={"volumeSource": "csi"})
    assert classcheckup.registration([csi], {"n1", "n2"}, {"n1", "n2", "n3"}).verdict is Verdict.OK
    wrong(classcheckup.registration([_CLASS, csi], {"n1", "n2"}, {"n1"}), "has not registered it on n2")
    unused = classcheckup.registration([_CLASS], {"n1"}, set())
    assert unused.verdict is Verdict.UNKNOWN
    assert "no class asks for it" in unused.message


async def test_the_csi_driver_is_asked_by_its_socket(kubelet_root: Path) -> None:
    root = kubelet_root
    path, registration = server.driver_socket(root), server.registration_socket(root)
    wrong(await nodecheckup.csi_driver(root), "does not answer")
    wrong(await nodecheckup.csi_driver(root.with_name(f"{root.name}k")), "the path has 108 bytes, a socket's may have")
    for folder in (path.parent, registration.parent):
        folder.mkdir(parents=True)
    with root_socket(path) as bound:
        serving = Server([IdentityService("1.0", lambda: True)])
        await serving.start(sock=bound)
        try:
            wrong(await nodecheckup.csi_driver(root), f"{registration} is gone")
            registration.touch()
            assert (await nodecheckup.csi_driver(root)).verdict is Verdict.OK
        finally:
            serving.close()
            await serving.wait_closed()
    wrong(await nodecheckup.csi_driver(root), "does not answer")


@pytest.mark.parametrize("end", [False, True], ids=["cut off", "ended"])
@pytest.mark.parametrize(
    "message",
    [None, b"", b"\0\0", b"\0\0\0\0\2{}"],
    ids=["nothing", "no message", "half a message", "no protobuf"],
)
async def test_a_daemon_that_dies_while_it_is_asked_is_a_finding(
    kubelet_root: Path, message: bytes | None, end: bool
) -> None:
    """And nothing more: the check-up goes on."""
    path = server.driver_socket(kubelet_root)
    path.parent.mkdir(parents=True)

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        driver = H2Connection(H2Configuration(client_side=False))
        driver.initiate_connection()
        events: list[Event] = []
        while not any(isinstance(each, StreamEnded) for each in events):
            writer.write(driver.data_to_send())
            events += driver.receive_data(await reader.read(1 << 16))
        if message is not None:
            driver.send_headers(1, [(":status", "200"), ("content-type", "application/grpc+proto")])
            driver.send_data(1, message)
            if end:
                driver.send_headers(1, [("grpc-status", "0")], end_stream=True)
        elif end:
            driver.reset_stream(1)
        writer.write(driver.data_to_send())
        writer.close()

    async with await asyncio.start_unix_server(die, path):
        wrong(await nodecheckup.csi_driver(kubelet_root), "does not answer")
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()
    await asyncio.sleep(0)


async def test_who_speaks_no_grpc_is_a_finding(kubelet_root: Path) -> None:
    path = server.driver_socket(kubelet_root)
    path.parent.mkdir(parents=True)

    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_unix_server(speak, path):
        wrong(await nodecheckup.csi_driver(kubelet_root), "does not answer")


def test_the_pods_of_a_volume_are_those_in_whose_folders_it_is_mounted_by_either_driver() -> None:
    root = "/var/lib/kubelet"
    paths = [
        f"{root}/pods/uid-1/volumes/{names.DRIVER_FOLDER}/pvc-1",
        f"{root}/pods/uid-2/volumes/kubernetes.io~csi/pvc-2/mount",
        f"{root}/pods/uid-3/volumes/kubernetes.io~csi/pvc-2/mount",
        f"{root}/plugins/kubernetes.io/csi/volumeDevices/publish/pvc-3/uid-4",
        f"{root}/pods/uid-5/volumes/kubernetes.io~csi/pvc-4",
        f"{root}/plugins/kubernetes.io/csi/volumeDevices/staging/pvc-3",
        "/mnt/storage/pvc-1",
    ]
    mounts = parse("".join(f"{n} 1 8:1 / {path} rw - ext4 /dev/sda1 rw\n" for n, path in enumerate(paths, 10)))
    assert thisnode.users(mounts, Path(root)) == {
        "pvc-1": ("uid-1",),
        "pvc-2": ("uid-2", "uid-3"),
        "pvc-3": ("uid-4",),
    }


_MOUNTS = """\
21 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
22 21 8:2 / /var/lib/kubelet rw - ext4 /dev/sda2 rw
"""


def test_propagation_is_that_of_the_mount_that_holds_the_folder() -> None:
    mounts = parse(_MOUNTS)
    wrong(nodecheckup.propagation(mounts, Path("/var/lib/kubelet")), "/var/lib/kubelet is not shared")
    assert nodecheckup.propagation(mounts, Path("/var/lib/other")).verdict is Verdict.OK
    hidden = parse(f"{_MOUNTS}23 22 8:3 / /var/lib/kubelet rw shared:9 - ext4 /dev/sda3 rw\n")
    assert nodecheckup.propagation(hidden, Path("/var/lib/kubelet")).verdict is Verdict.OK


def test_missing_tools_are_named_with_the_packages_that_have_them() -> None:
    finding = nodecheckup.tools({"LVM"}, lambda program: None if program in ("lvm", "mkfs.xfs") else f"/sbin/{program}")
    wrong(finding, "lvm, mkfs.xfs")
    assert finding.remedy == "apt-get install lvm2 xfsprogs"
    assert nodecheckup.tools({"BINDMOUNT"}, lambda _: None).verdict is Verdict.OK


@pytest.mark.parametrize(("registered", "verdict"), [("\text4\n", "unknown"), ("\txfs\n", "wrong")])
def test_filesystems_that_the_kernel_lacks(registered: str, verdict: str) -> None:
    assert nodecheckup.filesystems(registered, set()).verdict == verdict
    assert nodecheckup.filesystems("", {"ext4", "xfs", "btrfs"}).verdict is Verdict.OK


def test_what_the_daemon_says_of_itself_is_passed_on() -> None:
    findings = nodecheckup.readiness("[+]socket ok\n[-]driver: the kubelet does not call it\nreadyz check failed\n")
    assert [finding.verdict for finding in findings] == [Verdict.OK, Verdict.WRONG]
    assert "the kubelet does not call it" in findings[1].message
    assert nodecheckup.readiness("<html>")[0].verdict is Verdict.WRONG


async def test_a_namespace_that_is_not_there_is_the_one_fault_to_mend() -> None:
    *_, finding = [each async for each in clustercheckup.findings(MemoryCluster(), "nope")]
    wrong(finding, "there is no namespace nope")
    assert finding.check == "namespace"
    assert await clustercheckup._namespace(MemoryCluster(), names.NAMESPACE) is None


def test_daemons_that_are_not_ready_are_named_with_the_reason() -> None:
    """What they published is there all the same."""

    def daemon(node: str, ready: bool, **status: object) -> Json:
        conditions = [{"type": "Ready", "status": str(ready)}]
        return {"metadata": {}, "spec": {"nodeName": node}, "status": {"conditions": conditions, **status}}

    waiting = [{"state": {"running": {}}}, {"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]
    well, crashing = daemon("a", True), daemon("b", False, phase="Running", containerStatuses=waiting)
    evicted = daemon("a", False, phase="Failed", reason="Evicted")
    going = {**daemon("c", True), "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}

    fine = clustercheckup.daemons([well, evicted], "ns")
    assert (fine.verdict, fine.message) == (Verdict.OK, "ready on 1 node")
    wrong(clustercheckup.daemons([well, crashing, going], "ns"), "not ready: b (CrashLoopBackOff), c (Terminating)")
    wrong(clustercheckup.daemons([evicted], "ns"), "a (Evicted)")
    assert clustercheckup.daemons([], "ns").verdict is Verdict.UNKNOWN
