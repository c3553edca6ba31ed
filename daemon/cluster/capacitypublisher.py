"""Publishes to the scheduler and the provisioner how much capacity this node has: one CSIStorageCapacity for each class
of ours.

What should be published is a pure function of the classes, the inventory and the PersistentVolumes of this node; what
is published is known from an informer, so an object that somebody edits or deletes is put right like any other
difference. A class that can't be served here, because its parameters are wrong or its volume group is missing, is
published with no room: without an object the scheduler could not distinguish "no room" from "not reported yet".
"""

import asyncio
import contextlib
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass, replace
from typing import Any

from contract import capacity, names, parameters, quantity
from contract.capacity import Capacity
from contract.parameters import ParameterError, VolumeParameters
from contract.volume import PersistentVolume
from daemon.cluster.capacity import available_capacity
from daemon.cluster.nodevolumes import NodeVolumes
from daemon.errors import VolumeError
from daemon.storage.inventory import Inventory
from kube.backoff import Backoff
from kube.client import Cluster
from kube.errors import ApiError, Json, NotFound, Unreachable
from kube.informer import Informer
from kube.records import Node, StorageClass, read_storage_class
from kube.resources import CAPACITIES, CLASSES

log = logging.getLogger(__name__)

_AWAY = Backoff(first=0.5, factor=2, limit=3)
_REFUSED = Backoff(first=0.5, factor=2, limit=60)
"""Of what somebody has to mend first: each node asks for it."""
_DEBOUNCE_SECONDS = 0.15
"""How long changes are gathered: a burst of volumes is one update, and nobody waits long for it."""


@dataclass(frozen=True)
class PublishedCapacity:
    """What an object of ours says, to be written or read back."""

    name: str
    capacity: Capacity
    maximum: int
    owners: tuple[str, ...]


def read_published(body: Json) -> PublishedCapacity | None:
    published = capacity.read(body)
    owners = tuple(owner["uid"] for owner in body["metadata"].get("ownerReferences") or [])
    if published is None:
        return None
    return PublishedCapacity(
        body["metadata"]["name"], published, quantity.parse(str(body.get("maximumVolumeSize") or "0")), owners
    )


def read_class(body: Json) -> StorageClass | None:
    """A StorageClass of ours."""
    storage_class = read_storage_class(body)
    return storage_class if storage_class.provisioner in names.PROVISIONERS else None


def desired(
    classes: Iterable[StorageClass],
    pool_of: Callable[[VolumeParameters], str],
    inventory: Inventory,
    persistent_volumes: Collection[PersistentVolume],
    node: Node,
    folder_pools: Collection[str] = (),
    *,
    encrypts: bool = True,
) -> dict[str, PublishedCapacity]:
    """What should be published, by object name. `folder_pools`: those whose volumes are folders. `encrypts`: this node
    has what encryption takes."""
    classes, objects = list(classes), {}
    shapes = {
        (pool_of(requested), capacity.leg_count(requested)) for each in classes if (requested := _parameters(each))
    }
    mixed = {pool for pool, count in Counter(pool for pool, _ in shapes).items() if count > 1}
    for storage_class in classes:
        room = _capacity(storage_class, pool_of, inventory, persistent_volumes, node, mixed)
        on_device = bool(room.pool) and room.pool not in folder_pools
        room = replace(room, block=on_device, encryption=on_device and encrypts)
        requested = _parameters(storage_class)
        if requested and requested.encryption and not room.encryption:
            room = replace(room, available=0)  # the scheduler is to choose another node
        name = capacity.object_name(room.node, room.storage_class)
        objects[name] = PublishedCapacity(name, room, room.available, (node.uid,))
    return objects


def _capacity(
    storage_class: StorageClass,
    pool_of: Callable[[VolumeParameters], str],
    inventory: Inventory,
    persistent_volumes: Collection[PersistentVolume],
    node: Node,
    mixed: Collection[str],
) -> Capacity:
    """`mixed` are the pools from which classes are served whose volumes have different numbers of legs."""
    label = names.node_label_value(node.name)
    nothing = Capacity(label, node.hostname, storage_class.name, "", allocatable=0, available=0, granularity=1)
    requested = _parameters(storage_class)
    pool = inventory.pool(pool_of(requested)) if requested else None
    if requested is None or pool is None:
        return nothing
    room = available_capacity(pool, requested, inventory.volumes, persistent_volumes)
    weight = pool.weight(requested, None if pool.name in mixed else requested)
    return Capacity(
        label,
        node.hostname,
        storage_class.name,
        pool.name,
        allocatable=max(room.allocatable, 0),
        available=room.largest_volume,
        granularity=pool.granularity,
        weight=weight,
        reserved=room.reserved if weight > 1 else 0,
        shared_with=pool.sharing(),
        shared=room.shared,
    )


