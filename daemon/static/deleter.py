"""What becomes of released volumes: they are cleaned, then their PersistentVolume is deleted, and discovery offers the
place anew.

What to do with each volume is a pure function of its PersistentVolume and of its cleaning. Nothing waits in here: a
cleaning that can't begin now, because of the limit or because of what stands at its path, is looked at again in the
next pass. The API server is asked right before a cleaning begins and before a PersistentVolume is deleted; what the
cache hears while a cleaning runs can end it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from contract.volume import releasing_static
from daemon.static import cleanup
from daemon.static import volume as static_volume
from daemon.static.cleanup import CleaningFailed, Place, PlaceError
from daemon.static.cleanupjob import JobTracker
from daemon.static.configuration import BLOCK, ClassConfiguration, Configuration
from daemon.static.metrics import DELETE, JOB, PROCESS, UNKNOWN, ProcessCounts, StaticMetrics
from daemon.static.reclaim import CallOff, Clean, Cleaning, LetGo, ProcessTable, Refuse, Release, Remove, decide, spared
from daemon.static.volume import StaticVolume
from host.diskthreads import DEADLINE, DiskThreads, Hung
from kube.backoff import Backoff
from kube.client import VOLUMES, ApiError, Cluster, Conflict, NotFound
from kube.events import Recorder
from kube.records import Node, ObjectReference

log = logging.getLogger(__name__)

FAILED, STARTED = "VolumeFailedDelete", "VolumeDelete"
CALLED_OFF = "VolumeCleaningCalledOff"

_RETRY = Backoff(first=5, factor=2, limit=300, jitter=0)
"""A cleaner that fails at once must not keep the disk busy."""


_LOOK_SECONDS = 4 * DEADLINE
"""That a look at a released volume may take: all processes of a busy node are asked whether they use it."""


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
        deadline: float = _LOOK_SECONDS,
    ) -> None:
        """`volumes` are the PersistentVolumes of this node. `wake` is called when a cleaning ended. Jobs are made in
        `namespace` from `job_image`, which may be empty while no Jobs are configured. `deadline`: seconds that
        a look at a released volume may take."""
        self._cluster = cluster
        self._volumes = volumes
        self._events = events
        self._metrics = metrics
        self._wake = wake
        self._job_image = job_image
        self._retry = retry
        self._looks = DiskThreads(deadline)
        self._table = ProcessTable()
        self._jobs = JobTracker(
            cluster,
            self._table,
            self._job_failed,
            node=node.name,
            hostname=node.hostname,
            namespace=namespace,
            image=job_image,
        )
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """By volume: the cleanings of this process."""
        self._deleted: set[str] = set()
        """UIDs of PersistentVolumes that we deleted and that are still in the cache."""
        self._told: dict[str, str] = {}
        """By volume, the last failure in the log."""

    def cleaning(self, name: str) -> bool:
        """Whether the volume of that name is being cleaned, or may be for all we know: it must not be offered."""
        return not self._jobs.known or self._table.running(name)

    def counts(self) -> ProcessCounts:
        return self._table.counts()

    def heard(self, name: str, _old: StaticVolume | None, now: StaticVolume | None) -> None:
        """What the cache learned of a PersistentVolume. A cleaning that must not go on is not left to run until the
        next pass, which other disks may hold up."""
        cleaning = self._table.get(name)
        if now and cleaning and cleaning.running and (why := spared(now, cleaning.release)):
            self._stop(cleaning, now.reference, why)

    async def run(self) -> None:
        """For ever. When it is cancelled, the cleanings of this process are ended."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

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
        await self._look_for_the_unheard(volumes)
        for volume in volumes.values():
            try:
                await self._look_at(volume, volumes, configuration)
            except _NotReclaimed as error:
                self._failed(volume.reference, error.mode, error.kind, str(error))

    def _forget(self, volumes: Mapping[str, StaticVolume]) -> None:
        for cleaning in self._table:
            volume = volumes.get(cleaning.release.volume)
            # What somebody had in hands meanwhile may have new data, also when it is Released again later.
            if not cleaning.running and (volume is None or spared(volume, cleaning.release)):
                self._table.forget(cleaning.release.volume)
        self._deleted &= {volume.uid for volume in volumes.values()}
        self._told = {name: words for name, words in self._told.items() if name in volumes}

    async def _look_for_the_unheard(self, volumes: Mapping[str, StaticVolume]) -> None:
        """A volume that is being cleaned and that the cache does not have may have lost our label alone. One that is
        gone has no claim either: its place is offered when the cleaning ended, and is clean then."""
        for cleaning in self._table:
            name = cleaning.release.volume
            if not cleaning.running or name in volumes:
                continue
            try:
                now = static_volume.read(await self._cluster.get(VOLUMES, name))
                if now and (why := spared(now, cleaning.release)):
                    await self._call_off(cleaning, now, why)
            except NotFound:
                continue
            except ApiError as error:
                log.warning("%s is being cleaned, and the API server does not tell of it: %s", name, error)

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
            case CallOff(cleaning, why):
                await self._call_off(cleaning, volume, why)
            case LetGo():
                try:
                    if await self._let_go(volume, lambda now: isinstance(decide(now, None, 0, self._retry), LetGo)):
                        log.info("%s: deleted by hand, its place is offered again", volume.name)
                except ApiError as error:
                    log.warning("%s: deleted by hand, and can't be let go: %s", volume.name, error)
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
            path = cleanup.container_path(settings, volume.path)
            place = await self._looks.at(path, partial(cleanup.locate, volume, settings, neighbours))
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
        # Its answer travels too, and meanwhile the cache may have heard more.
        heard = next((known for known in self._volumes() if known.name == volume.name), None)
        return all(
            known is not None
            and Release.of(known) == Release.of(volume)
            and isinstance(decide(known, None, 0, self._retry), Clean)
            for known in (now, heard)
        )

    def _begin(self, volume: StaticVolume, place: Place, settings: ClassConfiguration, deadline: float) -> None:
        configured = settings.block_cleaner if place.mode == BLOCK else settings.filesystem_cleaner
        first_word = next(iter(configured), "")
        self._table.start(Cleaning(Release.of(volume), place.mode, PROCESS, first_word, time.monotonic()))
        task = asyncio.create_task(self._process(volume, place, settings, deadline), name=f"cleaning {volume.name}")
        self._tasks[volume.name] = task
        task.add_done_callback(lambda ended: self._ended(volume.name, ended))

    def _ended(self, volume: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(volume) is task:
            del self._tasks[volume]
        if task.cancelled():
            self._table.call_off(volume)
        self._wake()

    def _stop(self, cleaning: Cleaning, reference: ObjectReference, why: str) -> None:
        """Ends a cleaning of this process: its program and all that it started are killed. A Job goes in the pass."""
        message = f"cleaning was called off, {why}: what was cleaned until then is gone"
        if self._told.get(reference.name) != message:
            self._told[reference.name] = message
            log.warning("%s: %s", reference.name, message)
            self._events.warning(reference, CALLED_OFF, message)
        task = self._tasks.get(reference.name)
        if task and not task.cancelling():
            task.cancel()

    async def _call_off(self, cleaning: Cleaning, volume: StaticVolume, why: str) -> None:
        """To be said again until it ended. Raises _NotReclaimed."""
        self._stop(cleaning, volume.reference, why)
        if cleaning.kind == JOB:
            try:
                await self._jobs.call_off(volume.name)
            except ApiError as error:
                raise _NotReclaimed(BLOCK, JOB, f"its Job can't be deleted, and {why}: {error}") from None

    async def _process(self, volume: StaticVolume, place: Place, settings: ClassConfiguration, deadline: float) -> None:
        try:
            await cleanup.clean(volume.name, place, settings, deadline)
        except CleaningFailed as error:
            self._process_failed(volume, place, str(error))
        except Exception as error:
            log.exception("%s: a fault of our own ended the cleaning", volume.name)
            self._process_failed(volume, place, repr(error))
        else:
            self._table.succeed(volume.name, time.monotonic())
            log.info("%s: cleaning of %s succeeded", volume.name, place.path)

    def _process_failed(self, volume: StaticVolume, place: Place, words: str) -> None:
        self._table.fail(volume.name, time.monotonic())
        self._failed(volume.reference, place.mode, PROCESS, words)

    def _job_failed(self, release: Release, words: str) -> None:
        self._failed(ObjectReference("PersistentVolume", "v1", "", release.volume, release.uid), BLOCK, JOB, words)

    async def _remove(self, volume: StaticVolume, cleaning: Cleaning) -> None:
        """Deletes the PersistentVolume, and lets it go. When that fails, the cleaning is still remembered and not made
        again. The version that was judged is deleted and no other: what is Released may be given to a claim."""
        try:
            if cleaning.kind == JOB:
                await self._jobs.dismiss(volume.name)
            with suppress(NotFound):
                body = await self._cluster.get(VOLUMES, volume.name)
                now = static_volume.read(body)
                if now is None or spared(now, cleaning.release):
                    return  # the cache hears of it in a moment
                if not now.deleting:
                    with self._metrics.request(DELETE), suppress(NotFound):
                        version = body["metadata"]["resourceVersion"]
                        await self._cluster.delete(VOLUMES, volume.name, uid=volume.uid, resource_version=version)
                if now.held and not await self._let_go(volume, lambda now: not spared(now, cleaning.release)):
                    return
        except Conflict:
            log.info("%s: changed at the moment of its deletion, it is looked at again", volume.name)
            return
        except ApiError as error:
            raise _NotReclaimed(cleaning.mode, cleaning.kind, f"it is clean and can't be deleted: {error}") from None
        self._deleted.add(volume.uid)
        seconds = time.monotonic() - cleaning.began
        self._metrics.deleted(cleaning.mode, cleaning.kind, seconds, volume.capacity, cleaning.command)
        log.info("%s: deleted %.1f s after its cleaning began", volume.name, seconds)

    async def _let_go(self, volume: StaticVolume, permitted: Callable[[StaticVolume], bool]) -> bool:
        """Takes our finalizer off a PersistentVolume that was deleted, if what it is now permits that. False: not now.
        Raises ApiError."""
        try:
            body = await self._cluster.get(VOLUMES, volume.name)
            now = static_volume.read(body)
            if now is None or now.uid != volume.uid:
                return True
            if not now.deleting or not permitted(now):
                return False
            if now.held:
                await self._cluster.patch(VOLUMES, volume.name, releasing_static(body))
        except NotFound:
            return True
        except Conflict:
            return False
        return True

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
                paths[volume.name] = cleanup.container_path(settings, volume.path)
    return paths
