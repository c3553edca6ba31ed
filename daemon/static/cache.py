"""Cache of the PersistentVolumes of this node's static volumes, filled by an informer.

The local static provisioner caches every PersistentVolume of the cluster on every node, because the API server can't
select by the annotation with the provisioner's name. Ours have NODE_LABEL, and the informer selects by it. Those that
the local static provisioner created lack it: before the first list they are looked up once, page by page, and adopted,
which means labelled. One that appears later, for example out of a backup, is adopted when its name turns out to be
taken. Adoption adds our finalizer too.
"""

import logging
from dataclasses import dataclass

from contract import names
from daemon.static import volume
from daemon.static.configuration import Configuration
from daemon.static.volume import StaticVolume, provisioner_name
from kube.client import Cluster
from kube.errors import NotFound
from kube.informer import Informer
from kube.records import Node
from kube.resources import VOLUMES

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProvisionerIdentity:
    """Which PersistentVolumes belong to this node."""

    provisioner: str
    hostname: str
    node_name_only: bool

    @classmethod
    def of(cls, node: Node, configuration: Configuration) -> "ProvisionerIdentity":
        node_name_only = configuration.use_node_name_only
        return cls(provisioner_name(node.name, node.uid, node_name_only), node.hostname, node_name_only)

    def owns(self, pv: StaticVolume) -> bool:
        """With useNodeNameOnly also those whose provisioner has a UID. Then the hostname must match, because the name
        of one node may be a prefix of another's."""
        if pv.provisioned_by == self.provisioner:
            return True
        return (
            self.node_name_only
            and pv.provisioned_by.startswith(f"{self.provisioner}-")
            and self.hostname in pv.hostnames
        )


class Cache:
    def __init__(self, cluster: Cluster, node: Node) -> None:
        self._cluster = cluster
        self._label = {names.NODE_LABEL: names.node_label_value(node.name)}
        self._identity: ProvisionerIdentity | None = None
        selector = ",".join(f"{key}={value}" for key, value in self._label.items())
        self.informer = Informer[StaticVolume](cluster, VOLUMES, volume.read, label_selector=selector)

    def volumes(self) -> list[StaticVolume]:
        return [pv for pv in self.informer.values() if self._owns(pv)]

    def get(self, name: str) -> StaticVolume | None:
        pv = self.informer.get(name)
        return pv if pv and self._owns(pv) else None

    def _owns(self, pv: StaticVolume) -> bool:
        return self._identity is not None and self._identity.owns(pv)

    async def set_identity(self, identity: ProvisionerIdentity) -> None:
        """Adopts the PersistentVolumes that `identity` owns; from then on they are those of this node. Does nothing if
        it did not change. Raises ApiError: nothing may be offered then, because the volumes of this node are
        unknown."""
        if identity == self._identity:
            return
        adopted = 0
        async for page in self._cluster.pages(VOLUMES):
            for body in page.items:
                pv = volume.read(body)
                if pv and identity.owns(pv):
                    adopted += await self._adopt(pv, body)
        self._identity = identity
        if adopted:
            log.info("adopted %d PersistentVolumes provisioned by %s", adopted, identity.provisioner)

    async def adopt(self, name: str) -> bool:
        """Adopts the PersistentVolume of that name, which is not in the cache, if it belongs to this node. False: it
        does not. Raises ApiError."""
        try:
            body = await self._cluster.get(VOLUMES, name)
        except NotFound:
            return False
        pv = volume.read(body)
        if pv is None or not self._owns(pv):
            return False
        await self._adopt(pv, body)
        return True

    async def _adopt(self, pv: StaticVolume, body: volume.Json) -> bool:
        """Whether it had to be changed. Raises ApiError, Conflict if it changed meanwhile."""
        patch = volume.adoption_patch(body, self._label)
        if patch is None:
            return False
        try:
            await self._cluster.patch(VOLUMES, pv.name, patch)
        except NotFound:
            return False
        return True
