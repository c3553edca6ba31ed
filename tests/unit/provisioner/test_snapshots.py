"""Which node a VolumeSnapshotContent is assigned to, and which claims are restored from a snapshot."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from contract import names, snapshot
from contract.snapshot import FILESYSTEM_ANNOTATION, FINALIZER, HOSTNAME_ANNOTATION, SnapshotContent
from contract.volume import BOUND, Original
from kube.errors import Json
from kube.events import Recorder
from kube.records import VolumeSnapshot
from kube.resources import CLAIMS, CLASSES, NODES, SNAPSHOT_CONTENTS, SNAPSHOTS, VOLUMES
from provisioner import clonesource
from provisioner.capacityledger import CapacityLedger
from provisioner.clusterstate import ClusterCache
from provisioner.decision import AvailableCapacity, Create, Decision, NodeCapacity, Refuse, Wait, decide
from provisioner.main import Term
from provisioner.metrics import Metrics
from provisioner.nodetracker import NodeTracker
from provisioner.settings import Settings
from provisioner.snapshots import SnapshotController
from tests.memorycluster import MemoryCluster
from tests.sandbox import snapshots
from tests.unit.provisioner.leader import leading, volume
from tests.unit.provisioner.objects import (
    GIB,
    claim,
    claim_body,
    class_body,
    node_body,
    our_body,
    published,
    storage_class,
)
from tests.waiting import drained, until

SOURCE: dict[str, Any] = {"dataSource": {"apiGroup": snapshot.GROUP, "kind": "VolumeSnapshot", "name": "before"}}
SNAPSHOT = VolumeSnapshot("default", "before", "uid-of-before", "content", ready=True, deleting=False)
ROOM = AvailableCapacity([NodeCapacity(published("n1"), 10 * GIB), NodeCapacity(published("n2"), 5 * GIB)])


def content_body(name: str = "content", *, node: str = "n2", ready: bool = True, **spec: Any) -> Json:
    """One whose snapshot is made, unless it says otherwise."""
    body = snapshots.content(name, "default", "before", volumeHandle="pv")
    body["spec"]["volumeSnapshotRef"]["uid"] = SNAPSHOT.uid
    body["spec"] |= spec
    body["metadata"] |= {
        "uid": f"uid-of-{name}",
        "resourceVersion": "1",
        "labels": {names.NODE_LABEL: node} if node else {},
        "annotations": {FILESYSTEM_ANNOTATION: "xfs"},
        "finalizers": [FINALIZER],
    }
    if ready:
        body["status"] = {"readyToUse": True, "restoreSize": GIB, "snapshotHandle": f"n2/snap_uid-of-{name}"}
    return body


def content(**changes: Any) -> SnapshotContent:
    record = snapshot.read(content_body())
    assert record
    return replace(record, **changes)


def decided(
    found: VolumeSnapshot | None = SNAPSHOT,
    bound: SnapshotContent | None = None,
    *,
    fields: Json | None = None,
    waited: float = 60,
    **claimed: Any,
) -> Decision:
    asked = claim(**{**SOURCE, **claimed})
    source = clonesource.of_snapshot(asked, found, bound)
    return decide(asked, storage_class(**(fields or {})), ROOM, waited=waited, source=source)


@pytest.mark.parametrize("node", ["n1", "n2"])
def test_a_snapshot_is_restored_on_its_node_whatever_the_scheduler_chose(node: str) -> None:
    """Also larger, and in a class of another kind. What the class does not say is the snapshot's."""
    decision = decided(bound=content(), node=node, size="3Gi", fields={"parameters": {"thin": "true"}})
    assert isinstance(decision, Create)
    assert (decision.target, decision.size) == (published("n2"), 3 * GIB)
    assert decision.original == Original("snap_uid-of-content", "uid-of-content")
    assert (decision.parameters.filesystem, decision.parameters.thin) == ("xfs", True)


