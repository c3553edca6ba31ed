"""Server-side apply: each manager owns the fields that it applied; one that it no longer applies goes.

Simpler than the real one: lists are merged by the keys of strategic merge patch, and only managers that apply own
fields, so an update by other means never conflicts.
"""

from typing import Any

from tests.sandbox.apiserver import errors, strategic
from tests.sandbox.apiserver.registry import Admit, Registry, timestamp
from tests.sandbox.apiserver.resources import Json
from tests.sandbox.apiserver.routing import Target
from tests.sandbox.apiserver.store import Stored
from tests.sandbox.apiserver.strategic import Shape

_LEAF: Json = {}


def apply(
    registry: Registry, aim: Target, wanted: Json, *, manager: str, force: bool, dry_run: bool, admit: Admit
) -> tuple[Stored, bool]:
    """Creates the object or merges `wanted` into it. The answer says whether it was created. Raises Conflict."""
    resource = aim.resource
    metadata = wanted.setdefault("metadata", {})
    metadata["name"] = aim.name
    metadata.pop("managedFields", None)
    owned = _fields(wanted, strategic.shape_of(resource.kind))
    if registry.store.get(resource, aim.namespace, aim.name) is None and not aim.subresource:
        metadata["managedFields"] = [_entry(aim, manager, owned)]
        return registry.create(resource, aim.namespace, wanted, dry_run=dry_run, admit=admit), True

    def change(present: Json) -> Json:
        return _merge(present, wanted, owned, aim, manager, force)

    stored = registry.update(
        resource, aim.namespace, aim.name, change, subresource=aim.subresource, dry_run=dry_run, admit=admit
    )
    return stored, False


def _merge(present: Json, wanted: Json, owned: Json, aim: Target, manager: str, force: bool) -> Json:
    shape = strategic.shape_of(aim.resource.kind)
    entries = present["metadata"].get("managedFields") or []
    former = next((each for each in entries if each["manager"] == manager), None)
    others = [each for each in entries if each is not former]
    merged = strategic.merge(present, wanted, shape)
    _check_conflicts(aim, present, merged, owned, others, shape, force)
    for each in others:
        each["fieldsV1"] = _without(each["fieldsV1"], owned) if force else each["fieldsV1"]
    if former is not None:
        kept = owned
        for each in others:
            kept = _union(kept, each["fieldsV1"])
        merged = _prune(merged, former["fieldsV1"], kept, shape)
    entry = _entry(aim, manager, owned)
    if former is not None and merged == {**present, "metadata": merged["metadata"]} and former["fieldsV1"] == owned:
        entry["time"] = former["time"]
    merged["metadata"]["managedFields"] = [*others, entry]
    return merged


def _entry(aim: Target, manager: str, owned: Json) -> Json:
    return {
        "manager": manager,
        "operation": "Apply",
        "apiVersion": aim.resource.api_version,
        "time": timestamp(),
        "fieldsType": "FieldsV1",
        "fieldsV1": owned,
        **({"subresource": aim.subresource} if aim.subresource else {}),
    }


def _fields(value: Json, shape: Shape, *, top: bool = True) -> Json:
    """The set of fields of an applied object in the form of FieldsV1: {"f:spec": {"f:replicas": {}}}."""
    fields: Json = {}
    for key, child in value.items():
        if top and key in ("apiVersion", "kind"):
            continue
        if top and key == "metadata":
            child = {k: v for k, v in child.items() if k not in ("name", "namespace", "resourceVersion", "uid")}
        fields[f"f:{key}"] = _fields_of_value(child, shape.fields.get(key, Shape()))
    return fields


def _fields_of_value(value: Any, shape: Shape) -> Json:
    if isinstance(value, dict):
        return _fields(value, shape, top=False)
    if isinstance(value, list) and shape.merge_key:
        return {f"k:{item[shape.merge_key]}": _fields(item, shape, top=False) for item in value}
    return {}


def _union(first: Json, second: Json) -> Json:
    return {key: _union(first.get(key, _LEAF), second.get(key, _LEAF)) for key in first | second}


def _without(fields: Json, taken: Json) -> Json:
    """The fields that `taken` does not hold."""
    kept: Json = {}
    for key, child in fields.items():
        if key not in taken:
            kept[key] = child
        elif child and (rest := _without(child, taken[key])):
            kept[key] = rest
    return kept


def _prune(value: Any, former: Json, kept: Json, shape: Shape) -> Any:
    """`value` without the fields that were in `former` and that nobody keeps."""
    if isinstance(value, list):
        pruned = []
        for item in value:
            key = f"k:{item.get(shape.merge_key)}" if shape.merge_key and isinstance(item, dict) else ""
            if key not in former:
                pruned.append(item)
            elif key in kept:
                pruned.append(_prune(item, former[key], kept[key], shape))
        return pruned
    if not isinstance(value, dict):
        return value
    result = {}
    for name, child in value.items():
        key = f"f:{name}"
        if key not in former:
            result[name] = child
        elif key in kept:
            result[name] = _prune(child, former[key], kept[key], shape.fields.get(name, Shape()))
        elif isinstance(child, dict | list) and former[key]:
            rest = _prune(child, former[key], _LEAF, shape.fields.get(name, Shape()))
            if rest:
                result[name] = rest
    return result


def _check_conflicts(
    aim: Target, present: Json, merged: Json, owned: Json, others: list[Json], shape: Shape, force: bool
) -> None:
    if force:
        return
    for each in others:
        paths = sorted(_changed(present, merged, owned, each["fieldsV1"], shape, ""))
        if paths:
            causes = [
                {"reason": "FieldManagerConflict", "message": f'conflict with "{each["manager"]}"', "field": path}
                for path in paths
            ]
            message = f"Apply failed with {len(paths)} conflict{'s' if len(paths) > 1 else ''}: " + ", ".join(
                f'conflict with "{each["manager"]}": {path}' for path in paths
            )
            raise errors.ApiError(409, "Conflict", message, {"causes": causes})


def _changed(present: Any, merged: Any, mine: Json, theirs: Json, shape: Shape, path: str) -> set[str]:
    """Paths that both own and that this apply would change."""
    changed: set[str] = set()
    for key in mine.keys() & theirs.keys():
        name = key[2:]
        before, after = _child(present, key, shape), _child(merged, key, shape)
        inner = shape if key.startswith("k:") else shape.fields.get(name, Shape())
        where = f"{path}[{shape.merge_key}={json_name(name)}]" if key.startswith("k:") else f"{path}.{name}"
        if mine[key] and theirs[key]:
            changed |= _changed(before, after, mine[key], theirs[key], inner, where)
        elif before != after:
            changed.add(where)
    return changed


def json_name(name: str) -> str:
    return f'"{name}"'


def _child(value: Any, key: str, shape: Shape) -> Any:
    if key.startswith("f:"):
        return value.get(key[2:]) if isinstance(value, dict) else None
    items = value if isinstance(value, list) else []
    return next((each for each in items if str(each.get(shape.merge_key)) == key[2:]), None)
