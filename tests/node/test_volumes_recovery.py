"""What crashes, damage and failures leave of a volume, and what the next daemon makes of it.

Daemons that are killed at each of their steps: test_volumes_killed.py.
"""

import asyncio
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import BackendFailed, Damaged, Foreign, InUse, Occupied
from daemon.storage.deletionguard import Owner, RemovalReason
from daemon.storage.record import VolumeState
from daemon.storage.volumes import Volumes
from host import filesystem, mounting
from tests.agreeing import Agreeing
from tests.node.volume_node import MIB, Node, image, on, started


@on("loop", "folder", "lvm-thick")
async def test_reclaim_unmounts_what_a_crash_left_staged(node: Node) -> None:
    volumes = await started(node)
    folder = node.folder()
    await volumes.mount(node.spec(), folder, read_only=False)
    mounting.unmount(folder.path)
    assert len(node.mounts()) == 1
    await node.reclaim(volumes)
    assert node.mounts() == []
    assert not list((await started(node)).inventory.volumes)


async def test_a_volume_whose_staging_mount_somebody_took_away(node: Node) -> None:
    volumes = await started(node)
    first, second = node.folder(), node.folder()
    await volumes.mount(node.spec(), first, read_only=False)
    (first.path / "data").touch()
    mounting.unmount(node.staging / node.pv)
    with pytest.raises(InUse, match=f"mounted at {first.path}"):
        await volumes.reclaim(node.pv, "uid", node.pool)
    await volumes.mount(node.spec(), second, read_only=False)
    assert (second.path / "data").exists()
    await volumes.unmount(second)
    await volumes.unmount(first)
    assert node.mounts() == []


@on("loop", "folder", "lvm-thick")
async def test_what_somebody_mounted_over_a_volume_is_shown_to_no_pod(node: Node, tmp_path: Path) -> None:
    volumes = await started(node)
    first, second = node.folder(), node.folder()
    await volumes.mount(node.spec(), first, read_only=False)
    (first.path / "data").touch()
    other = tmp_path / "other"
    other.mkdir()
    staged = node.staging / node.pv
    mounting.bind(other, staged)
    with pytest.raises(Occupied, match=f"umount {staged}"):
        await volumes.mount(node.spec(), second, read_only=False)
    with pytest.raises(InUse, match=f"mounted at {first.path}"):
        await volumes.reclaim(node.pv, "uid", node.pool)
    await volumes.refresh()
    assert (first.path / "data").exists()
    mounting.unmount(staged)
    await volumes.mount(node.spec(), second, read_only=False)
    assert (second.path / "data").exists()
    await volumes.unmount(second)
    await volumes.unmount(first)
    assert node.mounts() == []
    await node.reclaim(volumes)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
async def test_a_volume_that_was_cut_off_is_not_filled_up_with_zeroes(loop_node: Node, kind: str) -> None:
    """As after `lvreduce`, or by a backup that was restored in part. It was, and looked sound."""
    volumes = await started(loop_node)
    spec, folder = loop_node.spec(320 * MIB, filesystem=kind), loop_node.folder()
    await volumes.mount(spec, folder, read_only=False)
    await volumes.unmount(folder)
    os.truncate(image(loop_node), 200 * MIB)
    volumes = await started(loop_node)
    with pytest.raises(Damaged, match="120Mi are cut off"):
        await volumes.mount(spec, folder, read_only=False)
    with pytest.raises(Damaged, match="120Mi are cut off"):
        await volumes.expand(replace(spec, size=400 * MIB))
    assert image(loop_node).stat().st_size == 200 * MIB


async def test_a_write_protected_volume_is_not_called_damaged(loop_node: Node, commands: list[str]) -> None:
    """As after `lvchange --permission r`, for both kinds of mount."""
    volumes = await started(loop_node)
    folder = loop_node.folder()
    for kind, pv in (("ext4", loop_node.pv), ("xfs", "pvc-xfs")):
        spec = loop_node.spec(300 * MIB if kind == "xfs" else 32 * MIB, pv=pv, filesystem=kind)
        folder = loop_node.folder(pv)
        await volumes.mount(spec, folder, read_only=False)
        (staged,) = [mount for mount in loop_node.mounts() if mount.path == str(loop_node.staging / pv)]
        with Path(staged.source).open("rb"):
            await volumes.unmount(folder)
            subprocess.run(["blockdev", "--setro", staged.source], check=True)
            try:
                with pytest.raises(BackendFailed, match=f"{staged.source} is write-protected"):
                    await volumes.mount(spec, folder, read_only=False)
            finally:
                subprocess.run(["blockdev", "--setrw", staged.source], check=True)
        await volumes.mount(spec, folder, read_only=False)
        await volumes.unmount(folder)
    assert "e2fsck" not in commands


