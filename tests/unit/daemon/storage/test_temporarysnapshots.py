"""How much room a snapshot gets. The rest is on the node floor."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.storage.temporarysnapshots import SnapshotSize, snapshot_size
from lvm import largest_snapshot

GIB = 2**30
EXTENT = 4 * 2**20


@pytest.mark.parametrize(
    ("spare", "size"),
    [
        (-GIB, 0),
        (10 * GIB - 1, 0),
        (10 * GIB, 10 * GIB),
        (50 * GIB + 1, 50 * GIB),
        (1000 * GIB, 100 * GIB + 104 * 2**20),  # 16 bytes of notes for each 16 KiB, and a chunk for the head
    ],
)
def test_a_tenth_of_the_source_at_least_and_never_more_than_it_can_fill(spare: int, size: int) -> None:
    assert snapshot_size("vg", 100 * GIB, largest_snapshot(100 * GIB), spare, EXTENT).size == size


@given(source=st.integers(1, 2**44), spare=st.integers(-(2**40), 2**45), extents=st.integers(1, 2**10))
def test_a_share_is_in_whole_extents_and_within_what_is_there(source: int, spare: int, extents: int) -> None:
    extent = extents * EXTENT
    size = snapshot_size("vg", source, largest_snapshot(source), spare, extent)
    assert size.size % extent == 0
    assert size.size <= max(spare, 0)
    assert size.size == 0 or 10 * size.size >= source
    assert size == SnapshotSize("vg", size.minimum, size.maximum, size.free)
    assert 0 < size.minimum <= size.maximum
    assert size.maximum - largest_snapshot(source) < extent