def test_a_block_volume_is_restored_as_one() -> None:
    assert isinstance(decided(bound=content(filesystem="raw")), Refuse)
    decision = decided(
        bound=content(filesystem="raw"), volumeMode="Block", fields={"parameters": {"volumeSource": "csi"}}
    )
    assert isinstance(decision, Create)
    assert decision.parameters.block


def test_a_snapshot_that_was_handed_over_is_restored_under_its_name() -> None:
    found = snapshot.read(content_body(source={"snapshotHandle": "n2/snap_uid-of-another"}))
    decision = decided(bound=found)
    assert isinstance(decision, Create)
    assert decision.original == Original("snap_uid-of-another", "uid-of-content")


@pytest.mark.parametrize(
    ("found", "bound", "words"),
    [
        (None, None, "there is no VolumeSnapshot before (any more): create it"),
        (replace(SNAPSHOT, deleting=True), content(), "there is no VolumeSnapshot before (any more)"),
        (
            replace(SNAPSHOT, content_name=""),
            None,
            "has no VolumeSnapshotContent yet: does the snapshot-controller run?",
        ),
        (SNAPSHOT, None, "is not of elastic-local"),
        (SNAPSHOT, content(snapshot_uid="of another day"), "are not bound to each other"),
        (SNAPSHOT, content(snapshot_namespace="others"), "are not bound to each other"),
        (replace(SNAPSHOT, content_name="other"), content(), "are not bound to each other"),
        (SNAPSHOT, content(ready=False), "is not ready to use yet: the volume follows"),
        (SNAPSHOT, content(ready=False, error="no space"), "is not ready to use yet (no space): the volume follows"),
        (SNAPSHOT, content(node_label=""), "is not ready to use yet"),
        (SNAPSHOT, content(source_volume="", source_handle="elsewhere"), "is not ready to use yet"),
        (replace(SNAPSHOT, ready=False), content(), "is not ready to use yet: does the snapshot-controller run?"),
        (SNAPSHOT, content(deleting=True), "is being deleted"),
        (SNAPSHOT, content(being_deleted=True), "is being deleted"),
        (SNAPSHOT, content(filesystem=""), "does not say (any more) what it holds"),
        (SNAPSHOT, content(restore_size=0), "does not say (any more) what it holds"),
        (SNAPSHOT, content(restore_size=GIB + 1), "asks for 1Gi, and before, which it is to be a copy of, has"),
        (SNAPSHOT, content(filesystem="btrfs"), "VolumeSnapshot before has btrfs, of which the kernel"),
        (SNAPSHOT, content(filesystem="ext4"), "VolumeSnapshot before has ext4, and a copy can't have xfs"),
        (SNAPSHOT, content(node_label="n9"), "node n9, where before lives, publishes no capacity for this class"),
    ],
)
def test_what_stands_against_a_restore(found: VolumeSnapshot | None, bound: SnapshotContent | None, words: str) -> None:
    fields = {"parameters": {"fsType": "btrfs" if "btrfs" in words else "xfs"}}
    decision = decided(found, bound, fields=fields)
    assert isinstance(decision, Refuse), decision
    assert words in decision.why


def test_a_snapshot_of_another_namespace_is_not_restored() -> None:
    reference = {**SOURCE["dataSource"], "namespace": "others"}
    decision = decided(bound=content(), dataSource=None, dataSourceRef=reference)
    assert isinstance(decision, Refuse)
    assert "names a VolumeSnapshot of namespace others" in decision.why


@pytest.mark.parametrize(
    ("found", "bound"),
    [
        (replace(SNAPSHOT, ready=False), content()),
        (replace(SNAPSHOT, content_name="", ready=False), content(snapshot_uid="")),
    ],
)
def test_what_the_snapshot_controller_is_about_to_write_is_waited_for(
    found: VolumeSnapshot, bound: SnapshotContent
) -> None:
    assert isinstance(decided(found, bound, waited=0), Wait)
    assert isinstance(decided(found, bound, waited=6), Refuse)


