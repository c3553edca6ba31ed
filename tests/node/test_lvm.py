"""The library against real LVM."""

import pytest

from lvm import Lvm

pytestmark = pytest.mark.device_mapper

GIB = 2**30


@pytest.mark.parametrize(("asked", "made"), [(GIB, GIB), (GIB + 1, GIB + 4 * 2**20)])
async def test_sizes_are_exact(lvm: Lvm, volume_group: str, asked: int, made: int) -> None:
    await lvm.create_volume(volume_group, "data", asked, {"owner=me"})
    state = await lvm.report()
    volume = state.volume(volume_group, "data")
    assert volume is not None
    assert volume.size == made
