"""What LVM's report means to the daemon: which logical volumes are ours, and what their pools have. Pure."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import lvm
from contract import capacity, quantity
from contract.parameters import RAID1, VolumeParameters
from daemon.backends import lvmgroups
from daemon.storage.inventory import (
    DamagedVolume,
    ForeignVolume,
    Inventory,
    Pool,
    PoolName,
    ThinPoolUsage,
    UnavailablePool,
    Volume,
    VolumeHealth,
)
from daemon.storage.record import DamagedRecord, from_tags
from lvm import LogicalVolume, VolumeGroup

_LEG = re.compile(r"_(rmeta|rimage)_\d+")
"""An lvcreate that is killed while it wipes the legs of a mirror leaves them visible, with the tags of the mirror. They
go with it."""

_MIRROR = VolumeParameters(raid=RAID1)

POOL_MARK = "elastic-local/thin-pool"
"""Tag of a pool that we made. By it we know also what an lvcreate that was killed left under the pool's name, and one
that was renamed."""

_NAMED_BY_LVM = re.compile(r"lvol\d+")
_LARGEST_METADATA = 16 << 30
"""Bytes of a thin pool's metadata, lvmthin(7)."""


def inventory(state: lvm.Report, groups: Collection[str]) -> Inventory:
    """What LVM's report means to us. `groups` are where ours are kept by default: what is not ours is listed there,
    and in groups that have volumes of ours, but not of the node's own system."""
    volumes: list[Volume] = []
    snapshots: list[Volume] = []
    damaged: list[DamagedVolume] = []
    strangers: list[LogicalVolume] = []
    renamed: list[tuple[str, LogicalVolume]] = []
    usable = {group.name for group in state.groups} - _hidden(state).keys()
    for lv in state.volumes:
        if lv.is_thin_pool or lv.group not in usable:
            continue
        try:
            record = from_tags(lv.tags)
        except DamagedRecord as error:
            damaged.append(DamagedVolume(lv.name, _pool_of(lv), f"its tags say: {error}"))
            continue
        if record is None:
            strangers.append(lv)
        elif _LEG.fullmatch(lv.name.removeprefix(record.pv)):
            continue
        elif record.pv != lv.name:
            renamed.append((record.pv, lv))
        else:
            kind = snapshots if record.snapshot_of else volumes
            header = min(record.header_size, lv.size)
            overhead = header + _overhead(state, lv)
            kind.append(Volume(record, lv.size - header, _pool_of(lv), _health(state, lv), overhead))
    there = {volume.pv for volume in (*volumes, *snapshots)}
    for pv, lv in renamed:
        # Under the name that is asked for: its volume is neither lost nor gone. Beside that volume, it is a copy.
        why = f"the tags of {lv.group}/{lv.name} say that it is {pv}: `lvrename {lv.group} {lv.name} {pv}`"
        damaged.append(DamagedVolume(lv.name if pv in there else pv, _pool_of(lv), why))
    count = Counter(volume.pv for volume in volumes)
    for volume in volumes:
        if count[volume.pv] > 1:
            why = "another group has a volume with the same record: take away the disks of the one that is a copy"
            damaged.append(DamagedVolume(volume.pv, volume.pool, why))
    volumes = [volume for volume in volumes if count[volume.pv] == 1]
    ours = {(PoolName.of(volume.pool).group, volume.pv) for volume in (*volumes, *snapshots)}
    shown = {*groups} | {name for name, _ in ours}
    foreign = [ForeignVolume(lv.name, _pool_of(lv), lv.size) for lv in strangers if lv.group in shown]
    pools = [
        pool
        for group in state.groups
        if group.name in usable
        for pool in (_group_pool(state, group, (*volumes, *snapshots)), *_thin_pools(state, group, ours))
    ]
    return Inventory(volumes, pools, foreign, damaged, snapshots, list(_unavailable(state)))


def _hidden(state: lvm.Report) -> dict[str, str]:
    """Groups of which nothing may be touched, and why. LVM shows the volumes of two groups of one name as if they were
    of one, and the one that a command would mean may be the other."""
    count = Counter(group.name for group in state.groups)
    hidden = {}
    for group in state.groups:
        if count[group.name] > 1:
            hidden[group.name] = (
                f"this node has {count[group.name]} volume groups {group.name}: take the disks of one away, or rename "
                "it (`vgrename UUID NEW-NAME`)"
            )
        elif why := lvmgroups.unusable(group):
            hidden[group.name] = why
    return hidden


