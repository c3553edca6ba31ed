"""Whether a pod fits a node, and how the scheduler words it when none fits. What its volumes need there is in
binding.py; here is how many and whose they may be. Pure.

Source: pkg/scheduler/framework/types.go, plugins/{nodeunschedulable,tainttoleration,nodeaffinity,volumerestrictions,
nodevolumelimits}, and of PostFilter plugins/{dynamicresources,defaultpreemption}, of Kubernetes 1.36.2.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from tests.sandbox.controlplane.caches import claim_keys, class_name, key_of
from tests.sandbox.controlplane.selectors import node_selector_matches

Json = dict[str, Any]

POD_CONFLICT = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"
TOO_MANY_VOLUMES = "node(s) exceed max volume count"
_RESOLVABLE = frozenset({POD_CONFLICT, TOO_MANY_VOLUMES})
"""What would be otherwise without some other pod: then preemption is tried, and here finds nobody of less priority."""

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


def conflicts(pod: Json, claims: Mapping[str, Json], scheduled: Iterable[Json]) -> bool:
    """Whether another pod, on whichever node, has a claim that is for one pod at a time (ReadWriteOncePod)."""
    alone = {
        key
        for key in claim_keys(pod)
        if "ReadWriteOncePod" in ((claims.get(key) or {}).get("spec") or {}).get("accessModes", ())
    }
    return bool(alone) and any(alone & set(claim_keys(other)) for other in scheduled if key_of(other) != key_of(pod))


def has_too_many(
    pod: Json,
    node_pods: Iterable[Json],
    csi_node: Json | None,
    claims: Mapping[str, Json],
    volumes: Mapping[str, Json],
    classes: Mapping[str, Json],
) -> bool:
    """Whether the pod's CSI volumes are more than what the node's CSINode says that a driver can have there."""
    drivers = ((csi_node or {}).get("spec") or {}).get("drivers") or []
    limits = {each["name"]: each["allocatable"]["count"] for each in drivers if "count" in each.get("allocatable", {})}
    new = _csi_volumes(pod, claims, volumes, classes)
    if not new:
        return False
    there = {each for other in node_pods for each in _csi_volumes(other, claims, volumes, classes)}
    counts, added = Counter(driver for driver, _ in there), Counter(driver for driver, _ in new - there)
    return any(counts[driver] + count > limits.get(driver, counts[driver] + count) for driver, count in added.items())


def _csi_volumes(
    pod: Json, claims: Mapping[str, Json], volumes: Mapping[str, Json], classes: Mapping[str, Json]
) -> set[tuple[str, str]]:
    """Driver and handle of each. A claim without a volume counts for the provisioner of its class."""
    found = set()
    for key in claim_keys(pod):
        claim = claims.get(key)
        if claim is None:
            continue
        if name := claim["spec"].get("volumeName"):
            source = ((volumes.get(name) or {}).get("spec") or {}).get("csi")
            if source:
                found.add((source["driver"], source["volumeHandle"]))
        elif storage_class := classes.get(class_name(claim)):
            found.add((storage_class["provisioner"], key))
    return found


def nothing_fits(nodes: int, reasons: Iterable[str]) -> str:
    """As `kubectl describe` shows it (FitError): the nodes' reasons, and what two plugins say that could make room."""
    counts = Counter(reasons)
    preemption = Counter(
        {
            "No preemption victims found for incoming pod": sum(counts[each] for each in _RESOLVABLE),
            "Preemption is not helpful for scheduling": nodes - sum(counts[each] for each in _RESOLVABLE),
        }
    )
    return (
        f"0/{nodes} nodes are available: {_counted(counts)}. no new claims to deallocate, preemption: "
        f"0/{nodes} nodes are available: {_counted(+preemption)}."
    )


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(sorted(f"{count} {reason}" for reason, count in reasons.items()))


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
