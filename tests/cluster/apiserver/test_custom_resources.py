"""Snapshots are custom resources: there while their definitions are, with the rules of those."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.apiserver.test_rules import causes, try_patch
from tests.sandbox import snapshots
from tests.sandbox.apiserver.client import Client
from tests.sandbox.apiserver.patches import MERGE_PATCH, STRATEGIC_PATCH
from tests.sandbox.apiserver.process import ServerProcess
from tests.sandbox.apiserver.resources import Json

GROUP = "/apis/snapshot.storage.k8s.io/v1"
CONTENTS, CLASSES = f"{GROUP}/volumesnapshotcontents", f"{GROUP}/volumesnapshotclasses"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture
def served(api: Client) -> Iterator[None]:
    for definition in snapshots.definitions():
        api.post(DEFINITIONS, definition)
    yield
    for definition in snapshots.definitions():
        api.delete(f"{DEFINITIONS}/{definition['metadata']['name']}")


def of_namespace(namespace: str, name: str = "") -> str:
    return f"{GROUP}/namespaces/{namespace}/volumesnapshots" + (f"/{name}" if name else "")


def test_without_their_definitions_they_are_unknown(api: Client) -> None:
    for path in (CONTENTS, GROUP):
        assert api.request("GET", path).code == 404
    assert GROUP.split("/")[2] not in [group["name"] for group in api.get("/apis")["groups"]]


@pytest.mark.usefixtures("served")
def test_with_them_they_are_discovered(api: Client) -> None:
    listed = api.get(GROUP)["resources"]
    assert {"volumesnapshots", "volumesnapshots/status", "volumesnapshotcontents/status", "volumesnapshotclasses"} <= {
        each["name"] for each in listed
    }


def _make_delete(server: ServerProcess) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", "delete", "OVERLAY=csi", f"KUBECTL=kubectl --kubeconfig {server.kubeconfig}"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_make_delete_asks_whether_they_are_known(server: ServerProcess) -> None:
    gone = _make_delete(server)
    assert gone.returncode == 0, gone.stderr


@pytest.mark.usefixtures("served")
def test_make_delete_finds_those_of_our_driver(api: Client, server: ServerProcess, unique: str) -> None:
    others = snapshots.content(f"{unique}-others", "default", "s", volumeHandle="v")
    others["spec"]["driver"] = "other.example.com"
    api.post(CONTENTS, others)
    api.post(CONTENTS, snapshots.content(unique, "default", "s", volumeHandle="pvc-1"))
    refused = _make_delete(server)
    assert refused.returncode != 0
    assert refused.stderr.startswith("delete the VolumeSnapshots of these first")
    assert unique in refused.stderr
    assert f"{unique}-others" not in refused.stderr
    for each in (unique, f"{unique}-others"):
        api.delete(f"{CONTENTS}/{each}")


@pytest.mark.usefixtures("served")
def test_a_status_is_written_by_itself_only(api: Client, unique: str) -> None:
    body = snapshots.content(unique, "default", "s", volumeHandle="pvc-1") | {"status": {"readyToUse": True}}
    made = api.post(CONTENTS, body)
    assert "status" not in made
    path = f"{CONTENTS}/{unique}"
    assert "status" not in api.patch(path, {"status": {"readyToUse": True}}, MERGE_PATCH)
    ready = api.patch(f"{path}/status", {"status": {"readyToUse": True}, "spec": {"driver": "other"}}, MERGE_PATCH)
    assert (ready["status"], ready["spec"]) == ({"readyToUse": True}, made["spec"])
    assert ready["metadata"]["generation"] == 1
    assert api.request("PATCH", path, {}, content_type=STRATEGIC_PATCH).code == 415


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"source": {}}, "spec.source"),
        ({"source": {"volumeHandle": "a", "snapshotHandle": "b"}}, "spec.source"),
        ({"deletionPolicy": "Keep"}, "spec.deletionPolicy"),
        ({"driver": None}, "spec.driver"),
        ({"volumeSnapshotRef": {"name": "s"}}, "spec.volumeSnapshotRef"),
    ],
)
def test_contents_that_their_schema_refuses(api: Client, unique: str, spec: Json, field: str) -> None:
    body = snapshots.content(unique, "default", "s", volumeHandle="pvc-1")
    body["spec"] |= spec
    assert [cause[0] for cause in causes(api.request("POST", CONTENTS, body))] == [field]


@pytest.mark.usefixtures("served")
def test_what_can_not_be_changed(api: Client, namespace: str, unique: str) -> None:
    api.post(CONTENTS, snapshots.content(unique, namespace, "s", volumeHandle="pvc-1"))
    path = f"{CONTENTS}/{unique}"
    changed = try_patch(api, path, {"spec": {"source": {"volumeHandle": "pvc-2"}}})
    assert causes(changed) == [("spec.source.volumeHandle", "FieldValueInvalid")]
    moved = try_patch(api, path, {"spec": {"source": {"volumeHandle": None, "snapshotHandle": "n/s"}}})
    assert causes(moved) == [("spec.source", "FieldValueInvalid")]
    assert try_patch(api, path, {"spec": {"volumeSnapshotRef": {"uid": "u"}}}).code == 200

    api.post(of_namespace(namespace), snapshots.snapshot("s", "claim"))
    other = try_patch(api, of_namespace(namespace, "s"), {"spec": {"source": {"persistentVolumeClaimName": "other"}}})
    assert causes(other) == [("spec.source.persistentVolumeClaimName", "FieldValueInvalid")]
    wrong = try_patch(api, f"{path}/status", {"status": {"restoreSize": "1Gi"}})
    assert causes(wrong) == [("status.restoreSize", "FieldValueInvalid")]
