from dataclasses import replace
from typing import Any

import pytest

from command.disks import Disk, choose, objection

_EMPTY = Disk("/dev/sdb", 10 << 30)


@pytest.mark.parametrize(
    ("found", "words"),
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
def test_whatever_a_disk_holds_is_a_reason_to_refuse_it(found: dict[str, Any], words: str) -> None:
    assert objection(_EMPTY) == ""
    disk = replace(_EMPTY, **found)
    assert words in objection(disk)
    assert choose([disk]) is None


def test_the_largest_empty_disk_is_chosen_and_of_equals_the_first() -> None:
    disks = [
        replace(_EMPTY, path="/dev/sda", size=99 << 30, partitions=("sda1",)),
        replace(_EMPTY, path="/dev/sdc"),
        _EMPTY,
        replace(_EMPTY, path="/dev/sdd", size=1 << 30),
    ]
    assert choose(disks) == _EMPTY
