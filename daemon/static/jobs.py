"""Cleaning Jobs: a block device is cleaned by a pod, because administrators want to see it, limit it or give it tools
that our image does not have.

The name of the Job is the lock: of two daemons, or two passes, only one can create it. Nothing else is remembered of a
Job than what it says itself, so it outlives a restart of the daemon.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from contract import names
from daemon.static.cleaners import BLOCK_DEVICE
from daemon.static.configuration import ClassConfiguration, Configuration
from daemon.static.naming import job_volume_name
from daemon.static.place import Place
from daemon.static.proctable import Release, State

Json = dict[str, Any]

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


def name(volume: str) -> str:
    return f"cleanup-{volume}"


def selector(hostname: str) -> str:
    """Of the Jobs of this node. `hostname` is the value of the Node's label."""
    return f"{names.HOSTNAME_LABEL}={hostname},{VOLUME_LABEL},{UID_LABEL}"


def manifest(
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
            "name": name(release.volume),
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


def read(body: Json, node: str) -> CleaningJob | None:
    """The record of a Job, or None when it is not one of this node. Its labels prove nothing: another node's daemon
    could have written them, and what its pod did on that node cleaned nothing here."""
    metadata, status = body["metadata"], body.get("status") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    volume = labels.get(VOLUME_LABEL, "")
    pod = ((body.get("spec") or {}).get("template") or {}).get("spec") or {}
    if not volume or metadata["name"] != name(volume) or _nodes(pod) not in ([node], []):
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
