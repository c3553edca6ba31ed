"""The VolumeSnapshotContents of a node, from the object to the logical copy and back, with the API server in this
process: no kubelet, no provisioner."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract import names, snapshot
from contract import volume as contract_volume
from contract.volume import CSI, NodeAssignment, PersistentVolume
from daemon.backends.loop import LoopBackend
from daemon.cluster.nodevolumes import NodeVolumes, volume_spec
from daemon.cluster.ownerlookup import ApiOwnerLookup
from daemon.cluster.snapshotcontroller import CREATION_FAILED, DELETE_FAILED, SnapshotController
from daemon.errors import NotAuthorized
from daemon.kubelet.poddevice import PodDevice
from daemon.storage.deletionguard import RemovalReason
from daemon.storage.record import VolumeState
from daemon.storage.volumes import Volumes
from host import devicecopy
from kube.client import Cluster
from kube.errors import NotFound
from kube.events import Recorder
from kube.informer import Informer
from kube.records import read_node
from kube.resources import EVENTS, NAMESPACES, NODES, SNAPSHOT_CONTENTS, SNAPSHOTS, VOLUMES
from tests.node.volume_node import MIB
from tests.sandbox.snapshots import install
from tests.unit.daemon.nodecluster import NODE, create_pv, serving
from tests.waiting import drained, until

Json = dict[str, Any]


class Harness:
    def __init__(self, cluster: Cluster, volumes: Volumes, controller: SnapshotController, events: Recorder) -> None:
        self.cluster = cluster
        self.volumes = volumes
        self.controller = controller
        self.events = events

    async def content(
        self, name: str, source: Json, *, policy: str = "Delete", namespace: str = "team", assigned: bool = True
    ) -> str:
        """The uid of a content as the snapshot controller and, if it is `assigned`, the provisioner leave it."""
        body = {
            "apiVersion": "snapshot.storage.k8s.io/v1",
            "kind": "VolumeSnapshotContent",
            "metadata": {
                "name": name,
                "labels": {names.NODE_LABEL: NODE} if assigned else {},
                "finalizers": [snapshot.FINALIZER],
            },
            "spec": {
                "driver": names.CSI_DRIVER,
                "deletionPolicy": policy,
                "source": source,
                "volumeSnapshotRef": {"namespace": namespace, "name": name, "uid": f"uid-of-{name}"},
                "volumeSnapshotClassName": "class",
            },
        }
        created = await self.cluster.create(SNAPSHOT_CONTENTS, body)
        return str(created["metadata"]["uid"])

    async def read(self, name: str) -> snapshot.SnapshotContent:
        content = snapshot.read(await self.cluster.get(SNAPSHOT_CONTENTS, name))
        assert content
        return content

    async def until_ready(self, name: str) -> snapshot.SnapshotContent:
        async def ready() -> bool:
            content = await self.read(name)
            return content.ready and not content.being_created

        await until(ready, what=f"{name} is ready")
        return await self.read(name)

    async def until_error(self, name: str) -> str:
        async def failed() -> str:
            return (await self.read(name)).error

        return str(await until(failed, what=f"{name} has an error"))

    async def delete(self, name: str) -> None:
        """What the snapshot controller does when the VolumeSnapshot goes."""
        body = {"metadata": {"annotations": {snapshot.BEING_DELETED: "yes"}}}
        await self.cluster.patch(SNAPSHOT_CONTENTS, name, body)
        await self.cluster.delete(SNAPSHOT_CONTENTS, name)

    async def until_gone(self, name: str) -> None:
        async def gone() -> bool:
            try:
                await self.read(name)
            except NotFound:
                return True
            return False

        await until(gone, what=f"{name} is gone")


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Harness]:
    async with serving(folder) as (cluster, _):
        await install(cluster)
        backend = LoopBackend(folder / "data", 512 * MIB)
        owner_lookup = ApiOwnerLookup(cluster)
        await owner_lookup.run()
        controllers: list[SnapshotController] = []
        volumes = Volumes(
            backend,
            folder / "staging",
            owner_lookup,
            may_clone=lambda one, source: controllers[0].may_clone(one, source),
        )
        await volumes.start()
        informer = Informer[PersistentVolume](
            cluster, VOLUMES, contract_volume.read, label_selector=f"{names.NODE_LABEL}={NODE}"
        )
        node, events = read_node(await cluster.get(NODES, NODE)), Recorder(cluster, "test", NODE)
        node_volumes = NodeVolumes(informer, node)
        controllers.append(
            SnapshotController(cluster, node, node_volumes, volumes, owner_lookup, backend.pool_of, events)
        )
        tasks = [asyncio.create_task(part.run()) for part in (informer, controllers[0])]
        await informer.wait_synced()
        try:
            yield Harness(cluster, volumes, controllers[0], events)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await volumes.close()


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    async with running(tmp_path) as it:
        yield it


async def made_volume(
    harness: Harness, name: str, namespace: str = "team", mode: str = "Filesystem"
) -> PersistentVolume:
    """A volume of this node for a claim of that namespace."""
    assignment = NodeAssignment(NODE, "host-1", LoopBackend.POOL)
    pv = await create_pv(harness.cluster, name, mi=16, assignment=assignment, source=CSI, mode=mode)
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": name, "uid": "c"}
    await harness.cluster.patch(VOLUMES, name, {"spec": {"claimRef": claim}})
    await harness.volumes.prepare(volume_spec(pv))
    return pv


async def test_a_snapshot_is_made_reported_and_removed(harness: Harness) -> None:
    await made_volume(harness, "pv")
    uid = await harness.content("one", {"volumeHandle": "pv"})
    content = await harness.until_ready("one")
    name = snapshot.volume_name(uid)
    assert content.handle == f"{NODE}/{name}"
    assert content.restore_size == 16 * MIB
    assert content.filesystem == "ext4"
    volume = harness.volumes.inventory.volume(name)
    assert volume
    assert (volume.record.uid, volume.record.content, volume.record.state) == (uid, "one", VolumeState.READY)
    assert harness.controller.has_content(volume.record)
    await harness.delete("one")
    await harness.until_gone("one")
    assert harness.volumes.inventory.volume(name) is None


async def test_nobody_gets_a_snapshot_of_another_namespace(harness: Harness) -> None:
    """Neither when it is taken, nor when a volume is restored from it."""
    await made_volume(harness, "pv", namespace="another")
    uid = await harness.content("one", {"volumeHandle": "pv"})
    assert "namespace team" in await harness.until_error("one")
    assert harness.volumes.inventory.volume(snapshot.volume_name(uid)) is None
    await harness.events.flush()
    assert [event["reason"] for event in await harness.cluster.list(EVENTS)] == [CREATION_FAILED]

    theirs = await harness.content("theirs", {"volumeHandle": "pv"}, namespace="another")
    await harness.until_ready("theirs")
    await made_volume(harness, "restored")
    assert not harness.controller.may_clone("restored", snapshot.volume_name(theirs))
    await made_volume(harness, "of-another", namespace="another")
    await until(lambda: harness.controller.may_clone("of-another", snapshot.volume_name(theirs)))


async def test_one_of_a_device_in_use_waits_for_its_pod_and_says_so(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file that is a device nothing below it can be held still. What failed is not tried again by itself here."""
    monkeypatch.setattr("kube.backoff.Backoff.delay", lambda self, failures: 3600.0)
    pv = await made_volume(harness, "pv", mode="Block")
    kubelet = tmp_path / "kubelet"
    path = kubelet / names.CSI_DEVICES / "pv" / "11111111-2222-3333-4444-555555555555"
    path.parent.mkdir(parents=True)
    device = PodDevice.parse(str(path), kubelet)
    device.make()
    await harness.volumes.mount(volume_spec(pv), device, False)
    await harness.content("one", {"volumeHandle": "pv"})
    error = await harness.until_error("one")
    assert "volume pv is in use, and a block device can't be held still" in error
    assert "stop the pods that use it until the snapshot is made" in error
    await harness.volumes.unmount(device)
    harness.controller.enqueue_of("another")
    harness.controller.enqueue_of("pv")
    content = await harness.until_ready("one")
    assert (content.error, content.filesystem) == ("", "raw")


