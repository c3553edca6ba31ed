"""The controller of deleted nodes: what it waits for, what it never believes, and what it does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from contract import names
from contract.volume import BOUND, RELEASED
from kube.errors import Forbidden, Json, Unreachable
from kube.events import Recorder
from kube.records import read_storage_class
from kube.resources import CLAIMS, EVENTS, NODES, VOLUMES, Resource
from provisioner.capacityledger import CapacityLedger
from provisioner.clusterstate import ClusterCache
from provisioner.metrics import Metrics
from provisioner.nodecleanup import NodeCleanupController
from provisioner.nodetracker import NodeTracker
from tests.memorycluster import MemoryCluster
from tests.unit.provisioner.leader import does, raises
from tests.unit.provisioner.objects import affinity, claim_body, local_body, node_body, our_body, term
from tests.waiting import drained, until

CLASS = "disks"
DELAY = 60.0
CLAIM = {"namespace": "default", "name": "data", "uid": "uid-of-data"}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class CleanupHarness:
    """The controller at work. Time stands still until `pass_delay`."""

    def __init__(self, cluster: MemoryCluster, delay: float | None, classes: set[str]) -> None:
        self.cluster = cluster
        self.clock = Clock()
        self.metrics = Metrics()
        self.metrics.class_changed("fast", None, read_storage_class({"metadata": {"name": "fast"}, "provisioner": "p"}))
        self.recorder = Recorder(cluster, "test")
        self.cache = ClusterCache(cluster, names.NAMESPACE, CapacityLedger())
        self.tracker = NodeTracker(cluster)
        self.cleanup = NodeCleanupController(
            cluster,
            self.cache.volumes,
            self.recorder,
            self.metrics,
            self.tracker,
            delay=delay,
            classes=classes,
            clock=self.clock,
        )

    async def pass_delay(self) -> None:
        """The delay is over, and every place was looked at again."""
        self.clock.now += DELAY
        await self.look()

    async def look(self) -> None:
        await settled(self.cluster)
        for key in list(self.cleanup.by_nodes):
            self.cleanup.queue.add(key)
        await drained(self.cleanup.queue)
        await settled(self.cluster)
        await drained(self.cleanup.queue)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


async def settled(cluster: MemoryCluster) -> None:
    """Watches have delivered all changes."""
    for _ in range(50):
        await asyncio.sleep(0)


@asynccontextmanager
async def working(
    cluster: MemoryCluster, delay: float | None = DELAY, classes: frozenset[str] = frozenset({CLASS})
) -> AsyncIterator[CleanupHarness]:
    harness = CleanupHarness(cluster, delay, set(classes))
    parts = (harness.recorder, harness.cache, harness.tracker, harness.cleanup)
    tasks = [asyncio.create_task(part.run()) for part in parts]
    try:
        await harness.cache.wait_synced()
        await settled(cluster)
        await harness.look()
        yield harness
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks), [task.exception() for task in tasks if not task.cancelled()]


def bound_claim(**metadata: Any) -> Json:
    body = claim_body()
    return {**body, "metadata": {**body["metadata"], **metadata}, "spec": {**body["spec"], "volumeName": "local-pv-1"}}


def has(cluster: MemoryCluster, name: str) -> bool:
    return cluster.stored(VOLUMES, name) is not None


def metadata_of(cluster: MemoryCluster, name: str = "pv") -> Json:
    body = cluster.stored(VOLUMES, name)
    assert body, name
    metadata: Json = body["metadata"]
    return metadata


def volume_names(cluster: MemoryCluster) -> set[str]:
    return {body["metadata"]["name"] for body in cluster.all(VOLUMES)}


def writes(cluster: MemoryCluster) -> list[tuple[str, str, str]]:
    return [request for request in cluster.requests if request[0] in ("delete", "patch") and request[1] != "events"]


@pytest.fixture
async def local(cluster: MemoryCluster) -> MemoryCluster:
    """A bound local volume of a named class, on node n1."""
    cluster.put(VOLUMES, local_body(claimRef=CLAIM))
    cluster.put(CLAIMS, bound_claim())
    return cluster


async def test_while_the_node_is_there_nothing_is_said_or_done(local: MemoryCluster) -> None:
    local.put(VOLUMES, our_body(deletionTimestamp="now"))
    async with working(local) as harness:
        await harness.pass_delay()
    assert not writes(local)
    assert not local.messages("ReferencedNodeDeleted") + local.messages("NodeDeleted")


async def test_a_node_that_is_there_is_not_looked_at_with_each_change_of_its_volumes(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be hundreds of volumes on it, and a claim is a handful of changes."""
    cluster.put(VOLUMES, our_body(BOUND))
    async with working(cluster) as harness:
        looked = []
        is_gone = harness.tracker.is_gone

        async def looks(nodes: frozenset[str]) -> bool:
            looked.append(nodes)
            return await is_gone(nodes)

        monkeypatch.setattr(harness.tracker, "is_gone", looks)
        cluster.put(VOLUMES, our_body())
        await until(lambda: harness.cache.volumes.values()[0].phase == RELEASED)
        cluster.put(VOLUMES, our_body(BOUND, name="new", uid="another"))
        await until(lambda: len(harness.cache.volumes.values()) == 2)
        await drained(harness.cleanup.queue)
        assert not looked
        cluster.remove(NODES, "n1")
        await until(lambda: [each for each in harness.cleanup.by_nodes.values() if each.lost_since is not None])
        looked.clear()
        cluster.put(VOLUMES, our_body(BOUND))
        await until(lambda: looked, what="a look at a node that is gone")


