"""The controller of a node's static volumes: a serial loop of delete pass, discovery pass and not-ready taint.

Serial, so that no entry is offered while its volume is being judged for deletion. A pass is made when something
happened on the node (eventsources.py), when a PersistentVolume or a class changed, and after the period at the latest.
The loop starts when the cache has all PersistentVolumes of this node: no entry must be offered twice because the
informer had not listed its PersistentVolume yet.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Protocol

from prometheus_client import CollectorRegistry

from daemon.static import eventsources
from daemon.static.cache import Cache, ProvisionerIdentity
from daemon.static.configuration import Configuration, ReservedFolders, StaticSettings
from daemon.static.configwatcher import ConfigWatcher
from daemon.static.deleter import Deleter
from daemon.static.discovery import Discoverer
from daemon.static.eventsources import Debouncer, FolderWatch
from daemon.static.metrics import ProcessCounts, StaticMetrics
from kube.backoff import Backoff
from kube.client import Cluster
from kube.errors import ApiError
from kube.events import Recorder
from kube.informer import Informer
from kube.records import Node, StorageClass, read_storage_class
from kube.resources import CLASSES
from kube.taints import remove_taint

log = logging.getLogger(__name__)


class VolumeDeleter(Protocol):
    """What happens to released volumes: deleter.Deleter."""

    async def delete_pass(self, configuration: Configuration) -> None:
        """Examines every PersistentVolume in the cache: starts cleanups, and deletes those whose cleanup succeeded.
        Forgets finished cleanups whose PersistentVolume (by uid) is gone. Does not wait for cleanups; the end of one
        triggers the next pass."""

    def is_cleaning(self, name: str) -> bool:
        """Whether the volume of that name is being cleaned: it must not be offered."""

    def counts(self) -> ProcessCounts:
        """The process table, for a scrape."""

    async def run(self) -> None:
        """Runs beside the passes, for ever. Cancellation ends the cleanups of this process."""


MakeDeleter = Callable[[Cache, StaticMetrics, Callable[[], None]], VolumeDeleter]
"""From the cache, the metrics, and what triggers the next pass."""


class StaticVolumeController:
    def __init__(
        self,
        cluster: Cluster,
        node: Node,
        events: Recorder,
        metrics: StaticMetrics,
        settings: StaticSettings,
        make_deleter: MakeDeleter,
        reserved: ReservedFolders = (),
    ) -> None:
        """`reserved`: folders that the daemon itself uses, which no class may offer."""
        self._cluster = cluster
        self._node = node
        self._settings = settings
        self._debouncer = Debouncer()
        trigger = self._debouncer.trigger
        self._cache = Cache(cluster, node)
        self._classes = Informer[StorageClass](cluster, CLASSES, read_storage_class)
        self._cache.informer.subscribe(lambda *_: trigger())
        self._cache.informer.on_return(trigger)
        self._classes.subscribe(lambda *_: trigger())
        self._config_watcher = ConfigWatcher(settings.config_dir, node.reference, events, metrics, trigger, reserved)
        self._deleter = make_deleter(self._cache, metrics, trigger)
        self._discoverer = Discoverer(
            cluster, self._cache, self._classes, node, events, metrics, self._deleter.is_cleaning
        )
        metrics.collect_from(
            self._cache.volumes,
            self._deleter.counts,
            self._discoverer.invalid_entries,
            self._discoverer.changed_disks,
        )
        self._taint_removed = False
        self._discovery_problem = "no pass was made yet"

    @property
    def problem(self) -> str:
        """For readiness. Empty: the configuration is valid, and the last pass discovered every class."""
        return "; ".join(filter(None, (self._config_watcher.problem, self._discovery_problem)))

    async def run(self) -> None:
        """For ever. The recorder of events must run too."""
        trigger = self._debouncer.trigger
        with contextlib.ExitStack() as sources:
            folders = FolderWatch(trigger)
            for source in (eventsources.watch_mount_table(trigger), folders):
                try:
                    sources.enter_context(source)
                except OSError as error:
                    log.warning("changes of mounts or folders are only found once per period: %s", error)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(eventsources.watch_uevents(trigger))
                tasks.create_task(self._config_watcher.run(self._settings.config_sync_period))
                tasks.create_task(self._classes.run())
                tasks.create_task(self._deleter.run())
                tasks.create_task(self._run_passes(folders, tasks))

    async def _run_passes(self, folders: FolderWatch, tasks: asyncio.TaskGroup) -> None:
        await self._set_identity(await self._config_watcher.wait_configured())
        # Not earlier: the first list then has the PersistentVolumes that were labelled just now.
        tasks.create_task(self._cache.informer.run())
        await self._cache.informer.wait_synced()
        await self._classes.wait_synced()
        while True:
            configuration = await self._config_watcher.wait_configured()
            await folders.watch(each.mount_dir for each in configuration.classes.values() if not each.refusal)
            await self._pass(configuration)
            await self._debouncer.wait(self._settings.discovery_period)

    async def _set_identity(self, configuration: Configuration) -> None:
        backoff, failures = Backoff(first=0.5, factor=2, limit=3), 0
        while True:
            try:
                return await self._cache.set_identity(ProvisionerIdentity.of(self._node, configuration))
            except ApiError as error:
                failures += 1
                self._discovery_problem = f"the PersistentVolumes of this node can't be listed: {error}"
                log.warning("%s", self._discovery_problem)
                await asyncio.sleep(backoff.delay(failures))

    async def _pass(self, configuration: Configuration) -> None:
        """A bug in one pass is reported, and the next pass is made all the same."""
        try:
            await self._set_identity(configuration)
            await self._deleter.delete_pass(configuration)
            errors = await self._discoverer.discovery_pass(configuration)
        except Exception as error:
            log.exception("a pass over the static volumes failed, it is tried again")
            self._discovery_problem = f"the last pass failed, see the log: {error!r}"
            return
        self._discovery_problem = "; ".join(errors)
        if configuration.remove_taint and not errors and not self._taint_removed:
            self._taint_removed = not await remove_taint(self._cluster, self._node.name, configuration.taint_key)


def static_volume_controller(
    cluster: Cluster,
    node: Node,
    events: Recorder,
    registry: CollectorRegistry,
    settings: StaticSettings,
    reserved: ReservedFolders,
) -> StaticVolumeController:
    """The controller with its deleter."""

    def make_deleter(cache: Cache, metrics: StaticMetrics, trigger: Callable[[], None]) -> Deleter:
        deleter = Deleter(
            cluster,
            cache.volumes,
            node,
            events,
            metrics,
            trigger,
            namespace=settings.namespace,
            job_image=settings.job_image,
        )
        cache.informer.subscribe(deleter.volume_changed)
        return deleter

    return StaticVolumeController(cluster, node, events, StaticMetrics(registry), settings, make_deleter, reserved)
