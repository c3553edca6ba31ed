"""Volumes that grow: while they are mounted, with their next mount, and where there is no room."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from contract.capacity import footprint
from daemon.errors import BackendFailed, NoSpace
from daemon.storage.inventory import Pool
from daemon.storage.volumes import Volumes
from host import filesystem
from tests.node.volume_node import MIB, Node, on, started


def capacity(path: Path) -> int:
    """Bytes of the filesystem that is mounted there."""
    figures = os.statvfs(path)
    return figures.f_blocks * figures.f_frsize


@pytest.mark.parametrize(
    ("node", "filesystem", "size", "more"),
    [
        # Growing a mounted ext4 takes CAP_SYS_RESOURCE, which not every machine of ours has; the guest does.
        pytest.param("lvm-thin", "ext4", 32, 64, marks=pytest.mark.device_mapper),
        pytest.param("lvm-thick", "xfs", 300, 400, marks=pytest.mark.device_mapper),
        ("loop", "xfs", 300, 400),
        ("loop", "btrfs", 256, 320),
    ],
    indirect=["node"],
)
async def test_growing(node: Node, filesystem: str, size: int, more: int) -> None:
    volumes = await started(node)
    folder = node.folder()
    small, large, larger = (node.spec(mib * MIB, filesystem=filesystem) for mib in (size, more, more + size))
    await volumes.mount(small, folder, read_only=False)
    (shown,) = node.mounted_on(folder)
    assert shown.filesystem == filesystem
    before = capacity(folder.path)
    assert 0.6 * size * MIB < before <= size * MIB
    assert (await volumes.expand(large)).size == more * MIB
    online = capacity(folder.path)
    assert online - before > 0.7 * (more - size) * MIB
    await volumes.unmount(folder)
    assert (await volumes.expand(larger)).size == (more + size) * MIB
    await volumes.mount(larger, folder, read_only=False)
    assert capacity(folder.path) - online > 0.7 * size * MIB
    with pytest.raises(NoSpace, match="delete volumes on this node"):
        await volumes.expand(node.spec(2 * 10**12, filesystem=filesystem))
    assert (await volumes.prepare(larger)).size == (more + size) * MIB


def checksummed(folder: Path, mib: int = 2) -> str:
    """Writes data and returns its checksum."""
    data = os.urandom(mib * MIB)
    with (folder / "data").open("wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def checksum(folder: Path) -> str:
    return hashlib.sha256((folder / "data").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("node", "filesystem", "size", "more"),
    [
        pytest.param("lvm-thick", "ext4", 32, 90, marks=pytest.mark.device_mapper),
        pytest.param("lvm-thin", "xfs", 300, 398, marks=pytest.mark.device_mapper),
        ("loop", "ext4", 32, 90),
        ("loop", "xfs", 300, 398),
        ("loop", "btrfs", 256, 322),
        ("folder", "ext4", 32, 90),
    ],
    indirect=["node"],
)
async def test_what_grew_while_nobody_used_it_grows_with_its_next_mount(
    node: Node, filesystem: str, size: int, more: int
) -> None:
    """The PersistentVolume says the new size; nobody called expand. ext4 grows before the mount where the kernel does
    not let us grow it after, and so both ways are tried, one here and one in the guest."""
    small, large = (node.spec(mib * MIB, filesystem=filesystem) for mib in (size, more))
    folder = node.folder()
    volumes = await started(node)
    await volumes.mount(small, folder, read_only=False)
    before, written = capacity(folder.path), checksummed(folder.path)
    await volumes.unmount(folder)

    for daemon in (await started(node), await started(node)):
        assert (await daemon.mount(large, folder, read_only=False)).shortfall is None
        volume = daemon.inventory.volume(node.pv)
        assert volume
        granularity = daemon.inventory.pool(volume.pool).granularity  # type: ignore[union-attr]
        assert volume.size == footprint(more * MIB, large.parameters, granularity)  # to the extent
        await daemon.expand(large)
        if node.make_backend().on_device(volume.pool):
            assert capacity(folder.path) - before > 0.7 * (more - size) * MIB
        assert checksum(folder.path) == written
        await daemon.unmount(folder)


def figures(volumes: Volumes) -> set[Pool]:
    """What is taken and free. How full a thin pool and a filesystem are changes with what is written, and where free
    extents lie is known again only after a look."""
    return {
        replace(pool, thin=None, filesystem=None, extents=None, allocated_since_look=0, more_volumes=None)
        for pool in volumes.inventory.pools
    }


@on("loop", "lvm-thick", "lvm-thin")
async def test_without_room_it_is_mounted_as_it_is_and_grows_when_there_is(node: Node) -> None:
    folder = node.folder()
    volumes = await started(node)
    await volumes.mount(node.spec(300 * MIB, filesystem="xfs"), folder, read_only=False)
    written = checksummed(folder.path)
    await volumes.unmount(folder)
    free = node.free(volumes)
    # Not erased: from Linux 6.12 on a loop device on tmpfs lets go no more blocks once it was asked for written zeroes.
    neighbour = node.spec(free - 8 * MIB, pv=f"{node.pv}-neighbour", mkfs_options=("-E", "nodiscard"), erase="none")
    await volumes.prepare(neighbour)
    before = figures(volumes)

    large = node.spec(400 * MIB, filesystem="xfs")
    shortfall = (await volumes.mount(large, folder, read_only=False)).shortfall
    assert isinstance(shortfall, NoSpace)
    assert (shortfall.needed, shortfall.available) == (100 * MIB, 8 * MIB)
    with pytest.raises(NoSpace, match=r"needs 100Mi of .* on this node, which has 8Mi left for it: delete volumes"):
        await volumes.expand(large)
    assert figures(await started(node)) == before  # nothing half done
    assert checksum(folder.path) == written

    await node.reclaim(volumes, neighbour.pv)
    assert (await volumes.expand(large)).size == 400 * MIB
    assert capacity(folder.path) > 320 * MIB
    assert checksum(folder.path) == written
    assert node.free(volumes) == free - 100 * MIB


async def test_a_filesystem_that_can_not_grow_is_mounted_all_the_same(
    loop_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = await started(loop_node)
    await volumes.prepare(loop_node.spec())
    await volumes.expand(loop_node.spec(64 * MIB))

    async def refuse(*_: object) -> None:
        raise PermissionError("not for you")

    monkeypatch.setattr(filesystem, "grow", refuse)
    monkeypatch.setattr(filesystem, "grow_unmounted", refuse)
    folder = loop_node.folder()
    shortfall = (await volumes.mount(loop_node.spec(64 * MIB), folder, read_only=False)).shortfall
    assert "does not fill it: not for you" in str(shortfall)
    assert len(loop_node.mounted_on(folder)) == 1
    with pytest.raises(BackendFailed, match="not for you"):
        await volumes.expand(loop_node.spec(64 * MIB))
