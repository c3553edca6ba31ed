"""The controller of claims: looks at a claim, decides, and does what was decided.

It is level-triggered: what wakes it (a claim, its class, a node's room) says only that a claim may be worth a look.
The decision is made twice. First from the caches, which costs nothing and settles most claims. Before a volume is made,
the claim is read from the API server and decided on again: the cache may show a claim that was deleted a moment ago,
or the scheduler's last choice but one.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from contract import names
from contract.capacity import Capacity
from contract.volume import ClaimReference, PersistentVolume
from kube.client import CLAIMS, ApiError, Cluster, Conflict, NotFound
from kube.events import Recorder
from kube.records import SELECTED_NODE, Claim, Pod, StorageClass
from kube.workqueue import WorkQueue
from provisioner.clusterstate import Published, View, live_claim, live_node, live_source_claim
from provisioner.decision import (
    NOTHING,
    Create,
    Decision,
    Ignore,
    Refuse,
    SendBack,
    Source,
    Wait,
    bound_late,
    decide,
    unscheduled,
)
from provisioner.metrics import Metrics
from provisioner.placement import Move, PodPlacement
from provisioner.volumecreation import Creation, NotMade, volume_name
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


_CATCHING_UP = 0.2
"""Seconds that the watch of pods may lag behind that of claims before the API server is asked."""


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
        self._placement = PodPlacement(cluster, view, self._wake_stalled)
        self._moving: set[str] = set()
        """Pods whose claims are being sent to another node, by uid."""
        view.claims.subscribe(self._claim_changed)
        view.pods.subscribe(self._pod_changed)
        view.classes.subscribe(self._class_changed)
        view.capacities.subscribe(self._capacity_changed)
        view.volumes.subscribe(self._volume_changed)

    def _claim_changed(self, key: str, old: Claim | None, new: Claim | None) -> None:
        self.queue.add(key)
        for pod in self._view.users(key):
            for other in pod.claims:
                if other in self._stalled:
                    self.queue.add(other)

    def _pod_changed(self, key: str, old: Pod | None, new: Pod | None) -> None:
        for claim in new.claims if new else ():
            if self._view.claims.get(claim) is not None:
                self.queue.add(claim)

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
            self._placement.let_go(key)
            return
        with logs.about(claim=key, volume=volume_name(claim.uid)):
            await self._serve(claim)

    async def _serve(self, claim: Claim) -> None:
        started = time.monotonic()
        source = await self._source(claim)
        decision: Decision | Move = self._decide(claim, source)
        if isinstance(decision, Create) and self._may_have_a_pod_soon(claim):
            decision = Wait(_CATCHING_UP)
        if isinstance(decision, Create):
            fresh = await live_claim(self._cluster, ClaimReference(claim.namespace, claim.name, claim.uid))
            if fresh is None:
                _log.info("the claim is gone, the cache will know in a moment")
                return
            claim = fresh
            decision = self._decide(claim, source)
        if isinstance(decision, Create | SendBack):
            decision = await self._with_its_pod(claim, decision)
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
                await self._choose([(claim, "")], why)
            case Move():
                await self._move(decision)
            case Create():
                await self._create(claim, decision, started)

    async def _source(self, claim: Claim) -> Source:
        """Asked of the API server: claims that have their volume are not in the cache. Raises ApiError."""
        if not claim.clones or self._exists(claim):
            return NOTHING
        found = await live_source_claim(self._cluster, claim)
        return Source(found, self._view.volumes.get(found.volume_name) if found else None)

    def _exists(self, claim: Claim) -> bool:
        return self._view.books.exists(volume_name(claim.uid), claim.uid)

    def _decide(self, claim: Claim, source: Source) -> Decision:
        if self._exists(claim):
            return Ignore()
        storage_class = self._view.classes.get(claim.storage_class)
        if storage_class is not None and bound_late(storage_class) and not claim.selected_node:
            return unscheduled(claim, self._view.users(claim.key))
        offers = self._view.offers(claim, volume_name(claim.uid), source)
        return decide(claim, storage_class, offers, waited=self._waited(claim), source=source)

    async def _with_its_pod(self, claim: Claim, decision: Create | SendBack) -> Decision | Move:
        """What becomes of the claim, as one of those that its pod needs together. Raises ApiError."""
        storage_class = self._view.classes.get(claim.storage_class)
        if storage_class is None or not bound_late(storage_class):
            return decision
        # The scheduler heeds topologies, but anybody may write a node into a claim, and a copy goes to its source.
        place = decision.place if isinstance(decision, Create) else None
        if place and not claim.clones and (why := await self._unbelievable(claim, place)):
            return SendBack(f"{why}: another node is asked for")
        if place and await self._placement.refused_by(storage_class, place.hostname):
            why = f"node {place.node} is none of the allowedTopologies of StorageClass {storage_class.name}"
            if claim.clones:
                return Refuse(why)
            decision = SendBack(f"{why}: another node is asked for")
        if claim.clones:
            return decision
        pods = await self._placement.pods(claim, certain=isinstance(decision, Create))
        if isinstance(decision, Create):
            again = self._decide(claim, NOTHING)  # others may have been decided meanwhile
            if not pods or not isinstance(again, Create):
                return again
            return self._placement.decide(claim, again, pods, self._waited(claim))
        node = names.node_label_value(claim.selected_node)
        moves = (Move(pod, self._placement.open_claims(pod, claim), node, decision.why) for pod in pods)
        return next((move for move in moves if len(move.claims) > 1), decision)

    async def _unbelievable(self, claim: Claim, place: Capacity) -> str:
        """What a node publishes ends up in the affinity of a volume: it may speak for itself only. Raises ApiError."""
        node = await live_node(self._cluster, claim.selected_node)
        if node is None or node.hostname == place.hostname:
            return ""
        return (
            f"node {node.name} publishes room for hostname {place.hostname}, and its label says {node.hostname}, so it "
            "is not believed"
        )

    def _may_have_a_pod_soon(self, claim: Claim) -> bool:
        """The pod that the scheduler knows may not have come to this cache yet. Where a person chose the node there may
        be none."""
        return bool(claim.selected_node) and not self._view.users(claim.key) and self._waited(claim) < _CATCHING_UP

    async def _move(self, move: Move) -> None:
        """All claims of a pod at once, so that none is left behind on a node that can't have the others."""
        if move.pod.uid in self._moving:
            return
        self._moving.add(move.pod.uid)
        try:
            choices, words = await self._placement.proposal(move)
            await self._choose(choices, words)
        finally:
            self._moving.discard(move.pod.uid)

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
            self._placement.let_go(claim.key)
        except NotMade as error:
            self._failed(claim, str(error))
            raise
        seconds = time.monotonic() - started
        self._metrics.provisioned(claim.storage_class, claim.data_source, seconds)
        node = create.place.node if create.place else "the node of its first pod"
        _log.info("volume %s of %d bytes for %s, %.0f ms", name, create.size, node, 1000 * seconds)

    async def _choose(self, choices: Sequence[tuple[Claim, str]], why: str) -> None:
        """Ask the scheduler for this node, or, if it is empty, for any other, for one claim after the other, and tell
        their owners. Ends at the first that is not any more what was decided on."""
        for claim, node in choices:
            if claim.selected_node == node:
                continue
            self._stalled.pop(claim.key, None)
            self._placement.let_go(claim.key)
            annotations = {SELECTED_NODE: node or None}
            body = {"metadata": {"resourceVersion": claim.resource_version, "annotations": annotations}}
            try:
                await self._cluster.patch(CLAIMS, claim.name, body, claim.namespace)
            except NotFound:
                continue
            except Conflict:
                _log.info("claim %s changed meanwhile: looking again", claim.key)
                for each, _ in choices:
                    self.queue.add_after(each.key, 0.1)
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
