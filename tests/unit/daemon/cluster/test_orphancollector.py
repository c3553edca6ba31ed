"""Volumes whose PersistentVolume is gone: what is told, what is removed, and all that must hold before."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract import names
from contract.volume import DELETE, RETAIN, PersistentVolume
from daemon.cluster.orphancollector import ORPHAN_FAILED, OrphanCollector, message, removable_after
from daemon.cluster.ownerlookup import NAMESPACE, ApiOwnerLookup
from daemon.errors import InUse
from daemon.storage.deletionguard import RemovalReason
from daemon.storage.inventory import Volume
from daemon.storage.record import Record, VolumeState
from kube.client import Cluster
from kube.errors import ApiError, Forbidden, Json, Unreachable
from kube.informer import Informer
from kube.resources import EVENTS, NAMESPACES, VOLUMES, Resource
from tests.unit.daemon.nodecluster import NodeParts, create_pv, node_parts, release_from_claim
from tests.waiting import drained, until

RECORD = Record("a", "uid-a", DELETE, "ext4", VolumeState.READY, cluster="here")
GRACE = 100.0


@pytest.mark.parametrize("state", [VolumeState.FORMATTING, VolumeState.READY])
@pytest.mark.parametrize(
    ("policy", "grace", "kept"),
    [(DELETE, GRACE, GRACE), (DELETE, None, None), (RETAIN, GRACE, None), (RETAIN, None, None)],
)
def test_only_a_record_that_says_delete_lets_a_volume_go(
    policy: str, grace: float | None, kept: float | None, state: VolumeState
) -> None:
    record = replace(RECORD, policy=policy, state=state)
    assert removable_after(record, grace) == kept
    words = message(Volume(record, 5 << 20, "vg"), grace)
    assert "volume a (5Mi in vg) has no PersistentVolume" in words
    assert ("removed in 100 s" in words) is (kept is not None)
    assert ("remove it by hand" in words) is (kept is None)


def test_one_that_is_half_erased_goes_at_once_unless_that_was_called_off() -> None:
    erasing = replace(RECORD, state=VolumeState.ERASING)
    assert removable_after(erasing, None) == 0
    assert "erased, and that goes on" in message(Volume(erasing, 5 << 20, "vg"), None)
    assert removable_after(replace(erasing, policy=RETAIN), GRACE) is None
    assert "its policy is Retain" in message(Volume(replace(erasing, policy=RETAIN), 5 << 20, "vg"), None)


@pytest.mark.parametrize("state", [VolumeState.FORMATTING, VolumeState.READY, VolumeState.ERASING])
def test_none_goes_that_may_be_somebodys(state: VolumeState) -> None:
    record = replace(RECORD, state=state)
    unmarked = replace(record, cluster="")
    assert removable_after(unmarked, GRACE) is None
    assert "of which cluster it is" in message(Volume(unmarked, 5 << 20, "vg"), GRACE)
    assert removable_after(record, GRACE, namesake="uid-b") is None
    assert "elastic-local adopt a --yes" in message(Volume(record, 5 << 20, "vg"), GRACE, namesake="uid-b")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Asked(Cluster):
    """The API server of a node, which may be unable to answer."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.failure: ApiError | None = None
        self.instead: dict[tuple[Resource, str], Json] = {}
        self.answered = 0

    async def get(self, resource: Any, name: str, namespace: str | None = None) -> Json:
        if self.failure:
            raise self.failure
        try:
            return self.instead.get((resource, name)) or await self._cluster.get(resource, name, namespace)
        finally:
            self.answered += 1


class OrphanHarness:
    def __init__(self, node: NodeParts, cluster: Asked, clock: Clock, orphans: OrphanCollector) -> None:
        self.node, self.cluster, self.clock, self.orphans = node, cluster, clock, orphans

    async def examine(self, name: str = "pv") -> None:
        self.orphans.queue.add(name)
        await drained(self.orphans.queue)

    async def messages(self) -> list[str]:
        await self.node.events.flush()
        events = await self.node.cluster.list(EVENTS)
        return [event["message"] for event in events if event["reason"] == "VolumeOrphaned"]


