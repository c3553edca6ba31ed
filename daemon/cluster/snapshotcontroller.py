"""The VolumeSnapshotContents of this node: their snapshots are made, reported and removed. It is what a csi-snapshotter
and a CSI driver do together, without the call between them.

A snapshot is a volume of its own, a copy of its source (contract.snapshot), so the same code makes, erases and counts
it. Whatever its content says, only what its own record says is believed of what is there: a content that names a
snapshot of somebody else gets none. A node's contents are those with its label, which the provisioner puts on.

The objects are not Kubernetes' own: where their CustomResourceDefinitions are not installed, there are no snapshots.
"""

import asyncio
import enum
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from contract import names, snapshot
from contract import volume as contract_volume
from contract.parameters import VolumeParameters
from contract.snapshot import Handle, SnapshotContent
from contract.volume import DELETE, Original, PersistentVolume
from daemon.cluster.nodevolumes import NodeVolumes, checked_parameters
from daemon.errors import Foreign, PoolMissing, Refused, VolumeError, VolumeNotFound, message_of
from daemon.storage.deletionguard import OwnerLookup
from daemon.storage.disks import disk_of
from daemon.storage.inventory import Volume
from daemon.storage.record import Record, VolumeSpec, VolumeState
from daemon.storage.volumes import Volumes
from kube.client import Cluster
from kube.errors import ApiError, Conflict, NotFound, Unreachable
from kube.events import Recorder
from kube.informer import Informer
from kube.records import Node
from kube.resources import SNAPSHOT_CONTENTS, VOLUMES
from kube.workqueue import WorkQueue
from service.logs import about

log = logging.getLogger(__name__)

CREATION_FAILED, DELETE_FAILED = "SnapshotCreationFailed", "SnapshotDeleteError"
"""Those of the csi-snapshotter."""
DELETE_PENDING = "SnapshotDeletePending"
"""That of the snapshot controller."""
_RESTORING_SECONDS = 15.0
"""Seconds between two looks whether a volume is still to be restored from one that is deleted."""

_PARALLELISM = 4
"""Snapshots of one disk at a time. Copies of it take their turns in Volumes."""


class Action(enum.Enum):
    LEAVE = "leave"
    CREATE = "create"
    """Make it, or make what there is say so."""
    FIND = "find"
    """It is there already, and the content is to have it."""
    REMOVE = "remove"
    RETAIN = "retain"


def plan(content: SnapshotContent, volume: Volume | None) -> Action:
    """What a content of this node wants. `volume` is what the node has under the name of its snapshot."""
    if content.deleting:
        if not content.reclaimable or snapshot.FINALIZER not in content.finalizers:
            return Action.LEAVE
        return Action.REMOVE if content.deletion_policy == DELETE else Action.RETAIN
    whole = volume if volume is not None and volume.record.state is VolumeState.READY else None
    if whole is None or whole.record.uid != content.uid:
        # One that is whole was made for this content, whose name it has, and another had it since: the API server went
        # back to before that.
        return Action.FIND if content.source_handle or whole else Action.CREATE
    reported = content.ready and not content.being_created
    holds = whole.record.filesystem, whole.record.encryption or content.encryption
    noted = (content.pool, content.filesystem, content.encryption) == (
        whole.pool,
        *holds,
    )  # annotations, which get lost
    return Action.LEAVE if reported and noted and whole.record.policy == content.deletion_policy else Action.FIND


