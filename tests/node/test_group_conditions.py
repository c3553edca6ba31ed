"""What keeps LVM from making volumes in a group that has room: it is published as no room, and told with its remedy.

Each test asks LVM itself first: `makes` is what a claim would get.
"""

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.parameters import RAID1, VolumeParameters
from daemon.backends.lvminventory import inventory
from daemon.cluster.capacity import available_capacity
from daemon.storage.inventory import Inventory, Pool
from tests.node.lvmmetadata import Metadata

MIB = 2**20
_DISK = 32 * MIB
_EXTENTS = 31


@pytest.fixture
def metadata(tmp_path: Path) -> Metadata:
    return Metadata(tmp_path / "lvm")


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[list[str]]:
    """Two that a test may take away."""
    images = [tmp_path / f"disk-{number}" for number in range(2)]
    for image in images:
        image.write_bytes(b"")
        os.truncate(image, _DISK)
    yield [attach(image) for image in images]
    for device, backing in attached():
        if backing in images:
            subprocess.run(["losetup", "--detach", device], check=True)


def attach(image: Path) -> str:
    done = subprocess.run(["losetup", "--find", "--show", str(image)], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def attached() -> list[tuple[str, Path]]:
    done = subprocess.run(["losetup", "--json", "--output=NAME,BACK-FILE"], check=True, capture_output=True, text=True)
    rows = json.loads(done.stdout)["loopdevices"] if done.stdout.strip() else []
    return [(row["name"], Path(row["back-file"] or "")) for row in rows]


@pytest.fixture
def group(metadata: Metadata, disks: list[str]) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    metadata.show(*disks)
    metadata.run("vgcreate", "--physicalextentsize=1m", name, *disks)
    yield name
    metadata.run("vgremove", "--force", "--force", "--yes", name, check=False)


async def look(metadata: Metadata, group: str) -> Inventory:
    return inventory(await metadata.state(), [group])


async def pool_of(metadata: Metadata, group: str) -> Pool:
    seen = (await look(metadata, group)).pool(group)
    assert seen
    return seen


def offered(pool: Pool, **parameters: object) -> int:
    return available_capacity(pool, VolumeParameters(**parameters), [], []).largest_volume  # type: ignore[arg-type]


async def test_a_group_as_it_should_be(metadata: Metadata, group: str) -> None:
    pool = await pool_of(metadata, group)
    assert (pool.blocked, pool.notices) == ("", ())
    assert offered(pool) == 2 * _EXTENTS * MIB
    assert offered(pool, raid=RAID1) == (_EXTENTS - 1) * MIB
    assert metadata.makes(group, "all", 2 * _EXTENTS)


async def test_a_disk_with_allocation_off_gives_no_room_and_is_named(
    metadata: Metadata, group: str, disks: list[str]
) -> None:
    metadata.run("pvchange", "-xn", disks[1])
    pool = await pool_of(metadata, group)
    assert pool.blocked == ""
    (words,) = pool.notices
    assert f"`pvchange -xy {disks[1]}`" in words
    assert (offered(pool), offered(pool, raid=RAID1), offered(pool, stripes=2)) == (_EXTENTS * MIB, 0, 0)
    assert not metadata.makes(group, "more", _EXTENTS + 1)
    assert metadata.makes(group, "all", _EXTENTS)
    metadata.run("pvchange", "-xy", disks[1])
    assert (await pool_of(metadata, group)).notices == ()


async def test_a_missing_disk_stops_all_changes_until_it_is_back_or_given_up(
    metadata: Metadata, group: str, disks: list[str]
) -> None:
    subprocess.run(["losetup", "--detach", disks[1]], check=True)
    assert not metadata.makes(group, "one", 1)
    pool = await pool_of(metadata, group)
    assert f"last seen as {disks[1]}" in pool.blocked
    assert f"`vgreduce --removemissing {group}`" in pool.blocked
    assert (offered(pool), pool.free) == (0, _EXTENTS * MIB)
    metadata.run("vgreduce", "--removemissing", group)
    assert offered(await pool_of(metadata, group)) == _EXTENTS * MIB
    assert metadata.makes(group, "one", _EXTENTS)


async def test_a_disk_that_lvm_finds_twice(metadata: Metadata, group: str, disks: list[str], tmp_path: Path) -> None:
    twin = attach(tmp_path / "disk-0")
    metadata.show(twin)
    assert not metadata.makes(group, "one", 1)
    pool = await pool_of(metadata, group)
    assert twin in pool.blocked
    assert disks[0] in pool.blocked
    assert offered(pool) == 0
    subprocess.run(["losetup", "--detach", twin], check=True)
    assert metadata.makes(group, "one", 1)


async def test_an_exported_group(metadata: Metadata, group: str) -> None:
    metadata.run("vgexport", group)
    assert not metadata.makes(group, "one", 1)
    seen = await look(metadata, group)
    assert seen.pool(group) is None
    assert f"`vgimport {group}`" in seen.why_unavailable(group)


async def test_a_group_of_another_host(metadata: Metadata, group: str) -> None:
    metadata.run("vgchange", "--yes", "--systemid=other", group)
    try:
        assert not metadata.makes(group, "one", 1)
        seen = await look(metadata, group)
        assert seen.pool(group) is None
        assert f'`vgchange --systemid "" {group}`' in seen.why_unavailable(group)
    finally:
        identity = 'global { system_id_source = "lvmlocal" } local { system_id = "other" }'
        metadata.run("vgchange", "--yes", "--systemid=", "--config", identity, group)


@pytest.mark.parametrize(
    ("before", "after", "refusal"),
    [
        ('"READ", "WRITE"]', '"READ"]', "read-only"),
        (
            '"READ", "WRITE"]',
            '"READ", "WRITE"]\n\t\tlock_type = "sanlock"\n\t\tlock_args = "1.0.0:l"',
            "lock type sanlock",
        ),
    ],
)
async def test_a_group_that_its_metadata_keep_from_being_changed(
    metadata: Metadata, group: str, tmp_path: Path, before: str, after: str, refusal: str
) -> None:
    backup = tmp_path / "backup"
    metadata.run("vgcfgbackup", "--file", str(backup), group)
    clean_exit_codes = backup.read_text()
    backup.write_text(clean_exit_codes.replace(before, after, 1))
    metadata.run("vgcfgrestore", "--force", "--file", str(backup), group)
    try:
        assert not metadata.makes(group, "one", 1)
        seen = await look(metadata, group)
        pool = seen.pool(group)
        assert refusal in (pool.blocked if pool else seen.why_unavailable(group))
        assert pool is None or offered(pool) == 0
    finally:
        backup.write_text(clean_exit_codes)
        unlocked = ("--config", "global { use_lvmlockd = 0 }", "--nolocking")
        metadata.run("vgcfgrestore", "--force", *unlocked, "--file", str(backup), group)


async def test_a_limit_of_volumes(metadata: Metadata, group: str) -> None:
    metadata.run("vgchange", "--logicalvolume=1", group)
    pool = await pool_of(metadata, group)
    assert (pool.blocked, pool.more_volumes) == ("", 1)
    assert metadata.makes(group, "one", 1)
    assert not metadata.makes(group, "two", 1)
    pool = await pool_of(metadata, group)
    assert f"`vgchange --logicalvolume 0 {group}`" in pool.blocked
    assert offered(pool) == 0
