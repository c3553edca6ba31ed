"""A cleaning ends as soon as the volume is not to be cleaned any more, and no PersistentVolume is deleted for what it
was a moment ago."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from contract import names
from daemon.static.configuration import Configuration
from daemon.static.deleter import ABORTED
from daemon.static.metrics import ProcessCounts
from daemon.static.volume import read
from kube.resources import VOLUMES
from tests.unit.daemon.static.deleterharness import GONE, DeleterHarness
from tests.unit.daemon.static.test_static_deleter import ONE, cleanings, counting, disks, node
from tests.waiting import until

__all__ = ["disks", "node"]

Json = dict[str, Any]

BOUND_ANEW: Json = {"spec": {"claimRef": {"uid": "claim-2"}}}
RETAIN: Json = {"spec": {"persistentVolumeReclaimPolicy": "Retain"}}


def endless(disks: Path) -> Configuration:
    """A cleaner whose children would write to the end of time."""
    return counting(disks, f"echo $$ > {disks}/pid; (while :; do sleep 0.02; echo x >> {disks}/wiped; done) & wait")


async def running(node: DeleterHarness, disks: Path) -> Configuration:
    configuration = endless(disks)
    await node.create("pv", ONE)
    await node.pass_over(configuration)
    await until(lambda: (disks / "wiped").exists())
    return configuration


async def change(node: DeleterHarness, what: str) -> None:
    if what == "made anew":
        await node.cluster.delete(VOLUMES, "pv")
        await node.create("pv", ONE)
    elif what == "bound":
        await node.cluster.patch(VOLUMES, "pv", BOUND_ANEW)
        await node.cluster.patch(VOLUMES, "pv", {"status": {"phase": "Bound"}}, subresource="status")
    else:
        patches: dict[str, Json] = {"retained": RETAIN, "given": BOUND_ANEW, "taken": {"spec": {"claimRef": None}}}
        await node.cluster.patch(VOLUMES, "pv", patches[what])


async def nothing_writes(disks: Path) -> None:
    leader = Path("/proc", (disks / "pid").read_text().strip())
    await until(lambda: not leader.exists())
    size = (disks / "wiped").stat().st_size
    await asyncio.sleep(0.1)
    assert (disks / "wiped").stat().st_size == size, "nor what the cleaner started"


@pytest.mark.parametrize("what", ["retained", "bound", "given", "taken", "made anew"])
@pytest.mark.parametrize("by_pass", [True, False])
async def test_it_is_aborted(node: DeleterHarness, disks: Path, what: str, by_pass: bool) -> None:
    await running(node, disks)
    await change(node, what)
    now = read(await node.cluster.get(VOLUMES, "pv"))
    assert now
    if by_pass:
        await node.pass_over(Configuration())
    else:
        node.deleter.volume_changed("pv", None, now)
    await until(lambda: not node.deleter.is_cleaning("pv"))
    await nothing_writes(disks)
    assert node.deleter.counts() == ProcessCounts(0, 0, 0)
    ((about, reason, words),) = [events for events in await node.recorded_events() if events[1] == ABORTED]
    assert (about, reason) == ("pv", ABORTED)
    assert words.startswith("cleanup was aborted, it")
    assert await node.phase("pv") != GONE
    assert node.triggers, "the next pass looks at what it is now"


async def test_unrelated_changes_do_not_abort_it(node: DeleterHarness, disks: Path) -> None:
    configuration = await running(node, disks)
    await node.cluster.patch(VOLUMES, "pv", {"metadata": {"annotations": {"example.org/note": "hello"}}})
    await node.pass_over(configuration)
    now = read(await node.cluster.get(VOLUMES, "pv"))
    node.deleter.volume_changed("pv", None, now)
    node.deleter.volume_changed("other", None, now)
    node.deleter.volume_changed("pv", now, None)
    assert not any(task.cancelling() for task in node.deleter._tasks.values())
    node.deleter._tasks["pv"].cancel()
    await until(lambda: not node.deleter.is_cleaning("pv"))


async def test_one_that_lost_our_label_is_read_live(node: DeleterHarness, disks: Path) -> None:
    """The cache does not have it any more, and it may be somebody's by now."""
    configuration = await running(node, disks)
    await change(node, "bound")
    node.cache.clear()
    await node.deleter.delete_pass(configuration)
    await until(lambda: not node.deleter.is_cleaning("pv"))
    await nothing_writes(disks)


