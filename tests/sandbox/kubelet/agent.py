"""The node and the pods that are bound to it."""

import asyncio
import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contract import names
from kube.client import Cluster
from kube.errors import AlreadyExists, ApiError
from kube.events import Recorder
from kube.informer import Informer
from kube.resources import CLAIMS, DRIVERS, NODES, PODS, VOLUMES
from tests.sandbox.kubelet.container import Container
from tests.sandbox.kubelet.csi import CsiPlugin
from tests.sandbox.kubelet.expansion import Expansion
from tests.sandbox.kubelet.layout import Layout
from tests.sandbox.kubelet.metrics import VolumeStats
from tests.sandbox.kubelet.plugins import Plugins
from tests.sandbox.kubelet.podworker import Host, PodWorker
from tests.sandbox.kubelet.registration import PluginManager, Registered
from tests.sandbox.kubelet.secretrefs import SecretReader
from tests.sandbox.kubelet.volumes import VolumeManager

Json = dict[str, Any]

_log = logging.getLogger(__name__)
_HEARTBEAT_SECONDS = 60.0
_RETRY_SECONDS = 0.5
_PROBE_SECONDS = 0.5
_ADDRESS = "127.0.0.1"


@dataclass(frozen=True)
class Identity:
    """The node as it registers itself."""

    name: str
    hostname: str
    """Value of the hostname label, on many clouds not the name."""

    @property
    def labels(self) -> dict[str, str]:
        return {names.HOSTNAME_LABEL: self.hostname, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}


class Kubelet:
    def __init__(
        self,
        cluster: Cluster,
        identity: Identity,
        root: Path,
        plugin_directory: Path,
        environment: Mapping[str, str],
        lifeline: int,
        metrics_port: int,
    ) -> None:
        """`environment`: of the drivers. `lifeline`: see shim.py."""
        self._metrics_port = metrics_port
        self._cluster = cluster
        self._identity = identity
        self._workers: dict[str, PodWorker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._plugins = Plugins(plugin_directory, environment)
        self._claims: Informer[Json] = Informer(cluster, CLAIMS, _whole)
        self._persistent_volumes: Informer[Json] = Informer(cluster, VOLUMES, _whole)
        self._csi_drivers: Informer[Json] = Informer(cluster, DRIVERS, _whole)
        self._pods: Informer[Json] = Informer(cluster, PODS, _whole, field_selector=f"spec.nodeName={identity.name}")
        layout = Layout(root)
        layout.make()
        self._recorder = Recorder(cluster, "kubelet", identity.name)
        expansion = Expansion(cluster, self._recorder, identity.name, self._claims, self._persistent_volumes)
        registered = Registered()
        self._plugin_manager = PluginManager(cluster, identity.name, root / "plugins_registry", registered)
        csi = CsiPlugin(SecretReader(cluster), root, identity.name, registered, self._csi_drivers)
        self._volumes = VolumeManager(self._plugins, csi, layout, expansion, self._workers)
        self._stats = VolumeStats(self._volumes, csi)
        self._host = Host(
            cluster=cluster,
            recorder=self._recorder,
            layout=layout,
            plugins=self._plugins,
            volumes=self._volumes,
            claims=self._claims,
            persistent_volumes=self._persistent_volumes,
            node_labels=identity.labels,
            address=_ADDRESS,
            lifeline=lifeline,
        )

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            informers = (self._claims, self._persistent_volumes, self._csi_drivers, self._pods)
            for informer in informers:
                tasks.create_task(informer.run())
            tasks.create_task(self._recorder.run())
            tasks.create_task(self._probe())
            await self._register()
            await self._stats.serve(self._metrics_port)
            tasks.create_task(self._plugin_manager.run())
            await asyncio.gather(*(informer.wait_synced() for informer in informers))
            self._pods.subscribe(self._pod_changed)
            await self._end_orphans()
            self._claims.subscribe(lambda *_: self._storage_changed())
            self._persistent_volumes.subscribe(lambda *_: self._storage_changed())
            _log.info("node %s is ready", self._identity.name)
            tasks.create_task(self._heartbeat())

    async def _end_orphans(self) -> None:
        """Take over from a kubelet before this one: what belongs to pods that went meanwhile ends, containers first."""
        layout = self._host.layout
        orphans = [uid for uid in layout.pod_uids() if uid not in self._workers]
        containers = [Container(folder) for uid in orphans for folder in layout.containers(uid)]
        await asyncio.gather(*(container.stop(grace=0) for container in containers))
        self._volumes.reconstruct()
        for uid in orphans:
            self._volumes.discard_folder(uid)

    def _pod_changed(self, _key: str, old: Json | None, new: Json | None) -> None:
        # A name that was given to another pod while we didn't hear: two pods.
        if old and (new is None or new["metadata"]["uid"] != old["metadata"]["uid"]):
            worker = self._workers.get(old["metadata"]["uid"])
            if worker:
                worker.gone()
        if new is None:
            return
        uid = new["metadata"]["uid"]
        worker = self._workers.get(uid)
        if worker:
            worker.update(new)
            return
        worker = self._workers[uid] = PodWorker(self._host, new)
        task = self._tasks[uid] = asyncio.create_task(worker.run())
        task.add_done_callback(lambda task: self._pod_ended(uid, task))

    def _pod_ended(self, uid: str, task: "asyncio.Task[None]") -> None:
        del self._workers[uid], self._tasks[uid]
        if task.cancelled():
            return
        if error := task.exception():
            _log.error("pod %s: its worker failed", uid, exc_info=error)
        self._volumes.discard_folder(uid)
        # An API server that went back in time has a pod again that was ended here.
        for pod in self._pods.values():
            if pod["metadata"]["uid"] == uid and "deletionTimestamp" not in pod["metadata"]:
                self._pod_changed("", None, pod)

    def _storage_changed(self) -> None:
        self._volumes.look_again()
        for worker in self._workers.values():
            worker.volume_changed()

    async def _probe(self) -> None:
        """Notice drivers as they are installed, not only when the first pod asks for them."""
        while True:
            await self._plugins.probe()
            await asyncio.sleep(_PROBE_SECONDS)

    async def _register(self) -> None:
        """Create the Node, or take over the one that is there."""
        node: Json = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self._identity.name, "labels": self._identity.labels},
            "spec": {},
        }
        while True:
            try:
                try:
                    await self._cluster.create(NODES, node)
                except AlreadyExists:
                    labels = {"metadata": {"labels": self._identity.labels}}
                    await self._cluster.patch(NODES, self._identity.name, labels)
                await self._report_ready()
            except ApiError as error:
                _log.warning("registering the node: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            return

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT_SECONDS)
            try:
                await self._report_ready()
            except ApiError as error:
                _log.warning("heartbeat: %s", error)

    async def _report_ready(self) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        amounts = {"cpu": "64", "memory": "256Gi", "pods": "1000"}
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "message": "kubelet is posting ready status",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        status = {
            "conditions": [ready],
            "addresses": [
                {"type": "InternalIP", "address": _ADDRESS},
                {"type": "Hostname", "address": self._identity.name},
            ],
            "capacity": amounts,
            "allocatable": amounts,
            "nodeInfo": {
                "kubeletVersion": "v1.36.0",
                "operatingSystem": "linux",
                "architecture": "amd64",
                "kernelVersion": platform.release(),
                "osImage": "sandbox",
                "containerRuntimeVersion": "sandbox://1",
            },
        }
        await self._cluster.patch(NODES, self._identity.name, {"status": status}, subresource="status")


def _whole(body: Json) -> Json:
    return body
