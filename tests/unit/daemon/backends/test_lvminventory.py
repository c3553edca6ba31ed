from dataclasses import replace

import pytest

from daemon.backends.lvminventory import POOL_MARK, inventory, pools_to_check, renamed_pools, with_renamed_pools
from daemon.storage.inventory import ForeignVolume, Pool, PoolName, ThinPoolUsage, VolumeHealth
from daemon.storage.record import Record, VolumeState
from lvm import HealthStatus, LogicalVolume, PhysicalVolume, Report, VolumeGroup
from lvm.allocation import FreeExtents

MIB = 1024**2
EXTENT = 4 * MIB
GROUP = VolumeGroup("vg", "uuid", 100 * EXTENT, 40 * EXTENT, EXTENT, frozenset(), 0, False)
PLAIN = LogicalVolume(
    name="pvc-1",
    group="vg",
    uuid="u",
    size=10 * EXTENT,
    tags=frozenset(),
    path="/dev/vg/pvc-1",
    layout=frozenset({"linear"}),
    pool="",
    origin="",
    zeroes_new_blocks=False,
    active=True,
    suspended=False,
    open=False,
    health=HealthStatus.OK,
    data_percent=None,
    metadata_percent=None,
    metadata_size=0,
    overflowed=False,
)


def record(pv: str) -> Record:
    return Record(pv, "uid", "Delete", "ext4", VolumeState.READY)


def ours(pv: str, **changes: object) -> LogicalVolume:
    return replace(PLAIN, name=pv, tags=record(pv).to_tags() | {"backup"}, **changes)  # type: ignore[arg-type]


def thin(volume: LogicalVolume, pool: str = "pool") -> LogicalVolume:
    return replace(volume, pool=pool, layout=frozenset({"thin", "sparse"}))


POOL = replace(
    PLAIN, name="pool", layout=frozenset({"thin", "pool"}), size=20 * EXTENT, data_percent=12.5, metadata_percent=1.0
)


def report(*volumes: LogicalVolume, groups: tuple[VolumeGroup, ...] = (GROUP,)) -> Report:
    return Report(groups, volumes, ())


def test_ours_by_mark_alone() -> None:
    seen = inventory(report(ours("pvc-1"), replace(PLAIN, name="pvc-2")), ["vg"])
    assert [(volume.record, volume.size, volume.pool) for volume in seen.volumes] == [
        (record("pvc-1"), 10 * EXTENT, "vg")
    ]
    assert seen.foreign == [ForeignVolume("pvc-2", "vg", 10 * EXTENT)]
    free = FreeExtents(())
    assert seen.pool("vg") == Pool("vg", 100 * EXTENT, 40 * EXTENT, 10 * EXTENT, EXTENT, extents=free)


def test_a_mirror_takes_its_space_twice() -> None:
    seen = inventory(report(ours("pvc-1", layout=frozenset({"raid", "raid1"}))), ["vg"])
    assert [pool.ours for pool in seen.pools] == [2 * 11 * EXTENT]


def test_a_snapshot_being_copied_is_ours_and_takes_space_but_is_no_volume() -> None:
    of = record("pvc-1").of_snapshot()
    snapshot = replace(PLAIN, name=of.pv, tags=of.to_tags(), size=4 * EXTENT, origin="pvc-1")
    split = replace(snapshot, origin="")
    for kind in (snapshot, split, replace(snapshot, overflowed=True)):
        seen = inventory(report(ours("pvc-1"), kind), ["vg"])
        assert [volume.pv for volume in seen.volumes] == ["pvc-1"]
        assert [(each.record, each.size, each.pool) for each in seen.snapshots] == [(of, 4 * EXTENT, "vg")]
        assert not [*seen.foreign, *seen.damaged]
        assert [pool.ours for pool in seen.pools] == [14 * EXTENT]
    renamed = inventory(report(replace(snapshot, name="cow_other")), ["vg"])
    assert not renamed.snapshots
    assert [each.name for each in renamed.damaged] == [of.pv]


def test_what_lvm_removes_with_its_origin() -> None:
    state = report(
        ours("pvc-1"),
        replace(PLAIN, name="backup", origin="pvc-1"),
        thin(replace(PLAIN, name="clone", origin="pvc-1")),
        replace(PLAIN, name="other", origin="pvc-2"),
        replace(PLAIN, name="elsewhere", group="other", origin="pvc-1"),
    )
    assert [volume.name for volume in state.thick_snapshots("vg", "pvc-1")] == ["backup"]


def test_a_thin_pool_counts_what_it_promised_to_anybody() -> None:
    seen = inventory(report(POOL, thin(ours("pvc-1")), thin(replace(PLAIN, name="theirs", size=15 * EXTENT))), ["vg"])
    assert seen.pool("vg/pool") == Pool(
        "vg/pool", 20 * EXTENT, -5 * EXTENT, 10 * EXTENT, EXTENT, thin=ThinPoolUsage(12.5, 1.0)
    )
    thick = seen.pool("vg")
    assert thick is not None
    assert thick.ours == 0
    assert [volume.pool for volume in seen.volumes] == ["vg/pool"]
    assert [foreign.name for foreign in seen.foreign] == ["theirs"]


