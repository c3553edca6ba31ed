from dataclasses import replace
from typing import Any

import pytest

from daemon.backends.volumegroups import metadata_size
from host.disks import Disk, choose, named_twice, objection

_EMPTY = Disk("/dev/sdb", 10 << 30)


@pytest.mark.parametrize(
    ("holds", "message"),
    [
        ({"size": 0}, "no medium"),
        ({"read_only": True}, "read-only"),
        ({"mounted_on": ("/data",)}, "mounted on /data"),
        ({"partitions": ("sdb1", "sdb2")}, "wipefs --all --force /dev/sdb"),
        ({"holders": ("dm-0",)}, "dm-0 is built on it"),
        ({"signatures": ("LVM2_member",), "busy": True, "blank": False}, "pvremove /dev/sdb"),
        ({"signatures": ("gpt", "PMBR")}, "it holds gpt, PMBR"),
        ({"busy": True}, "something uses it"),
        ({"blank": False}, "blkdiscard --zeroout --force /dev/sdb"),
    ],
)
def test_whatever_a_disk_holds_is_a_reason_to_refuse_it(holds: dict[str, Any], message: str) -> None:
    assert objection(_EMPTY) == ""
    disk = replace(_EMPTY, **holds)
    assert message in objection(disk)
    assert choose([disk]) is None


def test_the_largest_empty_disk_is_chosen_and_of_equals_the_first() -> None:
    disks = [
        replace(_EMPTY, path="/dev/sda", size=99 << 30, partitions=("sda1",)),
        replace(_EMPTY, path="/dev/sdc"),
        _EMPTY,
        replace(_EMPTY, path="/dev/sdd", size=1 << 30),
    ]
    assert choose(disks) == _EMPTY


SDB = replace(_EMPTY, number="8:16", hardware="naa.5000c5")
SDC = replace(SDB, path="/dev/sdc", number="8:32")
PART = Disk("/dev/sdb1", 1, number="8:17", lies_on=frozenset({"8:16"}))
MULTIPATH = Disk("/dev/dm-3", 1, number="253:3", lies_on=frozenset({"8:16", "8:32"}))
LOOPS = [Disk(f"/dev/loop{number}", 1, number=f"7:{number}", hardware="/image") for number in (1, 2)]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ([("/dev/sdb", SDB), ("/dev/disk/by-id/x", SDB)], "/dev/sdb and /dev/disk/by-id/x are one disk, /dev/sdb"),
        ([("/dev/sdb1", PART), ("/dev/sdb", SDB)], "/dev/sdb1 lies on /dev/sdb"),
        ([("/dev/sdb", SDB), ("/dev/mapper/m", MULTIPATH)], "/dev/mapper/m lies on /dev/sdb"),
        ([("/dev/sdb", SDB), ("/dev/sdc", SDC)], "two paths to one disk (naa.5000c5)"),
        ([("/dev/loop1", LOOPS[0]), ("/dev/loop2", LOOPS[1])], "two paths to one disk (/image)"),
    ],
)
def test_one_disk_under_two_names_is_named_so(named: list[tuple[str, Disk]], message: str) -> None:
    assert message in named_twice(named)
    assert message in named_twice([("/dev/sdz", replace(_EMPTY, path="/dev/sdz", number="65:1")), *named])


def test_partitions_of_one_disk_and_disks_without_an_identity_are_two() -> None:
    other = replace(PART, path="/dev/sdb2", number="8:18")
    assert named_twice([("/dev/sdb1", PART), ("/dev/sdb2", other)]) == ""
    silent = [replace(_EMPTY, path=f"/dev/vd{letter}", number=f"252:{letter}") for letter in "ab"]
    assert named_twice([(disk.path, disk) for disk in silent]) == ""


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([64 << 20], None),
        ([512 << 20], None),
        ([1 << 30], 2 << 20),
        ([10 << 30], 20 << 20),
        ([1 << 40], 64 << 20),
        ([1 << 40, 40 << 20], 5 << 20),
    ],
)
def test_metadata_have_room_for_as_many_volumes_as_there_are_extents(sizes: list[int], expected: int | None) -> None:
    assert metadata_size([replace(_EMPTY, size=size) for size in sizes]) == expected
