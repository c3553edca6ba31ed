"""Volumes in the folders of pods, on real filesystems and mounts."""

import asyncio
import os
import stat
import subprocess
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from contract.volume import DELETE, RETAIN
from daemon.backends.loop import LoopBackend
from daemon.errors import BackendFailed, Foreign, InUse, NotAPodFolder, Occupied, VolumeNotFound
from daemon.kubelet.podfolder import PodFolder
from daemon.storage import staging
from daemon.storage.record import VolumeState
from daemon.storage.staging import Staging, TargetPath
from host import filesystem, loopdevice, mounting, mounttable
from tests.node.conftest import MakeDisks
from tests.node.volume_node import MIB, Node, image, on, started
from tests.waiting import until


@on("loop", "folder", "lvm-thick", "lvm-thin")
async def test_the_life_of_a_volume(node: Node) -> None:
    volumes = await started(node)
    assert (await volumes.prepare(node.spec())).size == 32 * MIB
    assert node.mounts() == []
    folder = node.folder()
    await volumes.mount(node.spec(), folder, read_only=False)
    (folder.path / "data").write_text("precious")
    (staged, shown) = node.mounts()
    assert (staged.path, shown.path) == (str(node.staging / node.pv), str(folder.path))
    with pytest.raises(InUse, match=f"mounted at {folder.path}: delete the pod"):
        await volumes.reclaim(node.pv, "uid", node.pool)

    volumes = await started(node)  # the daemon is another one
    await volumes.unmount(folder)
    assert node.mounts() == []
    folder.path.rmdir()
    assert list(node.staging.iterdir()) == []

    moved = node.folder()
    await volumes.mount(node.spec(), moved, read_only=False)
    assert (moved.path / "data").read_text() == "precious"
    await volumes.unmount(moved)

    await node.reclaim(volumes)
    assert volumes.inventory.volume(node.pv) is None
    volumes = await started(node)
    assert not list(volumes.inventory.volumes)
    again = node.folder()
    await volumes.mount(node.spec(uid="next"), again, read_only=False)
    assert not (again.path / "data").exists()


async def test_pods_of_a_node_share_the_volume(node: Node) -> None:
    volumes = await started(node)
    writer, reader = node.folder(), node.folder()
    await asyncio.gather(
        volumes.mount(node.spec(), writer, read_only=False),
        volumes.mount(node.spec(), reader, read_only=True),
    )
    (writer.path / "data").write_text("shared")
    assert (reader.path / "data").read_text() == "shared"
    with pytest.raises(OSError, match="Read-only file system"):
        (reader.path / "other").touch()
    assert len(node.mounts()) == 3
    await volumes.unmount(writer)
    assert [mount.path for mount in node.mounts()] == [str(node.staging / node.pv), str(reader.path)]
    await volumes.unmount(reader)
    assert node.mounts() == []


@on("loop", "folder")
async def test_a_volume_that_was_busy_when_its_last_pod_left_is_unmounted_later(node: Node) -> None:
    """Somebody was just reading it on the node: a backup, a monitor."""
    volumes = await started(node)
    folder, other = node.folder(), node.folder("pvc-2")
    await volumes.mount(node.spec(), folder, read_only=False)
    await volumes.mount(node.spec(pv="pvc-2", uid="uid-2"), other, read_only=False)
    (folder.path / "data").write_text("precious")
    reading = os.open(node.staging / node.pv / "data", os.O_RDONLY)
    await volumes.unmount(folder)
    await volumes.refresh()
    await volumes.close()
    assert str(node.staging / node.pv) in [mount.path for mount in node.mounts()]
    os.close(reading)

    await volumes.refresh()
    await until(lambda: not (node.staging / node.pv).exists(), what="it is unmounted")
    assert [mount.path for mount in node.mounts()] == [str(node.staging / "pvc-2"), str(other.path)]


async def test_asked_again(node: Node) -> None:
    volumes = await started(node)
    folder = node.folder()
    await asyncio.gather(*(volumes.mount(node.spec(), folder, read_only=False) for _ in range(5)))
    before = node.mounts()
    assert len(before) == 2
    await volumes.mount(node.spec(), folder, read_only=False)
    await (await started(node)).mount(node.spec(), folder, read_only=False)
    assert node.mounts() == before
    await asyncio.gather(*(volumes.unmount(folder) for _ in range(5)))
    await volumes.unmount(folder)
    assert node.mounts() == []


