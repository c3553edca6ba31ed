"""How much of a pool is reserved, and how much capacity the node still has for each class.

A PersistentVolume that is assigned to this node has a right to its space from that moment until its finalizer goes,
whether its volume is made yet or not. Two figures follow (contract/capacity.py):

    allocatable = free + what volumes of live PersistentVolumes take - reserve
    available   = allocatable - what is reserved for all PersistentVolumes assigned to this node

`allocatable` stays where it is when a volume is made (free shrinks by what the volume takes) and when one is removed.
A volume whose PersistentVolume was let go under policy Retain counts as taken for ever, so it is left out of the sum
before the finalizer goes; until then the provisioner subtracts it twice, which is too careful and never wrong.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from contract.capacity import footprint
from contract.parameters import RAID1, ParameterError, VolumeParameters
from contract.volume import DELETE, PersistentVolume
from daemon.storage.freespace import Reservation
from daemon.storage.inventory import Inventory, Pool, Volume
from daemon.storage.thinpools import Level, level


@dataclass(frozen=True)
class AvailableCapacity:
    """What a pool has for the volumes of one class. Sizes in bytes."""

    allocatable: int
    available: int
    largest_volume: int
    """The largest volume of the class for which `available` is enough: a mirror takes more than its size."""
    reserved: int = 0
    """What is reserved of the pool for the PersistentVolumes assigned to this node."""
    shared: int = 0
    """Of a pool that shares its filesystem with others: what all of them together may take."""


def reservations(persistent_volumes: Iterable[PersistentVolume], inventory: Inventory) -> list[Reservation]:
    """What each PersistentVolume of this node has a right to, in its pool. What its claim asks for beyond that is not
    reserved."""
    reserved = []
    for pv in persistent_volumes:
        pool = inventory.pool(pv.pool)
        if pool is not None:
            parameters = parameters_of(pv)
            reserved.append(
                Reservation(pv.name, pool.name, footprint(pv.target_size, parameters, pool.granularity), parameters)
            )
    return reserved


def available_capacity(
    pool: Pool,
    requested: VolumeParameters,
    volumes: Collection[Volume],
    persistent_volumes: Collection[PersistentVolume],
) -> AvailableCapacity:
    """For a class with these parameters. `persistent_volumes` are all those assigned to this node. A thin pool that is
    nearly full offers nothing, whatever its figures say."""
    if pool.blocked or level(pool) is Level.CRITICAL:
        return AvailableCapacity(0, 0, 0)
    made = {(volume.pv, volume.record.uid): volume for volume in volumes if volume.size}
    allocations = [_allocation(pv, pool, made.get((pv.name, pv.uid))) for pv in persistent_volumes]
    reserved = sum(each.reserved for each in allocations if each.pool == pool.name)
    allocatable = pool.available(requested.overprovision_ratio) + sum(
        e.used for e in allocations if e.used_pool == pool.name
    )
    available, shared = allocatable - reserved, 0
    if pool.sharing() and (filesystem := pool.filesystem):
        shared = filesystem.allocatable - filesystem.ours - filesystem.reserve
        shared += sum(each.used for each in allocations if each.used_pool in filesystem.pools)
        available = min(available, shared - sum(each.reserved for each in allocations if each.pool in filesystem.pools))
    if (placeable := pool.placeable(requested)) is not None:
        ahead = sum(
            pool.weight(requested, each.parameters) * each.unallocated for each in allocations if each.pool == pool.name
        )
        most = min(available, placeable - ahead)
        # In whole volumes, so that what the provisioner reads is what the scheduler reads.
        whole = largest_volume(most, requested, pool.granularity)
        available = footprint(whole, requested, pool.granularity) if whole else min(most, 0)
        allocatable = available + reserved
    if pool.more_volumes is not None and pool.more_volumes <= sum(
        each.unallocated > 0 for each in allocations if each.same_group
    ):
        allocatable, available = reserved, 0
    return AvailableCapacity(
        allocatable, available, largest_volume(available, requested, pool.granularity), reserved, max(shared, 0)
    )


@dataclass(frozen=True)
class _Allocation:
    """A PersistentVolume as it counts in the sums of a pool. Sizes in bytes."""

    pool: str
    reserved: int
    used_pool: str
    """The pool that its volume is in, if that is made and goes when it goes."""
    used: int
    unallocated: int
    """Of what is reserved, that which its volume does not have yet."""
    parameters: VolumeParameters
    same_group: bool
    """It is noted where the pool's volumes are: thick or thin, in one volume group."""


def _allocation(pv: PersistentVolume, pool: Pool, volume: Volume | None) -> _Allocation:
    parameters = parameters_of(pv)
    reserved = footprint(max(pv.charged_size, volume.size if volume else 0), parameters, pool.granularity)
    used = footprint(volume.size, parameters, pool.granularity) if volume else 0
    leaves = volume is not None and not is_retained(pv)
    return _Allocation(
        pool=pv.pool,
        reserved=reserved,
        used_pool=volume.pool if volume and leaves else "",
        used=used if leaves else 0,
        unallocated=max(reserved - used, 0),
        parameters=parameters,
        same_group=pv.pool.partition("/")[0] == pool.name.partition("/")[0],
    )


def largest_volume(room: int, requested: VolumeParameters, granularity: int) -> int:
    """The inverse of contract.capacity.footprint: bytes of the largest volume that takes no more than `room`."""
    extents = room // granularity
    if requested.raid == RAID1:
        extents = extents // 2 - 1
    extents -= extents % requested.stripes
    return max(extents * granularity - requested.header_size, 0)


def is_retained(pv: PersistentVolume) -> bool:
    """Its volume stays on the node when the finalizer goes."""
    return pv.reclaimable and pv.reclaim_policy != DELETE


def parameters_of(pv: PersistentVolume) -> VolumeParameters:
    """For accounting: options that can't be read fail the mount, but what was reserved stays so."""
    try:
        return pv.parameters()
    except ParameterError:
        return VolumeParameters()
