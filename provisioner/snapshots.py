"""Assigns VolumeSnapshotContents of our driver to nodes. The daemon of that node makes the snapshot, reports and
removes it. What was never assigned, no node knows of: it goes here.

The snapshot controller of Kubernetes makes a content for a VolumeSnapshot of a claim, and copies what its status says
into that VolumeSnapshot. A content may name any volume, though: it gets a snapshot only of one that a claim in the
namespace of its VolumeSnapshot has. A content that names a snapshot is made by an administrator. It goes to the node of
that snapshot, whose daemon knows whether somebody else has it. When a node is registered again under another name, its
contents follow as its PersistentVolumes do (provisioner.nodetracker).
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from contract import names
from contract import snapshot as contract_snapshot
from contract.filesystems import CLONABLE, is_clonable
from contract.snapshot import Handle, SnapshotContent
from contract.volume import BOUND, CSI, DELETE, PersistentVolume
from kube.client import Cluster
from kube.errors import ApiError, Conflict, NotFound
from kube.events import Recorder
from kube.records import bounded
from kube.resources import SNAPSHOT_CONTENTS
from kube.workqueue import WorkQueue
from provisioner.clusterstate import ClusterCache, live_node, live_volume
from provisioner.index import Index
from provisioner.nodeloss import NodeNames
from provisioner.nodetracker import NodeTracker
from service import logs

_log = logging.getLogger(__name__)

CREATION_FAILED = "SnapshotCreationFailed"
"""The reason of the csi-snapshotter."""
NODE_DELETED = "NodeDeleted"
RECHECK_SECONDS = 120.0
"""Seconds after which a content that can't be assigned is looked at again, though nothing changed that we know of."""


@dataclass(frozen=True)
class Assign:
    """To the node with this value of names.NODE_LABEL, and this hostname label. An empty one is not known."""

    node_label: str
    hostname: str = ""


@dataclass(frozen=True)
class Refuse:
    """There can be no snapshot for it as things are: its status and an event say why."""

    why: str


def assign_to_source(content: SnapshotContent, volume: PersistentVolume | None) -> Assign | Refuse:
    """Where the snapshot of a volume is made: on the node of `volume`, which is the one that the content names."""
    name = content.source_volume[:64]
    if volume is None or volume.claim is None or volume.claim.namespace != content.snapshot_namespace:
        return Refuse(
            f"volume {name} is none of elastic-local for a claim of namespace {bounded(content.snapshot_namespace)}, "
            "whose VolumeSnapshot this is for: make a VolumeSnapshot of a claim of its own namespace"
        )
    if volume.source != CSI:
        return Refuse(
            f"volume {name} is a FlexVolume, of which Kubernetes knows no snapshots: move its claim to CSI first "
            "(docs/operations.md)"
        )
    if volume.deleting or volume.phase != BOUND:
        return Refuse(f"volume {name} is not bound to its claim (any more): make a VolumeSnapshot of a claim in use")
    if not is_clonable(volume.filesystem):
        return Refuse(
            f"volume {name} has {volume.filesystem}, of which the kernel can't have two copies on one node, so nothing "
            f"could be restored: use {' or '.join(CLONABLE)}"
        )
    if not volume.node_label or not volume.made:
        return Refuse(f"volume {name} is not made yet: the snapshot follows when it is; start the pod that uses it")
    return Assign(volume.node_label, volume.hostnames[0] if len(volume.hostnames) == 1 else "")


def assign_to_handle(content: SnapshotContent) -> Handle | Refuse:
    """Where a snapshot is that the content names."""
    handle = Handle.parse(content.source_handle)
    if handle is None:
        return Refuse(
            f"snapshotHandle {content.source_handle[:64]!r} is none of elastic-local: write <node>/<snapshot>, as the "
            "status of its former VolumeSnapshotContent says (status.snapshotHandle)"
        )
    return handle


