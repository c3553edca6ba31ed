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
from daemon.cluster.demand import parameters_of, policy_of
from daemon.storage.record import Inventory, Pool, Volume
from daemon.storage.room import Promise
from daemon.storage.thinpools import Level, level


@dataclass(frozen=True)
class Offer:
    """What a pool offers to one class. Sizes in bytes."""

    allocatable: int
    available: int
    largest: int
    """The largest volume of the class for which `available` is enough: a mirror takes more than its size."""


def promises(persistent_volumes: Iterable[PersistentVolume], inventory: Inventory) -> list[Promise]:
    """What each PersistentVolume of this node has a right to, in the pool that it was promised. What its claim wishes
    beyond that was promised by nobody."""
    found = []
    for pv in persistent_volumes:
        pool = inventory.pool(pv.pool)
        if pool is not None:
            found.append(Promise(pv.name, pool.name, footprint(pv.promised, parameters_of(pv), pool.granularity)))
    return found


def offer(
    pool: Pool,
    wanted: VolumeParameters,
    volumes: Collection[Volume],
    persistent_volumes: Collection[PersistentVolume],
) -> Offer:
    """For a class with these parameters. `persistent_volumes` are all those tied to this node. A thin pool that is
    nearly full offers nothing, whatever its figures say."""
    if level(pool) is Level.CRITICAL:
        return Offer(0, 0, 0)
    made = {(volume.pv, volume.record.uid): volume for volume in volumes if volume.pool == pool.name}
    allocatable = pool.available(wanted.overprovision_ratio)
    promised = 0
    for pv in persistent_volumes:
        volume = made.get((pv.name, pv.uid))
        if volume is not None and volume.size and not kept_without_owner(pv):
            allocatable += footprint(volume.size, parameters_of(pv), pool.granularity)
        if pv.pool == pool.name:
            charged = max(pv.charged, volume.size if volume is not None else 0)
            promised += footprint(charged, parameters_of(pv), pool.granularity)
    available = allocatable - promised
    return Offer(allocatable, available, largest(available, wanted, pool.granularity))


def largest(room: int, wanted: VolumeParameters, granularity: int) -> int:
    """The inverse of contract.capacity.footprint: bytes of the largest volume that takes no more than `room`."""
    extents = room // granularity
    if wanted.raid == RAID1:
        extents = extents // 2 - 1
    extents -= extents % wanted.stripes
    return max(extents, 0) * granularity


def kept_without_owner(pv: PersistentVolume) -> bool:
    """Its volume stays on the node when the finalizer goes."""
    return pv.reclaimable and policy_of(pv) == RETAIN
