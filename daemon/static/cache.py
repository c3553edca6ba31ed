"""The PersistentVolumes of this node's static volumes, as the API server last told.

The original holds every PersistentVolume of the cluster on every node, because the API server can't select by the
annotation that tells whose one is. Ours carry NODE_LABEL, and the informer asks for that alone. Those that the
original created have no such label: before the first listing they are looked for once, page by page without keeping
any, and get it. One that turns up later, out of a backup perhaps, gets it when its name is met as taken. Together with
the label comes our finalizer, also to those that we made before there was one.
"""

import logging
from dataclasses import dataclass

from contract import names
from daemon.static import volume
from daemon.static.configuration import Configuration
from daemon.static.volume import StaticVolume, provisioner_name
from kube.client import VOLUMES, Cluster, NotFound
from kube.informer import Informer
from kube.records import Node

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """By what we know our PersistentVolumes."""

    provisioner: str
    hostname: str
    node_name_only: bool

    @classmethod
    def of(cls, node: Node, configuration: Configuration) -> "Identity":
        node_name_only = configuration.use_node_name_only
        return cls(provisioner_name(node.name, node.uid, node_name_only), node.hostname, node_name_only)

    def owns(self, found: StaticVolume) -> bool:
        """With the node's name alone, also those made when the name had a UID: then the hostname must be ours, for
        the name of one node may begin with that of another."""
        if found.provisioned_by == self.provisioner:
            return True
        return (
            self.node_name_only
            and found.provisioned_by.startswith(f"{self.provisioner}-")
            and self.hostname in found.hostnames
        )


class Cache:
    def __init__(self, cluster: Cluster, node: Node) -> None:
        self._cluster = cluster
        self._label = {names.NODE_LABEL: names.node_label_value(node.name)}
        self._identity: Identity | None = None
        selector = ",".join(f"{key}={value}" for key, value in self._label.items())
        self.informer = Informer[StaticVolume](cluster, VOLUMES, volume.read, label_selector=selector)

    def volumes(self) -> list[StaticVolume]:
        return [found for found in self.informer.values() if self._owns(found)]

    def get(self, name: str) -> StaticVolume | None:
        found = self.informer.get(name)
        return found if found and self._owns(found) else None

    def _owns(self, found: StaticVolume) -> bool:
        return self._identity is not None and self._identity.owns(found)

    async def settle(self, identity: Identity) -> None:
        """From now on we are `identity`, and the PersistentVolumes it owns carry our label and finalizer. Does
        nothing the second time. Raises ApiError, and then nothing may be offered yet: what is ours is not known."""
        if identity == self._identity:
            return
        adopted = 0
        async for page in self._cluster.pages(VOLUMES):
            for body in page.items:
                found = volume.read(body)
                if found and identity.owns(found):
                    adopted += await self._take_over(found, body)
        self._identity = identity
        if adopted:
            log.info("took over %d PersistentVolumes provisioned by %s", adopted, identity.provisioner)

    async def adopt(self, name: str) -> bool:
        """Whether the PersistentVolume of that name, which the informer did not tell of, is ours. Then it carries our
        label and finalizer from now on. Raises ApiError."""
        try:
            body = await self._cluster.get(VOLUMES, name)
        except NotFound:
            return False
        found = volume.read(body)
        if found is None or not self._owns(found):
            return False
        await self._take_over(found, body)
        return True

    async def _take_over(self, found: StaticVolume, body: volume.Json) -> bool:
        """Raises ApiError, Conflict when it was changed meanwhile."""
        patch = volume.adopting(body, self._label)
        if patch is None:
            return False
        try:
            await self._cluster.patch(VOLUMES, found.name, patch)
        except NotFound:
            return False
        return True
