"""The claims of one pod are decided together: a volume assigns its pod to a node, so it must not be made where
there is no capacity for the others. Pure.

The scheduler looks at one claim at a time, and has no memory: a node that was refused it may choose again. There is one
thing that it follows, though. A claim that names a node already can go to that node only, and the pod with it. So where
another node has capacity for all, one of the claims proposes it, while the others name none: the scheduler, which knows
what else the pod needs of a node, agrees by naming it on them too. Nothing is made before all name the same.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from contract import quantity
from contract.capacity import Capacity, footprint
from contract.parameters import VolumeParameters
from kube.records import Claim, Pod
from provisioner.capacityindex import Beside

SELECTION_TIMEOUT = 15.0
"""Seconds after which a node that only some of the claims name is given up. The scheduler tries a pod again after ten,
at most."""


@dataclass(frozen=True)
class VolumeRequest:
    """A volume that a pod brings along to whichever node it comes to. `size` in bytes."""

    claim: str
    """Its name."""
    volume: str
    """The name that its PersistentVolume has, or will have."""
    size: int
    parameters: VolumeParameters
    storage_class: str


@dataclass(frozen=True)
class VolumeFit:
    """What such a volume takes on a node. In bytes of the pool."""

    request: VolumeRequest
    capacity: Capacity | None
    """What the node publishes for its class. None: nothing for such a volume."""
    required: int = 0
    free: int = 0
    """What the class has left there without this pod."""
    free_beside_pod: int = 0
    """The same with all other volumes of this pod, as the provisioner counts."""
    required_by_pod: int = 0
    """What those of the same pool take."""

    def lacks_capacity(self, *, cautious: bool) -> bool:
        """There is no capacity for it beside the others. For a class of several legs, what its node does not know of
        yet counts as if it took the space where it hurts most, and that may be too `cautious`."""
        if self.capacity is None:
            return True
        most = self.free_beside_pod if cautious or self.capacity.weight == 1 else self.free - self.required_by_pod
        return self.required > most


def fit_volumes(
    requests: Sequence[VolumeRequest],
    published: Callable[[str], Capacity | None],
    reserved: Callable[[Capacity], Callable[[str], int]],
) -> list[VolumeFit]:
    """On one node. `published`: what it publishes for a class; `reserved`: what is reserved in each of its pools,
    without these."""
    placed = []
    for request in requests:
        capacity = published(request.storage_class)
        if capacity and not capacity.serves(request.parameters):
            capacity = None
        required = footprint(request.size, request.parameters, capacity.granularity) if capacity else 0
        placed.append((request, capacity, required))
    fits = []
    for request, capacity, required in placed:
        if capacity is None:
            fits.append(VolumeFit(request, None))
            continue
        more: defaultdict[str, int] = defaultdict(int)
        for other, its, other_required in placed:
            if its is not None and other is not request:
                more[its.pool] += other_required
        reserved_elsewhere = reserved(capacity)
        fits.append(
            VolumeFit(
                request,
                capacity,
                required,
                free=capacity.free(reserved_elsewhere),
                free_beside_pod=capacity.free(_sum(reserved_elsewhere, more)),
                required_by_pod=more[capacity.pool],
            )
        )
    return fits


def least_required(
    requests: Sequence[VolumeRequest], storage_class: str, published: Capacity, beside: Beside
) -> int | None:
    """Bytes that these take at least of what a node publishes for one of their classes. None: it can't have them."""
    sizes = [
        (each, footprint(each.size, each.parameters, published.granularity))
        for each in requests
        if each.storage_class in beside.classes
    ]
    together = sum(size for _, size in sizes)
    of_class = [(each.parameters, size) for each, size in sizes if each.storage_class == storage_class]
    if not all(published.serves(layout) for layout, _ in of_class):
        return None
    return max((size + beside.rate * (together - size) for _, size in of_class), default=0)


def _sum(reserved: Callable[[str], int], more: Mapping[str, int]) -> Callable[[str], int]:
    return lambda pool: reserved(pool) + more.get(pool, 0)


def all_selected(claims: Collection[Claim], node: str) -> bool:
    """Whether the scheduler chose that node for all of them."""
    return all(claim.selected_node == node for claim in claims)


def conflicting_node(claims: Collection[Claim], claim: Claim) -> str:
    """The node that another of the claims names, if this one is to yield to it. Somebody else must have written it: the
    scheduler names the same on all. The first by name stays, so that there is an end."""
    first = min(claims, key=lambda each: each.name)
    return "" if first.selected_node in ("", claim.selected_node) else first.selected_node


def shortage(pod: Pod, node: str, fits: Sequence[VolumeFit], *, cautious: bool = True) -> str:
    """Why a node has no capacity for all of them, empty when it has."""
    for fit in fits:
        if fit.capacity is None:
            kind = fit.request.parameters
            what = "encrypted volumes of " if kind.encryption else "block devices of " if kind.needs_device else ""
            return (
                f"node {node} publishes no capacity for {what}the class of claim {fit.request.claim}, which pod "
                f"{pod.name} needs too"
            )
    for fit in fits:
        if fit.capacity is None or not fit.lacks_capacity(cautious=cautious):
            continue
        pools = (fit.capacity.pool, *fit.capacity.shared_with)
        together = [each for each in fits if each.capacity and each.capacity.pool in pools]
        names = ", ".join(sorted(each.request.claim for each in together))
        return (
            f"the claims {names} of pod {pod.name} take {quantity.humane(sum(each.required for each in together))} "
            f"together, node {node} has {quantity.humane(max(fit.free, 0))} left in pool {fit.capacity.pool}"
        )
    return ""


def headroom(fits: Collection[VolumeFit]) -> int:
    """Bytes: the least that a class has left on a node when all of them are there. Negative: they don't fit."""
    return min((fit.free_beside_pod - fit.required if fit.capacity else -1 for fit in fits), default=0)
