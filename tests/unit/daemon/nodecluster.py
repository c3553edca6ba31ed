"""The daemon's dealings with the API server, without mounts: the sandbox's API in this process, a node whose volumes
are plain folders, and everything in daemon/ between the two."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from contract import names
from contract import volume as contract_volume
from contract.volume import CSI, FLEX_VOLUME, NodeAssignment, PersistentVolume
from daemon.backends.folder import FolderBackend
from daemon.cluster.capacitypublisher import CapacityPublisher
from daemon.cluster.nodevolumes import NodeVolumes
from daemon.cluster.ownerlookup import ApiOwnerLookup
from daemon.cluster.reconcile import Reconciler
from daemon.errors import VolumeError
from daemon.kubelet.podfolder import PodFolder
from daemon.storage.backend import Backend
from daemon.storage.mounting import MountResult
from daemon.storage.record import VolumeSpec
from daemon.storage.volumes import Volumes
from kube.client import Cluster
from kube.errors import NotFound
from kube.events import Recorder
from kube.informer import Informer
from kube.records import Node, read_node
from kube.resources import CLASSES, EVENTS, NODES, VOLUMES
from tests.sandbox.apiserver import builtin
from tests.sandbox.apiserver.journal import Journal
from tests.sandbox.apiserver.registry import Registry
from tests.sandbox.apiserver.server import application
from tests.sandbox.apiserver.store import Store
from tests.unit.kube.apiserver import write_kubeconfig
from tests.waiting import until

Json = dict[str, Any]

NODE, HOSTNAME, NAMESPACE = "node-1", "host-1", "default"
CLASS = "fast"
ASSIGNMENT = NodeAssignment(NODE, HOSTNAME, FolderBackend.POOL)
MI = 1 << 20
CAPACITY = 100 * MI


class Server:
    """The API server. What it knows outlives its stops, and it comes back at the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "objects"
        self.port = 0
        self.load()

    def load(self) -> None:
        """What lies in its folder, which somebody may have restored from a backup meanwhile."""
        self.store = Store(Journal(self.folder), history=1000)
        self._registry = Registry(self.store)
        builtin.provide(self._registry)

    async def start(self) -> None:
        served = application(self._registry, bookmark_seconds=30)
        self._runner = web.AppRunner(served, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self._runner.cleanup()


@asynccontextmanager
async def api(folder: Path) -> AsyncIterator[Cluster]:
    async with serving(folder) as (cluster, _):
        yield cluster


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[Cluster, Server]]:
    server = Server(folder)
    await server.start()
    kubeconfig = write_kubeconfig(folder / "kubeconfig", f"http://127.0.0.1:{server.port}")
    try:
        async with await Cluster.connect(kubeconfig) as cluster:
            await cluster.create(
                NODES, {"metadata": {"name": NODE, "labels": {names.HOSTNAME_LABEL: HOSTNAME}}, **kind("Node")}
            )
            await cluster.create(
                CLASSES,
                {**kind("StorageClass", "storage.k8s.io/v1"), "metadata": {"name": CLASS}}
                | {"provisioner": names.PROVISIONER},
            )
            yield cluster, server
    finally:
        await server.stop()
        server.store.close()


def kind(name: str, version: str = "v1") -> Json:
    return {"apiVersion": version, "kind": name}


async def create_pv(
    cluster: Cluster,
    name: str,
    *,
    mi: int = 10,
    assignment: NodeAssignment | None = ASSIGNMENT,
    policy: str = "Delete",
    source: str = FLEX_VOLUME,
    mode: str = "Filesystem",
    access_modes: Sequence[str] = ("ReadWriteOnce",),
    secret: str = "",
    **options: str,
) -> PersistentVolume:
    """`secret`: namespace and name of the Secret that the kubelet reads for it."""
    reference = dict(zip(("namespace", "name"), secret.split("/"), strict=True)) if secret else {}
    stage = {"nodeStageSecretRef": reference} if secret else {}
    tied = contract_volume.node_assignment_patch(assignment) if assignment else {"metadata": {}, "spec": {}}
    body = {
        **kind("PersistentVolume"),
        "metadata": {"name": name, **tied["metadata"]},
        "spec": {
            "capacity": {"storage": f"{mi}Mi"},
            "accessModes": list(access_modes),
            "volumeMode": mode,
            "persistentVolumeReclaimPolicy": policy,
            "storageClassName": CLASS,
            **(
                {CSI: {"driver": names.CSI_DRIVER, "volumeHandle": name, "volumeAttributes": options, **stage}}
                if source == CSI
                else {FLEX_VOLUME: {"driver": names.DRIVER, "options": options}}
            ),
            **tied["spec"],
        },
    }
    pv = contract_volume.read(await cluster.create(VOLUMES, body))
    assert pv
    return pv