async def test_a_retained_one_is_found_again_by_its_handle(harness: Harness) -> None:
    await made_volume(harness, "pv")
    uid = await harness.content("one", {"volumeHandle": "pv"}, policy="Retain")
    content = await harness.until_ready("one")

    await harness.content("thief", {"snapshotHandle": content.handle})
    assert "belongs to the VolumeSnapshotContent one" in await harness.until_error("thief")
    await harness.delete("thief")
    await harness.until_gone("thief")
    name = snapshot.volume_name(uid)
    assert harness.volumes.inventory.volume(name)

    await harness.delete("one")
    await harness.until_gone("one")
    volume = harness.volumes.inventory.volume(name)
    assert volume
    assert volume.record.policy == "Retain"
    found = await harness.content("found", {"snapshotHandle": content.handle})
    await harness.until_ready("found")
    volume = harness.volumes.inventory.volume(name)
    assert volume
    assert (volume.record.uid, volume.record.content, volume.record.policy) == (found, "found", "Delete")
    await harness.delete("found")
    await harness.until_gone("found")
    assert harness.volumes.inventory.volume(name) is None


@pytest.mark.parametrize("assigned", [True, False])
async def test_one_that_another_content_names_too_stays_when_its_own_is_deleted(
    harness: Harness, assigned: bool
) -> None:
    await made_volume(harness, "pv")
    name = snapshot.volume_name(await harness.content("one", {"volumeHandle": "pv"}))
    handle = (await harness.until_ready("one")).handle
    await harness.content("also", {"snapshotHandle": handle}, assigned=assigned)
    kept = await harness.content("keeper", {"snapshotHandle": handle}, policy="Retain", assigned=assigned)
    if assigned:
        assert "belongs to the VolumeSnapshotContent one" in await harness.until_error("keeper")
    await harness.delete("one")
    await harness.until_gone("one")
    volume = harness.volumes.inventory.volume(name)
    assert volume
    assert (volume.record.uid, volume.record.content, volume.record.policy) == (kept, "keeper", "Retain")
    await harness.cluster.patch(SNAPSHOT_CONTENTS, "keeper", {"metadata": {"labels": {names.NODE_LABEL: NODE}}})
    await harness.until_ready("keeper")

    await harness.cluster.patch(SNAPSHOT_CONTENTS, "keeper", {"spec": {"deletionPolicy": "Delete"}})
    await harness.delete("also")
    if assigned:
        await harness.until_gone("also")
        await harness.delete("keeper")
        await harness.until_gone("keeper")
        assert harness.volumes.inventory.volume(name) is None


