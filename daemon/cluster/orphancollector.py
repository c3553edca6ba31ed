"""Reports and removes orphans: volumes whose PersistentVolume is gone, because its finalizer was removed by hand, or
because the node came back after it was given up.

Nobody will ever mount such a volume or ask for its removal, and its space stays taken. It is reported at once. It is
removed only if its own record says Delete, and names this cluster, after a grace period, and when the API server has
said twice, at the period's beginning and at its end, that no PersistentVolume bears its name: one of another uid may
have been restored from a backup, or made by a person who is about to adopt the volume. For a snapshot it is a
VolumeSnapshotContent that has the name of its own, or names it. An API server that can't say has said nothing. The
grace begins anew with the daemon, and when such an object goes, which is the safe mistake. What is mounted is not
removed, and what is to be retained stays for a person to decide.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from contract import quantity
from contract.snapshot import CONTENT_KIND
from contract.volume import DELETE, ObjectReference, PersistentVolume
from daemon.errors import VolumeError, message_of
from daemon.storage.deletionguard import OwnerLookup, RemovalReason
from daemon.storage.disks import disk_of
from daemon.storage.inventory import Volume
from daemon.storage.record import Record, VolumeState
from daemon.storage.volumes import Volumes
from kube.errors import ApiError
from kube.events import Recorder
from kube.informer import Informer
from kube.workqueue import WorkQueue
from service.logs import about

log = logging.getLogger(__name__)

_RECHECK = 60.0
"""Seconds between two questions whether what keeps an orphan is still so, when no informer shows it."""

ORPHANED, ORPHAN_REMOVED, ORPHAN_FAILED = "VolumeOrphaned", "OrphanRemoved", "OrphanFailedDelete"


@dataclass(frozen=True)
class OrphanSighting:
    """The volume of this uid was found to be an orphan at this time, in monotonic seconds, and a PersistentVolume of
    its name to have the uid `namesake`, if there was one."""

    uid: str
    namesake: str
    since: float


def removable_after(record: Record, grace: float | None, *, namesake: str = "") -> float | None:
    """Seconds that an orphan is kept from its first sighting on. None: until a person removes it. What an erasure that
    was begun under Delete left is not worth keeping. `namesake` is the uid of a PersistentVolume of its name."""
    if record.policy != DELETE or not record.cluster or namesake:
        return None
    return 0.0 if record.state is VolumeState.ERASING else grace


def message(volume: Volume, grace: float | None, *, namesake: str = "") -> str:
    """What the node's administrator reads of an orphan."""
    kept = removable_after(volume.record, grace, namesake=namesake)
    lost = (
        f"volume {volume.pv} ({quantity.humane(volume.size)} in {volume.pool}) has no "
        f"{CONTENT_KIND if volume.record.content else 'PersistentVolume'} of its uid {volume.record.uid} any more"
    )
    if namesake and volume.record.content:
        return f"{lost}, and another one that names it or has its name (uid {namesake}): it is kept"
    if namesake:
        return (
            f"{lost}, and another one of its name (uid {namesake}): it is kept; if that one is to have its data, run "
            f"`elastic-local adopt {volume.pv} --yes` on the node, if not, remove it by hand"
        )
    if kept is not None and volume.record.state is VolumeState.ERASING:
        return f"{lost}: its data was being erased, and that goes on"
    if kept is not None:
        return f"{lost}: as its policy is {DELETE}, it is removed in {kept:g} s, unless something still uses it"
    if volume.record.policy != DELETE:
        why = f"its policy is {volume.record.policy}"
    elif not volume.record.cluster:
        why = "it does not say of which cluster it is (a version that did not note that made it)"
    else:
        why = "ORPHAN_GRACE is never"
    return f"{lost}: it is kept, because {why}; adopt it, or remove it by hand when nobody needs its data"


