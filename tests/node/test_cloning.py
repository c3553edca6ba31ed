"""Volumes that begin as a copy of another one, on real filesystems and mounts."""

import asyncio
import os
import subprocess
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from contract.volume import Original
from daemon.backends.folder import FolderBackend
from daemon.backends.loop import LoopBackend
from daemon.errors import BackendFailed, NotCloned, VolumeError
from daemon.kubelet.podfolder import PodFolder
from daemon.storage import cloning
from daemon.storage.backend import Backend
from daemon.storage.record import VolumeSpec, VolumeState
from daemon.storage.volumes import Volumes
from host import devicecopy, filesystem, freezing
from tests.agreeing import Agreeing
from tests.node.volume_node import MIB, Node, lvm_backend, started
from tests.waiting import eventually

SIZES = {"ext4": 32 * MIB, "xfs": 300 * MIB, "btrfs": 256 * MIB}


@pytest.fixture
def make_backend(request: pytest.FixtureRequest, tmp_path: Path) -> object:
    """The fixtures of LVM are asked for by name, so that the other kinds of node do without."""
    kind = request.param
    if kind == "loop":
        return lambda: LoopBackend(tmp_path / "data")
    if kind == "folder":
        return lambda: FolderBackend(tmp_path / "data")
    tools, group = request.getfixturevalue("lvm"), request.getfixturevalue("volume_group")

    def lvm() -> Backend:
        return lvm_backend(tools, group, thin=kind == "lvm-thin")

    return lvm


@pytest.fixture
def node(tmp_path: Path, make_backend: object) -> Iterator[Node]:
    node = Node(tmp_path, make_backend)  # type: ignore[arg-type]
    yield node
    node.unmount_all()


def on(*kinds: str) -> pytest.MarkDecorator:
    params = [pytest.param(kind, marks=[pytest.mark.device_mapper] if kind.startswith("lvm") else []) for kind in kinds]
    return pytest.mark.parametrize("make_backend", params, indirect=True)


def source_of(node: Node, kind: str = "ext4") -> VolumeSpec:
    return node.spec(SIZES[kind], filesystem=kind)


def clone_of(source: VolumeSpec, size: int = 0) -> VolumeSpec:
    original = Original(source.pv, source.uid)
    return replace(source, pv=f"pvc-{uuid.uuid4()}", uid="clone", size=size or source.size, original=original)


async def filled(node: Node, volumes: Volumes, spec: VolumeSpec) -> PodFolder:
    """A pod's folder that shows the volume with data in it, not all of which the disk has seen."""
    folder = node.folder(spec.pv)
    await volumes.mount(spec, folder, read_only=False)
    (folder.path / "blob").write_bytes(b"precious" * MIB)
    (folder.path / "word").write_text("first")
    return folder


async def reclaimed(node: Node, volumes: Volumes, spec: VolumeSpec) -> None:
    """The volume is erased and gone."""
    async with asyncio.timeout(120):
        while not await volumes.reclaim(spec.pv, spec.uid, node.pool):
            await asyncio.sleep(0.05)
    assert volumes.inventory.volume(spec.pv) is None


def identifier(path: Path) -> str:
    device = subprocess.run(["findmnt", "-no", "SOURCE", path], check=True, capture_output=True, text=True).stdout
    probe = ["blkid", "--probe", "--match-tag", "UUID", "--output", "value", device.split("[")[0].strip()]
    return subprocess.run(probe, check=True, capture_output=True, text=True).stdout.strip()


@on("loop", "lvm-thick", "lvm-thin")
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
async def test_a_copy_of_what_is_in_use_stands_beside_it(node: Node, kind: str) -> None:
    volumes = await started(node)
    source = source_of(node, kind)
    shown = await filled(node, volumes, source)
    clone = clone_of(source, 2 * source.size)
    folder = node.folder(clone.pv)
    assert (await volumes.prepare(clone)).record.state is VolumeState.READY
    assert not (node.staging / clone.pv).is_mount()
    assert (await volumes.mount(clone, folder, read_only=False)).shortfall is None

    assert (folder.path / "blob").read_bytes() == b"precious" * MIB
    (folder.path / "word").write_text("copied")
    (shown.path / "word").write_text("second")
    assert (folder.path / "word").read_text() == "copied"
    assert identifier(folder.path) != identifier(shown.path)
    before, after = os.statvfs(shown.path), os.statvfs(folder.path)
    assert after.f_blocks * after.f_frsize > 1.8 * before.f_blocks * before.f_frsize

    await volumes.unmount(shown)
    await reclaimed(node, volumes, source)
    assert (folder.path / "blob").read_bytes() == b"precious" * MIB
    await volumes.unmount(folder)
    await volumes.mount(clone, folder, read_only=False)
    assert (folder.path / "word").read_text() == "copied"
    await volumes.unmount(folder)
    await reclaimed(node, volumes, clone)


