"""Cleans released volumes, then deletes their PersistentVolumes, so that discovery offers the entries again.

What to do with each volume is a pure function of its PersistentVolume and its cleanup (reclaim.py). Nothing waits here:
a cleanup that can't start now, because of the limit or because of what is at its path, is tried again in the next pass.
The API server is asked right before a cleanup starts and before a PersistentVolume is deleted; a change that the cache
reports while a cleanup runs can abort it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial

from contract import names
from contract import volume as contract_volume
from contract.volume import ObjectReference, finalizer_removal_patch, volume_reference
from daemon.static import cleanupprocess
from daemon.static import volume as static_volume
from daemon.static.cleanupjob import JobTracker
from daemon.static.cleanupprocess import CleanupFailed, CleanupRefused, CleanupTarget
from daemon.static.configuration import BLOCK, ClassConfiguration, Configuration, class_inside
from daemon.static.metrics import DELETE, JOB, PROCESS, UNKNOWN, ProcessCounts, StaticMetrics
from daemon.static.reclaim import (
    AbortCleanup,
    Cleanup,
    DeleteVolume,
    ProcessTable,
    ReleasedVolume,
    RemoveFinalizer,
    StartCleanup,
    Warn,
    abort_reason,
    next_step,
)
from daemon.static.volume import StaticVolume
from host.diskthreads import DEADLINE, DiskThreads, Hung
from kube.backoff import Backoff
from kube.claims import holding_claim
from kube.client import Cluster
from kube.errors import ApiError, Conflict, NotFound
from kube.events import Recorder
from kube.records import Node
from kube.resources import VOLUMES

log = logging.getLogger(__name__)

FAILED, STARTED = "VolumeFailedDelete", "VolumeDelete"
ABORTED = "VolumeCleaningCalledOff"

_RETRY = Backoff(first=5, factor=2, limit=300, jitter=0)
"""A cleaner that fails at once must not keep the disk busy."""
_CHECK_SECONDS = 4 * DEADLINE
"""Deadline of the check before a cleanup: it looks for users of the volume among all processes of a busy node."""


class _ReclaimFailed(Exception):
    def __init__(self, mode: str, cleanup_type: str, message: str) -> None:
        super().__init__(message)
        self.mode = mode
        self.cleanup_type = cleanup_type


class Deleter:
    def __init__(
        self,
        cluster: Cluster,
        volumes: Callable[[], Iterable[StaticVolume]],
        node: Node,
        events: Recorder,
        metrics: StaticMetrics,
        trigger: Callable[[], None],
        *,
        namespace: str,
        job_image: str,
        retry: Backoff = _RETRY,
        deadline: float = _CHECK_SECONDS,
    ) -> None:
        """`volumes`: the PersistentVolumes of this node. `trigger` is called when a cleanup ended. Jobs are created in
        `namespace` with `job_image`, which may be empty while no Jobs are configured. `deadline`: seconds that the
        check of a released volume may take."""
        self._cluster = cluster
        self._volumes = volumes
        self._events = events
        self._metrics = metrics
        self._trigger = trigger
        self._job_image = job_image
        self._retry = retry
        self._disk_threads = DiskThreads(deadline)
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
        """By volume: the cleanups of this process."""
        self._deleted: set[str] = set()
        """UIDs of PersistentVolumes that were deleted here and are still in the cache."""
        self._reported: dict[str, str] = {}
        """By volume: the last failure that was logged."""

    def is_cleaning(self, name: str) -> bool:
        """Whether the volume of that name is or may be being cleaned: it must not be offered."""
        return not self._jobs.synced or self._table.running(name)

    def counts(self) -> ProcessCounts:
        return self._table.counts()

    def volume_changed(self, name: str, _old: StaticVolume | None, new: StaticVolume | None) -> None:
        """A subscriber of the cache. A cleanup that must be aborted does not go on until the next pass, which other
        disks may delay."""
        cleanup = self._table.get(name)
        if new and cleanup and cleanup.running and (reason := abort_reason(new, cleanup.released)):
            self._abort_process(cleanup, new.reference, reason)

    async def run(self) -> None:
        """For ever. On cancellation the cleanups of this process end; Jobs go on."""
        try:
            await asyncio.Event().wait()
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def delete_pass(self, configuration: Configuration) -> None:
        """Examines every PersistentVolume once."""
        volumes = {volume.name: volume for volume in self._volumes()}
        released = {name: ReleasedVolume.of(volume) for name, volume in volumes.items()}
        try:
            await self._jobs.sync(configuration.use_job_for_cleaning, released)
        except ApiError as error:
            log.warning("cleanup Jobs can't be listed: %s", error)
            if not self._jobs.synced:
                return
        self._forget(volumes)
        await self._check_uncached(volumes)
        for volume in volumes.values():
            try:
                await self._reconcile(volume, volumes, configuration)
            except _ReclaimFailed as error:
                self._report_failure(volume.reference, error.mode, error.cleanup_type, str(error))

    def _forget(self, volumes: Mapping[str, StaticVolume]) -> None:
        for cleanup in self._table:
            volume = volumes.get(cleanup.released.volume)
            # A volume that was in use meanwhile may have new data, even if it is Released again later.
            if not cleanup.running and (volume is None or abort_reason(volume, cleanup.released)):
                self._table.forget(cleanup.released.volume)
        self._deleted &= {volume.uid for volume in volumes.values()}
        self._reported = {name: message for name, message in self._reported.items() if name in volumes}

    async def _check_uncached(self, volumes: Mapping[str, StaticVolume]) -> None:
        """A volume that is being cleaned and is not in the cache may only have lost our label. If it is deleted it has
        no claim either: its entry is offered when the cleanup ended, and is clean then."""
        for cleanup in self._table:
            name = cleanup.released.volume
            if not cleanup.running or name in volumes:
                continue
            try:
                now = static_volume.read(await self._cluster.get(VOLUMES, name))
                if now and (reason := abort_reason(now, cleanup.released)):
                    await self._abort(cleanup, now, reason)
            except NotFound:
                continue
            except ApiError as error:
                log.warning("%s is being cleaned, and its PersistentVolume can't be read: %s", name, error)

    async def _reconcile(
        self, volume: StaticVolume, volumes: Mapping[str, StaticVolume], configuration: Configuration
    ) -> None:
        if volume.uid in self._deleted:
            return
        match next_step(volume, self._table.get(volume.name), time.monotonic(), self._retry):
            case Warn(reason, message):
                self._events.warning(volume.reference, reason, message)
            case DeleteVolume(cleanup):
                await self._delete_volume(volume, cleanup, configuration)
            case AbortCleanup(cleanup, reason):
                await self._abort(cleanup, volume, reason)
            case RemoveFinalizer():
                try:
                    if await self._remove_finalizer(volume, lambda now: isinstance(self._judge(now), RemoveFinalizer)):
                        log.info("%s: deleted by hand, its entry is offered again", volume.name)
                except ApiError as error:
                    log.warning("%s: deleted by hand, and its finalizer can't be removed: %s", volume.name, error)
            case StartCleanup():
                await self._start_cleanup(volume, volumes, configuration)

    async def _start_cleanup(
        self, volume: StaticVolume, volumes: Mapping[str, StaticVolume], configuration: Configuration
    ) -> None:
        class_config = configuration.classes.get(volume.storage_class)
        if class_config is None:
            raise _ReclaimFailed(
                UNKNOWN,
                PROCESS,
                f"Unknown storage class name {volume.storage_class}: put it back into storageClassMap, or delete the "
                "PersistentVolume by hand",
            )
        if class_config.refusal:
            raise _ReclaimFailed(UNKNOWN, PROCESS, f"class {class_config.name}: {class_config.refusal}")
        if self._table.counts().running >= configuration.parallel_cleanings:
            log.debug("%s waits for one of %d cleanups to end", volume.name, configuration.parallel_cleanings)
            return
        others = (other for other in volumes.values() if other.name != volume.name)
        neighbours = cleanupprocess.neighbours(others, configuration.classes)
        try:
            path = cleanupprocess.container_path(class_config, volume.path)
            if holds := class_inside(configuration, class_config, path.name):
                raise _ReclaimFailed(UNKNOWN, PROCESS, holds)
            find_target = partial(cleanupprocess.find_target, volume, class_config, neighbours)
            target = await self._disk_threads.at(path, find_target)
        except Hung as error:
            raise _ReclaimFailed(UNKNOWN, PROCESS, f"{error} (or that of another volume on this node)") from None
        except CleanupRefused as error:
            cleanup_type = JOB if error.mode == BLOCK and configuration.use_job_for_cleaning else PROCESS
            raise _ReclaimFailed(error.mode or UNKNOWN, cleanup_type, str(error)) from None
        as_job = target.mode == BLOCK and configuration.use_job_for_cleaning
        try:
            if not await self._still_released(volume):
                return
            if as_job:
                if not self._job_image:
                    message = "useJobForCleaning is set and JOB_CONTAINER_IMAGE is not: set both"
                    raise _ReclaimFailed(BLOCK, JOB, message)
                if not await self._jobs.start(ReleasedVolume.of(volume), target, class_config, configuration):
                    return
        except (ApiError, CleanupRefused) as error:
            raise _ReclaimFailed(target.mode, JOB if as_job else PROCESS, str(error)) from None
        if not as_job:
            self._start_process(volume, target, class_config, configuration.cleaning_timeout)
        log.info("%s: cleanup of %s started", volume.name, target.path)
        if target.mode == BLOCK:
            message = f'Starting cleanup of Block PV "{volume.name}", this may take a while'
            self._events.normal(volume.reference, STARTED, message)

    async def _still_released(self, volume: StaticVolume) -> bool:
        """Whether the API server itself says that the volume is to be cleaned: the cache may be behind, and a cleanup
        can't be undone. Raises ApiError, and CleanupRefused while its claim has it: a volume is called Released also
        when it was given to that a moment ago."""
        try:
            body = await self._cluster.get(VOLUMES, volume.name)
        except NotFound:
            return False
        if not self._is_to_be_cleaned(static_volume.read(body), volume):
            return False
        reference = contract_volume.read_any(body).claim
        if claim := await holding_claim(self._cluster, reference, volume.name, volume.phase):
            raise CleanupRefused(f"it is Released, and claim {claim.key} has it: if its data is to go, delete that")
        # While the answers were on their way, the cache may have received a newer version.
        cached = next((known for known in self._volumes() if known.name == volume.name), None)
        return self._is_to_be_cleaned(cached, volume)

    def _is_to_be_cleaned(self, version: StaticVolume | None, judged: StaticVolume) -> bool:
        return (
            version is not None
            and ReleasedVolume.of(version) == ReleasedVolume.of(judged)
            and version.disk == judged.disk
            and isinstance(self._judge(version), StartCleanup)
        )

    def _judge(self, volume: StaticVolume) -> object:
        """The next step for a volume without a cleanup."""
        return next_step(volume, None, 0, self._retry)

    def _start_process(
        self, volume: StaticVolume, target: CleanupTarget, class_config: ClassConfiguration, deadline: float
    ) -> None:
        configured = class_config.block_cleaner if target.mode == BLOCK else class_config.filesystem_cleaner
        program = next(iter(configured), "")
        self._table.start(Cleanup(ReleasedVolume.of(volume), target.mode, PROCESS, program, time.monotonic()))
        process = self._run_process(volume, target, class_config, deadline)
        task = asyncio.create_task(process, name=f"cleanup of {volume.name}")
        self._tasks[volume.name] = task
        task.add_done_callback(lambda ended: self._process_ended(volume.name, ended))

    def _process_ended(self, volume: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(volume) is task:
            del self._tasks[volume]
        if task.cancelled():
            self._table.abort(volume)
        self._trigger()

    def _abort_process(self, cleanup: Cleanup, reference: ObjectReference, reason: str) -> None:
        """Kills the program of a cleanup in this process and all that it started. A Job is deleted in the pass."""
        message = f"cleanup was aborted, {reason}: the data that was erased before is lost"
        if self._reported.get(reference.name) != message:
            self._reported[reference.name] = message
            log.warning("%s: %s", reference.name, message)
            self._events.warning(reference, ABORTED, message)
        task = self._tasks.get(reference.name)
        if task and not task.cancelling():
            task.cancel()

    async def _abort(self, cleanup: Cleanup, volume: StaticVolume, reason: str) -> None:
        """Called again in each pass until the cleanup ended. Raises _ReclaimFailed."""
        self._abort_process(cleanup, volume.reference, reason)
        if cleanup.cleanup_type == JOB:
            try:
                await self._jobs.abort(volume.name)
            except ApiError as error:
                raise _ReclaimFailed(BLOCK, JOB, f"its Job can't be deleted, and {reason}: {error}") from None

    async def _run_process(
        self, volume: StaticVolume, target: CleanupTarget, class_config: ClassConfiguration, deadline: float
    ) -> None:
        try:
            await cleanupprocess.clean(volume.name, target, class_config, deadline)
        except CleanupFailed as error:
            self._process_failed(volume, target, str(error))
        except Exception as error:
            log.exception("%s: the cleanup failed by a bug in the daemon", volume.name)
            self._process_failed(volume, target, repr(error))
        else:
            self._table.succeed(volume.name, time.monotonic())
            log.info("%s: cleanup of %s succeeded", volume.name, target.path)

    def _process_failed(self, volume: StaticVolume, target: CleanupTarget, message: str) -> None:
        self._table.fail(volume.name, time.monotonic())
        self._report_failure(volume.reference, target.mode, PROCESS, message)

    def _job_failed(self, released: ReleasedVolume, message: str) -> None:
        self._report_failure(volume_reference(released.volume, released.uid), BLOCK, JOB, message)

    async def _check_entry(self, volume: StaticVolume, configuration: Configuration) -> None:
        """Without its PersistentVolume the entry is offered anew: not with another disk. Raises CleanupRefused and
        Hung."""
        for each in cleanupprocess.neighbours([volume], configuration.classes):
            if each.path:
                await self._disk_threads.at(each.path, partial(cleanupprocess.check_entry, volume, each.path))

    async def _delete_volume(self, volume: StaticVolume, cleanup: Cleanup, configuration: Configuration) -> None:
        """Deletes the PersistentVolume and removes our finalizer. If that fails the cleanup is remembered and not
        repeated. Only the version that was examined is deleted: a Released one may be given to a claim."""
        try:
            if cleanup.cleanup_type == JOB:
                await self._jobs.delete(volume.name)
            with suppress(NotFound):
                body = await self._cluster.get(VOLUMES, volume.name)
                now = static_volume.read(body)
                if now is None or abort_reason(now, cleanup.released):
                    return  # the cache receives that version in a moment
                if not now.deleting:
                    await self._check_entry(now, configuration)
                    with self._metrics.request(DELETE), suppress(NotFound):
                        version = body["metadata"]["resourceVersion"]
                        await self._cluster.delete(VOLUMES, volume.name, uid=volume.uid, resource_version=version)
                if now.has_finalizer and not await self._remove_finalizer(
                    volume, lambda now: not abort_reason(now, cleanup.released)
                ):
                    return
        except Conflict:
            log.info("%s: changed while it was being deleted, it is examined again", volume.name)
            return
        except (ApiError, CleanupRefused, Hung) as error:
            message = f"it is clean and can't be deleted: {error}"
            raise _ReclaimFailed(cleanup.mode, cleanup.cleanup_type, message) from None
        self._deleted.add(volume.uid)
        seconds = time.monotonic() - cleanup.started
        self._metrics.deleted(cleanup.mode, cleanup.cleanup_type, seconds, volume.capacity, cleanup.command)
        log.info("%s: deleted %.1f s after its cleanup started", volume.name, seconds)

    async def _remove_finalizer(self, volume: StaticVolume, permitted: Callable[[StaticVolume], bool]) -> bool:
        """Removes our finalizer from a PersistentVolume that was deleted, if its live version permits that. False: not
        now. Raises ApiError."""
        try:
            body = await self._cluster.get(VOLUMES, volume.name)
            now = static_volume.read(body)
            if now is None or now.uid != volume.uid:
                return True
            if not now.deleting or not permitted(now):
                return False
            if now.has_finalizer:
                patch = finalizer_removal_patch(contract_volume.read_any(body), names.STATIC_FINALIZER)
                await self._cluster.patch(VOLUMES, volume.name, patch)
        except NotFound:
            return True
        except Conflict:
            return False
        return True

    def _report_failure(self, reference: ObjectReference, mode: str, cleanup_type: str, error: str) -> None:
        message = f'Error cleaning PV "{reference.name}": {error}'
        if self._reported.get(reference.name) != message:
            log.warning("%s", message)
        self._reported[reference.name] = message
        self._metrics.delete_failed(mode, cleanup_type)
        self._events.warning(reference, FAILED, message)
