"""The rules of PersistentVolumes, claims, classes and capacities.

Source: pkg/apis/core/validation/validation.go and pkg/apis/storage/validation/validation.go.
"""

import copy
from collections.abc import Iterator

from contract import quantity
from tests.sandbox.apiserver import names
from tests.sandbox.apiserver.errors import (
    FieldError,
    duplicate,
    forbidden_value,
    invalid_value,
    required,
    unsupported,
)
from tests.sandbox.apiserver.resources import Json

_ACCESS_MODES = ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")
_RECLAIM_POLICIES = ("Delete", "Recycle", "Retain")
_VOLUME_MODES = ("Block", "Filesystem")
_BINDING_MODES = ("Immediate", "WaitForFirstConsumer")
_ATTRIBUTES_CLASS = "volumeAttributesClassName"
_STATUSES = "allocatedResourceStatuses"
_RESIZE_STATUSES = (
    "ControllerResizeInProgress",
    "ControllerResizeInfeasible",
    "NodeResizePending",
    "NodeResizeInProgress",
    "NodeResizeInfeasible",
)
_SOURCES = frozenset(
    {
        "awsElasticBlockStore", "azureDisk", "azureFile", "cephfs", "cinder", "csi", "fc", "flexVolume", "flocker",
        "gcePersistentDisk", "glusterfs", "hostPath", "iscsi", "local", "nfs", "photonPersistentDisk",
        "portworxVolume", "quobyte", "rbd", "scaleIO", "storageos", "vsphereVolume",
    }
)  # fmt: skip


def check_volume(body: Json) -> Iterator[FieldError]:
    spec = body["spec"]
    yield from _access_modes("spec.accessModes", spec)
    capacity = spec.get("capacity") or {}
    if not capacity:
        yield required("spec.capacity")
    elif set(capacity) != {"storage"}:
        yield unsupported("spec.capacity", ",".join(sorted(capacity)), ["storage"])
    else:
        yield from _size("spec.capacity[storage]", capacity["storage"])
    policy = spec.get("persistentVolumeReclaimPolicy")
    if policy not in _RECLAIM_POLICIES:
        yield unsupported("spec.persistentVolumeReclaimPolicy", policy, _RECLAIM_POLICIES)
    if spec.get("volumeMode") not in _VOLUME_MODES:
        yield unsupported("spec.volumeMode", spec.get("volumeMode"), _VOLUME_MODES)
    if spec.get("storageClassName"):
        yield from names.subdomain("spec.storageClassName", spec["storageClassName"])
    yield from _attributes_class_of_volume(spec)
    yield from _source(spec)
    yield from _node_affinity(spec)


def _attributes_class_of_volume(spec: Json) -> Iterator[FieldError]:
    name = spec.get(_ATTRIBUTES_CLASS)
    if name is None:
        return
    if not name:
        yield required(f"spec.{_ATTRIBUTES_CLASS}", "an empty string is disallowed")
    else:
        yield from names.subdomain(f"spec.{_ATTRIBUTES_CLASS}", name)
    if not spec.get("csi"):
        yield required("spec.csi", f"has to be specified when using {_ATTRIBUTES_CLASS}")


def _source(spec: Json) -> Iterator[FieldError]:
    sources = sorted(_SOURCES & spec.keys())
    if not sources:
        yield required("spec", "must specify a volume type")
    for extra in sources[1:]:
        yield forbidden_value(f"spec.{extra}", "may not specify more than 1 volume type")
    if "flexVolume" in spec and not (spec["flexVolume"] or {}).get("driver"):
        yield required("spec.flexVolume.driver")
    if "csi" in spec:
        csi = spec["csi"] or {}
        yield from _csi_driver_name("spec.csi.driver", csi.get("driver") or "")
        if not csi.get("volumeHandle"):
            yield required("spec.csi.volumeHandle")
    if "local" in spec:
        if not (spec["local"] or {}).get("path"):
            yield required("spec.local.path")
        if not spec.get("nodeAffinity"):
            yield required("spec.nodeAffinity", "Local volume requires node affinity")
    if "hostPath" in spec and not (spec["hostPath"] or {}).get("path"):
        yield required("spec.hostPath.path")


def _csi_driver_name(field: str, name: str) -> Iterator[FieldError]:
    """ValidateCSIDriverName."""
    if not name:
        yield required(field)
    elif len(name) > 63:
        yield invalid_value(field, name, "must be no more than 63 characters")
    else:
        yield from names.subdomain(field, name.lower())