class SnapshotController:
    """The controller: looks at one content at a time, by name."""

    def __init__(
        self,
        cluster: Cluster,
        cache: ClusterCache,
        recorder: Recorder,
        tracker: NodeTracker,
        *,
        parallelism: int,
        node_loss_delay: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`node_loss_delay`: seconds that a node may be away, None: for ever."""
        self._cluster = cluster
        self._node_loss_delay = node_loss_delay
        self._clock = clock
        self._lost_since: dict[str, float] = {}
        """Since when the node of a deleted content is found to be gone."""
        self._cache = cache
        self._recorder = recorder
        self._tracker = tracker
        self._waiting = Index[str]()
        """Contents that can't be assigned yet, by the volume that each names."""
        self._of_node = Index[str]()
        """Contents by the names of their node."""
        self.queue = WorkQueue(self._handle, parallelism=parallelism, of="snapshot")
        cache.contents.subscribe(self._content_changed)
        cache.volumes.subscribe(self._volume_changed)
        tracker.on_change(self._nodes_changed)

    def _content_changed(self, name: str, old: SnapshotContent | None, new: SnapshotContent | None) -> None:
        self._of_node.put(name, {new.node_label, new.hostname} - {""} if new else ())
        self.queue.add(name)

    def _volume_changed(self, name: str, old: PersistentVolume | None, new: PersistentVolume | None) -> None:
        for content in self._waiting.get(name):
            self.queue.add(content)

    def _nodes_changed(self, nodes: NodeNames) -> None:
        for content in {content for node in nodes for content in self._of_node.get(node)}:
            self.queue.add(content)

    async def _handle(self, name: str) -> None:
        content = self._cache.contents.get(name)
        if content is None or content.node_label:
            self._waiting.discard(name)
        if content is None:
            self._lost_since.pop(name, None)
            return
        with logs.about(claim=f"{content.snapshot_namespace}/{content.snapshot_name}", volume=content.volume):
            try:
                if content.node_label:
                    await self._tracker.wait_synced()
                    if not await self._follow_renamed_node(content):
                        await self._release_from_lost_node(content)
                else:
                    await self._reconcile(content)
            except (Conflict, NotFound):
                self.queue.catch_up(name)

    async def _reconcile(self, content: SnapshotContent) -> None:
        if content.deleting:
            if not content.handle:
                await self._let_go(content)
                return
            # Somebody took the label off one that has a snapshot: its node is to remove that.
            decision = _node_of(content.handle)
        elif content.source_handle:
            decision = await self._find(content)
        else:
            decision = assign_to_source(content, await live_volume(self._cluster, content.source_volume))
        match decision:
            case Assign(node_label, hostname):
                self._waiting.discard(content.name)
                body = contract_snapshot.assignment_patch(content, node_label, hostname)
                await self._cluster.patch(SNAPSHOT_CONTENTS, content.name, body)
                _log.info("assigned to node %s", node_label)
            case Refuse(why):
                self._waiting.put(content.name, (content.source_volume,))
                self.queue.add_after(content.name, RECHECK_SECONDS)
                await self._report(content, why)

    async def _find(self, content: SnapshotContent) -> Assign | Refuse:
        handle = assign_to_handle(content)
        if isinstance(handle, Refuse):
            return handle
        node = await live_node(self._cluster, handle.node)
        if node is None:
            return Refuse(f"there is no node {handle.node} (any more), which snapshotHandle names: correct it")
        return Assign(names.node_label_value(node.name), node.hostname)

    async def _let_go(self, content: SnapshotContent) -> None:
        """No node has heard of it, so there is no snapshot."""
        self._waiting.discard(content.name)
        if content.reclaimable and contract_snapshot.FINALIZER in content.finalizers:
            body = contract_snapshot.finalizer_removal_patch(content)
            await self._cluster.patch(SNAPSHOT_CONTENTS, content.name, body)
            _log.info("it goes, and never had a snapshot")

    async def _follow_renamed_node(self, content: SnapshotContent) -> bool:
        """Whether its node has another name now: it is assigned to that. The handle comes first, and is corrected again
        when the label was not: the daemon writes to contents only whose handle names its node."""
        if not content.hostname:
            return False
        renamed = await self._tracker.renamed(content.node_label, content.hostname)
        if not renamed:
            return False
        version: SnapshotContent | None = content
        if content.handle:
            body = contract_snapshot.handle_patch(content, Handle(renamed, content.volume))
            patched = await self._cluster.patch(SNAPSHOT_CONTENTS, content.name, body, subresource="status")
            version = contract_snapshot.read(patched)
        if version is not None:
            body = contract_snapshot.assignment_patch(version, names.node_label_value(renamed), content.hostname)
            await self._cluster.patch(SNAPSHOT_CONTENTS, content.name, body)
            _log.warning("its node %s is called %s now", content.node_label, renamed)
        return True

    async def _release_from_lost_node(self, content: SnapshotContent) -> None:
        """A deleted content whose node was deleted, too, and does not come back within the delay. Under policy Retain
        it waits for the node, whose disks may not have recorded that policy yet; an administrator may know better."""
        ends = content.reclaimable and content.deletion_policy == DELETE
        if not ends or contract_snapshot.FINALIZER not in content.finalizers or self._node_loss_delay is None:
            return
        handle = Handle.parse(content.handle or content.source_handle)
        node = handle.node if handle else content.node_label
        if not await self._tracker.is_gone(frozenset({node, content.node_label, content.hostname} - {""})):
            self._lost_since.pop(content.name, None)
            self.queue.add_after(content.name, RECHECK_SECONDS)
            return
        rest = self._lost_since.setdefault(content.name, self._clock()) + self._node_loss_delay - self._clock()
        if rest > 0:
            self.queue.add_after(content.name, rest)
            return
        await self._cluster.patch(SNAPSHOT_CONTENTS, content.name, contract_snapshot.finalizer_removal_patch(content))
        message = (
            f"node {node} was deleted and did not come back: the snapshot's finalizer was removed, and its data on the "
            "node's disks stays there"
        )
        self._recorder.warning(content.reference, NODE_DELETED, message)
        _log.warning("finalizer removed: %s", message)

    async def _report(self, content: SnapshotContent, why: str) -> None:
        self._recorder.warning(content.reference, CREATION_FAILED, why)
        if content.error == why:
            return
        _log.info("not assigned: %s", why)
        body = contract_snapshot.error_status(content, why, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        try:
            await self._cluster.patch(SNAPSHOT_CONTENTS, content.name, body, subresource="status")
        except (Conflict, NotFound):
            raise
        except ApiError as error:
            _log.warning("its status can't say so: %s", error)


def _node_of(handle: str) -> Assign | Refuse:
    parsed = Handle.parse(handle)
    if parsed is None:
        return Refuse(f"status.snapshotHandle {handle[:64]!r} is none of elastic-local: remove the finalizer by hand")
    return Assign(names.node_label_value(parsed.node))
