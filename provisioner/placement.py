"""Where the volumes of a pod go, all of them: whether the node that the scheduler chose has capacity for every claim of
the pod, and which other node to propose if not (podcapacity.py says how, and decides)."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from contract import names
from contract.capacity import Capacity
from contract.parameters import ParameterError
from contract.volume import FAILED, RELEASED
from kube.client import Cluster
from kube.records import Claim, Pod, StorageClass
from provisioner import clonesource
from provisioner.capacityledger import Account, Charge
from provisioner.clonesource import NO_SOURCE, CloneSource
from provisioner.clusterstate import ClusterCache, live_nodes, live_pending_pods
from provisioner.decision import Create, Reschedule, Wait, volume_parameters, waits_for_first_consumer
from provisioner.podcapacity import (
    SELECTION_TIMEOUT,
    VolumeFit,
    VolumeRequest,
    all_selected,
    conflicting_node,
    fit_volumes,
    headroom,
    shortage,
)
from provisioner.volumecreation import volume_name

_RESERVED = 60.0
"""Seconds that capacity is reserved for the other claims of a pod. They are decided in the same moment, mostly."""
_REMEMBERED = 300.0
"""Seconds that a node is not proposed again to a pod that could not have it."""
_PROPOSALS = 8
"""Nodes that are looked at for a proposal, those with most capacity first."""


@dataclass(frozen=True)
class ReschedulePod:
    """The claims of a pod can't all be served on the node that was chosen for them."""

    pod: Pod
    claims: tuple[Claim, ...]
    node: str
    """Value of names.NODE_LABEL."""
    why: str


