"""Cleans up after nodes that were deleted: warns the owners at once, and acts when a node stays away.

A queue key is the set of names that some volumes know their node by, so the API server is asked once for a node that
had a thousand volumes. A node must be proven gone twice: the delay begins when cache and API server agree that it is
gone, and they must agree again when the delay is over. The begin is kept in memory only, so a new leader waits the
whole delay anew, which is the safe mistake.

Whatever is done to a volume or claim holds for the version of the object that was judged, and for no other that has its
name.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TypeGuard

from contract import names
from contract.volume import BOUND, PersistentVolume, finalizer_removal_patch, read_any
from kube.backoff import Backoff
from kube.claims import holding_claim, live_claim
from kube.client import Cluster
from kube.errors import ApiError, Conflict, Json, NotFound
from kube.events import Recorder
from kube.informer import Informer
from kube.resources import CLAIMS, VOLUMES
from kube.workqueue import WorkQueue
from provisioner.metrics import Metrics
from provisioner.nodeloss import (
    NodeLossStep,
    NodeNames,
    NodePinnedVolume,
    next_step,
    node_text,
    nodes_of,
    pinned_volume,
    warning,
)
from provisioner.nodetracker import NodeTracker, follow_renamed_nodes
from service import logs

_log = logging.getLogger(__name__)

VOLUME_REASON = "NodeDeleted"
CLAIM_REASON = "ReferencedNodeDeleted"


class NodeLossExecutor:
    """`volumes` has the whole records of ours."""

    def __init__(
        self, cluster: Cluster, volumes: Informer[PersistentVolume], recorder: Recorder, metrics: Metrics
    ) -> None:
        self._cluster = cluster
        self._volumes = volumes
        self._recorder = recorder
        self._metrics = metrics

    async def execute(self, step: NodeLossStep, volume: NodePinnedVolume) -> None:
        """Raises ApiError. What is gone already is no error."""
        try:
            match step:
                case NodeLossStep.REMOVE_FINALIZER:
                    await self._remove_finalizer(volume)
                case NodeLossStep.DELETE:
                    await self._delete(volume)
                case NodeLossStep.DELETE_CLAIM:
                    await self._delete_claim(volume)
        except NotFound:
            return

    async def _remove_finalizer(self, volume: NodePinnedVolume) -> None:
        if volume.ours:
            whole, finalizer = self._volumes.get(volume.name), names.FINALIZER
        else:
            whole, finalizer = read_any(await self._cluster.get(VOLUMES, volume.name)), names.STATIC_FINALIZER
        if not _is_judged(whole, volume):
            return
        if await holding_claim(self._cluster, volume.claim, volume.name, volume.phase) is not None:
            return
        await self._cluster.patch(VOLUMES, volume.name, finalizer_removal_patch(whole, finalizer))
        message = (
            f"node {node_text(volume.nodes)} was deleted and did not come back: the volume's finalizer was removed, "
            "and the data on the node's disks stays there"
        )
        self._recorder.warning(volume.reference, VOLUME_REASON, message)
        if claim := volume.claim_reference:
            self._recorder.warning(claim, VOLUME_REASON, f"volume {volume.name}: {message}")
        self._metrics.finalizer_removed(volume.storage_class)
        _log.warning("finalizer removed: %s", message)

    async def _delete(self, volume: NodePinnedVolume) -> None:
        if volume.claim is not None and await live_claim(self._cluster, volume.claim) is not None:
            return  # whatever the volume's phase says, its claim exists
        try:
            await self._cluster.delete(VOLUMES, volume.name, uid=volume.uid, resource_version=volume.resource_version)
        except (NotFound, Conflict):
            raise
        except ApiError:
            self._metrics.lost_volume_delete_failed(volume.phase)
            raise
        self._metrics.lost_volume_deleted(volume.phase)
        _log.warning("deleted, because node %s is gone", node_text(volume.nodes))

    async def _delete_claim(self, volume: NodePinnedVolume) -> None:
        """Only while it is the very claim that the volume is for, and still points at it. That may be one of the same
        name by now, which somebody made anew on another node, so the volume is asked for as well."""
        if not _is_judged(read_any(await self._cluster.get(VOLUMES, volume.name)), volume):
            return
        claim = await live_claim(self._cluster, volume.claim) if volume.claim else None
        if claim is None or claim.deleting or claim.volume_name != volume.name:
            return
        try:
            await self._cluster.delete(
                CLAIMS, claim.name, claim.namespace, uid=claim.uid, resource_version=claim.resource_version
            )
        except (NotFound, Conflict):
            raise
        except ApiError:
            self._metrics.lost_claim_delete_failed()
            raise
        self._metrics.lost_claim_deleted()
        _log.warning("claim deleted, because node %s is gone", node_text(volume.nodes))


def _is_judged(present: PersistentVolume | None, volume: NodePinnedVolume) -> TypeGuard[PersistentVolume]:
    """Whether `present` is the very version that was judged. Else the watch shows the change in a moment."""
    return present is not None and (present.uid, present.resource_version) == (volume.uid, volume.resource_version)


@dataclass
class _PinnedVolumes:
    """The volumes that know their node by the same names."""

    nodes: NodeNames
    volumes: dict[str, NodePinnedVolume] = field(default_factory=dict)
    lost_since: float | None = None
    """Monotonic seconds."""
    reported: set[tuple[str, NodeLossStep, bool]] = field(default_factory=set)
    """The warnings given since then, by uid of the volume."""


class NodeCleanupController:
    """The controller. `delay`: seconds that a node may be away, None: for ever. `classes`: names of those whose claims
    and volumes go with their node."""

    def __init__(
        self,
        cluster: Cluster,
        volumes: Informer[PersistentVolume],
        recorder: Recorder,
        metrics: Metrics,
        tracker: NodeTracker,
        *,
        delay: float | None,
        classes: Collection[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._volumes = volumes
        self._recorder = recorder
        self._executor = NodeLossExecutor(cluster, volumes, recorder, metrics)
        self._delay = delay
        self._classes = frozenset(classes)
        self._clock = clock
        self.by_nodes: dict[str, _PinnedVolumes] = {}
        self._named: dict[str, set[str]] = {}
        """Name of a node -> keys of the entries of `by_nodes` that it is in."""
        self._tracker = tracker
        self._locals = Informer[NodePinnedVolume](cluster, VOLUMES, self._local)
        self.queue = WorkQueue(self._reconcile, parallelism=4, backoff=Backoff(first=0.5, factor=2, limit=60))
        volumes.subscribe(self._ours_changed)
        self._locals.subscribe(self._local_changed)
        self._tracker.on_change(self._nodes_changed)

    async def run(self) -> None:
        """For ever. Begins when all volumes and all nodes are known."""
        async with asyncio.TaskGroup() as tasks:
            await self._tracker.wait_synced()
            if self._classes:
                tasks.create_task(self._locals.run(), name="local volumes")
                await self._locals.wait_synced()
            await self._volumes.wait_synced()
            tasks.create_task(self.queue.run(), name="node cleanup")

    def _local(self, body: Json) -> NodePinnedVolume | None:
        """Those of ours come from the other informer."""
        volume = read_any(body)
        return pinned_volume(volume, self._classes) if volume.local_path else None

    def _ours_changed(self, name: str, old: PersistentVolume | None, new: PersistentVolume | None) -> None:
        self._changed(name, nodes_of(old) if old else None, pinned_volume(new, ()) if new else None)

    def _local_changed(self, name: str, old: NodePinnedVolume | None, new: NodePinnedVolume | None) -> None:
        self._changed(name, old.nodes if old else None, new)

    def _changed(self, name: str, before: NodeNames | None, new: NodePinnedVolume | None) -> None:
        if before is not None and (new is None or new.nodes != before):
            self._leave(name, before)
        if new is not None:
            key = _key(new.nodes)
            pinned = self.by_nodes.setdefault(key, _PinnedVolumes(new.nodes))
            pinned.volumes[name] = new
            if new.nodes != before:
                for node in new.nodes:
                    self._named.setdefault(node, set()).add(key)
            # A node that is there, under the name that the volume has of it, is not looked at with each new volume and
            # each change of one: when it goes or comes under another name, its own change says so.
            if pinned.lost_since is not None or (new.nodes != before and not self._is_there(new)):
                self.queue.add(key)

    def _is_there(self, volume: NodePinnedVolume) -> bool:
        return self._tracker.is_known(frozenset({volume.node_label}) if volume.node_label else volume.nodes)

    def _leave(self, name: str, nodes: NodeNames) -> None:
        key = _key(nodes)
        pinned = self.by_nodes[key]
        pinned.volumes.pop(name, None)
        if not pinned.volumes:
            del self.by_nodes[key]
            for node in nodes:
                self._named[node].discard(key)
                if not self._named[node]:
                    del self._named[node]

    def _nodes_changed(self, nodes: NodeNames) -> None:
        for key in {key for node in nodes for key in self._named.get(node, ())}:
            if self._tracker.is_known(self.by_nodes[key].nodes):
                # At once, and not when its turn comes: it may be gone again by then, and the delay begins anew.
                self._node_returned(self.by_nodes[key])
            self.queue.add(key)

    def _node_returned(self, pinned: _PinnedVolumes) -> None:
        if pinned.lost_since is not None:
            _log.info("node %s is back", node_text(pinned.nodes))
        pinned.lost_since = None
        pinned.reported.clear()

    async def _reconcile(self, key: str) -> None:
        pinned = self.by_nodes.get(key)
        if pinned is None:
            return
        if not await self._tracker.is_gone(pinned.nodes):
            self._node_returned(pinned)
            await follow_renamed_nodes(self._cluster, self._tracker, pinned.volumes.values())
            return
        now = self._clock()
        first = pinned.lost_since is None
        if pinned.lost_since is None:
            _log.warning("node %s is gone, and %d volumes with it", node_text(pinned.nodes), len(pinned.volumes))
            pinned.lost_since = now
        self._report(pinned)
        if self._delay is None:
            return
        rest = pinned.lost_since + self._delay - now
        if first or rest > 0:
            self.queue.add_after(key, max(rest, 0))
            return
        await self._clean_up(pinned)

    def _step(self, volume: NodePinnedVolume) -> NodeLossStep:
        return next_step(volume, volume.storage_class in self._classes)

    def _report(self, pinned: _PinnedVolumes) -> None:
        for volume in pinned.volumes.values():
            step = self._step(volume)
            warned = (volume.uid, step, volume.phase == BOUND)
            message = warning(volume, step, self._delay)
            if not message or warned in pinned.reported:
                continue
            pinned.reported.add(warned)
            claim = volume.claim_reference
            if volume.phase == BOUND and claim is not None:
                self._recorder.warning(claim, CLAIM_REASON, message)
            else:
                self._recorder.warning(volume.reference, VOLUME_REASON, message)

    async def _clean_up(self, pinned: _PinnedVolumes) -> None:
        """Raises the last ApiError of those that were met: what failed is tried again, the rest is done."""
        failure: ApiError | None = None
        for volume in list(pinned.volumes.values()):
            if pinned.lost_since is None:
                return  # the node came back meanwhile
            with logs.about(volume=volume.name, claim=str(volume.claim or "")):
                try:
                    await self._executor.execute(self._step(volume), volume)
                except ApiError as error:
                    failure = error
        if failure is not None:
            raise failure


def _key(nodes: NodeNames) -> str:
    return "\n".join(sorted(nodes))
