"""Create, update and delete as Kubernetes does them, whatever the kind.

Source: k8s.io/apiserver/pkg/registry/generic/registry/store.go and registry/rest/{create,update,delete}.go. All of it
is synchronous: a request sees one state of the store and leaves one, so concurrent requests need no lock.
"""

import json
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.sandbox.apiserver import admission, defaults, errors, validation
from tests.sandbox.apiserver.policies import CREATE, DELETE, UPDATE
from tests.sandbox.apiserver.resources import CUSTOM_RESOURCES, NAMESPACES, PODS, Json, Resource
from tests.sandbox.apiserver.store import Store, Stored

_SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_FOREGROUND, _ORPHAN = "foregroundDeletion", "orphan"
_SYSTEM_METADATA = ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds")


def timestamp(moment: datetime | None = None) -> str:
    return (moment or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")


Admit = Callable[[str, str, Json | None, Json | None], None]
"""Told of what is about to be written: operation, name of the object, the object, and what it was. Raises ApiError."""


def admit_all(*_: object) -> None:
    """What the server itself does."""


@dataclass(frozen=True)
class DeleteOptions:
    """The body or the query of a DELETE."""

    grace_seconds: int | None = None
    uid: str = ""
    revision: str = ""
    propagation: str = ""
    """Background, Foreground, Orphan, or empty for the default, Background."""


class Registry:
    """The one way to change the store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def serves(self, resource: Resource) -> bool:
        """A custom resource is there while its definition is."""
        return not resource.custom or self.store.get(CUSTOM_RESOURCES, "", resource.qualified) is not None

    def get(self, resource: Resource, namespace: str, name: str) -> Stored:
        stored = self.store.get(resource, namespace, name)
        if stored is None:
            raise errors.not_found(resource, name)
        return stored

    def create(
        self, resource: Resource, namespace: str, body: Json, *, dry_run: bool = False, admit: Admit = admit_all
    ) -> Stored:
        body = _without_nulls(body)
        metadata = _metadata_of(resource, namespace, body)
        if metadata.get("resourceVersion"):
            raise errors.bad_request("resourceVersion should not be set on objects to be created")
        if not metadata.get("name") and metadata.get("generateName"):
            suffix = "".join(random.choices(_SUFFIX_ALPHABET, k=5))
            metadata["name"] = metadata["generateName"][:58] + suffix
        name = metadata.get("name") or ""
        self._require_namespace(resource, namespace, name)
        metadata.pop("deletionTimestamp", None)
        metadata.pop("deletionGracePeriodSeconds", None)
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": timestamp()}
        if resource.counts_generations:
            metadata["generation"] = 1
        defaults.prepare_new(body)
        defaults.fill_in(body)
        admission.on_create(self.store, resource, body)
        if causes := list(validation.check(resource, body)):
            raise errors.invalid(resource, name or metadata.get("generateName") or "", causes)
        admit(CREATE, name, body, None)
        if self.store.get(resource, namespace, name) is not None:
            raise errors.already_exists(resource, name)
        return self._write(resource, body, dry_run)

    def _require_namespace(self, resource: Resource, namespace: str, name: str) -> None:
        if not resource.namespaced:
            return
        home = self.store.get(NAMESPACES, "", namespace)
        if home is None:
            raise errors.not_found(NAMESPACES, namespace)
        if "deletionTimestamp" in home.object["metadata"]:
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            cause = {"reason": "NamespaceTerminating", "message": why, "field": "metadata.namespace"}
            raise errors.forbidden(resource, name, why, [cause])

    def update(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        change: Callable[[Json], Json],
        *,
        subresource: str = "",
        dry_run: bool = False,
        must_carry_revision: bool = False,
        admit: Admit = admit_all,
    ) -> Stored:
        """Stores what `change` makes of (a copy of) the present object. The same object again is no new revision."""
        old = self.get(resource, namespace, name)
        present = old.object
        body = _without_nulls(change(json.loads(old.encoded)))
        body |= {"apiVersion": resource.api_version, "kind": resource.kind}
        metadata = _metadata_of(resource, namespace, body)
        if metadata.get("name") != name:
            raise errors.bad_request(
                f"the name of the object ({metadata.get('name')}) does not match the name on the URL ({name})"
            )
        _check_preconditions(old, metadata, must_carry_revision)
        for key in _SYSTEM_METADATA:
            if key in present["metadata"]:
                metadata[key] = present["metadata"][key]
            else:
                metadata.pop(key, None)
        if subresource == "status" and resource.custom:
            metadata = dict(present["metadata"])  # of one of them not even a label can be changed this way
        if subresource == "status":
            body = present | {"metadata": metadata, "status": body.get("status", {})}
        elif resource.has_status and not subresource:
            body["status"] = present.get("status", {})
            if resource.custom and "status" not in present:
                del body["status"]
        defaults.fill_in(body)
        if resource.counts_generations:
            changed = _intent(body) != _intent(present)
            metadata["generation"] = present["metadata"].get("generation", 1) + (1 if changed else 0)
        admission.on_update(self.store, resource, body, present, subresource)
        if causes := list(validation.check_update(resource, body, present, subresource)):
            raise errors.invalid(resource, name, causes)
        _tidy(metadata)
        admit(UPDATE, name, body, present)
        if metadata | {"resourceVersion": ""} == present["metadata"] | {"resourceVersion": ""} and _same(body, present):
            return old
        if _is_finished(body):
            return old if dry_run else self._finish(Stored(resource, body))
        return self._write(resource, body, dry_run)

    def replace(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        body: Json,
        *,
        subresource: str = "",
        dry_run: bool = False,
        admit: Admit = admit_all,
        before_create: Callable[[], None] = lambda: None,
    ) -> tuple[Stored, bool]:
        """A PUT. The answer says whether it created the object, as some resources let it; what it replaces must be the
        object of the uid that it carries, so one that was deleted is not created again."""
        if self.store.get(resource, namespace, name) or subresource or not resource.create_on_update:
            stored = self.update(
                resource,
                namespace,
                name,
                lambda _: body,
                subresource=subresource,
                dry_run=dry_run,
                must_carry_revision=True,
                admit=admit,
            )
            return stored, False
        before_create()
        metadata = _metadata_of(resource, namespace, body)
        if uid := metadata.get("uid"):
            raise errors.conflict(resource, name, _other_uid(uid, ""))
        metadata.pop("resourceVersion", None)
        return self.create(resource, namespace, body, dry_run=dry_run, admit=admit), True

    def _write(self, resource: Resource, body: Json, dry_run: bool) -> Stored:
        _tidy(body["metadata"])
        return Stored(resource, body) if dry_run else self.store.write(resource, body)

    def _finish(self, last: Stored) -> Stored:
        return self.store.remove(last)

    def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        options: DeleteOptions,
        *,
        dry_run: bool = False,
        admit: Admit = admit_all,
    ) -> tuple[Stored, bool]:
        """Deletes, or marks as being deleted. The answer says whether the object is gone."""
        old = self.get(resource, namespace, name)
        admission.on_delete(resource, name)
        if options.uid and options.uid != old.uid:
            raise errors.conflict(
                resource,
                name,
                f"the UID in the precondition ({options.uid}) does not match the UID in record ({old.uid}). The object"
                " might have been deleted and then recreated",
            )
        if options.revision and options.revision != str(old.revision):
            raise errors.conflict(
                resource,
                name,
                f"the ResourceVersion in the precondition ({options.revision}) does not match the ResourceVersion in"
                f" record ({old.revision}). The object might have been modified",
            )
        admit(DELETE, name, None, old.object)
        body: Json = json.loads(old.encoded)
        metadata = body["metadata"]
        grace = _grace(resource, old.object, options)
        if options.propagation in ("Foreground", "Orphan"):
            wanted = _FOREGROUND if options.propagation == "Foreground" else _ORPHAN
            if wanted not in metadata.setdefault("finalizers", []):
                metadata["finalizers"].append(wanted)
        if resource is NAMESPACES:
            body["status"] = {**body.get("status", {}), "phase": "Terminating"}
        pending = bool(metadata.get("finalizers")) or grace > 0 or _awaits_finalize(body)
        if not pending:
            return (old, True) if dry_run else (self._finish(old), True)
        previous = metadata.get("deletionGracePeriodSeconds")
        if "deletionTimestamp" not in metadata or (previous is not None and grace < previous):
            started = datetime.now(UTC)
            metadata["deletionTimestamp"] = timestamp(started + timedelta(seconds=grace))
            metadata["deletionGracePeriodSeconds"] = grace
            if resource.counts_generations:
                metadata["generation"] = metadata.get("generation", 1) + 1
        if body == old.object:
            return old, False
        return self._write(resource, body, dry_run), False


def _without_nulls(value: Any) -> Any:
    """A null is the same as no field: the real server decodes into types, which have no nulls."""
    if isinstance(value, dict):
        return {key: _without_nulls(child) for key, child in value.items() if child is not None}
    if isinstance(value, list):
        return [_without_nulls(child) for child in value]
    return value


def _metadata_of(resource: Resource, namespace: str, body: Json) -> Json:
    """The body's metadata, with the namespace of the URL. Raises BadRequest when the two disagree."""
    metadata: Any = body.setdefault("metadata", {})
    if not isinstance(metadata, dict):
        raise errors.bad_request("metadata must be an object")
    if not resource.namespaced:
        metadata.pop("namespace", None)
        return metadata
    if metadata.setdefault("namespace", namespace) != namespace:
        raise errors.bad_request(
            f"the namespace of the provided object does not match the namespace sent on the request"
            f" ({metadata['namespace']} != {namespace})"
        )
    return metadata


def _check_preconditions(old: Stored, metadata: Json, must_carry_revision: bool) -> None:
    resource, name = old.resource, old.name
    uid = metadata.get("uid") or old.uid
    if uid != old.uid:
        raise errors.conflict(resource, name, _other_uid(uid, old.uid))
    revision = metadata.get("resourceVersion")
    if revision and str(revision) != str(old.revision):
        raise errors.modified(resource, name)
    if not revision and must_carry_revision and not resource.unconditional_update:
        field = errors.invalid_value("metadata.resourceVersion", 0, "must be specified for an update")
        raise errors.invalid(resource, name, [field])


def _other_uid(asked: str, actual: str) -> str:
    return f"Precondition failed: UID in precondition: {asked}, UID in object meta: {actual}"


def _intent(body: Json) -> Json:
    return {key: value for key, value in body.items() if key not in ("metadata", "status")}


def _same(body: Json, present: Json) -> bool:
    def rest(each: Json) -> Json:
        return {key: value for key, value in each.items() if key != "metadata"}

    return rest(body) == rest(present)


def _tidy(metadata: Json) -> None:
    """An empty map or list is the same as none, and is stored as none: the real server omits both."""
    for key in ("labels", "annotations", "finalizers", "ownerReferences", "managedFields"):
        if key in metadata and not metadata[key]:
            del metadata[key]


def _awaits_finalize(body: Json) -> bool:
    return body["kind"] == "Namespace" and bool((body.get("spec") or {}).get("finalizers"))


def _is_finished(body: Json) -> bool:
    """Being deleted, and nothing holds it any more."""
    metadata = body["metadata"]
    return (
        "deletionTimestamp" in metadata
        and not metadata.get("finalizers")
        and not metadata.get("deletionGracePeriodSeconds")
        and not _awaits_finalize(body)
    )


def _grace(resource: Resource, body: Json, options: DeleteOptions) -> int:
    """Seconds. Only pods have any, and only those that a kubelet looks after and that still run."""
    if resource is not PODS:
        return 0
    spec, status = body.get("spec") or {}, body.get("status") or {}
    if not spec.get("nodeName") or status.get("phase") in ("Succeeded", "Failed"):
        return 0
    if options.grace_seconds is not None:
        return max(options.grace_seconds, 0)
    return int(spec.get("terminationGracePeriodSeconds", 30))