@asynccontextmanager
async def watching(node: NodeParts, grace: float | None = GRACE) -> AsyncIterator[OrphanHarness]:
    cluster, clock = Asked(node.cluster), Clock()
    label = f"{names.NODE_LABEL}={node.node.name}"
    informer = Informer[PersistentVolume](node.cluster, VOLUMES, _read, label_selector=label)
    following = asyncio.create_task(informer.run())
    await informer.wait_synced()
    owner_lookup = ApiOwnerLookup(cluster)
    owner_lookup.cluster = node.owner_lookup.cluster
    orphans = OrphanCollector(
        owner_lookup, node.volumes, informer, node.events, node.node.reference, grace=grace, clock=clock
    )
    working = asyncio.create_task(orphans.run())
    try:
        yield OrphanHarness(node, cluster, clock, orphans)
    finally:
        for task in (following, working):
            task.cancel()
        await asyncio.wait([following, working])


def _read(body: Json) -> PersistentVolume | None:
    from contract import volume

    return volume.read(body)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeParts]:
    async with node_parts(tmp_path) as it:
        yield it


async def torn_off(node: NodeParts, policy: str = DELETE) -> None:
    """A volume was made, and its PersistentVolume is gone without the node having been asked."""
    await made(node, policy)
    await node.cluster.delete(VOLUMES, "pv")
    await node.cluster.patch(VOLUMES, "pv", {"metadata": {"finalizers": []}})


async def made(node: NodeParts, policy: str = DELETE) -> None:
    await create_pv(node.cluster, "pv", policy=policy)
    await until(
        lambda: bool((volume := node.volumes.inventory.volume("pv")) and volume.record.state is VolumeState.READY)
    )


async def test_it_is_reported_at_once_and_removed_after_the_grace(node: NodeParts) -> None:
    async with watching(node) as harness:
        await torn_off(node)
        await until(lambda: harness.cluster.answered)
        await drained(harness.orphans.queue)
        assert len(await harness.messages()) == 1
        harness.clock.now += GRACE - 1
        await harness.examine()
        assert node.volume_names() == {"pv"}
        harness.clock.now += 1
        await harness.examine()
        assert not node.volume_names()
        assert not list(node.data.glob("pv*"))
        assert len(await harness.messages()) == 1


async def test_one_that_is_there_when_the_daemon_starts_is_found(node: NodeParts) -> None:
    await torn_off(node)
    async with watching(node) as harness:
        await until(lambda: harness.cluster.answered)
        await drained(harness.orphans.queue)
        assert len(await harness.messages()) == 1


async def test_by_itself_it_goes_when_the_grace_is_over(node: NodeParts) -> None:
    await torn_off(node)
    async with watching(node, grace=0.05) as harness:
        harness.clock.now = 0
        await until(harness.messages)
        harness.clock.now = 1
        await until(lambda: not node.volume_names())


@pytest.mark.parametrize(("policy", "grace"), [(RETAIN, GRACE), (DELETE, None)])
async def test_what_is_to_be_kept_is_kept_for_ever(node: NodeParts, policy: str, grace: float | None) -> None:
    await torn_off(node, policy)
    async with watching(node, grace) as harness:
        for _ in range(3):
            await harness.examine()
            harness.clock.now += 1000 * GRACE
        assert node.volume_names() == {"pv"}
        assert len(await harness.messages()) == 1
        answered = harness.cluster.answered
        harness.orphans.enqueue_new()
        await drained(harness.orphans.queue)
        assert harness.cluster.answered == answered


@pytest.mark.parametrize("failure", [Unreachable(0, "", "timeout"), Forbidden(403, "Forbidden", "no")])
async def test_a_server_that_cannot_say_has_said_nothing(node: NodeParts, failure: ApiError) -> None:
    await torn_off(node)
    async with watching(node) as harness:
        await harness.examine()
        harness.clock.now += GRACE
        harness.cluster.failure = failure
        await harness.examine()
        assert node.volume_names() == {"pv"}
        harness.cluster.failure = None
        await harness.examine()
        assert not node.volume_names()