async def test_one_whose_content_was_torn_off_is_kept_for_the_one_that_names_it(harness: Harness) -> None:
    """Somebody removed the finalizer, and its record says Delete. The provisioner has not seen the new one yet."""
    await made_volume(harness, "pv")
    uid = await harness.content("one", {"volumeHandle": "pv"})
    handle = (await harness.until_ready("one")).handle
    await harness.cluster.patch(SNAPSHOT_CONTENTS, "one", {"metadata": {"finalizers": None}})
    await harness.cluster.delete(SNAPSHOT_CONTENTS, "one")
    found = await harness.content("found", {"snapshotHandle": handle}, assigned=False)
    name = snapshot.volume_name(uid)
    with pytest.raises(NotAuthorized, match=f"there is a VolumeSnapshotContent of its name .uid {found}"):
        await harness.volumes.reclaim(name, uid, LoopBackend.POOL, RemovalReason.ORPHANED)
    await harness.cluster.patch(SNAPSHOT_CONTENTS, "found", {"metadata": {"labels": {names.NODE_LABEL: NODE}}})
    await harness.until_ready("found")
    volume = harness.volumes.inventory.volume(name)
    assert volume
    assert (volume.record.uid, volume.record.content) == (found, "found")


async def test_one_that_another_content_had_is_its_own_again(harness: Harness) -> None:
    """The API server went back to before it was deleted, and before another one was made that found it."""
    await made_volume(harness, "pv")
    uid = await harness.content("one", {"volumeHandle": "pv"}, policy="Retain")
    await harness.until_ready("one")
    name = snapshot.volume_name(uid)
    volume = harness.volumes.inventory.volume(name)
    assert volume
    found = replace(volume.record, uid="uid-of-found", content="found", policy="Delete")
    await harness.volumes.transfer(name, uid, found)
    with pytest.raises(NotAuthorized, match=f"there is a VolumeSnapshotContent of its name .uid {uid}"):
        await harness.volumes.reclaim(name, "uid-of-found", LoopBackend.POOL, RemovalReason.ORPHANED)
    harness.controller.enqueue(name)

    def its_own() -> bool:
        volume = harness.volumes.inventory.volume(name)
        assert volume
        return (volume.record.uid, volume.record.content, volume.record.policy) == (uid, "one", "Retain")

    await until(its_own, what="the record names it again")
    await harness.until_ready("one")


