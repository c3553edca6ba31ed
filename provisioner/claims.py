"""The controller of claims: looks at a claim, decides, and does what was decided.

It is level-triggered: each trigger (a claim, its class, a node's capacity) means only that a claim may be worth a look.
The decision is made twice. First from the caches, which costs no request and settles each claim that is not to get its
volume now. Before one is made, the claim is read from the API server and decided on again: the cache may show a claim
that was deleted a moment ago, or the scheduler's last choice but one, and other claims took capacity meanwhile.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from contract import names
from contract.capacity import Capacity
from contract.snapshot import SnapshotContent
from contract.volume import ClaimReference, PersistentVolume
from kube.claims import live_claim
from kube.client import Cluster
from kube.errors import ApiError, Conflict, NotFound, is_not_served
from kube.events import Recorder
from kube.records import SELECTED_NODE, Claim, Pod, StorageClass, VolumeAttributesClass
from kube.resources import CLAIMS
from kube.workqueue import WorkQueue
from provisioner import clonesource
from provisioner.capacityledger import Account, account_of
from provisioner.clonesource import NO_SOURCE, CloneSource
from provisioner.clusterstate import (
    ClusterCache,
    Published,
    live_content,
    live_node,
    live_snapshot,
    live_source_claim,
)
from provisioner.decision import (
    Create,
    Decision,
    Ignore,
    Refuse,
    Reschedule,
    Wait,
    decide,
    unscheduled,
    waits_for_first_consumer,
)
from provisioner.index import Index
from provisioner.metrics import Metrics
from provisioner.nodetracker import NodeTracker
from provisioner.placement import PodPlacement, ReschedulePod
from provisioner.stalledclaims import StalledClaims
from provisioner.volumecreation import ProvisioningFailed, VolumeCreator, volume_name
from service import logs

_log = logging.getLogger(__name__)

RECHECK_SECONDS = 120.0
"""Seconds after which a refused claim is looked at again, though nothing has changed that we know of."""


_CATCHING_UP = 0.2
"""Seconds that the watch of pods may lag behind that of claims before the API server is asked."""


class ClaimController:
    """Does nothing before its queue runs; what is to be looked at gathers there meanwhile."""

    def __init__(
        self,
        cluster: Cluster,
        cache: ClusterCache,
        creator: VolumeCreator,
        recorder: Recorder,
        metrics: Metrics,
        tracker: NodeTracker,
        *,
        parallelism: int,
    ) -> None:
        self._cluster = cluster
        self._cache = cache
        self._tracker = tracker
        self._creator = creator
        self._recorder = recorder
        self._metrics = metrics
        self._stalled = StalledClaims()
        self.queue = WorkQueue(
            self._handle, parallelism=parallelism, expected=(ApiError, ProvisioningFailed), of="claim"
        )
        self._placement = PodPlacement(cluster, cache, self.capacity_freed)
        self._by_class = Index[str]()
        self._by_volume = Index[str]()
        """Claims by the name that their volume has, or will have."""
        self._rescheduling: set[str] = set()
        """Pods whose claims are being sent to another node, by uid."""
        cache.claims.subscribe(self._claim_changed)
        cache.pods.subscribe(self._pod_changed)
        cache.classes.subscribe(self._class_changed)
        cache.attributes_classes.subscribe(self._attributes_class_changed)
        cache.capacities.subscribe(self._capacity_changed)
        cache.volumes.subscribe(self._volume_changed)
        cache.contents.subscribe(self._content_changed)

    def _claim_changed(self, key: str, old: Claim | None, new: Claim | None) -> None:
        self._by_class.put(key, (new.storage_class,) if new else ())
        self._by_volume.put(key, (volume_name(new.uid),) if new else ())
        self.queue.add(key)
        for pod in self._cache.pods_of(key):
            for other in pod.claims:
                if other in self._stalled:
                    self.queue.add(other)

    def _pod_changed(self, key: str, old: Pod | None, new: Pod | None) -> None:
        for claim in new.claims if new else ():
            if self._cache.claims.get(claim) is not None:
                self.queue.add(claim)

    def restore_reservations(self) -> None:
        """Once, when the caches are synced and before the queue runs."""
        self._placement.restore_reservations()

    def volume_missing(self, name: str) -> None:
        """Look again at the claim that we took to have this volume."""
        self._look_again(self._by_volume.get(name))

    def capacity_freed(self, account: Account) -> None:
        """Look again at the claims that wait for capacity and may find it now: those that ask for no more than a node
        has left for their class."""
        for storage_class in self._cache.classes_of(account):
            self._look_again(self._stalled.lacking(storage_class, self._cache.most_free))

    def _look_again(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.queue.add(key)

    def _content_changed(self, name: str, old: SnapshotContent | None, new: SnapshotContent | None) -> None:
        """Look again at claims that wait to be restored from the snapshot: it may be ready by now, or gone."""
        if content := new or old:
            self._look_again(self._stalled.restoring(content.snapshot_namespace, content.snapshot_name))

    def _class_changed(self, name: str, old: StorageClass | None, new: StorageClass | None) -> None:
        self._look_again(self._by_class.get(name))

    def _attributes_class_changed(
        self, name: str, old: VolumeAttributesClass | None, new: VolumeAttributesClass | None
    ) -> None:
        self._look_again(self._stalled.naming(name))

    def _capacity_changed(self, key: str, old: Published | None, new: Published | None) -> None:
        # Each new volume moves `available`, on which nothing is decided here.
        if new and (not old or replace(new.capacity, available=0) != replace(old.capacity, available=0)):
            self._look_again(self._stalled.of_class(new.capacity.storage_class))

    def _volume_changed(self, name: str, old: PersistentVolume | None, new: PersistentVolume | None) -> None:
        """Look again at claims that wait to become copies of its claim's: it may be ready for that now, or gone."""
        volume = new or old
        if volume is not None and volume.claim is not None:
            self._look_again(self._stalled.copying(volume.claim))
        if new is None and old is not None:
            self.capacity_freed(account_of(old))
            if old.claim is not None:
                self.queue.add(str(old.claim))

    async def _handle(self, key: str) -> None:
        claim = self._cache.claims.get(key)
        if claim is None:
            self._stalled.discard(key)
            self._placement.release(key)
            return
        with logs.about(claim=key, volume=volume_name(claim.uid)):
            await self._reconcile(claim)

    async def _reconcile(self, claim: Claim) -> None:
        started = time.monotonic()
        source = await self._source(claim)
        decision: Decision | ReschedulePod = self._decide(claim, source)
        if isinstance(decision, Create) and self._pod_may_follow(claim):
            decision = Wait(_CATCHING_UP)
        if isinstance(decision, Create):
            fresh = await live_claim(self._cluster, ClaimReference(claim.namespace, claim.name, claim.uid))
            if fresh is None:
                _log.info("the claim is gone, the cache will know in a moment")
                return
            claim = fresh
            decision = await self._decide_live(claim, source)
        elif isinstance(decision, Reschedule):
            decision = self._with_pod(claim, decision, await self._placement.pods(claim, certain=False))
        match decision:
            case Ignore():
                self._stalled.discard(claim.key)
            case Wait(seconds):
                self._stalled.wait(claim)
                self.queue.add_after(claim.key, seconds)
            case Refuse(why, lacks_capacity):
                self._stalled.refuse(claim, self._lacks(claim) if lacks_capacity else None)
                self._report_failure(claim, why)
                self.queue.add_after(claim.key, RECHECK_SECONDS)
            case Reschedule(why):
                await self._select_node([(claim, "")], why)
            case ReschedulePod():
                await self._reschedule_pod(decision)
            case Create():
                await self._create(claim, decision, started)

    async def _source(self, claim: Claim) -> CloneSource:
        """Asked of the API server: claims that have their volume are not in the cache. Raises ApiError."""
        if not claim.clones or self._exists(claim):
            return NO_SOURCE
        if claim.restores:
            return await self._snapshot_source(claim)
        source = await live_source_claim(self._cluster, claim)
        return clonesource.of_claim(claim, source, self._cache.volumes.get(source.volume_name) if source else None)

    async def _snapshot_source(self, claim: Claim) -> CloneSource:
        try:
            snapshot = await live_snapshot(self._cluster, claim)
            bound = snapshot.content_name if snapshot else ""
            content = await live_content(self._cluster, bound) if bound else self._cache.content_of(claim)
        except ApiError as error:
            if not is_not_served(error):
                raise
            why = f"VolumeSnapshots can't be read ({error}): install their definitions and deploy/components/snapshots"
            return CloneSource(obstacle=why)
        return clonesource.of_snapshot(claim, snapshot, content)

    def _lacks(self, claim: Claim) -> int:
        """What a node must have left at least for the claim, by the count of all others. Of what it has reserved itself
        nothing is known here."""
        return 0 if self._cache.ledger.reservation(volume_name(claim.uid)) else claim.requested

    def _exists(self, claim: Claim) -> bool:
        return self._cache.ledger.exists(volume_name(claim.uid), claim.uid)

    def _decide(self, claim: Claim, source: CloneSource) -> Decision:
        if self._exists(claim):
            return Ignore()
        storage_class = self._cache.classes.get(claim.storage_class)
        if storage_class is not None and waits_for_first_consumer(storage_class) and not claim.selected_node:
            return unscheduled(claim, storage_class, self._cache.pods_of(claim.key))
        available = self._cache.available(claim, volume_name(claim.uid), source)
        attributes = self._cache.attributes_class(claim.attributes_class)
        return decide(
            claim, storage_class, available, waited=self._stalled.waited(claim), source=source, attributes=attributes
        )

    async def _decide_live(self, claim: Claim, source: CloneSource) -> Decision | ReschedulePod:
        """On the claim as it is now, as one of those that its pod needs together. Whatever is to be asked for comes
        first: nothing awaits between the decision and the reservation. Raises ApiError."""
        storage_class = self._cache.classes.get(claim.storage_class)
        if storage_class is None or not waits_for_first_consumer(storage_class):
            return self._decide(claim, source)
        label = source.node if claim.clones else names.node_label_value(claim.selected_node)
        target = self._cache.published_by(label, storage_class.name)
        unfit = await self._unfit(claim, storage_class, target) if target else ""
        pods = [] if claim.clones else await self._placement.pods(claim, certain=not unfit)
        decision = self._decide(claim, source)
        if isinstance(decision, Create) and unfit:
            decision = Refuse(unfit) if claim.clones else Reschedule(f"{unfit}: another node is asked for")
        if isinstance(decision, Create) and pods:
            return self._placement.decide(claim, decision, pods, self._stalled.waited(claim))
        return self._with_pod(claim, decision, pods) if isinstance(decision, Reschedule) else decision

    def _with_pod(self, claim: Claim, decision: Reschedule, pods: Sequence[Pod]) -> Reschedule | ReschedulePod:
        """Reschedules the other claims of its pod with it."""
        node = names.node_label_value(claim.selected_node)
        moves = (ReschedulePod(pod, self._placement.open_claims(pod, claim), node, decision.why) for pod in pods)
        return next((move for move in moves if len(move.claims) > 1), decision)

    async def _unfit(self, claim: Claim, storage_class: StorageClass, target: Capacity) -> str:
        """Why a node can't have the volume, whatever it has left; empty when it can. The scheduler heeds topologies,
        but anybody may write a node into a claim, and a copy goes to its source. Raises ApiError."""
        if not claim.clones and (why := await self._hostname_mismatch(claim, target)):
            return why
        if await self._placement.violates_topology(storage_class, target.hostname):
            return f"node {target.node} is none of the allowedTopologies of StorageClass {storage_class.name}"
        return ""

    async def _hostname_mismatch(self, claim: Claim, target: Capacity) -> str:
        """What a node publishes ends up in the affinity of a volume: it may speak for itself only. A label that another
        one had a moment ago is refused by what the API server says. Raises ApiError."""
        if self._tracker.hostname(claim.selected_node) == target.hostname:
            return ""
        node = await live_node(self._cluster, claim.selected_node)
        if node is None or node.hostname == target.hostname:
            return ""
        return (
            f"node {node.name} publishes capacity for hostname {target.hostname}, and its label says {node.hostname}, "
            "so it is not believed"
        )

    def _pod_may_follow(self, claim: Claim) -> bool:
        """The pod that the scheduler knows may not have come to this cache yet. Where a person chose the node there may
        be none."""
        return (
            bool(claim.selected_node)
            and not self._cache.pods_of(claim.key)
            and self._stalled.waited(claim) < _CATCHING_UP
        )

    async def _reschedule_pod(self, move: ReschedulePod) -> None:
        """All claims of a pod at once, so that none is left behind on a node that can't have the others."""
        if move.pod.uid in self._rescheduling:
            return
        self._rescheduling.add(move.pod.uid)
        try:
            choices, message = await self._placement.proposal(move)
            await self._select_node(choices, message)
        finally:
            self._rescheduling.discard(move.pod.uid)

    async def _create(self, claim: Claim, create: Create, started: float) -> None:
        self._stalled.discard(claim.key)
        storage_class = self._cache.classes.get(claim.storage_class)
        assert storage_class is not None, "decided on a moment ago"
        try:
            name = await self._creator.create(claim, storage_class, create)
            self._placement.release(claim.key)
        except ProvisioningFailed as error:
            self._report_failure(claim, str(error))
            raise
        seconds = time.monotonic() - started
        self._metrics.provisioned(claim.storage_class, claim.data_source, seconds)
        node = create.target.node if create.target else "the node of its first pod"
        _log.info("volume %s of %d bytes for %s, %.0f ms", name, create.size, node, 1000 * seconds)

    async def _select_node(self, choices: Sequence[tuple[Claim, str]], why: str) -> None:
        """Ask the scheduler for this node, or, if it is empty, for any other, for one claim after the other, with an
        event on each. Ends at the first that is not any more what was decided on."""
        for claim, node in choices:
            if claim.selected_node == node:
                continue
            self._stalled.discard(claim.key)
            self._placement.release(claim.key)
            annotations = {SELECTED_NODE: node or None}
            body = {"metadata": {"resourceVersion": claim.resource_version, "annotations": annotations}}
            try:
                await self._cluster.patch(CLAIMS, claim.name, body, claim.namespace)
            except NotFound:
                continue
            except Conflict:
                _log.info("claim %s changed meanwhile: looking again", claim.key)
                for each, _ in choices:
                    self.queue.catch_up(each.key)
                return
            self._report_failure(claim, why)

    def _report_failure(self, claim: Claim, why: str) -> None:
        self._metrics.provision_failed(claim.storage_class, claim.data_source)
        _log.info("not provisioned: %s", why)
        self._recorder.warning(
            claim.reference,
            "ProvisioningFailed",
            f'failed to provision volume with StorageClass "{claim.storage_class}": {why}',
        )