async def test_a_server_that_could_not_say_at_first_does_not_begin_the_grace(node: NodeParts) -> None:
    await torn_off(node)
    async with watching(node) as harness:
        harness.cluster.failure = Unreachable(0, "", "timeout")
        await harness.examine()
        harness.clock.now += GRACE
        harness.cluster.failure = None
        await harness.examine()
        assert node.volume_names() == {"pv"}
        assert len(await harness.messages()) == 1


async def test_a_persistent_volume_that_only_lost_its_label_keeps_its_volume(node: NodeParts) -> None:
    await made(node)
    async with watching(node) as harness:
        await node.cluster.patch(VOLUMES, "pv", {"metadata": {"labels": {names.NODE_LABEL: None}}})
        for _ in range(3):
            await until(lambda: harness.cluster.answered)
            await harness.examine()
            harness.clock.now += GRACE
        assert node.volume_names() == {"pv"}
        assert await harness.messages() == []


async def test_one_stays_while_any_persistent_volume_bears_its_name(node: NodeParts) -> None:
    """One that was restored from a backup, or made by whoever is about to adopt the volume."""
    await torn_off(node)
    async with watching(node) as harness:
        await harness.examine()
        namesake = await create_pv(node.cluster, "pv", assignment=None)
        for _ in range(3):
            harness.clock.now += GRACE
            await harness.examine()
            assert node.volume_names() == {"pv"}
        assert sorted(namesake.uid in words for words in await harness.messages()) == [False, True]
        await node.cluster.delete(VOLUMES, "pv")
        await node.cluster.patch(VOLUMES, "pv", {"metadata": {"finalizers": []}})
        await harness.examine()  # the grace begins anew
        harness.clock.now += GRACE - 1
        await harness.examine()
        assert node.volume_names() == {"pv"}
        harness.clock.now += 1
        await harness.examine()
        assert not node.volume_names()


async def test_a_persistent_volume_restored_with_another_uid_loses_nothing(node: NodeParts) -> None:
    await made(node)
    body = await node.cluster.get(VOLUMES, "pv")
    await node.cluster.delete(VOLUMES, "pv")
    await node.cluster.patch(VOLUMES, "pv", {"metadata": {"finalizers": []}})
    await until(lambda: not node.node_volumes.all())
    for key in ("uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"):
        body["metadata"].pop(key, None)
    body.pop("status", None)
    await node.cluster.create(VOLUMES, body)
    async with watching(node) as harness:
        for _ in range(3):
            await harness.examine()
            harness.clock.now += GRACE
        assert node.volume_names() == {"pv"}
        assert "elastic-local adopt pv --yes" in (await harness.messages())[0]


@pytest.mark.parametrize("cluster", ["", "another"])
async def test_what_is_not_certainly_of_this_cluster_is_not_removed(node: NodeParts, cluster: str) -> None:
    await torn_off(node)
    await node.volumes.refresh()
    await rewritten(node, cluster=cluster)
    async with watching(node) as harness:
        for _ in range(3):
            await harness.examine()
            harness.clock.now += GRACE
        assert (node.data / "pv.folder").is_dir()
        assert len(await harness.messages()) == (0 if cluster else 1)
    assert [(each.name, each.cluster) for each in node.volumes.inventory.foreign] == (
        [("pv", "another")] if cluster else []
    )


@pytest.mark.parametrize("change", [{"policy": RETAIN}, {"uid": "of-an-heir"}, {"cluster": "another"}])
async def test_the_record_is_read_anew_before_it_goes(node: NodeParts, change: dict[str, str]) -> None:
    """Whoever adopts a volume is another process, of which the daemon has not heard yet."""
    await torn_off(node)
    async with watching(node) as harness:
        await harness.examine()
        harness.clock.now += GRACE
        await rewritten(node, refresh=False, **change)
        await harness.examine()
        assert (node.data / "pv.folder").is_dir()
        record = json.loads((node.data / "pv.json").read_text())
        assert {key: record[key] for key in change} == change


