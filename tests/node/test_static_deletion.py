"""Attacks on the deleter, with real mounts and devices: whatever a PersistentVolume or the node says, nothing but the
released volume is emptied, and the volume beside it survives."""

import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from daemon.static.configuration import BLOCK, FILESYSTEM, Configuration
from host import loopdevice, mounting, mounttable
from tests.unit.daemon.static.deleterharness import GONE, HOST_DIR, DeleterHarness, configured, deleter_harness

MIB = 1 << 20
PATTERN = b"what a user wrote into the volume"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[DeleterHarness]:
    async with deleter_harness(tmp_path) as node:
        yield node


@dataclass(frozen=True)
class Disks:
    """A discovery folder with two mounted volumes, and devices to link there."""

    folder: Path
    images: Path
    cleanup: contextlib.ExitStack

    @property
    def one(self) -> Path:
        return self.folder / "one"

    @property
    def two(self) -> Path:
        return self.folder / "two"

    @property
    def configuration(self) -> Configuration:
        return configured(self.folder, cleaner=("/scripts/dd_zero.sh",))

    def device(self, name: str) -> Path:
        image = self.images / name
        image.write_bytes(PATTERN.ljust(512) * 2 * 1024)
        return self.cleanup.enter_context(loopdevice.attached(image))

    def sized(self, name: str, size: int) -> Path:
        image = self.images / name
        with image.open("wb") as file:
            file.truncate(size)
        return self.cleanup.enter_context(loopdevice.attached(image))

    def mount(self, path: Path) -> None:
        device = self.device(f"{path.parent.name}-{path.name}")
        subprocess.run(["mkfs.ext4", "-q", "-F", device], check=True)
        path.mkdir(exist_ok=True)
        subprocess.run(["mount", device, path], check=True)
        (path / "data").write_bytes(PATTERN)


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    with contextlib.ExitStack() as cleanup:
        prepared = Disks(tmp_path / "disks", tmp_path / "images", cleanup)
        prepared.images.mkdir()
        prepared.folder.mkdir()
        cleanup.callback(unmount_below, tmp_path)
        for path in (prepared.one, prepared.two):
            prepared.mount(path)
        yield prepared


def unmount_below(folder: Path) -> None:
    for mount in reversed(mounttable.read()):
        if mount.path.startswith(f"{folder}/"):
            mounting.unmount(Path(mount.path))


def intact(path: Path) -> bool:
    return (path / "data").read_bytes() == PATTERN


async def refusal(node: DeleterHarness, configuration: Configuration, mode: str = "unknown") -> str:
    """What is said of the only volume, which can't be cleaned."""
    await node.clean_all(configuration)
    ((name, reason, message),) = await node.recorded_events()
    assert reason == "VolumeFailedDelete"
    assert message.startswith(f'Error cleaning PV "{name}": ')
    assert await node.phase(name) == "Released"
    assert node.metric("persistentvolume_delete_failed_total", mode=mode, type="process") == 1
    return message


async def test_a_released_volume_is_emptied_and_the_other_is_not(node: DeleterHarness, disks: Disks) -> None:
    await node.create("pv-1", f"{HOST_DIR}/one")
    await node.create("pv-2", f"{HOST_DIR}/two", phase="Bound")
    (disks.one / ".hidden").mkdir()
    (disks.one / "out").symlink_to(disks.two)
    await node.clean_all(disks.configuration)
    await node.pass_over(disks.configuration)
    assert await node.phases() == {"pv-2": "Bound"}
    assert list(disks.one.iterdir()) == []
    assert os.path.ismount(disks.one)
    assert intact(disks.two)
    assert await node.recorded_events() == []


@pytest.mark.parametrize(
    "path",
    [
        HOST_DIR,
        f"{HOST_DIR}/",
        f"{HOST_DIR}/.",
        f"{HOST_DIR}2/one",
        f"{HOST_DIR}/one/below",
        f"{HOST_DIR}//one",
        f"{HOST_DIR}2",
    ],
)
async def test_a_path_that_is_no_direct_child(node: DeleterHarness, disks: Disks, path: str) -> None:
    (disks.one / "below").mkdir()
    disks.folder.with_name("disks2").mkdir()
    disks.mount(disks.folder.with_name("disks2") / "one")
    await node.create("pv", path)
    assert "is not directly in /mnt/disks" in await refusal(node, disks.configuration)
    assert intact(disks.one)
    assert intact(disks.two)
    assert intact(disks.folder.with_name("disks2") / "one")