@pytest.fixture
async def serving(cluster: MemoryCluster) -> MemoryCluster:
    await snapshots.install(cluster)
    return cluster


def volume_body(**metadata: Any) -> Json:
    """A made CSI volume `pv` of the claim default/data on node n1."""
    body = our_body(BOUND, **metadata)
    body["metadata"].setdefault("annotations", {})[names.MADE_ANNOTATION] = "true"
    body["spec"] |= {
        "csi": {"driver": names.CSI_DRIVER, "volumeHandle": "pv", "fsType": "ext4"},
        "claimRef": {"namespace": "default", "name": "data", "uid": "uid-of-data"},
    }
    del body["spec"]["flexVolume"]
    return body


def label(cluster: MemoryCluster, name: str = "content") -> str:
    body = cluster.stored(SNAPSHOT_CONTENTS, name)
    assert body
    return str((body["metadata"].get("labels") or {}).get(names.NODE_LABEL, ""))


def annotations(cluster: MemoryCluster, name: str = "content") -> Json:
    body = cluster.stored(SNAPSHOT_CONTENTS, name)
    assert body
    found: Json = body["metadata"]["annotations"]
    return found


def handle(cluster: MemoryCluster, name: str = "content") -> str:
    body = cluster.stored(SNAPSHOT_CONTENTS, name)
    assert body
    return str((body.get("status") or {}).get("snapshotHandle", ""))


def error(cluster: MemoryCluster, name: str = "content") -> str:
    body = cluster.stored(SNAPSHOT_CONTENTS, name)
    assert body
    return str(((body.get("status") or {}).get("error") or {}).get("message", ""))


async def settled(term: Term) -> None:
    await drained(term.snapshots.queue)


async def test_a_content_is_assigned_to_the_node_of_its_volume(serving: MemoryCluster) -> None:
    serving.put(VOLUMES, volume_body())
    serving.put(SNAPSHOT_CONTENTS, content_body(node="", ready=False))
    async with leading(serving):
        await until(lambda: label(serving) == "n1")
    assert not error(serving)
    assert annotations(serving)[HOSTNAME_ANNOTATION] == "host-n1"


def _without(field: str) -> Json:
    body = volume_body()
    del body["metadata"][field]
    return body


def _of_flex_volume() -> Json:
    body = volume_body()
    del body["spec"]["csi"]
    body["spec"]["flexVolume"] = {"driver": names.DRIVER}
    return body


def _with(**spec: Any) -> Json:
    body = volume_body()
    body["spec"] |= spec
    return body


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "volume pv is none of elastic-local for a claim of namespace default"),
        (_with(claimRef={"namespace": "others", "name": "data", "uid": "u"}), "volume pv is none of elastic-local for"),
        (_with(csi={"driver": "other", "volumeHandle": "pv"}), "volume pv is none of elastic-local for"),
        (_with(csi={"driver": names.CSI_DRIVER, "volumeHandle": "other"}), "volume pv is none of elastic-local for"),
        (_of_flex_volume(), "volume pv is a FlexVolume"),
        ({**volume_body(), "status": {"phase": "Released"}}, "volume pv is not bound to its claim"),
        (_without("annotations"), "volume pv is not made yet"),
        (_with(csi={"driver": names.CSI_DRIVER, "volumeHandle": "pv", "fsType": "btrfs"}), "volume pv has btrfs"),
    ],
)
async def test_a_content_that_gets_no_snapshot_says_why(
    serving: MemoryCluster, source: Json | None, words: str
) -> None:
    if source is not None:
        serving.put(VOLUMES, source)
    serving.put(SNAPSHOT_CONTENTS, content_body(node="", ready=False))
    async with leading(serving) as term:
        await until(lambda: error(serving).startswith(words))
        await settled(term)
        assert error(serving) in serving.messages("SnapshotCreationFailed")
        assert not label(serving)
        serving.put(VOLUMES, volume_body(annotations={"news": "to the watch"}))
        await until(lambda: label(serving) == "n1")


