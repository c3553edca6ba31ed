"""How much of a pool is promised, and how much the node may still offer.

A PersistentVolume that is tied to this node has a right to its space from that moment until its finalizer goes, whether
its volume is made yet or not. Two figures follow (contract/capacity.py):

    allocatable = free + what volumes of live PersistentVolumes take - reserve
    available   = allocatable - what all PersistentVolumes tied to this node are promised

`allocatable` stays where it is when a volume is made (free shrinks by what the volume takes) and when one is removed.
A volume whose PersistentVolume was let go under policy Retain counts as taken for ever, so it is left out of the sum
before the finalizer goes; until then the provisioner subtracts it twice, which is too careful and never wrong.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from contract.capacity import footprint
from contract.parameters import RAID1, VolumeParameters
from contract.volume import RETAIN, PersistentVolume
from daemon.cluster.nodevolumes import parameters_of, reclaim_policy
from daemon.storage.inventory import Inventory, Pool, Volume
from daemon.storage.room import Promise
from daemon.storage.thinpools import Level, level


@dataclass(frozen=True)
class Offer:
    """What a pool offers to one class. Sizes in bytes."""

    allocatable: int
    available: int
    largest: int
    """The largest volume of the class for which `available` is enough: a mirror takes more than its size."""
    promised: int = 0
    """What the PersistentVolumes tied to this node are promised of the pool."""
    shared: int = 0
    """Of a pool that shares its filesystem with others: what all of them together may take."""


def promises(persistent_volumes: Iterable[PersistentVolume], inventory: Inventory) -> list[Promise]:
    """What each PersistentVolume of this node has a right to, in the pool that it was promised. What its claim wishes
    beyond that was promised by nobody."""
    found = []
    for pv in persistent_volumes:
        pool = inventory.pool(pv.pool)
        if pool is not None:
            layout = parameters_of(pv)
            found.append(Promise(pv.name, pool.name, footprint(pv.promised, layout, pool.granularity), layout))
    return found


def offer(
    pool: Pool,
    wanted: VolumeParameters,
    volumes: Collection[Volume],
    persistent_volumes: Collection[PersistentVolume],
) -> Offer:
    """For a class with these parameters. `persistent_volumes` are all those tied to this node. A thin pool that is
    nearly full offers nothing, whatever its figures say."""
    if pool.blocked or level(pool) is Level.CRITICAL:
        return Offer(0, 0, 0)
    made = {(volume.pv, volume.record.uid): volume for volume in volumes if volume.size}
    owed = [_owed(pv, pool, made.get((pv.name, pv.uid))) for pv in persistent_volumes]
    promised = sum(each.promised for each in owed if each.pool == pool.name)
    allocatable = pool.available(wanted.overprovision_ratio) + sum(e.taken for e in owed if e.taken_from == pool.name)
    available, shared = allocatable - promised, 0
    if pool.sharing() and (filesystem := pool.filesystem):
        shared = filesystem.allocatable - filesystem.ours - filesystem.reserve
        shared += sum(each.taken for each in owed if each.taken_from in filesystem.pools)
        available = min(available, shared - sum(each.promised for each in owed if each.pool in filesystem.pools))
    if (placeable := pool.placeable(wanted)) is not None:
        ahead = sum(pool.weight(wanted, each.layout) * each.unmade for each in owed if each.pool == pool.name)
        most = min(available, placeable - ahead)
        # In whole volumes, so that what the provisioner reads is what the scheduler reads.
        whole = largest(most, wanted, pool.granularity)
        available = footprint(whole, wanted, pool.granularity) if whole else min(most, 0)
        allocatable = available + promised
    if pool.more_volumes is not None and pool.more_volumes <= sum(each.unmade > 0 for each in owed if each.beside):
        allocatable, available = promised, 0
    return Offer(allocatable, available, largest(available, wanted, pool.granularity), promised, max(shared, 0))


@dataclass(frozen=True)
class _Owed:
    """A PersistentVolume as the books of a node have it. Sizes in bytes."""

    pool: str
    promised: int
    taken_from: str
    """The pool that its volume is in, if that is made and goes when it goes."""
    taken: int
    unmade: int
    """Of what is promised, that which its volume does not have yet."""
    layout: VolumeParameters
    beside: bool
    """It is noted where the pool's volumes are: thick or thin, in one volume group."""


def _owed(pv: PersistentVolume, pool: Pool, volume: Volume | None) -> _Owed:
    layout = parameters_of(pv)
    promised = footprint(max(pv.charged, volume.size if volume else 0), layout, pool.granularity)
    taken = footprint(volume.size, layout, pool.granularity) if volume else 0
    leaves = volume is not None and not kept_without_owner(pv)
    return _Owed(
        pool=pv.pool,
        promised=promised,
        taken_from=volume.pool if volume and leaves else "",
        taken=taken if leaves else 0,
        unmade=max(promised - taken, 0),
        layout=layout,
        beside=pv.pool.partition("/")[0] == pool.name.partition("/")[0],
    )


def largest(room: int, wanted: VolumeParameters, granularity: int) -> int:
    """The inverse of contract.capacity.footprint: bytes of the largest volume that takes no more than `room`."""
    extents = room // granularity
    if wanted.raid == RAID1:
        extents = extents // 2 - 1
    extents -= extents % wanted.stripes
    return max(extents, 0) * granularity


def kept_without_owner(pv: PersistentVolume) -> bool:
    """Its volume stays on the node when the finalizer goes."""
    return pv.reclaimable and reclaim_policy(pv) == RETAIN
