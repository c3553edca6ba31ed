"""Cleaning by Jobs, which the test runs in the place of the Job controller."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from daemon.static import cleanupprocess
from daemon.static.cleanupprocess import CleanupTarget, container_path
from daemon.static.configuration import BLOCK, FILESYSTEM, ClassConfiguration
from daemon.static.metrics import ProcessCounts
from daemon.static.volume import StaticVolume
from kube.backoff import Backoff
from kube.errors import Forbidden, Unreachable
from kube.resources import JOBS, VOLUMES
from tests.unit.daemon.nodecluster import HOSTNAME, NAMESPACE, NODE
from tests.unit.daemon.static.deleterharness import (
    GONE,
    HOST_DIR,
    IMAGE,
    DeleterHarness,
    believe_places,
    configured,
    deleter_harness,
)

ONE = f"{HOST_DIR}/one"
JOB = "cleanup-pv"
SUCCEEDED = {"succeeded": 1}
FAILED = {"failed": 7, "conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]}


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DeleterHarness]:
    def find_target(volume: StaticVolume, class_config: ClassConfiguration, _neighbours: object) -> CleanupTarget:
        path = container_path(class_config, volume.path)
        return CleanupTarget(path, path, volume.mode)

    monkeypatch.setattr(cleanupprocess, "find_target", find_target)
    believe_places(monkeypatch)
    async with deleter_harness(tmp_path) as node:
        yield node


BY_JOB = configured(Path("/mnt/disks"), cleaner=("/scripts/shred.sh", "2"), use_job_for_cleaning=True)
IN_PROCESS = configured(Path("/mnt/disks"), folder_cleaner=("true",))


async def pods_are_gone(node: DeleterHarness) -> None:
    """What the garbage collector does then of a Job that was deleted in the foreground."""
    job = await node.job(JOB)
    assert job
    assert job["metadata"]["finalizers"] == ["foregroundDeletion"]
    await node.cluster.patch(JOBS, JOB, {"metadata": {"finalizers": None}}, NAMESPACE)
    assert await node.job(JOB) is None


async def begun(node: DeleterHarness) -> dict[str, Any]:
    await node.create("pv", ONE, mode=BLOCK)
    await node.pass_over(BY_JOB)
    job = await node.job(JOB)
    assert job
    return job


async def test_a_block_volume_is_cleaned_by_a_job(node: DeleterHarness) -> None:
    job = await begun(node)
    pod = job["spec"]["template"]["spec"]
    assert HOSTNAME != NODE
    assert pod["nodeSelector"] == {"kubernetes.io/hostname": HOSTNAME}
    assert pod["containers"][0]["image"] == IMAGE
    assert node.deleter.is_cleaning("pv")
    assert node.deleter.counts() == ProcessCounts(running=1, succeeded=0, failed=0)
    await node.pass_over(BY_JOB)
    assert await node.phase("pv") == "Released"
    await node.end_job(JOB, SUCCEEDED)
    await node.pass_over(BY_JOB)
    assert await node.phase("pv") == GONE
    await pods_are_gone(node)
    await node.pass_over(BY_JOB)
    assert not node.deleter.is_cleaning("pv")
    assert node.deleter.counts() == ProcessCounts(running=0, succeeded=1, failed=0)
    assert node.metric("persistentvolume_delete_total", mode=BLOCK, type="job") == 1
    labels = {"mode": BLOCK, "type": "job", "capacity": "500G", "cleanup_command": "/scripts/shred.sh"}
    assert node.metric("persistentvolume_delete_duration_seconds_count", **labels) == 1
    assert await node.recorded_events() == []


async def test_folders_are_cleaned_in_this_process_all_the_same(node: DeleterHarness) -> None:
    await node.create("pv", ONE, mode=FILESYSTEM)
    folders = configured(Path("/mnt/disks"), folder_cleaner=("true",), use_job_for_cleaning=True)
    await node.clean_all(folders)
    assert await node.job(JOB) is None
    await node.pass_over(folders)
    assert node.metric("persistentvolume_delete_total", mode=FILESYSTEM, type="process") == 1


async def test_a_failed_job_is_reported_and_retried(node: DeleterHarness) -> None:
    first = await begun(node)
    await node.end_job(JOB, FAILED)
    for _ in range(3):
        await node.pass_over(BY_JOB)
    message = 'Error cleaning PV "pv": Job cleanup-pv failed: BackoffLimitExceeded'
    assert await node.recorded_events() == [("pv", "VolumeFailedDelete", message)]
    assert node.metric("persistentvolume_delete_failed_total", mode=BLOCK, type="job") == 1
    await pods_are_gone(node)
    await node.pass_over(BY_JOB)
    second = await node.job(JOB)
    assert second
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    assert await node.phase("pv") == "Released"
    assert node.deleter.counts() == ProcessCounts(running=1, succeeded=0, failed=1)


async def test_a_job_that_somebody_deleted(node: DeleterHarness) -> None:
    node = node.restarted(retry=Backoff(first=1000))
    await begun(node)
    await node.cluster.delete(JOBS, JOB, NAMESPACE)
    assert await node.job(JOB) is None
    await node.pass_over(BY_JOB)
    ((_, _, message),) = await node.recorded_events()
    assert "Job cleanup-pv was deleted before it finished" in message
    assert await node.job(JOB) is None


async def test_the_next_daemon_finds_the_job_that_runs(node: DeleterHarness) -> None:
    job = await begun(node)
    node = node.restarted()
    assert node.deleter.is_cleaning("pv"), "nothing is known yet"
    await node.pass_over(BY_JOB)
    assert node.deleter.is_cleaning("pv")
    now = await node.job(JOB)
    assert now
    assert now["metadata"]["uid"] == job["metadata"]["uid"]
    await node.end_job(JOB, SUCCEEDED)
    await node.pass_over(BY_JOB)
    assert await node.phase("pv") == GONE


async def test_the_next_daemon_finds_the_job_that_succeeded(node: DeleterHarness) -> None:
    await begun(node)
    await node.end_job(JOB, SUCCEEDED)
    node = node.restarted()
    await node.pass_over(BY_JOB)
    assert await node.phase("pv") == GONE
    assert node.deleter.counts() == ProcessCounts(running=0, succeeded=1, failed=0)


async def test_running_jobs_are_listed_after_jobs_were_disabled(node: DeleterHarness) -> None:
    await begun(node)
    await node.cluster.delete(VOLUMES, "pv")
    node = node.restarted()
    await node.pass_over(IN_PROCESS)
    assert node.deleter.is_cleaning("pv")
    await node.end_job(JOB, SUCCEEDED)
    await node.pass_over(IN_PROCESS)
    assert not node.deleter.is_cleaning("pv")
    await pods_are_gone(node)


async def test_the_job_of_an_earlier_release_says_nothing(node: DeleterHarness) -> None:
    """It succeeded, and then the volume was given to another claim and has new data."""
    first = await begun(node)
    await node.end_job(JOB, SUCCEEDED)
    await node.cluster.patch(VOLUMES, "pv", {"spec": {"claimRef": {"uid": "claim-2"}}})
    await node.pass_over(BY_JOB)
    assert await node.phase("pv") == "Released"
    await pods_are_gone(node)
    await node.pass_over(BY_JOB)
    second = await node.job(JOB)
    assert second
    assert second["metadata"]["uid"] != first["metadata"]["uid"]


async def test_its_name_is_the_lock(node: DeleterHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second daemon, which looked before the first one's Job was there."""
    other = node.restarted()
    await other.pass_over(BY_JOB)
    job = await begun(node)
    other.cache[:] = node.cache

    async def nothing(*_: object, **__: object) -> list[object]:
        return []

    with monkeypatch.context() as patched:
        patched.setattr(node.cluster, "list", nothing)
        await other.deleter.delete_pass(BY_JOB)
    now = await node.job(JOB)
    assert now
    assert now["metadata"]["uid"] == job["metadata"]["uid"]
    assert await node.recorded_events() == []


