"""What the API server fills in. Source: pkg/apis/*/v1/defaults.go and the PrepareForCreate of each strategy."""

import base64
import contextlib
from collections.abc import Callable

from contract import quantity
from tests.sandbox.apiserver.resources import Json


def prepare_new(body: Json) -> None:
    """The status that a new object starts with, whatever its creator wrote. Nodes may bring their own."""
    phase = _FIRST_PHASE.get(body["kind"])
    if phase:
        body["status"] = {"phase": phase}
    elif body["kind"] in _RESET_STATUS:
        body["status"] = {}
    elif body["kind"] in _NO_STATUS:
        body.pop("status", None)


_FIRST_PHASE = {
    "Pod": "Pending",
    "PersistentVolume": "Pending",
    "PersistentVolumeClaim": "Pending",
    "Namespace": "Active",
}
_RESET_STATUS = frozenset(
    {"Deployment", "DaemonSet", "ReplicaSet", "StatefulSet", "Job", "Service", "PodDisruptionBudget"}
)
_NO_STATUS = frozenset({"VolumeSnapshot", "VolumeSnapshotContent"})


def fill_in(body: Json) -> None:
    """Defaults of the fields that are missing; doing it again changes nothing."""
    if fill := _DEFAULTS.get(body["kind"]):
        fill(body)


def _default(target: Json, **values: object) -> None:
    for key, value in values.items():
        if target.get(key) in (None, ""):
            target[key] = value


def _spec(body: Json) -> Json:
    if not isinstance(body.get("spec"), dict):
        body["spec"] = {}
    spec: Json = body["spec"]
    return spec


def _canonical(sizes: object) -> None:
    """Storage sizes as the real server shows them: 1024Mi is 1Gi, 0.5Gi is 512Mi, 1000M is 1G. What is no quantity
    stays, for validation to refuse."""
    if isinstance(sizes, dict) and "storage" in sizes:
        text = str(sizes["storage"])
        with contextlib.suppress(ValueError):
            count = quantity.parse(text)
            sizes["storage"] = quantity.render(count) if text.endswith("i") else _decimal(count)


def _decimal(count: int) -> str:
    for power, letter in ((6, "E"), (5, "P"), (4, "T"), (3, "G"), (2, "M"), (1, "k")):
        if count and count % 1000**power == 0:
            return f"{count // 1000**power}{letter}"
    return str(count)


def _volume(body: Json) -> None:
    spec = _spec(body)
    _canonical(spec.get("capacity"))
    _default(spec, persistentVolumeReclaimPolicy="Retain", volumeMode="Filesystem")
    if isinstance(spec.get("claimRef"), dict):
        _default(spec["claimRef"], kind="PersistentVolumeClaim", apiVersion="v1")
    if isinstance(spec.get("hostPath"), dict):
        spec["hostPath"].setdefault("type", "")


def _claim(body: Json) -> None:
    spec, status = _spec(body), body.get("status") or {}
    _default(spec, volumeMode="Filesystem")
    _data_sources(spec)
    for sizes in (spec.get("resources") or {}).values():
        _canonical(sizes)
    _canonical(status.get("capacity"))
    _canonical(status.get("allocatedResources"))


def _data_sources(spec: Json) -> None:
    """Both fields say the same, whichever was given (NormalizeDataSources of pkg/api/persistentvolumeclaim). An old
    field that names what it never could is as if it were not there."""
    if (spec.get("dataSourceRef") or {}).get("namespace"):
        # CrossNamespaceVolumeDataSource is alpha, and off.
        del spec["dataSourceRef"]
    old, new = spec.get("dataSource"), spec.get("dataSourceRef")
    if old and not new:
        kind = (old.get("apiGroup") or "", old.get("kind"))
        if kind in (("", "PersistentVolumeClaim"), ("snapshot.storage.k8s.io", "VolumeSnapshot")):
            spec["dataSourceRef"] = dict(old)
        else:
            del spec["dataSource"]
    elif new and not old:
        spec["dataSource"] = {key: new[key] for key in ("apiGroup", "kind", "name") if key in new}


def _class(body: Json) -> None:
    _default(body, reclaimPolicy="Delete", volumeBindingMode="Immediate")


def _container(container: Json) -> None:
    image = str(container.get("image", ""))
    latest = ":" not in image.rsplit("/", 1)[-1] or image.endswith(":latest")
    _default(
        container,
        imagePullPolicy="Always" if latest and "@" not in image else "IfNotPresent",
        terminationMessagePath="/dev/termination-log",
        terminationMessagePolicy="File",
    )
    container.setdefault("resources", {})
    for port in container.get("ports") or []:
        _default(port, protocol="TCP")


