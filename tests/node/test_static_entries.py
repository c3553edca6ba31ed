"""What people leave in a discovery folder: real mounts, real loop and LVM devices, odd names, and what is no volume."""

import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemon.static import entries
from daemon.static.configuration import BLOCK
from daemon.static.entries import EntryKind
from daemon.static.plan import INVALID_ENTRY
from host.diskthreads import DiskThreads
from lvm import Lvm
from tests.node.conftest import MakeDisks
from tests.node.staticvolumes import Discovery, class_config, configured, discovery, mount
from tests.unit.daemon.nodecluster import NODE

MIB = 1 << 20


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Discovery]:
    async with discovery(tmp_path / "api") as discovered:
        yield discovered


async def test_invalid_entries_are_reported_once(node: Discovery, fast: Path, caplog: pytest.LogCaptureFixture) -> None:
    mount(fast / "good")
    (fast / "file").write_text("left behind")
    (fast / ".hidden").touch()
    os.mkfifo(fast / "fifo")
    (fast / "lost+found").mkdir()
    (fast / "dangling").symlink_to("nowhere")
    (fast / "link").symlink_to(fast / "good")
    with socket.socket(socket.AF_UNIX) as listening:
        folder = os.open(fast, os.O_PATH)
        listening.bind(f"/proc/self/fd/{folder}/socket")
        os.close(folder)
    chosen = configured(class_config(fast))
    for _ in range(3):
        assert await node.look(chosen) == []
    assert set(await node.volumes()) == {"/host/fast/good"}
    neither = [
        f'Skipping file "{fast}/{name}": not a directory nor block device'
        for name in (".hidden", "dangling", "fifo", "file", "socket")
    ]
    remedy = "mount a filesystem on it, or remove it from the folder"
    no_mount = [f'path "{fast}/{name}" is not a valid mount point: {remedy}' for name in ("link", "lost+found")]
    events = await node.recorded_events()
    assert {(about, reason) for about, reason, _ in events} == {(NODE, INVALID_ENTRY)}
    assert sorted(message for *_, message in events) == sorted(neither + no_mount)
    assert all(caplog.text.count(message) == 1 for message in neither + no_mount)
    assert node.value("stray_entries", storage_class="fast") == 7
    (fast / "file").unlink()
    await node.look(chosen)
    assert node.value("stray_entries", storage_class="fast") == 6


async def test_names_that_do_not_match_are_ignored(node: Discovery, fast: Path) -> None:
    for name in ("nvme0", "sda", "other"):
        mount(fast / name)
    (fast / "README").touch()
    assert await node.look(configured(class_config(fast, name_pattern="nvme*,sd[a-f]"))) == []
    assert set(await node.volumes()) == {"/host/fast/nvme0", "/host/fast/sda"}
    assert node.value("stray_entries", storage_class="fast") == 0


ODD = ["with blank", "tab\there", "line\nbreak", "back\\slash", "hash#tag", "-rf", "ünïcode", "..dots", "*", "a" * 255]


async def test_mounts_with_odd_names(node: Discovery, fast: Path) -> None:
    for name in ODD:
        mount(fast / name)
    assert await node.look(configured(class_config(fast))) == []
    assert set(await node.volumes()) == {f"/host/fast/{name}" for name in ODD}


async def test_a_name_that_is_not_utf8_is_invalid(node: Discovery, fast: Path) -> None:
    mount(fast / os.fsdecode(b"disk\xff"))
    assert await node.look(configured(class_config(fast))) == []
    assert await node.recorded_events() == [(NODE, INVALID_ENTRY, "the name 'disk\\udcff' is not UTF-8: rename it")]


async def test_a_folder_reached_through_a_link(node: Discovery, fast: Path, tmp_path: Path) -> None:
    mount(fast / "one")
    (tmp_path / "linked").symlink_to(fast)
    assert await node.look(configured(class_config(tmp_path / "linked"))) == []
    assert set(await node.volumes()) == {"/host/linked/one"}


@pytest.mark.parametrize(("mode", "expected"), [(BLOCK, "Block"), ("Filesystem", "Filesystem")])
async def test_block_devices_linked_or_made_there(
    node: Discovery, fast: Path, make_disks: MakeDisks, mode: str, expected: str
) -> None:
    linked, made = make_disks(2, 12 * MIB + 512)
    (fast / "linked disk").symlink_to(linked)
    os.mknod(fast / "made", 0o660 | 0o060000, Path(made).stat().st_rdev)
    assert await node.look(configured(class_config(fast, volume_mode=mode))) == []
    offered = await node.volumes()
    assert set(offered) == {"/host/fast/linked disk", "/host/fast/made"}
    for body in offered.values():
        assert body["spec"]["volumeMode"] == expected
        assert body["spec"]["capacity"]["storage"] == "12Mi"
    assert node.value("persistentvolume_capacity_bytes", mode=expected) == 24 * MIB


async def test_a_folder_in_a_class_of_block_volumes_is_invalid(node: Discovery, fast: Path) -> None:
    mount(fast / "one")
    assert await node.look(configured(class_config(fast, volume_mode=BLOCK))) == []
    ((about, reason, message),) = await node.recorded_events()
    assert (about, reason) == (NODE, INVALID_ENTRY)
    assert message.startswith(f'path "{fast}/one" of filesystem mode cannot be used to create block volume')


async def test_a_device_without_a_medium_is_invalid(node: Discovery, fast: Path, make_disks: MakeDisks) -> None:
    (fast / "empty").symlink_to(make_disks(1, 0)[0])
    assert await node.look(configured(class_config(fast, volume_mode=BLOCK))) == []
    ((*_, message),) = await node.recorded_events()
    assert message == f'"{fast}/empty" has no capacity: check whether its device has a medium'


@pytest.mark.device_mapper
async def test_logical_volumes(lvm: Lvm, volume_group: str, fast: Path) -> None:
    await lvm.create_volume(volume_group, "data", 64 * MIB, ())
    (fast / "by path").symlink_to(f"/dev/{volume_group}/data")
    (entry,) = await entries.scan(fast, lambda name: True, DiskThreads())
    assert entry.kind is EntryKind.BLOCK
    assert await entries.capacity(entry, DiskThreads()) == 64 * MIB