async def read_pv(cluster: Cluster, name: str) -> PersistentVolume | None:
    try:
        return contract_volume.read(await cluster.get(VOLUMES, name))
    except NotFound:
        return None


async def release_from_claim(cluster: Cluster, name: str) -> None:
    """What the controller-manager and the provisioner do when the claim of a volume is gone."""
    await cluster.patch(VOLUMES, name, {"status": {"phase": "Released"}}, subresource="status")
    await cluster.delete(VOLUMES, name)
    kept = [
        f for f in (await cluster.get(VOLUMES, name))["metadata"]["finalizers"] if f != contract_volume.PV_PROTECTION
    ]
    await cluster.patch(VOLUMES, name, {"metadata": {"finalizers": kept}})


@dataclass
class NodeParts:
    """A node of that cluster, running."""

    cluster: Cluster
    node: Node
    volumes: Volumes
    owner_lookup: ApiOwnerLookup
    node_volumes: NodeVolumes
    publisher: CapacityPublisher
    reconciler: Reconciler
    events: Recorder
    data: Path
    server: Server

    def volume_names(self) -> set[str]:
        return {volume.pv for volume in self.volumes.inventory.volumes}

    async def warnings(self) -> list[tuple[str, str, str]]:
        """Object, reason and message of the warnings there are."""
        await self.events.flush()
        return [
            (event["involvedObject"]["name"], event["reason"], event["message"])
            for event in await self.cluster.list(EVENTS)
            if event["type"] == "Warning"
        ]


@asynccontextmanager
async def node_parts(
    folder: Path, make_backend: Callable[[Path, int], Backend] = FolderBackend
) -> AsyncIterator[NodeParts]:
    """`make_backend` gets the folder of its data, and its capacity in bytes."""
    async with serving(folder) as (cluster, server):
        node = read_node(await cluster.get(NODES, NODE))
        backend = make_backend(folder / "data", CAPACITY)
        owner_lookup = ApiOwnerLookup(cluster)
        await owner_lookup.run()
        volumes = Volumes(backend, folder / "staging", owner_lookup)
        await volumes.start()
        informer = Informer[PersistentVolume](
            cluster, VOLUMES, contract_volume.read, label_selector=f"{names.NODE_LABEL}={NODE}"
        )
        node_volumes = NodeVolumes(informer, node)
        publisher = CapacityPublisher(
            cluster, NAMESPACE, node, backend.pool_of, lambda: volumes.inventory, node_volumes, volumes.refresh
        )
        events = Recorder(cluster, "test", NODE)
        reconciler = Reconciler(cluster, node_volumes, volumes, backend.pool_of, publisher, events)
        informer.subscribe(reconciler.volume_changed)
        informer.subscribe(lambda *_: publisher.trigger())
        informer.on_return(reconciler.hurry)
        runs = (informer, publisher.classes, publisher.published, publisher, reconciler)
        tasks = [asyncio.create_task(part.run()) for part in runs]
        try:
            await until(lambda: not publisher.problem)
            yield NodeParts(
                cluster,
                node,
                volumes,
                owner_lookup,
                node_volumes,
                publisher,
                reconciler,
                events,
                folder / "data",
                server,
            )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await volumes.close()


@dataclass
class Unmounted:
    """Volumes whose mounts are noted, and not made."""

    volumes: Volumes
    mounts: list[tuple[str, bool]] = field(default_factory=list)
    unmounts: list[PodFolder] = field(default_factory=list)
    shortfall: VolumeError | None = None
    device: int = 1
    """The number of the device that they are on."""

    async def device_number(self, pv: str) -> int:
        return self.device

    def __getattr__(self, name: str) -> object:
        return getattr(self.volumes, name)

    async def mount(
        self, wanted: VolumeSpec, folder: PodFolder, read_only: bool, *, exclusive: bool = False
    ) -> MountResult:
        await self.volumes.prepare(wanted)
        self.mounts.append((wanted.pv, read_only))
        return MountResult(True, self.shortfall)

    async def unmount(self, folder: PodFolder) -> None:
        self.unmounts.append(folder)
