"""What the leader sees of the cluster: caches, the capacity ledger that follows one of them, what nodes publish; and
reads of the API server itself (`live_...`, those of claims in kube.claims), where a cache that lags would lose data or
make a volume for nobody.

The caches start after the lease is won and not before. A list that is taken then holds every volume that the leader
before us made, and so does the ledger; a cache kept warm while following could lag behind its last second. Volumes come
first: a node publishes a smaller figure before it lets a retained volume go, so figures that are read after the
volumes are never older than what the volumes say.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from contract import capacity, names, snapshot, volume
from contract.capacity import Capacity, footprint
from contract.snapshot import SnapshotContent
from contract.volume import PENDING, PersistentVolume
from kube import records
from kube.client import Cluster
from kube.errors import Invalid, Json, NotFound
from kube.informer import Informer
from kube.records import Claim, Node, Pod, StorageClass, VolumeAttributesClass, VolumeSnapshot
from kube.resources import (
    ATTRIBUTES_CLASSES,
    ATTRIBUTES_CLASSES_BETA,
    CAPACITIES,
    CLAIMS,
    CLASSES,
    NODES,
    PODS,
    SNAPSHOT_CONTENTS,
    SNAPSHOTS,
    VOLUMES,
)
from provisioner import decision
from provisioner.capacityindex import Beside, CapacityIndex, best_first
from provisioner.capacityledger import Account, CapacityLedger, layout_of, unplaced
from provisioner.clonesource import CloneSource
from provisioner.decision import AvailableCapacity, ClassMissing, NodeCapacity
from provisioner.index import Index
from provisioner.podcapacity import VolumeRequest, least_required


@dataclass(frozen=True)
class Published:
    """A node's figures for a class, and the version of the object that holds them."""

    capacity: Capacity
    resource_version: str


_GATHER = 0.05
"""Seconds. A volume changes three times within a few milliseconds when it is made and four times when it goes, and each
wake of this program costs more than what it then reads."""


