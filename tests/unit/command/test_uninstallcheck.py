"""What has to be gone before our programs are: each is named, with the command that removes it."""

from pathlib import Path

import pytest

from command import uninstallcheck
from command.checkup import Verdict, healthy
from contract import names, snapshot
from contract.snapshot import SnapshotContent
from tests.unit.command.objects import persistent_volume
from tests.unit.kube.apiserver import ApiServer, connected, status

STATIC = {"metadata": {"name": "local-pv-1", "finalizers": [names.STATIC_FINALIZER]}, "spec": {"local": {"path": "/a"}}}
OTHERS = {"metadata": {"name": "nfs"}, "spec": {"nfs": {"path": "/"}}}


def content(**reference: str) -> SnapshotContent:
    body = {
        "metadata": {
            "name": "snapcontent-1",
            "uid": "u",
            "resourceVersion": "1",
            "labels": {names.NODE_LABEL: "node-1"},
        },
        "spec": {"driver": names.CSI_DRIVER, "volumeSnapshotRef": reference, "deletionPolicy": "Delete", "source": {}},
    }
    read = snapshot.read(body)
    assert read
    return read


def test_nothing_left_is_well() -> None:
    assert healthy(
        [*uninstallcheck.volumes([]), *uninstallcheck.static_volumes([OTHERS]), *uninstallcheck.snapshots([])]
    )


def test_each_volume_is_named_with_what_removes_it() -> None:
    bound = persistent_volume()
    released = persistent_volume("pvc-2", persistentVolumeReclaimPolicy="Retain", claimRef=None)
    found = uninstallcheck.volumes([released, bound])
    assert [each.verdict for each in found] == [Verdict.WRONG, Verdict.WRONG]
    assert [each.check for each in found] == ["PersistentVolume pvc-1", "PersistentVolume pvc-2"]
    assert found[0].message == "it has the data of claim default/data on node node-1"
    assert [each.remedy for each in found] == ["kubectl -n default delete pvc data", "kubectl delete pv pvc-2"]
    assert "its data is kept there" in found[1].message


def test_snapshots_are_named() -> None:
    (bound,) = uninstallcheck.snapshots([content(namespace="team", name="before", uid="s")])
    assert bound.message == "it has the data of VolumeSnapshot team/before on node node-1"
    assert bound.remedy == "kubectl -n team delete volumesnapshot before"
    (alone,) = uninstallcheck.snapshots([content()])
    assert alone.remedy == "kubectl delete volumesnapshotcontent snapcontent-1"


def test_static_volumes_are_told_and_keep_nobody() -> None:
    (told,) = uninstallcheck.static_volumes([STATIC, OTHERS])
    assert (told.verdict, told.message) == (Verdict.UNKNOWN, "1 stay, are not cleaned any more and can't be deleted")
    assert healthy([told])


@pytest.mark.parametrize(("code", "reason", "more"), [(404, "NotFound", 0), (403, "Forbidden", 1)])
async def test_a_cluster_without_snapshots_is_asked_too(tmp_path: Path, code: int, reason: str, more: int) -> None:
    """It has no such kind, or whoever asks may not list them."""
    server = ApiServer()
    server.next("GET /apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents", status(code, reason))
    async with connected(server, tmp_path) as cluster:
        found = await uninstallcheck.findings(cluster)
    assert healthy(found)
    assert len(found) == 1 + more
