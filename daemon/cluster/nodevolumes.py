"""The PersistentVolumes of this node: which are assigned to it, how one is assigned and let go, and what each asks for.

The informer finds them by label. The affinity has the last word: an object whose label names this node and whose
affinity names another is somebody's mistake, and nothing here touches it. A PersistentVolume that this daemon assigned
to its node a moment ago counts at once; until the informer shows it too, two mounts could otherwise reserve the same
space.

A PersistentVolume is assigned at the first mount if nobody chose a node. Label, pool, finalizer and affinity are set in
one patch, so there is no half of it, and the patch names the version that it was decided for: of two nodes that mount
at the same time the API server lets one win, because an affinity can be set once only. The finalizer is what keeps the
object until this node has given the space back. Other people's finalizers are kept in both directions.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection

from contract import names
from contract import volume as contract_volume
from contract.capacity import footprint
from contract.parameters import ParameterError, VolumeParameters
from contract.volume import DELETE, RETAIN, NodeAssignment, PersistentVolume
from daemon.cluster.capacity import available_capacity
from daemon.errors import NoSpace, PoolMissing, Refused, Undecided, VolumeError
from daemon.storage.inventory import Inventory
from daemon.storage.record import VolumeSpec
from kube.client import Cluster
from kube.errors import ApiError, Conflict, Invalid, Json, NotFound
from kube.informer import Informer
from kube.records import Node
from kube.resources import VOLUMES

log = logging.getLogger(__name__)

_TRIES = 5
"""Others write to a young PersistentVolume too (the binder, above all); each try reads it again."""


def is_assigned(volume: PersistentVolume, node: Node) -> bool:
    """To this node, in every way: label, affinity and finalizer came together, so less than all of them is the work of
    somebody else."""
    return (
        volume.node_label == names.node_label_value(node.name)
        and volume.hostnames == (node.hostname,)
        and names.FINALIZER in volume.finalizers
    )


def other_node(volume: PersistentVolume, node: Node) -> str:
    """The node that a volume lives on when it isn't this one, else empty."""
    if volume.hostnames and volume.hostnames != (node.hostname,):
        return ", ".join(volume.hostnames)
    return volume.node_label if volume.node_label not in ("", names.node_label_value(node.name)) else ""


class NodeVolumes:
    def __init__(self, informer: Informer[PersistentVolume], node: Node) -> None:
        self._informer = informer
        self._node = node
        self._just_assigned: dict[str, PersistentVolume] = {}
        informer.subscribe(self._seen)

    def get(self, name: str) -> PersistentVolume | None:
        """As the informer shows it: what is to be done is decided on nothing else."""
        volume = self._informer.get(name)
        return volume if volume and is_assigned(volume, self._node) else None

    def all(self) -> list[PersistentVolume]:
        return [*(pv for pv in self._informer.values() if is_assigned(pv, self._node)), *self._just_assigned.values()]

    def may_clone(self, one: str, other: str) -> bool:
        """Whether two PersistentVolumes of this node are for claims of one namespace: whoever may create a
        PersistentVolume can name any other as what it is to be a copy of."""
        first, second = self.get(one), self.get(other)
        return bool(
            first and second and first.claim and second.claim and first.claim.namespace == second.claim.namespace
        )

    def assigned(self, volume: PersistentVolume) -> None:
        """Counts a PersistentVolume that was assigned to this node just now. Our finalizer keeps it until the informer
        showed it."""
        if self._informer.get(volume.name) is None:
            self._just_assigned[volume.name] = volume

    def _seen(self, key: str, _: PersistentVolume | None, new: PersistentVolume | None) -> None:
        self._just_assigned.pop(key, None)


class NodeAssigner:
    """Assigns PersistentVolumes that have no node yet to this one, if they fit. `pool_of` is that of its backend."""

    def __init__(
        self,
        cluster: Cluster,
        node: Node,
        node_volumes: NodeVolumes,
        inventory: Callable[[], Inventory],
        pool_of: Callable[[VolumeParameters], str],
    ) -> None:
        self._cluster = cluster
        self._node = node
        self._node_volumes = node_volumes
        self._inventory = inventory
        self._pool_of = pool_of
        self._assigning = asyncio.Lock()
        """Two must not both be assigned the space of one."""

    async def assign(self, volume: PersistentVolume) -> PersistentVolume:
        """The PersistentVolume, assigned to this node. Raises Refused, PoolMissing, NoSpace, and Undecided when the API
        server can't be asked."""
        if is_assigned(volume, self._node):
            return volume
        async with self._assigning:
            try:
                pool = self._pool_with_space(volume, await self._assigned())
                volume = await assign(self._cluster, volume, self._node, pool)
            except ApiError as error:
                raise Undecided(
                    f"volume {volume.name} can't be assigned to node {self._node.name} now: {error}"
                ) from error
            self._node_volumes.assigned(volume)
        log.info("assigned to node %s", self._node.name)
        return volume

    async def _assigned(self) -> list[PersistentVolume]:
        """All PersistentVolumes of this node as the API server has them now: the cache may lag behind what the
        provisioner placed here a moment ago, and an affinity that was set once can't be taken back."""
        selector = f"{names.NODE_LABEL}={names.node_label_value(self._node.name)}"
        volumes = map(contract_volume.read, await self._cluster.list(VOLUMES, label_selector=selector))
        return [volume for volume in volumes if volume is not None and is_assigned(volume, self._node)]

    def _pool_with_space(self, volume: PersistentVolume, others: Collection[PersistentVolume]) -> str:
        """The pool that the volume would take its space from, besides `others`. Raises PoolMissing and NoSpace."""
        parameters = checked_parameters(volume)
        inventory = self._inventory()
        name = self._pool_of(parameters)
        pool = inventory.pool(name)
        if pool is None:
            raise PoolMissing(
                f"volume {volume.name} can't live on node {self._node.name}, which has no {name}: run the pod "
                "elsewhere or have the node's administrator make it (`elastic-local vg create`)"
            )
        needed = footprint(volume.target_size, parameters, pool.granularity)
        room = available_capacity(pool, parameters, inventory.volumes, others)
        if inventory.volume(volume.name) is None and needed > room.available:
            raise NoSpace(volume.name, name, needed, room.available)
        return name


