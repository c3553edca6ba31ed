"""What the API is told of a pod. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.sandbox.kubelet.container import Ended

Json = dict[str, Any]

PENDING, RUNNING, SUCCEEDED, FAILED = "Pending", "Running", "Succeeded", "Failed"
_CONTAINER_ID = "sandbox://"


@dataclass(frozen=True)
class Seen:
    """A container, as the kubelet sees it now. Times are RFC 3339."""

    name: str
    image: str
    started_at: str = ""
    """Empty: not started yet."""
    ended: Ended | None = None
    ended_at: str = ""
    restarts: int = 0
    crash_looping: bool = False

    @property
    def running(self) -> bool:
        return bool(self.started_at) and self.ended is None


def phase(restart_policy: str, init: Sequence[Seen], main: Sequence[Seen]) -> str:
    """A pod's phase: terminal only when no container will be started again."""
    if restart_policy == "Never" and any(seen.ended and seen.ended.exit_code for seen in init):
        return FAILED
    if not any(seen.started_at for seen in main):
        return PENDING
    if restart_policy != "Always" and all(seen.ended for seen in main):
        if all(seen.ended and seen.ended.exit_code == 0 for seen in main):
            return SUCCEEDED
        if restart_policy == "Never":
            return FAILED
    return RUNNING


def terminal(pod: Json) -> bool:
    return (pod.get("status") or {}).get("phase") in (SUCCEEDED, FAILED)


def pod_status(pod: Json, init: Sequence[Seen], main: Sequence[Seen], now: str, address: str) -> Json:
    """The pod's status. Conditions of others (PodScheduled) stay, and times only change with what they are about."""
    old = pod.get("status") or {}
    current = phase(pod["spec"].get("restartPolicy") or "Always", init, main)
    finished = current in (SUCCEEDED, FAILED)
    initialized = all(seen.ended and seen.ended.exit_code == 0 for seen in init)
    unready = [seen.name for seen in main if not seen.running]
    why = {} if not unready else (
        {"reason": "PodCompleted"} if finished
        else {"reason": "ContainersNotReady", "message": f"containers with unready status: [{' '.join(unready)}]"}
    )  # fmt: skip
    wanted = {
        "PodReadyToStartContainers": (any(seen.running for seen in (*init, *main)), {}),
        "Initialized": (initialized, {} if initialized else {"reason": "ContainersNotInitialized"}),
        "Ready": (not unready, why),
        "ContainersReady": (not unready, why),
    }
    before = {condition["type"]: condition for condition in old.get("conditions") or []}
    conditions = [condition for kind, condition in before.items() if kind not in wanted]
    for kind, (holds, details) in wanted.items():
        text = "True" if holds else "False"
        since = before.get(kind, {})
        changed = since["lastTransitionTime"] if since.get("status") == text else now
        conditions.append({"type": kind, "status": text, "lastTransitionTime": changed, **details})
    status: Json = {
        "phase": current,
        "conditions": conditions,
        "startTime": old.get("startTime") or now,
        "hostIP": address,
        "hostIPs": [{"ip": address}],
        "podIP": address,
        "podIPs": [{"ip": address}],
        "qosClass": old.get("qosClass") or "BestEffort",
        "containerStatuses": [_container_status(pod, seen, finished) for seen in main],
    }
    if init:
        status["initContainerStatuses"] = [_container_status(pod, seen, finished) for seen in init]
    return status


def _container_status(pod: Json, seen: Seen, finished: bool) -> Json:
    identity = f"{_CONTAINER_ID}{pod['metadata']['uid']}/{seen.name}/{seen.restarts}" if seen.started_at else ""
    status: Json = {
        "name": seen.name,
        "image": seen.image,
        "imageID": "",
        "containerID": identity,
        "restartCount": seen.restarts,
        "ready": seen.running,
        "started": seen.running,
        "lastState": {},
    }
    ended = seen.ended and {
        "exitCode": seen.ended.exit_code,
        "reason": seen.ended.reason,
        "message": seen.ended.message,
        "startedAt": seen.started_at,
        "finishedAt": seen.ended_at,
        "containerID": identity,
    }
    if seen.running:
        status["state"] = {"running": {"startedAt": seen.started_at}}
    elif seen.crash_looping and not finished:
        status["state"] = {"waiting": {"reason": "CrashLoopBackOff"}}
        status["lastState"] = {"terminated": ended}
    elif ended:
        status["state"] = {"terminated": ended}
    else:
        status["state"] = {"waiting": {"reason": "ContainerCreating"}}
    return status