async def test_a_snapshot_that_exists_is_found_on_the_node_of_its_handle(serving: MemoryCluster) -> None:
    for name, handle in (("found", "n2/snap_a"), ("gone", "n9/snap_a"), ("foreign", "snap-0123")):
        spec = {"source": {"snapshotHandle": handle}}
        serving.put(SNAPSHOT_CONTENTS, content_body(name, node="", ready=False, **spec))
    async with leading(serving):
        await until(lambda: label(serving, "found") == "n2")
        await until(lambda: error(serving, "gone"))
        await until(lambda: error(serving, "foreign"))
    assert annotations(serving, "found")[HOSTNAME_ANNOTATION] == "host-n2"
    assert error(serving, "gone").startswith("there is no node n9 (any more)")
    assert error(serving, "foreign").startswith("snapshotHandle 'snap-0123' is none of elastic-local: write <node>/")
    assert (label(serving, "gone"), label(serving, "foreign")) == ("", "")


async def test_contents_of_other_drivers_are_let_alone(serving: MemoryCluster) -> None:
    serving.put(VOLUMES, volume_body())
    serving.put(SNAPSHOT_CONTENTS, content_body("theirs", node="", ready=False, driver="other"))
    serving.put(SNAPSHOT_CONTENTS, content_body("ours", node="", ready=False))
    async with leading(serving):
        await until(lambda: label(serving, "ours"))
    assert not [request for request in serving.requests if request[0] == "patch" and request[2] == "theirs"]


