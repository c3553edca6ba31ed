"""Cleans up after nodes that were deleted: tells whom it concerns at once, and acts when a node stays away.

Work is queued by place, that is by the set of names that some volumes call their node, so a node that takes a thousand
volumes along is asked for once and not a thousand times. Nothing is done that can't be proven twice: a place counts as
lost from the moment that cache and API server agree on it, and they must agree again when the delay is over. When it
began is remembered in this process only, so a new leader begins to wait anew, which is the safe mistake.

Whatever is done to a volume or claim holds for the version of the object that was judged, and for no other that has its
name.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from contract import volume
from contract.volume import BOUND, PersistentVolume
from kube.client import CLAIMS, VOLUMES, ApiError, Cluster, Conflict, Json, NotFound
from kube.events import ObjectReference, Recorder
from kube.informer import Informer
from kube.workqueue import Backoff, WorkQueue
from provisioner.clusterstate import live_claim
from provisioner.metrics import Metrics
from provisioner.nodeloss import Nodes, Resident, Step, called, next_step, of_local, of_ours, warning
from provisioner.nodetracker import Standing, follow_renamed_nodes
from service import logs

_log = logging.getLogger(__name__)

VOLUME_REASON = "NodeDeleted"


class Partings:
    """`volumes` has the whole records of ours."""

    def __init__(
        self, cluster: Cluster, volumes: Informer[PersistentVolume], recorder: Recorder, metrics: Metrics
    ) -> None:
        self._cluster = cluster
        self._volumes = volumes
        self._recorder = recorder
        self._metrics = metrics

    async def perform(self, step: Step, resident: Resident) -> None:
        """Raises ApiError. What is gone already is no error."""
        try:
            match step:
                case Step.LET_GO:
                    await self._let_go(resident)
                case Step.DELETE:
                    await self._delete(resident)
                case Step.DELETE_CLAIM:
                    await self._delete_claim(resident)
        except NotFound:
            return

    async def _let_go(self, resident: Resident) -> None:
        if resident.ours:
            found = self._volumes.get(resident.name)
            if found is None or found.uid != resident.uid:
                return
            await self._cluster.patch(VOLUMES, found.name, volume.releasing(found))
        else:
            body = await self._cluster.get(VOLUMES, resident.name)
            if (body["metadata"]["uid"], body["metadata"]["resourceVersion"]) != (
                resident.uid,
                resident.resource_version,
            ):
                return  # the cache hears of it in a moment
            await self._cluster.patch(VOLUMES, resident.name, volume.releasing_static(body))
        words = (
            f"node {called(resident.nodes)} was deleted and did not come back: the volume was let go, and what the "
            "node's disks hold stays there"
        )
        self._recorder.warning(volume_reference(resident), VOLUME_REASON, words)
        if claim := claim_reference(resident):
            self._recorder.warning(claim, VOLUME_REASON, f"volume {resident.name}: {words}")
        self._metrics.let_go(resident.storage_class)
        _log.warning("let go: %s", words)

    async def _delete(self, resident: Resident) -> None:
        if resident.claim is not None and await live_claim(self._cluster, resident.claim) is not None:
            return  # whatever the volume's phase says, somebody counts on it
        try:
            await self._cluster.delete(
                VOLUMES, resident.name, uid=resident.uid, resource_version=resident.resource_version
            )
        except (NotFound, Conflict):
            raise
        except ApiError:
            self._metrics.lost_volume_delete_failed(resident.phase)
            raise
        self._metrics.lost_volume_deleted(resident.phase)
        _log.warning("deleted, because node %s is gone", called(resident.nodes))

    async def _delete_claim(self, resident: Resident) -> None:
        """Only while it is the very claim that the volume is for, and still points at it."""
        claim = await live_claim(self._cluster, resident.claim) if resident.claim else None
        if claim is None or claim.deleting or claim.volume_name != resident.name:
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
        _log.warning("claim deleted, because node %s is gone", called(resident.nodes))


def volume_reference(resident: Resident) -> ObjectReference:
    return ObjectReference("PersistentVolume", "v1", "", resident.name, resident.uid)


def claim_reference(resident: Resident) -> ObjectReference | None:
    claim = resident.claim
    if claim is None or not claim.uid:
        return None
    return ObjectReference("PersistentVolumeClaim", "v1", claim.namespace, claim.name, claim.uid)


CLAIM_REASON = "ReferencedNodeDeleted"


@dataclass
class _Place:
    """The volumes that call their node by the same names."""

    nodes: Nodes
    residents: dict[str, Resident] = field(default_factory=dict)
    lost_since: float | None = None
    """Monotonic seconds."""
    told: set[tuple[str, Step, bool]] = field(default_factory=set)
    """What was said since then, by uid of the volume."""


class NodeCleanup:
    """The controller. `delay`: seconds that a node may be away, None: for ever. `classes`: names of those whose claims
    and volumes go with their node."""

    def __init__(
        self,
        cluster: Cluster,
        volumes: Informer[PersistentVolume],
        recorder: Recorder,
        metrics: Metrics,
        *,
        delay: float | None,
        classes: Collection[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._volumes = volumes
        self._recorder = recorder
        self._partings = Partings(cluster, volumes, recorder, metrics)
        self._delay = delay
        self._classes = frozenset(classes)
        self._clock = clock
        self.places: dict[str, _Place] = {}
        self._named: dict[str, set[str]] = {}
        """Name of a node -> keys of the places that it stands for."""
        self._standing = Standing(cluster)
        self._locals = Informer[Resident](cluster, VOLUMES, self._local)
        self.queue = WorkQueue(self._look, parallelism=4, backoff=Backoff(first=0.5, factor=2, limit=60))
        volumes.subscribe(self._ours_changed)
        self._locals.subscribe(self._changed)
        self._standing.on_change(self._nodes_changed)

    async def run(self) -> None:
        """For ever. Begins when all volumes and all nodes are known."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._standing.run(), name="nodes")
            await self._standing.wait_synced()
            if self._classes:
                tasks.create_task(self._locals.run(), name="local volumes")
                await self._locals.wait_synced()
            await self._volumes.wait_synced()
            tasks.create_task(self.queue.run(), name="node cleanup")

    def _local(self, body: Json) -> Resident | None:
        return of_local(body, self._classes)

    def _ours_changed(self, name: str, old: PersistentVolume | None, new: PersistentVolume | None) -> None:
        self._changed(name, of_ours(old) if old else None, of_ours(new) if new else None)

    def _changed(self, name: str, old: Resident | None, new: Resident | None) -> None:
        if old is not None and (new is None or new.nodes != old.nodes):
            self._leave(name, old)
        if new is not None:
            key = _key(new.nodes)
            place = self.places.setdefault(key, _Place(new.nodes))
            place.residents[name] = new
            for node in new.nodes:
                self._named.setdefault(node, set()).add(key)
            self.queue.add(key)

    def _leave(self, name: str, old: Resident) -> None:
        key = _key(old.nodes)
        place = self.places[key]
        place.residents.pop(name, None)
        if not place.residents:
            del self.places[key]
            for node in old.nodes:
                self._named[node].discard(key)
                if not self._named[node]:
                    del self._named[node]

    def _nodes_changed(self, nodes: Nodes) -> None:
        for key in {key for node in nodes for key in self._named.get(node, ())}:
            if self._standing.known(self.places[key].nodes):
                # At once, and not when its turn comes: it may be gone again by then, and the delay begins anew.
                self._found(self.places[key])
            self.queue.add(key)

    def _found(self, place: _Place) -> None:
        if place.lost_since is not None:
            _log.info("node %s is back", called(place.nodes))
        place.lost_since = None
        place.told.clear()

    async def _look(self, key: str) -> None:
        place = self.places.get(key)
        if place is None:
            return
        if not await self._standing.gone(place.nodes):
            self._found(place)
            await follow_renamed_nodes(self._cluster, self._standing, place.residents.values())
            return
        now = self._clock()
        first = place.lost_since is None
        if place.lost_since is None:
            _log.warning("node %s is gone, and %d volumes with it", called(place.nodes), len(place.residents))
            place.lost_since = now
        self._tell(place)
        if self._delay is None:
            return
        rest = place.lost_since + self._delay - now
        if first or rest > 0:
            self.queue.add_after(key, max(rest, 0))
            return
        await self._clean(place)

    def _step(self, resident: Resident) -> Step:
        return next_step(resident, resident.storage_class in self._classes)

    def _tell(self, place: _Place) -> None:
        for resident in place.residents.values():
            step = self._step(resident)
            said = (resident.uid, step, resident.phase == BOUND)
            words = warning(resident, step, self._delay)
            if not words or said in place.told:
                continue
            place.told.add(said)
            claim = claim_reference(resident)
            if resident.phase == BOUND and claim is not None:
                self._recorder.warning(claim, CLAIM_REASON, words)
            else:
                self._recorder.warning(volume_reference(resident), VOLUME_REASON, words)

    async def _clean(self, place: _Place) -> None:
        """Raises the last ApiError of those that were met: what failed is tried again, the rest is done."""
        failure: ApiError | None = None
        for resident in list(place.residents.values()):
            if place.lost_since is None:
                return  # the node came back meanwhile
            with logs.about(volume=resident.name, claim=str(resident.claim or "")):
                try:
                    await self._partings.perform(self._step(resident), resident)
                except ApiError as error:
                    failure = error
        if failure is not None:
            raise failure


def _key(nodes: Nodes) -> str:
    return "\n".join(sorted(nodes))
