"""The STATUS, READY and RESTARTS of a pod as kubectl shows them. Source: printPod in pkg/printers/internalversion."""

from tests.sandbox.apiserver.ages import since
from tests.sandbox.apiserver.resources import Json


def _statuses(pod: Json, key: str = "containerStatuses") -> list[Json]:
    return (pod.get("status") or {}).get(key) or []


def ready(pod: Json) -> str:
    running = sum(1 for each in _statuses(pod) if each.get("ready") and "running" in (each.get("state") or {}))
    return f"{running}/{len(pod['spec'].get('containers') or [])}"


def restarts(pod: Json) -> object:
    statuses = _statuses(pod)
    count = sum(each.get("restartCount", 0) for each in statuses)
    ends = [((each.get("lastState") or {}).get("terminated") or {}).get("finishedAt") for each in statuses]
    last = max(filter(None, ends), default=None)
    return f"{count} ({since(last)} ago)" if count and last else str(count)


def reason(pod: Json) -> str:
    status = pod.get("status") or {}
    message: str = status.get("reason") or status.get("phase") or "Unknown"
    initialising = _initialising(pod)
    if initialising:
        message = initialising
    else:
        for each in reversed(_statuses(pod)):
            message = _container_reason(each) or message
        some_run = any(each.get("ready") and "running" in (each.get("state") or {}) for each in _statuses(pod))
        if message == "Completed" and some_run:
            message = "Running" if _is_ready(status) else "NotReady"
    if "deletionTimestamp" in pod["metadata"]:
        return "Unknown" if status.get("reason") == "NodeLost" else "Terminating"
    return message


def _container_reason(status: Json) -> str:
    state = status.get("state") or {}
    if waiting := (state.get("waiting") or {}).get("reason"):
        return str(waiting)
    if terminated := state.get("terminated"):
        if terminated.get("reason"):
            return str(terminated["reason"])
        if terminated.get("signal"):
            return f"Signal:{terminated['signal']}"
        return f"ExitCode:{terminated.get('exitCode', 0)}"
    return ""


def _initialising(pod: Json) -> str:
    statuses = _statuses(pod, "initContainerStatuses")
    for place, each in enumerate(statuses):
        state = each.get("state") or {}
        terminated = state.get("terminated")
        if terminated is not None and terminated.get("exitCode", 0) == 0:
            continue
        if terminated is not None:
            return f"Init:{_container_reason(each)}"
        waiting = (state.get("waiting") or {}).get("reason", "")
        if waiting and waiting != "PodInitializing":
            return f"Init:{waiting}"
        return f"Init:{place}/{len(pod['spec'].get('initContainers') or [])}"
    return ""


def _is_ready(status: Json) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or [])