def test_a_missing_or_exported_group_has_no_pool() -> None:
    assert inventory(report(groups=()), ["vg"]).pool("vg") is None
    exported = inventory(report(ours("pvc-1"), groups=(replace(GROUP, exported=True),)), ["vg"])
    assert (exported.pools, exported.volumes) == ([], [])


def test_what_is_in_doubt_is_damaged_and_nothing_else() -> None:
    half = replace(PLAIN, name="half", tags=frozenset({"elastic-local/record=1"}))
    renamed = replace(ours("pvc-3"), name="renamed")
    twin = ours("pvc-4", group="clone")
    clone = replace(GROUP, name="clone")
    seen = inventory(report(half, renamed, ours("pvc-4"), twin, groups=(GROUP, clone)), ["vg"])
    assert seen.volumes == []
    assert seen.foreign == []
    assert [(damaged.name, damaged.pool) for damaged in seen.damaged] == [
        ("half", "vg"),
        ("pvc-3", "vg"),
        ("pvc-4", "vg"),
        ("pvc-4", "clone"),
    ]


def test_a_volume_that_was_renamed_is_not_gone() -> None:
    """Who asks for it by its name is told how to name it so again; as "gone" its PersistentVolume would go."""
    aside = replace(ours("pvc-1"), name="pvc-1-old")
    (damaged,) = inventory(report(aside), ["vg"]).damaged
    assert damaged.name == "pvc-1"
    assert "lvrename vg pvc-1-old pvc-1" in damaged.reason
    seen = inventory(report(ours("pvc-1"), aside), ["vg"])
    assert [volume.pv for volume in seen.volumes] == ["pvc-1"], "a copy with its tags beside it does not stop it"
    assert [damaged.name for damaged in seen.damaged] == ["pvc-1-old"]


def test_legs_that_a_killed_lvcreate_left_are_part_of_their_mirror() -> None:
    mirror = ours("pvc-1", layout=frozenset({"raid", "raid1"}))
    legs = [replace(mirror, name=f"pvc-1_rmeta_{leg}", layout=frozenset({"linear"}), size=EXTENT) for leg in (0, 1)]
    seen = inventory(report(mirror, *legs), ["vg"])
    assert [volume.pv for volume in seen.volumes] == ["pvc-1"]
    assert not [*seen.foreign, *seen.damaged]
    assert [pool.ours for pool in seen.pools] == [2 * 11 * EXTENT]


def test_the_system_of_the_node_is_not_reported() -> None:
    system = replace(GROUP, name="debian")
    root = replace(PLAIN, name="root", group="debian")
    assert inventory(report(root, groups=(GROUP, system)), ["vg"]).foreign == []
    seen = inventory(report(root, ours("pvc-1", group="debian"), groups=(GROUP, system)), ["vg"])
    assert [foreign.name for foreign in seen.foreign] == ["root"]


def test_complaints_of_a_pool_are_those_of_its_volumes() -> None:
    full = replace(POOL, health=HealthStatus.OUT_OF_DATA)
    seen = inventory(report(full, thin(ours("pvc-1")), ours("pvc-2", health=HealthStatus.PARTIAL)), ["vg"])
    assert [volume.health for volume in seen.volumes] == [VolumeHealth.THIN_POOL_FULL, VolumeHealth.MISSING_DEVICE]


@pytest.mark.parametrize("health", [HealthStatus.FAILED, HealthStatus.METADATA_READ_ONLY])
def test_a_pool_whose_disk_failed_takes_nothing_new_and_says_what_to_do(health: HealthStatus) -> None:
    state = report(replace(POOL, health=health), thin(ours("pvc-1")))
    found = inventory(state, ["vg"])
    pool, group = found.pool("vg/pool"), found.pool("vg")
    assert pool
    assert group
    assert "stop the pods that use its volumes, then restart this node's daemon" in pool.blocked
    assert group.blocked == ""
    assert [(pool.name, members) for pool, members in pools_to_check(state, found)] == [("pool", ["pvc-1"])]


def test_a_pool_that_was_renamed_is_not_replaced() -> None:
    own = {PoolName("vg", "pool"), PoolName("vg", "other")}
    made = replace(POOL, tags=frozenset({POOL_MARK}))
    there = replace(made, name="other")
    assert renamed_pools(report(made, there), own) == {}
    assert renamed_pools(report(there), own) == {}, "a new class"
    assert renamed_pools(report(there, replace(POOL, name="theirs")), own) == {}
    renamed = renamed_pools(report(there, replace(made, name="old")), own)
    assert list(renamed) == [PoolName("vg", "pool")]
    assert "`lvrename vg old pool`" in renamed[PoolName("vg", "pool")]
    seen = with_renamed_pools(inventory(report(there), ["vg"]), renamed)
    assert seen.why_unavailable("vg/pool") == renamed[PoolName("vg", "pool")]
    assert not seen.why_unavailable("vg/other")
    assert not seen.why_unavailable("vg")


