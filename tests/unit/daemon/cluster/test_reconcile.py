"""What is planned for a PersistentVolume, and the order in which it is given back."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract import names
from contract.volume import DELETE, PV_PROTECTION, RETAIN, NodeAssignment, PersistentVolume
from daemon.cluster.nodevolumes import WrongOptions, volume_spec
from daemon.cluster.reconcile import DELETE_FAILED, GROWTH_FAILED, PREPARATION_FAILED, Action, plan
from daemon.errors import InUse, Lost
from daemon.storage.inventory import Volume
from daemon.storage.record import Record, VolumeState
from kube.backoff import Backoff
from kube.resources import CAPACITIES, CLAIMS, VOLUMES
from tests.unit.daemon.cluster.pv import pv
from tests.unit.daemon.nodecluster import (
    ASSIGNMENT,
    CAPACITY,
    MI,
    NAMESPACE,
    NODE,
    NodeParts,
    create_pv,
    kind,
    node_parts,
    read_pv,
    release_from_claim,
)
from tests.waiting import drained, until

PV = pv("a", 100)
GONE = replace(PV, deleting=True, phase="Released")
MADE = Volume(Record("a", PV.uid, DELETE, "ext4", VolumeState.READY), 100, "vg")


def recorded(**changes: object) -> Volume:
    return replace(MADE, record=replace(MADE.record, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("persistent_volume", "volume", "action"),
    [
        (PV, None, Action.PREPARE),
        (replace(PV, phase="Available"), None, Action.PREPARE),
        (replace(PV, made=True), MADE, Action.LEAVE),
        (replace(PV, made=True, granted=120), MADE, Action.PREPARE),
        (replace(PV, made=True, size=5000, options={"size": "100"}), MADE, Action.LEAVE),
        (replace(PV, made=True, options={"size": "100"}, actual=100), replace(MADE, size=120), Action.PREPARE),
        (replace(PV, made=True, options={"size": "100"}, actual=120), replace(MADE, size=120), Action.LEAVE),
        (PV, MADE, Action.PREPARE),
        (PV, recorded(state=VolumeState.FORMATTING), Action.PREPARE),
        (PV, recorded(policy=RETAIN), Action.PREPARE),
        (PV, recorded(uid="an-earlier-one"), Action.PREPARE),
        (replace(PV, phase="Released"), None, Action.LEAVE),
        (replace(PV, phase="Failed"), None, Action.LEAVE),
        (replace(PV, phase="Released", reclaim_policy=RETAIN), MADE, Action.PREPARE),
        (replace(PV, deleting=True), MADE, Action.LEAVE),
        (replace(PV, deleting=True), None, Action.LEAVE),
        (replace(GONE, finalizers=(names.FINALIZER, PV_PROTECTION)), MADE, Action.LEAVE),
        (GONE, MADE, Action.RECLAIM),
        (GONE, None, Action.RECLAIM),
        (replace(GONE, phase="Pending"), None, Action.RECLAIM),
        (replace(GONE, reclaim_policy=RETAIN), MADE, Action.RETAIN),
        (replace(GONE, reclaim_policy="Recycle"), MADE, Action.RETAIN),
    ],
)
def test_plan(persistent_volume: PersistentVolume, volume: Volume | None, action: Action) -> None:
    assert plan(persistent_volume, volume, "") is action
    marked = volume and replace(volume, record=replace(volume.record, cluster="here"))
    assert plan(persistent_volume, marked, "here") is action


ENCRYPTED = replace(PV, source="csi", options={"encryption": "luks2"})


@pytest.mark.parametrize(
    ("persistent_volume", "volume", "action"),
    [
        (ENCRYPTED, None, Action.LEAVE),
        (ENCRYPTED, recorded(state=VolumeState.FORMATTING), Action.LEAVE),
        (ENCRYPTED, MADE, Action.PREPARE),
        (replace(ENCRYPTED, made=True, granted=120), MADE, Action.PREPARE),
        (replace(ENCRYPTED, made=True), None, Action.PREPARE),
        (replace(ENCRYPTED, options={**ENCRYPTED.options, "cloneOf": "b"}), None, Action.PREPARE),
    ],
)
def test_an_encrypted_volume_is_made_by_who_has_its_passphrase(
    persistent_volume: PersistentVolume, volume: Volume | None, action: Action
) -> None:
    """That it is there, or lost, and how large it is, takes none; nor does a copy."""
    assert plan(persistent_volume, volume, "") is action


def test_a_volume_that_does_not_say_of_which_cluster_it_is_is_marked() -> None:
    assert plan(replace(PV, made=True), MADE, "") is Action.LEAVE
    assert plan(replace(PV, made=True), MADE, "here") is Action.PREPARE


def test_options_that_cannot_be_served_say_what_to_do() -> None:
    with pytest.raises(WrongOptions, match="correct the StorageClass"):
        volume_spec(replace(PV, filesystem="ntfs"))


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeParts]:
    async with node_parts(tmp_path) as it:
        yield it


async def allocatable(node: NodeParts) -> int:
    (body,) = await node.cluster.list(CAPACITIES, NAMESPACE)
    return int(body["metadata"]["annotations"][names.ALLOCATABLE_ANNOTATION])


async def grant(node: NodeParts, name: str, mi: int) -> None:
    patch = {"metadata": {"annotations": {names.GRANTED_ANNOTATION: str(mi * MI)}}}
    await node.cluster.patch(VOLUMES, name, patch)


async def test_a_volume_grows_to_what_it_is_granted_and_says_so(node: NodeParts) -> None:
    async def says(mi: int) -> bool:
        pv = await read_pv(node.cluster, "pv")
        return pv is not None and pv.actual == mi * MI

    await create_pv(node.cluster, "pv", mi=10, size=str(10 * MI))
    await until(lambda: says(10))
    await node.cluster.patch(VOLUMES, "pv", {"spec": {"capacity": {"storage": "5000Mi"}}})
    await grant(node, "pv", 30)
    await until(lambda: says(30))
    await until(lambda: available(node, 70))
    assert [volume.size for volume in node.volumes.inventory.volumes] == [30 * MI]


async def available(node: NodeParts, mi: int) -> bool:
    (body,) = await node.cluster.list(CAPACITIES, NAMESPACE)
    return bool(body["capacity"] == f"{mi}Mi")


async def test_a_grant_that_the_node_has_no_room_for_is_reported_and_given_later(node: NodeParts) -> None:
    """Others may take room that is not theirs."""
    await create_pv(node.cluster, "other", mi=80)
    await create_pv(node.cluster, "pv", mi=10)
    await until(lambda: node.volume_names() == {"pv", "other"})
    await grant(node, "pv", 30)
    await until(lambda: reported(node))
    assert {name for name, reason, _ in await node.warnings() if reason == GROWTH_FAILED} == {"pv"}
    await release_from_claim(node.cluster, "other")

    async def says() -> bool:
        pv = await read_pv(node.cluster, "pv")
        return pv is not None and pv.actual == 30 * MI

    await until(says)


async def reported(node: NodeParts) -> bool:
    return any(
        "needs 20Mi of folder on this node, which has 10Mi left" in words for _, _, words in await node.warnings()
    )


async def test_a_volume_is_made_ahead_of_its_mount_and_removed_with_its_space(node: NodeParts) -> None:
    await create_pv(node.cluster, "pv")
    await until(lambda: node.volume_names() == {"pv"})
    await release_from_claim(node.cluster, "pv")
    await until(lambda: not node.volume_names())
    await until(lambda: not node.node_volumes.all())
    assert await read_pv(node.cluster, "pv") is None
    assert not list(node.data.glob("pv.*"))


async def test_a_volume_whose_claim_lives_is_not_removed_whatever_its_phase_says(node: NodeParts) -> None:
    """It was given to that claim a moment ago, and somebody deletes all that is called Released."""
    claim = {**kind("PersistentVolumeClaim"), "metadata": {"name": "next", "namespace": "default"}}
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Mi"}}}
    uid = (await node.cluster.create(CLAIMS, {**claim, "spec": spec}))["metadata"]["uid"]
    await create_pv(node.cluster, "pv")
    await until(lambda: node.volume_names() == {"pv"})
    reference = {**kind("PersistentVolumeClaim"), "namespace": "default", "name": "next", "uid": uid}
    await node.cluster.patch(VOLUMES, "pv", {"spec": {"claimRef": reference}})
    await release_from_claim(node.cluster, "pv")
    await until(lambda: _warned(node, DELETE_FAILED, "claim default/next has it: if its data is to go, delete that"))
    assert node.volume_names() == {"pv"}
    await node.cluster.delete(CLAIMS, "next", "default")
    await node.cluster.patch(CLAIMS, "next", {"metadata": {"finalizers": None}}, "default")
    node.reconciler.enqueue("pv")
    await until(lambda: not node.volume_names())


async def test_a_volume_stays_until_those_are_made_that_are_to_be_its_copies(node: NodeParts) -> None:
    """Their claims are bound by then, so who waits for that may delete the source. (Folders can't be copied.) A volume
    of another namespace holds up nothing."""

    async def claimed(name: str, namespace: str, **options: Any) -> PersistentVolume:
        pv = await create_pv(node.cluster, name, **options)
        reference = {**kind("PersistentVolumeClaim"), "namespace": namespace, "name": name, "uid": f"uid-of-{name}"}
        await node.cluster.patch(VOLUMES, name, {"spec": {"claimRef": reference}})
        return pv

    source = await claimed("source", "team")
    await until(lambda: node.volume_names() == {"source"})
    await claimed("copy", "team", cloneOf="source", cloneOfUid=source.uid)
    await claimed("strange", "another", cloneOf="source", cloneOfUid=source.uid)
    await release_from_claim(node.cluster, "source")
    await until(lambda: _warned(node, DELETE_FAILED, "volume copy of claim team/copy is to be a copy of it"))
    assert node.volume_names() == {"source"}
    await release_from_claim(node.cluster, "copy")
    await until(lambda: not node.volume_names())


async def test_what_was_made_once_and_is_lost_is_not_made_anew(node: NodeParts) -> None:
    made = await create_pv(node.cluster, "pv")
    await until(lambda: node.volume_names() == {"pv"})

    async def says_so() -> bool:
        pv = await read_pv(node.cluster, "pv")
        return pv is not None and pv.made

    await until(says_so)
    lost = replace(made, name="lost", made=True)
    with pytest.raises(Lost):
        await node.volumes.prepare(volume_spec(lost))
    assert node.volume_names() == {"pv"}


async def test_a_retained_volumes_capacity_is_published_before_its_finalizer_goes(node: NodeParts) -> None:
    await create_pv(node.cluster, "pv", mi=10, policy=RETAIN)
    await until(lambda: node.volume_names() == {"pv"})
    assert await allocatable(node) == CAPACITY
    events = node.cluster.watch(VOLUMES, resource_version="0")
    deleted = asyncio.create_task(_allocatable_when_deleted(node, events))
    await release_from_claim(node.cluster, "pv")
    assert await deleted == CAPACITY - 10 * MI
    assert node.volume_names() == {"pv"}


async def _allocatable_when_deleted(node: NodeParts, events: AsyncIterator[tuple[str, object]]) -> int:
    async with asyncio.timeout(10):
        async for kind, _ in events:
            if kind == "DELETED":
                return await allocatable(node)
    raise AssertionError("the watch ended")


async def test_a_changed_policy_goes_into_the_record(node: NodeParts) -> None:
    await create_pv(node.cluster, "pv")
    await until(lambda: node.volume_names() == {"pv"})
    await node.cluster.patch(VOLUMES, "pv", {"spec": {"persistentVolumeReclaimPolicy": RETAIN}})
    await until(lambda: [volume.record.policy for volume in node.volumes.inventory.volumes] == [RETAIN])


async def test_an_unseen_retained_volume_keeps_its_finalizer_until_recorded(node: NodeParts) -> None:
    """Its disk is away. When it came back without having heard of Retain, it would be an orphan of policy Delete."""
    await create_pv(node.cluster, "pv")
    await until(lambda: node.volume_names() == {"pv"})
    await until(lambda: _says_made(node, "pv"))
    away = node.data.rename(f"{node.data}.away")
    await node.volumes.refresh()
    assert not node.volume_names()
    await node.cluster.patch(VOLUMES, "pv", {"spec": {"persistentVolumeReclaimPolicy": RETAIN}})
    await release_from_claim(node.cluster, "pv")
    await until(lambda: _warned(node, "VolumeFailedDelete", "to be retained, and is not to be seen in folder"))
    node.data.mkdir()  # as a daemon does that finds no folder of its own
    node.reconciler.enqueue("pv")
    await until(lambda: _warned(node, "VolumeFailedDelete", "bring back the disk that it lies on"))
    pv = await read_pv(node.cluster, "pv")
    assert pv
    assert names.FINALIZER in pv.finalizers

    node.data.rmdir()
    away.rename(node.data)
    node.reconciler.enqueue("pv")
    await until(lambda: not node.node_volumes.all())
    await node.volumes.refresh()
    assert [volume.record.policy for volume in node.volumes.inventory.volumes] == [RETAIN]


async def test_what_is_to_be_retained_and_was_never_made_is_let_go(node: NodeParts) -> None:
    await create_pv(node.cluster, "pv", mi=CAPACITY // MI + 1, policy=RETAIN)
    await until(lambda: _warned(node, PREPARATION_FAILED, "pv"))
    await release_from_claim(node.cluster, "pv")
    await until(lambda: not node.node_volumes.all())


async def _says_made(node: NodeParts, name: str) -> bool:
    pv = await read_pv(node.cluster, name)
    return pv is not None and pv.made


async def _warned(node: NodeParts, reason: str, words: str) -> bool:
    return any(reason == reported and words in message for _, reported, message in await node.warnings())


async def test_what_cannot_be_made_is_reported_and_made_when_there_is_room(node: NodeParts) -> None:
    await create_pv(node.cluster, "large", mi=80)
    await until(lambda: node.volume_names() == {"large"})
    await create_pv(node.cluster, "second", mi=50)

    async def reported() -> bool:
        return any(
            (name, reason) == ("second", PREPARATION_FAILED) and "20Mi" in message
            for name, reason, message in await node.warnings()
        )

    await until(reported)
    await release_from_claim(node.cluster, "large")
    await until(lambda: node.volume_names() == {"second"})


@pytest.mark.parametrize(
    "failure", [RecursionError("maximum recursion depth exceeded"), KeyError("x" * 5000), OSError(28, "No space left")]
)
async def test_a_failure_that_nobody_foresaw_is_reported_too(
    node: NodeParts, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_pv(node.cluster, "pv")
    await until(lambda: node.volume_names() == {"pv"})

    async def fails(volume: Volume) -> None:
        raise failure

    with monkeypatch.context() as broken:
        broken.setattr(node.volumes._backend, "remove", fails)
        await release_from_claim(node.cluster, "pv")

        async def reported() -> bool:
            kind = type(failure).__name__ if not isinstance(failure, OSError) else "No space left"
            return any(
                (name, reason) == ("pv", DELETE_FAILED) and kind in message and "log" in message
                for name, reason, message in await node.warnings()
            )

        await until(reported)
    await until(lambda: not node.volume_names())


async def test_the_label_alone_does_not_make_a_volume_ours(node: NodeParts) -> None:
    await create_pv(node.cluster, "theirs", assignment=NodeAssignment(NODE, "another-host", ASSIGNMENT.pool))
    await create_pv(node.cluster, "ours")
    await until(lambda: node.volume_names() == {"ours"})
    await release_from_claim(node.cluster, "theirs")
    await release_from_claim(node.cluster, "ours")
    await until(lambda: not node.volume_names())
    assert await read_pv(node.cluster, "theirs") is not None


async def test_reclaiming_goes_on_soon_after_the_api_server_is_back(
    node: NodeParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the next try would have been away: what failed was not to blame."""
    await create_pv(node.cluster, "pv")
    await until(lambda: _says_made(node, "pv"))
    monkeypatch.setattr(node.reconciler._queue, "_backoff", Backoff(first=600))
    used = asyncio.Event()

    def release(pv: str) -> None:
        used.set()
        raise InUse(f"volume {pv} is mounted")

    with monkeypatch.context() as patched:
        patched.setattr(node.volumes._staging, "release", release)
        await release_from_claim(node.cluster, "pv")
        await used.wait()
        await drained(node.reconciler._queue)
    await node.server.stop()
    node.reconciler.enqueue("pv")  # as after an unmount: it asks in vain
    await drained(node.reconciler._queue)
    assert node.volume_names() == {"pv"}
    await node.server.start()
    await until(lambda: not node.volume_names(), seconds=5)
    await until(lambda: not node.node_volumes.all(), seconds=5)


async def test_a_daemon_with_a_stale_cache_believes_the_api_server(
    node: NodeParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its watch stalls, and meanwhile the policy becomes Retain."""
    await create_pv(node.cluster, "pv")
    await until(lambda: _says_made(node, "pv"))
    used = True

    def release(pv: str) -> None:
        if used:
            raise InUse(f"volume {pv} is mounted")

    monkeypatch.setattr(node.volumes._staging, "release", release)
    await release_from_claim(node.cluster, "pv")
    await until(lambda: _warned(node, "VolumeFailedDelete", "is mounted"))
    with monkeypatch.context() as stalled:
        stalled.setattr(node.node_volumes._informer, "_take", lambda body: None)
        await node.cluster.patch(VOLUMES, "pv", {"spec": {"persistentVolumeReclaimPolicy": RETAIN}})
        used = False
        node.reconciler.enqueue("pv")
        await until(lambda: _warned(node, "VolumeFailedDelete", "the reclaim policy Retain"))
        assert node.volume_names() == {"pv"}
        assert (node.data / "pv.folder").is_dir()
    await node.cluster.patch(VOLUMES, "pv", {"metadata": {"annotations": {"seen": "again"}}})
    await until(lambda: not node.node_volumes.all())
    assert [volume.record.policy for volume in node.volumes.inventory.volumes] == [RETAIN]


async def test_an_api_server_that_was_restored_from_a_backup_is_followed(node: NodeParts, tmp_path: Path) -> None:
    """It goes on from an earlier version, and tells nothing of what is not there any more."""
    await create_pv(node.cluster, "old")
    await until(lambda: _says_made(node, "old"))
    shutil.copytree(node.server.folder, tmp_path / "backup")
    for name in ("young", "younger"):
        await create_pv(node.cluster, name)
        await until(lambda name=name: _says_made(node, name))  # type: ignore[misc]
    await node.server.stop()
    node.server.store.close()
    shutil.rmtree(node.server.folder)
    (tmp_path / "backup").rename(node.server.folder)
    node.server.load()
    await node.server.start()
    await until(lambda: [pv.name for pv in node.node_volumes.all()] == ["old"])
    assert node.volume_names() == {"old", "young", "younger"}
    await create_pv(node.cluster, "new")
    await until(lambda: _says_made(node, "new"))