@pytest.mark.parametrize(("let_go", "goes"), [({snapshot.BEING_DELETED: "yes"}, True), ({}, False)])
async def test_what_was_never_assigned_goes_without_a_node(
    serving: MemoryCluster, let_go: dict[str, str], goes: bool
) -> None:
    body = content_body(node="", ready=False)
    body["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "annotations": let_go}
    serving.put(SNAPSHOT_CONTENTS, body)
    async with leading(serving) as term:
        await until(lambda: term.cache.contents.synced)
        await settled(term)
        if goes:
            await until(lambda: serving.stored(SNAPSHOT_CONTENTS, "content") is None)
        else:
            assert serving.stored(SNAPSHOT_CONTENTS, "content")


async def test_one_that_lost_its_label_is_removed_by_its_node(serving: MemoryCluster) -> None:
    body = content_body(node="")
    body["metadata"] |= {
        "deletionTimestamp": "2026-01-01T00:00:00Z",
        "annotations": {snapshot.BEING_DELETED: "yes"},
    }
    serving.put(SNAPSHOT_CONTENTS, body)
    async with leading(serving):
        await until(lambda: label(serving) == "n2")


def _snapshot_body(**status: Any) -> Json:
    body = snapshots.snapshot("before", "data")
    body["metadata"] |= {"namespace": "default", "uid": SNAPSHOT.uid}
    return {**body, "status": {"boundVolumeSnapshotContentName": "content", "readyToUse": True, **status}}


async def test_a_claim_is_restored_as_soon_as_its_snapshot_is_ready(serving: MemoryCluster) -> None:
    serving.put(SNAPSHOT_CONTENTS, content_body(ready=False))
    serving.put(SNAPSHOTS, _snapshot_body(readyToUse=False))
    serving.put(CLAIMS, claim_body("copy", **SOURCE))
    async with leading(serving):
        await until(lambda: [each for each in serving.messages("ProvisioningFailed") if "not ready to use yet" in each])
        serving.put(SNAPSHOTS, _snapshot_body())
        serving.put(SNAPSHOT_CONTENTS, content_body())
        await until(lambda: volume(serving, "pvc-uid-of-copy"))
    made = volume(serving, "pvc-uid-of-copy")
    assert made
    options = made["spec"]["flexVolume"]["options"]
    assert (options["cloneOf"], options["cloneOfUid"]) == ("snap_uid-of-content", "uid-of-content")
    assert made["metadata"]["labels"][names.NODE_LABEL] == "n2"


async def test_what_a_claim_is_restored_from_is_asked_of_the_server(serving: MemoryCluster) -> None:
    """A content that was let go a moment ago is still ready in the cache."""
    serving.put(SNAPSHOT_CONTENTS, content_body())
    serving.put(SNAPSHOTS, _snapshot_body())
    async with leading(serving) as term:
        await until(lambda: term.cache.contents.get("content"))
        serving.watching.clear()
        gone = content_body()
        gone["metadata"]["annotations"][snapshot.BEING_DELETED] = "yes"
        serving.put(SNAPSHOT_CONTENTS, gone)
        serving.watching.set()
        serving.put(CLAIMS, claim_body("copy", **SOURCE))
        await until(lambda: [each for each in serving.messages("ProvisioningFailed") if "is being deleted" in each])
    assert volume(serving, "pvc-uid-of-copy") is None


async def test_without_snapshots_in_the_cluster_a_claim_is_told_what_to_install(cluster: MemoryCluster) -> None:
    cluster.put(CLAIMS, claim_body("copy", **SOURCE))
    cluster.put(CLAIMS, claim_body("other"))
    async with leading(cluster):
        await until(lambda: volume(cluster, "pvc-uid-of-other"))
        await until(lambda: [each for each in cluster.messages("ProvisioningFailed") if "install their" in each])


async def test_snapshots_that_are_installed_later_are_served(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kube.informer._NOT_SERVED", (0.01, 0.02))
    cluster.put(VOLUMES, volume_body())
    cluster.put(CLASSES, class_body())
    async with leading(cluster):
        await until(lambda: ("list", "volumesnapshotcontents", "") in cluster.requests)
        await snapshots.install(cluster)
        cluster.put(SNAPSHOT_CONTENTS, content_body(node="", ready=False))
        await until(lambda: label(cluster) == "n1")


def _deleted(name: str, node: str, policy: str = "Delete") -> Json:
    body = content_body(name, node=node, deletionPolicy=policy)
    body["metadata"] |= {
        "deletionTimestamp": "2026-01-01T00:00:00Z",
        "annotations": {snapshot.BEING_DELETED: "yes"},
    }
    body["status"]["snapshotHandle"] = f"{node}/snap_uid-of-{name}"
    return body


@asynccontextmanager
async def delaying(serving: MemoryCluster, times: list[float]) -> AsyncIterator[SnapshotController]:
    """The controller at work, with a delay of 60 s. `times`: the clock shows the last of them."""
    recorder, cache = Recorder(serving, "test"), ClusterCache(serving, names.NAMESPACE, CapacityLedger())
    nodes = NodeTracker(serving)
    controller = SnapshotController(
        serving, cache, recorder, nodes, parallelism=2, node_loss_delay=60, clock=lambda: times[-1]
    )
    tasks = [asyncio.create_task(part.run()) for part in (recorder, cache, nodes, controller.queue)]
    await until(lambda: cache.contents.synced)
    await nodes.wait_synced()
    await drained(controller.queue)
    yield controller
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_a_deleted_snapshot_of_a_node_that_is_gone_is_let_go_after_the_delay(serving: MemoryCluster) -> None:
    """Not one of a node that is there, nor one that is to be retained."""
    times = [0.0]
    serving.put(SNAPSHOT_CONTENTS, _deleted("lost", "n9"))
    serving.put(SNAPSHOT_CONTENTS, _deleted("retained", "n9", "Retain"))
    serving.put(SNAPSHOT_CONTENTS, _deleted("served", "n2"))
    async with delaying(serving, times) as controller:
        assert len(serving.all(SNAPSHOT_CONTENTS)) == 3
        times.append(61)
        for name in ("lost", "retained", "served"):
            controller.queue.add(name)
        await until(lambda: serving.stored(SNAPSHOT_CONTENTS, "lost") is None)
        await drained(controller.queue)
        assert [body["metadata"]["name"] for body in serving.all(SNAPSHOT_CONTENTS)] == ["retained", "served"]
        await until(lambda: serving.messages("NodeDeleted"))


def _of_node(name: str, node: str, **more: Any) -> Json:
    """A content that was assigned to that node; its hostname label is as of `node_body`."""
    body = content_body(name, node=node, **more)
    body["metadata"]["annotations"][HOSTNAME_ANNOTATION] = f"host-{node}"
    if "status" in body:
        body["status"]["snapshotHandle"] = f"{node}/snap_uid-of-{name}"
    return body


async def test_snapshots_follow_a_node_that_was_registered_under_another_name(serving: MemoryCluster) -> None:
    """Also one that is not made yet, and one that is deleted: its data is there to be removed."""
    deleted = _of_node("deleted", "n2")
    deleted["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    deleted["metadata"]["annotations"][snapshot.BEING_DELETED] = "yes"
    for body in (_of_node("content", "n2"), _of_node("unmade", "n2", ready=False), deleted, _of_node("other", "n1")):
        serving.put(SNAPSHOT_CONTENTS, body)
    async with leading(serving) as term:
        await until(lambda: term.cache.contents.synced)
        await settled(term)
        assert label(serving) == "n2"
        serving.remove(NODES, "n2")
        serving.put(NODES, node_body("renamed", "host-n2"))
        await until(lambda: {label(serving, name) for name in ("content", "unmade", "deleted")} == {"renamed"})
        await settled(term)
    assert handle(serving) == "renamed/snap_uid-of-content"
    assert (handle(serving, "unmade"), handle(serving, "deleted")) == ("", "renamed/snap_uid-of-deleted")
    assert (label(serving, "other"), handle(serving, "other")) == ("n1", "n1/snap_uid-of-other")


async def test_a_node_or_a_volume_has_its_own_contents_looked_at_and_no_others(serving: MemoryCluster) -> None:
    term = Term(serving, Settings(identity="test"), Metrics())
    contents = [content(name=f"on-n1-{number}", node_label="n1", hostname="host-n1") for number in range(300)]
    for each in (*contents, content(name="on-n2", node_label="n2", hostname="host-n2")):
        term.cache.contents._put(each.name, each)
    waits = content(name="waits", node_label="", hostname="", source_volume="pv-2", source_handle="")
    term.snapshots._waiting.put("waits", ("pv-2",))
    term.cache.contents._put("waits", waits)

    def woken() -> list[str]:
        keys = list(term.snapshots.queue._waiting)
        term.snapshots.queue._waiting.clear()
        return keys

    woken()
    term.snapshots._nodes_changed(frozenset({"n2", "host-n2"}))
    assert woken() == ["on-n2"]
    term.snapshots._volume_changed("pv-1", None, None)
    assert woken() == []
    term.snapshots._volume_changed("pv-2", None, None)
    assert woken() == ["waits"]


async def test_they_follow_none_of_two_with_its_hostname_and_are_not_let_go(serving: MemoryCluster) -> None:
    deleted = _of_node("content", "n2")
    deleted["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    deleted["metadata"]["annotations"][snapshot.BEING_DELETED] = "yes"
    serving.put(SNAPSHOT_CONTENTS, deleted)
    serving.remove(NODES, "n2")
    for name in ("one", "two"):
        serving.put(NODES, node_body(name, "host-n2"))
    times = [0.0]
    async with delaying(serving, times) as controller:
        for now in (61.0, 122.0):
            times.append(now)
            controller.queue.add("content")
            await drained(controller.queue)
    assert (label(serving), handle(serving)) == ("n2", "n2/snap_uid-of-content")