class OrphanCollector:
    """`grace` in seconds, None: remove none. `removed` is called after space came back, `has_content` tells whether the
    VolumeSnapshotContent of a snapshot is known. Needs the informer synced."""

    def __init__(
        self,
        owner_lookup: OwnerLookup,
        volumes: Volumes,
        persistent_volumes: Informer[PersistentVolume],
        events: Recorder,
        node: ObjectReference,
        *,
        grace: float | None,
        removed: Callable[[], None] = lambda: None,
        has_content: Callable[[Record], bool] = lambda record: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._owner_lookup = owner_lookup
        self._volumes = volumes
        self._persistent_volumes = persistent_volumes
        self._events = events
        self._node = node
        self._grace = grace
        self._removed = removed
        self._has_content = has_content
        self._clock = clock
        self._sightings: dict[str, OrphanSighting] = {}
        self.queue = WorkQueue(
            self._examine, parallelism=2, expected=(ApiError, VolumeError), of="volume", group=self._disk
        )
        persistent_volumes.subscribe(self._changed)

    async def run(self) -> None:
        """For ever."""
        self.enqueue_new()
        await self.queue.run()

    def enqueue_new(self) -> None:
        """The node may hold other volumes than before."""
        for volume in self._volumes.inventory.volumes:
            # What was reported waits for its time: to ask for each retained volume whenever a pool changes is too much.
            if not self._shown(volume) and self._sighted_uid(volume.pv) != volume.record.uid:
                self.queue.add(volume.pv)

    def enqueue(self, name: str) -> None:
        """The erasure of a volume, an orphan or not, has ended."""
        self.queue.add(name)

    def _disk(self, name: str) -> str:
        volume = self._volumes.inventory.volume(name)
        return disk_of(volume.pool) if volume else ""

    def _changed(self, name: str, old: PersistentVolume | None, new: PersistentVolume | None) -> None:
        if old is not None and (new is None or new.uid != old.uid):
            self.queue.add(name)

    def _shown(self, volume: Volume) -> bool:
        if volume.record.content:
            return self._has_content(volume.record)
        shown = self._persistent_volumes.get(volume.pv)
        return shown is not None and shown.uid == volume.record.uid

    async def _examine(self, name: str) -> None:
        if not self._owner_lookup.cluster:
            self.queue.add_after(name, _RECHECK)  # whose it is is not known yet
            return
        volume = self._volumes.inventory.volume(name)
        if volume is None or self._shown(volume):
            self._sightings.pop(name, None)
            return
        # The API server itself: the informer shows only what bears this node's label.
        owner = await self._owner_lookup.owner(name, volume.record.content)
        if owner is not None and owner.uid == volume.record.uid:
            self._sightings.pop(name, None)
            return
        namesake = owner.uid if owner else ""
        with about(volume=name):
            kept = removable_after(volume.record, self._grace, namesake=namesake)
            seen = self._sightings.get(name)
            if seen is None or (seen.uid, seen.namesake) != (volume.record.uid, namesake):
                self._sightings[name] = OrphanSighting(volume.record.uid, namesake, self._clock())
                self._report(volume, namesake)
                if kept is not None:
                    self.queue.add_after(name, kept)
                elif namesake:
                    self.queue.add_after(name, _RECHECK)
                return
            if kept is None:
                if namesake:
                    self.queue.add_after(name, _RECHECK)
                return
            rest = self._sightings[name].since + kept - self._clock()
            if rest > 0:
                self.queue.add_after(name, rest)
                return
            await self._remove(volume)

    def _sighted_uid(self, name: str) -> str:
        seen = self._sightings.get(name)
        return seen.uid if seen else ""

    def _report(self, volume: Volume, namesake: str) -> None:
        text = message(volume, self._grace, namesake=namesake)
        log.warning("%s", text)
        retained = volume.record.policy != DELETE  # as somebody wished
        (self._events.normal if retained else self._events.warning)(self._node, ORPHANED, text)

    async def _remove(self, volume: Volume) -> None:
        """Raises InUse while it is mounted in a pod; the queue tries again."""
        try:
            if not await self._volumes.reclaim(volume.pv, volume.record.uid, volume.pool, RemovalReason.ORPHANED):
                return  # it is being erased: it is enqueued when that is done
        except Exception as error:
            text = f"volume {volume.pv}, whose PersistentVolume is gone, is not removed: {message_of(error)}"
            self._events.warning(self._node, ORPHAN_FAILED, text)
            raise
        self._sightings.pop(volume.pv, None)
        done = f"volume {volume.pv}, whose PersistentVolume was gone, is removed with its data"
        log.warning("%s", done)
        self._events.normal(self._node, ORPHAN_REMOVED, done)
        self._removed()
