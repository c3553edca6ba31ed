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
from daemon.static.cleanupprocess import CleanupTarget
from daemon.static.configuration import BLOCK, ClassConfiguration, Configuration
from daemon.static.metrics import JOB
from daemon.static.reclaim import Cleanup, CleanupState, ProcessTable, ReleasedVolume
from daemon.static.volume import job_volume_name
from kube.client import Cluster
from kube.errors import AlreadyExists, Conflict, Forbidden, NotFound
from kube.resources import JOBS

Json = dict[str, Any]

log = logging.getLogger(__name__)

VOLUME_LABEL, UID_LABEL = "pv", "pvuuid"
DEVICE, START_TIME, CLAIM = "device", "start-time", "elastic-local.volumes.k8s.elastic.co/claim-uid"
_CONTAINER = "cleaner"
_DEVICES = "/dev"
_PROOF = "ELASTIC_LOCAL_DISK"
_BEGIN_UNTIL = "ELASTIC_LOCAL_BEGIN_UNTIL"
_BEGIN_SECONDS = 300
"""In which the pod of a Job begins, or not at all: its image may have to be pulled."""
_CHECKED = r"""
if [ "$(date +%s)" -gt "$ELASTIC_LOCAL_BEGIN_UNTIL" ]; then
    echo "it is too long ago that this volume was to be cleaned: when this Job has failed it is looked at again" >&2
    exit 1
fi
LOCAL_PV_BLKDEVICE="$(readlink -f "$LOCAL_PV_BLKDEVICE")"
export LOCAL_PV_BLKDEVICE
exec 9<"$LOCAL_PV_BLKDEVICE"
number="$(stat -L -c %t:%T /proc/self/fd/9)"
folder="/sys/dev/block/$((0x${number%:*})):$((0x${number#*:}))"
while IFS= read -r line; do
    file="${line%%=*}"
    case "$file" in /*) ;; *) file="$folder/$file" ;; esac
    seen="$(cat "$file")" || seen=
    if [ "$seen" != "${line#*=}" ]; then
        echo "$LOCAL_PV_BLKDEVICE is not the disk that is to be cleaned: $file has '$seen' in place of '${line#*=}'" >&2
        exit 1
    fi
done <<END
$ELASTIC_LOCAL_DISK
END
exec "$0" "$@"
"""
"""Runs the cleaner, which follows as arguments, if it was a moment ago that the volume was released, and the device is
the one that was judged (diskevidence.proof): the pod may start long after that, also after a boot, when a link leads
elsewhere, or when somebody has the volume again and no daemon runs that would have deleted the Job. The device stays
open while the cleaner runs, so that its name can't become another's. In the words of any POSIX shell, for images that
have nothing of ours."""

NODE_FIELD = "metadata.name"
"""The field by which the affinity selects the node. Two nodes can have the same hostname label; the admission policy
that restricts a daemon's Jobs to its own node compares this."""


@dataclass(frozen=True)
class CleanupJob:
    name: str
    uid: str
    released: ReleasedVolume
    command: str
    started: float
    """Seconds since the epoch."""
    state: CleanupState
    reason: str
    """Of its failure, or empty."""
    deleting: bool


def job_name(volume: str) -> str:
    return f"cleanup-{volume}"


def job_selector(hostname: str) -> str:
    """The label selector of this node's Jobs. `hostname`: the value of the Node's label."""
    return f"{names.HOSTNAME_LABEL}={hostname},{VOLUME_LABEL},{UID_LABEL}"