class SnapshotController:
    """Needs the informer of the PersistentVolumes synced."""

    def __init__(
        self,
        cluster: Cluster,
        node: Node,
        node_volumes: NodeVolumes,
        volumes: Volumes,
        owner_lookup: OwnerLookup,
        pool_of: Callable[[VolumeParameters], str],
        events: Recorder,
    ) -> None:
        self._cluster = cluster
        self._node = node
        self._node_volumes = node_volumes
        self._volumes = volumes
        self._owner_lookup = owner_lookup
        self._pool_of = pool_of
        self._events = events
        self._contents = Informer[SnapshotContent](
            cluster,
            SNAPSHOT_CONTENTS,
            snapshot.read,
            label_selector=f"{names.NODE_LABEL}={names.node_label_value(node.name)}",
            optional=True,
        )
        self._queue = WorkQueue(
            self._reconcile, parallelism=_PARALLELISM, expected=(ApiError, VolumeError), of="snapshot", group=self._disk
        )
        self._contents.subscribe(lambda key, *_: self._queue.add(key))
        self._contents.on_return(self._queue.hurry)

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._contents.run())
            tasks.create_task(self._queue.run())

    def enqueue(self, volume: str) -> None:
        """The erasure of the volume of that name, a snapshot or not, has ended."""
        if content := self._content_of(volume):
            self._queue.add(content.name)

    def enqueue_of(self, source: str) -> None:
        """Who uses the volume of that name has changed: a snapshot of it may have waited for that."""
        for content in self._contents.values():
            if content.source_volume == source and not content.ready:
                self._queue.add(content.name)

    def has_content(self, record: Record) -> bool:
        """Whether the VolumeSnapshotContent that owns the snapshot with this record is known to be there."""
        content = self._contents.get(record.content)
        return content is not None and content.uid == record.uid

    def uids(self) -> set[str]:
        """Of the contents of this node."""
        return {content.uid for content in self._contents.values()}

    def may_clone(self, one: str, source: str) -> bool:
        """Whether the volume of the first name may begin as a copy of the second, where one of them is a snapshot: both
        are of one namespace. Whoever may create a PersistentVolume can name any snapshot as its source."""
        if content := self._content_of(one):
            pv = self._node_volumes.get(source)
            return content.source_volume == source and pv is not None and _is_of_namespace(pv, content)
        content, pv = self._content_of(source), self._node_volumes.get(one)
        return content is not None and pv is not None and content.ready and _is_of_namespace(pv, content)

    def _content_of(self, volume: str) -> SnapshotContent | None:
        return next((each for each in self._contents.values() if each.volume == volume), None)

    def _disk(self, name: str) -> str:
        content = self._contents.get(name)
        return disk_of(content.pool) if content else ""

    async def _reconcile(self, name: str) -> None:
        content = self._contents.get(name)
        if content is None:
            return
        with about(volume=content.volume, claim=f"{content.snapshot_namespace}/{content.snapshot_name}"):
            action = plan(content, self._volumes.inventory.volume(content.volume))
            try:
                await self._perform(action, content)
            except (Conflict, NotFound, Unreachable):
                raise  # it passes by itself
            except Exception as error:
                await self._report(action, content, error)
                raise

    async def _perform(self, action: Action, content: SnapshotContent) -> None:
        match action:
            case Action.CREATE:
                await self._create(content)
            case Action.FIND:
                await self._find(content)
            case Action.REMOVE | Action.RETAIN:
                if waiting := await self._still_restored(content):
                    message = f"volume {waiting} is to be restored from it: it goes when that is made, or is deleted"
                    self._events.warning(content.reference, DELETE_PENDING, message)
                    self._queue.add_after(content.name, _RESTORING_SECONDS)
                    return
                if await self._is_its_own(content) and not await self._let_go(action, content):
                    return  # when its data is gone, it is enqueued again
                await self._remove_finalizer(content)

    async def _let_go(self, action: Action, content: SnapshotContent) -> bool:
        """Retains the snapshot, hands it to another content that names it, or removes it. False: it is being erased."""
        if action is Action.RETAIN:
            await self._volumes.retain(content.volume, content.uid, content.pool, made=bool(content.handle))
            return True
        if await self._hand_over(content):
            return True
        if not await self._volumes.reclaim(content.volume, content.uid, content.pool):
            return False
        log.info("removed")
        return True

    async def _hand_over(self, content: SnapshotContent) -> bool:
        """Whether another content names the snapshot and has it now, one that retains it before one that deletes it.
        Asked of the API server, of contents of all nodes: the provisioner may not have assigned it yet."""
        volume = self._volumes.inventory.volume(content.volume)
        if volume is None or volume.record.uid != content.uid or volume.record.state is not VolumeState.READY:
            return False
        bodies = await self._cluster.list(SNAPSHOT_CONTENTS)
        others = [each for each in map(snapshot.read, bodies) if each and _also_names(each, content)]
        if not others:
            return False
        heir = min(others, key=lambda each: (each.deletion_policy == DELETE, each.name))
        await self._give(volume, heir)
        log.info("VolumeSnapshotContent %s names it too, and has it from now on", heir.name)
        self._queue.add(heir.name)
        return True

    async def _still_restored(self, content: SnapshotContent) -> str:
        """Name of a volume that is yet to begin as its copy. The snapshot controller keeps a snapshot until the claim
        is bound, which ours are before they are made. Asked of the API server: what is erased is gone."""
        on_node = f"{names.NODE_LABEL}={content.node_label}"
        for body in await self._cluster.list(VOLUMES, label_selector=on_node):
            pv = contract_volume.read(body)
            if (
                pv is not None
                and pv.original == Original(content.volume, content.uid)
                and not (pv.made or pv.deleting)
                and _is_of_namespace(pv, content)
            ):
                return pv.name
        return ""

    async def _create(self, content: SnapshotContent) -> None:
        """Makes it, and says so. A content with a handle had it, and has lost it: `ready` does not say that, an error
        resets it, and what the volume holds by now would be taken for what it held then."""
        if content.handle:
            raise VolumeNotFound(
                f"snapshot {content.volume} was made on this node and is not there any more: bring back the disks that "
                "it lies on; if they are gone for good, delete the VolumeSnapshot"
            )
        pv = self._node_volumes.get(content.source_volume)
        if pv is None or not _is_of_namespace(pv, content):
            raise Refused(
                f"volume {content.source_volume} is not (any more) on node {self._node.name} for a claim of namespace "
                f"{content.snapshot_namespace}: delete the VolumeSnapshot"
            )
        source = self._volumes.inventory.volume(pv.name)
        if source is None or source.record.uid != pv.uid:
            raise VolumeNotFound(
                f"volume {pv.name} is not on this node (any more): bring back the disk that it lies on"
            )
        spec = VolumeSpec(
            content.volume,
            content.uid,
            source.size,
            content.deletion_policy,
            checked_parameters(pv),
            original=Original(pv.name, pv.uid),
            content=content.name,
        )
        pool = self._pool_of(spec.parameters)
        record = source.record
        body = snapshot.being_created_patch(content, pool, record.filesystem, record.encryption, pv.secret)
        await self._cluster.patch(SNAPSHOT_CONTENTS, content.name, body)
        await self._say_ready(content, await self._volumes.prepare(spec))

    async def _find(self, content: SnapshotContent) -> None:
        """The snapshot that is there belongs to the content, or is handed to it: one whose content is gone. Raises
        VolumeNotFound, Foreign, PoolMissing."""
        volume = self._volumes.inventory.volume(content.volume)
        if volume is None:
            if hidden := self._volumes.inventory.unavailable:
                pools = ", ".join(each.pool for each in hidden)
                raise PoolMissing(f"snapshot {content.volume} is not to be seen now: {pools} can't be looked at")
            raise VolumeNotFound(f"there is no snapshot {content.source_handle}: correct snapshotHandle")
        record = volume.record
        if not record.content or record.state is not VolumeState.READY:
            raise VolumeNotFound(f"volume {content.volume} is no snapshot that is whole: correct snapshotHandle")
        if record.uid != content.uid:
            await self._check_free(content, record)
        if (record.uid, record.policy) != (content.uid, content.deletion_policy):
            volume = await self._give(volume, content)
        body = snapshot.being_created_patch(content, volume.pool, volume.record.filesystem, volume.record.encryption)
        await self._cluster.patch(SNAPSHOT_CONTENTS, content.name, body)
        await self._say_ready(content, volume)

    async def _give(self, snapshot_volume: Volume, content: SnapshotContent) -> Volume:
        """It belongs to the content from now on, as its record says."""
        record = snapshot_volume.record
        to = replace(record, uid=content.uid, content=content.name, policy=content.deletion_policy)
        return await self._volumes.transfer(snapshot_volume.pv, record.uid, to)

    async def _take_back(self, content: SnapshotContent, snapshot_volume: Volume) -> bool:
        """Whether the content has again what it had, and was another's since, which is gone."""
        try:
            await self._check_free(content, snapshot_volume.record)
        except Foreign:
            return False
        await self._give(snapshot_volume, content)
        return True

    async def _check_free(self, content: SnapshotContent, record: Record) -> None:
        """Raises Foreign unless its content is gone, whatever policy that had: somebody may have torn its finalizer
        off."""
        owner = await self._owner_lookup.owner(content.volume, record.content)
        volume = Handle(self._node.name, content.volume)
        if owner is not None and owner.uid == record.uid:
            raise Foreign(
                f"snapshot {volume} belongs to the VolumeSnapshotContent {record.content}: set its deletionPolicy to "
                "Retain and delete it first"
            )
        if record.cluster and record.cluster != self._owner_lookup.cluster:
            raise Foreign(f"snapshot {volume} belongs to another cluster")

    async def _say_ready(self, content: SnapshotContent, volume: Volume) -> None:
        handle = Handle(self._node.name, volume.pv)
        body = snapshot.ready_status(content, handle, volume.size, volume.record.taken)
        await self._cluster.patch(SNAPSHOT_CONTENTS, content.name, body, None, "status")
        await self._cluster.patch(SNAPSHOT_CONTENTS, content.name, snapshot.created_patch(content))
        log.info("ready")

    async def _is_its_own(self, content: SnapshotContent) -> bool:
        """Whether there may be a snapshot to be removed or retained for it. One that names a snapshot has none before
        that was handed to it, as the record of that says. While none can be seen, the content says it: it has the
        annotation before one is begun, or right after one was handed to it, and then the handle for good. `ready` it is
        until the next error only. And what it had may be another's by its record: the API server went back to before
        that, as `plan` says."""
        volume = self._volumes.inventory.volume(content.volume)
        if volume is None:
            return bool(content.handle or content.being_created)
        if volume.record.uid == content.uid:
            return True
        had = not content.source_handle or bool(content.handle)
        return had and volume.record.state is VolumeState.READY and await self._take_back(content, volume)

    async def _remove_finalizer(self, content: SnapshotContent) -> None:
        try:
            await self._cluster.patch(SNAPSHOT_CONTENTS, content.name, snapshot.finalizer_removal_patch(content))
        except NotFound:
            log.info("somebody else removed its object")

    async def _report(self, action: Action, content: SnapshotContent, error: Exception) -> None:
        message = message_of(error)
        if action in (Action.REMOVE, Action.RETAIN):
            self._events.warning(content.reference, DELETE_FAILED, message)
            return
        self._events.warning(content.reference, CREATION_FAILED, message)
        if content.error != message:
            body = snapshot.error_status(content, message, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
            await self._cluster.patch(SNAPSHOT_CONTENTS, content.name, body, None, "status")


def _also_names(other: SnapshotContent, content: SnapshotContent) -> bool:
    """Whether another content, which is to stay, names the same snapshot."""
    return (
        other.uid != content.uid
        and not other.deleting
        and bool(other.source_handle)
        and other.source_handle in (content.handle, content.source_handle)
    )


def _is_of_namespace(pv: PersistentVolume, content: SnapshotContent) -> bool:
    return pv.claim is not None and pv.claim.namespace == content.snapshot_namespace