async def test_a_folder_mounted_the_other_way_is_corrected(node: Node) -> None:
    volumes = await started(node)
    folder = node.folder()
    for read_only in (True, False, True):
        await volumes.mount(node.spec(), folder, read_only=read_only)
        (shown,) = node.mounted_on(folder)
        assert shown.read_only == read_only


@pytest.mark.parametrize("chosen", [(), ("nosuid",), ("nodev", "nosuid")], ids=["neither", "nosuid", "both"])
async def test_setuid_and_devices_work_in_the_pod_alone(node: Node, chosen: tuple[str, ...]) -> None:
    """Unless the class says that they don't work there either."""
    node.staging.mkdir(mode=0o755, parents=True)  # as the kubelet does
    volumes = await started(node)
    folder = node.folder()
    await volumes.mount(node.spec(mount_options=chosen), folder, read_only=False)
    (staged, shown) = node.mounts()
    assert {"nosuid", "nodev"} <= staged.options
    assert shown.options & {"nosuid", "nodev"} == set(chosen)
    assert stat.S_IMODE(node.staging.stat().st_mode) == 0o700


async def test_a_part_of_the_volume_mounted_elsewhere_keeps_it(node: Node, tmp_path: Path) -> None:
    """As the kubelet does for subPath."""
    volumes = await started(node)
    folder = node.folder()
    await volumes.mount(node.spec(), folder, read_only=False)
    (folder.path / "part").mkdir()
    subpath = tmp_path / "subpath"
    subpath.mkdir()
    mounting.bind(folder.path / "part", subpath)
    await volumes.unmount(folder)
    assert [mount.path for mount in node.mounts()] == [str(node.staging / node.pv), str(subpath)]
    with pytest.raises(InUse, match="subpath"):
        await volumes.reclaim(node.pv, "uid", node.pool)
    mounting.unmount(subpath)
    await volumes.reclaim(node.pv, "uid", node.pool)


@on("loop", "lvm-thick")
async def test_many_mounts_at_once(node: Node) -> None:
    volumes = await started(node)
    # Under User-mode Linux each LVM command takes a third of a second, and LVM runs them one after the other.
    count = 25 if isinstance(node.make_backend(), LoopBackend) else 3
    pvs = [f"{node.pv}-{number}" for number in range(count)]
    folders = [(pv, node.folder(pv)) for pv in pvs for _ in range(2)]
    await asyncio.gather(*(volumes.mount(node.spec(4 * MIB, pv=pv), folder, read_only=False) for pv, folder in folders))
    assert len(node.mounts()) == 3 * count
    for pv, folder in folders:
        (shown,) = node.mounted_on(folder)
        (staged,) = (mount for mount in node.mounts() if mount.path == str(node.staging / pv))
        assert staging.is_same(shown, staged)
    await asyncio.gather(*(volumes.unmount(folder) for _, folder in folders))
    assert node.mounts() == []
    await asyncio.gather(*(node.reclaim(volumes, pv) for pv in pvs))
    assert not list((await started(node)).inventory.volumes)


async def test_options_of_the_class(loop_node: Node) -> None:
    spec = loop_node.spec(mkfs_options=("-b", "1024"), mount_options=("noatime", "nodev", "commit=30"))
    folder = loop_node.folder()
    await (await started(loop_node)).mount(spec, folder, read_only=True)
    (shown,) = loop_node.mounted_on(folder)
    assert {"ro", "noatime", "nodev"} <= shown.options
    assert "commit=30" in shown.filesystem_options
    assert os.statvfs(folder.path).f_bsize == 1024


async def test_what_is_not_ours_is_refused_and_left_alone(loop_node: Node) -> None:
    volumes = await started(loop_node)
    image(loop_node).write_bytes(b"a letter to grandmother")
    folder = loop_node.folder()
    with pytest.raises(Foreign, match="not of elastic-local"):
        await volumes.mount(loop_node.spec(), folder, read_only=False)
    await volumes.reclaim(loop_node.pv, "uid", loop_node.pool)
    assert image(loop_node).read_bytes() == b"a letter to grandmother"
    assert loop_node.mounts() == []