def _unavailable(state: lvm.Report) -> Iterator[UnavailablePool]:
    """Each device has a copy of its group's metadata, and one that was away may come back with volumes that the others
    know nothing of."""
    for name, reason in _hidden(state).items():
        yield UnavailablePool(name, reason)
    for group in state.groups:
        if group.missing_devices:
            yield UnavailablePool(
                group.name,
                f"volume group {group.name} misses {group.missing_devices} of its devices: bring them back, or if they "
                f"are gone for good `vgreduce --removemissing {group.name}`",
            )
        elif any(device.duplicates for device in state.devices_of(group.name)):
            # LVM read one copy, the other may be newer.
            yield UnavailablePool(group.name, lvmgroups.refusal(state, group))


def renamed_pools(state: lvm.Report, own: Collection[PoolName]) -> dict[PoolName, str]:
    """The thin pools of device classes, `own`, that are not there while one that we made is, which no class names: why
    none is made in their place, and what to do."""
    why = {}
    for name in own:
        if state.volume(name.group, name.thin_pool) is not None:
            continue
        for other in state.volumes_of(name.group):
            if other.is_thin_pool and POOL_MARK in other.tags and PoolName(other.group, other.name) not in own:
                why[name] = (
                    f"thin pool {name} is missing, and {other.group}/{other.name} is one that this node made for a "
                    "device class and that none names now, so no new one is made: "
                    f"`lvrename {other.group} {other.name} {name.thin_pool}`, or name it in the device class "
                    f"(thinPool); if both are wanted `lvchange --deltag {POOL_MARK} {other.group}/{other.name}`"
                )
    return why


def with_renamed_pools(seen: Inventory, renamed: Mapping[PoolName, str]) -> Inventory:
    """What was found, and that these pools can't be seen."""
    unavailable = [UnavailablePool(str(name), why) for name, why in renamed.items()]
    return replace(seen, unavailable=[*seen.unavailable, *unavailable]) if unavailable else seen


def without_unresponsive(seen: Inventory, hung: Mapping[str, Exception]) -> Inventory:
    """What was found, but for groups with a device that gives no answer: of these a part only was read."""
    if not hung:
        return seen

    def answers(pool: str) -> bool:
        return PoolName.of(pool).group not in hung

    return replace(
        seen,
        volumes=[each for each in seen.volumes if answers(each.pool)],
        snapshots=[each for each in seen.snapshots if answers(each.pool)],
        foreign=[each for each in seen.foreign if answers(each.pool)],
        damaged=[each for each in seen.damaged if answers(each.pool)],
        pools=[pool for pool in seen.pools if answers(pool.name)],
        unavailable=[
            *(each for each in seen.unavailable if answers(each.pool)),
            *(UnavailablePool(group, str(why), unresponsive=True) for group, why in hung.items()),
        ],
    )


def pools_to_check(state: lvm.Report, seen: Inventory) -> Iterator[tuple[LogicalVolume, list[str]]]:
    """Thin pools that the kernel takes no changes of, with all their volumes, where these are all ours."""
    ours = {(PoolName.of(volume.pool), volume.pv) for volume in (*seen.volumes, *seen.snapshots)}
    for pool in state.volumes:
        members = [volume.name for volume in state.thin_volumes(pool.group, pool.name)]
        if lvmgroups.needs_check(pool) and ours.issuperset((PoolName(pool.group, pool.name), each) for each in members):
            yield pool, members


def suspended(state: lvm.Report, seen: Inventory) -> list[LogicalVolume]:
    """Volumes of ours that are suspended, and their thin pools before them: what is suspended below a volume stops
    whoever does anything with it."""
    volumes = [(PoolName.of(volume.pool).group, volume.pv) for volume in seen.volumes]
    pools = [PoolName.of(pool.name) for pool in seen.pools if pool.thin and pool.ours]
    names = [*((place.group, place.thin_pool) for place in pools), *volumes]
    known = (state.volume(group, name) for group, name in names)
    return [volume for volume in known if volume and volume.suspended]


def _pool_of(volume: LogicalVolume) -> str:
    return str(PoolName(volume.group, volume.pool if volume.is_thin else ""))


