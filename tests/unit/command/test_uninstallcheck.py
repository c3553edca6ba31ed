"""What has to be gone before our programs are: each is named, with the command that removes it."""

from pathlib import Path

import pytest
from aiohttp import web

from command import uninstallcheck
from command.checkup import Verdict, healthy
from contract import names, snapshot
from contract.snapshot import SnapshotContent
from tests.unit.command.objects import persistent_volume
from tests.unit.kube.apiserver import Answer, ApiServer, connected, status

STATIC = {"metadata": {"name": "local-pv-1", "finalizers": [names.STATIC_FINALIZER]}, "spec": {"local": {"path": "/a"}}}
OTHERS = {"metadata": {"name": "nfs"}, "spec": {"nfs": {"path": "/"}}}


def content(policy: str = "Delete", metadata: dict[str, object] | None = None, **reference: str) -> SnapshotContent:
    body = {
        "metadata": {
            "name": "snapcontent-1",
            "uid": "u",
            "resourceVersion": "1",
            "labels": {names.NODE_LABEL: "node-1"},
            **(metadata or {}),
        },
        "spec": {"driver": names.CSI_DRIVER, "volumeSnapshotRef": reference, "deletionPolicy": policy, "source": {}},
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


def test_of_a_snapshot_that_is_gone_the_content_is_named() -> None:
    gone: dict[str, object] = {"annotations": {snapshot.BEING_DELETED: "yes"}}
    (kept,) = uninstallcheck.snapshots([content("Retain", gone, namespace="team", name="before", uid="s")])
    assert kept.remedy == "kubectl delete volumesnapshotcontent snapcontent-1"
    assert "its data is kept there" in kept.message
    removed = gone | {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    (going,) = uninstallcheck.snapshots([content("Delete", removed, namespace="team", name="before", uid="s")])
    assert (going.verdict, going.message) == (Verdict.WRONG, "it is being removed on node node-1")
    assert going.remedy == "wait for it: kubectl describe volumesnapshotcontent snapcontent-1"


def test_static_volumes_are_told_and_keep_nobody() -> None:
    (told,) = uninstallcheck.static_volumes([STATIC, OTHERS])
    assert (told.verdict, told.message) == (Verdict.UNKNOWN, "1 stay, are not cleaned any more and can't be deleted")
    assert healthy([told])


async def unknown_group(_: web.Request) -> web.StreamResponse:
    """As the API server answers where no kind of the group is known."""
    return web.Response(text="404 page not found\n", status=404)


async def unknown_kind(_: web.Request) -> web.StreamResponse:
    """Where the group has others."""
    message = "the server could not find the requested resource"
    body = {"kind": "Status", "code": 404, "reason": "NotFound", "message": message, "details": {}}
    return web.json_response(body, status=404)


@pytest.mark.parametrize(
    ("answer", "well"),
    [
        (unknown_group, True),
        (unknown_kind, True),
        (status(403, "Forbidden"), False),
        (status(503, "ServiceUnavailable"), False),
    ],
    ids=["group", "kind", "forbidden", "unavailable"],
)
async def test_a_cluster_without_snapshots_has_none_left(tmp_path: Path, answer: Answer, well: bool) -> None:
    """It has no such kind. Snapshots that whoever asks may not list are not gone."""
    server = ApiServer()
    server.next("GET /apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents", answer)
    async with connected(server, tmp_path) as cluster:
        assert healthy(await uninstallcheck.findings(cluster)) == well