async def test_another_tenants_volume_of_that_name(node: Node) -> None:
    volumes = await started(node)
    theirs, mine = node.folder(), node.folder()
    await volumes.mount(node.spec(uid="theirs"), theirs, read_only=False)
    with pytest.raises(Foreign, match="does not show its data"):
        await volumes.mount(node.spec(uid="mine"), mine, read_only=False)
    await volumes.reclaim(node.pv, "mine", node.pool)
    assert node.mounted_on(mine) == []
    assert len(node.mounted_on(theirs)) == 1


async def test_the_policy_is_kept_with_the_volume(node: Node) -> None:
    volumes = await started(node)
    for policy in (DELETE, RETAIN, DELETE):
        await volumes.prepare(node.spec(policy=policy))
        (volume,) = (await started(node)).inventory.volumes
        assert (volume.record.policy, volume.record.state) == (policy, VolumeState.READY)
    with pytest.raises(Foreign, match="noted as that of uid uid, not another"):
        await volumes.retain(node.pv, "another", node.pool, made=True)
    await volumes.retain(node.pv, "another", node.pool, made=False)
    await volumes.retain(node.pv, "uid", node.pool, made=True)
    (volume,) = (await started(node)).inventory.volumes
    assert volume.record.policy == RETAIN


async def test_a_folder_that_shows_something_else(loop_node: Node, tmp_path: Path) -> None:
    volumes = await started(loop_node)
    folder, other = loop_node.folder(), tmp_path / "other"
    other.mkdir()
    mounting.bind(other, folder.path)
    with pytest.raises(Occupied, match="unmount it on the node"):
        await volumes.mount(loop_node.spec(), folder, read_only=False)
    (shown,) = loop_node.mounts()
    assert shown.root.endswith("/other")
    await volumes.unmount(folder)
    assert loop_node.mounts() == []


async def test_unmount_takes_away_a_stack(loop_node: Node, tmp_path: Path) -> None:
    volumes = await started(loop_node)
    folder = loop_node.folder()
    await volumes.mount(loop_node.spec(), folder, read_only=False)
    mounting.bind(tmp_path / "data", folder.path)
    mounting.bind(loop_node.staging / loop_node.pv, folder.path)
    await volumes.unmount(folder)
    assert loop_node.mounts() == []


async def test_a_busy_folder_is_reported_and_unmounted_later(loop_node: Node) -> None:
    volumes = await started(loop_node)
    folder = loop_node.folder()
    await volumes.mount(loop_node.spec(), folder, read_only=False)
    with (folder.path / "open").open("w"), pytest.raises(InUse, match="stop the processes"):
        await volumes.unmount(folder)
    await volumes.unmount(folder)
    assert loop_node.mounts() == []


async def test_links_lead_nowhere(loop_node: Node, tmp_path: Path) -> None:
    volumes = await started(loop_node)
    victim = tmp_path / "victim"
    victim.mkdir()
    folder = loop_node.folder()
    folder.path.rmdir()
    folder.path.symlink_to(victim)
    with pytest.raises(NotAPodFolder, match="links are not followed"):
        await volumes.mount(loop_node.spec(), folder, read_only=False)
    mounting.bind(tmp_path / "data", victim)
    await volumes.unmount(folder)
    assert [mount.path for mount in loop_node.mounts()] == [str(victim)]


def test_the_staging_folder_is_of_no_use_while_nothing_is_mounted(tmp_path: Path) -> None:
    assert Staging(tmp_path).make_folder("pv").stat().st_mode & 0o777 == 0


