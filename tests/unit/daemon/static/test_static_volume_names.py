"""Vectors taken from the original: what was moved over from it must get the same names and sizes."""

import pytest

from daemon.static import volume

KIB, MIB, GIB, TIB = (1 << power for power in (10, 20, 30, 40))


@pytest.mark.parametrize(
    ("entry", "storage_class", "node", "digest"),
    [
        ("mount1", "sc1", "test-node", "aaaafef5"),
        ("mount2", "sc1", "test-node", "79412c38"),
        ("symlink2", "sc1", "test-node", "23645a36"),
        ("symlink1", "sc2", "test-node", "55d5adba"),
        ("symlink2", "sc2", "test-node", "226458a3"),
        ("mount3", "sc1", "test-node", "f34b8003"),
        ("symlink3", "sc1", "test-node", "4d24d329"),
        ("mount1", "sc2", "test-node", "a7aafa3c"),
        ("mount2", "sc2", "test-node", "7c4130f1"),
        ("vol37", "fast-disks", "node1", "79f391a"),
    ],
)
def test_names_of_volumes(entry: str, storage_class: str, node: str, digest: str) -> None:
    assert volume.volume_name(entry, node, storage_class) == f"local-pv-{digest}"


def test_name_of_the_volume_in_a_job() -> None:
    assert volume.job_volume_name("/mnt/disks", "/mnt/disks") == "mount-ec4cf155"


def test_an_entry_that_is_not_utf8_has_a_name_of_its_own() -> None:
    assert volume.volume_name("disk\udcff", "n", "c") != volume.volume_name("disk\udcfe", "n", "c")


def test_names_of_the_provisioner() -> None:
    assert volume.provisioner_name("node-1", "4711", node_name_only=False) == "local-volume-provisioner-node-1-4711"
    assert volume.provisioner_name("node-1", "4711", node_name_only=True) == "local-volume-provisioner-node-1"


@pytest.mark.parametrize(
    ("size", "offered"),
    [
        *((same, same) for same in (100 * KIB, 10 * MIB, 100 * MIB, 10 * GIB, 10 * TIB, 12345, 9 * GIB + 999 * MIB)),
        (10 * GIB + 5, 10 * GIB),
        (10 * MIB + 5, 10 * MIB),
        (10000 * MIB - 1, 9999 * MIB),
        (13 * GIB - 1, 12 * GIB),
        (63 * MIB - 10, 62 * MIB),
        (10000 * GIB - 1, 9999 * GIB),
        (3 * TIB + 2 * GIB + 1 * MIB, 3 * TIB + 2 * GIB),
    ],
)
def test_capacity_is_rounded_down(size: int, offered: int) -> None:
    assert volume.round_down(size) == offered
