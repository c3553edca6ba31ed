"""When cleaning one volume would empty another."""

import pytest

from daemon.static.diskidentity import mounts_overlap
from host.mounttable import Mount


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
