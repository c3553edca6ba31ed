"""The nodes of a class in the order of what they have left, kept up to date node by node: a claim that any node may
serve asks for the best one and for the sum, and a cluster has thousands.

Nodes are of one kind that can have the same volumes, in extents of the same size. So of each kind the node with most
stands for all others: what does not fit there fits on none of them.
"""

from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from contract.capacity import Capacity
from provisioner.decision import NodeCapacity

_Kind = tuple[bool, bool, int]
"""Block devices, encryption, granularity."""


def _kind(published: Capacity) -> _Kind:
    return published.block, published.encryption, published.granularity


@dataclass
class _Ordered:
    """The nodes of one kind."""

    by_free: list[tuple[int, str]] = field(default_factory=list)
    """Bytes and the node's label value, in ascending order."""
    together: int = 0
    """Bytes that all of them have left."""


class CapacityIndex:
    """Nodes are known by the values of their labels."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeCapacity] = {}
        self._kinds: dict[_Kind, _Ordered] = {}

    @property
    def granularity(self) -> int:
        """The largest of all nodes, 1 without any."""
        return max((granularity for _, _, granularity in self._kinds), default=1)

    def put(self, node: str, on_node: NodeCapacity | None) -> None:
        """What the node has now. None: it does not publish capacity for the class any more."""
        if (before := self._nodes.pop(node, None)) is not None:
            kind = _kind(before.published)
            ordered = self._kinds[kind]
            del ordered.by_free[bisect_left(ordered.by_free, (before.free, node))]
            ordered.together -= max(before.free, 0)
            if not ordered.by_free:
                del self._kinds[kind]
        if on_node is not None:
            self._nodes[node] = on_node
            ordered = self._kinds.setdefault(_kind(on_node.published), _Ordered())
            insort(ordered.by_free, (on_node.free, node))
            ordered.together += max(on_node.free, 0)

    def best(self, instead: Mapping[str, NodeCapacity]) -> list[NodeCapacity]:
        """Of each kind the node with most, and what the others of that kind have. `instead`: what some nodes have for
        the one who asks, whose own volume does not count for him."""
        before = {node: self._nodes[node] for node in instead}
        for node, on_node in instead.items():
            self.put(node, on_node)
        best = []
        for ordered in self._kinds.values():
            most = self._nodes[ordered.by_free[-1][1]]
            best.append(replace(most, others=ordered.together - max(most.free, 0)))
        for node, on_node in before.items():
            self.put(node, on_node)
        return best