async def test_a_failed_delete_does_not_make_another_job(node: DeleterHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    await begun(node)
    await node.end_job(JOB, SUCCEEDED)
    delete = node.cluster.delete

    async def refuse(resource: object, *arguments: Any, **named: Any) -> None:
        if resource == VOLUMES:
            raise Unreachable(503, "", "not now")
        await delete(JOBS, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(node.cluster, "delete", refuse)
        for _ in range(3):
            await node.pass_over(BY_JOB)
    assert node.deleter.counts() == ProcessCounts(running=0, succeeded=1, failed=0)
    await pods_are_gone(node)
    assert await node.phase("pv") == "Released"
    await node.pass_over(BY_JOB)
    assert await node.job(JOB) is None
    assert await node.phase("pv") == GONE


async def test_a_job_whose_creation_got_no_response(node: DeleterHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    create = node.cluster.create

    async def create_and_lose(*arguments: Any, **named: Any) -> None:
        await create(*arguments, **named)
        raise Unreachable(0, "", "no answer")

    await node.create("pv", ONE, mode=BLOCK)
    with monkeypatch.context() as patched:
        patched.setattr(node.cluster, "create", create_and_lose)
        await node.pass_over(BY_JOB)
    assert node.metric("persistentvolume_delete_failed_total", mode=BLOCK, type="job") == 1
    await node.end_job(JOB, SUCCEEDED)
    await node.pass_over(BY_JOB)
    assert await node.phase("pv") == GONE


async def test_jobs_count_for_the_limit(node: DeleterHarness) -> None:
    for number in range(3):
        await node.create(f"pv-{number}", f"{HOST_DIR}/{number}", mode=BLOCK)
    limited = configured(
        Path("/mnt/disks"), cleaner=("/scripts/shred.sh",), use_job_for_cleaning=True, parallel_cleanings=2
    )
    await node.pass_over(limited)
    await node.pass_over(limited)
    assert len(await node.cluster.list(JOBS, NAMESPACE)) == 2


async def test_an_image_is_needed(node: DeleterHarness) -> None:
    await node.create("pv", ONE, mode=BLOCK)
    await node.restarted(image="").pass_over(BY_JOB)
    ((_, _, message),) = await node.recorded_events()
    assert message.endswith("useJobForCleaning is set and JOB_CONTAINER_IMAGE is not: set both")


@pytest.mark.parametrize("wanted", [True, False])
async def test_rights_on_jobs_are_needed_only_with_jobs(
    node: DeleterHarness, wanted: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[object] = []
    listing = node.cluster.list

    async def forbid(resource: object, *arguments: Any, **named: Any) -> Any:
        if resource == JOBS:
            asked.append(resource)
            raise Forbidden(403, "Forbidden", "no rights on jobs")
        return await listing(VOLUMES, *arguments, **named)

    monkeypatch.setattr(node.cluster, "list", forbid)
    for _ in range(3):
        await node.pass_over(BY_JOB if wanted else IN_PROCESS)
    assert node.deleter.is_cleaning("any") == wanted, "what is not known may be running"
    assert len(asked) == (3 if wanted else 1)
    assert ("no rights on jobs" in caplog.text) == wanted


async def test_without_an_image_no_jobs_are_listed(node: DeleterHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    listing = node.cluster.list

    async def note(resource: object, *arguments: Any, **named: Any) -> Any:
        asked.append(resource)
        return await listing(VOLUMES, *arguments, **named)

    monkeypatch.setattr(node.cluster, "list", note)
    restarted = node.restarted(image="")
    await restarted.pass_over(IN_PROCESS)
    assert JOBS not in asked
    assert not restarted.deleter.is_cleaning("any")


@pytest.mark.parametrize("phase", ["Released", "Bound"])
async def test_a_job_is_aborted(node: DeleterHarness, phase: str) -> None:
    """Kept, or bound anew."""
    await begun(node)
    change = {"persistentVolumeReclaimPolicy": "Retain"} if phase == "Released" else {"claimRef": {"uid": "claim-2"}}
    await node.cluster.patch(VOLUMES, "pv", {"spec": change})
    await node.cluster.patch(VOLUMES, "pv", {"status": {"phase": phase}}, subresource="status")
    for _ in range(2):
        await node.pass_over(BY_JOB)
    assert node.deleter.is_cleaning("pv"), "its pod may write until it is gone"
    await node.end_job(JOB, SUCCEEDED)
    await node.pass_over(BY_JOB)
    assert node.deleter.is_cleaning("pv"), "what it says now counts for nothing"
    await pods_are_gone(node)
    assert ("pv", "VolumeCleaningCalledOff") in [events[:2] for events in await node.recorded_events()]
    await node.pass_over(IN_PROCESS)
    assert await node.phase("pv") == phase
    assert (node.deleter.counts().succeeded, node.deleter.counts().failed) == (0, 0)


async def test_the_next_daemon_aborts_the_running_job(node: DeleterHarness) -> None:
    await begun(node)
    await node.cluster.patch(VOLUMES, "pv", {"spec": {"persistentVolumeReclaimPolicy": "Retain"}})
    node = node.restarted()
    await node.pass_over(BY_JOB)
    await pods_are_gone(node)
    await node.pass_over(BY_JOB)
    assert not node.deleter.is_cleaning("pv")