def pod_spec(spec: Json) -> None:
    _default(
        spec,
        restartPolicy="Always",
        dnsPolicy="ClusterFirst",
        schedulerName="default-scheduler",
    )
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("securityContext", {})
    for key in ("initContainers", "containers"):
        for container in spec.get(key) or []:
            if isinstance(container, dict):
                _container(container)
    if spec.get("serviceAccountName"):
        spec["serviceAccount"] = spec["serviceAccountName"]


def _pod(body: Json) -> None:
    spec = _spec(body)
    pod_spec(spec)
    spec.setdefault("enableServiceLinks", True)
    body.setdefault("status", {}).setdefault("qosClass", _quality(spec))


def _quality(spec: Json) -> str:
    """Guaranteed: limits equal requests for cpu and memory in every container; BestEffort: neither anywhere."""
    resources = [(each.get("resources") or {}) for each in spec.get("containers") or []]
    if not any(each.get("limits") or each.get("requests") for each in resources):
        return "BestEffort"
    for each in resources:
        limits = each.get("limits") or {}
        requests = limits | (each.get("requests") or {})
        if not {"cpu", "memory"} <= limits.keys() or requests != limits:
            return "Burstable"
    return "Guaranteed"


def _template(body: Json) -> None:
    template = _spec(body).setdefault("template", {})
    if isinstance(template, dict) and isinstance(template.get("spec"), dict):
        pod_spec(template["spec"])


def _deployment(body: Json) -> None:
    _template(body)
    spec = _spec(body)
    spec.setdefault("replicas", 1)
    spec.setdefault("revisionHistoryLimit", 10)
    spec.setdefault("progressDeadlineSeconds", 600)
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}}
    spec.setdefault("strategy", rolling)


def _daemon_set(body: Json) -> None:
    _template(body)
    spec = _spec(body)
    spec.setdefault("revisionHistoryLimit", 10)
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}
    spec.setdefault("updateStrategy", rolling)


def _job(body: Json) -> None:
    spec = _spec(body)
    spec.setdefault("completions", 1)
    spec.setdefault("parallelism", 1)
    spec.setdefault("backoffLimit", 6)
    _default(spec, completionMode="NonIndexed", suspend=False)
    uid, name = body["metadata"].get("uid"), body["metadata"].get("name")
    if uid and "selector" not in spec and isinstance(spec.setdefault("template", {}), dict):
        spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
        labels = spec["template"].setdefault("metadata", {}).setdefault("labels", {})
        labels |= {
            "batch.kubernetes.io/controller-uid": uid,
            "batch.kubernetes.io/job-name": name,
            "controller-uid": uid,
            "job-name": name,
        }
    _template(body)


def _namespace(body: Json) -> None:
    spec = _spec(body)
    if "deletionTimestamp" not in body["metadata"]:
        spec.setdefault("finalizers", ["kubernetes"])
    body["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = body["metadata"].get("name", "")


def _csi_driver(body: Json) -> None:
    spec = _spec(body)
    spec.setdefault("attachRequired", True)
    spec.setdefault("podInfoOnMount", False)
    spec.setdefault("storageCapacity", False)
    spec.setdefault("fsGroupPolicy", "ReadWriteOnceWithFSType")
    spec.setdefault("volumeLifecycleModes", ["Persistent"])
    spec.setdefault("requiresRepublish", False)
    spec.setdefault("seLinuxMount", False)


def _secret(body: Json) -> None:
    """stringData is for writers only: it is merged into data, encoded."""
    _default(body, type="Opaque")
    for key, value in (body.pop("stringData", None) or {}).items():
        body.setdefault("data", {})[key] = base64.b64encode(str(value).encode()).decode()


def _binding(body: Json) -> None:
    _default(body.setdefault("roleRef", {}), apiGroup="rbac.authorization.k8s.io")
    for subject in body.get("subjects") or []:
        if subject.get("kind") in ("User", "Group"):
            _default(subject, apiGroup="rbac.authorization.k8s.io")


def _service(body: Json) -> None:
    spec = _spec(body)
    _default(spec, type="ClusterIP", sessionAffinity="None")
    for port in spec.get("ports") or []:
        _default(port, protocol="TCP", targetPort=port.get("port"))


_DEFAULTS: dict[str, Callable[[Json], None]] = {
    "PersistentVolume": _volume,
    "PersistentVolumeClaim": _claim,
    "StorageClass": _class,
    "Pod": _pod,
    "Deployment": _deployment,
    "DaemonSet": _daemon_set,
    "ReplicaSet": _template,
    "StatefulSet": _template,
    "Job": _job,
    "Namespace": _namespace,
    "CSIDriver": _csi_driver,
    "Secret": _secret,
    "RoleBinding": _binding,
    "ClusterRoleBinding": _binding,
    "Service": _service,
}
