"""The CSI drivers of the node: found by their sockets in `plugins_registry`, and what the cluster is told of them.

Source: pkg/kubelet/pluginmanager and pkg/volume/csi/{csi_plugin.go,nodeinfomanager} of Kubernetes 1.36.2. A socket that
was made anew is another plugin; one that goes takes its driver with it. A registration that fails is tried again after
0.5 s, 1 s ... 122 s (until 1.35 it was not, as long as the socket stayed).
"""

import asyncio
import logging
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpclib import GRPCError
from grpclib.client import Channel
from grpclib.exceptions import ProtocolError, StreamTerminatedError

from daemon.csi.client import apart
from daemon.csi.proto.pluginregistration_grpc import RegistrationStub
from daemon.csi.proto.pluginregistration_pb2 import InfoRequest, PluginInfo, RegistrationStatus
from kube.backoff import Backoff
from kube.client import Cluster
from kube.errors import AlreadyExists, ApiError, Conflict, NotFound
from kube.resources import NODES
from tests.sandbox.controlplane.caches import CSI_NODES
from tests.sandbox.kubelet.csiclient import CsiClient, RpcFailed
from tests.sandbox.kubelet.layout import FOLDER_MODE, make_folders

Json = dict[str, Any]
Identity = tuple[int, int]

_TYPE = "CSIPlugin"
_LOOK_SECONDS = 0.1
"""The real one is told by inotify and acts once a second."""
_INFO_SECONDS = 1.0
_RETRY = Backoff(first=0.5, factor=2, limit=122, jitter=0)
_WRITES = 5
"""How often a CSINode is written anew when somebody else wrote it meanwhile, of 140 seconds' worth."""
_log = logging.getLogger(__name__)


class NotRegistered(Exception):
    """No driver of that name; the text is the kubelet's."""

    def __init__(self, driver: str) -> None:
        super().__init__(f"driver name {driver} not found in the list of registered CSI drivers")


class RegistrationFailed(Exception):
    """The text is what the plugin is told, and the kubelet's log."""


@dataclass(frozen=True)
class _Plugin:
    identity: Identity
    """Of its socket."""
    driver: str


class Registered:
    """The drivers that volumes can be asked of."""

    def __init__(self) -> None:
        self.clients: dict[str, CsiClient] = {}

    def client(self, driver: str) -> CsiClient:
        """Raises NotRegistered."""
        try:
            return self.clients[driver]
        except KeyError:
            raise NotRegistered(driver) from None


