"""The daemon of a node, put together from its parts.

What needs no API server comes first: the socket is served, so the kubelet can unmount, before anybody knows which
cluster this is. Then the daemon finds its own Node, and everything that the cluster wants of the node starts with it.
All of it runs in one event loop, and whatever a part waits for, the others go on. When the daemon ends, mounts stay:
pods keep their volumes, and the next daemon reads from the node all that this one knew.
"""

import asyncio
import contextlib
import logging
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import host.command
from contract import names
from contract import volume as contract_volume
from contract.volume import PersistentVolume
from daemon.backends import groupfile
from daemon.backends.classes import of_classes
from daemon.cluster.authority import LiveAuthority
from daemon.cluster.erasurenews import ErasureNews
from daemon.cluster.health import HealthWatch
from daemon.cluster.holdings import Holdings
from daemon.cluster.orphans import Orphans
from daemon.cluster.promises import promises
from daemon.cluster.publish import Publisher
from daemon.cluster.reconcile import Reconciler
from daemon.cluster.refresh import Refresher
from daemon.cluster.thinwatch import ThinWatch
from daemon.kubelet.api import Api
from daemon.kubelet.authorise import Authoriser
from daemon.kubelet.callouts import Home, NodeCallouts
from daemon.kubelet.driver import Driver
from daemon.metrics import Metrics
from daemon.settings import Settings
from daemon.static import readiness
from daemon.static.controller import StaticVolumes, static_volumes
from daemon.storage.backend import Backend
from daemon.storage.deviceclasses import LVM
from daemon.storage.room import Promise
from daemon.storage.volumes import Volumes
from flexdriver import installation
from kube.backoff import Backoff
from kube.client import NODES, PODS, VOLUMES, Cluster, ConfigurationError
from kube.errors import ApiError
from kube.events import Recorder
from kube.informer import Informer
from kube.records import Node, Pod, read_node, read_pod
from service import endpoints, logs
from service.endpoints import Health
from service.environment import SettingsError
from service.lifetime import raise_open_files, until_asked
from service.supervision import Supervisor

log = logging.getLogger(__name__)

COMPONENT = "elastic-local-daemon"

_LAST_WORDS_SECONDS = 10.0
"""How long an ending daemon waits for what it began. Kubernetes gives it thirty."""
_NODE_PERIOD = 60.0
_IDENTITY_SECONDS = 2.0
"""How long the daemon waits for its cluster's identity before it tells everybody that it misses it."""
_THREADS = 64


class NodeChanged(Exception):
    """The Node is another object, or has another hostname, than the one that everything here was made for."""


async def run(chosen: Settings) -> None:
    """Until SIGTERM or SIGINT. Raises SettingsError when the API server's address can't be found."""
    logs.configure(chosen.log_format, chosen.log_level)
    raise_open_files()
    # A system call on a disk that hangs blocks its thread for good: the few that asyncio has by itself are soon gone.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, "disk"))
    try:
        cluster = await Cluster.connect(chosen.kubeconfig, program=COMPONENT)
    except ConfigurationError as error:
        raise SettingsError(f"KUBECONFIG: {error}") from error
    if any(found.kind == LVM for found in chosen.classes.values()):
        groupfile.attach_all(chosen.data_dir)
    async with cluster:
        await until_asked(Daemon(chosen, cluster, backend_of(chosen)).run())
    log.info("ended; mounts stay as they are")


def backend_of(chosen: Settings) -> Backend:
    return of_classes(chosen.classes, chosen.data_dir)


