"""Reconciles this node's volumes with its PersistentVolumes: creates them before the kubelet asks, extends them, and
removes them when nobody uses them any more.

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
from contract.volume import DELETE, FAILED, RELEASED, Original, PersistentVolume
from daemon.cluster.capacity import parameters_of
from daemon.cluster.capacitypublisher import CapacityPublisher
from daemon.cluster.nodevolumes import (
    NodeVolumes,
    is_recorded,
    reclaim_policy,
    record_made,
    remove_finalizer,
    volume_spec,
)
from daemon.errors import InUse, VolumeError, message_of
from daemon.storage.disks import disk_of
from daemon.storage.inventory import Volume
from daemon.storage.record import VolumeState
from daemon.storage.volumes import Volumes
from kube.client import Cluster
from kube.errors import ApiError, Conflict, NotFound, Unreachable
from kube.events import Recorder
from kube.workqueue import WorkQueue
from service.logs import about

log = logging.getLogger(__name__)

PREPARATION_FAILED = "VolumePreparationFailed"
DELETE_FAILED = "VolumeFailedDelete"
GROWTH_FAILED = "VolumeResizeFailed"
"""The kubelet's own reason for a volume that does not grow."""

_PARALLELISM = 16
"""Volumes of one disk looked at together. How many of them load it is bounded by Volumes."""


class _ResizeFailed(VolumeError):
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
        return Action.LEAVE if pv.phase in (RELEASED, FAILED) or _needs_passphrase(pv) else Action.PREPARE
    ready = volume.record.uid == pv.uid and volume.record.state is VolumeState.READY
    if not ready and _needs_passphrase(pv):
        return Action.LEAVE
    recorded = is_recorded(pv, volume.size) and volume.record.policy == reclaim_policy(pv)
    has_cluster = bool(volume.record.cluster or not cluster)
    return Action.LEAVE if ready and recorded and has_cluster and volume.size >= pv.target_size else Action.PREPARE


def _needs_passphrase(pv: PersistentVolume) -> bool:
    """Its volume is made when the kubelet stages it, which has the passphrase. A copy needs none."""
    return bool(parameters_of(pv).encryption) and not pv.made and pv.original is None


class Reconciler:
    def __init__(
        self,
        cluster: Cluster,
        node_volumes: NodeVolumes,
        volumes: Volumes,
        pool_of: Callable[[VolumeParameters], str],
        publisher: CapacityPublisher,
        events: Recorder,
    ) -> None:
        self._cluster = cluster
        self._node_volumes = node_volumes
        self._volumes = volumes
        self._pool_of = pool_of
        self._publisher = publisher
        self._events = events
        self._queue = WorkQueue(
            self._reconcile,
            parallelism=_PARALLELISM,
            expected=(ApiError, VolumeError),
            of="volume",
            group=self._disk,
        )

    def enqueue(self, name: str) -> None:
        """Something about the PersistentVolume of that name changed: it is looked at soon."""
        self._queue.add(name)

    def volume_changed(self, name: str, old: PersistentVolume | None, new: PersistentVolume | None) -> None:
        """A subscriber of the PersistentVolumes of this node."""
        self.enqueue(name)
        if (changed := new or old) and changed.original:
            self.enqueue(changed.original.pv)  # its removal may wait for this

    def hurry(self) -> None:
        """The API server is there again."""
        self._queue.hurry()

    def retry_preparations(self) -> None:
        """Something changed that may let through what failed before: space came back, or a volume group appeared."""
        for pv in self._node_volumes.all():
            if self._plan(pv) is Action.PREPARE:
                self._queue.add(pv.name)

    async def run(self) -> None:
        await self._queue.run()

    async def _reconcile(self, name: str) -> None:
        pv = self._node_volumes.get(name)
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
                self._raise_if_to_be_copied(pv)
                if not await self._volumes.reclaim(pv.name, pv.uid, self._pool(pv)):
                    return  # when its data is gone, it is enqueued again
                there = self._volumes.inventory.pool(pv.pool)
                if there and there.notices:
                    await self._publisher.publish(certain=True)  # as below: not all of its space may have come back
                await remove_finalizer(self._cluster, pv)
                self.retry_preparations()
            case Action.RETAIN:
                await self._volumes.retain(pv.name, pv.uid, self._pool(pv), made=pv.made)
                # The provisioner stops counting the volume when the finalizer goes: its space must be gone from the
                # published figure before that, or it would be reserved a second time.
                await self._publisher.publish(certain=True)
                await remove_finalizer(self._cluster, pv)

    def _raise_if_to_be_copied(self, pv: PersistentVolume) -> None:
        """Raises InUse while another volume is yet to begin as a copy of it. The claim of that is bound by then, which
        says to its owner that the source may go. A copy is made of a claim that is there, so whoever has seen that the
        source is deleted has seen its copies before: the cache is right for this."""
        volume = self._volumes.inventory.volume(pv.name)
        if volume is None or volume.record.uid != pv.uid or volume.record.state is not VolumeState.READY:
            return
        for other in self._node_volumes.all():
            if (
                other.original == Original(pv.name, pv.uid)
                and not other.made
                and self._plan(other) is Action.PREPARE
                and self._node_volumes.may_clone(other.name, pv.name)
            ):
                raise InUse(
                    f"volume {other.name} of claim {other.claim} is to be a copy of it: it goes when that is made, or "
                    "is deleted"
                )

    def _disk(self, name: str) -> str:
        pv = self._node_volumes.get(name)
        return disk_of(self._pool(pv)) if pv else ""

    def _pool(self, pv: PersistentVolume) -> str:
        return pv.pool or self._pool_of(parameters_of(pv))

    async def _prepare(self, pv: PersistentVolume) -> None:
        """Ahead of the kubelet also where it grows: the kubelet starts no pod whose volume fails to grow at its mount,
        so it hears of the new size only when the volume has it (provisioner/expansion.py)."""
        spec = volume_spec(pv)
        volume = await self._volumes.prepare(spec)
        await record_made(self._cluster, pv, volume.size)
        if volume.size < pv.target_size:
            try:
                volume = await self._volumes.extend(spec)
            except VolumeError as error:
                raise _ResizeFailed(str(error)) from error
            await record_made(self._cluster, pv, volume.size)

    def _report(self, action: Action, pv: PersistentVolume, error: Exception) -> None:
        message = message_of(error)
        if action is Action.PREPARE:
            reason = GROWTH_FAILED if isinstance(error, _ResizeFailed) else PREPARATION_FAILED
            self._events.warning(pv.reference, reason, message)
            if claim := pv.claim_reference:
                self._events.warning(claim, reason, message)
        else:
            self._events.warning(pv.reference, DELETE_FAILED, message)
