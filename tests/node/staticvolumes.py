"""Static volumes on real mounts and devices, against the sandbox's API server in this process.

`Discovery` makes passes one by one, as a test asks for them; `Idle` stands for the other half of the loop.
"""

import asyncio
import contextlib
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from daemon.static import entries
from daemon.static.cache import Cache, ProvisionerIdentity
from daemon.static.configuration import ClassConfiguration, Configuration
from daemon.static.discovery import Discoverer
from daemon.static.metrics import ProcessCounts, StaticMetrics
from host.mounttable import Mount
from kube.client import Cluster
from kube.events import Recorder
from kube.informer import Informer
from kube.records import Node, StorageClass, read_node, read_storage_class
from kube.resources import CLASSES, EVENTS, NODES, VOLUMES
from tests.unit.daemon.nodecluster import NODE, api, kind
from tests.unit.daemon.static.shortdeadline import ShortDeadline
from tests.waiting import until

Json = dict[str, Any]

METRICS = "local_volume_provisioner_"


class Idle:
    """Deletes nothing. What is in `names` counts as being cleaned."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.passes: list[Configuration] = []

    async def delete_pass(self, configuration: Configuration) -> None:
        self.passes.append(configuration)

    def is_cleaning(self, name: str) -> bool:
        return name in self.names

    def counts(self) -> ProcessCounts:
        return ProcessCounts(0, 0, 0)

    async def run(self) -> None:
        await asyncio.Event().wait()


def mount(folder: Path, size: str = "20m") -> Path:
    """A filesystem of that size, mounted on a folder that is made for it."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    return folder


@contextlib.contextmanager
def folder_hangs(node: "Discovery", silent: Path) -> Iterator[None]:
    """Its list gets no answer, for as long as the context lasts."""
    let_go, list_of = threading.Event(), entries._list

    def hanging(folder: Path, spec: Callable[[str], bool]) -> dict[str, Mount | None]:
        if folder == silent:
            let_go.wait()
        return list_of(folder, spec)

    node.discoverer._disk_threads = ShortDeadline(lambda place: place == silent)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(entries, "_list", hanging)
        try:
            yield
        finally:
            let_go.set()


def unmount(folder: Path) -> None:
    subprocess.run(["umount", folder], check=True)


def class_config(folder: Path, name: str = "fast", **more: Any) -> ClassConfiguration:
    """The node sees the folder under another path than we do."""
    return ClassConfiguration(name=name, host_dir=f"/host/{folder.name}", mount_dir=folder, **more)


def configured(*classes: ClassConfiguration, **more: Any) -> Configuration:
    return Configuration(classes={chosen.name: chosen for chosen in classes}, **more)


async def create_class(cluster: Cluster, name: str, **more: Any) -> None:
    body = {**kind("StorageClass", "storage.k8s.io/v1"), "metadata": {"name": name}}
    await cluster.create(CLASSES, {**body, "provisioner": "kubernetes.io/no-provisioner", **more})


class Discovery:
    """The discovering half of a node."""

    def __init__(self, cluster: Cluster, node: Node) -> None:
        self.cluster = cluster
        self.node = node
        self.registry = CollectorRegistry()
        self.metrics = StaticMetrics(self.registry)
        self.events = Recorder(cluster, "test", NODE)
        self.cache = Cache(cluster, node)
        self.classes = Informer[StorageClass](cluster, CLASSES, read_storage_class)
        self.deleter = Idle()
        self.discoverer = Discoverer(
            cluster, self.cache, self.classes, node, self.events, self.metrics, self.deleter.is_cleaning
        )
        self.metrics.collect_from(
            self.cache.volumes,
            self.deleter.counts,
            self.discoverer.invalid_entries,
            self.discoverer.changed_disks,
        )

    async def look(self, configuration: Configuration) -> list[str]:
        """One pass; returns when the cache has heard of what it created. The answer is what went wrong."""
        await self.cache.set_identity(ProvisionerIdentity.of(self.node, configuration))
        errors = await self.discoverer.discovery_pass(configuration)
        await until(lambda: not self.discoverer._uncached())
        return errors

    async def volumes(self) -> dict[str, Json]:
        """PersistentVolumes by path."""
        return {body["spec"]["local"]["path"]: body for body in await self.cluster.list(VOLUMES)}

    async def recorded_events(self) -> list[tuple[str, str, str]]:
        """Object, reason and message of the warnings there are."""
        await self.events.flush()
        return [
            (event["involvedObject"]["name"], event["reason"], event["message"])
            for event in await self.cluster.list(EVENTS)
            if event["type"] == "Warning"
        ]

    def value(self, metric: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(METRICS + metric, labels)


@contextlib.asynccontextmanager
async def discovery(folder: Path) -> AsyncIterator[Discovery]:
    """With a StorageClass `slow` beside the one that the API server has."""
    folder.mkdir(exist_ok=True)
    async with api(folder) as cluster:
        await cluster.patch(NODES, NODE, {"metadata": {"labels": {"zone": "a"}}})
        await create_class(cluster, "slow", reclaimPolicy="Retain", mountOptions=["noatime"])
        discovered = Discovery(cluster, read_node(await cluster.get(NODES, NODE)))
        await discovered.cache.set_identity(ProvisionerIdentity.of(discovered.node, Configuration()))
        tasks = [asyncio.create_task(part.run()) for part in (discovered.cache.informer, discovered.classes)]
        try:
            await discovered.cache.informer.wait_synced()
            await discovered.classes.wait_synced()
            yield discovered
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
