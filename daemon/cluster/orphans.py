"""Volumes whose PersistentVolume is gone: somebody tore the finalizer off, or the node came back after it was given up.

Nobody will ever mount such a volume or ask for its removal, and its space stays taken. It is told of at once. It is
removed only if its own record says Delete, after a grace period, and when the API server has said twice, at the
period's beginning and at its end, that there is no PersistentVolume of that uid. An API server that can't say has
said nothing. The grace begins anew with the daemon, which is the safe mistake. What is mounted is not removed, and
what is to be retained stays for a person to decide.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from contract import quantity
from contract.volume import DELETE, PersistentVolume
from daemon.errors import VolumeError
from daemon.storage.record import Record, State, Volume
from daemon.storage.volumes import Volumes
from kube.client import VOLUMES, Cluster
from kube.errors import ApiError, NotFound
from kube.events import ObjectReference, Recorder
from kube.informer import Informer
from kube.workqueue import WorkQueue
from service.logs import about

log = logging.getLogger(__name__)

ORPHANED, ORPHAN_REMOVED = "VolumeOrphaned", "OrphanRemoved"


@dataclass(frozen=True)
class Sighting:
    """The volume of this uid was found to be an orphan at this time, in monotonic seconds."""

    uid: str
    since: float


def removable_after(record: Record, grace: float | None) -> float | None:
    """Seconds that an orphan is kept from its first sighting on. None: until a person removes it. Of one that is half
    erased there is nothing to keep."""
    if record.state is State.ERASING:
        return 0.0
    return grace if record.policy == DELETE else None


def report(volume: Volume, grace: float | None) -> str:
    """What the node's administrator reads of an orphan."""
    kept = removable_after(volume.record, grace)
    lost = (
        f"volume {volume.pv} ({quantity.humane(volume.size)} in {volume.pool}) has no PersistentVolume of its uid "
        f"{volume.record.uid} any more"
    )
    if volume.record.state is State.ERASING:
        return f"{lost}: its data was being erased, and that goes on"
    if kept is not None:
        return f"{lost}: as its policy is {DELETE}, it is removed in {kept:g} s, unless something still uses it"
    why = f"its policy is {volume.record.policy}" if volume.record.policy != DELETE else "ORPHAN_GRACE is never"
    return f"{lost}: it is kept, because {why}; remove it by hand when nobody needs its data"


class Orphans:
    """`grace` in seconds, None: remove none. `removed` is called after space came back. Needs the informer synced."""

    def __init__(
        self,
        cluster: Cluster,
        volumes: Volumes,
        persistent_volumes: Informer[PersistentVolume],
        events: Recorder,
        node: ObjectReference,
        *,
        grace: float | None,
        removed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._volumes = volumes
        self._persistent_volumes = persistent_volumes
        self._events = events
        self._node = node
        self._grace = grace
        self._removed = removed
        self._clock = clock
        self._seen: dict[str, Sighting] = {}
        self.queue = WorkQueue(self._examine, parallelism=2, expected=(ApiError, VolumeError), of="volume")
        persistent_volumes.subscribe(self._changed)

    async def run(self) -> None:
        """For ever."""
        self.look()
        await self.queue.run()

    def look(self) -> None:
        """The node may hold other volumes than before."""
        for volume in self._volumes.inventory.volumes:
            # What was told of waits for its time: to ask for each retained volume whenever a pool changes is too much.
            if not self._shown(volume) and self._seen_uid(volume.pv) != volume.record.uid:
                self.queue.add(volume.pv)

    def look_at(self, name: str) -> None:
        """The erasure of a volume, an orphan or not, has ended."""
        self.queue.add(name)

    def _changed(self, name: str, old: PersistentVolume | None, new: PersistentVolume | None) -> None:
        if old is not None and (new is None or new.uid != old.uid):
            self.queue.add(name)

    def _shown(self, volume: Volume) -> bool:
        found = self._persistent_volumes.get(volume.pv)
        return found is not None and found.uid == volume.record.uid

    async def _examine(self, name: str) -> None:
        volume = self._volumes.inventory.volume(name)
        if volume is None or self._shown(volume) or await self._exists(volume):
            self._seen.pop(name, None)
            return
        with about(volume=name):
            kept = removable_after(volume.record, self._grace)
            if self._seen_uid(name) != volume.record.uid:
                self._seen[name] = Sighting(volume.record.uid, self._clock())
                self._tell(volume)
                if kept is not None:
                    self.queue.add_after(name, kept)
                return
            if kept is None:
                return
            rest = self._seen[name].since + kept - self._clock()
            if rest > 0:
                self.queue.add_after(name, rest)
                return
            await self._remove(volume)

    def _seen_uid(self, name: str) -> str:
        seen = self._seen.get(name)
        return seen.uid if seen else ""

    async def _exists(self, volume: Volume) -> bool:
        """Asks the API server itself: the informer shows only what bears this node's label. Raises ApiError."""
        try:
            found = await self._cluster.get(VOLUMES, volume.pv)
        except NotFound:
            return False
        return bool(found["metadata"]["uid"] == volume.record.uid)

    def _tell(self, volume: Volume) -> None:
        words = report(volume, self._grace)
        log.warning("%s", words)
        retained = volume.record.policy != DELETE  # as somebody wished
        (self._events.normal if retained else self._events.warning)(self._node, ORPHANED, words)

    async def _remove(self, volume: Volume) -> None:
        """Raises InUse while it is mounted in a pod; the queue tries again."""
        if not await self._volumes.reclaim(volume.pv, volume.record.uid, volume.pool):
            return  # it is being erased: look_at tells when it is done
        self._seen.pop(volume.pv, None)
        words = f"volume {volume.pv}, whose PersistentVolume was gone, is removed with its data"
        log.warning("%s", words)
        self._events.normal(self._node, ORPHAN_REMOVED, words)
        self._removed()
