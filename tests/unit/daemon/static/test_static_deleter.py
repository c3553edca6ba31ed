"""The deleter with the sandbox's API behind it, and places that are believed. Real places: tests/node."""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.static import cleanupprocess
from daemon.static.cleanupprocess import CleanupRefused, CleanupTarget, container_path
from daemon.static.configuration import BLOCK, FILESYSTEM, ClassConfiguration, Configuration
from daemon.static.metrics import ProcessCounts
from daemon.static.volume import StaticVolume
from kube.backoff import Backoff
from kube.errors import Unreachable
from kube.resources import CLAIMS, VOLUMES
from tests.unit.daemon.nodecluster import Json, kind
from tests.unit.daemon.static.deleterharness import (
    CLASS,
    GONE,
    HOST_DIR,
    DeleterHarness,
    believe_places,
    configured,
    deleter_harness,
)
from tests.unit.daemon.static.shortdeadline import ShortDeadline
from tests.waiting import until

ONE, TWO = f"{HOST_DIR}/one", f"{HOST_DIR}/two"


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DeleterHarness]:
    def find_target(volume: StaticVolume, class_config: ClassConfiguration, _neighbours: object) -> CleanupTarget:
        path = container_path(class_config, volume.path)
        path.touch()
        return CleanupTarget(path, path, volume.mode)

    monkeypatch.setattr(cleanupprocess, "find_target", find_target)
    believe_places(monkeypatch)
    (tmp_path / "disks").mkdir()
    async with deleter_harness(tmp_path) as node:
        yield node


@pytest.fixture
def disks(tmp_path: Path, node: DeleterHarness) -> Path:
    return tmp_path / "disks"


def counting(disks: Path, then: str = "") -> Configuration:
    """A cleaner that leaves a trace each time. `then`: what it does afterwards."""
    command = ("sh", "-c", f"echo cleaned >> {disks}/cleanings; {then}")
    return configured(disks, cleaner=command, folder_cleaner=command)


def cleanings(disks: Path) -> int:
    trace = disks / "cleanings"
    return trace.read_text().count("cleaned") if trace.exists() else 0


async def test_of_all_phases_only_released_is_deleted(node: DeleterHarness, disks: Path) -> None:
    for phase in ("Pending", "Available", "Bound", "Released", "Failed"):
        await node.create(phase.lower(), f"{HOST_DIR}/{phase}", phase=phase)
    await node.create("retained", f"{HOST_DIR}/retained", policy="Retain")
    await node.create("terminating", f"{HOST_DIR}/terminating")
    await node.cluster.patch(VOLUMES, "terminating", {"metadata": {"finalizers": ["example.org/hold"]}})
    await node.cluster.delete(VOLUMES, "terminating")
    before = await node.phases()
    configuration = counting(disks)
    await node.clean_all(configuration)
    await node.pass_over(configuration)
    assert await node.phases() == {name: phase for name, phase in before.items() if name != "released"}
    assert cleanings(disks) == 1
    assert node.deleter.counts() == ProcessCounts(running=0, succeeded=1, failed=0)


async def test_nothing_to_do(node: DeleterHarness, disks: Path) -> None:
    await node.pass_over(counting(disks))
    assert node.deleter.counts() == ProcessCounts(0, 0, 0)
    assert await node.recorded_events() == []


async def test_what_is_deleted_and_still_in_the_cache_is_left_alone(node: DeleterHarness, disks: Path) -> None:
    await node.create("pv", ONE)
    configuration = counting(disks)
    await node.clean_all(configuration)
    await node.pass_over(configuration)
    for _ in range(3):
        await node.deleter.delete_pass(configuration)
    assert cleanings(disks) == 1
    assert node.metric("persistentvolume_delete_total", mode=FILESYSTEM, type="process") == 1
    assert node.metric("apiserver_requests_total", method="delete") == 1


