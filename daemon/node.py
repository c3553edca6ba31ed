"""The daemon of a node, put together from its parts; this is its first half, which needs no API server.

The socket is served, so the kubelet can unmount, before anybody knows which cluster this is. Then the daemon finds its
own Node, and with it begins the second half (daemon.nodeservices). All of it runs in one event loop, and whatever a
part waits for, the others go on. When the daemon ends, mounts stay: pods keep their volumes, and the next daemon reads
from the node all that this one knew.
"""

import asyncio
import contextlib
import logging
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from itertools import islice
from pathlib import Path

import host.command
from contract import names
from contract import volume as contract_volume
from contract.volume import PersistentVolume
from daemon.backends.deviceclassbackend import backend_of_classes
from daemon.cluster.capacity import reservations
from daemon.cluster.events import ErasureEvents, NodeEvents
from daemon.cluster.ownerlookup import ApiOwnerLookup
from daemon.cluster.startuptaint import StartupTaint
from daemon.cluster.storagemonitor import StorageMonitor
from daemon.cluster.thinpoolmonitor import ThinPoolMonitor
from daemon.csi import server
from daemon.csi.identity import IdentityService
from daemon.csi.node import NodeService
from daemon.csi.nodestate import NodeStatus
from daemon.csi.registration import RegistrationService
from daemon.flexvolume.api import Api
from daemon.flexvolume.callouts import NodeCallouts
from daemon.flexvolume.driver import DriverInstaller
from daemon.kubelet.mounter import Mounter
from daemon.metrics import Metrics, Sources
from daemon.nodeservices import NodeChanged, NodeServices, NodeUnknown, Services
from daemon.settings import Settings
from daemon.static import readiness
from daemon.storage.backend import Backend
from daemon.storage.deviceclasses import LVM
from daemon.storage.freespace import Reservation
from daemon.storage.volumes import Volumes
from flexdriver import installation
from kube.backoff import Backoff
from kube.client import Cluster
from kube.errors import ApiError
from kube.events import Recorder
from kube.informer import Informer
from kube.kubeconfig import ConfigurationError
from kube.records import Node, Pod, read_node, read_pod
from kube.resources import NODES, PODS, VOLUMES
from service import endpoints, logs
from service.endpoints import HealthChecks
from service.environment import SettingsError
from service.lifecycle import Supervisor, raise_open_files, run_until_signal

log = logging.getLogger(__name__)

COMPONENT = "elastic-local-daemon"

_SHUTDOWN_SECONDS = 10.0
"""How long an ending daemon waits for what it began. Kubernetes gives it thirty."""
_IDENTITY_SECONDS = 2.0
"""How long the daemon waits for its cluster's identity before it reports that it misses it."""
_THREADS = 64
_HUNG_TOLD = 5
"""Volumes without an answer that /readyz names. Each has its event."""


async def run(chosen: Settings) -> None:
    """Until SIGTERM or SIGINT. Raises SettingsError when the API server's address can't be found."""
    logs.configure(chosen.log_format, chosen.log_level)
    raise_open_files()
    # For what asks no volume's disk, which host.diskthreads does: /proc, /sys, and the node's own.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, "node"))
    try:
        cluster = await Cluster.connect(chosen.kubeconfig, program=COMPONENT)
    except ConfigurationError as error:
        raise SettingsError(f"KUBECONFIG: {error}") from error
    async with cluster:
        backend = backend_of_classes(chosen.classes, chosen.data_dir)
        await run_until_signal(Daemon(chosen, cluster, backend).run())
    log.info("ended; mounts stay as they are")


