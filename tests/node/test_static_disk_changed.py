"""A path that leads to another disk by the time its PersistentVolume is released: that disk is somebody else's."""

import json
import os
import subprocess
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from daemon.static import cleanupjob, cleanupprocess, diskevidence
from daemon.static.configuration import BLOCK, FILESYSTEM, Configuration
from daemon.static.deleter import Deleter
from daemon.static.reclaim import ReleasedVolume
from daemon.static.volume import StaticVolume
from host import loopdevice, mounting
from kube.resources import VOLUMES
from tests.node.test_static_deletion import Disks, disks, holds_data, intact, refusal
from tests.unit.daemon.static.deleterharness import GONE, HOST_DIR, DeleterHarness, configured, deleter_harness

__all__ = ["disks"]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[DeleterHarness]:
    async with deleter_harness(tmp_path) as node:
        yield node


def recorded(path: Path) -> str:
    """What discovery notes of what is there now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return diskevidence.of_open(descriptor).render()
    finally:
        os.close(descriptor)


def lead(link: Path, device: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(device)


async def test_a_link_to_another_disk(node: DeleterHarness, disks: Disks) -> None:
    one, two = disks.device("disk-1"), disks.device("disk-2")
    link = disks.folder / "disk"
    lead(link, one)
    await node.create("pv", f"{HOST_DIR}/disk", mode=BLOCK, disk=recorded(link))
    lead(link, two)
    message = await refusal(node, disks.configuration, BLOCK)
    assert f"path {link} leads to another disk than PersistentVolume pv was made of: that was [loop inode" in message
    assert holds_data(one)
    assert holds_data(two)
    lead(link, one)
    await node.clean_all(disks.configuration)
    await node.pass_over(disks.configuration)
    assert await node.phase("pv") == GONE
    assert not holds_data(one)
    assert holds_data(two)


async def test_an_administrator_accepts_the_other_disk(node: DeleterHarness, disks: Disks) -> None:
    one, two = disks.device("disk-1"), disks.device("disk-2")
    link = disks.folder / "disk"
    lead(link, one)
    await node.create("pv", f"{HOST_DIR}/disk", mode=BLOCK, disk=recorded(link))
    lead(link, two)
    await refusal(node, disks.configuration, BLOCK)
    await node.cluster.patch(
        VOLUMES, "pv", {"metadata": {"annotations": {"elastic-local.volumes.k8s.elastic.co/disk": None}}}
    )
    await node.clean_all(disks.configuration)
    assert not holds_data(two)
    assert holds_data(one)


async def test_what_is_accepted_by_mistake_is_not_erased_if_it_is_known(node: DeleterHarness, disks: Disks) -> None:
    """Two links were swapped, and an administrator accepts what is behind one of them."""
    one, two = disks.device("disk-1"), disks.device("disk-2")
    a, b = disks.folder / "a", disks.folder / "b"
    lead(a, one)
    lead(b, two)
    await node.create("pv-a", f"{HOST_DIR}/a", mode=BLOCK)
    await node.create("pv-b", f"{HOST_DIR}/b", mode=BLOCK, phase="Bound", disk=recorded(b))
    lead(a, two)
    lead(b, one)
    await node.clean_all(disks.configuration)
    ((name, _, message),) = await node.recorded_events()
    assert name == "pv-a"
    assert f"device {two} is the disk that PersistentVolume pv-b was made of: have its path lead there again" in message
    assert holds_data(one)
    assert holds_data(two)


async def test_another_filesystem_mounted_there(node: DeleterHarness, disks: Disks) -> None:
    device = loopdevice.find(disks.images / "disks-one")
    await node.create("pv", f"{HOST_DIR}/one", disk=recorded(disks.one))
    mounting.unmount(disks.one)
    disks.mount(disks.one.with_name("three"))
    mounting.bind(disks.one.with_name("three"), disks.one)
    mounting.unmount(disks.one.with_name("three"))
    assert "leads to another disk" in await refusal(node, disks.configuration, FILESYSTEM)
    assert intact(disks.one)
    mounting.unmount(disks.one)
    subprocess.run(["mount", device or "", disks.one], check=True)
    await node.clean_all(disks.configuration)
    assert list(disks.one.iterdir()) == []


async def test_another_folder_of_the_same_filesystem(node: DeleterHarness, disks: Disks, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (disks.two / name).mkdir()
        (disks.two / name / "data").write_bytes((disks.two / "data").read_bytes())
    entry = disks.folder / "folder"
    entry.mkdir()
    mounting.bind(disks.two / "a", entry)
    await node.create("pv", f"{HOST_DIR}/folder", disk=recorded(entry))
    mounting.unmount(entry)
    mounting.bind(disks.two / "b", entry)
    assert "leads to another disk" in await refusal(node, disks.configuration, FILESYSTEM)
    assert intact(disks.two / "a")
    assert intact(disks.two / "b")


@pytest.mark.parametrize("again", ["mkfs.ext4", "mkfs.xfs"])
async def test_the_same_disk_with_a_filesystem_made_anew(node: DeleterHarness, disks: Disks, again: str) -> None:
    device = disks.sized("large", 320 << 20)
    entry = disks.folder / "large"
    entry.mkdir()
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    subprocess.run(["mount", device, entry], check=True)
    await node.create("pv", f"{HOST_DIR}/large", disk=recorded(entry))
    mounting.unmount(entry)
    subprocess.run([again, "-q", *(["-F"] if again == "mkfs.ext4" else ["-f"]), device], check=True)
    subprocess.run(["mount", device, entry], check=True)
    await node.clean_all(disks.configuration)
    await node.pass_over(disks.configuration)
    assert await node.phase("pv") == GONE


async def test_a_disk_that_can_not_be_identified_now(
    node: DeleterHarness, disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can't be seen is not gone, and it is not equal either."""
    device = disks.device("disk-1")
    link = disks.folder / "disk"
    lead(link, device)
    await node.create("pv", f"{HOST_DIR}/disk", mode=BLOCK, disk=recorded(link))

    def unreadable(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(diskevidence, "of_device", unreadable)
    message = await refusal(node, disks.configuration, BLOCK)
    assert "may lead to another disk" in message
    assert "there is [what can not be identified now]" in message
    assert holds_data(device)


async def test_one_that_older_versions_made_is_cleaned_as_by_them(node: DeleterHarness, disks: Disks) -> None:
    one = disks.device("disk-1")
    lead(disks.folder / "disk", one)
    await node.create("pv", f"{HOST_DIR}/disk", mode=BLOCK)
    await node.clean_all(disks.configuration)
    await node.pass_over(disks.configuration)
    assert await node.phase("pv") == GONE
    assert not holds_data(one)


@pytest.mark.parametrize("known", [True, False])
async def test_a_device_exchanged_between_the_check_and_the_deed(
    node: DeleterHarness, disks: Disks, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Under its name: as a loop device or a disk that is unplugged meanwhile."""
    one, two = disks.device("disk-1"), disks.device("disk-2")
    name = disks.folder / "node"
    os.mknod(name, 0o60600, one.stat().st_rdev)
    still_released = Deleter._still_released

    async def exchanged(deleter: Deleter, volume: StaticVolume) -> bool:
        answer = await still_released(deleter, volume)
        name.unlink()
        os.mknod(name, 0o60600, two.stat().st_rdev)
        return answer

    monkeypatch.setattr(Deleter, "_still_released", exchanged)
    await node.create("pv", f"{HOST_DIR}/node", mode=BLOCK, disk=recorded(name) if known else "")
    await node.clean_all(disks.configuration)
    ((_, _, message),) = await node.recorded_events()
    assert "leads to another disk than" in message
    assert holds_data(one)
    assert holds_data(two)


async def test_a_folder_mounted_over_between_the_check_and_the_deed(
    node: DeleterHarness, disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cleanupprocess._run

    async def mounted_over(*arguments: object, **more: object) -> None:
        mounting.bind(disks.two, disks.one)
        await run(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(cleanupprocess, "_run", mounted_over)
    await node.create("pv", f"{HOST_DIR}/one", disk=recorded(disks.one))
    await node.clean_all(disks.configuration)
    monkeypatch.undo()
    assert intact(disks.one), "that of the other one, which is above"
    await node.pass_over(disks.configuration)
    assert await node.phase("pv") == "Released", "else the other one would be offered"
    mounting.unmount(disks.one)
    assert list(disks.one.iterdir()) == []
    await node.pass_over(disks.configuration)
    assert await node.phase("pv") == GONE
    assert intact(disks.two)


async def test_a_clean_disk_whose_entry_leads_elsewhere_is_not_offered_anew(node: DeleterHarness, disks: Disks) -> None:
    """Its PersistentVolume would be deleted, and the other disk be offered with what is on it."""
    one, two = disks.device("disk-1"), disks.device("disk-2")
    link = disks.folder / "disk"
    lead(link, one)
    await node.create("pv", f"{HOST_DIR}/disk", mode=BLOCK, disk=recorded(link))
    await node.clean_all(disks.configuration)
    lead(link, two)
    await node.pass_over(disks.configuration)
    assert await node.phase("pv") == "Released"
    ((_, _, message),) = await node.recorded_events()
    assert "it is clean and can't be deleted: path" in message
    assert "leads to another disk" in message
    lead(link, one)
    await node.pass_over(disks.configuration)
    assert await node.phase("pv") == GONE
    assert holds_data(two)


async def test_a_cleaner_that_makes_the_filesystem_anew(node: DeleterHarness, disks: Disks) -> None:
    device = loopdevice.find(disks.images / "disks-one")
    script = f'umount "$LOCAL_PV_FILESYSTEM" && mkfs.ext4 -qF {device} && mount {device} "$LOCAL_PV_FILESYSTEM"'
    own = configured(disks.folder, folder_cleaner=("sh", "-ec", script))
    held = os.open(device or "", os.O_RDONLY)  # the device goes with its last user
    try:
        await node.create("pv", f"{HOST_DIR}/one", disk=recorded(disks.one))
        await node.clean_all(own)
        await node.pass_over(own)
        assert await node.phase("pv") == GONE, await node.recorded_events()
    finally:
        os.close(held)


@pytest.fixture
def job(disks: Disks) -> dict[str, object]:
    """The container of a Job for the device behind a link."""
    link = disks.folder / "disk"
    lead(link, disks.device("disk-1"))
    configuration = configured(
        disks.folder, cleaner=("sh", "-c", 'cat /dev/zero > "$LOCAL_PV_BLKDEVICE"; echo "$0 $1"', "a", "b  c")
    )
    volume = StaticVolume("pv", "u", "Released", f"{HOST_DIR}/disk", BLOCK, "fast-disks", "Delete", 1, False, "", ())
    return container(volume, configuration, link)


def container(volume: StaticVolume, configuration: Configuration, link: Path) -> dict[str, object]:
    class_config = configuration.classes[volume.storage_class]
    target = cleanupprocess.find_target(volume, class_config, [])
    body = cleanupjob.job_manifest(
        ReleasedVolume.of(volume),
        target,
        class_config,
        configuration,
        node="node-1",
        hostname="host-1",
        namespace="storage",
        image="image",
        now=datetime.now(UTC),
    )
    made: dict[str, object] = json.loads(json.dumps(body))["spec"]["template"]["spec"]["containers"][0]
    return made


def run_container(made: dict[str, object]) -> subprocess.CompletedProcess[str]:
    variables = {each["name"]: each["value"] for each in made["env"]}  # type: ignore[attr-defined]
    argv = [*made["command"], *made["args"]]  # type: ignore[misc]
    return subprocess.run(
        argv, env={"PATH": os.environ["PATH"], **variables}, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_pod_of_a_job_cleans_the_disk_that_was_judged(job: dict[str, object], disks: Disks) -> None:
    done = run_container(job)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "a b  c\n"
    assert not holds_data(loopdevice.find(disks.images / "disk-1") or Path())


def test_the_pod_of_a_job_finds_another_disk(job: dict[str, object], disks: Disks) -> None:
    """As after a boot, or a change of the link."""
    two = disks.device("disk-2")
    lead(disks.folder / "disk", two)
    done = run_container(job)
    assert done.returncode == 1
    assert f"{two} is not the disk that is to be cleaned: " in done.stderr
    assert holds_data(two)


def test_the_pod_of_a_job_that_begins_late_leaves_it(job: dict[str, object], disks: Disks) -> None:
    """As when its node, or its daemon, was away meanwhile: by now somebody may have the volume again."""
    (until,) = (each for each in job["env"] if each["name"] == "ELASTIC_LOCAL_BEGIN_UNTIL")  # type: ignore[attr-defined]
    assert 0 < int(until["value"]) - time.time() <= 300
    until["value"] = str(int(time.time()) - 1)
    done = run_container(job)
    assert done.returncode == 1
    assert "too long ago" in done.stderr
    assert holds_data(loopdevice.find(disks.images / "disk-1") or Path())


async def test_a_write_protected_disk_is_cleaned_when_it_is_not_any_more(node: DeleterHarness, disks: Disks) -> None:
    device = disks.device("disk-1")
    lead(disks.folder / "disk", device)
    await node.create("pv", f"{HOST_DIR}/disk", mode=BLOCK, disk=recorded(device))
    subprocess.run(["blockdev", "--setro", device], check=True)
    try:
        await node.clean_all(disks.configuration)
    finally:
        subprocess.run(["blockdev", "--setrw", device], check=True)
    ((_, reason, message),) = await node.recorded_events()
    assert (reason, "is write-protected" in message) == ("VolumeFailedDelete", True)
    assert f"`blockdev --setrw {device}`" in message
    await node.clean_all(disks.configuration)
    assert not holds_data(device)


def test_the_pod_of_a_job_finds_no_disk(job: dict[str, object], disks: Disks) -> None:
    lead(disks.folder / "disk", disks.folder / "gone")
    assert run_container(job).returncode != 0
