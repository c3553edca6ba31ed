"""Which nodes there are, which of them were renamed, and the only way to be sure that one is gone.

A cache that shows no node proves nothing: it may lag, or not be filled yet. Neither does an answer that is no answer.
A node is gone when the cache has none, and the API server, asked there and then by name and by hostname label, says
that there is none. Everything else counts as a node.

A node that was registered again under another name, with the hostname label it had, still has its volumes. Their node
affinity still fits, so pods come to the node, but our label on them has the old name, by which no daemon looks for them
any more. Names of Nodes can't be changed, so this is a Node that went and another that came: the label follows once the
old one is gone for certain, and exactly one Node has the hostname.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable

from contract import names
from kube.client import NODES, VOLUMES, Cluster, Json, NotFound
from kube.informer import Informer
from provisioner.nodeloss import Nodes, Resident


def answers_to(body: Json) -> Nodes:
    """What a volume may call this node: its name, the label value that stands for it, its hostname label."""
    name, labels = body["metadata"]["name"], body["metadata"].get("labels") or {}
    return frozenset({name, names.node_label_value(name), labels.get(names.HOSTNAME_LABEL, "")} - {""})


class Standing:
    """The nodes of the cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._answering: Counter[str] = Counter()
        self._on_change: list[Callable[[Nodes], None]] = []
        self._informer = Informer[Nodes](cluster, NODES, answers_to)
        self._informer.subscribe(self._changed)

    def on_change(self, callback: Callable[[Nodes], None]) -> None:
        """Tells the names of each node that came, went or got another hostname."""
        self._on_change.append(callback)

    async def run(self) -> None:
        """For ever."""
        await self._informer.run()

    async def wait_synced(self) -> None:
        await self._informer.wait_synced()

    def known(self, nodes: Nodes) -> bool:
        """Whether the cache has a node that answers to one of these names."""
        return any(self._answering[name] for name in nodes)

    async def gone(self, nodes: Nodes) -> bool:
        """Whether there is, for certain, no node that answers to any of these names. Raises ApiError when the API
        server can't say."""
        if self.known(nodes):
            return False
        for name in sorted(nodes):
            if await self._named(name) or await self.with_hostname(name):
                return False
        return not self.known(nodes)

    async def with_hostname(self, hostname: str) -> list[str]:
        """Names of the nodes that have this hostname label now. Raises ApiError."""
        found = await self._cluster.list(NODES, label_selector=f"{names.HOSTNAME_LABEL}={hostname}")
        return [body["metadata"]["name"] for body in found]

    async def _named(self, name: str) -> bool:
        try:
            await self._cluster.get(NODES, name)
        except NotFound:
            return False
        return True

    def _changed(self, _: str, old: Nodes | None, new: Nodes | None) -> None:
        self._answering.update(new or ())
        self._answering.subtract(old or ())
        for name in (old or frozenset()) - (new or frozenset()):
            if not self._answering[name]:
                del self._answering[name]
        for callback in self._on_change:
            callback((old or frozenset()) | (new or frozenset()))


_log = logging.getLogger(__name__)


async def follow_renamed_nodes(cluster: Cluster, standing: Standing, residents: Iterable[Resident]) -> None:
    """Corrects the label of those volumes of ours whose node has another name now. Raises ApiError."""
    for resident in list(residents):
        hostnames = resident.nodes - {resident.label}
        if not resident.label or len(hostnames) != 1 or standing.known(frozenset({resident.label})):
            continue
        found = await standing.with_hostname(*hostnames)
        if len(found) != 1 or not await standing.gone(frozenset({resident.label})):
            continue
        label = names.node_label_value(found[0])
        metadata = {"uid": resident.uid, "resourceVersion": resident.resource_version}
        try:
            await cluster.patch(VOLUMES, resident.name, {"metadata": {**metadata, "labels": {names.NODE_LABEL: label}}})
        except NotFound:
            continue
        named = {"volume": resident.name, "claim": str(resident.claim or "")}
        _log.warning("its node %s is called %s now", resident.label, found[0], extra=named)
