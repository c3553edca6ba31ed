"""What is written of a growing claim: conditions, allocated size and how far the growth is. Pure.

Source: pkg/volume/util/resize_util.go of Kubernetes 1.36.2, where RecoverVolumeExpansionFailure is always on. The
expand controller and the kubelet take turns by `status.allocatedResourceStatuses`: while it says that the node has to
do something the controller waits, and the kubelet begins nothing that the controller has not handed to it.

Each function gives a JSON merge patch for the claim's status.
"""

from datetime import UTC, datetime
from typing import Any

from contract import quantity

Json = dict[str, Any]

RESIZER = "volume.kubernetes.io/storage-resizer"
PRE_RESIZE_CAPACITY = "volume.alpha.kubernetes.io/pre-resize-capacity"
"""On a PersistentVolume whose node has yet to grow it: what the claim had before."""

CONTROLLER_IN_PROGRESS = "ControllerResizeInProgress"
CONTROLLER_INFEASIBLE = "ControllerResizeInfeasible"
NODE_PENDING = "NodeResizePending"
NODE_IN_PROGRESS = "NodeResizeInProgress"
NODE_INFEASIBLE = "NodeResizeInfeasible"

_CONDITIONS = ("Resizing", "FileSystemResizePending", "ControllerResizeError", "NodeResizeError")
_PENDING_MESSAGE = "Waiting for user to (re-)start a pod to finish file system resize of volume on node."


def step_of(claim: Json) -> str:
    """How far a growth is, or "" when there is none."""
    return str(((claim.get("status") or {}).get("allocatedResourceStatuses") or {}).get("storage") or "")


def allocated(claim: Json) -> str | None:
    """The size that the growth under way is to reach, or the last one has reached."""
    return ((claim.get("status") or {}).get("allocatedResources") or {}).get("storage")


def granted(claim: Json) -> int:
    """Bytes that the claim's status says it has; 0 before it says anything."""
    return quantity.parse(str(((claim.get("status") or {}).get("capacity") or {}).get("storage") or "0"))


def taken_up(claim: Json, resizer: str, size: str) -> Json:
    """The controller begins (MarkControllerReisizeInProgress)."""
    status = {
        "allocatedResourceStatuses": {"storage": CONTROLLER_IN_PROGRESS},
        "allocatedResources": {"storage": size},
        "conditions": _merged(claim, {"type": "Resizing"}, keep_old=False),
    }
    patch = _patch(claim, status)
    patch["metadata"]["annotations"] = {RESIZER: resizer}
    return patch


def handed_to_node(claim: Json) -> Json:
    """The controller has done its part (MarkForFSResize)."""
    pending = {"type": "FileSystemResizePending", "message": _PENDING_MESSAGE}
    status = {
        "allocatedResourceStatuses": {"storage": NODE_PENDING},
        "conditions": _merged(claim, pending, keep_old=True),
    }
    return _patch(claim, status)


def begun_on_node(claim: Json) -> Json:
    """The kubelet is about to call the driver (MarkNodeExpansionInProgress)."""
    return _patch(claim, {"allocatedResourceStatuses": {"storage": NODE_IN_PROGRESS}})


def failed_on_node(claim: Json, error: str, *, infeasible: bool) -> Json:
    """The driver failed. Infeasible: the kubelet won't try that size again (MarkNodeExpansionFailedCondition,
    MarkNodeExpansionInfeasible). Says it whatever else was written meanwhile; the first failure's words stay."""
    failure = {"type": "NodeResizeError", "message": f"failed to expand pvc with {error}"}
    status: Json = {"conditions": _merged(claim, failure, keep_old=True)}
    if infeasible:
        status["allocatedResourceStatuses"] = {"storage": NODE_INFEASIBLE}
    return {"status": status}


def finished(claim: Json, size: str) -> Json:
    """The volume has its new size (MarkNodeExpansionFinishedWithRecovery, MarkFSResizeFinished)."""
    status = {
        "capacity": {"storage": size},
        "allocatedResourceStatuses": {"storage": None},
        "conditions": _merged(claim, None, keep_old=False),
    }
    return _patch(claim, status)


def _patch(claim: Json, status: Json) -> Json:
    return {"metadata": {"resourceVersion": claim["metadata"]["resourceVersion"]}, "status": status}


def _merged(claim: Json, condition: Json | None, *, keep_old: bool) -> list[Json]:
    """The claim's conditions with this one. Those that are not of growing stay, and so does one of the same kind as it
    is: with its time and message (MergeResizeConditionOnPVC)."""
    wanted = condition["type"] if condition else ""
    present = (claim.get("status") or {}).get("conditions") or []
    kept = [each for each in present if each["type"] not in _CONDITIONS or keep_old or each["type"] == wanted]
    if condition is None or any(each["type"] == wanted for each in kept):
        return kept
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return [*kept, {"status": "True", "lastTransitionTime": now, "lastProbeTime": None, **condition}]