@pytest.mark.parametrize(
    ("layout", "health"),
    [("cache", HealthStatus.FAILED), ("cache", HealthStatus.METADATA_READ_ONLY), ("writecache", HealthStatus.ERROR)],
)
def test_a_cache_that_failed_is_no_thin_pool(layout: str, health: HealthStatus) -> None:
    (volume,) = inventory(report(ours("pvc-1", layout=frozenset({layout}), health=health)), ["vg"]).volumes
    assert volume.health is VolumeHealth.CACHE_FAILED


def test_a_pool_with_volumes_of_others_or_without_a_failure_is_left_alone() -> None:
    failed = replace(POOL, health=HealthStatus.FAILED)
    for state in (
        report(failed, thin(ours("pvc-1")), thin(replace(PLAIN, name="root"))),
        report(POOL, thin(ours("pvc-1"))),
    ):
        assert list(pools_to_check(state, inventory(state, ["vg"]))) == []


@pytest.mark.parametrize(
    ("health", "linear", "mirror", "of_the_pool"),
    [
        (HealthStatus.OK, VolumeHealth.OK, VolumeHealth.OK, VolumeHealth.OK),
        (HealthStatus.PARTIAL, VolumeHealth.MISSING_DEVICE, VolumeHealth.RAID_DEGRADED, VolumeHealth.MISSING_DEVICE),
        (
            HealthStatus.REFRESH_NEEDED,
            VolumeHealth.RAID_DEGRADED,
            VolumeHealth.RAID_DEGRADED,
            VolumeHealth.RAID_DEGRADED,
        ),
        (HealthStatus.MISMATCHES, VolumeHealth.RAID_MISMATCH, VolumeHealth.RAID_MISMATCH, VolumeHealth.RAID_MISMATCH),
        (
            HealthStatus.FAILED,
            VolumeHealth.THIN_POOL_FAILED,
            VolumeHealth.THIN_POOL_FAILED,
            VolumeHealth.THIN_POOL_FAILED,
        ),
        (
            HealthStatus.OUT_OF_DATA,
            VolumeHealth.THIN_POOL_FULL,
            VolumeHealth.THIN_POOL_FULL,
            VolumeHealth.THIN_POOL_FULL,
        ),
        (HealthStatus.METADATA_READ_ONLY, VolumeHealth.READ_ONLY, VolumeHealth.READ_ONLY, VolumeHealth.READ_ONLY),
        (HealthStatus.UNKNOWN, VolumeHealth.UNKNOWN, VolumeHealth.UNKNOWN, VolumeHealth.UNKNOWN),
    ],
)
def test_each_complaint_of_lvm_has_a_name(
    health: HealthStatus, linear: VolumeHealth, mirror: VolumeHealth, of_the_pool: VolumeHealth
) -> None:
    seen = inventory(
        report(
            replace(POOL, health=health),
            ours("linear", health=health),
            ours("mirror", health=health, layout=frozenset({"raid", "raid1"})),
            thin(ours("thin")),
        ),
        "vg",
    )
    assert {volume.pv: volume.health for volume in seen.volumes} == {
        "linear": linear,
        "mirror": mirror,
        "thin": of_the_pool,
    }


def test_places_and_names_of_pools() -> None:
    for place in (PoolName("vg"), PoolName("vg", "pool")):
        assert PoolName.of(str(place)) == place


@pytest.mark.parametrize(
    ("groups", "shown", "why"),
    [
        ((GROUP,), True, ""),
        ((), False, "does not show vg"),
        ((replace(GROUP, exported=True),), False, "vgimport vg"),
        ((replace(GROUP, missing_devices=1),), True, "misses 1 of its devices"),
        ((GROUP, replace(GROUP, uuid="another")), False, "2 volume groups vg"),
    ],
)
def test_of_what_is_not_seen_in_a_group_it_says_why(groups: tuple[VolumeGroup, ...], shown: bool, why: str) -> None:
    seen = inventory(report(ours("pvc-1"), POOL, groups=groups), ["vg"])
    assert (seen.pool("vg") is not None) is shown
    assert (seen.volume("pvc-1") is not None) is shown
    for pool in ("vg", "vg/pool"):
        assert (why.replace(" vg", f" {pool}") if "does not show" in why else why) in seen.why_unavailable(pool)
        assert bool(seen.why_unavailable(pool)) is bool(why)
    assert "does not show vg/other" in seen.why_unavailable("vg/other") or why


def test_a_group_of_which_a_disk_is_found_twice_is_not_seen_whole() -> None:
    """LVM reads one of the two, and the other one may know of more volumes."""
    device = PhysicalVolume("/dev/a", "u", "vg", 100 * EXTENT, 40 * EXTENT, False, frozenset(), duplicates=("/dev/b",))
    seen = inventory(replace(report(ours("pvc-1")), devices=(device,)), ["vg"])
    assert seen.volume("pvc-1") is not None
    assert "/dev/a and /dev/b" in seen.why_unavailable("vg")
