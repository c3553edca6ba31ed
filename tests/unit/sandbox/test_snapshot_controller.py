"""The sandbox's stand-in of the common snapshot controller, in this process: what it makes of VolumeSnapshots, and its
words for those that it can't serve. The test plays the driver."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from contract import names
from contract.snapshot import BEING_DELETED, FINALIZER
from kube.errors import Json
from kube.events import Recorder
from kube.resources import CLAIMS, SNAPSHOT_CLASSES, SNAPSHOT_CONTENTS, SNAPSHOTS, VOLUMES
from tests.memorycluster import MemoryCluster
from tests.sandbox import snapshots
from tests.sandbox.controlplane.caches import Caches
from tests.sandbox.controlplane.snapshots import AS_SOURCE, BOUND_PROTECTION, OF_CLAIM, SnapshotController
from tests.waiting import until

NAMESPACE = "default"


@pytest.fixture
async def cluster() -> AsyncIterator[MemoryCluster]:
    """With a CSI volume, bound to the claim `data`, and a FlexVolume bound to `flex`."""
    made = MemoryCluster()
    await snapshots.install(made)
    for policy in ("Delete", "Retain"):
        await made.create(SNAPSHOT_CLASSES, snapshots.snapshot_class(policy.lower(), policy))
    sources: dict[str, Json] = {
        "data": {"csi": {"driver": names.CSI_DRIVER, "volumeHandle": "pv-data"}},
        "flex": {"flexVolume": {"driver": names.DRIVER}},
    }
    for name, source in sources.items():
        claim = _claim(name, "Bound", volumeName=f"pv-{name}")
        uid = made.put(CLAIMS, claim)["metadata"]["uid"]
        spec = {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "claimRef": {"namespace": NAMESPACE, "name": name, "uid": uid},
            **source,
        }
        made.put(VOLUMES, {"metadata": {"name": f"pv-{name}"}, "spec": spec, "status": {"phase": "Bound"}})
    caches, recorder = Caches(made), Recorder(made, "snapshot-controller")
    parts = [*(informer.run() for informer in caches.all), recorder.run()]
    parts.append(SnapshotController(made, caches, recorder).run())
    tasks = [asyncio.create_task(part) for part in parts]
    await caches.wait_synced()
    yield made
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def _claim(name: str, phase: str, **spec: Any) -> Json:
    whole = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, **spec}
    return {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": whole, "status": {"phase": phase}}


def of(cluster: MemoryCluster, name: str) -> Json:
    body = cluster.stored(SNAPSHOTS, name, NAMESPACE)
    assert body, name
    return body


def finalizers(body: Json | None) -> list[str]:
    return list(body["metadata"].get("finalizers") or []) if body else []


async def content_of(cluster: MemoryCluster, name: str) -> str:
    """Name of the content that the snapshot is bound to."""
    bound = await until(lambda: (of(cluster, name).get("status") or {}).get("boundVolumeSnapshotContentName"))
    await until(lambda: FINALIZER in finalizers(cluster.stored(SNAPSHOT_CONTENTS, bound)))
    return str(bound)


async def report(cluster: MemoryCluster, content: str) -> None:
    """What a driver does."""
    status = {"snapshotHandle": "h", "creationTime": 1700000000 * 10**9, "restoreSize": 1 << 30, "readyToUse": True}
    await cluster.patch(SNAPSHOT_CONTENTS, content, {"status": status}, None, "status")


def error(cluster: MemoryCluster, name: str) -> str:
    return str(((of(cluster, name).get("status") or {}).get("error") or {}).get("message", ""))


async def test_a_content_is_made_bound_and_its_status_copied(cluster: MemoryCluster) -> None:
    made = await cluster.create(SNAPSHOTS, snapshots.snapshot("s", "data", "delete"), NAMESPACE)
    name = await content_of(cluster, "s")
    assert name == f"snapcontent-{made['metadata']['uid']}"
    content = cluster.stored(SNAPSHOT_CONTENTS, name)
    assert content
    assert content["spec"]["source"] == {"volumeHandle": "pv-data"}
    assert (content["spec"]["deletionPolicy"], content["spec"]["driver"]) == ("Delete", names.CSI_DRIVER)
    assert OF_CLAIM in finalizers(cluster.stored(CLAIMS, "data", NAMESPACE))
    await until(lambda: set(finalizers(of(cluster, "s"))) == {AS_SOURCE, BOUND_PROTECTION})
    failed = {"status": {"error": {"message": "no space"}, "readyToUse": False}}
    await cluster.patch(SNAPSHOT_CONTENTS, name, failed, None, "status")
    await until(lambda: error(cluster, "s") == "no space")
    await cluster.patch(SNAPSHOT_CONTENTS, name, {"status": {"error": None}}, None, "status")
    await report(cluster, name)
    await until(lambda: of(cluster, "s")["status"]["readyToUse"])
    status = of(cluster, "s")["status"]
    assert (status["restoreSize"], status["creationTime"]) == ("1Gi", "2023-11-14T22:13:20Z")
    assert not error(cluster, "s")
    await until(lambda: OF_CLAIM not in finalizers(cluster.stored(CLAIMS, "data", NAMESPACE)))
    assert cluster.messages("SnapshotReady") == ["Snapshot default/s is ready to use."]


@pytest.mark.parametrize("policy", ["delete", "retain"])
async def test_a_deleted_one_takes_its_content_along_or_leaves_it(cluster: MemoryCluster, policy: str) -> None:
    await cluster.create(SNAPSHOTS, snapshots.snapshot("s", "data", policy), NAMESPACE)
    name = await content_of(cluster, "s")
    await report(cluster, name)
    await until(lambda: of(cluster, "s")["status"]["readyToUse"])
    restoring = {"dataSource": {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"}}
    cluster.put(CLAIMS, _claim("copy", "Pending", **restoring))
    await cluster.delete(SNAPSHOTS, "s", NAMESPACE)
    await until(lambda: cluster.messages("SnapshotDeletePending"))
    assert "deletionTimestamp" not in (cluster.stored(SNAPSHOT_CONTENTS, name) or {})["metadata"]
    cluster.put(CLAIMS, _claim("copy", "Bound", **restoring))
    if policy == "retain":
        await until(lambda: cluster.stored(SNAPSHOTS, "s", NAMESPACE) is None)
        kept = cluster.stored(SNAPSHOT_CONTENTS, name)
        assert kept
        assert kept["metadata"]["annotations"][BEING_DELETED] == "yes"
        assert "deletionTimestamp" not in kept["metadata"]
        return
    await until(lambda: "deletionTimestamp" in (cluster.stored(SNAPSHOT_CONTENTS, name) or {})["metadata"])
    assert finalizers(of(cluster, "s")) == [BOUND_PROTECTION]
    await cluster.patch(SNAPSHOT_CONTENTS, name, {"metadata": {"finalizers": None}})  # the driver removed it
    await until(lambda: cluster.stored(SNAPSHOTS, "s", NAMESPACE) is None)


async def test_a_content_that_is_there_is_bound_to_the_snapshot_that_it_names(cluster: MemoryCluster) -> None:
    await cluster.create(SNAPSHOTS, snapshots.snapshot("s", "", "delete", content="given"), NAMESPACE)
    await until(lambda: error(cluster, "s"))
    await cluster.create(SNAPSHOT_CONTENTS, snapshots.content("given", NAMESPACE, "s", snapshotHandle="h"))
    assert await content_of(cluster, "s") == "given"
    bound = cluster.stored(SNAPSHOT_CONTENTS, "given")
    assert bound
    assert bound["spec"]["volumeSnapshotRef"]["uid"] == of(cluster, "s")["metadata"]["uid"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (snapshots.snapshot("s", "flex", "delete"), "cannot find CSI PersistentVolumeSource for volume pv-flex"),
        (snapshots.snapshot("s", "nothing", "delete"), "cannot get claim from snapshot"),
        (snapshots.snapshot("s", "data", "nothing"), 'snapshot.storage.k8s.io "nothing" not found'),
        (snapshots.snapshot("s", "", "delete", content="nothing"), "VolumeSnapshotContent is missing"),
        (snapshots.snapshot("s", "", "delete", content="of-another"), "[of-another] is bound to a different snapshot"),
        (
            snapshots.snapshot("s", "", "delete", content="dynamic"),
            "is dynamically provisioned while expecting a pre-provisioned one",
        ),
    ],
)
async def test_one_that_can_not_be_served_says_why(cluster: MemoryCluster, body: Json, message: str) -> None:
    await cluster.create(SNAPSHOT_CONTENTS, snapshots.content("of-another", "others", "s", snapshotHandle="h"))
    await cluster.create(SNAPSHOT_CONTENTS, snapshots.content("dynamic", NAMESPACE, "s", volumeHandle="pv-data"))
    await cluster.create(SNAPSHOTS, body, NAMESPACE)
    await until(lambda: message in error(cluster, "s"))
