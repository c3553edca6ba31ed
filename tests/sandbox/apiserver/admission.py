"""The admission plugins that a storage user meets. Source: plugin/pkg/admission of k8s.io/kubernetes.

StorageObjectInUseProtection, DefaultStorageClass, PersistentVolumeClaimResize, ServiceAccount, NamespaceLifecycle, and
what the strategies of volumes and namespaces keep.
"""

from datetime import UTC, datetime

from contract import quantity
from tests.sandbox.apiserver import errors
from tests.sandbox.apiserver.resources import (
    CLAIMS,
    CLASSES,
    NAMESPACES,
    PODS,
    SERVICE_ACCOUNTS,
    VOLUMES,
    Json,
    Resource,
)
from tests.sandbox.apiserver.store import Store, Stored

PV_PROTECTION = "kubernetes.io/pv-protection"
PVC_PROTECTION = "kubernetes.io/pvc-protection"
_IMMORTAL = ("default", "kube-public", "kube-system")
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"


def on_create(store: Store, resource: Resource, body: Json) -> None:
    if resource is VOLUMES:
        _protect(body, PV_PROTECTION)
        body["status"]["lastPhaseTransitionTime"] = _now()
    elif resource is CLAIMS:
        _protect(body, PVC_PROTECTION)
        _choose_class(store, body)
    elif resource is PODS:
        _give_account(store, body)


def on_update(store: Store, resource: Resource, body: Json, present: Json, subresource: str) -> None:
    if resource is VOLUMES and subresource == "status":
        before, now = present.get("status", {}).get("phase"), body["status"].get("phase")
        if now != before:
            body["status"]["lastPhaseTransitionTime"] = _now()
        elif "lastPhaseTransitionTime" in present.get("status", {}):
            body["status"].setdefault("lastPhaseTransitionTime", present["status"]["lastPhaseTransitionTime"])
    elif resource is CLAIMS and not subresource:
        _admit_growth(store, body, present)
    elif resource is NAMESPACES and subresource != "finalize":
        body["spec"] = present["spec"]


def on_delete(resource: Resource, name: str) -> None:
    if resource is NAMESPACES and name in _IMMORTAL:
        raise errors.forbidden(NAMESPACES, name, "this namespace may not be deleted")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _protect(body: Json, finalizer: str) -> None:
    finalizers = body["metadata"].setdefault("finalizers", [])
    if finalizer not in finalizers:
        finalizers.append(finalizer)


def _choose_class(store: Store, body: Json) -> None:
    """A claim that names no class gets the default one; "" is a name: it asks for a volume without a class."""
    if body["spec"].get("storageClassName") is not None:
        return
    if "volume.beta.kubernetes.io/storage-class" in (body["metadata"].get("annotations") or {}):
        return
    marked = [
        each
        for each in store.all(CLASSES)
        if (each.object["metadata"].get("annotations") or {}).get(_DEFAULT_CLASS) == "true"
    ]
    if marked:
        newest = max(marked, key=lambda each: (each.object["metadata"]["creationTimestamp"], each.name))
        body["spec"]["storageClassName"] = newest.name


def _give_account(store: Store, body: Json) -> None:
    spec, metadata = body["spec"], body["metadata"]
    name = spec.get("serviceAccountName") or spec.get("serviceAccount") or "default"
    spec["serviceAccountName"] = spec["serviceAccount"] = name
    if store.get(SERVICE_ACCOUNTS, metadata["namespace"], name) is None:
        why = f'error looking up service account {metadata["namespace"]}/{name}: serviceaccount "{name}" not found'
        raise errors.forbidden(PODS, metadata.get("name", ""), why)


def requested(claim: Json) -> int:
    """Bytes that a claim asks for; 0 for what can't be read, which validation reports."""
    resources = (claim.get("spec") or {}).get("resources") or {}
    try:
        return quantity.parse(str((resources.get("requests") or {}).get("storage", "0")))
    except ValueError:
        return 0


def _admit_growth(store: Store, body: Json, present: Json) -> None:
    if requested(body) <= requested(present):
        return
    name = body["metadata"]["name"]
    if present.get("status", {}).get("phase") != "Bound":
        raise errors.forbidden(CLAIMS, name, "Only bound persistent volume claims can be expanded")
    storage_class: Stored | None = store.get(CLASSES, "", present["spec"].get("storageClassName") or "")
    if storage_class is None or not storage_class.object.get("allowVolumeExpansion"):
        why = (
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support"
            " resize"
        )
        raise errors.forbidden(CLAIMS, name, why)