@pytest.mark.parametrize("node", [node_body("host-n1", "other"), node_body("other", "host-n1")])
async def test_a_node_exists_by_its_name_or_by_its_hostname(local: MemoryCluster, node: Json) -> None:
    local.remove(NODES, "n1")
    local.put(NODES, node)
    async with working(local) as harness:
        await harness.pass_delay()
    assert not writes(local)


async def test_the_claim_is_warned_at_once_and_deleted_after_the_delay(local: MemoryCluster) -> None:
    async with working(local) as harness:
        local.remove(NODES, "n1")
        await until(lambda: local.messages("ReferencedNodeDeleted"))
        await harness.look()
        assert not writes(local)
        await harness.pass_delay()
        assert writes(local) == [("delete", "persistentvolumeclaims", "data")]
        assert harness.count("local_volume_node_cleanup_persistentvolumeclaim_delete_total") == 1
    assert "this claim is deleted in 60 s" in local.messages("ReferencedNodeDeleted")[0]
    assert len(local.messages("ReferencedNodeDeleted")) == 1


async def test_a_node_that_comes_back_within_the_delay_starts_it_anew(local: MemoryCluster) -> None:
    async with working(local) as harness:
        local.remove(NODES, "n1")
        await until(lambda: local.messages("ReferencedNodeDeleted"))
        harness.clock.now += DELAY - 1
        local.put(NODES, node_body("n1"))
        local.remove(NODES, "n1")
        await harness.look()
        harness.clock.now += DELAY - 1
        await harness.look()
        assert not writes(local)
        await harness.pass_delay()
        assert writes(local)


@pytest.mark.parametrize("error", [Unreachable(503, "", "later"), Forbidden(403, "Forbidden", "no")])
@pytest.mark.parametrize("verb", ["get", "list"])
async def test_a_server_that_cannot_say_has_not_said_that_the_node_is_gone(
    local: MemoryCluster, verb: str, error: Forbidden | Unreachable
) -> None:
    async with working(local) as harness:
        local.remove(NODES, "n1")
        await until(lambda: local.messages("ReferencedNodeDeleted"))
        await harness.look()
        harness.clock.now += DELAY
        local.before[verb, "nodes"] = [raises(error)]
        for key in list(harness.cleanup.by_nodes):
            harness.cleanup.queue.add(key)
        await drained(harness.cleanup.queue)
        assert not local.before[verb, "nodes"]
        assert not writes(local)
        await harness.look()
        assert writes(local)


async def test_a_cache_that_lags_does_not_make_a_node_gone(local: MemoryCluster) -> None:
    async with working(local) as harness:
        local.remove(NODES, "n1")
        await until(lambda: local.messages("ReferencedNodeDeleted"))
        await harness.look()
        local.watching.clear()
        local.put(NODES, node_body("n1"))
        await harness.pass_delay()
        assert not writes(local)
        local.watching.set()