@pytest.mark.parametrize("policy", ["Delete", "Retain"])
@pytest.mark.parametrize("there", [False, True], ids=["and that is gone", "and that is there"])
@pytest.mark.parametrize("found", [False, True], ids=["made", "found"])
async def test_one_that_another_content_had_and_whose_own_is_deleted_before_it_is_its_own_again(
    harness: Harness, found: bool, there: bool, policy: str
) -> None:
    """As above, and it is deleted before this node has noticed: its policy counts, unless the other one is there."""
    await made_volume(harness, "pv")
    uid = await harness.content("one", {"volumeHandle": "pv"}, policy="Retain" if found else policy)
    name, handle = snapshot.volume_name(uid), (await harness.until_ready("one")).handle
    if found:
        await harness.delete("one")
        await harness.until_gone("one")
        uid = await harness.content("one", {"snapshotHandle": handle}, policy=policy)
        await harness.until_ready("one")
    next_one = await harness.content("next", {"snapshotHandle": handle}, assigned=False) if there else "uid-of-next"
    let_go = {"metadata": {"annotations": {snapshot.BEING_DELETED: "yes"}}}
    await harness.cluster.patch(SNAPSHOT_CONTENTS, "one", let_go)
    await drained(harness.controller._queue)
    volume = harness.volumes.inventory.volume(name)
    assert volume
    others = replace(volume.record, uid=next_one, content="next", policy="Delete")
    await harness.volumes.transfer(name, uid, others)
    await harness.cluster.delete(SNAPSHOT_CONTENTS, "one")
    await harness.until_gone("one")
    left = harness.volumes.inventory.volume(name)
    record = left.record if left else None
    if there:
        assert record == others
    elif policy == "Retain":
        assert record == replace(others, uid=uid, content="one", policy="Retain")
    else:
        assert record is None
    await harness.events.flush()
    assert not [event for event in await harness.cluster.list(EVENTS) if event["reason"] == DELETE_FAILED]


async def test_one_that_a_volumesnapshot_has_stays_though_its_content_is_deleted(harness: Harness) -> None:
    """The content was another's, which was deleted, and given to this one. Whoever deletes it gives up no data."""
    await made_volume(harness, "pv")
    uid = await harness.content("one", {"volumeHandle": "pv"})
    await harness.until_ready("one")
    body = {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {"name": "one", "namespace": "team"},
        "spec": {"source": {"volumeSnapshotContentName": "one"}},
    }
    await harness.cluster.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}})
    bound_to = (await harness.cluster.create(SNAPSHOTS, body))["metadata"]["uid"]
    given = {"spec": {"volumeSnapshotRef": {"uid": bound_to}}}
    await harness.cluster.patch(SNAPSHOT_CONTENTS, "one", given)
    await harness.delete("one")

    async def held() -> bool:
        await harness.events.flush()
        return any(
            "VolumeSnapshot team/one has it: if its data is to go, delete that" in event["message"]
            for event in await harness.cluster.list(EVENTS)
        )

    await until(held, what="an event says who has it")
    name = snapshot.volume_name(uid)
    assert harness.volumes.inventory.volume(name)
    await harness.cluster.delete(SNAPSHOTS, "one", "team")
    harness.controller.enqueue(name)
    await harness.until_gone("one")
    assert harness.volumes.inventory.volume(name) is None


