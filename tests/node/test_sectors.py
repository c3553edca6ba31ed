"""Disks with sectors of 4096 bytes (4Kn), and what was made on those of 512."""

import asyncio
import os
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from command import nodecheckup
from command.main import app
from contract.parameters import LUKS2
from contract.volume import Original
from daemon.backends.deviceclassbackend import backend_of_classes
from daemon.backends.loop import LoopBackend
from daemon.backends.volumegroups import GroupMaker, seen_file
from daemon.errors import MountRefused, NotCloned, PoolBlocked
from daemon.storage.deviceclasses import LVM, DeviceClass, DeviceSelector
from daemon.storage.inventory import Volume
from daemon.storage.record import VolumeSpec, VolumeState
from daemon.storage.thinpools import PoolExtension
from host import blockdevice, disks, loopdevice, mounting
from host.luks import Passphrase
from lvm import Lvm, LvmError
from tests.node.conftest import ByHand, MakeDisks, remove_group
from tests.node.lvmmetadata import Metadata
from tests.node.volume_node import MIB, Node, lvm_backend, started

_DISK = 700 * MIB


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
async def test_images_are_used_on_another_disk(
    make_disks: MakeDisks, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """Moved to it, or when the kernel learns to give loop devices the sectors of the disk below."""
    (disk,) = make_disks(1, _DISK, 4096)
    small, large = tmp_path / "small", tmp_path / "large"
    mounted(disk, large, request)
    size = 320 * MIB
    node = Node(tmp_path, lambda: LoopBackend(small))
    volumes = await started(node)
    folder = node.folder()
    await volumes.mount(node.spec(size, filesystem=kind), folder, read_only=False)
    (folder.path / "word").write_text("precious")
    await volumes.unmount(folder)
    shutil.copytree(small, large / "volumes")

    node.make_backend = lambda: LoopBackend(large / "volumes")
    volumes = await started(node)
    await volumes.mount(node.spec(size, filesystem=kind), folder, read_only=False)
    assert (folder.path / "word").read_text() == "precious"
    await volumes.unmount(folder)


def test_a_file_that_shares_blocks_is_the_same_device(
    make_disks: MakeDisks, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """As cp makes one of an image on xfs."""
    (disk,) = make_disks(1, _DISK)
    folder = tmp_path / "xfs"
    mounted(disk, folder, request)
    image = folder / "image"
    image.write_bytes(os.urandom(MIB))
    with loopdevice.attached(image) as device:
        assert blockdevice.sector_size(device) == 512
    subprocess.run(["cp", "--reflink=always", image, folder / "copy"], check=True)
    with loopdevice.attached(image) as device:
        assert blockdevice.sector_size(device) == 512


def mounted(disk: str, folder: Path, request: pytest.FixtureRequest) -> None:
    """xfs, on the folder until the test ends."""
    folder.mkdir()
    subprocess.run(["mkfs.xfs", "-q", disk], check=True)
    mounting.mount("xfs", Path(disk), folder, ())
    request.addfinalizer(lambda: mounting.unmount(folder, detach=True))


@pytest.fixture
def unlike(make_disks: MakeDisks, metadata: Metadata) -> tuple[str, str]:
    """A disk with sectors of 512 bytes, and one of 4096."""
    (small,), (large,) = make_disks(1, 64 * MIB), make_disks(1, 64 * MIB, 4096)
    metadata.show(small, large)
    return small, large


@pytest.fixture
def group(metadata: Metadata, unlike: tuple[str, str]) -> Iterator[str]:
    """On the disk with the small sectors."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    metadata.run("vgcreate", name, unlike[0])
    yield name
    metadata.run("vgremove", "--force", "--force", "--yes", name)


def refused(tmp_path: Path, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["vg", *arguments, "--data-dir", str(tmp_path)])
    assert done.exit_code == 1, done.output
    assert "Traceback" not in done.stderr
    return done.stderr


def is_blank(disk: str) -> bool:
    return not Path(disk).read_bytes().strip(b"\0")


@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)])
def test_no_group_is_made_of_unlike_disks(
    unlike: tuple[str, str], metadata: Metadata, tmp_path: Path, dry_run: tuple[str, ...]
) -> None:
    small, large = unlike
    said = refused(tmp_path, "create", "both", *unlike, *dry_run)
    assert f"nothing was changed, because {small} has sectors of 512 bytes and {large} of 4096" in said
    assert is_blank(small)
    assert is_blank(large)


@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)])
def test_no_group_is_extended_by_an_unlike_disk(
    unlike: tuple[str, str], group: str, tmp_path: Path, dry_run: tuple[str, ...]
) -> None:
    said = refused(tmp_path, "extend", group, unlike[1], *dry_run)
    assert f"{unlike[1]} of 4096" in said
    assert is_blank(unlike[1])


@pytest.mark.parametrize(("more", "sector"), [(512, 512), (4096, 512), (4096, 4096)])
def test_a_disk_of_an_odd_size_is_taken_and_given_back(
    make_disks: MakeDisks, metadata: Metadata, tmp_path: Path, more: int, sector: int
) -> None:
    (disk,) = make_disks(1, 64 * MIB + more, sector)
    assert blockdevice.size(Path(disk)) == 64 * MIB + more
    metadata.show(disk)
    for verb in (("create", "odd", disk), ("remove", "odd")):
        done = CliRunner().invoke(app, ["vg", *verb, "--data-dir", str(tmp_path)])
        assert done.exit_code == 0, done.output
    assert is_blank(disk)


def test_a_disk_that_lvm_does_not_add_is_left_as_it_was(
    make_disks: MakeDisks, metadata: Metadata, group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (disk,) = make_disks(1, 64 * MIB)
    metadata.show(disk)

    async def fails(self: Lvm, name: str, devices: list[str], *, metadata_size: int | None = None) -> None:
        metadata.run("pvcreate", *devices)  # as vgextend does first
        raise LvmError("lvm vgextend", 5, "the disk is out")

    monkeypatch.setattr(Lvm, "extend_group", fails)
    assert "the disk is out" in refused(tmp_path, "extend", group, disk)
    assert is_blank(disk)


async def test_a_node_makes_no_group_of_unlike_disks(
    unlike: tuple[str, str],
    metadata: Metadata,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(disks, "whole_disks", lambda: [Path(path) for path in unlike])
    every = DeviceSelector()
    await GroupMaker(metadata.tools, tmp_path).ensure([DeviceClass("nvme", LVM, group="both", devices=every)], ())
    assert "sectors of 512 bytes" in caplog.text
    assert not seen_file(tmp_path, "both").exists()
    assert is_blank(unlike[0])
    assert is_blank(unlike[1])
    assert f"{unlike[1]} of 4096" in await nodecheckup.planned_group(tmp_path, "both", every)


async def test_nothing_grows_onto_larger_sectors(unlike: tuple[str, str], metadata: Metadata, group: str) -> None:
    """In a group that its administrator made of unlike disks, or that an old LVM did."""
    backend = lvm_backend(metadata.tools, group, thin=False)
    metadata.run("vgextend", "--config=devices/allow_mixed_block_sizes=1", group, unlike[1])
    pool = (await backend.inspect()).pool(group)
    assert pool
    (notice,) = pool.notices
    assert f"`pvchange -xn {unlike[1]}`" in notice
    assert not pool.blocked
    spec = Node(Path("/"), lambda: backend).spec()
    with pytest.raises(PoolBlocked, match="pvchange"):
        await backend.extend(Volume(spec.record(VolumeState.READY), 4 * MIB, group), 8 * MIB)
    with pytest.raises(PoolBlocked, match="pvchange"):
        await backend.extend_pool(replace(pool, name=f"{group}/pool"), PoolExtension(data=4 * MIB))
    metadata.run("pvchange", "-xn", unlike[1])
    (notice,) = ((await backend.inspect()).pool(group) or pool).notices
    assert "takes no new volumes" in notice


@pytest.fixture
async def two_groups(lvm: Lvm, make_disks: MakeDisks, by_hand: ByHand, tmp_path: Path) -> AsyncIterator[Node]:
    """Of a node with a device class on sectors of 512 bytes, `small`, and one on those of 4096, `large`."""
    groups = {name: f"{name}-{uuid.uuid4().hex[:8]}" for name in ("small", "large")}
    await lvm.create_group(groups["small"], make_disks(1, 1536 * MIB))
    await lvm.create_group(groups["large"], make_disks(1, 1536 * MIB, 4096))
    classes = {name: DeviceClass(name, LVM, group=group) for name, group in groups.items()}
    node = Node(tmp_path, lambda: backend_of_classes({"default": classes["small"], **classes}, tmp_path))
    yield node
    node.unmount_all()
    for group in groups.values():
        await remove_group(by_hand, group)


def copy_of(source: VolumeSpec, device_class: str) -> VolumeSpec:
    parameters = replace(source.parameters, device_class=device_class)
    original = Original(source.pv, source.uid)
    return replace(source, pv=f"pvc-{uuid.uuid4()}", uid="copy", parameters=parameters, original=original)


@pytest.mark.device_mapper
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
async def test_a_copy_lies_where_it_can_be_mounted(two_groups: Node, kind: str) -> None:
    node, size = two_groups, 320 * MIB
    volumes = await started(node)
    source = node.spec(size, device_class="small", filesystem=kind)
    folder = node.folder()
    await volumes.mount(source, folder, read_only=False)
    (folder.path / "word").write_text("precious")
    copy = copy_of(source, "large")
    for _ in range(2):
        with pytest.raises(NotCloned, match=f"sectors of 4096 bytes .* with 512: the {kind} has pieces of"):
            await volumes.prepare(copy)
    begun = volumes.inventory.volume(copy.pv)
    assert begun
    assert begun.record.state is VolumeState.COPYING
    with Path("/dev", begun.pool, begun.pv).open("rb") as device:
        assert not device.read(MIB).strip(b"\0"), "nothing was copied"
    assert len(volumes.inventory.snapshots) <= 1, "the second attempt needs none"
    async with asyncio.timeout(60):
        while not await volumes.reclaim(copy.pv, copy.uid, begun.pool):
            await asyncio.sleep(0.02)
    await volumes.unmount(folder)

    back = replace(source, pv=f"pvc-{uuid.uuid4()}", parameters=replace(source.parameters, device_class="large"))
    folder = node.folder(back.pv)
    await volumes.mount(back, folder, read_only=False)
    (folder.path / "word").write_text("large")
    copy = copy_of(back, "small")
    folder = node.folder(copy.pv)
    await volumes.mount(copy, folder, read_only=False)
    assert (folder.path / "word").read_text() == "large"
    await volumes.close()


@pytest.mark.device_mapper
async def test_what_can_not_be_looked_at_is_copied_to_no_larger_sectors(two_groups: Node) -> None:
    volumes = await started(two_groups)
    key = Passphrase(b"correct horse battery staple", "Secret default/key")
    for device_class, other in (("small", "large"), ("large", "small")):
        source = two_groups.spec(
            32 * MIB, pv=f"pvc-{uuid.uuid4()}", device_class=device_class, filesystem="ext4", encryption=LUKS2
        )
        await volumes.unlock(source, key)
        await volumes.release(source.pv)
        copy = copy_of(source, other)
        if device_class == "small":
            with pytest.raises(NotCloned, match="its filesystem may need smaller ones"):
                await volumes.prepare(copy)
        else:
            await volumes.unlock(copy, key)
            folder = two_groups.folder(copy.pv)
            await volumes.mount(copy, folder, read_only=False)
            await volumes.unmount(folder)
            await volumes.release(copy.pv)
    await volumes.close()  # what was copied from is erased behind it


@pytest.mark.device_mapper
async def test_a_block_volume_is_copied_to_like_sectors_only(two_groups: Node) -> None:
    volumes = await started(two_groups)
    spec = two_groups.spec(16 * MIB, device_class="large")
    source = replace(spec, parameters=spec.parameters.as_block_device())
    await volumes.prepare(source)
    with pytest.raises(NotCloned, match="a partition table counts in sectors"):
        await volumes.prepare(copy_of(source, "small"))
    await volumes.prepare(copy_of(source, "large"))
    await volumes.close()


@pytest.mark.device_mapper
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
async def test_what_was_extended_onto_larger_sectors_is_not_called_damaged(
    two_groups: Node, make_disks: MakeDisks, by_hand: ByHand, kind: str
) -> None:
    node = two_groups
    volumes = await started(node)
    spec = node.spec(320 * MIB, device_class="small", filesystem=kind)
    volume, folder = await volumes.prepare(spec), node.folder()
    await volumes.mount(spec, folder, read_only=False)
    (folder.path / "word").write_text("precious")
    await volumes.unmount(folder)
    (large,) = make_disks(1, 64 * MIB, 4096)
    by_hand("vgextend", "--config=devices/allow_mixed_block_sizes=1", volume.pool, large)
    by_hand("lvextend", "--extents=+4", f"{volume.pool}/{volume.pv}", large)
    volumes = await started(node)
    with pytest.raises(MountRefused, match=r"its filesystem is sound: .* sectors of 4096"):
        await volumes.mount(spec, folder, read_only=False)
    by_hand("lvreduce", "--force", "--yes", "--extents=-4", f"{volume.pool}/{volume.pv}")
    volumes = await started(node)
    await volumes.mount(spec, folder, read_only=False)
    assert (folder.path / "word").read_text() == "precious"
