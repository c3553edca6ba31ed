"""The health of the volumes of this node, by name, so that people and alerts can distinguish a dead disk from a full
pool.

LVM reports its devices and pools (daemon.backends.lvminventory). Three things it does not report: a filesystem that the
kernel made read-only after an error, which the mount table shows; a volume that is not there at all, because the disks
of its pool are not; and a disk that hangs. A change is reported once, on the PersistentVolume and on the Node.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping

from contract.volume import PersistentVolume
from daemon.cluster.events import NodeEvents
from daemon.storage.inventory import Inventory, VolumeHealth
from daemon.storage.volumes import Volumes
from kube.events import Recorder
from service.lifecycle import PeriodicLoop
from service.logs import about

log = logging.getLogger(__name__)

UNHEALTHY, HEALTHY = "VolumeUnhealthy", "VolumeHealthy"

PERIOD = 10.0
"""Seconds between two checks of the mount table at most. A change of the storage is checked when it is noticed."""

_REMEDIES: Mapping[VolumeHealth, str] = {
    VolumeHealth.MISSING_DEVICE: "a disk under it is missing: bring the disk back, or restore the data elsewhere",
    VolumeHealth.READ_ONLY: (
        "it can only be read, after an error of its storage: see the node's kernel log, save the data"
    ),
    VolumeHealth.RAID_DEGRADED: (
        "its mirror lost a leg, the data is there once: replace the disk, then `lvconvert --repair`"
    ),
    VolumeHealth.RAID_MISMATCH: "the legs of its mirror differ: `lvchange --syncaction repair`",
    VolumeHealth.CACHE_FAILED: (
        "its cache has failed or takes no changes, and what was written to that alone may be lost: see the node's "
        "kernel log, save the data, then take the cache off with `lvconvert --splitcache` (lvmcache(7))"
    ),
    VolumeHealth.THIN_POOL_FAILED: "its thin pool was switched off by the kernel: `lvconvert --repair` the pool",
    VolumeHealth.THIN_POOL_FULL: "its thin pool is full and writes fail: extend the pool, or delete volumes",
    VolumeHealth.UNRESPONSIVE: (
        "its disk gives no answer, so nothing is begun on it: see the node's kernel log, bring the disk back or "
        "replace it, or restart the node"
    ),
    VolumeHealth.UNKNOWN: "LVM complains in a way that this version does not know: see `lvs -o +lv_health_status`",
}


def describe(health: VolumeHealth) -> str:
    """What is wrong and what to do next. Empty: nothing is."""
    return "" if health is VolumeHealth.OK else f"{health.value}: {_REMEDIES[health]}"


def diagnose(
    inventory: Inventory,
    persistent_volumes: Collection[PersistentVolume],
    read_only: Collection[str],
    unresponsive: Collection[str] = (),
) -> dict[str, VolumeHealth]:
    """The volumes that are not well, by name. `read_only` are those whose filesystem the kernel made so,
    `unresponsive` those that something was asked of and that gave no answer."""
    diagnoses: dict[str, VolumeHealth] = {
        volume.pv: volume.health for volume in inventory.volumes if volume.health is not VolumeHealth.OK
    }
    for name in read_only:
        diagnoses.setdefault(name, VolumeHealth.READ_ONLY)
    for pv in persistent_volumes:
        volume = inventory.volume(pv.name)
        if (
            volume is None
            and pv.pool
            and (pv.made or inventory.pool(pv.pool) is None)
            and inventory.why_unavailable(pv.pool)
        ):
            diagnoses[pv.name] = VolumeHealth.MISSING_DEVICE
    hung = {each.pool for each in inventory.unavailable if each.unresponsive}
    diagnoses |= {
        volume.pv: VolumeHealth.UNRESPONSIVE
        for volume in inventory.volumes
        if volume.pool in hung or volume.pool.partition("/")[0] in hung
    }
    known = {*(volume.pv for volume in inventory.volumes), *(pv.name for pv in persistent_volumes)}
    return diagnoses | {name: VolumeHealth.UNRESPONSIVE for name in unresponsive if name in known}


def changes(before: Mapping[str, VolumeHealth], now: Mapping[str, VolumeHealth]) -> Iterator[tuple[str, VolumeHealth]]:
    """The volumes whose health is another than before, and which."""
    for name in sorted({*before, *now}):
        health = now.get(name, VolumeHealth.OK)
        if before.get(name, VolumeHealth.OK) is not health:
            yield name, health


class VolumeHealthMonitor:
    """`unhealthy` has the volumes that are not well, as of the last check."""

    def __init__(
        self,
        volumes: Volumes,
        persistent_volumes: Callable[[], Collection[PersistentVolume]],
        events: Recorder,
        node_events: NodeEvents,
        period: float = PERIOD,
    ) -> None:
        self._volumes = volumes
        self._persistent_volumes = persistent_volumes
        self._events = events
        self._node_events = node_events
        self._loop = PeriodicLoop(self.check, lambda: min(period, PERIOD))
        self.unhealthy: Mapping[str, VolumeHealth] = {}

    def trigger(self) -> None:
        """The storage changed."""
        self._loop.trigger()

    async def run(self) -> None:
        """For ever."""
        await self._loop.run()

    async def check(self) -> None:
        """Finds the volumes that are not well, and reports what changed."""
        read_only = await self._volumes.read_only()
        persistent_volumes = self._persistent_volumes()
        now = diagnose(self._volumes.inventory, persistent_volumes, read_only, self._volumes.unresponsive())
        known = {pv.name: pv for pv in persistent_volumes}
        for name, health in changes(self.unhealthy, now):
            pv = known.get(name)
            with about(volume=name, claim=str(pv.claim or "") if pv else ""):
                if health is not VolumeHealth.OK:
                    message = f"volume {name} is {health.value}: {_REMEDIES[health]}"
                    log.warning("%s", message)
                    self._node_events.warning(UNHEALTHY, message)
                    if pv is not None:
                        self._events.warning(pv.reference, UNHEALTHY, message)
                elif pv or self._volumes.inventory.volume(name):
                    message = f"volume {name} is well again"
                    log.warning("%s", message)
                    self._node_events.normal(HEALTHY, message)
                    if pv is not None:
                        self._events.normal(pv.reference, HEALTHY, message)
        self.unhealthy = now