class ClusterCache:
    """Only its task changes it, so it does not change between two awaits."""

    def __init__(self, cluster: Cluster, namespace: str, ledger: CapacityLedger) -> None:
        self.ledger = ledger
        self.claims = Informer[Claim](cluster, CLAIMS, _waiting_claim)
        """Read as they change: one that has a node now waits for its volume."""
        self.classes = Informer[StorageClass](cluster, CLASSES, records.read_storage_class)
        self.volumes = Informer[PersistentVolume](cluster, VOLUMES, volume.read, gather=_GATHER)
        self.capacities = Informer[Published](cluster, CAPACITIES, _published, namespace=namespace, gather=_GATHER)
        self.pods = Informer[Pod](cluster, PODS, _pending_pod, field_selector=f"status.phase={PENDING}")
        """Likewise: a claim is decided on with its pod."""
        self.contents = Informer[SnapshotContent](cluster, SNAPSHOT_CONTENTS, snapshot.read, optional=True)
        """Empty, and never synced, in a cluster without snapshots."""
        self.attributes_classes = Informer[VolumeAttributesClass](
            cluster,
            ATTRIBUTES_CLASSES,
            records.read_volume_attributes_class,
            optional=True,
            older=ATTRIBUTES_CLASSES_BETA,
        )
        """Likewise before Kubernetes 1.34, unless it serves the beta."""
        self._contents_of_snapshot = Index[str]()
        """Names of the VolumeSnapshotContents that are for a VolumeSnapshot, by its key."""
        self._pods_of_claim = Index[str]()
        """Keys of the pods that name a claim, by its key."""
        self._volume_of_claim: dict[str, str] = {}
        """Name of the volume that a claim has, by its key."""
        self._of_class: dict[str, dict[str, Published]] = {}
        self._indexes: defaultdict[str, CapacityIndex] = defaultdict(CapacityIndex)
        """Of a class, what its nodes had left when that was last asked for."""
        self._changed: defaultdict[str, set[str]] = defaultdict(set)
        """The nodes of a class that changed since."""
        ledger.on_change(self._charges_changed)
        self._on_retained: list[Callable[[str], None]] = []
        self.volumes.subscribe(self._volume_changed)
        self.capacities.subscribe(self._capacity_changed)
        self.pods.subscribe(self._pod_changed)
        self.contents.subscribe(self._content_changed)

    @property
    def _others(self) -> tuple[Informer[Claim] | Informer[StorageClass] | Informer[Published] | Informer[Pod], ...]:
        """The caches beside that of the volumes."""
        return self.claims, self.classes, self.capacities, self.pods

    @property
    def synced(self) -> bool:
        return self.volumes.synced and all(cache.synced for cache in self._others)

    def on_retained(self, callback: Callable[[str], None]) -> None:
        """Calls it with the uid of each retained volume that went and may have left its node with less."""
        self._on_retained.append(callback)

    async def run(self) -> None:
        """Follows the cluster, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.volumes.run(), name="volumes")
            await self.volumes.wait_synced()
            for cache in (*self._others, self.contents, self.attributes_classes):
                tasks.create_task(cache.run())

    async def wait_synced(self) -> None:
        """Returns once all of the cluster has been seen."""
        for cache in (self.volumes, *self._others):
            await cache.wait_synced()

    def published(self, node: str) -> dict[str, str]:
        """Class -> version of the figures of a node, by the value of its label."""
        return {
            storage_class: nodes[node].resource_version
            for storage_class, nodes in self._of_class.items()
            if node in nodes
        }

    def available(self, claim: Claim, excluding: str, source: CloneSource) -> AvailableCapacity:
        """What nodes have left for a claim, not counting the volume `excluding`, which is the claim's own. Of the one
        node only that can serve it, when that is known: a cluster may have thousands."""
        name = claim.storage_class
        nodes = self._of_class.get(name, {})
        storage_class = self.classes.get(name)
        if claim.clones or (storage_class is not None and decision.waits_for_first_consumer(storage_class)):
            label = source.node if claim.clones else names.node_label_value(claim.selected_node)
            chosen = [nodes[label]] if label in nodes else []
            return AvailableCapacity([self._node_capacity(published.capacity, {excluding}) for published in chosen])
        return self._on_all_nodes(name, {excluding})

    def _on_all_nodes(self, name: str, excluding: Collection[str]) -> AvailableCapacity:
        """What all nodes have left for a class. A claim that any node may serve asks for all of them, so only those are
        counted anew that changed since the last one asked."""
        nodes, index = self._of_class.get(name, {}), self._index(name)
        own = {account.node for volume in excluding for account in self.ledger.accounts(volume)}
        without = {node: self._node_capacity(nodes[node].capacity, excluding) for node in own & nodes.keys()}
        unplaced_bytes = self.ledger.reserved(unplaced(name), index.granularity, excluding=excluding)
        return AvailableCapacity(index.best(without), unplaced_bytes)

    def _index(self, name: str) -> CapacityIndex:
        """That of a class, with what changed since it was last asked for."""
        nodes, index = self._of_class.get(name, {}), self._indexes[name]
        for node in self._changed.pop(name, ()):
            if published := nodes.get(node):
                index.put(node, self._node_capacity(published.capacity, ()), self._beside(published.capacity))
            else:
                index.remove(node)
        return index

    def _beside(self, offered: Capacity) -> Beside:
        on_node = {name: self._of_class[name][offered.node].capacity for name in self._classes_on(offered.node)}
        classes = frozenset(name for name, capacity in on_node.items() if capacity.pool == offered.pool)
        # For a class of several legs, what its node knew to be reserved, and is not counted here yet, costs nothing.
        counted = offered.weight == 1 or self.reserved(offered, ())(offered.pool) >= offered.reserved
        rate = 1 if offered.shared_with else offered.weight
        return Beside(classes, rate if counted else 0)

    def _classes_on(self, node: str) -> list[str]:
        """The classes for which a node, by the value of its label, publishes capacity."""
        return [name for name, nodes in self._of_class.items() if node in nodes]

    def classes_of(self, account: Account) -> list[str]:
        """The classes for which there is more capacity when something of an account is freed."""
        return self._classes_on(account.node) if account.node else [account.pool]

    def most_free(self, storage_class: str) -> int:
        """Bytes: what that node of a class has left that has most."""
        return max((on_node.free for on_node in self._index(storage_class).best({})), default=0)

    def nodes_by_headroom(
        self, requests: Sequence[VolumeRequest], storage_class: str, headroom: Callable[[str], int]
    ) -> Iterator[str]:
        """The nodes, by the values of their labels, that have capacity for all of these volumes and publish some for
        the class, those with most first. No await between them. `headroom`: of a node, podcapacity.headroom. It is
        asked for those nodes only that may be next."""
        ordered = [
            self._index(name).by_headroom(partial(least_required, requests, name))
            for name in {request.storage_class for request in requests} or {storage_class}
        ]
        charged = {account.node for each in requests for account in self.ledger.accounts(each.volume)}
        return best_first(ordered, headroom, charged & self._of_class.get(storage_class, {}).keys())

    def _charges_changed(self, account: Account) -> None:
        for name in self._classes_on(account.node):
            self._changed[name].add(account.node)

    def available_for_growth(self, volume: PersistentVolume) -> AvailableCapacity:
        """What there is for a volume to grow: of its own pool, beyond what it counts with there; while it has no node,
        of all nodes for the whole of it."""
        if not volume.node_label:
            return self._on_all_nodes(volume.storage_class, {volume.name})
        of_pool = [
            published.capacity
            for nodes in self._of_class.values()
            if (published := nodes.get(volume.node_label)) and published.capacity.pool == volume.pool
        ]
        # Its own class first: the overprovision ratio of a thin pool is a matter of the class.
        of_pool.sort(key=lambda offered: offered.storage_class != volume.storage_class)
        return AvailableCapacity([self._node_capacity_beyond(offered, volume) for offered in of_pool[:1]])

    def pods_of(self, claim: str) -> list[Pod]:
        """The pods not running yet that name a claim, by its key."""
        pods = map(self.pods.get, self._pods_of_claim.get(claim))
        return [pod for pod in pods if pod is not None]

    def content_of(self, claim: Claim) -> SnapshotContent | None:
        """The snapshot of ours that a claim is to be restored from. A VolumeSnapshot is bound to one of those that say
        that they are for it."""
        found = self._contents_of_snapshot.get(f"{claim.namespace}/{claim.data_source_name}")
        contents = [content for name in found if (content := self.contents.get(name)) is not None]
        return max(contents, key=lambda content: (bool(content.snapshot_uid), content.ready), default=None)

    def attributes_class(self, name: str) -> VolumeAttributesClass | ClassMissing | None:
        """The VolumeAttributesClass of that name; None when nothing is named."""
        if not name:
            return None
        if found := self.attributes_classes.get(name):
            return found
        if self.attributes_classes.synced and not self.attributes_classes.not_served:
            return ClassMissing(f"there is no VolumeAttributesClass {name!r}: create it, it is tried again then")
        return ClassMissing(
            f"VolumeAttributesClass {name!r} can't be read: this takes Kubernetes 1.34, or 1.31 with the feature and "
            "its beta API turned on, and the provisioner's ClusterRole as deployed with it",
            unread=not self.attributes_classes.not_served,
        )

    def published_by(self, node: str, storage_class: str) -> Capacity | None:
        """What a node, by the value of its label, publishes for a class."""
        published = self._of_class.get(storage_class, {}).get(node)
        return published.capacity if published else None

    def volume_of(self, claim: str) -> PersistentVolume | None:
        """The volume of ours that a claim has, by its key."""
        return self.volumes.get(self._volume_of_claim.get(claim, ""))

    def reserved(self, offered: Capacity, excluding: Collection[str]) -> Callable[[str], int]:
        """What is reserved in each pool of a node, not counting the volumes `excluding`."""
        return lambda pool: self.ledger.reserved(Account(offered.node, pool), offered.granularity, excluding=excluding)

    def _node_capacity_beyond(self, offered: Capacity, volume: PersistentVolume) -> NodeCapacity:
        counts = self.reserved(offered, {volume.name})
        has = footprint(volume.charged_size, layout_of(volume), offered.granularity)
        return NodeCapacity(offered, offered.free(lambda pool: counts(pool) + (has if pool == volume.pool else 0)))

    def _node_capacity(self, offered: Capacity, excluding: Collection[str]) -> NodeCapacity:
        return NodeCapacity(offered, offered.free(self.reserved(offered, excluding)))

    def _volume_changed(self, name: str, old: PersistentVolume | None, new: PersistentVolume | None) -> None:
        if old is not None and self._volume_of_claim.get(str(old.claim)) == name:
            del self._volume_of_claim[str(old.claim)]
        if new is not None and new.claim is not None:
            self._volume_of_claim[str(new.claim)] = name
        held = self.ledger.observe_deleted(name) if new is None else self.ledger.observe(new)
        if held and old is not None:
            for callback in self._on_retained:
                callback(old.uid)

    def _content_changed(self, name: str, old: SnapshotContent | None, new: SnapshotContent | None) -> None:
        self._contents_of_snapshot.put(name, (f"{new.snapshot_namespace}/{new.snapshot_name}",) if new else ())

    def _pod_changed(self, key: str, old: Pod | None, new: Pod | None) -> None:
        self._pods_of_claim.put(key, new.claims if new else ())

    def _capacity_changed(self, key: str, old: Published | None, new: Published | None) -> None:
        if old is not None:
            self._of_class.get(old.capacity.storage_class, {}).pop(old.capacity.node, None)
        if new is not None:
            self._of_class.setdefault(new.capacity.storage_class, {})[new.capacity.node] = new
        for changed in filter(None, (old, new)):
            self._changed[changed.capacity.storage_class].add(changed.capacity.node)
            # Its other classes may be of the same pool, or not any more.
            for name in self._classes_on(changed.capacity.node):
                self._changed[name].add(changed.capacity.node)


def _waiting_claim(body: Json) -> Claim | None:
    """Most claims have what they ask for, or wait for other provisioners: they are not kept. Of one that is not
    scheduled yet, only its class says which provisioner it waits for."""
    claim = records.read_claim(body)
    waits = not claim.volume_name and claim.provisioner in ("", *names.PROVISIONERS) and not claim.deleting
    return claim if waits or claim.grows or claim.modifies else None


def _pending_pod(body: Json) -> Pod | None:
    """Pods that run have all their volumes, and most that don't have none of ours: they are not kept."""
    pod = records.read_pod(body)
    return pod if pod.volumes and pod.phase == PENDING else None