async def test_a_node_that_comes_back_at_the_last_moment_saves_the_rest(local: MemoryCluster) -> None:
    for number in range(2, 5):
        local.put(VOLUMES, local_body(f"local-pv-{number}", "Available"))
    async with working(local) as harness:
        local.remove(NODES, "n1")
        await until(lambda: local.messages("ReferencedNodeDeleted"))
        await harness.look()

        async def back() -> None:
            local.put(NODES, node_body("n1"))
            await settled(local)

        local.after["delete", "persistentvolumeclaims"] = [back]
        await harness.pass_delay()
        assert writes(local) == [("delete", "persistentvolumeclaims", "data")]


@pytest.mark.parametrize(
    "claim",
    [
        bound_claim(uid="of-a-namesake"),
        {**bound_claim(), "spec": {**bound_claim()["spec"], "volumeName": "another"}},
        bound_claim(deletionTimestamp="now"),
        None,
    ],
    ids=["another uid", "another volume", "deleting", "gone"],
)
async def test_only_the_very_claim_that_points_at_the_volume_is_deleted(
    local: MemoryCluster, claim: Json | None
) -> None:
    local.remove(CLAIMS, "data", "default")
    if claim is not None:
        local.put(CLAIMS, claim)
    local.remove(NODES, "n1")
    async with working(local) as harness:
        await harness.pass_delay()
        assert harness.count("local_volume_node_cleanup_persistentvolumeclaim_delete_total") == 0
    assert not writes(local)


async def test_a_claim_that_became_another_at_the_last_moment_is_not_deleted(local: MemoryCluster) -> None:
    local.remove(NODES, "n1")

    def replaced() -> None:
        local.remove(CLAIMS, "data", "default")
        local.put(CLAIMS, bound_claim(uid="of-a-namesake"))

    async with working(local) as harness:
        local.before["delete", "persistentvolumeclaims"] = [does(replaced)]
        await harness.pass_delay()
    assert local.stored(CLAIMS, "data", "default")


async def test_volumes_that_nobody_uses_go_and_are_counted_by_phase(cluster: MemoryCluster) -> None:
    cluster.put(VOLUMES, local_body("free", "Available", persistentVolumeReclaimPolicy="Retain"))
    cluster.put(VOLUMES, local_body("released", "Released", claimRef=CLAIM))
    cluster.put(VOLUMES, local_body("retained", "Released", persistentVolumeReclaimPolicy="Retain"))
    cluster.put(VOLUMES, local_body("elsewhere", "Available", **affinity(term(zone="a"))))
    cluster.put(VOLUMES, local_body("not-named", "Available", storage_class="other"))
    cluster.remove(NODES, "n1")
    async with working(cluster) as harness:
        await harness.pass_delay()
        assert volume_names(cluster) == {"retained", "elsewhere", "not-named"}
        for phase in ("Available", "Released"):
            assert harness.count("local_volume_node_cleanup_persistentvolume_delete_total", phase=phase) == 1


async def test_a_released_volume_whose_claim_lives_is_kept(local: MemoryCluster) -> None:
    local.put(VOLUMES, local_body(phase="Released", claimRef=CLAIM))
    local.remove(NODES, "n1")
    async with working(local) as harness:
        await harness.pass_delay()
    assert has(local, "local-pv-1")


async def test_a_deletion_that_fails_is_counted_tried_again_and_holds_up_no_other(cluster: MemoryCluster) -> None:
    cluster.put(VOLUMES, local_body("one", "Available"))
    cluster.put(VOLUMES, local_body("two", "Available"))
    cluster.remove(NODES, "n1")
    async with working(cluster) as harness:
        cluster.before["delete", "persistentvolumes"] = [raises(Unreachable(500, "", "no"))]
        harness.clock.now += DELAY
        for key in list(harness.cleanup.by_nodes):
            harness.cleanup.queue.add(key)
        await until(lambda: has(cluster, "one") is not has(cluster, "two"))
        failed = harness.count("local_volume_node_cleanup_persistentvolume_delete_failed_total", phase="Available")
        assert failed == 1
        await until(lambda: not has(cluster, "one") and not has(cluster, "two"))


