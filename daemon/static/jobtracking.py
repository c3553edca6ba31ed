"""What the cleaning Jobs of this node do, brought into the process table.

Jobs are asked for when there can be any, and not watched: most nodes clean nothing most of the time, and a Job that
ended is soon enough seen in the next pass.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from daemon.static import jobs
from daemon.static.configuration import BLOCK, ClassConfiguration, Configuration
from daemon.static.jobs import CleaningJob
from daemon.static.metrics import JOB
from daemon.static.place import Place
from daemon.static.proctable import Cleaning, ProcessTable, Release, State
from kube.client import JOBS, AlreadyExists, Cluster, Conflict, Forbidden, NotFound

log = logging.getLogger(__name__)


class JobTracker:
    def __init__(
        self,
        cluster: Cluster,
        table: ProcessTable,
        failed: Callable[[Release, str], None],
        *,
        node: str,
        hostname: str,
        namespace: str,
        image: str,
    ) -> None:
        """`failed` is told of each cleaning that failed, and why."""
        self._cluster = cluster
        self._table = table
        self._failed = failed
        self._node = node
        self._hostname = hostname
        self._namespace = namespace
        self._image = image
        self._jobs: Mapping[str, CleaningJob] = {}
        self._called_off: set[str] = set()
        """Volumes whose Job was told to go before its time: what it says from then on counts for nothing."""
        self.known = False
        """Whether the Jobs from before our start are in the table."""

    async def look(self, wanted: bool, releases: Mapping[str, Release]) -> None:
        """Brings the table up to date. `releases`: of all PersistentVolumes of this node, by name.

        The first look is made also when Jobs are not `wanted`, if there is an image for them: one may run since before
        that was configured. To be forbidden to look means then that there is none of ours. Raises ApiError."""
        if not wanted and (self.known or not self._image) and not any(self._running()):
            self.known = True
            return
        try:
            bodies = await self._cluster.list(JOBS, self._namespace, label_selector=jobs.selector(self._hostname))
        except Forbidden:
            if wanted:
                raise
            self.known = True
            return
        found = [jobs.read(body, self._node) for body in bodies]
        self._jobs = {job.release.volume: job for job in found if job}
        self.known = True
        for job in self._jobs.values():
            await self._take(job, releases.get(job.release.volume))
        for cleaning in self._running():
            volume = cleaning.release.volume
            if volume in self._jobs:
                continue
            if volume in self._called_off:
                self._table.call_off(volume)
                self._called_off.discard(volume)
            else:
                self._table.fail(volume, time.monotonic())
                self._failed(cleaning.release, f"somebody deleted Job {jobs.name(volume)} before it ended")

    def _running(self) -> list[Cleaning]:
        return [cleaning for cleaning in self._table if cleaning.running and cleaning.kind == JOB]

    async def _take(self, job: CleaningJob, wanted: Release | None) -> None:
        volume = job.release.volume
        known = self._table.get(volume)
        if known and known.running and (known.kind != JOB or volume in self._called_off):
            return
        told = known is not None and (known.release, known.state) == (job.release, job.state)
        idle = known is None or not known.running
        if idle and (job.state is State.RUNNING or (job.release == wanted and not told)):
            self._table.start(_cleaning(job))
            known = self._table.get(volume)
        if known and known.running and job.state is State.SUCCEEDED:
            self._table.succeed(volume, time.monotonic())
        elif known and known.running and job.state is State.FAILED:
            self._table.fail(volume, time.monotonic())
            self._failed(job.release, f"Job {job.name} failed: {job.words or 'see its pods for why'}")
        if job.state is State.FAILED or (job.state is State.SUCCEEDED and job.release != wanted):
            await self.dismiss(volume)

    async def start(self, release: Release, place: Place, settings: ClassConfiguration, how: Configuration) -> bool:
        """Creates the Job. False when one of that name exists, which has to go first. Raises ApiError."""
        body = jobs.manifest(
            release,
            place,
            settings,
            how,
            node=self._node,
            hostname=self._hostname,
            namespace=self._namespace,
            image=self._image,
            now=datetime.now(UTC),
        )
        try:
            created = jobs.read(await self._cluster.create(JOBS, body), self._node)
        except AlreadyExists:
            log.info("Job %s exists, its cleaning goes first", jobs.name(release.volume))
            return False
        assert created
        self._jobs = {**self._jobs, release.volume: created}
        self._table.start(_cleaning(created))
        return True

    async def call_off(self, volume: str) -> None:
        """Ends the Job and its pods. It counts as running until they are gone. Raises ApiError."""
        self._called_off.add(volume)
        await self.dismiss(volume)

    async def dismiss(self, volume: str) -> None:
        """Deletes the Job, and its pods before it. Raises ApiError."""
        job = self._jobs.get(volume)
        if job is None or job.deleting:
            return
        # Conflict: another Job has the name by now.
        with contextlib.suppress(NotFound, Conflict):
            await self._cluster.delete(JOBS, job.name, self._namespace, uid=job.uid, propagation="Foreground")


def _cleaning(job: CleaningJob) -> Cleaning:
    age = max(0.0, time.time() - job.began)
    return Cleaning(job.release, BLOCK, JOB, job.command, time.monotonic() - age)