def _published(body: Json) -> Published | None:
    offered = capacity.read(body)
    return Published(offered, body["metadata"]["resourceVersion"]) if offered else None


async def live_pending_pods(cluster: Cluster, claim: Claim) -> list[Pod]:
    """The pods not running yet that name the claim. Raises ApiError."""
    bodies = await cluster.list(PODS, claim.namespace, field_selector=f"status.phase={PENDING}")
    return [pod for pod in map(records.read_pod, bodies) if claim.key in pod.claims]


async def live_nodes(cluster: Cluster, hostname: str) -> list[Node]:
    """The nodes with this hostname label. Raises ApiError."""
    bodies = await cluster.list(NODES, label_selector=f"{names.HOSTNAME_LABEL}={hostname}")
    return [records.read_node(body) for body in bodies]


async def live_node(cluster: Cluster, name: str) -> Node | None:
    """Raises ApiError."""
    try:
        return records.read_node(await cluster.get(NODES, name))
    except NotFound:
        return None


async def live_source_claim(cluster: Cluster, claim: Claim) -> Claim | None:
    """The claim that this one is to be a copy of, None when there is none. Raises ApiError."""
    try:
        return records.read_claim(await cluster.get(CLAIMS, claim.data_source_name, claim.namespace))
    except (NotFound, Invalid):  # its owner may have written any text
        return None