class Daemon:
    def __init__(self, chosen: Settings, cluster: Cluster, backend: Backend) -> None:
        self._settings = chosen
        self._cluster = cluster
        self._backend = backend
        self._node_problem = f"the API server has not returned node {chosen.node_name} yet"
        self._node_unknown = NodeUnknown(self._node_problem)
        self._services: Services = self._node_unknown
        self._metrics = Metrics(
            Sources(
                inventory=lambda: self._volumes.inventory,
                persistent_volumes=self._known_uids,
                unhealthy=lambda: self._services.unhealthy,
                classes=chosen.classes,
            )
        )
        self._events = Recorder(cluster, COMPONENT, chosen.node_name)
        self._node_events = NodeEvents(self._events)
        self._owner_lookup = ApiOwnerLookup(cluster, self._cluster_known)
        self._volumes = Volumes(
            backend,
            chosen.staging_dir,
            self._owner_lookup,
            reservations=self._reservations,
            may_clone=lambda pv, source: self._services.may_clone(pv, source),
            observe=self._operation_ended,
            erase_rate=chosen.erase_rate,
            erasing=ErasureEvents(self._metrics, self._events, lambda name: self._services.erasure_ended(name)),
        )
        self._storage_monitor = StorageMonitor(
            self._volumes, chosen.classes, self._node_events, self._storage_changed, chosen.refresh_period
        )
        self._thin_pool_monitor = ThinPoolMonitor(
            self._volumes,
            {each.own_thin_pool for each in chosen.classes.values() if each.kind == LVM},
            self._node_events,
            lambda: self._services.space_freed(),
        )
        self._mounter = Mounter(self._volumes, chosen.kubelet_root, lambda: self._node_unknown.waits_for)
        self._callouts = NodeCallouts(self._mounter)
        self._driver = DriverInstaller(installation.choose(), chosen.plugin_dirs, self._node_events)
        self._registration = RegistrationService(str(server.driver_socket(chosen.kubelet_root)), self._node_events)
        self._supervisor = Supervisor(fatal=(NodeChanged,))
        self._persistent_volumes = Informer[PersistentVolume](
            cluster,
            VOLUMES,
            contract_volume.read,
            label_selector=f"{names.NODE_LABEL}={names.node_label_value(chosen.node_name)}",
        )
        self._pods = Informer[Pod](cluster, PODS, read_pod, field_selector=f"spec.nodeName={chosen.node_name}")

    async def run(self) -> None:
        """For ever. Raises an ExceptionGroup with NodeChanged when all has to start over."""
        chosen = self._settings
        host.command.observers.append(self._metrics.command)
        served = endpoints.application(self._health(), self._metrics.registry)
        if chosen.static:
            served.add_routes(readiness.routes(lambda: self._services.static_problem()))
        parts = {
            **({"driver": self._driver.run} if chosen.flex_volume else {}),
            "storage": self._storage_monitor.run,
            "thin pools": self._thin_pool_monitor.run,
            "persistentvolumes": self._persistent_volumes.run,
            "pods": self._pods.run,
            **({"csi": self._serve_csi, "csi registration": self._registration.watch} if chosen.csi else {}),
            "events": self._events.run,
            "cluster": self._owner_lookup.run,
            **({"startup taint": self._startup_taint(chosen.startup_taint).run} if chosen.startup_taint else {}),
        }
        try:
            async with (
                Api(self._callouts, self._metrics.callout, self._driver.called).listening(chosen.socket),
                endpoints.listening(served, chosen.listen_host, chosen.listen_port),
                asyncio.TaskGroup() as tasks,
            ):
                for name, part in parts.items():
                    tasks.create_task(self._supervisor.keep(name, part))
                tasks.create_task(self._serve_cluster())
        finally:
            host.command.observers.remove(self._metrics.command)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._volumes.close(), _SHUTDOWN_SECONDS)
            await self._events.flush()

    def _startup_taint(self, key: str) -> StartupTaint:
        """It goes when the readiness checks pass and the kubelet has registered the driver, for which these leave it
        time."""
        health = self._health()

        def problem() -> str:
            if self._settings.csi and not self._registration.registered:
                return "the kubelet has not registered the CSI driver yet"
            return next(filter(None, health.problems().values()), "")

        return StartupTaint(self._cluster, self._settings.node_name, key, problem, self._node_events)

    async def _serve_csi(self) -> None:
        """For ever. Raises OSError when a socket can't be had: then it is begun anew, and all else is served."""
        status = NodeStatus(self._mounter, self._volumes, lambda: self._services.unhealthy)
        identity = IdentityService(metadata.version("elastic-local"), lambda: not self._storage_monitor.problem)
        service = NodeService(self._mounter, status, self._metrics.csi)
        try:
            async with server.listening(self._settings.kubelet_root, identity, service, self._registration):
                await asyncio.Event().wait()
        except OSError as error:
            self._registration.not_served(error)
            raise

    async def _serve_cluster(self) -> None:
        """Finds the Node, and runs the second half for it."""
        node = await self._find_node()
        self._node_events.set_node(node.reference)
        self._node_unknown.waits_for = "the storage of this node is still being looked at"
        await self._storage_monitor.wait_checked()
        self._node_unknown.waits_for = "the API server has not listed the PersistentVolumes of this node yet"
        await self._persistent_volumes.wait_synced()
        with contextlib.suppress(TimeoutError):  # without it, what there is is served all the same
            await asyncio.wait_for(self._owner_lookup.wait_known(), _IDENTITY_SECONDS)
        services = NodeServices(
            self._settings,
            self._cluster,
            node,
            self._backend,
            self._volumes,
            self._owner_lookup,
            self._persistent_volumes,
            self._pods,
            self._events,
            self._node_events,
            self._metrics.registry,
        )
        self._services = services
        self._mounter.set_context(services.context)
        await self._mounter.lock_unstaged()
        log.info("serving node %s (hostname %s)", node.name, node.hostname)
        await services.run(self._supervisor)

    async def _find_node(self) -> Node:
        """Our Node, as soon as the API server has it and it can have volumes."""
        backoff, failures = Backoff(first=0.5, factor=2, limit=3), 0
        while True:
            try:
                node = read_node(await self._cluster.get(NODES, self._settings.node_name))
                if node.hostname:
                    self._node_problem = ""
                    return node
                self._set_node_problem(
                    f"node {node.name} has no label {names.HOSTNAME_LABEL}, so no volume can be assigned to it: "
                    "label it"
                )
            except (ApiError, OSError) as error:
                self._set_node_problem(f"the API server does not return node {self._settings.node_name}: {error}")
            failures += 1
            log.warning("%s", self._node_problem)
            await asyncio.sleep(backoff.delay(failures))

    def _set_node_problem(self, problem: str) -> None:
        self._node_problem = self._node_unknown.waits_for = problem

    def _reservations(self) -> Iterable[Reservation]:
        return reservations(self._services.persistent_volumes() or (), self._volumes.inventory)

    def _known_uids(self) -> set[str] | None:
        volumes = self._services.persistent_volumes()
        return None if volumes is None else {*(pv.uid for pv in volumes), *self._services.snapshot_uids()}

    def _operation_ended(self, kind: str, outcome: str, seconds: float) -> None:
        self._metrics.operation(kind, outcome, seconds)
        self._services.operation_ended()

    def _cluster_known(self) -> None:
        """What is on the node may be another cluster's, and what waited can be made."""
        self._storage_monitor.trigger()
        self._services.space_freed()
        self._services.storage_changed()

    def _storage_changed(self, came_to_be_usable: bool) -> None:
        self._thin_pool_monitor.trigger()
        self._services.storage_changed()
        if came_to_be_usable:
            self._services.space_freed()

    def _health(self) -> HealthChecks:
        return HealthChecks(
            {
                "socket": self._socket_problem,
                **({"driver": lambda: self._driver.problem} if self._settings.flex_volume else {}),
                **({"csi": lambda: self._registration.problem} if self._settings.csi else {}),
                "storage": lambda: self._storage_monitor.problem,
                "node": lambda: self._node_problem,
                "cluster": lambda: self._owner_lookup.problem,
                "informers": self._informer_problem,
                "parts": lambda: self._supervisor.problem,
                "capacity": lambda: self._services.capacity_problem(),
                **({"static-volumes": lambda: self._services.static_problem()} if self._settings.static else {}),
            },
            notes={"storage": self._storage_notes},
        )

    def _storage_notes(self) -> str:
        """What a node that serves on has to say."""
        lacking = (f"no room for device class {name}: {why}" for name, why in self._storage_monitor.lacking.items())
        hung = islice(dict.fromkeys(self._volumes.unresponsive().values()), _HUNG_TOLD)
        return "; ".join((*lacking, *self._storage_monitor.notices, *hung))

    def _socket_problem(self) -> str:
        root = self._settings.kubelet_root
        csi = (server.driver_socket(root), server.registration_socket(root)) if self._settings.csi else ()
        gone = next((path for path in (self._settings.socket, *csi) if not _is_socket(path)), None)
        return f"{gone} is gone: restart this pod, and see what removes it" if gone else ""

    def _informer_problem(self) -> str:
        synced = {
            "persistentvolumes": self._persistent_volumes.synced,
            "pods": self._pods.synced,
            **self._services.informers(),
        }
        waiting = [name for name, done in synced.items() if not done]
        return f"the API server has not listed {', '.join(waiting)} yet: see the log" if waiting else ""


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False
