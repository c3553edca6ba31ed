"""The claims of one pod are decided together: a volume ties its pod to a node, so it must not be made where the others
have no room. Pure.

The scheduler looks at one claim at a time, and has no memory: what it is sent back it may choose again. There is one
thing that it follows, though. A claim that names a node already can go to that node only, and the pod with it. So where
another node has room for all, one of the claims proposes it, while the others name none: the scheduler, which knows
what else the pod needs of a node, agrees by naming it on them too. Nothing is made before all name the same.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from contract import quantity
from contract.capacity import Capacity, footprint
from contract.parameters import VolumeParameters
from kube.records import Claim, Pod

HALF_CHOSEN = 15.0
"""Seconds after which a node that only some of the claims name is given up. The scheduler tries a pod again after ten,
at most."""


@dataclass(frozen=True)
class Need:
    """A volume that a pod brings along to whichever node it comes to. `size` in bytes."""

    claim: str
    """Its name."""
    volume: str
    """The name that its PersistentVolume has, or will have."""
    size: int
    parameters: VolumeParameters
    storage_class: str


@dataclass(frozen=True)
class Demand:
    """What such a volume takes on a node. In bytes of the pool."""

    need: Need
    capacity: Capacity | None
    """What the node publishes for its class. None: nothing."""
    takes: int = 0
    left: int = 0
    """What the class has left there without this pod."""
    beside: int = 0
    """The same with all other volumes of this pod, as the provisioner counts."""
    others: int = 0
    """What those of the same pool take."""

    def lacks(self, *, cautious: bool) -> bool:
        """It finds no room beside the others. A class of several legs counts what its node does not know of yet as if
        that took its room where it hurts most, and that may be too `cautious`."""
        if self.capacity is None:
            return True
        most = self.beside if cautious or self.capacity.weight == 1 else self.left - self.others
        return self.takes > most


def demands(
    needs: Sequence[Need],
    published: Callable[[str], Capacity | None],
    taken: Callable[[Capacity], Callable[[str], int]],
) -> list[Demand]:
    """On one node. `published`: what it publishes for a class; `taken`: what is promised of each of its pools, without
    these."""
    placed = []
    for need in needs:
        offered = published(need.storage_class)
        takes = footprint(need.size, need.parameters, offered.granularity) if offered else 0
        placed.append((need, offered, takes))
    found = []
    for need, offered, takes in placed:
        if offered is None:
            found.append(Demand(need, None))
            continue
        more: defaultdict[str, int] = defaultdict(int)
        for other, its, its_takes in placed:
            if its is not None and other is not need:
                more[its.pool] += its_takes
        promised = taken(offered)
        found.append(
            Demand(
                need,
                offered,
                takes,
                left=offered.left(promised),
                beside=offered.left(_sum(promised, more)),
                others=more[offered.pool],
            )
        )
    return found


def _sum(promised: Callable[[str], int], more: Mapping[str, int]) -> Callable[[str], int]:
    return lambda pool: promised(pool) + more.get(pool, 0)


def agreed(claims: Collection[Claim], node: str) -> bool:
    """Whether the scheduler chose that node for all of them."""
    return all(claim.selected_node == node for claim in claims)


def contradicts(claims: Collection[Claim], claim: Claim) -> str:
    """The node that another of the claims names, if this one is to yield to it. Somebody else must have written it: the
    scheduler names the same on all. The first by name stays, so that there is an end."""
    first = min(claims, key=lambda each: each.name)
    return "" if first.selected_node in ("", claim.selected_node) else first.selected_node


def shortage(pod: Pod, node: str, found: Sequence[Demand], *, cautious: bool = True) -> str:
    """Why a node has no room for all of them, empty when it has."""
    for demand in found:
        if demand.capacity is None:
            return (
                f"node {node} publishes no room for the class of claim {demand.need.claim}, which pod {pod.name} needs "
                "too"
            )
    for demand in found:
        if demand.capacity is None or not demand.lacks(cautious=cautious):
            continue
        pools = (demand.capacity.pool, *demand.capacity.shared_with)
        together = [each for each in found if each.capacity and each.capacity.pool in pools]
        names = ", ".join(sorted(each.need.claim for each in together))
        return (
            f"the claims {names} of pod {pod.name} take {quantity.humane(sum(each.takes for each in together))} "
            f"together, node {node} has {quantity.humane(max(demand.left, 0))} left in pool {demand.capacity.pool}"
        )
    return ""


def spare(found: Collection[Demand]) -> int:
    """Bytes: the least that a class has left on a node when all of them are there. Negative: they don't fit."""
    return min((demand.beside - demand.takes if demand.capacity else -1 for demand in found), default=0)
