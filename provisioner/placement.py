"""Where the volumes of a pod go, all of them: whether the node that the scheduler chose has room for every claim of the
pod, and which other node to propose if not (podcapacity.py says how, and decides)."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from contract import parameters
from contract.capacity import Capacity
from contract.parameters import ParameterError
from contract.volume import FAILED, RELEASED
from kube.client import Cluster
from kube.records import Claim, Pod, StorageClass
from provisioner.capacityledger import Account, Charge
from provisioner.clusterstate import View, live_nodes, live_pending_pods
from provisioner.decision import Create, SendBack, Source, Wait, bound_late, source_parameters
from provisioner.podcapacity import HALF_CHOSEN, Demand, Need, agreed, contradicts, demands, shortage, spare
from provisioner.volumecreation import volume_name

_RESERVED = 60.0
"""Seconds that room is kept for the other claims of a pod. They are decided in the same moment, mostly."""
_REMEMBERED = 300.0
"""Seconds that a node is not proposed again to a pod that could not have it."""
_PROPOSALS = 8
"""Nodes that are looked at for a proposal, those with most room first."""


@dataclass(frozen=True)
class Move:
    """The claims of a pod can't all be served on the node that was chosen for them."""

    pod: Pod
    claims: tuple[Claim, ...]
    node: str
    """Value of names.NODE_LABEL."""
    why: str


