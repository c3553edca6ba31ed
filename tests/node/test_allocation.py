"""What lvm.allocation says against what lvcreate does, on groups whose free space is in pieces."""

import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from lvm.allocation import FreeExtents
from tests.node.conftest import MakeDisks
from tests.node.lvmmetadata import Metadata

MIB = 2**20
_EXTENTS = 63


@pytest.fixture
def metadata(tmp_path: Path) -> Metadata:
    return Metadata(tmp_path / "lvm")


@pytest.fixture
def group(metadata: Metadata, make_disks: MakeDisks) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    disks = make_disks(3, 64 * MIB)
    metadata.show(*disks)
    metadata.run("vgcreate", "--physicalextentsize=1m", name, *disks)
    yield name
    metadata.run("vgremove", "--force", "--force", "--yes", name)


async def free(metadata: Metadata, name: str) -> FreeExtents:
    state = await metadata.state()
    group = state.group(name)
    assert group
    return state.free_extents(group)


async def break_up(metadata: Metadata, name: str, chance: random.Random) -> None:
    """Takes pieces of each disk, so that what is free is in pieces too."""
    for number, disk in enumerate(sorted(device.path for device in (await metadata.state()).devices_of(name))):
        start = chance.randint(0, 20)
        while (end := start + chance.randint(1, 20)) < _EXTENTS and chance.random() < 0.8:
            assert metadata.makes(name, f"piece-{number}-{start}", end - start + 1, on=f"{disk}:{start}-{end}")
            start = end + chance.randint(2, 20)


@pytest.mark.parametrize("seed", range(6))
async def test_the_largest_volume_is_made_and_one_that_is_larger_is_not(
    metadata: Metadata, group: str, seed: int
) -> None:
    chance = random.Random(seed)
    await break_up(metadata, group, chance)
    policy = chance.choice(["normal", "normal", "cling", "contiguous"])
    metadata.run("vgchange", f"--alloc={policy}", group, check=False)  # it is normal already
    room = await free(metadata, group)
    for legs in (1, 2, 3):
        most = room.most(legs)
        assert not metadata.makes(group, "more", most + legs, stripes=legs), (room, legs, most)
        if most:
            assert metadata.makes(group, "most", most, stripes=legs), (room, legs, most)
            metadata.run("lvremove", "--yes", f"{group}/most")
