"""The columns that kubectl shows of each kind, and how each cell is told from an object.

Source: pkg/printers/internalversion/printers.go, whose oddities (no age of capacities) are kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.sandbox.apiserver import podstate
from tests.sandbox.apiserver.ages import age_of, since
from tests.sandbox.apiserver.resources import Json, Resource


@dataclass(frozen=True)
class Column:
    """`priority` 0 is always shown, 1 with `-o wide`."""

    name: str
    cell: Callable[[Json], object]
    priority: int = 0


def of(resource: Resource) -> tuple[Column, ...]:
    return _COLUMNS.get(resource.kind, (_NAME, _AGE))


def _at(body: Any, path: str) -> Any:
    for part in path.split("."):
        body = body.get(part) if isinstance(body, dict) else None
    return body


def _field(name: str, path: str, missing: object = "", priority: int = 0) -> Column:
    def cell(body: Json) -> object:
        value = _at(body, path)
        return missing if value is None or value == "" else value

    return Column(name, cell, priority)


_NAME = Column("Name", lambda body: body["metadata"]["name"])
_AGE = Column("Age", age_of)
_CREATED = Column("Created At", lambda body: body["metadata"]["creationTimestamp"])

_SHORT_MODES = {
    "ReadWriteOnce": "RWO",
    "ReadOnlyMany": "ROX",
    "ReadWriteMany": "RWX",
    "ReadWriteOncePod": "RWOP",
}


def _modes(path: str) -> Callable[[Json], str]:
    return lambda body: ",".join(_SHORT_MODES.get(mode, mode) for mode in _at(body, path) or [])


def _storage_status(body: Json) -> object:
    return "Terminating" if "deletionTimestamp" in body["metadata"] else _at(body, "status.phase")


def _claim_of(body: Json) -> str:
    claim = _at(body, "spec.claimRef") or {}
    return f"{claim.get('namespace', '')}/{claim.get('name', '')}" if claim else ""


def _bound(path: str | None, cell: Callable[[Json], object] | None = None) -> Callable[[Json], object]:
    """A claim has a capacity and access modes only once it has a volume."""
    shown = cell or (lambda body: _at(body, path or "") or "")
    return lambda body: shown(body) if _at(body, "spec.volumeName") else ""


def _class_name(body: Json) -> str:
    marked = (body["metadata"].get("annotations") or {}).get("storageclass.kubernetes.io/is-default-class")
    return f"{body['metadata']['name']}{' (default)' if marked == 'true' else ''}"


def _node_status(body: Json) -> str:
    ready = [each for each in _at(body, "status.conditions") or [] if each["type"] == "Ready"]
    words = ["Unknown"] if not ready else ["Ready" if ready[0]["status"] == "True" else "NotReady"]
    return ",".join(words + (["SchedulingDisabled"] if _at(body, "spec.unschedulable") else []))


def _roles(body: Json) -> str:
    prefix = "node-role.kubernetes.io/"
    roles = [key.removeprefix(prefix) for key in body["metadata"].get("labels") or {} if key.startswith(prefix)]
    return ",".join(sorted(roles)) or "<none>"


def _node_address(kind: str) -> Callable[[Json], str]:
    def cell(body: Json) -> str:
        addresses = [each["address"] for each in _at(body, "status.addresses") or [] if each["type"] == kind]
        return addresses[0] if addresses else "<none>"

    return cell


def _event_object(body: Json) -> str:
    about = body.get("involvedObject") or {}
    return f"{about.get('kind', '').lower()}/{about.get('name', '')}"


def _event_source(body: Json) -> str:
    source = body.get("source") or {}
    component = source.get("component") or body.get("reportingComponent") or ""
    host = source.get("host") or body.get("reportingInstance") or ""
    return f"{component}, {host}" if host else component


def _last_seen(body: Json) -> str:
    return since(_at(body, "series.lastObservedTime") or body.get("lastTimestamp") or body.get("eventTime"))


def _size(path: str) -> Callable[[Json], object]:
    return lambda body: len(_at(body, path) or ())


def _containers(key: str, path: str = "spec.template.spec.containers") -> Callable[[Json], str]:
    return lambda body: ",".join(str(each.get(key, "")) for each in _at(body, path) or [])


def _labels(path: str) -> Callable[[Json], str]:
    return lambda body: ",".join(f"{k}={v}" for k, v in sorted((_at(body, path) or {}).items())) or "<none>"


def _subjects(kind: str) -> Callable[[Json], str]:
    def name(subject: Json) -> str:
        return f"{subject['namespace']}/{subject['name']}" if subject.get("namespace") else str(subject["name"])

    return lambda body: ", ".join(name(each) for each in body.get("subjects") or [] if each.get("kind") == kind)


def _ratio(ready: str, wanted: str) -> Callable[[Json], str]:
    return lambda body: f"{_at(body, ready) or 0}/{_at(body, wanted) or 0}"


def _job_status(body: Json) -> str:
    for kind, words in (("Complete", "Complete"), ("Failed", "Failed"), ("Suspended", "Suspended")):
        if any(each["type"] == kind and each["status"] == "True" for each in _at(body, "status.conditions") or []):
            return words
    return "Terminating" if "deletionTimestamp" in body["metadata"] else "Running"


def _ports(body: Json) -> str:
    shown = [f"{each['port']}/{each.get('protocol', 'TCP')}" for each in _at(body, "spec.ports") or []]
    return ",".join(shown) or "<none>"


_WORKLOAD = (
    Column("Containers", _containers("name"), 1),
    Column("Images", _containers("image"), 1),
    Column("Selector", _labels("spec.selector.matchLabels"), 1),
)
_SUBJECTS = (
    Column("Role", lambda body: f"{body['roleRef']['kind']}/{body['roleRef']['name']}"),
    _AGE,
    Column("Users", _subjects("User"), 1),
    Column("Groups", _subjects("Group"), 1),
    Column("ServiceAccounts", _subjects("ServiceAccount"), 1),
)

_COLUMNS: dict[str, tuple[Column, ...]] = {
    "Pod": (
        _NAME,
        Column("Ready", podstate.ready),
        Column("Status", podstate.reason),
        Column("Restarts", podstate.restarts),
        _AGE,
        _field("IP", "status.podIP", "<none>", 1),
        _field("Node", "spec.nodeName", "<none>", 1),
        _field("Nominated Node", "status.nominatedNodeName", "<none>", 1),
        Column("Readiness Gates", lambda _: "<none>", 1),
    ),
    "PersistentVolume": (
        _NAME,
        _field("Capacity", "spec.capacity.storage"),
        Column("Access Modes", _modes("spec.accessModes")),
        _field("Reclaim Policy", "spec.persistentVolumeReclaimPolicy"),
        Column("Status", _storage_status),
        Column("Claim", _claim_of),
        _field("StorageClass", "spec.storageClassName"),
        _field("VolumeAttributesClass", "spec.volumeAttributesClassName", "<unset>"),
        _field("Reason", "status.reason"),
        _AGE,
        _field("VolumeMode", "spec.volumeMode", "<unset>", 1),
    ),
    "PersistentVolumeClaim": (
        _NAME,
        Column("Status", _storage_status),
        _field("Volume", "spec.volumeName"),
        Column("Capacity", _bound("status.capacity.storage")),
        Column("Access Modes", _bound(None, _modes("status.accessModes"))),
        _field("StorageClass", "spec.storageClassName"),
        _field("VolumeAttributesClass", "spec.volumeAttributesClassName", "<unset>"),
        _AGE,
        _field("VolumeMode", "spec.volumeMode", "<unset>", 1),
    ),
    "StorageClass": (
        Column("Name", _class_name),
        _field("Provisioner", "provisioner"),
        _field("ReclaimPolicy", "reclaimPolicy"),
        _field("VolumeBindingMode", "volumeBindingMode"),
        _field("AllowVolumeExpansion", "allowVolumeExpansion", False),
        _AGE,
    ),
    "VolumeAttributesClass": (_NAME, _field("DriverName", "driverName"), _AGE),
    "CSIStorageCapacity": (
        _NAME,
        _field("StorageClassName", "storageClassName"),
        _field("Capacity", "capacity", "<unset>"),
    ),
    "CSIDriver": (
        _NAME,
        _field("AttachRequired", "spec.attachRequired", True),
        _field("PodInfoOnMount", "spec.podInfoOnMount", False),
        _field("StorageCapacity", "spec.storageCapacity", False),
        Column("TokenRequests", lambda body: "<unset>"),
        _field("RequiresRepublish", "spec.requiresRepublish", False),
        Column("Modes", lambda body: ",".join(_at(body, "spec.volumeLifecycleModes") or [])),
        _AGE,
    ),
    "CSINode": (_NAME, Column("Drivers", _size("spec.drivers")), _AGE),
    "Node": (
        _NAME,
        Column("Status", _node_status),
        Column("Roles", _roles),
        _AGE,
        _field("Version", "status.nodeInfo.kubeletVersion"),
        Column("Internal-IP", _node_address("InternalIP"), 1),
        Column("External-IP", _node_address("ExternalIP"), 1),
        _field("OS-Image", "status.nodeInfo.osImage", "<unknown>", 1),
        _field("Kernel-Version", "status.nodeInfo.kernelVersion", "<unknown>", 1),
        _field("Container-Runtime", "status.nodeInfo.containerRuntimeVersion", "<unknown>", 1),
    ),
    "Event": (
        Column("Last Seen", _last_seen),
        _field("Type", "type"),
        _field("Reason", "reason"),
        Column("Object", _event_object),
        _field("Subobject", "involvedObject.fieldPath", "", 1),
        Column("Source", _event_source, 1),
        Column("Message", lambda body: str(body.get("message", "")).strip()),
        Column("First Seen", lambda body: since(body.get("firstTimestamp") or body.get("eventTime")), 1),
        _field("Count", "count", 1, 1),
        Column("Name", lambda body: body["metadata"]["name"], 1),
    ),
    "Lease": (_NAME, _field("Holder", "spec.holderIdentity"), _AGE),
    "Namespace": (_NAME, _field("Status", "status.phase"), _AGE),
    "ConfigMap": (
        _NAME,
        Column("Data", lambda body: len(body.get("data") or ()) + len(body.get("binaryData") or ())),
        _AGE,
    ),
    "Secret": (_NAME, _field("Type", "type"), Column("Data", _size("data")), _AGE),
    "ServiceAccount": (_NAME, Column("Secrets", _size("secrets")), _AGE),
    "Service": (
        _NAME,
        _field("Type", "spec.type"),
        _field("Cluster-IP", "spec.clusterIP", "<none>"),
        _field("External-IP", "spec.externalIPs", "<none>"),
        Column("Port(s)", _ports),
        _AGE,
        Column("Selector", _labels("spec.selector"), 1),
    ),
    "Deployment": (
        _NAME,
        Column("Ready", _ratio("status.readyReplicas", "spec.replicas")),
        _field("Up-to-date", "status.updatedReplicas", 0),
        _field("Available", "status.availableReplicas", 0),
        _AGE,
        *_WORKLOAD,
    ),
    "StatefulSet": (_NAME, Column("Ready", _ratio("status.readyReplicas", "spec.replicas")), _AGE, *_WORKLOAD[:2]),
    "ReplicaSet": (
        _NAME,
        _field("Desired", "spec.replicas", 0),
        _field("Current", "status.replicas", 0),
        _field("Ready", "status.readyReplicas", 0),
        _AGE,
        *_WORKLOAD,
    ),
    "DaemonSet": (
        _NAME,
        _field("Desired", "status.desiredNumberScheduled", 0),
        _field("Current", "status.currentNumberScheduled", 0),
        _field("Ready", "status.numberReady", 0),
        _field("Up-to-date", "status.updatedNumberScheduled", 0),
        _field("Available", "status.numberAvailable", 0),
        Column("Node Selector", _labels("spec.template.spec.nodeSelector")),
        _AGE,
        *_WORKLOAD,
    ),
    "Job": (
        _NAME,
        Column("Status", _job_status),
        Column("Completions", _ratio("status.succeeded", "spec.completions")),
        Column("Duration", lambda body: since(_at(body, "status.startTime"), until=_at(body, "status.completionTime"))),
        _AGE,
        *_WORKLOAD,
    ),
    "Role": (_NAME, _CREATED),
    "ClusterRole": (_NAME, _CREATED),
    "RoleBinding": (_NAME, *_SUBJECTS),
    "ClusterRoleBinding": (_NAME, *_SUBJECTS),
    "PodDisruptionBudget": (
        _NAME,
        _field("Min Available", "spec.minAvailable", "N/A"),
        _field("Max Unavailable", "spec.maxUnavailable", "N/A"),
        _field("Allowed Disruptions", "status.disruptionsAllowed", 0),
        _AGE,
    ),
    "CustomResourceDefinition": (_NAME, _CREATED),
    "VolumeSnapshotClass": (_NAME, _field("Driver", "driver"), _field("DeletionPolicy", "deletionPolicy"), _AGE),
    "VolumeSnapshot": (
        _NAME,
        _field("ReadyToUse", "status.readyToUse"),
        _field("SourcePVC", "spec.source.persistentVolumeClaimName"),
        _field("SourceSnapshotContent", "spec.source.volumeSnapshotContentName"),
        _field("RestoreSize", "status.restoreSize"),
        _field("SnapshotClass", "spec.volumeSnapshotClassName"),
        _field("SnapshotContent", "status.boundVolumeSnapshotContentName"),
        Column("CreationTime", lambda body: since(_at(body, "status.creationTime"))),
        _AGE,
    ),
    "VolumeSnapshotContent": (
        _NAME,
        _field("ReadyToUse", "status.readyToUse"),
        _field("RestoreSize", "status.restoreSize"),
        _field("DeletionPolicy", "spec.deletionPolicy"),
        _field("Driver", "spec.driver"),
        _field("VolumeSnapshotClass", "spec.volumeSnapshotClassName"),
        _field("VolumeSnapshot", "spec.volumeSnapshotRef.name"),
        _field("VolumeSnapshotNamespace", "spec.volumeSnapshotRef.namespace"),
        _AGE,
    ),
    "PriorityClass": (
        _NAME,
        _field("Value", "value", 0),
        _field("Global-Default", "globalDefault", False),
        _AGE,
        _field("PreemptionPolicy", "preemptionPolicy", "PreemptLowerPriority"),
    ),
    "NetworkPolicy": (_NAME, Column("Pod-Selector", _labels("spec.podSelector.matchLabels")), _AGE),
}