async def test_a_sound_volume_is_not_checked_and_one_that_may_not_be_is(loop_node: Node, commands: list[str]) -> None:
    volumes = await started(loop_node)
    folder = loop_node.folder()
    for _ in range(3):
        await volumes.mount(loop_node.spec(), folder, read_only=False)
        await volumes.mount(loop_node.spec(), loop_node.folder(), read_only=False)
        loop_node.unmount_all()
    assert commands == ["mkfs.ext4"]
    subprocess.run(
        ["debugfs", "-w", "-R", "set_super_value state 2", image(loop_node)], check=True, capture_output=True
    )
    await volumes.mount(loop_node.spec(), folder, read_only=False)
    assert commands[1:3] == ["blkid", "e2fsck"]
    assert commands[3:] == (["resize2fs"] if filesystem.grows_mounted("ext4") else [])
    (shown,) = loop_node.mounted_on(folder)
    state = subprocess.run(["dumpe2fs", "-h", shown.source], check=True, capture_output=True, text=True).stdout
    assert "Filesystem state:         clean\n" in state


@pytest.mark.parametrize("damage", ["no signature", "something else"])
async def test_a_ready_volume_is_never_formatted(loop_node: Node, damage: str, commands: list[str]) -> None:
    volumes = await started(loop_node)
    await volumes.prepare(loop_node.spec())
    commands.clear()
    if damage == "no signature":
        with image(loop_node).open("r+b") as file:
            file.write(bytes(4096))
    else:
        subprocess.run(["mkswap", image(loop_node)], check=True, capture_output=True)
    before = image(loop_node).read_bytes()
    folder = loop_node.folder()
    for daemon in (await started(loop_node), await started(loop_node)):
        with pytest.raises(Damaged, match="its data was not touched, on the node run `e2fsck"):
            await daemon.mount(loop_node.spec(), folder, read_only=False)
    assert image(loop_node).read_bytes() == before
    assert loop_node.mounts() == []
    assert not [name for name in commands if name.startswith("mkfs")]


async def test_one_whose_making_was_cut_off_is_formatted_whatever_is_on_it(loop_node: Node) -> None:
    backend = loop_node.make_backend()
    await backend.establish()
    volume = await backend.create(loop_node.spec())
    assert volume.record.state is VolumeState.FORMATTING
    subprocess.run(["mkfs.ext4", "-q", "-F", image(loop_node)], check=True)
    with image(loop_node).open("r+b") as file:
        file.seek(MIB)
        file.write(b"\xff" * 4 * MIB)
    folder = loop_node.folder()
    await (await started(loop_node)).mount(loop_node.spec(), folder, read_only=False)
    assert [path.name for path in folder.path.iterdir()] == ["lost+found"]


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
async def test_a_mkfs_that_outlived_its_daemon_is_waited_for(loop_node: Node, kind: str) -> None:
    """It holds the device for itself, as all of them do: two at once would write over each other."""
    spec = loop_node.spec(320 * MIB, filesystem=kind)
    backend = loop_node.make_backend()
    await backend.establish()
    folder = loop_node.folder()
    volumes = await started(loop_node)
    async with backend.device(await backend.create(spec)) as device:
        orphan = os.open(device, os.O_RDWR | os.O_EXCL)
        try:
            with pytest.raises(BackendFailed, match=r"in use|busy"):
                await volumes.mount(spec, folder, read_only=False)
        finally:
            os.close(orphan)
    assert loop_node.mounts() == []
    await volumes.mount(spec, folder, read_only=False)
    assert len(loop_node.mounts()) == 2


