"""The static volumes of one node, put together: a serial loop of a delete pass, a discovery pass and the taint.

Serial, so that no entry is offered while it is being judged for deletion. The loop runs when something happened
(wakers), when a PersistentVolume or a class changed, and after the period at the latest. It begins when the whole of
what the API server knows of this node's volumes is in the cache: a volume must not be offered twice because its
PersistentVolume was not heard of yet.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Protocol

from prometheus_client import CollectorRegistry

from daemon.static import eventsources, readiness
from daemon.static.cache import Cache, Identity
from daemon.static.configuration import Configuration, OwnFolders, StaticSettings
from daemon.static.configwatcher import Reloader
from daemon.static.deleter import Deleter
from daemon.static.discovery import Discoverer
from daemon.static.eventsources import Folders, Pace
from daemon.static.metrics import ProcessCounts, StaticMetrics
from kube.backoff import Backoff
from kube.client import CLASSES, ApiError, Cluster
from kube.events import Recorder
from kube.informer import Informer
from kube.records import Node, StorageClass, read_storage_class

log = logging.getLogger(__name__)


class Deletions(Protocol):
    """The other half: what becomes of released volumes."""

    async def delete_pass(self, configuration: Configuration) -> None:
        """Looks at every PersistentVolume in the cache: begins cleanings, deletes those whose cleaning succeeded.
        Drops what it remembers of finished cleanings whose PersistentVolume (by uid) is gone. Does not wait for
        cleanings; when one ends, it wakes the loop."""

    def cleaning(self, name: str) -> bool:
        """Whether the volume of that name is being cleaned: it must not be offered."""

    def counts(self) -> ProcessCounts:
        """The process table, for a scrape."""

    async def run(self) -> None:
        """What must run beside the passes, for ever. When it is cancelled, the cleanings of this process end."""


MakeDeletions = Callable[[Cache, StaticMetrics, Callable[[], None]], Deletions]
"""From the cache, the metrics, and what wakes the loop."""


class StaticVolumes:
    """`problem` says what is not as it should be, for readiness. Empty: the last whole pass had no class error."""

    def __init__(
        self,
        cluster: Cluster,
        node: Node,
        events: Recorder,
        metrics: StaticMetrics,
        chosen: StaticSettings,
        make_deletions: MakeDeletions,
        own: OwnFolders = (),
    ) -> None:
        """`own`: the folders that the daemon works in, which no class may offer."""
        self._cluster = cluster
        self._node = node
        self._chosen = chosen
        self._pace = Pace()
        self._cache = Cache(cluster, node)
        self._classes = Informer[StorageClass](cluster, CLASSES, read_storage_class)
        self._cache.informer.subscribe(lambda *_: self._pace.wake())
        self._cache.informer.on_return(self._pace.wake)
        self._classes.subscribe(lambda *_: self._pace.wake())
        self._reloader = Reloader(chosen.config_dir, node.reference, events, metrics, self._pace.wake, own)
        self._deletions = make_deletions(self._cache, metrics, self._pace.wake)
        self._discoverer = Discoverer(
            cluster, self._cache, self._classes, node, events, metrics, self._deletions.cleaning
        )
        metrics.watch(self._cache.volumes, self._deletions.counts, self._discoverer.strays)
        self._untainted = False
        self._fault = "no pass was made yet"

    @property
    def problem(self) -> str:
        return "; ".join(filter(None, (self._reloader.problem, self._fault)))

    async def run(self) -> None:
        """For ever. The recorder of events must run too."""
        with contextlib.ExitStack() as sources:
            folders = Folders(self._pace.wake)
            for source in (eventsources.mount_table(self._pace.wake), folders):
                try:
                    sources.enter_context(source)
                except OSError as error:
                    log.warning("changes of mounts or folders wait for the next period: %s", error)
            async with asyncio.TaskGroup() as parts:
                parts.create_task(eventsources.uevents(self._pace.wake))
                parts.create_task(self._reloader.run(self._chosen.config_sync_period))
                parts.create_task(self._classes.run())
                parts.create_task(self._deletions.run())
                parts.create_task(self._serve(folders, parts))

    async def _serve(self, folders: Folders, parts: asyncio.TaskGroup) -> None:
        configuration = await self._configured()
        await self._settle(configuration)
        # Only now: what settling labelled is in the first list.
        parts.create_task(self._cache.informer.run())
        await self._cache.informer.wait_synced()
        await self._classes.wait_synced()
        while True:
            configuration = await self._configured()
            await folders.watch(each.mount_dir for each in configuration.classes.values() if not each.refused)
            await self._pass(configuration)
            await self._pace.wait(self._chosen.discovery_period)

    async def _configured(self) -> Configuration:
        while self._reloader.current is None:
            await self._pace.wait(self._chosen.discovery_period)
        return self._reloader.current

    async def _settle(self, configuration: Configuration) -> None:
        backoff, failures = Backoff(first=0.5, factor=2, limit=3), 0
        while True:
            try:
                return await self._cache.settle(Identity.of(self._node, configuration))
            except ApiError as error:
                failures += 1
                self._fault = f"the API server does not tell which PersistentVolumes are ours: {error}"
                log.warning("%s", self._fault)
                await asyncio.sleep(backoff.delay(failures))

    async def _pass(self, configuration: Configuration) -> None:
        """One round. A fault of our own in it is told, and the next round is made all the same."""
        try:
            await self._settle(configuration)
            await self._deletions.delete_pass(configuration)
            errors = await self._discoverer.discovery_pass(configuration)
        except Exception as error:
            log.exception("a pass over the static volumes failed, the next one begins anew")
            self._fault = f"the last pass failed, see the log: {error!r}"
            return
        self._fault = "; ".join(errors)
        if configuration.remove_taint and not errors and not self._untainted:
            self._untainted = await readiness.remove_taint(self._cluster, self._node.name, configuration.taint_key)


def static_volumes(
    cluster: Cluster,
    node: Node,
    events: Recorder,
    registry: CollectorRegistry,
    chosen: StaticSettings,
    own: OwnFolders,
) -> StaticVolumes:
    """`own`: the folders that the daemon works in, which no class may offer."""

    def deletions(cache: Cache, metrics: StaticMetrics, wake: Callable[[], None]) -> Deleter:
        deleter = Deleter(
            cluster,
            cache.volumes,
            node,
            events,
            metrics,
            wake,
            namespace=chosen.namespace,
            job_image=chosen.job_image,
        )
        cache.informer.subscribe(deleter.heard)
        return deleter

    return StaticVolumes(cluster, node, events, StaticMetrics(registry), chosen, deletions, own)
