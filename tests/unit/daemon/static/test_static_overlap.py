"""When cleaning one volume would empty another."""

from pathlib import Path

import pytest

from daemon.static.diskidentity import mounts_overlap, same_disk
from host.mounttable import Mount

DISK = Path("/sys/devices/pci0/nvme/nvme0n1")


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (DISK, True),
        (DISK / "nvme0n1p1", True),
        (DISK.with_name("nvme0n10"), False),
        (DISK.with_name("nvme1n1"), False),
    ],
)
def test_a_disk_and_its_partitions(other: Path, expected: bool) -> None:
    assert same_disk(DISK, other) == same_disk(other, DISK) == expected


def test_partitions_are_beside_each_other() -> None:
    assert not same_disk(DISK / "nvme0n1p1", DISK / "nvme0n1p2")


def mount(root: str, device: str = "259:1") -> Mount:
    return Mount(1, 0, device, root, "/mnt/disks/one", frozenset(), "ext4", "/dev/nvme0n1p1", frozenset())


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [("/", "/", True), ("/", "/a", True), ("/a", "/a/b", True), ("/a", "/ab", False), ("/a", "/b", False)],
)
def test_folders_of_one_filesystem(one: str, other: str, expected: bool) -> None:
    assert mounts_overlap(mount(one), mount(other)) == mounts_overlap(mount(other), mount(one)) == expected


def test_folders_of_two_filesystems() -> None:
    assert not mounts_overlap(mount("/"), mount("/", "259:2"))
