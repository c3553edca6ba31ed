"""The form of cleanup Jobs, and what is read of them."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from daemon.static import cleanupjob
from daemon.static.cleanupprocess import CleanupTarget
from daemon.static.configuration import BLOCK, ClassConfiguration, Configuration
from daemon.static.reclaim import CleanupState, ReleasedVolume

Json = dict[str, Any]

RELEASE = ReleasedVolume("local-pv-1", "uid-1", "claim-1")
PLACE = CleanupTarget(
    Path("/mnt/disks/one"), Path("/dev/sdb"), BLOCK, proof=("start=2048", "../device/wwid=naa.5000c500a1b2c3d4")
)
CLASS = ClassConfiguration("fast", "/mnt/disks", Path("/mnt/disks"), block_cleaner=("/scripts/shred.sh", "2"))
TOLERATIONS = ({"key": "storage", "operator": "Exists"},)


def made(class_config: ClassConfiguration = CLASS, **keys: Any) -> Json:
    return cleanupjob.job_manifest(
        RELEASE,
        PLACE,
        class_config,
        Configuration(job_tolerations=TOLERATIONS, cleaning_timeout=7200, **keys),
        node="node-1",
        hostname="host-1",
        namespace="storage",
        image="example.org/cleaner:1",
        now=datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC),
    )


ONLY_NODE_1 = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-1"]}]},
            ]
        }
    }
}


def test_the_whole_manifest() -> None:
    labels = {"kubernetes.io/hostname": "host-1", "pv": "local-pv-1", "pvuuid": "uid-1"}
    assert made() == {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": "cleanup-local-pv-1",
            "namespace": "storage",
            "labels": labels,
            "annotations": {
                "device": "/mnt/disks/one",
                "start-time": "2026-03-04T05:06:07Z",
                "elastic-local.volumes.k8s.elastic.co/claim-uid": "claim-1",
            },
        },
        "spec": {
            "activeDeadlineSeconds": 7200,
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "restartPolicy": "OnFailure",
                    "terminationGracePeriodSeconds": 1,
                    "nodeSelector": {"kubernetes.io/hostname": "host-1"},
                    "affinity": ONLY_NODE_1,
                    "tolerations": [{"key": "storage", "operator": "Exists"}],
                    "volumes": [
                        {"name": "dev", "hostPath": {"path": "/dev"}},
                        {"name": "mount-ec4cf155", "hostPath": {"path": "/mnt/disks"}},
                    ],
                    "containers": [
                        {
                            "name": "cleaner",
                            "image": "example.org/cleaner:1",
                            "command": ["sh", "-euc", cleanupjob._CHECKED],
                            "args": ["/scripts/shred.sh", "2"],
                            "env": [
                                {"name": "LOCAL_PV_BLKDEVICE", "value": "/mnt/disks/one"},
                                {
                                    "name": "ELASTIC_LOCAL_DISK",
                                    "value": "start=2048\n../device/wwid=naa.5000c500a1b2c3d4",
                                },
                                {"name": "ELASTIC_LOCAL_BEGIN_UNTIL", "value": "1772601067"},
                            ],
                            "securityContext": {"privileged": True, "runAsUser": 0},
                            "volumeMounts": [
                                {"name": "dev", "mountPath": "/dev"},
                                {"name": "mount-ec4cf155", "mountPath": "/mnt/disks"},
                            ],
                        }
                    ],
                },
            },
        },
    }


def test_disks_offered_out_of_dev_itself_are_mounted_once() -> None:
    class_config = ClassConfiguration("fast", "/dev", Path("/dev"))
    pod = made(class_config)["spec"]["template"]["spec"]
    assert [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]] == ["/dev"]
    assert [volume["name"] for volume in pod["volumes"]] == [pod["containers"][0]["volumeMounts"][0]["name"]]


def read(status: Json, **metadata: Any) -> cleanupjob.CleanupJob:
    body = made()
    body["metadata"] |= {"uid": "job-uid", **metadata}
    job = cleanupjob.read_job({**body, "status": status}, "node-1")
    assert job
    return job


FAILED = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "it failed too often"}


@pytest.mark.parametrize(
    ("status", "state", "message"),
    [
        ({}, CleanupState.RUNNING, ""),
        ({"succeeded": 0, "active": 1}, CleanupState.RUNNING, ""),
        ({"failed": 3, "active": 1}, CleanupState.RUNNING, ""),
        ({"conditions": [{**FAILED, "status": "False"}]}, CleanupState.RUNNING, ""),
        ({"succeeded": 1}, CleanupState.SUCCEEDED, ""),
        ({"failed": 7, "conditions": [FAILED]}, CleanupState.FAILED, "BackoffLimitExceeded: it failed too often"),
    ],
)
def test_states(status: Json, state: CleanupState, message: str) -> None:
    job = read(status)
    assert (job.state, job.reason) == (state, message)


def test_the_job_of_another_node_says_nothing_of_ours() -> None:
    """Whatever its labels say: the daemon there may be in other hands."""
    forged = made()
    forged["metadata"]["uid"] = "job-uid"
    assert cleanupjob.read_job(forged, "node-1")
    assert cleanupjob.read_job(forged, "node-2") is None
    made_before = made()
    made_before["metadata"]["uid"] = "job-uid"
    del made_before["spec"]["template"]["spec"]["affinity"]
    assert cleanupjob.read_job(made_before, "node-1")


def test_what_is_written_is_read() -> None:
    job = read({})
    assert (job.released, job.command, job.deleting) == (RELEASE, "/scripts/shred.sh", False)
    assert job.started == datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC).timestamp()
    assert read({}, deletionTimestamp="2026-03-04T06:00:00Z").deleting


def test_a_start_time_that_is_none_is_now() -> None:
    assert abs(read({}, annotations={"start-time": "yesterday"}).started - time.time()) < 60


def test_jobs_of_others_are_none_of_ours() -> None:
    body = made()
    body["metadata"] |= {"uid": "job-uid", "name": "backup"}
    assert cleanupjob.read_job(body, "node-1") is None
    assert cleanupjob.read_job({"metadata": {"name": "cleanup-", "uid": "job-uid"}}, "node-1") is None
