"""Cleans up after nodes that were deleted: tells whom it concerns at once, and acts when a node stays away.

Work is queued by place, that is by the set of names that some volumes call their node, so a node that takes a thousand
volumes along is asked for once and not a thousand times. Nothing is done that can't be proven twice: a place counts as
lost from the moment that cache and API server agree on it, and they must agree again when the delay is over. When it
began is remembered in this process only, so a new leader begins to wait anew, which is the safe mistake.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from contract.volume import BOUND, PersistentVolume
from kube.client import VOLUMES, ApiError, Cluster, Json
from kube.events import Recorder
from kube.informer import Informer
from kube.workqueue import Backoff, WorkQueue
from provisioner import nodeloss, renaming, residents
from provisioner.metrics import Metrics
from provisioner.nodeloss import Step, next_step
from provisioner.partings import VOLUME_REASON, Partings, claim_reference, volume_reference
from provisioner.residents import Nodes, Resident
from provisioner.standing import Standing
from service import logs

_log = logging.getLogger(__name__)

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
        return residents.of_local(body, self._classes)

    def _ours_changed(self, name: str, old: PersistentVolume | None, new: PersistentVolume | None) -> None:
        self._changed(name, residents.of_ours(old) if old else None, residents.of_ours(new) if new else None)

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
            _log.info("node %s is back", nodeloss.called(place.nodes))
        place.lost_since = None
        place.told.clear()

    async def _look(self, key: str) -> None:
        place = self.places.get(key)
        if place is None:
            return
        if not await self._standing.gone(place.nodes):
            self._found(place)
            await renaming.follow(self._cluster, self._standing, place.residents.values())
            return
        now = self._clock()
        first = place.lost_since is None
        if place.lost_since is None:
            _log.warning("node %s is gone, and %d volumes with it", nodeloss.called(place.nodes), len(place.residents))
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
            words = nodeloss.warning(resident, step, self._delay)
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
