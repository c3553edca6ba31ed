"""Cleanup by a Job: a block device is cleaned by a pod, because administrators want to see it, limit it or give it
tools that our image does not have.

The name of the Job is the lock: of two daemons, or two passes, only one can create it. Nothing else is stored about a
Job than what is in its object, so it survives a restart of the daemon. Jobs are listed when there can be any, and not
watched: most nodes clean nothing most of the time, and the next pass sees soon enough that a Job finished.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from contract import names
from daemon.static.cleaners import BLOCK_DEVICE
from daemon.static.cleanup import Place
from daemon.static.configuration import BLOCK, ClassConfiguration, Configuration
from daemon.static.metrics import JOB
from daemon.static.reclaim import Cleaning, ProcessTable, Release, State
from daemon.static.volume import job_volume_name
from kube.client import JOBS, AlreadyExists, Cluster, Conflict, Forbidden, NotFound

Json = dict[str, Any]

log = logging.getLogger(__name__)


VOLUME_LABEL, UID_LABEL = "pv", "pvuuid"
DEVICE, START_TIME, CLAIM = "device", "start-time", "elastic-local.volumes.k8s.elastic.co/claim-uid"
_CONTAINER = "cleaner"
_DEVICES = "/dev"


NODE_FIELD = "metadata.name"
"""By which an affinity names a node. A hostname label can be that of another one; the admission policy that holds a
daemon's Jobs to its own node compares this."""


@dataclass(frozen=True)
class CleaningJob:
    name: str
    uid: str
    release: Release
    command: str
    began: float
    """Seconds since the epoch."""
    state: State
    words: str
    """Why it failed."""
    deleting: bool


def job_name(volume: str) -> str:
    return f"cleanup-{volume}"


def job_selector(hostname: str) -> str:
    """Of the Jobs of this node. `hostname` is the value of the Node's label."""
    return f"{names.HOSTNAME_LABEL}={hostname},{VOLUME_LABEL},{UID_LABEL}"


def job_manifest(
    release: Release,
    place: Place,
    settings: ClassConfiguration,
    configuration: Configuration,
    *,
    node: str,
    hostname: str,
    namespace: str,
    image: str,
    now: datetime,
) -> Json:
    """The Job. The device is named by its path in the class's folder and not by what a link there leads to: the pod may
    start after the node did, and then /dev/sdb can be another disk."""
    labels = {names.HOSTNAME_LABEL: hostname, VOLUME_LABEL: release.volume, UID_LABEL: release.uid}
    # By the path in the container, where each may appear once: some offer the disks in /dev itself.
    folders = {_DEVICES: ("dev", _DEVICES)}
    folders[str(settings.mount_dir)] = (
        job_volume_name(settings.host_dir, str(settings.mount_dir)),
        settings.host_dir,
    )
    pod: Json = {
        "restartPolicy": "OnFailure",
        # The Job is deleted when the volume is not to be cleaned any more. A shell that is the first process of its
        # container does not hear SIGTERM, and half a minute is a long time to overwrite what must stay.
        "terminationGracePeriodSeconds": 1,
        # The value of the label: on many clouds it is not the name of the Node.
        "nodeSelector": {names.HOSTNAME_LABEL: hostname},
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {"matchFields": [{"key": NODE_FIELD, "operator": "In", "values": [node]}]},
                    ]
                }
            }
        },
        "tolerations": list(configuration.job_tolerations),
        "volumes": [{"name": volume, "hostPath": {"path": path}} for volume, path in folders.values()],
        "containers": [
            {
                "name": _CONTAINER,
                "image": image,
                "command": list(settings.block_cleaner),
                "env": [{"name": BLOCK_DEVICE, "value": str(place.path)}],
                # Root, because an image may name another user, as ours does, whom no device is open to.
                "securityContext": {"privileged": True, "runAsUser": 0},
                "volumeMounts": [{"name": volume, "mountPath": path} for path, (volume, _) in folders.items()],
            }
        ],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job_name(release.volume),
            "namespace": namespace,
            "labels": labels,
            "annotations": {
                DEVICE: str(place.path),
                START_TIME: now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                CLAIM: release.claim_uid,
            },
        },
        "spec": {
            "activeDeadlineSeconds": max(1, round(configuration.cleaning_timeout)),
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def read_job(body: Json, node: str) -> CleaningJob | None:
    """The record of a Job, or None when it is not one of this node. Its labels prove nothing: another node's daemon
    could have written them, and what its pod did on that node cleaned nothing here."""
    metadata, status = body["metadata"], body.get("status") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    volume = labels.get(VOLUME_LABEL, "")
    pod = ((body.get("spec") or {}).get("template") or {}).get("spec") or {}
    if not volume or metadata["name"] != job_name(volume) or _nodes(pod) not in ([node], []):
        return None
    containers = pod.get("containers") or [{}]
    failed = next(
        (c for c in status.get("conditions") or [] if c.get("type") == "Failed" and c.get("status") == "True"), None
    )
    state = State.SUCCEEDED if status.get("succeeded") else State.FAILED if failed else State.RUNNING
    return CleaningJob(
        name=metadata["name"],
        uid=metadata["uid"],
        release=Release(volume, labels.get(UID_LABEL, ""), annotations.get(CLAIM, "")),
        command=next(iter(containers[0].get("command") or []), ""),
        began=_seconds(annotations.get(START_TIME) or metadata.get("creationTimestamp") or ""),
        state=state,
        words=": ".join(filter(None, (failed.get("reason"), failed.get("message")))) if failed else "",
        deleting="deletionTimestamp" in metadata,
    )


def _nodes(pod: Json) -> list[str]:
    """Those that the pod may run on, by name. Empty: any, as in Jobs of versions before the affinity."""
    affinity = (pod.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    return [
        value
        for term in required.get("nodeSelectorTerms") or []
        for field in term.get("matchFields") or []
        for value in field.get("values") or []
    ]


def _seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return time.time()


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
            bodies = await self._cluster.list(JOBS, self._namespace, label_selector=job_selector(self._hostname))
        except Forbidden:
            if wanted:
                raise
            self.known = True
            return
        found = [read_job(body, self._node) for body in bodies]
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
                self._failed(cleaning.release, f"somebody deleted Job {job_name(volume)} before it ended")

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
        body = job_manifest(
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
            created = read_job(await self._cluster.create(JOBS, body), self._node)
        except AlreadyExists:
            log.info("Job %s exists, its cleaning goes first", job_name(release.volume))
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
