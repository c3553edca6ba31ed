"""A deleter with everything behind it but the node: the sandbox's API, and PersistentVolumes read afresh before each
pass in place of the informer's cache."""

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from contract import names
from daemon.static import cleanupprocess
from daemon.static import volume as static_volume
from daemon.static.configuration import ClassConfiguration, Configuration
from daemon.static.deleter import Deleter
from daemon.static.metrics import PREFIX, StaticMetrics
from daemon.static.volume import StaticVolume
from kube.backoff import Backoff
from kube.client import Cluster
from kube.errors import NotFound
from kube.events import Recorder
from kube.records import read_node
from kube.resources import EVENTS, JOBS, NODES, VOLUMES
from tests.unit.daemon.nodecluster import HOSTNAME, NAMESPACE, NODE, api, kind
from tests.waiting import until

Json = dict[str, Any]

CLASS = "fast-disks"
HOST_DIR = "/mnt/disks"
IMAGE = "example.org/cleaner:1"
AT_ONCE = Backoff(first=0, jitter=0)
GONE = "gone"


def believe_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a cleaner is to clean is not looked at, and need not exist."""
    monkeypatch.setattr(cleanupprocess, "_take", lambda *_: os.open("/dev/null", os.O_RDONLY))


@dataclass
class DeleterHarness:
    cluster: Cluster
    node: Json
    events: Recorder
    deleter: Deleter
    registry: CollectorRegistry
    cache: list[StaticVolume]
    triggers: list[None] = field(default_factory=list)

    async def pass_over(self, configuration: Configuration) -> None:
        bodies = await self.cluster.list(VOLUMES)
        self.cache[:] = [volume for volume in map(static_volume.read, bodies) if volume]
        await self.deleter.delete_pass(configuration)

    async def clean_all(self, configuration: Configuration) -> None:
        """Passes until no cleaning of this process runs."""
        await self.pass_over(configuration)
        await until(lambda: not self.deleter.counts().running)

    async def create(
        self,
        name: str,
        path: str,
        *,
        phase: str = "Released",
        policy: str = "Delete",
        mode: str = "Filesystem",
        storage_class: str = CLASS,
        claim: str = "claim-1",
        has_finalizer: bool = False,
        disk: str = "",
    ) -> Json:
        """`disk`: which it was made of."""
        body: Json = {
            **kind("PersistentVolume"),
            "metadata": {"name": name} | ({"annotations": {names.DISK_ANNOTATION: disk}} if disk else {}),
            "spec": {
                "capacity": {"storage": "10Gi"},
                "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": policy,
                "storageClassName": storage_class,
                "volumeMode": mode,
                "local": {"path": path},
                "claimRef": {"namespace": "default", "name": "claim", "uid": claim},
                "nodeAffinity": {
                    "required": {
                        "nodeSelectorTerms": [
                            {
                                "matchExpressions": [
                                    {"key": "kubernetes.io/hostname", "operator": "In", "values": [HOSTNAME]}
                                ]
                            }
                        ]
                    }
                },
            },
        }
        created = await self.cluster.create(VOLUMES, body)
        # As it is when no claim uses it any more.
        await self.cluster.patch(
            VOLUMES, name, {"metadata": {"finalizers": [names.STATIC_FINALIZER] if has_finalizer else None}}
        )
        await self.cluster.patch(VOLUMES, name, {"status": {"phase": phase}}, subresource="status")
        return created

    async def phases(self) -> dict[str, str]:
        return {pv["metadata"]["name"]: pv["status"]["phase"] for pv in await self.cluster.list(VOLUMES)}

    async def phase(self, name: str) -> str:
        return (await self.phases()).get(name, GONE)

    async def recorded_events(self, kind: str = "Warning") -> list[tuple[str, str, str]]:
        """Object, reason and message of the events there are."""
        await self.events.flush()
        return [
            (event["involvedObject"]["name"], event["reason"], event["message"])
            for event in await self.cluster.list(EVENTS)
            if event["type"] == kind
        ]

    async def job(self, name: str) -> Json | None:
        try:
            return await self.cluster.get(JOBS, name, NAMESPACE)
        except NotFound:
            return None

    async def end_job(self, name: str, status: Json) -> None:
        await self.cluster.patch(JOBS, name, {"status": status}, NAMESPACE, subresource="status")

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"{PREFIX}_{name}", labels) or 0

    def restarted(self, **chosen: Any) -> "DeleterHarness":
        """The next daemon, which remembers nothing."""
        return harness_of(self.cluster, self.node, self.events, **chosen)


def harness_of(
    cluster: Cluster, node: Json, events: Recorder, *, retry: Backoff = AT_ONCE, image: str = IMAGE
) -> DeleterHarness:
    registry, cache, triggers = CollectorRegistry(), list[StaticVolume](), list[None]()
    metrics = StaticMetrics(registry)
    deleter = Deleter(
        cluster,
        lambda: list(cache),
        read_node(node),
        events,
        metrics,
        lambda: triggers.append(None),
        namespace=NAMESPACE,
        job_image=image,
        retry=retry,
    )
    metrics.collect_from(lambda: cache, deleter.counts, dict)
    return DeleterHarness(cluster, node, events, deleter, registry, cache, triggers)


@contextlib.asynccontextmanager
async def deleter_harness(folder: Path, **chosen: Any) -> AsyncIterator[DeleterHarness]:
    async with api(folder) as cluster:
        yield harness_of(cluster, await cluster.get(NODES, NODE), Recorder(cluster, "test", NODE), **chosen)


def configured(
    mount_dir: Path, *, cleaner: tuple[str, ...] = ("true",), folder_cleaner: tuple[str, ...] = (), **keys: Any
) -> Configuration:
    """One class, whose folder is HOST_DIR on the node and `mount_dir` here."""
    class_config = ClassConfiguration(
        CLASS, HOST_DIR, mount_dir, block_cleaner=cleaner, filesystem_cleaner=folder_cleaner
    )
    return Configuration(classes={CLASS: class_config}, **keys)