async def test_somebody_else_deleted_it_first(node: DeleterHarness, disks: Path) -> None:
    await node.create("pv", ONE)
    configuration = counting(disks)
    await node.clean_all(configuration)
    await node.cluster.delete(VOLUMES, "pv")
    await node.deleter.delete_pass(configuration)
    assert node.metric("persistentvolume_delete_total", mode=FILESYSTEM, type="process") == 1
    assert node.metric("apiserver_requests_failed_total", method="delete") == 0
    assert await node.recorded_events() == []


async def test_a_failed_delete_does_not_clean_again(
    node: DeleterHarness, disks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.create("pv", ONE)
    configuration = counting(disks)
    await node.clean_all(configuration)

    async def refuse(*_: object, **__: object) -> None:
        raise Unreachable(503, "ServiceUnavailable", "not now")

    with monkeypatch.context() as patched:
        patched.setattr(node.cluster, "delete", refuse)
        await node.pass_over(configuration)
        await node.pass_over(configuration)
    message = 'Error cleaning PV "pv": it is clean and can\'t be deleted: not now (ServiceUnavailable)'
    assert await node.recorded_events() == [("pv", "VolumeFailedDelete", message)]
    assert node.metric("persistentvolume_delete_failed_total", mode=FILESYSTEM, type="process") == 2
    assert node.metric("apiserver_requests_failed_total", method="delete") == 2
    await node.pass_over(configuration)
    assert await node.phase("pv") == GONE
    assert cleanings(disks) == 1


async def test_after_a_restart_it_is_cleaned_again(node: DeleterHarness, disks: Path) -> None:
    await node.create("pv", ONE)
    configuration = counting(disks)
    await node.clean_all(configuration)
    node = node.restarted()
    await node.clean_all(configuration)
    assert cleanings(disks) == 2


async def test_a_volume_used_by_another_claim_is_cleaned_again(node: DeleterHarness, disks: Path) -> None:
    await node.create("pv", ONE, claim="claim-1")
    configuration = counting(disks)
    await node.clean_all(configuration)
    # An administrator made it available again, it was bound, used and released, all between two passes.
    await node.cluster.patch(VOLUMES, "pv", {"spec": {"claimRef": {"uid": "claim-2"}}})
    await node.clean_all(configuration)
    assert cleanings(disks) == 2
    await node.pass_over(configuration)
    assert await node.phase("pv") == GONE


async def test_the_api_server_is_asked_before_a_cleanup(node: DeleterHarness, disks: Path) -> None:
    await node.create("pv", ONE)
    configuration = counting(disks)
    await node.pass_over(configured(disks, parallel_cleanings=0))
    await node.cluster.patch(VOLUMES, "pv", {"status": {"phase": "Bound"}}, subresource="status")
    await node.deleter.delete_pass(configuration)
    assert node.deleter.counts().running == 0
    assert cleanings(disks) == 0


@pytest.mark.parametrize("cleaned_as", ["process", "job"])
async def test_one_that_was_given_to_a_claim_is_not_cleaned_though_it_is_called_released(
    node: DeleterHarness, disks: Path, cleaned_as: str
) -> None:
    """An administrator names the next claim with its uid, and sets policy Delete in the same patch. The control plane
    has not seen that yet."""
    claim: Json = {
        **kind("PersistentVolumeClaim"),
        "metadata": {"name": "claim", "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}},
    }
    uid = (await node.cluster.create(CLAIMS, claim))["metadata"]["uid"]
    await node.create("pv", ONE, mode=BLOCK, claim=uid)
    configuration = replace(counting(disks), use_job_for_cleaning=cleaned_as == "job")
    await node.clean_all(configuration)
    assert (cleanings(disks), await node.job("cleanup-pv")) == (0, None)
    why = "it is Released, and claim default/claim has it: if its data is to go, delete that"
    assert await node.recorded_events() == [("pv", "VolumeFailedDelete", f'Error cleaning PV "pv": {why}')]
    bound = {"spec": {"volumeName": "another"}}
    await node.cluster.patch(CLAIMS, "claim", bound, "default")
    await node.pass_over(configuration)
    assert node.deleter.counts().running == 1


async def test_the_policy_that_we_do_not_serve(node: DeleterHarness, disks: Path) -> None:
    await node.create("pv", ONE, policy="Recycle")
    await node.pass_over(counting(disks))
    message = "Volume has unsupported PersistentVolumeReclaimPolicy: Recycle"
    assert await node.recorded_events() == [("pv", "VolumeUnsupportedReclaimPolicy", message)]
    assert await node.phase("pv") == "Released"


async def test_a_class_that_is_not_configured(node: DeleterHarness, disks: Path) -> None:
    await node.create("pv", ONE, storage_class="slow-disks")
    await node.pass_over(counting(disks))
    ((_, reason, message),) = await node.recorded_events()
    assert reason == "VolumeFailedDelete"
    assert message.startswith('Error cleaning PV "pv": Unknown storage class name slow-disks: ')
    assert node.metric("persistentvolume_delete_failed_total", mode="unknown", type="process") == 1


async def test_a_cleaner_that_succeeds(node: DeleterHarness, disks: Path) -> None:
    await node.create("pv", ONE, mode=BLOCK)
    configuration = configured(disks, cleaner=("sh", "-c", "exit 0"))
    await node.clean_all(configuration)
    await until(lambda: node.triggers)
    assert len(node.triggers) == 1
    assert await node.phase("pv") == "Released"
    await node.pass_over(configuration)
    assert await node.phase("pv") == GONE
    assert await node.recorded_events("Normal") == [
        ("pv", "VolumeDelete", 'Starting cleanup of Block PV "pv", this may take a while')
    ]
    labels = {"mode": BLOCK, "type": "process", "capacity": "500G", "cleanup_command": "sh"}
    assert node.metric("persistentvolume_delete_duration_seconds_count", **labels) == 1


async def test_a_failed_cleaner_is_retried(node: DeleterHarness, disks: Path) -> None:
    await node.create("pv", ONE, mode=BLOCK)
    await node.clean_all(counting(disks, "exit 10"))
    assert node.deleter.counts() == ProcessCounts(running=0, succeeded=0, failed=1)
    ((name, reason, message),) = await node.recorded_events()
    assert (name, reason) == ("pv", "VolumeFailedDelete")
    assert message.startswith('Error cleaning PV "pv": ')
    assert "exit code 10" in message
    assert node.metric("persistentvolume_delete_failed_total", mode=BLOCK, type="process") == 1
    await node.clean_all(counting(disks))
    assert cleanings(disks) == 2
    await node.pass_over(counting(disks))
    assert await node.phase("pv") == GONE


async def test_a_failed_cleaner_is_retried_with_backoff(node: DeleterHarness, disks: Path) -> None:
    node = node.restarted(retry=Backoff(first=1000))
    await node.create("pv", ONE, mode=BLOCK)
    for _ in range(5):
        await node.clean_all(counting(disks, "exit 1"))
    assert cleanings(disks) == 1


async def test_what_is_being_cleaned_is_left_alone(node: DeleterHarness, disks: Path) -> None:
    await node.create("pv", ONE)
    configuration = counting(disks, f"while [ ! -e {disks}/end ]; do sleep 0.01; done")
    for _ in range(3):
        await node.pass_over(configuration)
    await until(lambda: cleanings(disks) == 1)
    assert node.deleter.is_cleaning("pv")
    assert not node.deleter.is_cleaning("other")
    assert node.deleter.counts().running == node.metric("proctable_running") == 1
    # Somebody deletes it: its place must not be offered before the cleaning ended.
    await node.cluster.delete(VOLUMES, "pv")
    await node.pass_over(configuration)
    assert node.deleter.is_cleaning("pv")
    (disks / "end").touch()
    await until(lambda: not node.deleter.is_cleaning("pv"))
    await node.pass_over(configuration)
    assert cleanings(disks) == 1


async def test_the_limit_on_cleanings_at_a_time(node: DeleterHarness, disks: Path) -> None:
    for number in range(5):
        await node.create(f"pv-{number}", f"{HOST_DIR}/{number}")
    wait = ("sh", "-c", f"while [ ! -e {disks}/end ]; do sleep 0.01; done")
    configuration = configured(disks, folder_cleaner=wait, parallel_cleanings=2)
    await node.pass_over(configuration)
    await node.pass_over(configuration)
    assert node.deleter.counts().running == 2
    (disks / "end").touch()
    for _ in range(4):
        await node.clean_all(configuration)
    assert node.deleter.counts() == ProcessCounts(running=0, succeeded=5, failed=0)
    assert await node.phases() == {}


async def test_the_time_limit(node: DeleterHarness, disks: Path) -> None:
    await node.create("pv", ONE)
    await node.clean_all(configured(disks, folder_cleaner=("sleep", "60"), cleaning_timeout=0.1))
    ((_, reason, message),) = await node.recorded_events()
    assert reason == "VolumeFailedDelete"
    assert "raise cleaningTimeout" in message


async def test_the_end_of_the_daemon_ends_cleanings(node: DeleterHarness, disks: Path) -> None:
    await node.create("pv", ONE)
    running = asyncio.create_task(node.deleter.run())
    await node.pass_over(counting(disks, f"echo $$ > {disks}/pid; exec sleep 60"))
    await until(lambda: (disks / "pid").exists() and (disks / "pid").read_text().strip())
    process = Path("/proc", (disks / "pid").read_text().strip())
    assert process.exists()
    running.cancel()
    await asyncio.wait([running])
    await until(lambda: not process.exists())


async def test_one_that_fails_does_not_hold_up_the_others(node: DeleterHarness, disks: Path) -> None:
    await node.create("pv-1", f"{HOST_DIR}2/one")
    await node.create("pv-2", TWO)
    await node.clean_all(counting(disks))
    await node.pass_over(counting(disks))
    assert await node.phases() == {"pv-1": "Released"}


async def test_a_disk_that_hangs_does_not_delay_the_others(
    node: DeleterHarness, disks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, looked, find_target = threading.Event(), list[str](), cleanupprocess.find_target

    def slow(volume: StaticVolume, *more: Any) -> cleanupprocess.CleanupTarget:
        if volume.name == "dead":
            looked.append(volume.name)
            let_go.wait()
        return find_target(volume, *more)

    monkeypatch.setattr(cleanupprocess, "find_target", slow)
    node.deleter._disk_threads = ShortDeadline(lambda target: target.name == "dead")
    for name in ("dead", "alive"):
        await node.create(name, f"{HOST_DIR}/{name}")
    try:
        for _ in range(3):
            await node.clean_all(counting(disks))
        assert looked == ["dead"]
        assert await node.phases() == {"dead": "Released"}
        ((about, reason, words),) = await node.recorded_events()
        assert (about, reason) == ("dead", "VolumeFailedDelete")
        assert "gives no answer, its disk hangs" in words
    finally:
        let_go.set()


def test_a_direct_child_of_the_folder_and_nothing_else() -> None:
    class_config = ClassConfiguration(CLASS, HOST_DIR, Path("/in/container"))
    assert container_path(class_config, ONE) == Path("/in/container/one")
    assert container_path(class_config, f"{HOST_DIR}/with blank") == Path("/in/container/with blank")


@pytest.mark.parametrize(
    "path",
    [
        HOST_DIR,
        f"{HOST_DIR}/",
        f"{HOST_DIR}/.",
        f"{HOST_DIR}/..",
        f"{HOST_DIR}//one",
        f"{HOST_DIR}/one/",
        f"{HOST_DIR}/one/..",
        f"{HOST_DIR}/one/../two",
        f"{HOST_DIR}/one/below",
        f"{HOST_DIR}2/one",
        f"{HOST_DIR}/../disks/one",
        f"/.{HOST_DIR}/one",
        "/one",
        "one",
        "/",
        "",
    ],
)
def test_a_path_that_is_not_directly_in_the_folder(path: str) -> None:
    with pytest.raises(CleanupRefused, match="nothing was touched"):
        container_path(ClassConfiguration(CLASS, HOST_DIR, Path("/in/container")), path)