def assignment_patch(volume: PersistentVolume, assignment: NodeAssignment) -> Json:
    body = contract_volume.node_assignment_patch(assignment)
    body["metadata"] |= {
        "uid": volume.uid,
        "resourceVersion": volume.resource_version,
        "finalizers": list(dict.fromkeys((*volume.finalizers, names.FINALIZER))),
    }
    return body


async def assign(cluster: Cluster, volume: PersistentVolume, node: Node, pool: str) -> PersistentVolume:
    """The PersistentVolume, assigned to this node. Raises Refused when it lives, or just came to live, elsewhere."""
    current: PersistentVolume | None = volume
    for _ in range(_TRIES):
        if current is None or current.uid != volume.uid or (current.deleting and not is_assigned(current, node)):
            raise Refused(f"volume {volume.name} is being deleted")
        if other := other_node(current, node):
            raise Refused(f"volume {volume.name} lives on node {other} and can't be mounted on {node.name}")
        if is_assigned(current, node):
            return current
        try:
            patch = assignment_patch(current, NodeAssignment(node.name, node.hostname, pool))
            current = contract_volume.read(await cluster.patch(VOLUMES, volume.name, patch))
        except Conflict:
            current = await _read(cluster, volume.name)
        except Invalid as error:
            raise Refused(
                f"volume {volume.name} can't be assigned to node {node.name}, its node affinity is set already: {error}"
            ) from error
        except NotFound:
            current = None
    raise Refused(
        f"volume {volume.name} keeps changing while it is being assigned to node {node.name}: it is tried again"
    )


def is_recorded(volume: PersistentVolume, size: int) -> bool:
    """Whether the PersistentVolume says that its volume was made and has that many bytes. One that never grew was made
    with what it was given, whether or not it says so."""
    return volume.made and size <= (volume.actual or volume.created_size or volume.size)


async def record_made(cluster: Cluster, volume: PersistentVolume, size: int) -> None:
    """Says on the PersistentVolume that its volume is ready, and how many bytes it has. To be done before anybody can
    write to it, and again when it grew."""
    if not is_recorded(volume, size):
        with contextlib.suppress(NotFound):
            await cluster.patch(VOLUMES, volume.name, contract_volume.made_patch(volume, size))


async def remove_finalizer(cluster: Cluster, volume: PersistentVolume) -> None:
    """Takes our finalizer off. An object that is gone already is no error. Raises Conflict when it changed since it was
    read: what is to be done may have changed too (its policy, for one), so the caller decides anew."""
    with contextlib.suppress(NotFound):
        await cluster.patch(VOLUMES, volume.name, contract_volume.finalizer_removal_patch(volume))


async def _read(cluster: Cluster, name: str) -> PersistentVolume | None:
    try:
        return contract_volume.read(await cluster.get(VOLUMES, name))
    except NotFound:
        return None


class WrongOptions(VolumeError):
    """flexVolume options that no daemon serves, whoever wrote them."""


def volume_spec(pv: PersistentVolume) -> VolumeSpec:
    """The volume that it asks for. Raises WrongOptions."""
    return VolumeSpec(pv.name, pv.uid, pv.target_size, reclaim_policy(pv), checked_parameters(pv), pv.made, pv.original)


def checked_parameters(pv: PersistentVolume) -> VolumeParameters:
    """Raises WrongOptions."""
    try:
        return pv.parameters()
    except ParameterError as error:
        raise WrongOptions(
            f"the options of PersistentVolume {pv.name} can't be served: {error}. They can't be changed any more: "
            "correct the StorageClass and make a new claim"
        ) from error


def reclaim_policy(pv: PersistentVolume) -> str:
    """Anything but Delete keeps the data."""
    return DELETE if pv.reclaim_policy == DELETE else RETAIN