class Daemon:
    def __init__(self, chosen: Settings, cluster: Cluster, backend: Backend) -> None:
        self._settings = chosen
        self._cluster = cluster
        self._backend = backend
        self._metrics = Metrics(
            lambda: self._volumes.inventory, self._known_uids, lambda: self._health_watch.unhealthy, chosen.classes
        )
        self._events = Recorder(cluster, COMPONENT, chosen.node_name)
        self._authority = LiveAuthority(cluster, self._cluster_known)
        self._volumes = Volumes(
            backend,
            chosen.staging_dir,
            self._authority,
            promises=self._promises,
            related=self._related,
            observe=self._observe,
            erase_rate=chosen.erase_rate,
            erasing=ErasureNews(self._metrics, self._events, self._erased),
        )
        self._refresher = Refresher(self._volumes, chosen.classes, self._storage_changed, chosen.refresh_period)
        self._thin_watch = ThinWatch(
            self._volumes,
            {each.own_thin_pool for each in chosen.classes.values() if each.kind == LVM},
            self._room_again,
        )
        self._health_watch = HealthWatch(
            self._volumes, lambda: self._holdings.all() if self._holdings else (), chosen.refresh_period
        )
        self._callouts = NodeCallouts(self._volumes, backend.pool_of, chosen.kubelet_root)
        self._driver = Driver(installation.choose(), chosen.plugin_dir)
        self._supervisor = Supervisor(fatal=(NodeChanged,))
        self._node_problem = "not found yet"
        self._persistent_volumes = Informer[PersistentVolume](
            cluster,
            VOLUMES,
            contract_volume.read,
            label_selector=f"{names.NODE_LABEL}={names.node_label_value(chosen.node_name)}",
        )
        self._pods = Informer[Pod](cluster, PODS, read_pod, field_selector=f"spec.nodeName={chosen.node_name}")
        # What needs to know the Node object, and is there once it is found.
        self._holdings: Holdings | None = None
        self._publisher: Publisher | None = None
        self._reconciler: Reconciler | None = None
        self._orphans: Orphans | None = None
        self._static: StaticVolumes | None = None

    async def run(self) -> None:
        """For ever. Raises an ExceptionGroup with NodeChanged when all has to start over."""
        chosen = self._settings
        host.command.observers.append(self._metrics.command)
        served = endpoints.application(self._health(), self._metrics.registry)
        if chosen.static:
            served.add_routes(readiness.routes(self._static_problem))
        try:
            async with (
                Api(self._callouts, self._metrics.callout, self._driver.heard).listening(chosen.socket),
                endpoints.listening(served, chosen.listen_host, chosen.listen_port),
                asyncio.TaskGroup() as parts,
            ):
                keep = self._supervisor.keep
                parts.create_task(keep("driver", self._driver.run))
                parts.create_task(keep("storage", self._refresher.run))
                parts.create_task(keep("thin pools", self._thin_watch.run))
                parts.create_task(keep("persistentvolumes", self._persistent_volumes.run))
                parts.create_task(keep("pods", self._pods.run))
                parts.create_task(keep("events", self._events.run))
                parts.create_task(keep("cluster", self._authority.run))
                parts.create_task(self._serve_cluster())
        finally:
            host.command.observers.remove(self._metrics.command)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._volumes.close(), _LAST_WORDS_SECONDS)
            await self._events.flush()

    async def _serve_cluster(self) -> None:
        node = await self._find_node()
        self._driver.tell(self._events, node.reference)
        self._refresher.tell(self._events, node.reference)
        self._thin_watch.tell(self._events, node.reference)
        await self._refresher.wait_looked()
        await self._persistent_volumes.wait_synced()
        with contextlib.suppress(TimeoutError):  # without it, what there is is served all the same
            await asyncio.wait_for(self._authority.wait_known(), _IDENTITY_SECONDS)
        self._holdings = holdings = Holdings(self._persistent_volumes, node)
        self._publisher = publisher = Publisher(
            self._cluster,
            self._settings.namespace,
            node,
            self._backend.pool_of,
            lambda: self._volumes.inventory,
            holdings,
            self._volumes.refresh,
        )
        self._reconciler = reconciler = Reconciler(
            self._cluster, holdings, self._volumes, self._backend.pool_of, publisher, self._events
        )
        self._orphans = orphans = Orphans(
            self._authority,
            self._volumes,
            self._persistent_volumes,
            self._events,
            node.reference,
            grace=self._settings.orphan_grace,
            removed=reconciler.retry_preparations,
        )
        self._persistent_volumes.subscribe(lambda key, *_: reconciler.look_at(key))
        self._persistent_volumes.subscribe(lambda *_: publisher.trigger())
        self._persistent_volumes.on_return(reconciler.hurry)
        self._persistent_volumes.on_return(orphans.queue.hurry)
        self._persistent_volumes.on_return(self._events.hurry)
        authoriser = Authoriser(self._cluster, self._pods, node)
        self._callouts.settle(Home(self._cluster, node, authoriser, holdings, reconciler.look_at, self._events))
        log.info("serving node %s (hostname %s)", node.name, node.hostname)
        async with asyncio.TaskGroup() as parts:
            keep = self._supervisor.keep
            parts.create_task(keep("storageclasses", publisher.classes.run))
            parts.create_task(keep("csistoragecapacities", publisher.published.run))
            parts.create_task(keep("capacity", publisher.run))
            parts.create_task(keep("volumes", reconciler.run))
            parts.create_task(keep("orphans", orphans.run))
            parts.create_task(keep("health", lambda: self._health_watch.run(self._events, node.reference)))
            parts.create_task(keep("node", lambda: self._watch_node(node)))
            if chosen := self._settings.static:
                self._static = static_volumes(
                    self._cluster, node, self._events, self._metrics.registry, chosen, self._settings.own_folders
                )
                parts.create_task(keep("static volumes", self._static.run))

    async def _find_node(self) -> Node:
        """Our Node, as soon as the API server tells of it and it can have volumes."""
        backoff, failures = Backoff(first=0.5, factor=2, limit=3), 0
        while True:
            try:
                node = read_node(await self._cluster.get(NODES, self._settings.node_name))
                if node.hostname:
                    self._node_problem = ""
                    return node
                self._node_problem = (
                    f"node {node.name} has no label {names.HOSTNAME_LABEL}, so no volume can be tied to it: label it"
                )
            except (ApiError, OSError) as error:
                self._node_problem = f"the API server does not tell of node {self._settings.node_name}: {error}"
            failures += 1
            log.warning("%s", self._node_problem)
            await asyncio.sleep(backoff.delay(failures))

    async def _watch_node(self, known: Node) -> None:
        """A Node that was deleted and registered again is another owner for what we publish, and its label may have
        changed: starting over is the simplest way to be right, and costs nobody a mount."""
        while True:
            await asyncio.sleep(_NODE_PERIOD)
            with contextlib.suppress(ApiError):
                node = read_node(await self._cluster.get(NODES, known.name))
                if (node.uid, node.hostname) != (known.uid, known.hostname):
                    raise NodeChanged(f"node {known.name} was registered anew: starting over")

    def _promises(self) -> Iterable[Promise]:
        return promises(self._holdings.all(), self._volumes.inventory) if self._holdings else ()

    def _related(self, pv: str, original: str) -> bool:
        return self._holdings is not None and self._holdings.related(pv, original)

    def _known_uids(self) -> set[str] | None:
        return {pv.uid for pv in self._holdings.all()} if self._holdings else None

    def _observe(self, kind: str, outcome: str, seconds: float) -> None:
        self._metrics.operation(kind, outcome, seconds)
        if self._publisher:
            self._publisher.trigger()

    def _erased(self, name: str) -> None:
        """Who wanted the volume removed goes on with it."""
        if self._reconciler:
            self._reconciler.look_at(name)
        if self._orphans:
            self._orphans.look_at(name)

    def _cluster_known(self) -> None:
        """What is on the node may be another cluster's, and what waited can be made."""
        self._refresher.trigger()
        self._room_again()
        if self._orphans:
            self._orphans.look()

    def _storage_changed(self, came_to_be_usable: bool) -> None:
        self._health_watch.trigger()
        self._thin_watch.trigger()
        if self._orphans:
            self._orphans.look()
        if self._publisher:
            self._publisher.trigger()
        if came_to_be_usable:
            self._room_again()

    def _room_again(self) -> None:
        if self._publisher:
            self._publisher.trigger()
        if self._reconciler:
            self._reconciler.retry_preparations()

    def _health(self) -> Health:
        return Health(
            {
                "socket": self._socket_problem,
                "driver": lambda: self._driver.problem,
                "storage": lambda: self._refresher.problem,
                "node": lambda: self._node_problem,
                "cluster": lambda: self._authority.problem,
                "informers": self._informer_problem,
                "parts": lambda: self._supervisor.problem,
                "capacity": lambda: self._publisher.problem if self._publisher else "not yet published",
                **({"static-volumes": self._static_problem} if self._settings.static else {}),
            },
            notes={"storage": self._storage_notes},
        )

    def _storage_notes(self) -> str:
        """What a node that serves on has to say."""
        lacking = (f"no room for device class {name}: {words}" for name, words in self._refresher.lacking.items())
        return "; ".join((*lacking, *self._refresher.notices))

    def _static_problem(self) -> str:
        return self._static.problem if self._static else self._node_problem or "not begun yet"

    def _socket_problem(self) -> str:
        path = self._settings.socket
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(path.stat().st_mode):
                return ""
        return f"{path} is gone: restart this pod, and see what removes it"

    def _informer_problem(self) -> str:
        synced = {"persistentvolumes": self._persistent_volumes.synced, "pods": self._pods.synced}
        if self._publisher:
            synced["storageclasses"] = self._publisher.classes.synced
            synced["csistoragecapacities"] = self._publisher.published.synced
        waiting = [name for name, done in synced.items() if not done]
        return f"the API server has not listed {', '.join(waiting)} yet: see the log" if waiting else ""
