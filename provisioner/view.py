"""What the leader sees of the cluster: four caches, the books that follow one of them, and what nodes offer.

The caches start after the lease is won and not before. A list that is taken then holds every volume that the leader
before us made, and so do the books; a cache kept warm while following could lag behind its last second. Volumes come
first: a node publishes a smaller figure before it lets a retained volume go, so figures that are read after the
volumes are never older than what the volumes say.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from contract import capacity, names, volume
from contract.capacity import Capacity
from contract.volume import PersistentVolume
from kube import records
from kube.client import CAPACITIES, CLAIMS, CLASSES, VOLUMES, Cluster, Json
from kube.informer import Informer
from kube.records import WAIT_FOR_FIRST_CONSUMER, Claim, StorageClass
from provisioner import decision
from provisioner.books import Account, Books, unplaced
from provisioner.cloning import Source
from provisioner.decision import Offer, Offers


@dataclass(frozen=True)
class Published:
    """A node's figures for a class, and the version of the object that holds them."""

    capacity: Capacity
    resource_version: str


class View:
    """Only its task changes it, so between two awaits it stands still."""

    def __init__(self, cluster: Cluster, namespace: str, books: Books) -> None:
        self.books = books
        self.claims = Informer[Claim](cluster, CLAIMS, _waiting_claim)
        self.classes = Informer[StorageClass](cluster, CLASSES, records.read_storage_class)
        self.volumes = Informer[PersistentVolume](cluster, VOLUMES, volume.read)
        self.capacities = Informer[Published](cluster, CAPACITIES, _published, namespace=namespace)
        self._of_class: dict[str, dict[str, Published]] = {}
        self._on_held: list[Callable[[str], None]] = []
        self.volumes.subscribe(self._volume_changed)
        self.capacities.subscribe(self._capacity_changed)

    @property
    def synced(self) -> bool:
        return all(cache.synced for cache in (self.volumes, self.claims, self.classes, self.capacities))

    def on_held(self, callback: Callable[[str], None]) -> None:
        """Tells the uid of each retained volume that went and may have left a smaller node behind."""
        self._on_held.append(callback)

    async def run(self) -> None:
        """Follows the cluster, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.volumes.run(), name="volumes")
            await self.volumes.wait_synced()
            for cache in (self.claims, self.classes, self.capacities):
                tasks.create_task(cache.run())

    async def wait_synced(self) -> None:
        """Returns once all of the cluster has been seen."""
        for cache in (self.volumes, self.claims, self.classes, self.capacities):
            await cache.wait_synced()

    def published(self, node: str) -> dict[str, str]:
        """Class -> version of the figures of a node, by the value of its label."""
        return {
            storage_class: nodes[node].resource_version
            for storage_class, nodes in self._of_class.items()
            if node in nodes
        }

    def offers(self, claim: Claim, besides: str, source: Source) -> Offers:
        """What nodes have left for a claim, not counting the volume `besides`, which is the claim's own. Of the one
        node only that can serve it, when that is known: a cluster may have thousands."""
        name = claim.storage_class
        nodes = self._of_class.get(name, {})
        storage_class = self.classes.get(name)
        bound_late = storage_class is not None and storage_class.binding_mode == WAIT_FOR_FIRST_CONSUMER
        if claim.clones or bound_late:
            label = source.node if claim.clones else names.node_label_value(claim.selected_node)
            chosen = [nodes[label]] if label in nodes else []
            return Offers([self._offer(published.capacity, besides) for published in chosen])
        return self._anywhere(name, besides)

    def _anywhere(self, name: str, besides: str) -> Offers:
        """What all nodes have left for a class."""
        nodes = self._of_class.get(name, {})
        granularity = max((published.capacity.granularity for published in nodes.values()), default=1)
        return Offers(
            [self._offer(published.capacity, besides) for published in nodes.values()],
            self.books.taken(unplaced(name), granularity, besides=besides),
        )

    def offers_beside(self, volume: PersistentVolume) -> Offers:
        """What there is for a volume that exists to grow, what it has included: of its own pool, or of all nodes
        while it has none."""
        if not volume.node_label:
            return self._anywhere(volume.storage_class, volume.name)
        of_pool = [
            published.capacity
            for nodes in self._of_class.values()
            if (published := nodes.get(volume.node_label)) and published.capacity.pool == volume.pool
        ]
        # Its own class first: how often a thin pool may be promised is a matter of the class.
        of_pool.sort(key=lambda offered: offered.storage_class != volume.storage_class)
        return Offers([self._offer(offered, volume.name) for offered in of_pool[:1]])

    def _offer(self, offered: Capacity, besides: str) -> Offer:
        def taken(pool: str) -> int:
            return self.books.taken(Account(offered.node, pool), offered.granularity, besides=besides)

        return Offer(offered, offered.left(taken))

    def _volume_changed(self, name: str, old: PersistentVolume | None, new: PersistentVolume | None) -> None:
        held = self.books.depart(name) if new is None else self.books.observe(new)
        if held and old is not None:
            for callback in self._on_held:
                callback(old.uid)

    def _capacity_changed(self, key: str, old: Published | None, new: Published | None) -> None:
        if old is not None:
            self._of_class.get(old.capacity.storage_class, {}).pop(old.capacity.node, None)
        if new is not None:
            self._of_class.setdefault(new.capacity.storage_class, {})[new.capacity.node] = new


def _waiting_claim(body: Json) -> Claim | None:
    """Claims that have what they ask for, or wait for others, are most of a cluster's: they are not kept."""
    claim = records.read_claim(body)
    return claim if decision.ours(claim) or claim.grows else None


def _published(body: Json) -> Published | None:
    offered = capacity.read(body)
    return Published(offered, body["metadata"]["resourceVersion"]) if offered else None