class PodPlacement:
    """`wake` is called when room that was kept is free again."""

    def __init__(self, cluster: Cluster, view: View, wake: Callable[[], None]) -> None:
        self._cluster = cluster
        self._view = view
        self._wake = wake
        self._reserved: dict[str, tuple[str, asyncio.TimerHandle]] = {}
        """By the claim's key: the name of its volume, and what ends it."""
        self._unfit: dict[str, dict[str, float]] = {}
        """Until when a node, by the value of its label, is not proposed to a pod, by its uid."""
        view.pods.subscribe(self._pod_changed)

    def _pod_changed(self, key: str, old: Pod | None, new: Pod | None) -> None:
        if old is not None and (new is None or new.uid != old.uid):
            self._unfit.pop(old.uid, None)

    async def pods(self, claim: Claim, *, certain: bool) -> list[Pod]:
        """Those that wait to be scheduled with the claim. `certain`: the API server is asked if the cache has none, for
        the watch of pods may lag behind that of claims. Raises ApiError."""
        found = self._view.users(claim.key)
        if certain and not found:
            found = await live_pending_pods(self._cluster, claim)
        return [pod for pod in found if not pod.node_name and not pod.deleting and _belongs(claim, pod)]

    async def refused_by(self, storage_class: StorageClass, hostname: str) -> bool:
        """Whether the class can't have volumes on the node of a hostname label. Raises ApiError."""
        if not storage_class.allowed_topologies:
            return False
        nodes = await live_nodes(self._cluster, hostname)
        return not any(storage_class.admits(node.labels) for node in nodes)

    def decide(
        self, claim: Claim, create: Create, pods: Sequence[Pod], waited: float
    ) -> Create | SendBack | Wait | Move:
        """What becomes of a claim that could be served by itself. Without `await`, so that the room that is seen is the
        room that is booked. One pod that can start is enough: the others that name the claim have to follow it.

        `waited`: seconds since the claim's node was first found not to be that of the other claims."""
        assert create.place
        node = create.place.node
        move, half_chosen, contradicted = None, "", ""
        for pod in pods:
            claims = self.open_claims(pod, claim)
            if not agreed(claims, claim.selected_node):
                half_chosen, contradicted = pod.name, contradicted or contradicts(claims, claim)
                continue
            found = self._demands(self._needs(pod, node), node)
            impossible = self._detour(pod, node) or shortage(pod, node, found, cautious=False)
            why = impossible or shortage(pod, node, found)
            to_move = Move(pod, claims, node, why)
            # Where it may turn out that they fit, any node is better on which they do for certain.
            if not why or (not impossible and not self._candidates(to_move)):
                self._reserve(claim, create.place, found)
                return create
            move = move or to_move
        if move is not None:
            return move
        if contradicted:
            return SendBack(
                f"the claims of pod {half_chosen} name different nodes, {claim.selected_node} and {contradicted}: this "
                "one waits to be given the same"
            )
        if waited < HALF_CHOSEN:
            return Wait(HALF_CHOSEN - waited)
        for pod in pods:
            self._unfit.setdefault(pod.uid, {})[node] = time.monotonic() + _REMEMBERED
        return SendBack(
            f"node {claim.selected_node} was not chosen for the other claims of pod {half_chosen}: another node is "
            "asked for"
        )

    def open_claims(self, pod: Pod, fresh: Claim | None = None) -> tuple[Claim, ...]:
        """The pod's claims that wait for volumes of ours on the node that is chosen for it, `fresh` as it is now."""
        found = {fresh.uid: fresh} if fresh else {}
        for mention in pod.volumes:
            claim = self._view.claims.get(f"{pod.namespace}/{mention.claim}")
            if claim is None or claim.volume_name or (mention.ephemeral and claim.controller != pod.uid):
                continue
            storage_class = self._view.classes.get(claim.storage_class)
            if storage_class is None or not bound_late(storage_class):
                continue
            if not self._view.books.exists(volume_name(claim.uid), claim.uid):
                found.setdefault(claim.uid, claim)
        return tuple(found.values())

    async def proposal(self, move: Move) -> tuple[list[tuple[Claim, str]], str]:
        """Which node each of the claims is to name from now on, empty for none, and the words for their owners. Raises
        ApiError."""
        candidates = self._candidates(move)
        proposed = await self._admitting(move.claims, candidates) if len(move.claims) > 1 else ""
        if proposed:
            words = f"{move.why}: node {proposed}, which has room for them, is asked for instead"
        elif candidates or self._unfit.get(move.pod.uid):
            words = f"{move.why}: another node is asked for"
        else:
            words = f"{move.why}, and no node has room for all of them: ask for less, or free room"
        first, *others = sorted(move.claims, key=lambda claim: claim.name)
        # The one that proposes a node comes last: two that name different ones would leave the pod without any.
        return [*((other, "") for other in others), (first, proposed)], words

    def _candidates(self, move: Move) -> list[Capacity]:
        """The nodes that have room for all claims of a pod, those with most first."""
        unfit, now = self._unfit.get(move.pod.uid, {}), time.monotonic()
        room: list[tuple[int, Capacity]] = []
        # Thousands of nodes may have to be looked at. Only copies belong to one of them.
        copies = any(claim.clones for claim in self.open_claims(move.pod))
        needs = self._needs(move.pod, "")
        for node, offered in self._view.published_for(move.claims[0].storage_class).items():
            if node == move.node or unfit.get(node, 0) > now or (copies and self._detour(move.pod, node)):
                continue
            if copies:
                needs = self._needs(move.pod, node)
            left = spare(self._demands(needs, node))
            if left >= 0:
                room.append((left, offered))
        return [offered for _, offered in sorted(room, key=lambda each: -each[0])]

    async def _admitting(self, claims: Sequence[Claim], candidates: Sequence[Capacity]) -> str:
        """The name of the first node that all classes of the claims may have volumes on. Empty: none."""
        classes = [found for each in claims if (found := self._view.classes.get(each.storage_class)) is not None]
        for candidate in candidates[:_PROPOSALS]:
            for node in await live_nodes(self._cluster, candidate.hostname):
                if all(each.admits(node.labels) for each in classes):
                    return node.name
        return ""

    def _source(self, claim: Claim) -> Source:
        """Of a claim that is to be a copy, as far as the caches know."""
        return Source(claim, self._view.volume_of(f"{claim.namespace}/{claim.data_source_name}"))

    def _detour(self, pod: Pod, node: str) -> str:
        """Why the pod's volumes can't be made on a node: one becomes a copy, which lives where its source is, and the
        pod goes there. That one comes first."""
        for claim in self.open_claims(pod):
            home = self._source(claim).node if claim.clones else ""
            if home not in ("", node):
                return (
                    f"claim {claim.name} of pod {pod.name} becomes a copy on node {home}, so its other volumes can't "
                    f"be on {node}"
                )
        return ""

    def _needs(self, pod: Pod, node: str) -> list[Need]:
        """All volumes that the pod's claims have no place for yet, and that would be on this node."""
        found: dict[str, Need] = {}
        for claim in self.open_claims(pod):
            storage_class, source = self._view.classes.get(claim.storage_class), Source()
            if claim.clones:
                source = self._source(claim)
            if storage_class is None or (claim.clones and source.node != node):
                continue
            with contextlib.suppress(ParameterError):  # it is told, and takes no room
                layout = parameters.parse(
                    {**source_parameters(source), **storage_class.parameters}, storage_class.mount_options
                )
                name = volume_name(claim.uid)
                found[name] = Need(claim.name, name, claim.requested, layout, claim.storage_class)
        for mention in pod.volumes:
            volume = self._view.volume_of(f"{pod.namespace}/{mention.claim}")
            if volume is None or volume.node_label or volume.deleting or volume.phase in (RELEASED, FAILED):
                continue
            with contextlib.suppress(ParameterError):
                layout = volume.parameters()
                found[volume.name] = Need(mention.claim, volume.name, volume.charged, layout, volume.storage_class)
        return list(found.values())

    def _demands(self, needs: Sequence[Need], node: str) -> list[Demand]:
        besides = {need.volume for need in needs}
        return demands(
            needs,
            lambda storage_class: self._view.published_by(node, storage_class),
            lambda offered: self._view.taken(offered, besides),
        )

    def _reserve(self, claim: Claim, place: Capacity, found: Sequence[Demand]) -> None:
        """Keeps room for what is decided in a moment."""
        for demand in found:
            need = demand.need
            if demand.capacity is None or need.claim == claim.name:
                continue
            key = f"{claim.namespace}/{need.claim}"
            self.let_go(key)
            charge = Charge(Account(place.node, demand.capacity.pool), need.size, need.parameters)
            self._view.books.reserve(need.volume, charge)
            timer = asyncio.get_running_loop().call_later(_RESERVED, self._expire, key)
            self._reserved[key] = need.volume, timer

    def let_go(self, key: str) -> None:
        """No room is kept for a claim any more: it has a volume, or is to have it elsewhere, or is gone."""
        name, timer = self._reserved.pop(key, ("", None))
        if timer is not None:
            timer.cancel()
            self._view.books.unreserve(name)

    def _expire(self, key: str) -> None:
        self.let_go(key)
        self._wake()


def _belongs(claim: Claim, pod: Pod) -> bool:
    """Whether the pod may use the claim: one that was made for a pod is that pod's alone."""
    mentions = [volume for volume in pod.volumes if volume.claim == claim.name]
    return any(not volume.ephemeral or claim.controller == pod.uid for volume in mentions)