@pytest.mark.parametrize("path", [f"{HOST_DIR}/..", f"{HOST_DIR}/one/..", f"{HOST_DIR}/one/../two"])
async def test_a_path_upwards(node: DeleterHarness, disks: Disks, path: str) -> None:
    """The API server refuses such a path; whoever can write to etcd can't be refused."""
    await node.create("pv", f"{HOST_DIR}/one")
    listing = node.cluster.list

    async def forged(*arguments: object, **named: object) -> object:
        bodies = await listing(*arguments, **named)  # type: ignore[arg-type]
        for body in bodies:
            if "local" in body.get("spec", {}):
                body["spec"]["local"]["path"] = path
        return bodies

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(node.cluster, "list", forged)
        await node.clean_all(disks.configuration)
    ((_, _, message),) = await node.recorded_events()
    assert "is not directly in /mnt/disks" in message
    assert intact(disks.one)
    assert intact(disks.two)


async def test_the_folder_itself_mounted_is_no_volume_either(
    node: DeleterHarness, disks: Disks, tmp_path: Path
) -> None:
    """As in a container, where mountDir is a mount point."""
    shown = tmp_path / "shown"
    shown.mkdir()
    mounting.bind(disks.folder, shown)
    await node.create("pv", HOST_DIR)
    assert "is not directly in" in await refusal(node, configured(shown))
    assert intact(disks.two)


@pytest.mark.parametrize("target", ["two", "../outside", "/"])
async def test_a_link_to_a_folder(node: DeleterHarness, disks: Disks, tmp_path: Path, target: str) -> None:
    disks.mount(tmp_path / "outside")
    (disks.folder / "link").symlink_to(target)
    await node.create("pv", f"{HOST_DIR}/link")
    assert "is a link to a folder, and links are not followed" in await refusal(node, disks.configuration)
    assert intact(disks.two)
    assert intact(tmp_path / "outside")


async def test_an_unmounted_volume_waits_until_it_is_mounted(node: DeleterHarness, disks: Disks) -> None:
    await node.create("pv", f"{HOST_DIR}/one")
    mounting.unmount(disks.one)
    message = await refusal(node, disks.configuration, FILESYSTEM)
    assert "is not a mount point: mount the volume, it is cleaned then" in message
    subprocess.run(["mount", loopdevice.find(disks.images / "disks-one") or "", disks.one], check=True)
    assert intact(disks.one), "the data was there all the time"
    await node.clean_all(disks.configuration)
    await node.pass_over(disks.configuration)
    assert await node.phase("pv") == GONE
    assert list(disks.one.iterdir()) == []
    assert intact(disks.two)


async def test_a_path_that_is_gone_is_named(node: DeleterHarness, disks: Disks) -> None:
    await node.create("pv", f"{HOST_DIR}/three")
    assert f"path {disks.folder}/three is gone: restore the disk or link" in await refusal(node, disks.configuration)


async def test_a_mount_in_the_volume_is_an_error(node: DeleterHarness, disks: Disks) -> None:
    (disks.one / "nested").mkdir()
    mounting.bind(disks.two, disks.one / "nested")
    await node.create("pv", f"{HOST_DIR}/one")
    message = await refusal(node, disks.configuration, FILESYSTEM)
    assert f"another filesystem is mounted in it, at {disks.one}/nested: unmount that first" in message
    assert intact(disks.one)
    assert intact(disks.two)


@pytest.mark.parametrize("shown", ["", "below"])
async def test_files_that_another_volume_shows_too(node: DeleterHarness, disks: Disks, shown: str) -> None:
    (disks.one / "below").mkdir()
    (disks.folder / "three").mkdir()
    mounting.bind(disks.one / shown, disks.folder / "three")
    await node.create("pv-1", f"{HOST_DIR}/one")
    await node.create("pv-3", f"{HOST_DIR}/three", phase="Bound")
    await node.clean_all(disks.configuration)
    ((name, _, message),) = await node.recorded_events()
    assert name == "pv-1"
    assert f"has the same files as PersistentVolume pv-3, at {disks.folder}/three" in message
    assert intact(disks.one)


