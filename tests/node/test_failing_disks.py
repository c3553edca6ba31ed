"""Disks that give errors, and are well again. (Those that give no answer: test_hung_disks.py.)"""

import os
import random
import subprocess
from pathlib import Path

import pytest

from daemon.errors import BackendFailed, PoolBlocked, PoolMissing
from host import blockdevice, loopdevice
from lvm import Lvm
from tests.node.conftest import ByHand, MakeDisks
from tests.node.volume_node import MIB, Node, lvm_backend, started
from tests.torture.faultydisk import Fault, FaultyDisk, Segment, fault


async def test_a_device_that_can_not_be_read_has_not_nothing_on_it(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    with loopdevice.attached(image) as device:
        os.truncate(image, 0)  # the device keeps its size, and nothing of it can be read
        with pytest.raises(OSError, match="Input/output error"):
            await blockdevice.signature(device)


@pytest.fixture
def disk(make_disks: MakeDisks) -> FaultyDisk:
    return FaultyDisk(f"faulty-{random.randrange(10**9)}", Path(make_disks(1, 300 * MIB)[0]))


@pytest.mark.device_mapper
async def test_a_thin_pool_whose_disk_failed_is_told_checked_at_the_next_start_and_used_again(
    lvm: Lvm, disk: FaultyDisk, by_hand: ByHand, tmp_path: Path
) -> None:
    group = f"test-{disk.name}"
    await lvm.create_group(group, [str(disk.path)])
    node = Node(tmp_path, lambda: lvm_backend(lvm, group, thin=True))
    volumes = await started(node)
    folder = node.folder()
    await volumes.mount(node.spec(), folder, read_only=False)
    (folder.path / "data").write_text("written")
    os.sync()
    table = subprocess.run(
        ["dmsetup", "table", f"{group.replace('-', '--')}-pool_tmeta"], check=True, capture_output=True, text=True
    ).stdout.split()
    begin, end = int(table[4]), int(table[4]) + int(table[1])
    parts = [Segment(0, begin), Segment(begin, end - begin, "error"), Segment(end, disk.sectors - end)]
    disk.have(Fault("its metadata can't be written", [part for part in parts if part.sectors]))
    with (folder.path / "more").open("wb") as file:
        file.write(os.urandom(4 * MIB))
        with pytest.raises(OSError, match="Input/output error"):
            os.fsync(file.fileno())
    disk.mend()
    await volumes.refresh()
    with pytest.raises(PoolBlocked, match="stop the pods that use its volumes, then restart this node's daemon"):
        await volumes.prepare(node.spec(pv="other"))
    volumes = await started(node)  # its volumes are in use
    with pytest.raises(PoolBlocked, match="stop the pods that use its volumes, then restart this node's daemon"):
        await volumes.prepare(node.spec(pv="other"))
    await volumes.unmount(folder)
    volumes = await started(node)
    await volumes.prepare(node.spec(pv="other"))
    await volumes.mount(node.spec(), folder, read_only=False)
    assert (folder.path / "data").read_text() == "written"
    node.unmount_all()
    by_hand("vgremove", "--force", "--yes", group)
    disk.remove()


@pytest.mark.device_mapper
async def test_a_volume_whose_disk_fails_when_it_is_removed_is_not_gone(
    lvm: Lvm, disk: FaultyDisk, by_hand: ByHand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look at it and its lvremove."""
    group = f"test-{disk.name}"
    await lvm.create_group(group, [str(disk.path)])
    node = Node(tmp_path, lambda: lvm_backend(lvm, group, thin=False))
    volumes = await started(node)
    await volumes.prepare(node.spec(erase="none"))
    remove = Lvm.remove

    async def failing(tools: Lvm, *arguments: str, **keywords: object) -> None:
        disk.have(fault("error", disk.sectors, random.Random(0)))
        await remove(tools, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(Lvm, "remove", failing)
    with pytest.raises(PoolMissing, match=r"can't be seen on this node now .*: bring its disks back"):
        await volumes.reclaim(node.pv, "uid", group)
    monkeypatch.undo()
    disk.mend()
    await volumes.refresh()
    assert volumes.inventory.volume(node.pv), "its space was given back"
    await node.reclaim(volumes)
    by_hand("vgremove", "--force", "--yes", group)
    disk.remove()


@pytest.mark.device_mapper
@pytest.mark.parametrize("kind", ["error", "unwritable"])
async def test_a_mount_from_a_failing_disk_names_the_disk_and_is_a_mount_when_it_is_back(
    lvm: Lvm, disk: FaultyDisk, by_hand: ByHand, tmp_path: Path, kind: str
) -> None:
    group = f"test-{disk.name}"
    await lvm.create_group(group, [str(disk.path)])
    node = Node(tmp_path, lambda: lvm_backend(lvm, group, thin=False))
    volumes = await started(node)
    await volumes.prepare(node.spec())
    volumes = await started(node)
    disk.have(fault(kind, disk.sectors, random.Random(0)))
    with pytest.raises(BackendFailed, match=r"Input/output error|I/O error|gives errors"):
        await volumes.mount(node.spec(), node.folder(), read_only=False)
    disk.mend()
    await volumes.mount(node.spec(), node.folder(), read_only=False)
    node.unmount_all()
    by_hand("vgremove", "--force", "--yes", group)
    disk.remove()