async def test_one_that_a_container_still_shows_is_mounted_again(loop_node: Node) -> None:
    """Containers have mount namespaces of their own, whose mounts our table does not have. e2fsck refuses a filesystem
    that is mounted there, and that must not be taken for damage."""
    spec, folder = loop_node.spec(), loop_node.folder()
    daemon = await started(loop_node)
    await daemon.mount(spec, folder, read_only=False)
    (folder.path / "file").write_text("kept")
    container = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with container:
        assert container.stdout is not None
        assert container.stdout.readline() == b"ready\n"
        await daemon.unmount(folder)
        assert loop_node.mounts() == []
        await (await started(loop_node)).mount(spec, folder, read_only=False)
        assert (folder.path / "file").read_text() == "kept"
        container.communicate()


async def test_unmount_needs_neither_volume_nor_record_nor_folder(loop_node: Node) -> None:
    volumes = await started(loop_node)
    folder = loop_node.folder()
    await volumes.mount(loop_node.spec(), folder, read_only=False)
    for file in (loop_node.root / "data").iterdir():
        file.unlink()
    await (await started(loop_node)).unmount(folder)
    assert loop_node.mounts() == []
    folder.path.rmdir()
    await volumes.unmount(folder)


@pytest.mark.parametrize("others", [False, True])
async def test_a_mount_that_fails_late_is_undone(node: Node, others: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = await started(node)
    folder, neighbour = node.folder(), node.folder()
    if others:
        await volumes.mount(node.spec(), neighbour, read_only=False)

    bind = mounting.bind

    def fail(source: Path | int, target: Path | int, **attributes: Any) -> None:
        bind(source, target, **attributes)
        if node.mounted_on(folder):
            raise BackendFailed("it does not show")

    with monkeypatch.context() as patched:
        patched.setattr(mounting, "bind", fail)
        with pytest.raises(BackendFailed, match="it does not show"):
            await volumes.mount(node.spec(), folder, read_only=False)
    assert node.mounted_on(folder) == []
    assert len(node.mounts()) == (2 if others else 0)
    await volumes.mount(node.spec(), folder, read_only=False)


async def test_success_is_reported_only_of_what_shows(loop_node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounting, "bind", lambda source, target, *, add, drop: None)
    with pytest.raises(BackendFailed, match="does not show there"):
        await (await started(loop_node)).mount(loop_node.spec(), loop_node.folder(), read_only=False)
    assert loop_node.mounts() == []


async def test_a_caller_that_gives_up_leaves_the_work_to_be_joined(
    loop_node: Node, commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_go_on, made, make = asyncio.Event(), asyncio.Event(), list[Any](), filesystem.make

    async def gated(*arguments: Any) -> None:
        made.append(arguments)
        begun.set()
        await may_go_on.wait()
        await make(*arguments)

    monkeypatch.setattr(filesystem, "make", gated)
    volumes = await started(loop_node)
    folder = loop_node.folder()
    gave_up = asyncio.create_task(volumes.mount(loop_node.spec(), folder, read_only=False))
    async with asyncio.timeout(20):
        await begun.wait()
    gave_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gave_up
    again = asyncio.create_task(volumes.mount(loop_node.spec(), folder, read_only=False))
    may_go_on.set()
    await again
    assert len(made) == 1, "it went on, and was not begun anew"
    assert commands == ["mkfs.ext4"]
    assert len(loop_node.mounts()) == 2


class Another(Agreeing):
    """Another cluster, which has no PersistentVolume of any of these names."""

    cluster = "99999999-2222-3333-4444-555555555555"

    async def owner(self, pv: str, content: str = "") -> Owner | None:
        return None


@on("loop", "folder", "lvm-thick", "lvm-thin")
async def test_two_clusters_on_one_storage_lose_nothing(node: Node) -> None:
    ours = await started(node)
    folder = node.folder()
    await ours.mount(node.spec(), folder, read_only=False)
    (folder.path / "precious").write_text("data")
    await ours.unmount(folder)
    theirs = Volumes(node.make_backend(), node.staging, Another())
    await theirs.start()
    assert [(each.name, each.cluster) for each in theirs.inventory.foreign] == [(node.pv, Agreeing.cluster)]
    with pytest.raises(Foreign, match="of another cluster"):
        await theirs.mount(node.spec(uid="theirs"), node.folder(), read_only=False)
    for uid in ("uid", "theirs"):
        for removal in RemovalReason:
            assert await theirs.reclaim(node.pv, uid, node.pool, removal)
    await ours.refresh()
    await ours.mount(node.spec(), folder, read_only=False)
    assert (folder.path / "precious").read_text() == "data"
    await ours.unmount(folder)
    await node.reclaim(ours)
