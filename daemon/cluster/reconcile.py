"""What the PersistentVolumes of this node want of it, done ahead of the kubelet and after its last word.

A new one is made and formatted at once, so that the first mount finds it ready. One that was deleted, and that nobody
can be using any more, is given back: under policy Delete its volume is removed, under Retain it is kept and says so
itself; only then does our finalizer go. What is to be done is decided afresh from what is found each time, so it does
not matter how often, or after what, it is asked.

Where something fails, whoever described the PersistentVolume reads why, and it is tried again for as long as it takes.
"""

import enum
import logging
from collections.abc import Callable

from contract.parameters import VolumeParameters
from contract.volume import DELETE, FAILED, RELEASED, PersistentVolume
from daemon.cluster.demand import parameters_of, policy_of, wanted
from daemon.cluster.holdings import Holdings
from daemon.cluster.nodeassignment import is_remembered, release, remember_made
from daemon.cluster.publish import Publisher
from daemon.errors import VolumeError, words
from daemon.storage.inventory import Volume
from daemon.storage.record import State
from daemon.storage.volumes import Volumes
from kube.client import Cluster
from kube.errors import ApiError, Conflict, NotFound, Unreachable
from kube.events import ObjectReference, Recorder
from kube.workqueue import WorkQueue
from service.logs import about

log = logging.getLogger(__name__)

PREPARATION_FAILED = "VolumePreparationFailed"
DELETE_FAILED = "VolumeFailedDelete"
GROWTH_FAILED = "VolumeResizeFailed"
"""The kubelet's own reason for a volume that does not grow."""

_PARALLELISM = 16
"""Volumes looked at together. How many of them load the disks is bounded by Volumes."""


class _NotGrown(VolumeError):
    """The volume is there, with what it had."""


class Action(enum.Enum):
    LEAVE = "leave"
    PREPARE = "prepare"
    """Make it, let it grow, or bring its record up to date, or what the PersistentVolume says of it."""
    RECLAIM = "reclaim"
    RETAIN = "retain"


def plan(pv: PersistentVolume, volume: Volume | None, cluster: str) -> Action:
    """What a PersistentVolume of this node wants. `volume` is what the node has under its name; it has to say that it
    is of this `cluster`, as soon as that is known."""
    if pv.deleting:
        if not pv.reclaimable:
            return Action.LEAVE
        return Action.RECLAIM if pv.reclaim_policy == DELETE else Action.RETAIN
    if volume is None:
        return Action.LEAVE if pv.phase in (RELEASED, FAILED) else Action.PREPARE
    ready = volume.record.uid == pv.uid and volume.record.state is State.READY
    told = is_remembered(pv, volume.size) and volume.record.policy == policy_of(pv)
    marked = bool(volume.record.cluster or not cluster)
    return Action.LEAVE if ready and told and marked and volume.size >= pv.promised else Action.PREPARE


def reference(pv: PersistentVolume) -> ObjectReference:
    return ObjectReference("PersistentVolume", "v1", "", pv.name, pv.uid)


def claim_reference(pv: PersistentVolume) -> ObjectReference | None:
    if pv.claim is None or not pv.claim.uid:
        return None
    return ObjectReference("PersistentVolumeClaim", "v1", pv.claim.namespace, pv.claim.name, pv.claim.uid)


class Reconciler:
    def __init__(
        self,
        cluster: Cluster,
        holdings: Holdings,
        volumes: Volumes,
        pool_of: Callable[[VolumeParameters], str],
        publisher: Publisher,
        events: Recorder,
    ) -> None:
        self._cluster = cluster
        self._holdings = holdings
        self._volumes = volumes
        self._pool_of = pool_of
        self._publisher = publisher
        self._events = events
        self._queue = WorkQueue(
            self._reconcile, parallelism=_PARALLELISM, expected=(ApiError, VolumeError), of="volume"
        )

    def look_at(self, name: str) -> None:
        """Something about the PersistentVolume of that name changed."""
        self._queue.add(name)

    def hurry(self) -> None:
        """The API server is there again."""
        self._queue.hurry()

    def retry_preparations(self) -> None:
        """Something changed that may let through what failed before: space came back, or a volume group appeared."""
        for pv in self._holdings.all():
            if self._plan(pv) is Action.PREPARE:
                self._queue.add(pv.name)

    async def run(self) -> None:
        await self._queue.run()

    async def _reconcile(self, name: str) -> None:
        pv = self._holdings.get(name)
        if pv is None:
            return
        with about(volume=pv.name, claim=str(pv.claim or "")):
            action = self._plan(pv)
            try:
                await self._perform(action, pv)
            except (Conflict, NotFound, Unreachable):
                raise  # it passes by itself
            except Exception as error:
                self._report(action, pv, error)
                raise

    def _plan(self, pv: PersistentVolume) -> Action:
        return plan(pv, self._volumes.inventory.volume(pv.name), self._volumes.cluster)

    async def _perform(self, action: Action, pv: PersistentVolume) -> None:
        match action:
            case Action.PREPARE:
                await self._prepare(pv)
            case Action.RECLAIM:
                if not await self._volumes.reclaim(pv.name, pv.uid, self._pool(pv)):
                    return  # when its data is gone, we are asked to look again
                there = self._volumes.inventory.pool(pv.pool)
                if there and there.notices:
                    await self._publisher.publish(certain=True)  # as below: not all of its space may have come back
                await release(self._cluster, pv)
                self.retry_preparations()
            case Action.RETAIN:
                await self._volumes.retain(pv.name, pv.uid, self._pool(pv), made=pv.made)
                # The provisioner stops counting the volume when the finalizer goes: its space must be gone from the
                # published figure before that, or it would be promised a second time.
                await self._publisher.publish(certain=True)
                await release(self._cluster, pv)

    def _pool(self, pv: PersistentVolume) -> str:
        return pv.pool or self._pool_of(parameters_of(pv))

    async def _prepare(self, pv: PersistentVolume) -> None:
        """Ahead of the kubelet also where it grows: the kubelet starts no pod whose volume fails to grow at its mount,
        so it hears of the new size only when the volume has it (provisioner/growth.py)."""
        volume = await self._volumes.prepare(wanted(pv))
        await remember_made(self._cluster, pv, volume.size)
        if volume.size < pv.promised:
            try:
                volume = await self._volumes.extend(wanted(pv))
            except VolumeError as error:
                raise _NotGrown(str(error)) from error
            await remember_made(self._cluster, pv, volume.size)

    def _report(self, action: Action, pv: PersistentVolume, error: Exception) -> None:
        message = words(error)
        if action is Action.PREPARE:
            reason = GROWTH_FAILED if isinstance(error, _NotGrown) else PREPARATION_FAILED
            self._events.warning(reference(pv), reason, message)
            if claim := claim_reference(pv):
                self._events.warning(claim, reason, message)
        else:
            self._events.warning(reference(pv), DELETE_FAILED, message)