def check_csi_node(body: Json) -> Iterator[FieldError]:
    """ValidateCSINode."""
    seen: set[str] = set()
    for place, driver in enumerate((body.get("spec") or {}).get("drivers") or []):
        where = f"spec.drivers[{place}]"
        yield from _csi_driver_name(f"{where}.name", driver.get("name") or "")
        if driver.get("name") in seen:
            yield duplicate(f"{where}.name", driver["name"])
        seen.add(driver.get("name") or "")
        if not driver.get("nodeID"):
            yield required(f"{where}.nodeID")
        for key in driver.get("topologyKeys") or []:
            yield from names.qualified(f"{where}.topologyKeys", key)
        count = (driver.get("allocatable") or {}).get("count")
        if count is not None and count < 0:
            yield invalid_value(f"{where}.allocatable.count", count, "must be greater than or equal to 0")


def _node_affinity(spec: Json) -> Iterator[FieldError]:
    affinity = spec.get("nodeAffinity")
    if affinity is None:
        return
    if not affinity.get("required"):
        yield required("spec.nodeAffinity.required", "must specify required node constraints")
        return
    field = "spec.nodeAffinity.required.nodeSelectorTerms"
    terms = affinity["required"].get("nodeSelectorTerms") or []
    if not terms:
        yield required(field, "must have at least one node selector term")
    for place, term in enumerate(terms):
        for number, expression in enumerate(term.get("matchExpressions") or []):
            where = f"{field}[{place}].matchExpressions[{number}]"
            operator, values = expression.get("operator"), expression.get("values") or []
            if operator in ("In", "NotIn") and not values:
                yield required(f"{where}.values", "must be specified when `operator` is 'In' or 'NotIn'")
            elif operator in ("Exists", "DoesNotExist") and values:
                yield forbidden_value(
                    f"{where}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                )
            elif operator not in ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"):
                yield invalid_value(f"{where}.operator", operator, "not a valid selector operator")
            yield from names.qualified(f"{where}.key", str(expression.get("key", "")))


def check_volume_update(body: Json, present: Json) -> Iterator[FieldError]:
    new, old = body["spec"], present["spec"]
    if {key: new.get(key) for key in _SOURCES} != {key: old.get(key) for key in _SOURCES}:
        yield forbidden_value("spec.persistentvolumesource", "spec.persistentvolumesource is immutable after creation")
    if new.get("volumeMode") != old.get("volumeMode"):
        yield invalid_value("volumeMode", new.get("volumeMode"), "field is immutable")
    if old.get("nodeAffinity") and new.get("nodeAffinity") != old["nodeAffinity"]:
        yield invalid_value(
            "nodeAffinity", new.get("nodeAffinity"), "field is immutable, except for updating from beta label to GA"
        )
    if old.get(_ATTRIBUTES_CLASS) is not None and new.get(_ATTRIBUTES_CLASS) is None:
        yield forbidden_value(f"spec.{_ATTRIBUTES_CLASS}", "update from non-nil value to nil is forbidden")


def check_claim(body: Json) -> Iterator[FieldError]:
    spec = body["spec"]
    if not spec.get("accessModes"):
        yield required("spec.accessModes", "at least 1 access mode is required")
    else:
        yield from _access_modes("spec.accessModes", spec)
    requests = (spec.get("resources") or {}).get("requests") or {}
    if "storage" not in requests:
        yield required("spec.resources[storage]")
    else:
        yield from _size("spec.resources[storage]", requests["storage"])
    if spec.get("storageClassName"):
        yield from names.subdomain("spec.storageClassName", spec["storageClassName"])
    if spec.get("volumeMode") not in _VOLUME_MODES:
        yield unsupported("spec.volumeMode", spec.get("volumeMode"), _VOLUME_MODES)
    if spec.get(_ATTRIBUTES_CLASS):
        yield from names.subdomain(f"spec.{_ATTRIBUTES_CLASS}", spec[_ATTRIBUTES_CLASS])


def check_claim_update(body: Json, present: Json) -> Iterator[FieldError]:
    new, old = copy.deepcopy(body["spec"]), present["spec"]
    bound = (present.get("status") or {}).get("phase") == "Bound"
    now, before = _requested(new), _requested(old)
    if not old.get("volumeName"):
        new.pop("volumeName", None)
        old = {key: value for key, value in old.items() if key != "volumeName"}
    if old.get("storageClassName") is None and new.get("storageClassName"):
        old = old | {"storageClassName": new["storageClassName"]}
    if bound:
        new.setdefault("resources", {}).setdefault("requests", {})["storage"] = old["resources"]["requests"]["storage"]
        new[_ATTRIBUTES_CLASS] = old.get(_ATTRIBUTES_CLASS)
    if {k: v for k, v in new.items() if v is not None} != {k: v for k, v in old.items() if v is not None}:
        yield forbidden_value(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        )
    granted = quantity.parse(str(((present.get("status") or {}).get("capacity") or {}).get("storage") or "0"))
    if now is not None and before is not None and now < before and now <= granted:
        # The words of the real one, which takes a request that is as much as the capacity for less, too.
        yield forbidden_value("spec.resources.requests.storage", "field can not be less than status.capacity")
    if body["spec"].get("volumeMode") != present["spec"].get("volumeMode"):
        yield invalid_value("volumeMode", body["spec"].get("volumeMode"), "field is immutable")
    if (present.get("status") or {}).get("currentVolumeAttributesClassName") is not None:
        named = body["spec"].get(_ATTRIBUTES_CLASS)
        if not named and named != present["spec"].get(_ATTRIBUTES_CLASS):
            yield forbidden_value(
                f"spec.{_ATTRIBUTES_CLASS}",
                f"update to {'nil' if named is None else 'empty string'} is forbidden when "
                "status.currentVolumeAttributesClassName is not nil",
            )


def check_claim_status_update(body: Json, _present: Json) -> Iterator[FieldError]:
    status = body.get("status") or {}
    for key, step in (status.get("allocatedResourceStatuses") or {}).items():
        yield from _claim_resource(f"status.{_STATUSES}", key)
        if step not in _RESIZE_STATUSES:
            yield unsupported(f"status.{_STATUSES}", key, _RESIZE_STATUSES)
    for key in status.get("allocatedResources") or {}:
        yield from _claim_resource("status.allocatedResources", key)


def _claim_resource(field: str, key: str) -> Iterator[FieldError]:
    """Of Kubernetes' own resources a claim has only one."""
    yield from names.qualified(field, key)
    if key != "storage" and ("/" not in key or "kubernetes.io/" in key):
        yield unsupported(field, key, ["storage"])


def _requested(spec: Json) -> int | None:
    try:
        return quantity.parse(str(((spec.get("resources") or {}).get("requests") or {}).get("storage")))
    except ValueError:
        return None


def _access_modes(field: str, spec: Json) -> Iterator[FieldError]:
    modes = spec.get("accessModes") or []
    if not modes:
        yield required(field)
    for mode in modes:
        if mode not in _ACCESS_MODES:
            yield unsupported(field, mode, _ACCESS_MODES)
    if "ReadWriteOncePod" in modes and len(modes) > 1:
        yield forbidden_value(field, "may not use ReadWriteOncePod with other access modes")


def _size(field: str, value: object) -> Iterator[FieldError]:
    try:
        size = quantity.parse(str(value))
    except ValueError as error:
        yield invalid_value(field, value, str(error))
        return
    if size <= 0:
        yield invalid_value(field, value, "must be greater than zero")


def check_class(body: Json) -> Iterator[FieldError]:
    if not body.get("provisioner"):
        yield required("provisioner")
    else:
        yield from names.qualified("provisioner", str(body["provisioner"]).lower())
    if body.get("reclaimPolicy") not in ("Delete", "Retain"):
        yield unsupported("reclaimPolicy", body.get("reclaimPolicy"), ("Delete", "Retain"))
    if body.get("volumeBindingMode") not in _BINDING_MODES:
        yield unsupported("volumeBindingMode", body.get("volumeBindingMode"), _BINDING_MODES)
    for key, value in (body.get("parameters") or {}).items():
        if not key:
            yield invalid_value("parameters", key, "must not be empty")
        if not isinstance(value, str):
            yield invalid_value(f"parameters[{key}]", value, "must be a string")


def check_class_update(body: Json, present: Json) -> Iterator[FieldError]:
    for key in ("parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"):
        if (body.get(key) or {}) != (present.get(key) or {}):
            yield invalid_value(key, body.get(key), "field is immutable")


def check_attributes_class(body: Json) -> Iterator[FieldError]:
    """ValidateVolumeAttributesClass."""
    if not body.get("driverName"):
        yield required("driverName")
    else:
        yield from names.qualified("driverName", str(body["driverName"]).lower())
    if not body.get("parameters"):
        yield required("parameters", "must contain at least one key/value pair")


def check_attributes_class_update(body: Json, present: Json) -> Iterator[FieldError]:
    for key in ("driverName", "parameters"):
        if body.get(key) != present.get(key):
            yield forbidden_value(key, f"updates to {key} are forbidden.")


def check_capacity(body: Json) -> Iterator[FieldError]:
    if not body.get("storageClassName"):
        yield required("storageClassName")
    else:
        yield from names.subdomain("storageClassName", body["storageClassName"])
    for key in ("capacity", "maximumVolumeSize"):
        if body.get(key) is None:
            continue
        try:
            if quantity.parse(str(body[key])) < 0:
                yield invalid_value(key, body[key], "must be greater than or equal to 0")
        except ValueError as error:
            yield invalid_value(key, body[key], str(error))


def check_capacity_update(body: Json, present: Json) -> Iterator[FieldError]:
    for key in ("nodeTopology", "storageClassName"):
        if body.get(key) != present.get(key):
            yield invalid_value(key, body.get(key), "field is immutable")
