"""Whether a pod fits a node, volumes aside, and how the scheduler words it when none fits. Pure.

Source: pkg/scheduler/framework/types.go, plugins/{nodeunschedulable,tainttoleration,nodeaffinity}, and of PostFilter
plugins/{dynamicresources,defaultpreemption}, of Kubernetes 1.36.2.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from tests.sandbox.controlplane.selectors import node_selector_matches

Json = dict[str, Any]

_NOT_READY = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}


def misfit(pod: Json, node: Json) -> str | None:
    """Why the pod can't run on the node, or None."""
    spec = pod["spec"]
    labels = node["metadata"].get("labels") or {}
    if node["spec"].get("unschedulable"):
        return "node(s) were unschedulable"
    for taint in _taints(node):
        if not any(_tolerates(toleration, taint) for toleration in spec.get("tolerations") or []):
            return "node(s) had untolerated taint(s)"
    exact = spec.get("nodeSelector") or {}
    required = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    if any(labels.get(key) != value for key, value in exact.items()) or (
        required and not node_selector_matches(required, labels, node["metadata"]["name"])
    ):
        return "node(s) didn't match Pod's node affinity/selector"
    return None


def nothing_fits(nodes: int, reasons: Iterable[str]) -> str:
    """As `kubectl describe` shows it (FitError): the nodes' reasons, and what two plugins say that could make room."""
    counted = sorted(f"{count} {reason}" for reason, count in Counter(reasons).items())
    return (
        f"0/{nodes} nodes are available: {', '.join(counted)}. no new claims to deallocate, preemption: "
        f"0/{nodes} nodes are available: {nodes} Preemption is not helpful for scheduling."
    )


def nothing_may_fit(nodes: int, reason: str) -> str:
    """When no node was even asked. "not found" is the word of the plugin for resource claims, which is asked for room
    before it has seen the pod."""
    return f"0/{nodes} nodes are available: {reason}. not found"


def _taints(node: Json) -> list[Json]:
    taints = [taint for taint in node["spec"].get("taints") or [] if taint["effect"] in ("NoSchedule", "NoExecute")]
    conditions = (node.get("status") or {}).get("conditions") or []
    ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
    return taints if ready else [*taints, _NOT_READY]


def _tolerates(toleration: Json, taint: Json) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint["effect"]:
        return False
    if toleration.get("operator") == "Exists":
        return not toleration.get("key") or toleration["key"] == taint["key"]
    return bool(toleration.get("key") == taint["key"] and (toleration.get("value") or "") == (taint.get("value") or ""))