async def test_the_finalizer_of_our_volume_is_removed_with_an_event_on_its_claim(cluster: MemoryCluster) -> None:
    body = our_body(finalizers=(names.FINALIZER, "somebody/else"), deletionTimestamp="now")
    spec = {"claimRef": CLAIM, "storageClassName": "fast", "persistentVolumeReclaimPolicy": "Delete"}
    cluster.put(VOLUMES, {**body, "spec": {**body["spec"], **spec}})
    async with working(cluster, classes=frozenset()) as harness:
        cluster.remove(NODES, "n1")
        await until(lambda: cluster.messages("NodeDeleted"))
        assert "is removed in 60 s" in cluster.messages("NodeDeleted")[0]
        await harness.look()
        assert metadata_of(cluster)["finalizers"] == [names.FINALIZER, "somebody/else"]
        await harness.pass_delay()
        assert metadata_of(cluster)["finalizers"] == ["somebody/else"]
        assert harness.count("elastic_local_provisioner_volumes_let_go_total", **{"class": "fast"}) == 1
        await harness.recorder.flush()
    removal_events = [event for event in cluster.all(EVENTS) if "finalizer was removed" in event["message"]]
    assert {event["involvedObject"]["kind"] for event in removal_events} == {
        "PersistentVolume",
        "PersistentVolumeClaim",
    }


async def test_a_volume_that_was_retained_at_the_last_moment_keeps_our_finalizer(cluster: MemoryCluster) -> None:
    """Its node has to record that, or would remove the data when it is back."""
    for name in ("one", "two"):
        body = our_body(name=name, deletionTimestamp="now")
        cluster.put(VOLUMES, {**body, "spec": {**body["spec"], "persistentVolumeReclaimPolicy": "Delete"}})
    cluster.remove(NODES, "n1")

    async def retained() -> None:
        cluster.put(VOLUMES, our_body(name="two", deletionTimestamp="now"))
        await settled(cluster)

    async with working(cluster, classes=frozenset()) as harness:
        cluster.after["patch", "persistentvolumes"] = [retained]
        await harness.pass_delay()
    assert volume_names(cluster) == {"two"}
    assert metadata_of(cluster, "two")["finalizers"] == [names.FINALIZER]


@pytest.mark.parametrize(("holds", "kept"), [("pv", True), ("", True), ("another", False)])
async def test_a_volume_whose_claim_lives_keeps_our_finalizer(cluster: MemoryCluster, holds: str, kept: bool) -> None:
    """Whatever its phase says."""
    body, claim = our_body(deletionTimestamp="now"), claim_body()
    spec = {"claimRef": CLAIM, "persistentVolumeReclaimPolicy": "Delete"}
    cluster.put(VOLUMES, {**body, "spec": {**body["spec"], **spec}})
    cluster.put(CLAIMS, {**claim, "spec": {**claim["spec"], "volumeName": holds}})
    cluster.remove(NODES, "n1")
    async with working(cluster, classes=frozenset()) as harness:
        await harness.pass_delay()
    assert has(cluster, "pv") is kept


async def test_a_claim_whose_volume_was_made_anew_elsewhere_is_kept(local: MemoryCluster) -> None:
    """By somebody who has its data elsewhere, which the cache has not seen yet."""
    local.remove(NODES, "n1")
    async with working(local) as harness:
        local.watching.clear()
        local.put(NODES, node_body("n2"))
        local.put(VOLUMES, local_body(claimRef=CLAIM, **affinity(term(["host-n2"]))))
        await harness.pass_delay()
        assert not writes(local)
        local.watching.set()


async def test_a_volume_of_ours_counts_once_where_classes_are_named(
    cluster: MemoryCluster, caplog: pytest.LogCaptureFixture
) -> None:
    body = our_body(deletionTimestamp="now")
    cluster.put(VOLUMES, {**body, "spec": {**body["spec"], "persistentVolumeReclaimPolicy": "Delete"}})
    cluster.remove(NODES, "n1")
    async with working(cluster) as harness:
        await harness.pass_delay()
        await until(lambda: not harness.cleanup.by_nodes)
    assert not has(cluster, "pv")
    assert "a subscriber failed" not in caplog.text