async def live_snapshot(cluster: Cluster, claim: Claim) -> VolumeSnapshot | None:
    """The VolumeSnapshot that the claim is to be restored from, None when there is none. Raises ApiError."""
    try:
        return records.read_volume_snapshot(await cluster.get(SNAPSHOTS, claim.data_source_name, claim.namespace))
    except (NotFound, Invalid):
        return None


async def live_content(cluster: Cluster, name: str) -> SnapshotContent | None:
    """The VolumeSnapshotContent of that name, None also for one of another driver. Raises ApiError."""
    try:
        return snapshot.read(await cluster.get(SNAPSHOT_CONTENTS, name))
    except (NotFound, Invalid):
        return None


async def is_current(cluster: Cluster, volume: PersistentVolume) -> bool:
    """Whether this version of it is the one that there is: a cache may not have seen yet what we wrote a moment ago.
    Asked before something is written to another object that follows from it: no write of one can have the version of
    another for its precondition. Raises ApiError."""
    live = await live_volume(cluster, volume.name)
    return live is not None and live.resource_version == volume.resource_version


async def live_volume(cluster: Cluster, name: str) -> PersistentVolume | None:
    """The PersistentVolume of ours of that name, which anybody may have written. Raises ApiError."""
    try:
        return volume.read(await cluster.get(VOLUMES, name))
    except (NotFound, Invalid):
        return None