@on("loop", "lvm-thick", "lvm-thin")
async def test_a_source_that_grows_while_its_copy_waits_for_it(node: Node) -> None:
    """The copy is as large as its source is by then."""
    volumes = await started(node)
    source = source_of(node)
    await volumes.unmount(await filled(node, volumes, source))
    clone, larger = clone_of(source), replace(source, size=2 * source.size)
    grown, copied = await asyncio.gather(volumes.expand(larger), volumes.prepare(clone))
    assert copied.size >= grown.size >= 2 * source.size
    folder = node.folder(clone.pv)
    await volumes.mount(clone, folder, read_only=False)
    assert (folder.path / "blob").read_bytes() == b"precious" * MIB


@on("loop", "lvm-thick", "lvm-thin")
async def test_a_copy_that_was_cut_off_is_no_copy_and_is_made_anew(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its source holds by then is what counts, and nothing of the first attempt."""
    volumes = await started(node)
    source = source_of(node)
    shown = await filled(node, volumes, source)
    clone = clone_of(source)

    async def fails(*_: object) -> None:
        raise OSError("cut off")

    with monkeypatch.context() as cut:
        cut.setattr(filesystem, "renew_uuid", fails)
        with pytest.raises(VolumeError, match="cut off"):
            await volumes.mount(clone, node.folder(clone.pv), read_only=False)
    assert not (node.staging / clone.pv).is_mount()

    (shown.path / "blob").unlink()
    (shown.path / "word").write_text("second")
    restarted = await started(node)
    begun = restarted.inventory.volume(clone.pv)
    assert begun
    snapshot = node.pool.endswith("/pool")
    assert begun.record.state is (VolumeState.FORMATTING if snapshot else VolumeState.COPYING)
    folder = node.folder(clone.pv)
    await restarted.mount(clone, folder, read_only=False)
    assert (folder.path / "word").read_text() == "second"
    assert not (folder.path / "blob").exists()


@on("lvm-thick")
async def test_a_copy_that_was_cut_off_is_erased_before_its_space_is_free(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = await started(node)
    source = source_of(node)
    await filled(node, volumes, source)
    clone = clone_of(source)

    async def fails(*_: object, **__: object) -> None:
        raise OSError("cut off")

    with monkeypatch.context() as cut:
        cut.setattr(devicecopy, "copy", fails)
        with pytest.raises(VolumeError, match="cut off"):
            await volumes.prepare(clone)
    assert not await volumes.reclaim(clone.pv, clone.uid, node.pool)
    volume = volumes.inventory.volume(clone.pv)
    assert volume
    assert volume.record.state is VolumeState.ERASING
    await volumes.close()


@on("loop")
async def test_what_is_large_is_copied_when_nobody_uses_it(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloning, "FROZEN_SIZE", 16 * MIB)
    volumes = await started(node)
    source = source_of(node)
    shown = await filled(node, volumes, source)
    clone = clone_of(source)
    with pytest.raises(NotCloned, match=f"{source.pv} is in use, and with 32Mi too large .*: stop the pods"):
        await volumes.prepare(clone)
    assert volumes.inventory.volume(clone.pv) is None
    (shown.path / "word").write_text("second")
    await volumes.unmount(shown)
    await volumes.prepare(clone)
    folder = node.folder(clone.pv)
    await volumes.mount(clone, folder, read_only=False)
    assert (folder.path / "word").read_text() == "second"


@on("lvm-thin")
async def test_where_blocks_are_shared_no_size_is_too_large(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloning, "FROZEN_SIZE", 16 * MIB)
    volumes = await started(node)
    source = source_of(node)
    await filled(node, volumes, source)
    await volumes.prepare(clone_of(source))


@on("loop")
async def test_a_copy_of_a_sparse_volume_is_sparse(node: Node) -> None:
    volumes = await started(node)
    source = node.spec(1024 * MIB)
    shown = await filled(node, volumes, source)
    await volumes.unmount(shown)
    clone = clone_of(source)
    await volumes.prepare(clone)
    assert (node.root / "data" / f"{clone.pv}.img").stat().st_blocks * 512 < 128 * MIB


@on("loop")
async def test_a_disk_too_slow_to_wait_for_holds_nobody_up(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloning, "_FROZEN_SECONDS", -1.0)
    volumes = await started(node)
    source = source_of(node)
    shown = await filled(node, volumes, source)
    with pytest.raises(NotCloned, match="too slow to hold it still"):
        await volumes.prepare(clone_of(source))
    (shown.path / "word").write_text("second")
    assert not freezing.thaw(shown.path)


@on("loop")
async def test_a_source_is_thawed_in_time_though_the_disk_of_its_copy_hangs(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloning, "_FROZEN_SECONDS", 1.0)
    monkeypatch.setattr(devicecopy, "_LAST_STEP", 3.0)
    let_go, tries = threading.Event(), 0
    volumes = await started(node)
    source = source_of(node)
    shown = await filled(node, volumes, source)

    def hangs(*_: object) -> None:
        nonlocal tries
        tries += 1
        let_go.wait(60)

    with monkeypatch.context() as broken:
        broken.setattr(devicecopy, "_copy", hangs)
        clone = clone_of(source)
        copying = asyncio.create_task(volumes.prepare(clone))
        async with asyncio.timeout(20):
            while not tries:
                await asyncio.sleep(0.01)
        await asyncio.to_thread((shown.path / "word").write_text, "second")
        assert not copying.done(), "the source was written to before the copy was given up"
        with pytest.raises(NotCloned, match="too slow to hold it still"):
            await copying
        for _ in range(3):
            with pytest.raises(BackendFailed, match="gives no answer, its disk hangs"):
                await volumes.prepare(clone)
        assert tries == 1
        assert not freezing.thaw(shown.path)
        let_go.set()
    async with asyncio.timeout(60):
        while True:
            try:
                await volumes.prepare(clone)
            except VolumeError:
                await asyncio.sleep(0.1)
            else:
                break


@on("loop")
async def test_what_a_killed_daemon_left_frozen_is_thawed_by_the_next(node: Node) -> None:
    volumes = await started(node)
    shown = await filled(node, volumes, source_of(node))
    freezing.freeze(shown.path)
    writer = subprocess.Popen(["sh", "-c", 'echo second > "$1"', "sh", shown.path / "word"])
    assert writer.poll() is None
    await started(node)
    eventually(lambda: writer.poll() is not None)
    assert writer.returncode == 0


@on("loop")
async def test_a_frozen_source_stays_frozen_when_storage_is_inspected(node: Node) -> None:
    """A daemon that lacks one of its device classes starts its storage again and again."""
    volumes = await started(node)
    shown = await filled(node, volumes, source_of(node))
    freezing.freeze(shown.path)
    await volumes.start()
    assert freezing.thaw(shown.path)


@on("loop")
async def test_what_can_not_be_copied_is_refused_with_the_reason(node: Node) -> None:
    volumes = await started(node)
    source, brittle = source_of(node), replace(source_of(node, "btrfs"), pv=f"{node.pv}-btrfs")
    await volumes.prepare(source)
    await volumes.prepare(brittle)
    itself = replace(source, pv="itself", original=Original("itself", source.uid))
    gone, other_uid = replace(source, pv="gone"), replace(source, uid="of an earlier one")
    for spec, message in (
        (itself, "not .any more. on this node for a claim of the same namespace"),
        (clone_of(gone), "volume gone, which .* is not on this node .any more."),
        (clone_of(other_uid), "is not on this node .any more."),
        (clone_of(source_of(node, "xfs")), "with xfs can't be a copy of .* with ext4"),
        (clone_of(brittle), "with btrfs can't be .* copies are made of ext4 and xfs"),
    ):
        with pytest.raises(NotCloned, match=message):
            await volumes.prepare(spec)
        assert volumes.inventory.volume(spec.pv) is None


@on("loop")
async def test_a_volume_of_another_namespace_is_not_copied(node: Node) -> None:
    volumes = Volumes(node.make_backend(), node.staging, Agreeing(), may_clone=lambda pv, original: False)
    await volumes.start()
    await volumes.prepare(source_of(node))
    with pytest.raises(NotCloned, match="the same namespace"):
        await volumes.prepare(clone_of(source_of(node)))


@on("folder")
async def test_folders_are_not_copied(node: Node) -> None:
    volumes = await started(node)
    await volumes.prepare(source_of(node))
    clone = clone_of(source_of(node))
    with pytest.raises(NotCloned, match=r"BINDMOUNT.*: delete the claim"):
        await volumes.prepare(clone)
    with pytest.raises(NotCloned, match=r"BINDMOUNT.*: delete the VolumeSnapshot"):
        await volumes.prepare(replace(clone, pv="snap_1", uid="1", content="snapcontent-1"))
    assert len(list(volumes.inventory.volumes)) == 1
