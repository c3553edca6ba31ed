"""How full thin pools really are, and what is done about it. Pure.

Volumes of a thin pool may have more together than the pool has, so it can fill up while every volume still has room on
paper. Then writes of all its volumes wait and fail, and full metadata is no better than full data. So a pool grows from
what its group has left, when the StorageClass of a volume in it says so and it is not reserved; else it is reported at
the first threshold, and nothing new is made from the second one on.
"""

import enum
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from daemon.storage.inventory import Inventory, Pool, Volume


class Level(enum.IntEnum):
    """The values are percent of the pool's data or metadata, whichever is fuller."""

    OK = 0
    WARNING = 80
    CRITICAL = 95
    """What is left is for the volumes there are."""


_HYSTERESIS = 3.0
"""Percent below a threshold at which it counts as left again: a pool that wavers there is reported once."""


@dataclass(frozen=True)
class PoolExtension:
    """Bytes that a pool gets. Metadata is taken twice from the group: LVM keeps a spare of the same size for repair."""

    data: int = 0
    metadata: int = 0

    @property
    def taken(self) -> int:
        return self.data + 2 * self.metadata


def level(pool: Pool, before: Level = Level.OK) -> Level:
    """`before` is what it was at the last look. A pool that is not active, or not thin, is taken to be fine."""
    full = usage_percent(pool)
    reached = max(known for known in Level if full >= known)
    left = max(known for known in Level if full >= known - _HYSTERESIS)
    return max(reached, min(left, before))


def usage_percent(pool: Pool) -> float:
    """Percent of its data or metadata, whichever is fuller."""
    if pool.thin is None:
        return 0.0
    return max(pool.thin.data_percent or 0.0, pool.thin.metadata_percent or 0.0)


def monitored(inventory: Inventory, own: Collection[str]) -> list[Pool]:
    """The thin pools that are our business: `own`, where new volumes go, and those that hold volumes of ours. The rest
    is the node's own system."""
    return [pool for pool in inventory.pools if pool.thin and (pool.ours or pool.name in own)]


def autoextend_percent(pool: Pool, volumes: Iterable[Volume]) -> int:
    """By how many percent of its size the pool grows when it fills up: the most that any of its volumes allows, for
    they all depend on it."""
    return max((volume.record.thin_pool_autoextend for volume in volumes if volume.pool == pool.name), default=0)


def pool_extension(pool: Pool, percent: int, spare: int) -> PoolExtension:
    """What the pool should get now, of `spare` bytes that its group can give, in whole extents. Metadata comes first:
    it is small, and a pool without it is harder to mend."""
    if pool.thin is None:
        return PoolExtension()
    extent, metadata, data = pool.granularity, 0, 0
    if (pool.thin.metadata_percent or 0.0) >= Level.WARNING:
        metadata = -(-pool.thin.metadata_size * percent // (100 * extent)) * extent
        metadata = min(metadata, max(spare, 0) // 2 // extent * extent)
    if (pool.thin.data_percent or 0.0) >= Level.WARNING:
        data = -(-pool.size * percent // (100 * extent)) * extent
        data = min(data, max(spare - 2 * metadata, 0) // extent * extent)
    return PoolExtension(data, metadata)


def describe_usage(pool: Pool) -> str:
    """How full it is, for a message."""
    assert pool.thin
    return f"{pool.thin.data_percent or 0:g} % of its data and {pool.thin.metadata_percent or 0:g} % of its metadata"
