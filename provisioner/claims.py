"""The controller of claims: looks at a claim, decides, and does what was decided.

It is level-triggered: what wakes it (a claim, its class, a node's room) says only that a claim may be worth a look.
The decision is made twice. First from the caches, which costs nothing and settles most claims. Before a volume is made,
the claim is read from the API server and decided on again: the cache may show a claim that was deleted a moment ago,
or the scheduler's last choice but one.
"""

import logging
import time
from dataclasses import dataclass, replace

from contract.volume import ClaimReference, PersistentVolume
from kube.client import CLAIMS, ApiError, Cluster, Conflict, NotFound
from kube.events import Recorder
from kube.records import SELECTED_NODE, Claim, StorageClass
from kube.workqueue import WorkQueue
from provisioner import live, manifest
from provisioner.cloning import NOTHING, Source
from provisioner.creation import Creation, NotMade
from provisioner.decision import Create, Decision, Ignore, Refuse, SendBack, Wait, decide
from provisioner.metrics import Metrics
from provisioner.view import Published, View
from service import logs

_log = logging.getLogger(__name__)

SECOND_LOOK = 120.0
"""Seconds after which a refused claim is looked at again, though nothing has changed that we know of."""


@dataclass(frozen=True)
class _Stalled:
    """A claim that waits for room or for its class."""

    claim: Claim
    since: float | None
    """When the chosen node was first found to publish no room."""


