"""Which disks are the same, and which of two PersistentVolumes of one disk is kept."""

from dataclasses import replace
from itertools import permutations

import pytest

from daemon.static.diskidentity import DiskIdentity
from daemon.static.plan import DUPLICATE, DiscoveredDisk, duplicate_volumes, find_duplicate
from daemon.static.volume import StaticVolume
from host.loopdevice import Backing
from host.mounttable import Mount
from tests.unit.daemon.static.test_static_plan import pv


def device(own: str, *below: str) -> DiskIdentity:
    return DiskIdentity(frozenset({own}), frozenset({own, *below}))


def folder(device: str, root: str = "/", behind: DiskIdentity | None = None) -> DiskIdentity:
    mount = Mount(1, 0, device, root, "/mnt", frozenset(), "ext4", "/dev/x", frozenset())
    return DiskIdentity(behind.device_ids, behind.stack_ids, mount=mount) if behind else DiskIdentity(mount=mount)


DISK, PART_1, PART_2 = device("8:0"), device("8:1", "8:0"), device("8:2", "8:0")
LV_1, LV_2 = device("253:0", "8:1", "8:0"), device("253:1", "8:1", "8:0")
HALF = Backing(5, 77, 0, 0, 1024)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (DISK, DISK, True),
        (DISK, PART_1, True),
        (PART_1, PART_2, False),
        (DISK, LV_1, True),
        (PART_1, LV_2, True),
        (PART_2, LV_1, False),
        (LV_1, LV_2, False),
        (DISK, device("8:16"), False),
        (DiskIdentity(frozenset({"8:0", "naa.5"}), frozenset({"8:0", "naa.5"})), device("8:16", "naa.5"), True),
        (folder("8:1"), folder("8:1"), True),
        (folder("8:1", "/a"), folder("8:1", "/a/b"), True),
        (folder("8:1", "/a", PART_1), folder("8:1", "/ab", PART_1), False),
        (folder("8:1", "/a", PART_1), PART_1, True),
        (folder("8:1", "/a", PART_1), DISK, True),
        (folder("8:1", "/", PART_1), PART_2, False),
        (folder("0:40"), DISK, False),
        (DiskIdentity(frozenset({"7:0"}), backing=HALF), DiskIdentity(frozenset({"7:1"}), backing=HALF), True),
        (DiskIdentity(backing=HALF), DiskIdentity(backing=replace(HALF, offset=1024)), False),
        (DiskIdentity(backing=replace(HALF, limit=0)), DiskIdentity(backing=replace(HALF, offset=1024)), True),
        (DiskIdentity(backing=HALF), DiskIdentity(backing=replace(HALF, inode=78)), False),
    ],
)
def test_the_same_bytes(one: DiskIdentity, other: DiskIdentity, expected: bool) -> None:
    assert one.overlaps(other) is other.overlaps(one) is expected


def volume(name: str, phase: str = "Available", *, has_claim: bool = False, deleting: bool = False) -> StaticVolume:
    known = pv(name, path=f"/mnt/disks/{name}")
    return replace(known, uid=f"uid-{name}", phase=phase, has_claim=has_claim, deleting=deleting)


def disk(name: str, identity: DiskIdentity = DISK, known: StaticVolume | None = None) -> DiscoveredDisk:
    return DiscoveredDisk(f"/mnt/disks/{name}", name, identity, known)


def test_of_two_paths_the_first_is_offered() -> None:
    a, b, c = disk("a"), disk("b", PART_1), disk("c", device("8:16"))
    for candidates in permutations((a, b, c)):
        assert find_duplicate(a, [], candidates) is None
        assert find_duplicate(c, [], candidates) is None
        invalid = find_duplicate(b, [], candidates)
        assert invalid
        assert (invalid.name, invalid.reason) == ("b", DUPLICATE)
        assert '"/mnt/disks/b" is the same disk as "/mnt/disks/a"' in invalid.message


def test_the_path_with_a_persistent_volume_comes_first() -> None:
    known = [disk("z", DISK, volume("z"))]
    invalid = find_duplicate(disk("a"), known, [disk("a")])
    assert invalid
    assert "PersistentVolume z" in invalid.message


@pytest.mark.parametrize(
    ("one", "other", "kept", "deletable"),
    [
        (volume("a"), volume("b", "Bound"), "b", True),
        (volume("a", has_claim=True), volume("b", "Bound"), "b", False),
        (volume("a"), volume("b", "Released"), "b", True),
        (volume("a", "Released"), volume("b", "Bound"), "b", False),
        (volume("a"), volume("b"), "a", True),
        (volume("a", deleting=True), volume("b", "Pending"), "b", None),
        (volume("a", "Bound"), volume("b", "Bound"), "a", False),
    ],
)
def test_which_of_two_persistent_volumes_is_kept(
    one: StaticVolume, other: StaticVolume, kept: str, deletable: bool | None
) -> None:
    for pair in permutations((one, other)):
        duplicates = duplicate_volumes([disk(each.name, DISK, each) for each in pair])
        if deletable is None:
            assert duplicates == [], "it goes already"
        else:
            assert [(each.kept.name, each.deletable) for each in duplicates] == [(kept, deletable)]


def test_a_deleted_duplicate_does_not_block() -> None:
    """The disk was offered as a whole, and its two partitions are used."""
    volumes = [volume("whole"), volume("one", "Bound"), volume("two", "Bound")]
    disks = dict(zip(("whole", "one", "two"), (DISK, PART_1, PART_2), strict=True))
    duplicates = duplicate_volumes([disk(each.name, disks[each.name], each) for each in volumes])
    assert [(each.kept.name, each.other.name) for each in duplicates] == [("one", "whole")]
