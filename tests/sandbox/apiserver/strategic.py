"""Strategic merge patch: a merge patch whose lists are merged by key where the type says so.

Directives: `$patch: delete|replace|merge`, `$setElementOrder/<list>`, `$deleteFromPrimitiveList/<list>`, `$retainKeys`.
Source: k8s.io/apimachinery/pkg/util/strategicpatch; the keys are the patchMergeKey tags of k8s.io/api.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.sandbox.apiserver import errors
from tests.sandbox.apiserver.resources import Json

_PATCH = "$patch"
_RETAIN = "$retainKeys"
_ORDER = "$setElementOrder/"
_TAKE_OUT = "$deleteFromPrimitiveList/"


@dataclass(frozen=True)
class Shape:
    """What the merge must know of a type: how its lists merge, and the shapes of its fields."""

    merge_key: str = ""
    """For a list of objects: the field that tells its items apart. Empty: the list is replaced as a whole."""
    merges_values: bool = False
    """For a list of plain values: a set union instead of a replacement."""
    fields: Mapping[str, "Shape"] = field(default_factory=dict)


def _keyed(key: str, **fields: Shape) -> Shape:
    return Shape(merge_key=key, fields=fields)


_ANY = Shape()
_SET = Shape(merges_values=True)
_CONDITIONS = _keyed("type")
_METADATA = Shape(fields={"ownerReferences": _keyed("uid"), "finalizers": _SET})
_CONTAINERS = _keyed(
    "name",
    ports=_keyed("containerPort"),
    env=_keyed("name"),
    volumeMounts=_keyed("mountPath"),
    volumeDevices=_keyed("devicePath"),
)
_POD_SPEC = Shape(
    fields={
        "containers": _CONTAINERS,
        "initContainers": _CONTAINERS,
        "ephemeralContainers": _CONTAINERS,
        "volumes": _keyed("name"),
        "imagePullSecrets": _keyed("name"),
        "hostAliases": _keyed("ip"),
        "topologySpreadConstraints": _keyed("topologyKey"),
        "resourceClaims": _keyed("name"),
        "schedulingGates": _keyed("name"),
    }
)
_TEMPLATE = Shape(fields={"metadata": _METADATA, "spec": _POD_SPEC})
_WITH_CONDITIONS = Shape(fields={"conditions": _CONDITIONS})
_WORKLOAD = {"spec": Shape(fields={"template": _TEMPLATE}), "status": _WITH_CONDITIONS}

_KINDS: dict[str, Mapping[str, Shape]] = {
    "Pod": {
        "spec": _POD_SPEC,
        "status": Shape(fields={"conditions": _CONDITIONS, "podIPs": _keyed("ip"), "hostIPs": _keyed("ip")}),
    },
    "Node": {
        "spec": Shape(fields={"podCIDRs": _SET}),
        "status": Shape(fields={"conditions": _CONDITIONS, "addresses": _keyed("type")}),
    },
    "Namespace": {"status": _WITH_CONDITIONS},
    "PersistentVolumeClaim": {"status": _WITH_CONDITIONS},
    "Service": {"spec": Shape(fields={"ports": _keyed("port")}), "status": _WITH_CONDITIONS},
    "ServiceAccount": {"secrets": _keyed("name")},
    "Deployment": _WORKLOAD,
    "DaemonSet": _WORKLOAD,
    "ReplicaSet": _WORKLOAD,
    "StatefulSet": _WORKLOAD,
    "Job": _WORKLOAD,
    "CSINode": {"spec": Shape(fields={"drivers": _keyed("name")})},
    "PodDisruptionBudget": {"status": _WITH_CONDITIONS},
}


def shape_of(kind: str) -> Shape:
    return Shape(fields={"metadata": _METADATA, **_KINDS.get(kind, {})})


def merge(original: Json, patch: Json, shape: Shape) -> Json:
    """The patch applied; neither argument is changed. Raises BadRequest for a directive that makes no sense."""
    directive = patch.get(_PATCH)
    if directive == "delete":
        return {}
    if directive == "replace":
        return {key: value for key, value in patch.items() if key != _PATCH}
    if directive not in (None, "merge"):
        raise errors.bad_request(f"unrecognized type: {directive!r} of directive {_PATCH}")
    merged = dict(original)
    if _RETAIN in patch:
        merged = {key: value for key, value in merged.items() if key in patch[_RETAIN]}
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge_value(merged.get(key), value, shape.fields.get(key, _ANY))
    for key in patch:
        if key.startswith(_TAKE_OUT):
            name = key.removeprefix(_TAKE_OUT)
            merged[name] = [value for value in merged.get(name) or [] if value not in patch[key]]
    for key in patch:
        if key.startswith(_ORDER):
            name = key.removeprefix(_ORDER)
            if merged.get(name):
                merged[name] = _reorder(merged[name], patch[key], shape.fields.get(name, _ANY).merge_key)
    return merged


def _merge_value(original: Any, patch: Any, shape: Shape) -> Any:
    if isinstance(patch, dict):
        return merge(original if isinstance(original, dict) else {}, patch, shape)
    if not isinstance(patch, list):
        return patch
    present = original if isinstance(original, list) else []
    if shape.merge_key:
        return _merge_list(present, patch, shape)
    if shape.merges_values:
        return present + [value for value in patch if value not in present]
    return patch


def _merge_list(original: list[Json], patch: list[Json], shape: Shape) -> list[Json]:
    key = shape.merge_key
    replace = any(item.get(_PATCH) == "replace" for item in patch)
    merged = [] if replace else list(original)
    for item in patch:
        directive = item.get(_PATCH)
        if directive == "replace":
            continue
        if key not in item:
            raise errors.bad_request(f"map: {item} does not contain declared merge key: {key}")
        places = [place for place, each in enumerate(merged) if each.get(key) == item[key]]
        if directive == "delete":
            merged = [each for each in merged if each.get(key) != item[key]]
        elif places:
            merged[places[0]] = merge(merged[places[0]], item, shape)
        else:
            merged.append(merge({}, item, shape))
    return merged


def _reorder(items: list[Any], order: list[Any], key: str) -> list[Any]:
    """Items named by the order stand in it; one that only the server has keeps its place after its predecessor."""

    def identity(item: Any) -> Any:
        return item.get(key) if key and isinstance(item, dict) else item

    wanted = [identity(each) for each in order]
    named = sorted((each for each in items if identity(each) in wanted), key=lambda each: wanted.index(identity(each)))
    result = list(named)
    for place, item in enumerate(items):
        if identity(item) not in wanted:
            before = items[place - 1] if place else None
            result.insert(result.index(before) + 1 if place else 0, item)
    return result