class Claims:
    """Does nothing before its queue runs; what is to be looked at gathers there meanwhile."""

    def __init__(
        self,
        cluster: Cluster,
        view: View,
        creation: Creation,
        recorder: Recorder,
        metrics: Metrics,
        *,
        parallelism: int,
    ) -> None:
        self._cluster = cluster
        self._view = view
        self._creation = creation
        self._recorder = recorder
        self._metrics = metrics
        self._stalled: dict[str, _Stalled] = {}
        self.queue = WorkQueue(self._handle, parallelism=parallelism, expected=(ApiError, NotMade), of="claim")
        view.claims.subscribe(lambda key, old, new: self.queue.add(key))
        view.classes.subscribe(self._class_changed)
        view.capacities.subscribe(self._capacity_changed)
        view.volumes.subscribe(self._volume_changed)

    def look_again(self) -> None:
        """At every claim without a volume: what we took for one may be none."""
        for claim in self._view.claims.values():
            self.queue.add(claim.key)

    def _wake_stalled(self, storage_class: str | None = None) -> None:
        """Look again at claims that wait, of one class or of all: there may be room now."""
        for key, stalled in self._stalled.items():
            if storage_class in (None, stalled.claim.storage_class):
                self.queue.add(key)

    def _wake_clones(self, source: ClaimReference) -> None:
        """Look again at claims that wait to become a copy of this one: it may be ready for that now."""
        for key, stalled in self._stalled.items():
            claim = stalled.claim
            if claim.clones and (claim.namespace, claim.data_source_name) == (source.namespace, source.name):
                self.queue.add(key)

    def _class_changed(self, name: str, old: StorageClass | None, new: StorageClass | None) -> None:
        for claim in self._view.claims.values():
            if claim.storage_class == name:
                self.queue.add(claim.key)

    def _capacity_changed(self, key: str, old: Published | None, new: Published | None) -> None:
        # Each new volume moves `available`, on which nothing is decided here.
        if new and (not old or replace(new.capacity, available=0) != replace(old.capacity, available=0)):
            self._wake_stalled(new.capacity.storage_class)

    def _volume_changed(self, name: str, old: PersistentVolume | None, new: PersistentVolume | None) -> None:
        if new is not None and new.claim is not None:
            self._wake_clones(new.claim)
        if new is None:
            self._wake_stalled()
            if old is not None and old.claim is not None:
                self.queue.add(str(old.claim))

    async def _handle(self, key: str) -> None:
        claim = self._view.claims.get(key)
        if claim is None:
            self._stalled.pop(key, None)
            return
        with logs.about(claim=key, volume=manifest.volume_name(claim.uid)):
            await self._serve(claim)

    async def _serve(self, claim: Claim) -> None:
        started = time.monotonic()
        source = await self._source(claim)
        decision = self._decide(claim, source)
        if isinstance(decision, Create):
            fresh = await live.claim(self._cluster, ClaimReference(claim.namespace, claim.name, claim.uid))
            if fresh is None:
                _log.info("the claim is gone, the cache will know in a moment")
                return
            claim = fresh
            decision = self._decide(claim, source)
        match decision:
            case Ignore():
                self._stalled.pop(claim.key, None)
            case Wait(seconds):
                waited = self._waited(claim)
                self._stalled[claim.key] = _Stalled(claim, time.monotonic() - waited)
                self.queue.add_after(claim.key, seconds)
            case Refuse(why):
                self._stalled[claim.key] = _Stalled(claim, None)
                self._failed(claim, why)
                self.queue.add_after(claim.key, SECOND_LOOK)
            case SendBack(why):
                await self._send_back(claim, why)
            case Create():
                await self._create(claim, decision, started)

    async def _source(self, claim: Claim) -> Source:
        """Asked of the API server: claims that have their volume are not in the cache. Raises ApiError."""
        if not claim.clones or self._exists(claim):
            return NOTHING
        found = await live.source_claim(self._cluster, claim)
        return Source(found, self._view.volumes.get(found.volume_name) if found else None)

    def _exists(self, claim: Claim) -> bool:
        return self._view.books.exists(manifest.volume_name(claim.uid), claim.uid)

    def _decide(self, claim: Claim, source: Source) -> Decision:
        if self._exists(claim):
            return Ignore()
        storage_class = self._view.classes.get(claim.storage_class)
        offers = self._view.offers(claim, manifest.volume_name(claim.uid), source)
        return decide(claim, storage_class, offers, waited=self._waited(claim), source=source)

    def _waited(self, claim: Claim) -> float:
        stalled = self._stalled.get(claim.key)
        if stalled is None or stalled.since is None:
            return 0.0
        same = (stalled.claim.uid, stalled.claim.selected_node) == (claim.uid, claim.selected_node)
        return time.monotonic() - stalled.since if same else 0.0

    async def _create(self, claim: Claim, create: Create, started: float) -> None:
        self._stalled.pop(claim.key, None)
        storage_class = self._view.classes.get(claim.storage_class)
        assert storage_class is not None, "decided on a moment ago"
        try:
            name = await self._creation.make(claim, storage_class, create)
        except NotMade as error:
            self._failed(claim, str(error))
            raise
        seconds = time.monotonic() - started
        self._metrics.provisioned(claim.storage_class, claim.data_source, seconds)
        node = create.place.node if create.place else "the node of its first pod"
        _log.info("volume %s of %d bytes for %s, %.0f ms", name, create.size, node, 1000 * seconds)

    async def _send_back(self, claim: Claim, why: str) -> None:
        """Ask the scheduler for another node. Only if the claim is still the one that was decided on."""
        self._stalled.pop(claim.key, None)
        withdrawn = {"metadata": {"resourceVersion": claim.resource_version, "annotations": {SELECTED_NODE: None}}}
        try:
            await self._cluster.patch(CLAIMS, claim.name, withdrawn, claim.namespace)
        except NotFound:
            return
        except Conflict:
            _log.info("the claim changed meanwhile: looking again")
            self.queue.add_after(claim.key, 0.1)
            return
        self._failed(claim, why)

    def _failed(self, claim: Claim, why: str) -> None:
        self._metrics.provision_failed(claim.storage_class, claim.data_source)
        _log.info("not provisioned: %s", why)
        self._recorder.warning(
            claim.reference,
            "ProvisioningFailed",
            f'failed to provision volume with StorageClass "{claim.storage_class}": {why}',
        )
