"""What is published of a group is what a volume of the class gets, to the extent."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contract.parameters import RAID1, VolumeParameters
from daemon.cluster.capacity import available_capacity
from daemon.errors import BackendFailed, NoSpace, PoolBlocked
from daemon.storage.volumes import Volumes
from lvm import Lvm
from tests.node.conftest import ByHand, MakeDisks, remove_group
from tests.node.volume_node import MIB, Node, lvm_backend

pytestmark = pytest.mark.device_mapper

EXTENT = 4 * MIB


@pytest.fixture
async def uneven(lvm: Lvm, make_disks: MakeDisks, by_hand: ByHand) -> AsyncIterator[str]:
    """A group on disks of 200, 120 and 40 MiB."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    await lvm.create_group(name, [make_disks(1, size * MIB)[0] for size in (200, 120, 40)])
    yield name
    await remove_group(by_hand, name)


def published(volumes: Volumes, group: str, **parameters: object) -> int:
    pool = volumes.inventory.pool(group)
    assert pool
    return available_capacity(pool, VolumeParameters(**parameters), volumes.inventory.volumes, []).largest_volume  # type: ignore[arg-type]


@pytest.mark.parametrize("in_pieces", [False, True])
async def test_mirrors_and_stripes_on_unlike_disks(
    lvm: Lvm, uneven: str, by_hand: ByHand, tmp_path: Path, in_pieces: bool
) -> None:
    if in_pieces:
        large, middle, _ = sorted((await lvm.report()).devices_of(uneven), key=lambda device: -device.size)
        for name, place in (("a", f"{large.path}:20-24"), ("b", f"{large.path}:41-43"), ("c", f"{middle.path}:5-11")):
            extents = 1 + int(place.split("-")[-1]) - int(place.split(":")[-1].split("-")[0])
            by_hand("lvcreate", f"--extents={extents}", f"--name={name}", uneven, place)
    node = Node(tmp_path, lambda: lvm_backend(lvm, uneven, thin=False))
    volumes = node.volumes()
    await volumes.start()
    try:
        for parameters in ({"raid": RAID1}, {"stripes": 2}, {"stripes": 3}):
            await volumes.refresh()
            size = published(volumes, uneven, **parameters)
            assert size > 0
            with pytest.raises(NoSpace):
                await volumes.prepare(node.spec(size + EXTENT, **parameters))
            made = await volumes.prepare(node.spec(size, **parameters))
            assert made.size == size
            await volumes.refresh()
            assert published(volumes, uneven, **parameters) == 0
            await node.reclaim(volumes)
    finally:
        await volumes.close()


async def test_a_disk_whose_allocation_is_off_while_the_daemon_runs(
    lvm: Lvm, uneven: str, by_hand: ByHand, tmp_path: Path
) -> None:
    node = Node(tmp_path, lambda: lvm_backend(lvm, uneven, thin=False))
    volumes = node.volumes()
    await volumes.start()
    try:
        largest_volume = next(device for device in (await lvm.report()).devices_of(uneven) if device.size > 150 * MIB)
        before = published(volumes, uneven)
        by_hand("pvchange", "-xn", largest_volume.path)
        await volumes.refresh()
        assert published(volumes, uneven) == before - largest_volume.size
        with pytest.raises(NoSpace):
            await volumes.prepare(node.spec(before - largest_volume.size + EXTENT))
        await volumes.prepare(node.spec(before - largest_volume.size))
        by_hand("pvchange", "-xy", largest_volume.path)
        await volumes.refresh()
        assert published(volumes, uneven) == largest_volume.size
    finally:
        await volumes.close()


async def test_a_group_that_lvm_does_not_change_says_so_in_place_of_lvms_words(
    lvm: Lvm, uneven: str, by_hand: ByHand, tmp_path: Path
) -> None:
    node = Node(tmp_path, lambda: lvm_backend(lvm, uneven, thin=False))
    volumes = node.volumes()
    await volumes.start()
    try:
        by_hand("vgchange", "--logicalvolume=1", uneven)
        by_hand("lvcreate", "--extents=1", "--name=theirs", uneven)
        with pytest.raises(BackendFailed):  # the daemon has not looked yet, and LVM says it
            await volumes.prepare(node.spec(EXTENT * 8))
        await volumes.refresh()
        assert published(volumes, uneven) == 0
        with pytest.raises(PoolBlocked, match=r"`vgchange --logicalvolume 0 "):
            await volumes.prepare(node.spec(EXTENT * 8))
        by_hand("vgchange", "--logicalvolume=0", uneven)
        await volumes.prepare(node.spec(EXTENT * 8))
    finally:
        await volumes.close()