def test_the_device_of_a_volume_is_known_whatever_it_is_called_by_now(
    make_disks: MakeDisks, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """As after a vgrename; a folder has none, whatever it lies on."""
    disk = Path(make_disks(1, 16 * MIB)[0])
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    name = tmp_path / "group-volume"
    os.mknod(name, stat.S_IFBLK | 0o600, disk.stat().st_rdev)
    stage = Staging(tmp_path / "staging")
    path = stage.make_folder("pv")
    mounting.mount("ext4", name, path, ())
    request.addfinalizer(lambda: mounting.unmount(path, detach=True))
    name.unlink()
    assert stage.device_number("pv") == disk.stat().st_rdev
    (path / "folder").mkdir()
    folder = stage.make_folder("of-folder")
    mounting.bind(path / "folder", folder)
    request.addfinalizer(lambda: mounting.unmount(folder, detach=True))
    with pytest.raises(VolumeNotFound, match="not on a device of its own"):
        stage.device_number("of-folder")


async def test_a_loop_device_goes_with_the_last_mount(loop_node: Node) -> None:
    volumes = await started(loop_node)
    folder = loop_node.folder()
    await volumes.mount(loop_node.spec(), folder, read_only=False)
    assert loopdevice.find(image(loop_node))
    await volumes.unmount(folder)
    assert loopdevice.find(image(loop_node)) is None


async def test_a_mount_that_takes_no_program_is_one_call_in_one_thread(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the first pod and for one more. The mount table, which is long on a node, is not read, the pod's folder is
    opened by one call, and the device twice: to be held, and for us alone while its superblock is read."""
    volumes = await started(node)
    first, second = node.folder(), node.folder()
    await volumes.mount(node.spec(), first, read_only=False)
    await volumes.unmount(first)
    loop, calls = asyncio.get_running_loop(), list[object]()
    run_in_executor, open_file, opened = loop.run_in_executor, os.open, list[str]()

    def noted(path: Any, *arguments: Any, **options: Any) -> int:
        opened.append(os.fspath(path))
        return open_file(path, *arguments, **options)

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return run_in_executor(*arguments)

    for folder in (first, second):
        with monkeypatch.context() as patched:
            patched.setattr(loop, "run_in_executor", counted)
            patched.setattr(mounttable, "read", pytest.fail)
            patched.setattr(mounttable, "read_at", pytest.fail)
            patched.setattr(PodFolder, "_descend", pytest.fail)
            patched.setattr(os, "open", noted)
            await volumes.mount(node.spec(), folder, read_only=False)
        assert len(calls) == 1
        calls.clear()
        devices = Counter(path for path in opened if path.startswith("/dev/loop") and path[9:].isdigit())
        assert max(devices.values(), default=0) <= 2, "a free one that another test takes first is opened in vain"
        opened.clear()
    assert len(node.mounts()) == 3


async def test_a_mount_that_nobody_waits_for_any_more_is_taken_back(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kubelet was told that it failed, and would take what shows there later for a success."""
    volumes = await started(node)
    folder, other = node.folder(), node.folder()
    await volumes.mount(node.spec(), other, read_only=False)
    bind, answers = mounting.bind, threading.Event()

    def slow(source: Path | int, target: Path | int, **attributes: Any) -> Any:
        answers.wait()
        return bind(source, target, **attributes)

    with monkeypatch.context() as patched:
        patched.setattr(mounting, "bind", slow)
        patched.setattr(filesystem, "MOUNT_SECONDS", 0.01)
        with pytest.raises(BackendFailed, match="gives no answer"):
            await volumes.mount(node.spec(), folder, read_only=False)
        with pytest.raises(BackendFailed, match="gives no answer"):
            await volumes.mount(node.spec(), folder, read_only=False)
        unbound, unbind = threading.Event(), Staging.unbind

        def noted(self: Staging, target: TargetPath) -> None:
            assert node.mounted_on(folder)
            unbind(self, target)
            unbound.set()

        patched.setattr(Staging, "unbind", noted)
        answers.set()
        await until(unbound.is_set)
    assert node.mounted_on(folder) == []
    assert len(node.mounts()) == 2
    await until(lambda: not volumes.unresponsive())
    await volumes.mount(node.spec(), folder, read_only=False)


async def test_what_is_mounted_over_a_volume_as_it_is_mounted_is_not_shown_to_its_pod(
    loop_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = await started(loop_node)
    folder, others = loop_node.folder(), loop_node.root / "others"
    others.mkdir()
    mount = mounting.mount

    def covered(kind: str, device: Path, path: Path, options: Sequence[str]) -> None:
        mount(kind, device, path, options)
        mounting.bind(others, path)

    with monkeypatch.context() as patched:
        patched.setattr(mounting, "mount", covered)
        with pytest.raises(Occupied, match="which somebody mounted over volume"):
            await volumes.mount(loop_node.spec(), folder, read_only=False)
    assert loop_node.mounted_on(folder) == []
