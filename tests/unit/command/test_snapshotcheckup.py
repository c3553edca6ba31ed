"""Verdicts of doctor on snapshots."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from command import snapshotcheckup
from command.checkup import Finding, Verdict
from command.snapshotcheckup import SnapshotState
from contract import names, snapshot
from kube.errors import Json
from kube.resources import SNAPSHOT_CLASSES, SNAPSHOT_CONTENTS, SNAPSHOTS
from tests.memorycluster import MemoryCluster
from tests.sandbox import snapshots

_NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
_HOUR_AGO = "2026-01-01T11:00:00Z"
_FINE = SnapshotState((), "", 3.0, (), ("elastic-local",), (), {"daemon": [], "provisioner": []}, deployed=True)
_RIGHTS = {"daemon": ["get volumesnapshotcontents"], "provisioner": []}
_UNUSED = replace(_FINE, classes=(), deployed=False, lacking=_RIGHTS)
_ALL = (SNAPSHOTS, SNAPSHOT_CONTENTS, SNAPSHOT_CLASSES)


def a_snapshot(created: str = _HOUR_AGO, **status: Any) -> Json:
    body = snapshots.snapshot("before", "data")
    body["metadata"] |= {"namespace": "default", "creationTimestamp": created}
    return body | ({"status": status} if status else {})


def state_with(*, node: str = "n1", status: Json | None = None, **metadata: Any) -> SnapshotState:
    """The state of a cluster with one content."""
    body = snapshots.content("content", "default", "before", volumeHandle="pv")
    body["metadata"] |= {
        "uid": "uid",
        "resourceVersion": "1",
        "creationTimestamp": _HOUR_AGO,
        "labels": {names.NODE_LABEL: node} if node else {},
        "finalizers": [snapshot.FINALIZER],
        **metadata,
    }
    body["status"] = status or {}
    read = snapshot.read(body)
    assert read
    return replace(_FINE, contents=[(read, body)])


def wrong(state: SnapshotState) -> list[Finding]:
    found = snapshotcheckup.verdicts(state, _NOW)
    assert all(each.remedy for each in found if each.verdict is Verdict.WRONG)
    return [each for each in found if each.verdict is Verdict.WRONG]


async def test_a_kind_that_is_not_served_is_told_from_one_without_objects() -> None:
    cluster = MemoryCluster()
    assert await snapshotcheckup.listed(cluster, SNAPSHOTS) is None
    await snapshots.install(cluster)
    assert await snapshotcheckup.listed(cluster, SNAPSHOTS) == []


@pytest.mark.parametrize(
    "state",
    [
        _FINE,
        replace(_FINE, lease_age=None, controller="snapshot-controller-1"),
        replace(_FINE, lease_age=300, controller="snapshot-controller-1"),
        # Another driver's, or nobody's: no component of ours.
        _UNUSED,
        replace(_UNUSED, lease_age=None),
        replace(_UNUSED, lease_age=None, absent=_ALL),
        # It is not to be seen, as on clusters whose control plane is somebody else's.
        replace(_FINE, lease_age=None, snapshots=[a_snapshot(boundVolumeSnapshotContentName="content")]),
        replace(_FINE, snapshots=[a_snapshot(created="2026-01-01T11:59:50Z")]),
        state_with(status={"readyToUse": True, "snapshotHandle": "n1/snap_uid"}),
        state_with(status={"error": {"message": "no space"}}),
        state_with(annotations={snapshot.BEING_CREATED: "yes"}),
        state_with(node="", creationTimestamp="2026-01-01T11:59:00Z"),
        state_with(deletionTimestamp=_HOUR_AGO),
    ],
)
def test_no_alarm_without_a_fault(state: SnapshotState) -> None:
    assert not wrong(state)


@pytest.mark.parametrize(
    ("state", "check", "message"),
    [
        (replace(_FINE, absent=_ALL, classes=(), lease_age=None), "snapshots", "components/snapshots is deployed, and"),
        (replace(_UNUSED, absent=_ALL), "snapshots", "a snapshot-controller runs, and their kinds are not installed"),
        (
            replace(_FINE, absent=(SNAPSHOT_CONTENTS,)),
            "snapshots",
            "serves some of their kinds, and no volumesnapshotcontents.snapshot.storage.k8s.io",
        ),
        (replace(_FINE, lease_age=None), "snapshot-controller", "are installed, and it is not"),
        (replace(_FINE, lease_age=300), "snapshot-controller", "last renewed its lease 300 s ago"),
        (
            replace(_FINE, snapshots=[a_snapshot()]),
            "snapshot-controller",
            "takes notice of VolumeSnapshots, as of default/",
        ),
        (
            replace(_FINE, classes=()),
            "component snapshots",
            f"no VolumeSnapshotClass has the driver {names.PROVISIONER}",
        ),
        (
            replace(_FINE, deployed=False, lacking=_RIGHTS),
            "component snapshots",
            "VolumeSnapshotClass elastic-local is there, and the daemon may not get volumesnapshotcontents",
        ),
        (replace(_FINE, lacking=_RIGHTS), "component snapshots", "the daemon may not get volumesnapshotcontents"),
        (state_with(node=""), "VolumeSnapshotContents", "the provisioner takes no notice of content"),
        (state_with(), "VolumeSnapshotContents", "the daemon of their node takes no notice of content"),
        (
            state_with(deletionTimestamp=_HOUR_AGO, annotations={snapshot.BEING_DELETED: "yes"}),
            "VolumeSnapshotContents",
            "waiting for more than 10 minutes to go: content",
        ),
    ],
)
def test_what_is_missing_is_named(state: SnapshotState, check: str, message: str) -> None:
    [found] = wrong(state)
    assert found.check == check
    assert message in found.message