def _parameters(storage_class: StorageClass) -> VolumeParameters | None:
    try:
        return parameters.parse(storage_class.parameters, storage_class.mount_options)
    except ParameterError:
        return None


class CapacityPublisher:
    """`problem` says why the room is not published (yet), for readiness. Empty: it is."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        node: Node,
        pool_of: Callable[[VolumeParameters], str],
        inventory: Callable[[], Inventory],
        node_volumes: NodeVolumes,
        refresh: Callable[[], Coroutine[Any, Any, None]],
        folder_pools: Collection[str] = (),
    ) -> None:
        """`refresh` has the storage inspected anew. `folder_pools`: see `desired`."""
        self._cluster = cluster
        self._namespace = namespace
        self._node = node
        self._pool_of = pool_of
        self._inventory = inventory
        self._node_volumes = node_volumes
        self._refresh = refresh
        self._folder_pools = folder_pools
        self._changed = asyncio.Event()
        self._writing = asyncio.Lock()
        self.problem = "not yet"
        self.classes = Informer(cluster, CLASSES, read_class)
        self.published = Informer(
            cluster,
            CAPACITIES,
            read_published,
            namespace=namespace,
            label_selector=f"{names.NODE_LABEL}={names.node_label_value(node.name)}",
        )
        self.classes.subscribe(lambda *_: self.trigger())
        self.published.subscribe(lambda *_: self.trigger())

    def trigger(self) -> None:
        """Something changed that the figures may depend on."""
        self._changed.set()

    async def run(self) -> None:
        """For ever. The informers must run too."""
        failures = 0
        while True:
            try:
                await self._refresh_extents()
                await self.publish()
                failures, self.problem = 0, ""
                await self._changed.wait()
                await asyncio.sleep(_DEBOUNCE_SECONDS)
            except ApiError as error:
                failures += 1
                self.problem = f"the API server does not take the capacity of this node: {error}"
                log.warning("%s", self.problem)
                await asyncio.sleep((_AWAY if isinstance(error, Unreachable) else _REFUSED).delay(failures))

    async def _refresh_extents(self) -> None:
        """From which of a group's devices a volume took its space, only an inspection shows. Until then, classes whose
        volumes have several legs are offered what is left in the worst case."""
        inventory = self._inventory()
        for storage_class in self.classes.values():
            requested = _parameters(storage_class)
            pool = inventory.pool(self._pool_of(requested)) if requested else None
            if requested and pool and pool.allocated_since_look and pool.placeable(requested) is not None:
                try:
                    await self._refresh()
                except VolumeError as error:
                    log.warning("%s", error)
                return

    async def publish(self, *, certain: bool = False) -> None:
        """Writes what differs, or with `certain` everything: then the API server has the figures of now when this
        returns, whatever the informer believed. Raises ApiError; what was refused of one class holds up no other."""
        await self.classes.wait_synced()
        await self.published.wait_synced()
        async with self._writing:
            self._changed.clear()
            requested = desired(
                self.classes.values(),
                self._pool_of,
                self._inventory(),
                self._node_volumes.all(),
                self._node,
                self._folder_pools,
                encrypts=shutil.which("cryptsetup") is not None,
            )
            known = {each.name: each for each in self.published.values()}
            refused: ApiError | None = None
            for name, room in requested.items():
                if certain or known.get(name) != room:
                    try:
                        await self._write(room, known.get(name))
                    except Unreachable:
                        raise
                    except ApiError as error:
                        refused = refused or error
            for name in known.keys() - requested.keys():
                await self._delete(name)
            if refused is not None:
                raise refused

    async def _write(self, room: PublishedCapacity, known: PublishedCapacity | None) -> None:
        body = capacity.manifest(room.capacity, self._namespace, self._owner)
        if known and known.capacity.hostname != room.capacity.hostname:
            await self._delete(room.name)  # the topology of an object can't be changed
        try:
            await self._cluster.patch(CAPACITIES, room.name, body, self._namespace)
        except NotFound:
            await self._cluster.create(CAPACITIES, body, self._namespace)

    async def _delete(self, name: str) -> None:
        with contextlib.suppress(NotFound):
            await self._cluster.delete(CAPACITIES, name, self._namespace)

    @property
    def _owner(self) -> Json:
        return {"apiVersion": "v1", "kind": "Node", "name": self._node.name, "uid": self._node.uid}