async def test_bound_again_after_its_cleanup(node: DeleterHarness, disks: Path) -> None:
    configuration = counting(disks)
    await node.create("pv", ONE, has_finalizer=True)
    await node.clean_all(configuration)
    # The cache of this pass has not heard of it.
    await change(node, "bound")
    await node.deleter.delete_pass(configuration)
    assert "deletionTimestamp" not in (await node.cluster.get(VOLUMES, "pv"))["metadata"]
    await node.cluster.patch(VOLUMES, "pv", {"status": {"phase": "Released"}}, subresource="status")
    await node.clean_all(configuration)
    assert cleanings(disks) == 2


@pytest.mark.parametrize("meanwhile", [RETAIN, BOUND_ANEW])
async def test_only_the_examined_version_is_deleted(
    node: DeleterHarness, disks: Path, meanwhile: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = counting(disks)
    await node.create("pv", ONE)
    await node.clean_all(configuration)
    delete, asked = node.cluster.delete, list[Json]()

    async def change_first(*arguments: Any, **named: Any) -> None:
        asked.append(named)
        await node.cluster.patch(VOLUMES, "pv", meanwhile)
        await delete(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(node.cluster, "delete", change_first)
        await node.pass_over(configuration)
    assert set(asked[0]) == {"uid", "resource_version"}
    assert await node.phase("pv") == "Released"
    assert await node.recorded_events() == []


async def test_policy_changed_from_retain_back_to_delete(node: DeleterHarness, disks: Path) -> None:
    configuration = counting(disks)
    await node.create("pv", ONE)
    await node.clean_all(configuration)
    await node.cluster.patch(VOLUMES, "pv", RETAIN)
    await node.pass_over(configuration)
    await node.cluster.patch(VOLUMES, "pv", {"spec": {"persistentVolumeReclaimPolicy": "Delete"}})
    await node.clean_all(configuration)
    assert cleanings(disks) == 2


async def deleted_by_hand(node: DeleterHarness, disks: Path, **how: str) -> None:
    await node.create("pv", ONE, has_finalizer=True, **how)
    await node.cluster.delete(VOLUMES, "pv")
    await node.pass_over(counting(disks))


async def test_deleted_by_hand_while_available(node: DeleterHarness, disks: Path) -> None:
    await deleted_by_hand(node, disks, phase="Available", claim="")
    assert await node.phase("pv") == GONE
    assert cleanings(disks) == 0


async def test_deleted_by_hand_while_bound(node: DeleterHarness, disks: Path) -> None:
    await deleted_by_hand(node, disks, phase="Bound")
    assert await node.phase("pv") == "Bound"
    await node.cluster.patch(VOLUMES, "pv", {"status": {"phase": "Released"}}, subresource="status")
    await node.clean_all(counting(disks))
    assert (await node.phase("pv"), cleanings(disks)) == ("Released", 1)
    await node.pass_over(counting(disks))
    assert await node.phase("pv") == GONE


async def test_deleted_by_hand_under_retain(node: DeleterHarness, disks: Path) -> None:
    await deleted_by_hand(node, disks, policy="Retain")
    await node.clean_all(counting(disks))
    assert (await node.phase("pv"), cleanings(disks)) == ("Released", 0)
    ((about, reason, words),) = await node.recorded_events()
    assert (about, reason) == ("pv", "VolumeDeletedWithData")
    assert "it is Released under policy Retain" in words
    assert names.STATIC_FINALIZER in words
    await node.cluster.patch(VOLUMES, "pv", {"spec": {"persistentVolumeReclaimPolicy": "Delete"}})
    await node.clean_all(counting(disks))
    assert cleanings(disks) == 1
    await node.pass_over(counting(disks))
    assert await node.phase("pv") == GONE


async def test_removing_the_finalizer_by_hand_is_respected(node: DeleterHarness, disks: Path) -> None:
    await deleted_by_hand(node, disks, policy="Retain")
    await node.cluster.patch(VOLUMES, "pv", {"metadata": {"finalizers": None}})
    assert await node.phase("pv") == GONE
    assert cleanings(disks) == 0


async def test_finalizers_of_others_stay(node: DeleterHarness, disks: Path) -> None:
    await node.create("pv", ONE)
    theirs = {"metadata": {"finalizers": ["example.org/hold", names.STATIC_FINALIZER]}}
    await node.cluster.patch(VOLUMES, "pv", theirs)
    await node.clean_all(counting(disks))
    for _ in range(3):
        await node.clean_all(counting(disks))
    metadata = (await node.cluster.get(VOLUMES, "pv"))["metadata"]
    assert metadata["finalizers"] == ["example.org/hold"]
    assert "deletionTimestamp" in metadata
    assert cleanings(disks) == 1
