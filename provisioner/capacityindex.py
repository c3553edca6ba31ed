"""The nodes of a class in the order of what they have left, kept up to date node by node: a claim that any node may
serve asks for the best one and for the sum, a pod that can't have its node for the best ones that have capacity for all
of its claims, and a cluster has thousands.

Nodes are of one kind that can have the same volumes, in extents of the same size. So of each kind the node with most
stands for all others: what does not fit there fits on none of them. And what several volumes take together is the same
on all of them, where their classes have one pool.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from contract.capacity import Capacity
from provisioner.decision import NodeCapacity


class Beside(NamedTuple):
    """What volumes of other classes cost the class on a node."""

    classes: frozenset[str]
    """Those of the same pool, and itself."""
    rate: int
    """Bytes for each of theirs, at least."""


class _Kind(NamedTuple):
    block: bool
    encryption: bool
    granularity: int
    beside: Beside


@dataclass
class _Ordered:
    """The nodes of one kind."""

    by_free: list[tuple[int, str]] = field(default_factory=list)
    """Bytes and the node's label value, in ascending order."""
    together: int = 0
    """Bytes that all of them have left."""

    def without(self, required: int) -> Iterator[tuple[int, str]]:
        """What each node has left without that, and the node, those with most first."""
        return ((free - required, node) for free, node in reversed(self.by_free))


class CapacityIndex:
    """Nodes are known by the values of their labels."""

    def __init__(self) -> None:
        self._nodes: dict[str, tuple[_Kind, NodeCapacity]] = {}
        self._kinds: dict[_Kind, _Ordered] = {}

    @property
    def granularity(self) -> int:
        """The largest of all nodes, 1 without any."""
        return max((kind.granularity for kind in self._kinds), default=1)

    def put(self, node: str, on_node: NodeCapacity, beside: Beside) -> None:
        """What the node has now."""
        self.remove(node)
        published = on_node.published
        kind = _Kind(published.block, published.encryption, published.granularity, beside)
        self._nodes[node] = kind, on_node
        ordered = self._kinds.setdefault(kind, _Ordered())
        insort(ordered.by_free, (on_node.free, node))
        ordered.together += max(on_node.free, 0)

    def remove(self, node: str) -> None:
        """It does not publish capacity for the class any more."""
        if node not in self._nodes:
            return
        kind, before = self._nodes.pop(node)
        ordered = self._kinds[kind]
        del ordered.by_free[bisect_left(ordered.by_free, (before.free, node))]
        ordered.together -= max(before.free, 0)
        if not ordered.by_free:
            del self._kinds[kind]

    def best(self, instead: Mapping[str, NodeCapacity]) -> list[NodeCapacity]:
        """Of each kind the node with most, and what the others of that kind have. `instead`: what some nodes have for
        the one who asks, whose own volume does not count for him."""
        before = {node: self._nodes[node] for node in instead}
        for node, on_node in instead.items():
            self.put(node, on_node, before[node][0].beside)
        best = []
        for ordered in self._kinds.values():
            most = self._first(ordered)
            best.append(replace(most, others=ordered.together - max(most.free, 0)))
        for node, (kind, on_node) in before.items():
            self.put(node, on_node, kind.beside)
        return best

    def by_headroom(self, required: Callable[[Capacity, Beside], int | None]) -> Iterator[tuple[int, str]]:
        """What each node has left without what is `required` on those of its kind, and the node, those with most first.
        It is asked for one of each kind. None: those can't have it. To be used up before anything changes."""
        needs = [
            (ordered, required(self._first(ordered).published, kind.beside)) for kind, ordered in self._kinds.items()
        ]
        return heapq.merge(*(ordered.without(need) for ordered, need in needs if need is not None), reverse=True)

    def _first(self, ordered: _Ordered) -> NodeCapacity:
        """The node with most."""
        return self._nodes[ordered.by_free[-1][1]][1]


def best_first(
    ordered: Sequence[Iterator[tuple[int, str]]], headroom: Callable[[str], int], unordered: Collection[str]
) -> Iterator[str]:
    """The nodes that have `headroom`, zero or more bytes, and are in each of the orders, those with most first: each
    order has bytes that a node's headroom is not above, in descending order, and none of the `unordered`. So those that
    were not met yet have at most what the order with least is at, and are not asked (the threshold algorithm of Fagin,
    Lotem and Naor)."""
    asked: set[str] = set()
    found: list[tuple[int, str]] = []

    def ask(nodes: Collection[str]) -> None:
        for node in nodes:
            if node not in asked:
                asked.add(node)
                if (left := headroom(node)) >= 0:
                    heapq.heappush(found, (-left, node))

    ask(unordered)
    for places in zip(*ordered, strict=False):
        most = min(left for left, _ in places)
        while found and -found[0][0] >= most:
            yield heapq.heappop(found)[1]
        if most < 0:
            return
        ask([node for _, node in places])
    while found:
        yield heapq.heappop(found)[1]