async def rewritten(node: NodeParts, *, refresh: bool = True, **change: str) -> None:
    """Somebody else changes the record."""
    file = node.data / "pv.json"
    fields = {**json.loads(file.read_text()), **change}
    file.write_text(json.dumps({key: value for key, value in fields.items() if value}))
    if refresh:
        await node.volumes.refresh()


async def test_another_volume_of_that_name_has_a_grace_of_its_own(node: NodeParts) -> None:
    await torn_off(node)
    async with watching(node) as harness:
        await harness.examine()
        harness.clock.now += GRACE
        [volume] = node.volumes.inventory.volumes
        await node.volumes.reclaim("pv", volume.record.uid, volume.pool, RemovalReason.ORPHANED)
        await torn_off(node)
        await harness.examine()
        assert node.volume_names() == {"pv"}


async def test_what_is_in_use_stays_until_it_is_not(node: NodeParts, monkeypatch: pytest.MonkeyPatch) -> None:
    await torn_off(node)
    used = True

    def release(pv: str) -> None:
        if used:
            raise InUse(f"volume {pv} is mounted")

    monkeypatch.setattr(node.volumes._staging, "release", release)
    async with watching(node) as harness:
        await harness.examine()
        harness.clock.now += GRACE
        await harness.examine()
        assert node.volume_names() == {"pv"}
        warnings = [message for _, reason, message in await node.warnings() if reason == ORPHAN_FAILED]
        assert warnings == ["volume pv, whose PersistentVolume is gone, is not removed: volume pv is mounted"]
        used = False
        await harness.examine()
        assert not node.volume_names()


async def test_a_cluster_that_was_built_anew_over_old_disks_loses_nothing(tmp_path: Path) -> None:
    async with node_parts(tmp_path) as old:
        await made(old)
        (old.data / "pv.folder" / "precious").write_text("data")
        before = old.owner_lookup.cluster
    shutil.rmtree(tmp_path / "objects")
    async with node_parts(tmp_path) as new, watching(new) as harness:
        assert new.owner_lookup.cluster != before
        for _ in range(3):
            await harness.examine()
            harness.clock.now += GRACE
        assert [(each.name, each.cluster) for each in new.volumes.inventory.foreign] == [("pv", before)]
        # By chance, or because people apply what they had applied: the same name.
        namesake = await create_pv(new.cluster, "pv")
        await until(lambda: _warned(new, f"of another cluster ({before})"))
        await release_from_claim(new.cluster, "pv")
        await until(lambda: not new.node_volumes.all())
        assert (new.data / "pv.folder" / "precious").read_text() == "data"

        heir = await create_pv(new.cluster, "pv")
        assert heir.uid != namesake.uid
        await rewritten(new, uid=heir.uid, cluster=new.owner_lookup.cluster)  # as `adopt` does
        new.reconciler.enqueue("pv")
        await until(lambda: new.volume_names() == {"pv"})
        assert (new.data / "pv.folder" / "precious").read_text() == "data"


async def test_another_cluster_at_the_address_of_this_one_has_no_say(node: NodeParts) -> None:
    """It was set up anew without what it had, and this daemon, which runs still, has asked it once who it is."""
    await torn_off(node)
    async with watching(node) as harness:
        await harness.examine()
        harness.clock.now += GRACE
        anew = {"metadata": {"name": NAMESPACE, "uid": "another", "resourceVersion": "1"}}
        harness.cluster.instead[NAMESPACES, NAMESPACE] = anew
        await harness.examine()
        assert node.volume_names() == {"pv"}
        harness.cluster.instead.clear()
        await harness.examine()
        assert not node.volume_names()


async def _warned(node: NodeParts, words: str) -> bool:
    return any(words in message for _, _, message in await node.warnings())