async def test_folders_beside_each_other_on_one_filesystem(node: DeleterHarness, disks: Disks, tmp_path: Path) -> None:
    for name in ("a", "ab"):
        (tmp_path / "shared" / name).mkdir(parents=True)
        (tmp_path / "shared" / name / "data").write_bytes(PATTERN)
        (disks.folder / name).mkdir()
        mounting.bind(tmp_path / "shared" / name, disks.folder / name)
    await node.create("pv-a", f"{HOST_DIR}/a")
    await node.create("pv-ab", f"{HOST_DIR}/ab", phase="Bound")
    await node.clean_all(disks.configuration)
    await node.pass_over(disks.configuration)
    assert await node.phases() == {"pv-ab": "Bound"}
    assert list((disks.folder / "a").iterdir()) == []
    assert intact(disks.folder / "ab")


async def test_a_second_persistent_volume_with_the_same_path(node: DeleterHarness, disks: Disks) -> None:
    await node.create("pv-1", f"{HOST_DIR}/one")
    await node.create("pv-2", f"{HOST_DIR}/one", phase="Bound")
    await node.clean_all(disks.configuration)
    ((name, _, message),) = await node.recorded_events()
    assert name == "pv-1"
    assert "has the same files as PersistentVolume pv-2" in message
    assert intact(disks.one)


def holds_data(device: Path) -> bool:
    subprocess.run(["blockdev", "--flushbufs", device], check=True)
    data = device.read_bytes()
    assert (PATTERN in data) == any(data)
    return PATTERN in data


@pytest.mark.parametrize("mode", [BLOCK, FILESYSTEM])
async def test_a_linked_device_is_zeroed_and_the_other_is_not(node: DeleterHarness, disks: Disks, mode: str) -> None:
    """Also behind a volume of mode Filesystem, which the kubelet formats."""
    one, two = disks.device("disk-1"), disks.device("disk-2")
    (disks.folder / "disk-1").symlink_to(one)
    (disks.folder / "disk-2").symlink_to(two)
    await node.create("pv-1", f"{HOST_DIR}/disk-1", mode=mode)
    await node.create("pv-2", f"{HOST_DIR}/disk-2", mode=mode, phase="Bound")
    await node.clean_all(disks.configuration)
    await node.pass_over(disks.configuration)
    assert await node.phases() == {"pv-2": "Bound"}
    assert not holds_data(one)
    assert holds_data(two)
    assert node.metric("persistentvolume_delete_total", mode=BLOCK, type="process") == 1


async def test_two_links_to_one_device(node: DeleterHarness, disks: Disks) -> None:
    device = disks.device("disk-1")
    (disks.folder / "by-id").symlink_to(device)
    (disks.folder / "by-path").symlink_to(device)
    await node.create("pv-1", f"{HOST_DIR}/by-id", mode=BLOCK)
    await node.create("pv-2", f"{HOST_DIR}/by-path", mode=BLOCK, phase="Bound")
    await node.clean_all(disks.configuration)
    ((name, _, message),) = await node.recorded_events()
    assert name == "pv-1"
    assert f"device {device} is the same disk as PersistentVolume pv-2, at {disks.folder}/by-path" in message
    assert holds_data(device)


async def test_a_link_changed_during_the_cleaning(node: DeleterHarness, disks: Disks) -> None:
    """To the device of the volume beside it."""
    one, two = disks.device("disk-1"), disks.device("disk-2")
    link = disks.folder / "disk-1"
    link.symlink_to(one)
    script = f'ln -sfn {two} {link}; dd if=/dev/zero of="$LOCAL_PV_BLKDEVICE" bs=1M count=1 conv=notrunc,fsync'
    await node.create("pv-1", f"{HOST_DIR}/disk-1", mode=BLOCK)
    await node.clean_all(configured(disks.folder, cleaner=("sh", "-c", script)))
    assert link.readlink() == two
    assert not holds_data(one)
    assert holds_data(two)