class PluginManager:
    """Registers what is in the folder, and takes back what is no longer there."""

    def __init__(self, cluster: Cluster, node: str, folder: Path, registered: Registered) -> None:
        self._cluster = cluster
        self._node = node
        self._folder = folder
        self._registered = registered
        self._plugins: dict[Path, _Plugin] = {}
        self._failures: dict[Path, tuple[Identity, int, float]] = {}
        """Of a socket that could not be registered: how often, and when it is tried again."""

    async def run(self) -> None:
        """For ever, once the Node is there."""
        make_folders(self._folder, FOLDER_MODE)
        while True:
            found = _sockets(self._folder)
            for path, plugin in list(self._plugins.items()):
                if found.get(path) != plugin.identity:
                    await self._deregister(path)
            for path, identity in found.items():
                if path not in self._plugins and self._is_due(path, identity):
                    await self._try(path, identity)
            await asyncio.sleep(_LOOK_SECONDS)

    def _is_due(self, path: Path, identity: Identity) -> bool:
        known, _, at = self._failures.get(path, (identity, 0, 0.0))
        return known != identity or asyncio.get_running_loop().time() >= at

    async def _try(self, path: Path, identity: Identity) -> None:
        try:
            await apart(self._register(path, identity))
        except (RegistrationFailed, GRPCError, ProtocolError, StreamTerminatedError, TimeoutError, OSError) as error:
            known, count, _ = self._failures.get(path, (identity, 0, 0.0))
            count = count + 1 if known == identity else 1
            at = asyncio.get_running_loop().time() + _RETRY.delay(count)
            self._failures[path] = (identity, count, at)
            _log.error("%s: %s", path, error)
        else:
            self._failures.pop(path, None)

    async def _register(self, path: Path, identity: Identity) -> None:
        async with Channel(path=str(path)) as channel:
            plugin = RegistrationStub(channel)
            info = await plugin.GetInfo(InfoRequest(), timeout=_INFO_SECONDS)
            if info.type != _TYPE:
                await _refuse(plugin, f"no handler registered for plugin type: {info.type} at socket {path}")
            if not any(version.split(".")[0] in ("1", "v1") for version in info.supported_versions):
                versions = " ".join(f'"{version}"' for version in info.supported_versions)
                why = f"None of the versions specified [{versions}] are supported"
                where = f"validation failed for CSI Driver {info.name} at endpoint {info.endpoint}"
                await _refuse(plugin, f"plugin validation failed with err: kubernetes.io/csi: {where}: {why}")
            client = CsiClient(Path(info.endpoint or path))
            try:
                await self._install(info, client)
            except (RpcFailed, ApiError) as error:
                await _refuse(plugin, f"plugin registration failed with err: {error}")
            self._registered.clients[info.name] = client
            self._plugins[path] = _Plugin(identity, info.name)
            try:
                await plugin.NotifyRegistrationStatus(RegistrationStatus(plugin_registered=True), timeout=_INFO_SECONDS)
            except BaseException:
                await self._deregister(path)
                raise
            _log.info("CSI driver %s is registered at %s", info.name, client.endpoint)

    async def _install(self, info: PluginInfo, client: CsiClient) -> None:
        """Raises RpcFailed and ApiError."""
        node = await client.info()
        limit = {"allocatable": {"count": node.max_volumes_per_node}} if node.max_volumes_per_node > 0 else {}
        driver = {
            "name": info.name,
            "nodeID": node.node_id,
            "topologyKeys": sorted(node.accessible_topology.segments),
            **limit,
        }
        await self._label(node.accessible_topology.segments)
        await self._write(info.name, driver)

    async def _label(self, topology: Mapping[str, str]) -> None:
        """The Node has the labels of the driver's topology. One that says otherwise wins, and the driver is refused
        (updateTopologyLabels)."""
        labels = (await self._cluster.get(NODES, self._node))["metadata"].get("labels") or {}
        for key, value in topology.items():
            if labels.get(key, value) != value:
                raise RegistrationFailed(
                    f'detected topology value collision: driver reported "{key}":"{value}" but existing label is '
                    f'"{key}":"{labels[key]}"'
                )
        if missing := {key: value for key, value in topology.items() if key not in labels}:
            await self._cluster.patch(NODES, self._node, {"metadata": {"labels": missing}})

    async def _deregister(self, path: Path) -> None:
        plugin = self._plugins.pop(path)
        self._registered.clients.pop(plugin.driver, None)
        try:
            await self._write(plugin.driver, None)
        except ApiError as error:
            _log.error("deregistering %s: %s", plugin.driver, error)
        else:
            _log.info("CSI driver %s is gone", plugin.driver)

    async def _write(self, name: str, driver: Json | None) -> None:
        """The node's CSINode with this driver, or without it."""
        for left in reversed(range(_WRITES)):
            try:
                await self._write_once(name, driver)
            except (Conflict, AlreadyExists):
                if not left:
                    raise
            else:
                return

    async def _write_once(self, name: str, driver: Json | None) -> None:
        try:
            present = await self._cluster.get(CSI_NODES, self._node)
        except NotFound:
            if driver is None:
                return
            present = await self._cluster.create(CSI_NODES, await self._new_csi_node())
        before = present["spec"].get("drivers") or []
        drivers = [each for each in before if each["name"] != name] + ([driver] if driver else [])
        if drivers != before:
            await self._cluster.replace(CSI_NODES, self._node, {**present, "spec": {"drivers": drivers}})

    async def _new_csi_node(self) -> Json:
        node = await self._cluster.get(NODES, self._node)
        owner = {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": node["metadata"]["uid"]}
        return {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "CSINode",
            "metadata": {"name": self._node, "ownerReferences": [owner]},
            "spec": {"drivers": []},
        }


async def _refuse(plugin: RegistrationStub, message: str) -> None:
    status = RegistrationStatus(plugin_registered=False, error=f"RegisterPlugin error -- {message}")
    await plugin.NotifyRegistrationStatus(status, timeout=_INFO_SECONDS)
    raise RegistrationFailed(status.error)


def _sockets(folder: Path) -> dict[Path, Identity]:
    found: dict[Path, Identity] = {}
    for path in folder.iterdir():
        try:
            status = path.stat()
        except OSError:
            continue
        if stat.S_ISSOCK(status.st_mode) and not path.name.startswith("."):
            found[path] = (status.st_ino, status.st_ctime_ns)
    return found
