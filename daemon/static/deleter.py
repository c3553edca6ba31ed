"""What becomes of released volumes: they are cleaned, then their PersistentVolume is deleted, and discovery offers the
place anew.

What to do with each volume is a pure function of its PersistentVolume and of its cleaning. Nothing waits in here: a
cleaning that can't begin now, because of the limit or because of what stands at its path, is looked at again in the
next pass.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from daemon.static import cleaning as process
from daemon.static import place as places
from daemon.static import volume as static_volume
from daemon.static.cleaning import CleaningFailed
from daemon.static.configuration import BLOCK, ClassConfiguration, Configuration
from daemon.static.decision import Clean, Refuse, Remove, decide
from daemon.static.jobtracking import JobTracker
from daemon.static.looks import DEADLINE, Hung, Looks
from daemon.static.metrics import DELETE, JOB, PROCESS, UNKNOWN, ProcessCounts, StaticMetrics
from daemon.static.place import Place, PlaceError
from daemon.static.proctable import Cleaning, ProcessTable, Release
from daemon.static.volume import StaticVolume
from kube.backoff import Backoff
from kube.client import VOLUMES, ApiError, Cluster, NotFound
from kube.events import Recorder
from kube.records import Node, ObjectReference

log = logging.getLogger(__name__)

FAILED, STARTED = "VolumeFailedDelete", "VolumeDelete"

_RETRY = Backoff(first=5, factor=2, limit=300, jitter=0)
"""A cleaner that fails at once must not keep the disk busy."""


class _NotReclaimed(Exception):
    def __init__(self, mode: str, kind: str, words: str) -> None:
        super().__init__(words)
        self.mode = mode
        self.kind = kind


class Deleter:
    def __init__(
        self,
        cluster: Cluster,
        volumes: Callable[[], Iterable[StaticVolume]],
        node: Node,
        events: Recorder,
        metrics: StaticMetrics,
        wake: Callable[[], None],
        *,
        namespace: str,
        job_image: str,
        retry: Backoff = _RETRY,
        deadline: float = DEADLINE,
    ) -> None:
        """`volumes` are the PersistentVolumes of this node. `wake` is called when a cleaning ended. Jobs are made in
        `namespace` from `job_image`, which may be empty while no Jobs are configured. `deadline`: seconds that
        a disk may take to answer."""
        self._cluster = cluster
        self._volumes = volumes
        self._events = events
        self._metrics = metrics
        self._wake = wake
        self._job_image = job_image
        self._retry = retry
        self._looks = Looks(deadline)
        self._table = ProcessTable()
        self._jobs = JobTracker(
            cluster, self._table, self._job_failed, hostname=node.hostname, namespace=namespace, image=job_image
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._deleted: set[str] = set()
        """UIDs of PersistentVolumes that we deleted and that are still in the cache."""
        self._told: dict[str, str] = {}
        """By volume, the last failure in the log."""

    def cleaning(self, name: str) -> bool:
        """Whether the volume of that name is being cleaned, or may be for all we know: it must not be offered."""
        return not self._jobs.known or self._table.running(name)

    def counts(self) -> ProcessCounts:
        return self._table.counts()

    async def run(self) -> None:
        """For ever. When it is cancelled, the cleanings of this process are ended."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def delete_pass(self, configuration: Configuration) -> None:
        volumes = {volume.name: volume for volume in self._volumes()}
        try:
            await self._jobs.look(
                configuration.use_job_for_cleaning, {name: Release.of(volume) for name, volume in volumes.items()}
            )
        except ApiError as error:
            log.warning("the API server does not tell of cleaning Jobs: %s", error)
            if not self._jobs.known:
                return
        self._forget(volumes)
        for volume in volumes.values():
            try:
                await self._look_at(volume, volumes, configuration)
            except _NotReclaimed as error:
                self._failed(volume.reference, error.mode, error.kind, str(error))

    def _forget(self, volumes: Mapping[str, StaticVolume]) -> None:
        for cleaning in self._table:
            if not cleaning.running and cleaning.release.volume not in volumes:
                self._table.forget(cleaning.release.volume)
        self._deleted &= {volume.uid for volume in volumes.values()}
        self._told = {name: words for name, words in self._told.items() if name in volumes}

    async def _look_at(
        self, volume: StaticVolume, volumes: Mapping[str, StaticVolume], configuration: Configuration
    ) -> None:
        if volume.uid in self._deleted:
            return
        match decide(volume, self._table.get(volume.name), time.monotonic(), self._retry):
            case Refuse(reason, message):
                self._events.warning(volume.reference, reason, message)
            case Remove(cleaning):
                await self._remove(volume, cleaning)
            case Clean():
                await self._clean(volume, volumes, configuration)

    async def _clean(
        self, volume: StaticVolume, volumes: Mapping[str, StaticVolume], configuration: Configuration
    ) -> None:
        """Begins it."""
        settings = configuration.classes.get(volume.storage_class)
        if settings is None:
            raise _NotReclaimed(
                UNKNOWN,
                PROCESS,
                f"Unknown storage class name {volume.storage_class}: put it back into storageClassMap, or delete the "
                "PersistentVolume by hand",
            )
        if settings.refused:
            raise _NotReclaimed(UNKNOWN, PROCESS, f"class {settings.name}: {settings.refused}")
        if self._table.counts().running >= configuration.parallel_cleanings:
            log.debug("%s waits for one of %d cleanings to end", volume.name, configuration.parallel_cleanings)
            return
        neighbours = _paths((other for other in volumes.values() if other.name != volume.name), configuration.classes)
        try:
            path = places.container_path(settings, volume.path)
            place = await self._looks.at(path, partial(places.locate, volume, settings, neighbours))
        except Hung as error:
            raise _NotReclaimed(UNKNOWN, PROCESS, f"{error} (or that of a volume beside it)") from None
        except PlaceError as error:
            kind = JOB if error.mode == BLOCK and configuration.use_job_for_cleaning else PROCESS
            raise _NotReclaimed(error.mode or UNKNOWN, kind, str(error)) from None
        as_job = place.mode == BLOCK and configuration.use_job_for_cleaning
        try:
            if not await self._confirmed(volume):
                return
            if as_job:
                if not self._job_image:
                    raise _NotReclaimed(BLOCK, JOB, "useJobForCleaning is set and JOB_CONTAINER_IMAGE is not: set both")
                if not await self._jobs.start(Release.of(volume), place, settings, configuration):
                    return
        except ApiError as error:
            raise _NotReclaimed(place.mode, JOB if as_job else PROCESS, str(error)) from None
        if not as_job:
            self._begin(volume, place, settings, configuration.cleaning_timeout)
        log.info("%s: cleaning of %s began", volume.name, place.path)
        if place.mode == BLOCK:
            message = f'Starting cleanup of Block PV "{volume.name}", this may take a while'
            self._events.normal(volume.reference, STARTED, message)

    async def _confirmed(self, volume: StaticVolume) -> bool:
        """Whether the API server itself says that the volume is to be cleaned: the cache may be a moment behind, and
        what is cleaned can't be brought back. Raises ApiError."""
        try:
            now = static_volume.read(await self._cluster.get(VOLUMES, volume.name))
        except NotFound:
            return False
        return (
            now is not None
            and Release.of(now) == Release.of(volume)
            and isinstance(decide(now, None, 0, self._retry), Clean)
        )

    def _begin(self, volume: StaticVolume, place: Place, settings: ClassConfiguration, deadline: float) -> None:
        configured = settings.block_cleaner if place.mode == BLOCK else settings.filesystem_cleaner
        first_word = next(iter(configured), "")
        self._table.start(Cleaning(Release.of(volume), place.mode, PROCESS, first_word, time.monotonic()))
        task = asyncio.create_task(self._process(volume, place, settings, deadline), name=f"cleaning {volume.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _process(self, volume: StaticVolume, place: Place, settings: ClassConfiguration, deadline: float) -> None:
        try:
            await process.clean(volume.name, place, settings, deadline)
        except CleaningFailed as error:
            self._process_failed(volume, place, str(error))
        except Exception as error:
            log.exception("%s: a fault of our own ended the cleaning", volume.name)
            self._process_failed(volume, place, repr(error))
        else:
            self._table.succeed(volume.name, time.monotonic())
            log.info("%s: cleaning of %s succeeded", volume.name, place.path)
        self._wake()

    def _process_failed(self, volume: StaticVolume, place: Place, words: str) -> None:
        self._table.fail(volume.name, time.monotonic())
        self._failed(volume.reference, place.mode, PROCESS, words)

    def _job_failed(self, release: Release, words: str) -> None:
        self._failed(ObjectReference("PersistentVolume", "v1", "", release.volume, release.uid), BLOCK, JOB, words)

    async def _remove(self, volume: StaticVolume, cleaning: Cleaning) -> None:
        """Deletes the PersistentVolume. When that fails, the cleaning is still remembered and not made again."""
        try:
            if cleaning.kind == JOB:
                await self._jobs.dismiss(volume.name)
            with self._metrics.request(DELETE), suppress(NotFound):
                await self._cluster.delete(VOLUMES, volume.name, uid=volume.uid)
        except ApiError as error:
            raise _NotReclaimed(cleaning.mode, cleaning.kind, f"it is clean and can't be deleted: {error}") from None
        self._deleted.add(volume.uid)
        seconds = time.monotonic() - cleaning.began
        self._metrics.deleted(cleaning.mode, cleaning.kind, seconds, volume.capacity, cleaning.command)
        log.info("%s: deleted %.1f s after its cleaning began", volume.name, seconds)

    def _failed(self, reference: ObjectReference, mode: str, kind: str, words: str) -> None:
        message = f'Error cleaning PV "{reference.name}": {words}'
        if self._told.get(reference.name) != message:
            log.warning("%s", message)
        self._told[reference.name] = message
        self._metrics.delete_failed(mode, kind)
        self._events.warning(reference, FAILED, message)


def _paths(volumes: Iterable[StaticVolume], classes: Mapping[str, ClassConfiguration]) -> dict[str, Path]:
    """Where volumes are, as we see it, by name. One whose path can't be believed is nowhere."""
    paths = {}
    for volume in volumes:
        if settings := classes.get(volume.storage_class):
            with suppress(PlaceError):
                paths[volume.name] = places.container_path(settings, volume.path)
    return paths