def job_manifest(
    released: ReleasedVolume,
    target: CleanupTarget,
    class_config: ClassConfiguration,
    configuration: Configuration,
    *,
    node: str,
    hostname: str,
    namespace: str,
    image: str,
    now: datetime,
) -> Json:
    """The device is given by its path in the class's folder and not by the target of a link there: the pod may start
    after a reboot of the node, when /dev/sdb can be another disk."""
    labels = {names.HOSTNAME_LABEL: hostname, VOLUME_LABEL: released.volume, UID_LABEL: released.uid}
    # By mount path, which must be unique in a container: a class may offer the disks in /dev itself.
    folders = {_DEVICES: ("dev", _DEVICES)}
    folders[str(class_config.mount_dir)] = (
        job_volume_name(class_config.host_dir, str(class_config.mount_dir)),
        class_config.host_dir,
    )
    pod: Json = {
        "restartPolicy": "OnFailure",
        # The Job is deleted when the volume must not be cleaned any more. A shell that is the first process of its
        # container ignores SIGTERM, and would go on overwriting data for half a minute.
        "terminationGracePeriodSeconds": 1,
        # The value of the label: on many clouds it differs from the name of the Node.
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
                "command": ["sh", "-euc", _CHECKED],
                "args": list(class_config.block_cleaner),
                "env": [
                    {"name": BLOCK_DEVICE, "value": str(target.path)},
                    {"name": _PROOF, "value": "\n".join(target.proof)},
                    {"name": _BEGIN_UNTIL, "value": str(int(now.timestamp()) + _BEGIN_SECONDS)},
                ],
                # Root, because the image may set another user, as ours does, who can't open devices.
                "securityContext": {"privileged": True, "runAsUser": 0},
                "volumeMounts": [{"name": volume, "mountPath": path} for path, (volume, _) in folders.items()],
            }
        ],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job_name(released.volume),
            "namespace": namespace,
            "labels": labels,
            "annotations": {
                DEVICE: str(target.path),
                START_TIME: now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                CLAIM: released.claim_uid,
            },
        },
        "spec": {
            "activeDeadlineSeconds": max(1, round(configuration.cleaning_timeout)),
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def read_job(body: Json, node: str) -> CleanupJob | None:
    """The record of a Job, or None if it is not one of this node. The labels are no proof: another node's daemon could
    have written them, and a pod on that node cleaned nothing here."""
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
    state = CleanupState.FAILED if failed else CleanupState.RUNNING
    if status.get("succeeded"):
        state = CleanupState.SUCCEEDED
    return CleanupJob(
        name=metadata["name"],
        uid=metadata["uid"],
        released=ReleasedVolume(volume, labels.get(UID_LABEL, ""), annotations.get(CLAIM, "")),
        # Jobs of older versions have no arguments.
        command=next(iter(containers[0].get("args") or containers[0].get("command") or []), ""),
        started=_seconds(annotations.get(START_TIME) or metadata.get("creationTimestamp") or ""),
        state=state,
        reason=": ".join(filter(None, (failed.get("reason"), failed.get("message")))) if failed else "",
        deleting="deletionTimestamp" in metadata,
    )


def _nodes(pod: Json) -> list[str]:
    """Names of the nodes that the pod may run on. Empty: any, as in Jobs of versions before the affinity."""
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
    """Keeps the process table up to date with the cleanup Jobs of this node."""

    def __init__(
        self,
        cluster: Cluster,
        table: ProcessTable,
        report_failure: Callable[[ReleasedVolume, str], None],
        *,
        node: str,
        hostname: str,
        namespace: str,
        image: str,
    ) -> None:
        """`report_failure` is called with each failed cleanup and the reason."""
        self._cluster = cluster
        self._table = table
        self._report_failure = report_failure
        self._node = node
        self._hostname = hostname
        self._namespace = namespace
        self._image = image
        self._jobs: Mapping[str, CleanupJob] = {}
        self._aborted: set[str] = set()
        """Volumes whose Job was aborted: its later status is ignored."""
        self.synced = False
        """Whether the Jobs that exist since before the start of the daemon are in the table."""

    async def sync(self, enabled: bool, releases: Mapping[str, ReleasedVolume]) -> None:
        """Lists the Jobs. `releases`: of all PersistentVolumes of this node, by name.

        If Jobs are not `enabled` but there is an image for them, they are still listed once: one may be running since
        before the configuration changed. If listing is forbidden then, there are none of ours. Raises ApiError."""
        if not enabled and (self.synced or not self._image) and not any(self._running()):
            self.synced = True
            return
        try:
            bodies = await self._cluster.list(JOBS, self._namespace, label_selector=job_selector(self._hostname))
        except Forbidden:
            if enabled:
                raise
            self.synced = True
            return
        jobs = [read_job(body, self._node) for body in bodies]
        self._jobs = {job.released.volume: job for job in jobs if job}
        self.synced = True
        for job in self._jobs.values():
            await self._update_from(job, releases.get(job.released.volume))
        for cleanup in self._running():
            volume = cleanup.released.volume
            if volume in self._jobs:
                continue
            if volume in self._aborted:
                self._table.abort(volume)
                self._aborted.discard(volume)
            else:
                self._table.fail(volume, time.monotonic())
                self._report_failure(cleanup.released, f"Job {job_name(volume)} was deleted before it finished")

    def _running(self) -> list[Cleanup]:
        return [cleanup for cleanup in self._table if cleanup.running and cleanup.cleanup_type == JOB]

    async def _update_from(self, job: CleanupJob, current: ReleasedVolume | None) -> None:
        volume = job.released.volume
        known = self._table.get(volume)
        if known and known.running and (known.cleanup_type != JOB or volume in self._aborted):
            return
        recorded = known is not None and (known.released, known.state) == (job.released, job.state)
        idle = known is None or not known.running
        if idle and (job.state is CleanupState.RUNNING or (job.released == current and not recorded)):
            self._table.start(_cleanup_of(job))
            known = self._table.get(volume)
        if known and known.running and job.state is CleanupState.SUCCEEDED:
            self._table.succeed(volume, time.monotonic())
        elif known and known.running and job.state is CleanupState.FAILED:
            self._table.fail(volume, time.monotonic())
            self._report_failure(job.released, f"Job {job.name} failed: {job.reason or 'see its pods for the reason'}")
        if job.state is CleanupState.FAILED or (job.state is CleanupState.SUCCEEDED and job.released != current):
            await self.delete(volume)

    async def start(
        self,
        released: ReleasedVolume,
        target: CleanupTarget,
        class_config: ClassConfiguration,
        configuration: Configuration,
    ) -> bool:
        """Creates the Job. False: one of that name exists, and has to be deleted first. Raises ApiError."""
        body = job_manifest(
            released,
            target,
            class_config,
            configuration,
            node=self._node,
            hostname=self._hostname,
            namespace=self._namespace,
            image=self._image,
            now=datetime.now(UTC),
        )
        try:
            created = read_job(await self._cluster.create(JOBS, body), self._node)
        except AlreadyExists:
            log.info("Job %s exists, the cleanup waits until it is deleted", job_name(released.volume))
            return False
        assert created
        self._jobs = {**self._jobs, released.volume: created}
        self._table.start(_cleanup_of(created))
        return True

    async def abort(self, volume: str) -> None:
        """Deletes the Job. It counts as running until its pods are gone. Raises ApiError."""
        self._aborted.add(volume)
        await self.delete(volume)

    async def delete(self, volume: str) -> None:
        """Deletes the Job after its pods (foreground). Raises ApiError."""
        job = self._jobs.get(volume)
        if job is None or job.deleting:
            return
        # Conflict: the name is that of another Job by now.
        with contextlib.suppress(NotFound, Conflict):
            await self._cluster.delete(JOBS, job.name, self._namespace, uid=job.uid, propagation="Foreground")


def _cleanup_of(job: CleanupJob) -> Cleanup:
    age = max(0.0, time.time() - job.started)
    return Cleanup(job.released, BLOCK, JOB, job.command, time.monotonic() - age)