async def test_a_device_in_use(node: DeleterHarness, disks: Disks) -> None:
    """The kubelet has not unmounted it yet, say."""
    device = loopdevice.find(disks.images / "disks-two")
    assert device
    (disks.folder / "disk").symlink_to(device)
    await node.create("pv", f"{HOST_DIR}/disk")
    assert f"device {device} is in use" in await refusal(node, disks.configuration, BLOCK)
    assert intact(disks.two)


async def test_a_folder_in_the_place_of_a_device(node: DeleterHarness, disks: Disks) -> None:
    await node.create("pv", f"{HOST_DIR}/one", mode=BLOCK)
    message = await refusal(node, disks.configuration)
    assert "is a folder, and the volume is a block device: restore the device" in message
    assert intact(disks.one)


async def test_neither_a_folder_nor_a_device(node: DeleterHarness, disks: Disks) -> None:
    os.mkfifo(disks.folder / "fifo")
    await node.create("pv", f"{HOST_DIR}/fifo")
    assert "is neither a folder nor a block device" in await refusal(node, disks.configuration)


async def test_a_blank_in_the_path(node: DeleterHarness, disks: Disks) -> None:
    path = disks.folder / "my disk"
    disks.mount(path)
    await node.create("pv", f"{HOST_DIR}/my disk")
    await node.clean_all(disks.configuration)
    await node.pass_over(disks.configuration)
    assert await node.phase("pv") == GONE
    assert list(path.iterdir()) == []


async def test_a_custom_cleaner_for_folders(node: DeleterHarness, disks: Disks) -> None:
    own = configured(disks.folder, folder_cleaner=("sh", "-c", 'rm "$LOCAL_PV_FILESYSTEM/data"'))
    await node.create("pv", f"{HOST_DIR}/one")
    await node.clean_all(own)
    await node.pass_over(own)
    assert await node.phase("pv") == GONE
    assert [path.name for path in disks.one.iterdir()] == ["lost+found"]
    labels = {"mode": FILESYSTEM, "type": "process", "capacity": "500G", "cleanup_command": "sh"}
    assert node.metric("persistentvolume_delete_duration_seconds_count", **labels) == 1


@pytest.mark.parametrize("mounted", [False, True])
async def test_two_loop_devices_over_one_file(node: DeleterHarness, disks: Disks, mounted: bool) -> None:
    """The kernel takes them for two devices, of which neither keeps the other busy."""
    one = disks.device("disk-1")
    argv = ["losetup", "--find", "--show", str(disks.images / "disk-1")]
    other = Path(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip())
    disks.cleanup.callback(loopdevice.detach, other)
    (disks.folder / "a").symlink_to(one)
    if mounted:
        subprocess.run(["mkfs.ext4", "-q", "-F", other], check=True)
        (disks.folder / "b").mkdir()
        subprocess.run(["mount", other, disks.folder / "b"], check=True)
        disks.cleanup.callback(mounting.unmount, disks.folder / "b")
        (disks.folder / "b" / "data").write_bytes(PATTERN)
    else:
        (disks.folder / "b").symlink_to(other)
    await node.create("pv-1", f"{HOST_DIR}/a", mode=BLOCK)
    await node.create("pv-2", f"{HOST_DIR}/b", mode=FILESYSTEM if mounted else BLOCK, phase="Bound")
    await node.clean_all(disks.configuration)
    ((name, _, message),) = await node.recorded_events()
    assert name == "pv-1"
    assert f"device {one} is the same disk as PersistentVolume pv-2, at {disks.folder}/b" in message


async def test_a_folder_whose_device_is_another_volume(node: DeleterHarness, disks: Disks) -> None:
    device = loopdevice.find(disks.images / "disks-one")
    (disks.folder / "raw").symlink_to(device or "")
    await node.create("pv-1", f"{HOST_DIR}/one")
    await node.create("pv-2", f"{HOST_DIR}/raw", mode=BLOCK, phase="Bound")
    await node.clean_all(disks.configuration)
    ((name, _, message),) = await node.recorded_events()
    assert name == "pv-1"
    assert f"path {disks.one} is the same disk as PersistentVolume pv-2, at {disks.folder}/raw" in message
    assert intact(disks.one)
