"""The daemon's second half: what the cluster wants of this node, from the moment when the Node is known.

The first half (daemon.node) goes on meanwhile, and calls this one when something happens to the storage. Until the Node
is known `NodeUnknown` stands here: nothing is reserved for anybody, and what happens is nobody's business yet.
"""

import asyncio
import contextlib
import logging
from collections.abc import Collection, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry

from contract.snapshot import is_snapshot
from contract.volume import PersistentVolume
from daemon.cluster.capacitypublisher import CapacityPublisher
from daemon.cluster.events import NodeEvents
from daemon.cluster.health import VolumeHealthMonitor
from daemon.cluster.nodevolumes import NodeAssigner, NodeVolumes
from daemon.cluster.orphancollector import OrphanCollector
from daemon.cluster.ownerlookup import ApiOwnerLookup
from daemon.cluster.reconcile import Reconciler
from daemon.cluster.snapshotcontroller import SnapshotController
from daemon.kubelet.authorization import Authorizer
from daemon.kubelet.iolimits import IoLimitController
from daemon.kubelet.mounter import NodeContext
from daemon.settings import Settings
from daemon.static.controller import StaticVolumeController, static_volume_controller
from daemon.storage.backend import Backend
from daemon.storage.deviceclasses import BINDMOUNT
from daemon.storage.inventory import VolumeHealth
from daemon.storage.volumes import Volumes
from kube.client import Cluster
from kube.errors import ApiError
from kube.events import Recorder
from kube.informer import Informer
from kube.records import Node, Pod, read_node
from kube.resources import NODES
from service.lifecycle import PeriodicLoop, Supervisor

log = logging.getLogger(__name__)

_NODE_PERIOD = 60.0
"""Seconds between two questions whether the Node is still the same."""


class NodeChanged(Exception):
    """The Node is another object, or has another hostname, than the one that everything here was made for."""


class Services(Protocol):
    """What the first half needs of the second."""

    @property
    def unhealthy(self) -> Mapping[str, VolumeHealth]:
        """The volumes that are not well, by name."""
        ...

    def persistent_volumes(self) -> Collection[PersistentVolume] | None:
        """Those that are assigned to this node. None: not known yet."""
        ...

    def may_clone(self, pv: str, source: str) -> bool:
        """Whether one volume may begin as a copy of another one."""
        ...

    def snapshot_uids(self) -> Collection[str]:
        """Of the VolumeSnapshotContents of this node."""
        ...

    def operation_ended(self) -> None:
        """An operation on a volume: the free space may have changed."""
        ...

    def erasure_ended(self, name: str) -> None:
        """Of the volume of that name: who wanted it removed goes on with it."""
        ...

    def storage_changed(self) -> None:
        """A look at the storage found something else than the one before."""
        ...

    def space_freed(self) -> None:
        """What failed for lack of space, of storage, or of the cluster's identity may succeed now."""
        ...

    def capacity_problem(self) -> str:
        """For readiness: why the node's capacity is not published. Empty: it is."""
        ...

    def static_problem(self) -> str:
        """For readiness: what is wrong with static volumes. Empty: nothing."""
        ...

    def informers(self) -> Mapping[str, bool]:
        """For readiness: whether each of our informers has its first list."""
        ...


class NodeUnknown:
    """See Services. `waits_for` says what the start of the daemon waits for, or what is wrong with that."""

    unhealthy: Mapping[str, VolumeHealth] = {}

    def __init__(self, waits_for: str) -> None:
        self.waits_for = waits_for

    def persistent_volumes(self) -> None:
        return None

    def may_clone(self, pv: str, source: str) -> bool:
        return False

    def snapshot_uids(self) -> Collection[str]:
        return ()

    def operation_ended(self) -> None:
        pass

    def erasure_ended(self, name: str) -> None:
        pass

    def storage_changed(self) -> None:
        pass

    def space_freed(self) -> None:
        pass

    def capacity_problem(self) -> str:
        return "not yet published"

    def static_problem(self) -> str:
        return self.waits_for

    def informers(self) -> Mapping[str, bool]:
        return {}


