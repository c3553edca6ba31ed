"""Which nodes there are, which of them were renamed, and the only way to be sure that one is gone.

A cache that shows no node proves nothing: it may lag, or not be filled yet. Neither does an error.
A node is gone when the cache has none, and the API server, asked live by name and by hostname label, has
none. Everything else counts as a node.

A node that was registered again under another name, with the hostname label it had, still has its volumes. Their node
affinity still fits, so pods come to the node, but our label on them has the old name, by which no daemon looks for them
any more. Names of Nodes can't be changed, so this is a Node that went and another that came: the label follows once
the old one is gone for certain, and exactly one Node has the hostname.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from contract import names
from kube.client import Cluster
from kube.errors import ApiError, Json, NotFound, Unreachable
from kube.informer import Informer
from kube.resources import NODES, VOLUMES
from provisioner.nodeloss import NodeNames, NodePinnedVolume


@dataclass(frozen=True, slots=True)
class TrackedNode:
    """What is kept of a Node."""

    name: str
    hostname: str
    """Value of the hostname label. Empty: it has none."""

    @property
    def names(self) -> NodeNames:
        """What a volume may know this node by: its name, the label value that stands for it, its hostname label."""
        return frozenset({self.name, names.node_label_value(self.name), self.hostname} - {""})


def read(body: Json) -> TrackedNode:
    metadata = body["metadata"]
    return TrackedNode(metadata["name"], (metadata.get("labels") or {}).get(names.HOSTNAME_LABEL) or "")


class NodeTracker:
    """The nodes of the cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._counts: Counter[str] = Counter()
        self._on_change: list[Callable[[NodeNames], None]] = []
        self._informer = Informer[TrackedNode](cluster, NODES, read)
        self._informer.subscribe(self._changed)

    def on_change(self, callback: Callable[[NodeNames], None]) -> None:
        """`callback` gets the names of each node that came, went or got another hostname."""
        self._on_change.append(callback)

    async def run(self) -> None:
        """For ever."""
        await self._informer.run()

    async def wait_synced(self) -> None:
        await self._informer.wait_synced()

    def hostname(self, name: str) -> str:
        """The hostname label of a node, as the cache has it. Empty: it has no such node, or none with that label."""
        node = self._informer.get(name)
        return node.hostname if node else ""

    def is_known(self, nodes: NodeNames) -> bool:
        """Whether the cache has a node that answers to one of these names."""
        return any(self._counts[name] for name in nodes)

    async def is_gone(self, nodes: NodeNames) -> bool:
        """Whether there is, for certain, no node that answers to any of these names. Raises ApiError when the API
        server can't say."""
        if self.is_known(nodes):
            return False
        for name in sorted(nodes):
            if await self._named(name) or await self.names_with_hostname(name):
                return False
        return not self.is_known(nodes)

    async def names_with_hostname(self, hostname: str) -> list[str]:
        """Names of the nodes that have this hostname label now. Raises ApiError."""
        bodies = await self._cluster.list(NODES, label_selector=f"{names.HOSTNAME_LABEL}={hostname}")
        return [body["metadata"]["name"] for body in bodies]

    async def _named(self, name: str) -> bool:
        try:
            await self._cluster.get(NODES, name)
        except NotFound:
            return False
        return True

    def _changed(self, _: str, old: TrackedNode | None, new: TrackedNode | None) -> None:
        before, after = (node.names if node else frozenset() for node in (old, new))
        self._counts.update(after)
        self._counts.subtract(before)
        for name in before - after:
            if not self._counts[name]:
                del self._counts[name]
        for callback in self._on_change:
            callback(before | after)

    async def renamed(self, node_label: str, hostname: str) -> str:
        """The name that a node has now which was registered again under another one: the only one with that hostname
        label. Empty: the node with that value of our label is there, or is not gone for certain. Needs all nodes known.
        Raises ApiError."""
        if self.is_known(frozenset({node_label})):
            return ""
        found = await self.names_with_hostname(hostname)
        return found[0] if len(found) == 1 and await self.is_gone(frozenset({node_label})) else ""


_log = logging.getLogger(__name__)


async def follow_renamed_nodes(cluster: Cluster, tracker: NodeTracker, volumes: Iterable[NodePinnedVolume]) -> None:
    """Corrects the label of those volumes of ours whose node has another name now. Raises ApiError, of what was refused
    for one volume when all others are done."""
    refused: ApiError | None = None
    for volume in list(volumes):
        hostnames = volume.nodes - {volume.node_label}
        if not volume.node_label or len(hostnames) != 1:
            continue
        renamed = await tracker.renamed(volume.node_label, *hostnames)
        if not renamed:
            continue
        label = names.node_label_value(renamed)
        metadata = {"uid": volume.uid, "resourceVersion": volume.resource_version}
        try:
            await cluster.patch(VOLUMES, volume.name, {"metadata": {**metadata, "labels": {names.NODE_LABEL: label}}})
        except NotFound:
            continue
        except Unreachable:
            raise
        except ApiError as error:
            refused = error
            continue
        named = {"volume": volume.name, "claim": str(volume.claim or "")}
        _log.warning("its node %s is called %s now", volume.node_label, renamed, extra=named)
    if refused is not None:
        raise refused