class PodPlacement:
    """`on_freed` is called when capacity that was reserved is free again."""

    def __init__(self, cluster: Cluster, cache: ClusterCache, on_freed: Callable[[Account], None]) -> None:
        self._cluster = cluster
        self._cache = cache
        self._on_freed = on_freed
        self._reserved: dict[str, tuple[str, asyncio.TimerHandle]] = {}
        """By the claim's key: the name of its volume, and what ends it."""
        self._excluded: dict[str, dict[str, float]] = {}
        """Until when a node, by the value of its label, is not proposed to a pod, by its uid."""
        cache.pods.subscribe(self._pod_changed)

    def _pod_changed(self, key: str, old: Pod | None, new: Pod | None) -> None:
        if old is not None and (new is None or new.uid != old.uid):
            self._excluded.pop(old.uid, None)

    async def pods(self, claim: Claim, *, certain: bool) -> list[Pod]:
        """Those that wait to be scheduled with the claim. `certain`: the API server is asked if the cache has none, for
        the watch of pods may lag behind that of claims. Raises ApiError."""
        pods = self._cache.pods_of(claim.key)
        if certain and not pods:
            pods = await live_pending_pods(self._cluster, claim)
        return [pod for pod in pods if not pod.node_name and not pod.deleting and _belongs(claim, pod)]

    async def violates_topology(self, storage_class: StorageClass, hostname: str) -> bool:
        """Whether the class can't have volumes on the node of a hostname label. Raises ApiError."""
        if not storage_class.allowed_topologies:
            return False
        nodes = await live_nodes(self._cluster, hostname)
        return not any(storage_class.admits(node.labels) for node in nodes)

    def decide(
        self, claim: Claim, create: Create, pods: Sequence[Pod], waited: float
    ) -> Create | Reschedule | Wait | ReschedulePod:
        """What becomes of a claim that could be served by itself. Without `await`, so that the capacity that is seen is
        the capacity that is reserved. One pod that can start is enough: the others that name the claim have to follow
        it.

        `waited`: seconds since the claim's node was first found not to be that of the other claims."""
        assert create.target
        node = create.target.node
        move, half_selected, conflicting = None, "", ""
        for pod in pods:
            claims = self.open_claims(pod, claim)
            if not all_selected(claims, claim.selected_node):
                half_selected, conflicting = pod.name, conflicting or conflicting_node(claims, claim)
                continue
            fits = self._fits(self._requests(pod, node), node)
            impossible = self._clone_conflict(pod, node) or shortage(pod, node, fits, cautious=False)
            why = impossible or shortage(pod, node, fits)
            to_move = ReschedulePod(pod, claims, node, why)
            # Where it may turn out that they fit, any node is better on which they do for certain.
            if not why or (not impossible and next(self._candidates(to_move), None) is None):
                self._reserve(pod, node, [fit for fit in fits if fit.request.claim != claim.name])
                return create
            move = move or to_move
        if move is not None:
            return move
        if conflicting:
            return Reschedule(
                f"the claims of pod {half_selected} name different nodes, {claim.selected_node} and {conflicting}: "
                "this one waits to be given the same"
            )
        if waited < SELECTION_TIMEOUT:
            return Wait(SELECTION_TIMEOUT - waited)
        for pod in pods:
            self._excluded.setdefault(pod.uid, {})[node] = time.monotonic() + _REMEMBERED
        return Reschedule(
            f"node {claim.selected_node} was not chosen for the other claims of pod {half_selected}: another node is "
            "asked for"
        )

    def open_claims(self, pod: Pod, fresh: Claim | None = None) -> tuple[Claim, ...]:
        """The pod's claims that wait for volumes of ours on the node that is chosen for it, `fresh` as it is now."""
        open_by_uid = {fresh.uid: fresh} if fresh else {}
        for mention in pod.volumes:
            claim = self._cache.claims.get(f"{pod.namespace}/{mention.claim}")
            if claim is None or claim.volume_name or (mention.ephemeral and claim.controller != pod.uid):
                continue
            storage_class = self._cache.classes.get(claim.storage_class)
            if storage_class is None or not waits_for_first_consumer(storage_class):
                continue
            if not self._cache.ledger.exists(volume_name(claim.uid), claim.uid):
                open_by_uid.setdefault(claim.uid, claim)
        return tuple(open_by_uid.values())

    async def proposal(self, move: ReschedulePod) -> tuple[list[tuple[Claim, str]], str]:
        """Which node each of the claims is to name from now on, empty for none, and the message for their owners.
        Raises ApiError."""
        candidates = list(itertools.islice(self._candidates(move), _PROPOSALS))
        proposed = await self._first_admitted(move.claims, candidates) if len(move.claims) > 1 else ""
        if proposed:
            message = f"{move.why}: node {proposed}, which has space for them, is asked for instead"
        elif candidates or self._excluded.get(move.pod.uid):
            message = f"{move.why}: another node is asked for"
        else:
            message = f"{move.why}, and no node has space for all of them: ask for less, or free up space"
        first, *others = sorted(move.claims, key=lambda claim: claim.name)
        # The one that proposes a node comes last: two that name different ones would leave the pod without any.
        return [*((other, "") for other in others), (first, proposed)], message

    def _candidates(self, move: ReschedulePod) -> Iterator[Capacity]:
        """The nodes that have capacity for all claims of a pod, those with most first. No await between them."""
        excluded, now = self._excluded.get(move.pod.uid, {}), time.monotonic()
        storage_class = move.claims[0].storage_class

        def left(node: str) -> int:
            if node == move.node or excluded.get(node, 0) > now or not self._cache.published_by(node, storage_class):
                return -1
            return headroom(self._fits(requests, node))

        # Copies belong to the node of their source, and take the pod's other volumes along.
        sources = {self._source(claim).node for claim in self.open_claims(move.pod) if claim.clones} - {""}
        requests = self._requests(move.pod, min(sources, default=move.node))
        if sources:
            nodes = iter([node for node in sources if len(sources) == 1 and left(node) >= 0])
        else:
            nodes = self._cache.nodes_by_headroom(requests, storage_class, left)
        for node in nodes:
            if published := self._cache.published_by(node, storage_class):
                yield published

    async def _first_admitted(self, claims: Sequence[Claim], candidates: Sequence[Capacity]) -> str:
        """The name of the first node that all classes of the claims may have volumes on. Empty: none."""
        classes = [
            storage_class
            for each in claims
            if (storage_class := self._cache.classes.get(each.storage_class)) is not None
        ]
        for candidate in candidates:
            for node in await live_nodes(self._cluster, candidate.hostname):
                if all(each.admits(node.labels) for each in classes):
                    return node.name
        return ""

    def _source(self, claim: Claim) -> CloneSource:
        """Of a claim that is to be a copy, as far as the caches know."""
        if claim.restores:
            return clonesource.of_content(self._cache.content_of(claim))
        return clonesource.of_volume(self._cache.volume_of(f"{claim.namespace}/{claim.data_source_name}"))

    def _clone_conflict(self, pod: Pod, node: str) -> str:
        """Why the pod's volumes can't be made on a node: one becomes a copy, which lives where its source is, and the
        pod goes there. That one comes first."""
        for claim in self.open_claims(pod):
            source_node = self._source(claim).node if claim.clones else ""
            if source_node not in ("", node):
                return (
                    f"claim {claim.name} of pod {pod.name} becomes a copy on node {source_node}, so its other volumes "
                    f"can't be on {node}"
                )
        return ""

    def _requests(self, pod: Pod, node: str) -> list[VolumeRequest]:
        """All volumes that the pod's claims have no place for yet, and that would be on this node."""
        requests: dict[str, VolumeRequest] = {}
        for claim in self.open_claims(pod):
            storage_class, source = self._cache.classes.get(claim.storage_class), NO_SOURCE
            if claim.clones:
                source = self._source(claim)
            if storage_class is None or (claim.clones and source.node != node):
                continue
            with contextlib.suppress(ParameterError):  # an event says so, and it takes nothing
                attributes = self._cache.attributes_class(claim.attributes_class)
                layout = volume_parameters(storage_class, claim, source, attributes)
                name = volume_name(claim.uid)
                requests[name] = VolumeRequest(claim.name, name, claim.requested, layout, claim.storage_class)
        for mention in pod.volumes:
            volume = self._cache.volume_of(f"{pod.namespace}/{mention.claim}")
            if volume is None or volume.node_label or volume.deleting or volume.phase in (RELEASED, FAILED):
                continue
            with contextlib.suppress(ParameterError):
                layout = volume.parameters()
                requests[volume.name] = VolumeRequest(
                    mention.claim, volume.name, volume.charged_size, layout, volume.storage_class
                )
        return list(requests.values())

    def _fits(self, requests: Sequence[VolumeRequest], node: str) -> list[VolumeFit]:
        excluding = {request.volume for request in requests}
        return fit_volumes(
            requests,
            lambda storage_class: self._cache.published_by(node, storage_class),
            lambda published: self._cache.reserved(published, excluding),
        )

    def restore_reservations(self) -> None:
        """What the leader before this one reserved went with it. So before anything is decided, capacity is reserved
        for the claims of each pod that has a volume on their node already, and can't go anywhere else."""
        for pod in self._cache.pods.values():
            claims = self.open_claims(pod)
            for node in self._nodes_of_volumes(pod) if claims and not pod.node_name and not pod.deleting else ():
                if any(names.node_label_value(claim.selected_node) != node for claim in claims):
                    continue
                fits = self._fits(self._requests(pod, node), node)
                if not shortage(pod, node, fits, cautious=False):
                    self._reserve(pod, node, fits)

    def _nodes_of_volumes(self, pod: Pod) -> set[str]:
        """Where the pod has volumes, by the value of names.NODE_LABEL."""
        volumes = (self._cache.volume_of(key) for key in pod.claims)
        return {volume.node_label for volume in volumes if volume and volume.node_label and not volume.deleting}

    def _reserve(self, pod: Pod, node: str, fits: Sequence[VolumeFit]) -> None:
        """Reserves capacity for what is decided in a moment."""
        for fit in fits:
            request = fit.request
            if fit.capacity is None:
                continue
            key = f"{pod.namespace}/{request.claim}"
            self.release(key)
            charge = Charge(Account(node, fit.capacity.pool), request.size, request.parameters)
            self._cache.ledger.reserve_for_pod(request.volume, charge)
            timer = asyncio.get_running_loop().call_later(_RESERVED, self._expire, key, charge.account)
            self._reserved[key] = request.volume, timer

    def release(self, key: str) -> None:
        """Nothing is reserved for a claim any more: it has a volume, or is to have it elsewhere, or is gone."""
        name, timer = self._reserved.pop(key, ("", None))
        if timer is not None:
            timer.cancel()
            self._cache.ledger.release_for_pod(name)

    def _expire(self, key: str, account: Account) -> None:
        self.release(key)
        self._on_freed(account)


def _belongs(claim: Claim, pod: Pod) -> bool:
    """Whether the pod may use the claim: one that was made for a pod is that pod's alone."""
    mentions = [volume for volume in pod.volumes if volume.claim == claim.name]
    return any(not volume.ephemeral or claim.controller == pod.uid for volume in mentions)
