"""The rules of VolumeSnapshots, their contents and classes, which are custom resources: what the schemas of their
CustomResourceDefinitions say, with their messages.

Source: client/config/crd of kubernetes-csi/external-snapshotter v8.6.0.
"""

from collections.abc import Iterator

from tests.sandbox.apiserver.errors import FieldError, invalid_value, required, unsupported
from tests.sandbox.apiserver.resources import Json

_POLICIES = ("Delete", "Retain")


def check_class(body: Json) -> Iterator[FieldError]:
    yield from _strings(body, "", "driver", "deletionPolicy", needed=("driver", "deletionPolicy"))
    yield from _policy("deletionPolicy", body)


def check_content(body: Json) -> Iterator[FieldError]:
    spec = body.get("spec")
    if not isinstance(spec, dict):
        yield required("spec")
        return
    yield from _strings(spec, "spec.", "driver", "volumeSnapshotClassName", "sourceVolumeMode", needed=("driver",))
    yield from _policy("spec.deletionPolicy", spec)
    reference = spec.get("volumeSnapshotRef")
    if not isinstance(reference, dict):
        yield required("spec.volumeSnapshotRef")
    elif not {"name", "namespace"} <= reference.keys():
        why = "both spec.volumeSnapshotRef.name and spec.volumeSnapshotRef.namespace must be set"
        yield invalid_value("spec.volumeSnapshotRef", "object", why)
    yield from _source(spec, "volumeHandle", "snapshotHandle")


def check_content_update(body: Json, present: Json) -> Iterator[FieldError]:
    yield from _unchanged(body, present, "spec.source", "volumeHandle", "snapshotHandle")
    yield from _unchanged(body, present, "spec", "sourceVolumeMode")


def check_content_status_update(body: Json, _present: Json) -> Iterator[FieldError]:
    status = body.get("status") or {}
    for key in ("creationTime", "restoreSize"):
        if key in status and (isinstance(status[key], bool) or not isinstance(status[key], int)):
            yield invalid_value(f"status.{key}", type(status[key]).__name__, f"status.{key} must be of type integer")
    if status.get("restoreSize", 0) and isinstance(status["restoreSize"], int) and status["restoreSize"] < 0:
        yield invalid_value("status.restoreSize", status["restoreSize"], "should be greater than or equal to 0")
    if "readyToUse" in status and not isinstance(status["readyToUse"], bool):
        yield invalid_value("status.readyToUse", type(status["readyToUse"]).__name__, "must be of type boolean")
    yield from _strings(status, "status.", "snapshotHandle")


def check_snapshot(body: Json) -> Iterator[FieldError]:
    spec = body.get("spec")
    if not isinstance(spec, dict):
        yield required("spec")
        return
    yield from _source(spec, "volumeSnapshotContentName", "persistentVolumeClaimName")
    yield from _strings(spec, "spec.", "volumeSnapshotClassName")
    if spec.get("volumeSnapshotClassName") == "":
        why = "volumeSnapshotClassName must not be the empty string when set"
        yield invalid_value("spec.volumeSnapshotClassName", "string", why)


def check_snapshot_update(body: Json, present: Json) -> Iterator[FieldError]:
    yield from _unchanged(body, present, "spec.source", "persistentVolumeClaimName", "volumeSnapshotContentName")


def _policy(field: str, fields: Json) -> Iterator[FieldError]:
    if "deletionPolicy" not in fields:
        yield required(field)
    elif fields["deletionPolicy"] not in _POLICIES:
        yield unsupported(field, fields["deletionPolicy"], _POLICIES)


def _strings(fields: Json, prefix: str, *keys: str, needed: tuple[str, ...] = ()) -> Iterator[FieldError]:
    for key in keys:
        if key not in fields:
            if key in needed:
                yield required(f"{prefix}{key}")
        elif not isinstance(fields[key], str):
            kind = type(fields[key]).__name__
            yield invalid_value(f"{prefix}{key}", kind, f"{prefix}{key} in body must be of type string")


def _source(spec: Json, one: str, other: str) -> Iterator[FieldError]:
    source = spec.get("source")
    if not isinstance(source, dict):
        yield required("spec.source")
        return
    yield from _strings(source, "spec.source.", one, other)
    if (one in source) == (other in source):
        yield invalid_value("spec.source", "object", f"exactly one of {one} and {other} must be set")


def _unchanged(body: Json, present: Json, field: str, *keys: str) -> Iterator[FieldError]:
    now, before = body, present
    for part in field.split("."):
        now, before = now.get(part) or {}, before.get(part) or {}
    for key in keys:
        if key in before and key not in now:
            yield invalid_value(field, "object", f"{key} is required once set")
        elif key in before and now[key] != before[key]:
            yield invalid_value(f"{field}.{key}", "string", f"{key} is immutable")