_HEALTH = {
    lvm.HealthStatus.OK: VolumeHealth.OK,
    lvm.HealthStatus.PARTIAL: VolumeHealth.MISSING_DEVICE,
    lvm.HealthStatus.REFRESH_NEEDED: VolumeHealth.RAID_DEGRADED,
    lvm.HealthStatus.MISMATCHES: VolumeHealth.RAID_MISMATCH,
    lvm.HealthStatus.FAILED: VolumeHealth.THIN_POOL_FAILED,
    lvm.HealthStatus.ERROR: VolumeHealth.CACHE_FAILED,
    lvm.HealthStatus.OUT_OF_DATA: VolumeHealth.THIN_POOL_FULL,
    lvm.HealthStatus.METADATA_READ_ONLY: VolumeHealth.READ_ONLY,
    lvm.HealthStatus.UNKNOWN: VolumeHealth.UNKNOWN,
}


_OF_CACHE = (lvm.HealthStatus.FAILED, lvm.HealthStatus.METADATA_READ_ONLY)
"""These LVM says of thin pools and of caches alike."""


def _health(state: lvm.Report, volume: LogicalVolume) -> VolumeHealth:
    """That of a thin volume is its pool's, unless it has a complaint of its own. A mirror of which a device is missing
    still has its data."""
    if "raid1" in volume.layout and volume.health is lvm.HealthStatus.PARTIAL:
        return VolumeHealth.RAID_DEGRADED
    if volume.is_cached and volume.health in _OF_CACHE:
        return VolumeHealth.CACHE_FAILED
    pool = state.volume(volume.group, volume.pool) if volume.is_thin else None
    complaint = volume.health if volume.health is not lvm.HealthStatus.OK or pool is None else pool.health
    return _HEALTH[complaint]


def _overhead(state: lvm.Report, volume: LogicalVolume) -> int:
    group = state.group(volume.group)
    if group is None or "raid1" not in volume.layout:
        return 0
    return capacity.footprint(volume.size, _MIRROR, group.extent_size) - volume.size


def _group_pool(state: lvm.Report, group: VolumeGroup, ours: Collection[Volume]) -> Pool:
    return Pool(
        name=group.name,
        size=group.size,
        free=lvmgroups.usable_free(state, group),
        ours=sum(volume.size + volume.overhead for volume in ours if volume.pool == group.name),
        granularity=group.extent_size,
        blocked=lvmgroups.refusal(state, group),
        notices=(*lvmgroups.notices(state, group), *_maybe_left_over(state, group)),
        extents=state.free_extents(group),
        more_volumes=lvmgroups.room_for_volumes(group),
    )


def _maybe_left_over(state: lvm.Report, group: VolumeGroup) -> Iterator[str]:
    """Volumes that may be what an lvcreate of a thin pool left that was killed. First of all LVM makes the spare of its
    metadata, as a volume without tags under a name of its own choice; somebody's volume that was given no name looks
    the same, so a person has to say whether it may go."""
    volumes = list(state.volumes_of(group.name))
    if any(volume.is_thin_pool and POOL_MARK in volume.tags for volume in volumes):
        for volume in volumes:
            plain = volume.layout == {"linear"} and not volume.tags and not volume.open
            if plain and _NAMED_BY_LVM.fullmatch(volume.name) and volume.size <= _LARGEST_METADATA:
                name = f"{group.name}/{volume.name}"
                yield (
                    f"volume {name} ({quantity.humane(volume.size)}) may be left over from making a thin pool, which "
                    f"was cut off: `lvremove {name}`, unless it is somebody's, then give it a name "
                    f"(`lvrename {name} NAME`)"
                )


def _thin_pools(state: lvm.Report, group: VolumeGroup, ours: set[tuple[str, str]]) -> Iterator[Pool]:
    for pool in state.volumes_of(group.name):
        if not pool.is_thin_pool:
            continue
        members = list(state.thin_volumes(group.name, pool.name))
        yield Pool(
            name=str(PoolName(group.name, pool.name)),
            size=pool.size,
            free=pool.size - sum(member.size for member in members),
            ours=sum(member.size for member in members if (member.group, member.name) in ours),
            granularity=group.extent_size,
            thin=ThinPoolUsage(pool.data_percent, pool.metadata_percent, pool.metadata_size),
            blocked=lvmgroups.refusal_of_pool(state, group, pool),
            more_volumes=lvmgroups.room_for_volumes(group),
        )
