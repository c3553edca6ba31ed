"""What is refused with 422 Invalid, and what must not change. The rules of each kind stand in modules of their own."""

from collections.abc import Callable, Iterator

from tests.sandbox.apiserver import names, pods, policies, snapshots, volumes
from tests.sandbox.apiserver.errors import FieldError, forbidden_value, invalid_value, required, unsupported
from tests.sandbox.apiserver.resources import Json, Resource

Check = Callable[[Json], Iterator[FieldError]]
CheckUpdate = Callable[[Json, Json], Iterator[FieldError]]


def check(resource: Resource, body: Json) -> Iterator[FieldError]:
    yield from names.check_metadata(resource, body["metadata"])
    if rule := _RULES.get(resource.kind):
        yield from rule(body)


def check_update(resource: Resource, body: Json, present: Json, subresource: str) -> Iterator[FieldError]:
    yield from names.check_metadata(resource, body["metadata"])
    yield from _new_finalizers(body["metadata"], present["metadata"])
    if subresource == "status" and (status_rule := _STATUS_UPDATE_RULES.get(resource.kind)):
        yield from status_rule(body, present)
    if subresource:
        return
    if rule := _RULES.get(resource.kind):
        yield from rule(body)
    if update_rule := _UPDATE_RULES.get(resource.kind):
        yield from update_rule(body, present)


def _new_finalizers(metadata: Json, present: Json) -> Iterator[FieldError]:
    if "deletionTimestamp" not in present:
        return
    added = sorted(set(metadata.get("finalizers") or []) - set(present.get("finalizers") or []))
    if added:
        listed = ", ".join(f'"{each}"' for each in added)
        yield forbidden_value(
            "metadata.finalizers",
            f"no new finalizers can be added if the object is being deleted, found new finalizers []string{{{listed}}}",
        )


def _immutable(*path: str) -> CheckUpdate:
    def rule(body: Json, present: Json) -> Iterator[FieldError]:
        now, before = _at(body, path), _at(present, path)
        if now != before:
            yield invalid_value(".".join(path), now, "field is immutable")

    return rule


def _at(body: Json, path: tuple[str, ...]) -> object:
    value: object = body
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _event(body: Json) -> Iterator[FieldError]:
    """An event lives beside what it is about; one about a cluster's object lives in `default`."""
    namespace = body["metadata"].get("namespace", "")
    about = body.get("involvedObject") or {}
    theirs = about.get("namespace", "")
    if theirs != namespace and not (not theirs and namespace in ("", "default")):
        yield invalid_value("involvedObject.namespace", theirs, "does not match event.namespace")


def _lease(body: Json) -> Iterator[FieldError]:
    spec = body.get("spec") or {}
    for key in ("leaseDurationSeconds",):
        if spec.get(key) is not None and spec[key] <= 0:
            yield invalid_value(f"spec.{key}", spec[key], "must be greater than 0")
    if spec.get("leaseTransitions") is not None and spec["leaseTransitions"] < 0:
        yield invalid_value("spec.leaseTransitions", spec["leaseTransitions"], "must be greater than or equal to 0")


def _workload(body: Json) -> Iterator[FieldError]:
    yield from _selects_its_pods(body)
    yield from pods.check_spec((body["spec"].get("template") or {}).get("spec") or {}, "spec.template.spec")


def _stateful_set(body: Json) -> Iterator[FieldError]:
    """The containers are not looked at: they mount volumes that the claims' templates make
    (ValidatePodTemplateSpecForStatefulSet)."""
    yield from _selects_its_pods(body)
    policy = ((body["spec"].get("template") or {}).get("spec") or {}).get("restartPolicy")
    if policy != "Always":
        yield unsupported("spec.template.spec.restartPolicy", policy, ("Always",))


def _selects_its_pods(body: Json) -> Iterator[FieldError]:
    spec = body["spec"]
    template = spec.get("template") or {}
    labels = (template.get("metadata") or {}).get("labels") or {}
    wanted = (spec.get("selector") or {}).get("matchLabels") or {}
    if not spec.get("selector"):
        yield required("spec.selector")
    elif any(labels.get(key) != value for key, value in wanted.items()):
        yield invalid_value("spec.template.metadata.labels", labels, "`selector` does not match template `labels`")


def _job(body: Json) -> Iterator[FieldError]:
    yield from pods.check_spec((body["spec"].get("template") or {}).get("spec") or {}, "spec.template.spec")


_RULES: dict[str, Check] = {
    "PersistentVolume": volumes.check_volume,
    "PersistentVolumeClaim": volumes.check_claim,
    "StorageClass": volumes.check_class,
    "VolumeAttributesClass": volumes.check_attributes_class,
    "CSIStorageCapacity": volumes.check_capacity,
    "CSINode": volumes.check_csi_node,
    "Pod": pods.check,
    "VolumeSnapshotClass": snapshots.check_class,
    "VolumeSnapshotContent": snapshots.check_content,
    "VolumeSnapshot": snapshots.check_snapshot,
    "ValidatingAdmissionPolicy": policies.check_policy,
    "ValidatingAdmissionPolicyBinding": policies.check_binding,
    "Event": _event,
    "Lease": _lease,
    "Deployment": _workload,
    "DaemonSet": _workload,
    "ReplicaSet": _workload,
    "StatefulSet": _stateful_set,
    "Job": _job,
}

_STATUS_UPDATE_RULES: dict[str, CheckUpdate] = {
    "PersistentVolumeClaim": volumes.check_claim_status_update,
    "VolumeSnapshotContent": snapshots.check_content_status_update,
}

_UPDATE_RULES: dict[str, CheckUpdate] = {
    "PersistentVolume": volumes.check_volume_update,
    "PersistentVolumeClaim": volumes.check_claim_update,
    "StorageClass": volumes.check_class_update,
    "VolumeAttributesClass": volumes.check_attributes_class_update,
    "CSIStorageCapacity": volumes.check_capacity_update,
    "VolumeSnapshotContent": snapshots.check_content_update,
    "VolumeSnapshot": snapshots.check_snapshot_update,
    "Pod": pods.check_update,
    "Deployment": _immutable("spec", "selector"),
    "DaemonSet": _immutable("spec", "selector"),
    "ReplicaSet": _immutable("spec", "selector"),
    "Job": _immutable("spec", "template"),
    "RoleBinding": _immutable("roleRef"),
    "ClusterRoleBinding": _immutable("roleRef"),
}