class NodeServices:
    """See Services. `pods` and `persistent_volumes` are the informers of the first half, which runs them."""

    def __init__(
        self,
        chosen: Settings,
        cluster: Cluster,
        node: Node,
        backend: Backend,
        volumes: Volumes,
        owner_lookup: ApiOwnerLookup,
        persistent_volumes: Informer[PersistentVolume],
        pods: Informer[Pod],
        events: Recorder,
        node_events: NodeEvents,
        registry: CollectorRegistry,
    ) -> None:
        self._cluster = cluster
        self._node = node
        self._node_volumes = node_volumes = NodeVolumes(persistent_volumes, node)
        self._publisher = publisher = CapacityPublisher(
            cluster,
            chosen.namespace,
            node,
            backend.pool_of,
            lambda: volumes.inventory,
            node_volumes,
            volumes.refresh,
            {each.pool for each in chosen.classes.values() if each.kind == BINDMOUNT},
        )
        self._reconciler = reconciler = Reconciler(cluster, node_volumes, volumes, backend.pool_of, publisher, events)
        self._snapshots = snapshots = SnapshotController(
            cluster, node, node_volumes, volumes, owner_lookup, backend.pool_of, events
        )
        self._orphans = orphans = OrphanCollector(
            owner_lookup,
            volumes,
            persistent_volumes,
            events,
            node.reference,
            grace=chosen.orphan_grace,
            removed=reconciler.retry_preparations,
            has_content=snapshots.has_content,
        )
        self._health = VolumeHealthMonitor(volumes, node_volumes.all, events, node_events, chosen.refresh_period)
        self._io_limits = io_limits = IoLimitController(node_volumes, pods, volumes, events)
        self._static: StaticVolumeController | None = (
            static_volume_controller(cluster, node, events, registry, chosen.static, chosen.reserved_folders)
            if chosen.static
            else None
        )
        persistent_volumes.subscribe(reconciler.volume_changed)
        persistent_volumes.subscribe(lambda key, *_: io_limits.enqueue(key))
        persistent_volumes.subscribe(lambda *_: publisher.trigger())
        persistent_volumes.on_return(reconciler.hurry)
        persistent_volumes.on_return(orphans.queue.hurry)
        persistent_volumes.on_return(events.hurry)
        self.context = NodeContext(
            cluster,
            node,
            Authorizer(cluster, pods, node, node_volumes),
            NodeAssigner(cluster, node, node_volumes, lambda: volumes.inventory, backend.pool_of),
            self.users_changed,
            events,
            io_limits,
        )
        """What the kubelet's callouts need of it."""

    async def run(self, supervisor: Supervisor) -> None:
        """For ever. Raises an ExceptionGroup with NodeChanged when all has to start over."""
        parts = {
            "storageclasses": self._publisher.classes.run,
            "csistoragecapacities": self._publisher.published.run,
            "capacity": self._publisher.run,
            "volumes": self._reconciler.run,
            "orphans": self._orphans.run,
            "snapshots": self._snapshots.run,
            "health": self._health.run,
            "I/O limits": self._io_limits.run,
            "node": PeriodicLoop(self._check_node, lambda: _NODE_PERIOD).run,
            **({"static volumes": self._static.run} if self._static else {}),
        }
        async with asyncio.TaskGroup() as tasks:
            for name, part in parts.items():
                tasks.create_task(supervisor.keep(name, part))

    async def _check_node(self) -> None:
        """A Node that was deleted and registered again is another owner for what we publish, and its label may have
        changed: starting over is the simplest way to be right, and costs nobody a mount. Raises NodeChanged."""
        with contextlib.suppress(ApiError):
            present = read_node(await self._cluster.get(NODES, self._node.name))
            if (present.uid, present.hostname) != (self._node.uid, self._node.hostname):
                raise NodeChanged(f"node {self._node.name} was registered anew: starting over")

    @property
    def unhealthy(self) -> Mapping[str, VolumeHealth]:
        return self._health.unhealthy

    def persistent_volumes(self) -> Collection[PersistentVolume]:
        return self._node_volumes.all()

    def may_clone(self, pv: str, source: str) -> bool:
        if is_snapshot(pv) or is_snapshot(source):
            return self._snapshots.may_clone(pv, source)
        return self._node_volumes.may_clone(pv, source)

    def snapshot_uids(self) -> Collection[str]:
        return self._snapshots.uids()

    def operation_ended(self) -> None:
        self._publisher.trigger()

    def erasure_ended(self, name: str) -> None:
        self._reconciler.enqueue(name)
        self._snapshots.enqueue(name)
        self._orphans.enqueue(name)

    def users_changed(self, name: str) -> None:
        """A pod has the volume of that name, or no longer. It may be waited for, by copies of it too."""
        self._reconciler.enqueue(name)
        self._snapshots.enqueue_of(name)
        for pv in self._node_volumes.all():
            if pv.original and pv.original.pv == name and not pv.made:
                self._reconciler.enqueue(pv.name)

    def storage_changed(self) -> None:
        self._health.trigger()
        self._orphans.enqueue_new()
        self._publisher.trigger()

    def space_freed(self) -> None:
        self._publisher.trigger()
        self._reconciler.retry_preparations()

    def capacity_problem(self) -> str:
        return self._publisher.problem

    def static_problem(self) -> str:
        return self._static.problem if self._static else ""

    def informers(self) -> Mapping[str, bool]:
        return {
            "storageclasses": self._publisher.classes.synced,
            "csistoragecapacities": self._publisher.published.synced,
        }