async def test_one_that_is_lost_is_not_made_anew(harness: Harness, tmp_path: Path) -> None:
    """The volume holds something else by now. What went wrong is said in the status, which is not ready any more."""
    await made_volume(harness, "pv")
    uid = await harness.content("one", {"volumeHandle": "pv"})
    content = await harness.until_ready("one")
    name = snapshot.volume_name(uid)
    for file in (tmp_path / "data").glob(f"{name}.*"):
        file.unlink()
    await harness.volumes.refresh()
    harness.controller.enqueue(name)
    assert "was made on this node and is not there any more" in await harness.until_error("one")
    for _ in range(2):
        harness.controller.enqueue(name)
        await drained(harness.controller._queue)
        lost = await harness.read("one")
        assert harness.volumes.inventory.volume(name) is None
        assert (lost.handle, lost.ready) == (content.handle, False)


async def test_what_it_holds_and_where_is_noted_again(harness: Harness) -> None:
    """Somebody's tool took the annotations off: nothing can be restored without them."""
    await made_volume(harness, "pv")
    await harness.content("one", {"volumeHandle": "pv"})
    noted = await harness.until_ready("one")
    lost = {names.POOL_ANNOTATION: None, snapshot.FILESYSTEM_ANNOTATION: None}
    await harness.cluster.patch(SNAPSHOT_CONTENTS, "one", {"metadata": {"annotations": lost}})

    async def again() -> bool:
        content = await harness.until_ready("one")
        return (content.pool, content.filesystem) == (noted.pool, noted.filesystem) == (LoopBackend.POOL, "ext4")

    await until(again, what="the annotations are there again")


async def test_one_whose_pool_nobody_noted_stays_until_somebody_does(harness: Harness, tmp_path: Path) -> None:
    """It can't be seen, and its object has lost the annotation: whoever deleted it reads what to do."""
    await made_volume(harness, "pv")
    uid = await harness.content("one", {"volumeHandle": "pv"})
    await harness.until_ready("one")
    name = snapshot.volume_name(uid)
    for file in (tmp_path / "data").glob(f"{name}.*"):
        file.unlink()
    await harness.volumes.refresh()
    await harness.cluster.patch(SNAPSHOT_CONTENTS, "one", {"metadata": {"annotations": {names.POOL_ANNOTATION: None}}})
    await harness.until_error("one")
    await harness.delete("one")

    async def told() -> str:
        await harness.events.flush()
        events = [event for event in await harness.cluster.list(EVENTS) if event["reason"] == DELETE_FAILED]
        return events[0]["message"] if events else ""

    assert await until(told, what="an event says what is missing") == (
        f"volume {name} is not to be seen on this node now, and so not gone: nothing says which pool it is in: write "
        f"that into the annotation {names.POOL_ANNOTATION} of its object (this node shows {LoopBackend.POOL} now); if "
        f"its data is gone for good, take the finalizer {snapshot.FINALIZER} off this VolumeSnapshotContent"
    )
    await harness.cluster.patch(
        SNAPSHOT_CONTENTS, "one", {"metadata": {"annotations": {names.POOL_ANNOTATION: LoopBackend.POOL}}}
    )
    await harness.until_gone("one")


async def test_one_that_is_to_be_retained_is_so_though_it_could_not_be_seen(harness: Harness, tmp_path: Path) -> None:
    """It was handed over under policy Delete, which its record says still, and was not ready for a while."""
    await made_volume(harness, "pv")
    uid = await harness.content("one", {"volumeHandle": "pv"}, policy="Retain")
    handle = (await harness.until_ready("one")).handle
    await harness.delete("one")
    await harness.until_gone("one")
    name = snapshot.volume_name(uid)
    await harness.content("found", {"snapshotHandle": handle})
    await harness.until_ready("found")
    data, away = tmp_path / "data", tmp_path / "away"
    data.rename(away)
    await harness.volumes.refresh()
    await harness.cluster.patch(SNAPSHOT_CONTENTS, "found", {"spec": {"deletionPolicy": "Retain"}})
    await harness.until_error("found")
    await harness.delete("found")

    told = f"deletionPolicy to Delete, or take the finalizer {snapshot.FINALIZER} off this VolumeSnapshotContent"

    async def held() -> bool:
        await harness.events.flush()
        return any(
            "is to be retained" in event["message"] and told in event["message"]
            for event in await harness.cluster.list(EVENTS)
        )

    await until(held, what="an event says that it can't be noted")
    away.rename(data)
    await harness.volumes.refresh()
    harness.controller.enqueue(name)
    await harness.until_gone("found")
    volume = harness.volumes.inventory.volume(name)
    assert volume
    assert volume.record.policy == "Retain"