async def test_finalizers_of_static_volumes_are_removed_except_of_retained_ones(cluster: MemoryCluster) -> None:
    finalizers = {"finalizers": [names.STATIC_FINALIZER, "somebody/else"], "deletionTimestamp": "now"}
    bodies = (
        local_body("free", "Available", persistentVolumeReclaimPolicy="Retain"),
        local_body("released", "Released", claimRef=CLAIM),
        local_body("retained", "Released", persistentVolumeReclaimPolicy="Retain"),
        local_body("not-named", "Available", storage_class="other"),
    )
    for body in bodies:
        cluster.put(VOLUMES, {**body, "metadata": {**body["metadata"], **finalizers}})
    cluster.remove(NODES, "n1")
    async with working(cluster) as harness:
        await harness.pass_delay()
    held = {
        body["metadata"]["name"]
        for body in cluster.all(VOLUMES)
        if names.STATIC_FINALIZER in body["metadata"]["finalizers"]
    }
    assert held == {"retained", "not-named"}
    assert metadata_of(cluster, "free")["finalizers"] == ["somebody/else"]


async def test_a_bound_volume_of_ours_is_kept_unless_its_class_was_named(cluster: MemoryCluster) -> None:
    body = our_body("Bound")
    cluster.put(VOLUMES, {**body, "spec": {**body["spec"], "claimRef": CLAIM, "storageClassName": "fast"}})
    claim = claim_body()
    cluster.put(CLAIMS, {**claim, "spec": {**claim["spec"], "volumeName": "pv"}})
    cluster.remove(NODES, "n1")
    async with working(cluster) as harness:
        await harness.pass_delay()
        await until(lambda: cluster.messages("ReferencedNodeDeleted"))
    assert not writes(cluster)
    async with working(cluster, classes=frozenset({"fast"})) as harness:
        await harness.pass_delay()
    assert writes(cluster) == [("delete", "persistentvolumeclaims", "data")]


async def test_never_means_never(local: MemoryCluster) -> None:
    local.put(VOLUMES, our_body(deletionTimestamp="now"))
    local.remove(NODES, "n1")
    async with working(local, delay=None) as harness:
        await harness.pass_delay()
        await until(lambda: local.messages("ReferencedNodeDeleted") and local.messages("NodeDeleted"))
    assert not writes(local)


async def test_the_label_follows_a_node_that_was_registered_under_another_name(cluster: MemoryCluster) -> None:
    cluster.put(VOLUMES, our_body("Bound"))
    async with working(cluster, classes=frozenset()) as harness:
        cluster.remove(NODES, "n1")
        cluster.put(NODES, node_body("renamed", "host-n1"))
        await harness.look()
        metadata = metadata_of(cluster)
        assert metadata["labels"][names.NODE_LABEL] == "renamed"
        assert metadata["finalizers"] == [names.FINALIZER]


async def test_what_is_refused_of_one_volume_keeps_no_other_from_its_renamed_node(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a policy of the cluster's, say. The daemon under the new name does not see those without the label."""
    patch = cluster.patch

    async def refuse(resource: Resource, name: str, *rest: Any, **more: Any) -> Json:
        if name == "pv":
            raise Forbidden(403, "Forbidden", "admission webhook denied the request")
        return await patch(resource, name, *rest, **more)

    monkeypatch.setattr(cluster, "patch", refuse)
    cluster.put(VOLUMES, our_body("Bound"))
    cluster.put(VOLUMES, our_body("Bound", name="second", uid="another"))
    async with working(cluster, classes=frozenset()) as harness:
        cluster.remove(NODES, "n1")
        cluster.put(NODES, node_body("renamed", "host-n1"))
        await harness.look()
        await until(lambda: metadata_of(cluster, "second")["labels"][names.NODE_LABEL] == "renamed")
        assert metadata_of(cluster)["labels"][names.NODE_LABEL] == "n1"


async def test_the_label_does_not_follow_when_two_nodes_have_the_hostname(cluster: MemoryCluster) -> None:
    cluster.put(VOLUMES, our_body("Bound"))
    cluster.remove(NODES, "n1")
    cluster.put(NODES, node_body("one", "host-n1"))
    cluster.put(NODES, node_body("two", "host-n1"))
    async with working(cluster, classes=frozenset()) as harness:
        await harness.look()
    assert not writes(cluster)
