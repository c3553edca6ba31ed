"""What the service Node says of the node itself and of the state of its volumes."""

from collections.abc import Callable, Mapping

from daemon.cluster import health
from daemon.kubelet.mounter import Mounter
from daemon.kubelet.podfolder import PodFolder
from daemon.storage.inventory import Inventory, Pool, VolumeHealth
from daemon.storage.volumes import Volumes
from host.statvfs import FilesystemUsage
from kube.records import Node


def volume_limit(inventory: Inventory) -> int:
    """How many volumes the pools of a node can hold: each takes a piece of the smallest size at least, and LVM has to
    note each in its metadata. 0: nothing was seen."""
    return sum(_limit(pool, inventory) for pool in inventory.pools)


def _limit(pool: Pool, inventory: Inventory) -> int:
    by_size = max(pool.allocatable(), 0) // max(pool.granularity, 1)
    if pool.more_volumes is None:
        return by_size
    return min(by_size, sum(volume.pool == pool.name for volume in inventory.volumes) + pool.more_volumes)


class NodeStatus:
    """See daemon.csi.node.NodeState. `unhealthy` returns the volumes that are not well, by name."""

    def __init__(self, mounter: Mounter, volumes: Volumes, unhealthy: Callable[[], Mapping[str, VolumeHealth]]) -> None:
        self._mounter = mounter
        self._volumes = volumes
        self._unhealthy = unhealthy

    async def node(self) -> Node:
        return await self._mounter.node()

    def volume_limit(self) -> int:
        return volume_limit(self._volumes.inventory)

    async def usage(self, name: str, folder: PodFolder) -> FilesystemUsage:
        return await self._volumes.usage(name, folder)

    def condition(self, name: str) -> str:
        return health.describe(self._unhealthy().get(name, VolumeHealth.OK))