async def test_of_one_that_was_never_whole_nothing_is_retained(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that fails leaves what is copied anew. When it is given up, that goes as an orphan does."""
    await made_volume(harness, "pv")

    async def fail(*arguments: Any, **keywords: Any) -> None:
        raise OSError("the disk is broken")

    monkeypatch.setattr(devicecopy, "copy", fail)
    name = snapshot.volume_name(await harness.content("one", {"volumeHandle": "pv"}, policy="Retain"))
    assert "the disk is broken" in await harness.until_error("one")
    begun = harness.volumes.inventory.volume(name)
    assert begun
    assert begun.record.state is VolumeState.COPYING
    await harness.delete("one")
    await harness.until_gone("one")
    left = harness.volumes.inventory.volume(name)
    assert left
    assert left.record.policy == "Delete"
    await harness.volumes.reclaim(name, left.record.uid, LoopBackend.POOL, RemovalReason.ORPHANED)


@pytest.mark.parametrize("policy", ["Delete", "Retain"])
async def test_one_that_was_never_begun_goes_with_its_content(harness: Harness, policy: str) -> None:
    """Nothing says in which pool it would be. Its source is no volume of this node, or it is deleted at once."""
    await harness.content("one", {"volumeHandle": "elsewhere"}, policy=policy)
    assert "is not (any more) on node" in await harness.until_error("one")
    await harness.delete("one")
    await harness.until_gone("one")


async def test_what_is_not_there_is_said(harness: Harness) -> None:
    await harness.content("one", {"snapshotHandle": f"{NODE}/snap_nothing"})
    assert "correct snapshotHandle" in await harness.until_error("one")
    await made_volume(harness, "pv")
    await harness.content("two", {"snapshotHandle": f"{NODE}/pv"})
    assert await harness.until_error("two")
    await harness.delete("two")
    await harness.until_gone("two")
    assert harness.volumes.inventory.volume("pv")


async def test_one_that_is_still_to_be_restored_stays_until_that_is_done(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claim is bound by then, and nobody else keeps it. A volume of another namespace holds up nothing."""
    monkeypatch.setattr("daemon.cluster.snapshotcontroller._RESTORING_SECONDS", 0.05)
    await made_volume(harness, "pv")
    uid = await harness.content("one", {"volumeHandle": "pv"})
    await harness.until_ready("one")
    name = snapshot.volume_name(uid)
    for restored, namespace in (("restored", "team"), ("stranger", "another")):
        assignment = NodeAssignment(NODE, "host-1", LoopBackend.POOL)
        copied = {"cloneOf": name, "cloneOfUid": uid}
        await create_pv(harness.cluster, restored, mi=16, assignment=assignment, **copied)
        claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": "c", "uid": "c"}
        await harness.cluster.patch(VOLUMES, restored, {"spec": {"claimRef": claim}})
    await harness.delete("one")

    async def held() -> bool:
        await harness.events.flush()
        return any(
            "volume restored is to be restored" in event["message"] for event in await harness.cluster.list(EVENTS)
        )

    await until(held, what="an event says what it waits for")
    assert harness.volumes.inventory.volume(name)
    made = {"metadata": {"annotations": {names.MADE_ANNOTATION: "true"}}}
    await harness.cluster.patch(VOLUMES, "restored", made)
    await harness.until_gone("one")
    assert harness.volumes.inventory.volume(name) is None
