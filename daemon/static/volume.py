"""A static PersistentVolume: its name, the manifest that discovery creates and the record that the cache holds.

Names and sizes must be those of the local static provisioner: a cluster that moved over keeps its PersistentVolumes
because the same entry gets the same name again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contract import names, quantity
from contract.volume import DELETE, PENDING, RETAIN
from daemon.static.configuration import FILESYSTEM, ClassConfiguration, Configuration
from kube.records import Node, ObjectReference, StorageClass

Json = dict[str, Any]


_GIB, _MIB = 1 << 30, 1 << 20
_PRIME, _OFFSET = 16777619, 2166136261


def _fnv1a(*parts: str) -> str:
    """FNV-1a of 32 bits over the parts without separators, in hexadecimal without leading zeros."""
    digest = _OFFSET
    for byte in "".join(parts).encode(errors="surrogateescape"):
        digest = (digest ^ byte) * _PRIME & 0xFFFFFFFF
    return f"{digest:x}"


def volume_name(entry: str, node: str, storage_class: str) -> str:
    """The name of an entry's PersistentVolume. `node`: the Node's name, not its hostname label."""
    return f"local-pv-{_fnv1a(entry, node, storage_class)}"


def job_volume_name(host_dir: str, mount_dir: str) -> str:
    """The name of a class's folder among the volumes of a cleanup Job's pod."""
    return f"mount-{_fnv1a(host_dir, mount_dir)}"


def provisioner_name(node: str, uid: str, node_name_only: bool) -> str:
    """The value of the annotation pv.kubernetes.io/provisioned-by."""
    name = f"local-volume-provisioner-{node}"
    return name if node_name_only else f"{name}-{uid}"


def round_down(size: int) -> int:
    """The capacity of a PersistentVolume in bytes: whole GiB from 10 GiB, whole MiB from 10 MiB. A disk is slightly
    larger than its nominal size, and claims ask for round numbers."""
    unit = _GIB if size >= 10 * _GIB else _MIB if size >= 10 * _MIB else 1
    return size // unit * unit


RECYCLE = "Recycle"
POLICIES = (DELETE, RETAIN)
"""Reclaim policies that a StorageClass of static volumes may have."""
ALPHA_AFFINITY = "volume.alpha.kubernetes.io/node-affinity"


@dataclass(frozen=True)
class StaticVolume:
    """The fields of a PersistentVolume of type `local` that are used here."""

    name: str
    uid: str
    phase: str
    path: str
    """spec.local.path: on the node."""
    mode: str
    storage_class: str
    reclaim_policy: str
    capacity: int
    """Bytes."""
    deleting: bool
    provisioned_by: str
    hostnames: tuple[str, ...]
    """From its node affinity, and from its own hostname label."""
    claim_uid: str = ""
    """Of spec.claimRef."""
    has_claim: bool = False
    """It has a spec.claimRef: it is bound to a claim or reserved for one."""
    has_finalizer: bool = False
    """It has our finalizer: if somebody deletes it, it stays until that is removed."""

    @property
    def reference(self) -> ObjectReference:
        return ObjectReference("PersistentVolume", "v1", "", self.name, self.uid)


def read(body: Json) -> StaticVolume | None:
    """The record of a PersistentVolume, or None if it is not of type `local`."""
    spec, metadata = body.get("spec") or {}, body["metadata"]
    path = (spec.get("local") or {}).get("path")
    if not path:
        return None
    annotations = metadata.get("annotations") or {}
    label = (metadata.get("labels") or {}).get(names.HOSTNAME_LABEL)
    return StaticVolume(
        name=metadata["name"],
        uid=metadata["uid"],
        phase=(body.get("status") or {}).get("phase") or PENDING,
        path=path,
        mode=spec.get("volumeMode") or FILESYSTEM,
        storage_class=spec.get("storageClassName") or "",
        reclaim_policy=spec.get("persistentVolumeReclaimPolicy") or RETAIN,
        capacity=quantity.parse(str((spec.get("capacity") or {}).get("storage") or "0")),
        deleting="deletionTimestamp" in metadata,
        provisioned_by=annotations.get(names.PROVISIONED_BY, ""),
        hostnames=tuple(dict.fromkeys((*_hostnames(spec, annotations), *((label,) if label else ())))),
        claim_uid=(spec.get("claimRef") or {}).get("uid") or "",
        has_claim=bool(spec.get("claimRef")),
        has_finalizer=names.STATIC_FINALIZER in (metadata.get("finalizers") or ()),
    )


def _hostnames(spec: Json, annotations: Mapping[str, str]) -> tuple[str, ...]:
    affinity = (spec.get("nodeAffinity") or {}).get("required")
    if affinity is None and ALPHA_AFFINITY in annotations:
        affinity = json.loads(annotations[ALPHA_AFFINITY]).get("requiredDuringSchedulingIgnoredDuringExecution")
    return tuple(
        value
        for term in (affinity or {}).get("nodeSelectorTerms") or []
        for expression in term.get("matchExpressions") or []
        if expression.get("key") == names.HOSTNAME_LABEL and expression.get("operator") == "In"
        for value in expression.get("values") or []
    )


def adoption_patch(body: Json, label: Mapping[str, str]) -> Json | None:
    """The merge patch that adds our label and finalizer to this very version of a PersistentVolume, or None if it has
    both. The API server accepts no new finalizer on an object that is being deleted."""
    metadata = body["metadata"]
    missing: Json = {}
    if not label.items() <= (metadata.get("labels") or {}).items():
        missing["labels"] = dict(label)
    finalizers = metadata.get("finalizers") or []
    if names.STATIC_FINALIZER not in finalizers and "deletionTimestamp" not in metadata:
        missing["finalizers"] = [*finalizers, names.STATIC_FINALIZER]
    if not missing:
        return None
    return {"metadata": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"], **missing}}


@dataclass(frozen=True)
class DiscoveredVolume:
    """A volume that has no PersistentVolume yet."""

    name: str
    path: str
    """On the node."""
    mode: str
    capacity: int
    """Bytes, rounded."""


def manifest(
    discovered: DiscoveredVolume,
    configuration: Configuration,
    class_config: ClassConfiguration,
    storage_class: StorageClass,
    node: Node,
    provisioner: str,
) -> Json:
    """Apart from NODE_LABEL, by which the informer selects them, OTHER_HOSTNAME_LABEL and STATIC_FINALIZER, it is the
    PersistentVolume that the local static provisioner creates."""
    annotations = {names.PROVISIONED_BY: provisioner}
    terms = [
        {"matchExpressions": [{"key": names.HOSTNAME_LABEL, "operator": "In", "values": [node.hostname]}]},
        *class_config.selector,
    ]
    metadata: Json = {
        "name": discovered.name,
        "labels": labels(configuration, class_config, node),
        "annotations": annotations,
        "finalizers": [names.STATIC_FINALIZER],
    }
    spec: Json = {
        "capacity": {"storage": quantity.render(discovered.capacity)},
        "local": {"path": discovered.path} | ({"fsType": class_config.fs_type} if class_config.fs_type else {}),
        "accessModes": [class_config.access_mode],
        "storageClassName": class_config.name,
        "persistentVolumeReclaimPolicy": storage_class.reclaim_policy,
        "volumeMode": discovered.mode,
    }
    if storage_class.mount_options:
        spec["mountOptions"] = list(storage_class.mount_options)
    if configuration.use_alpha_api:
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        annotations[ALPHA_AFFINITY] = json.dumps(required, separators=(",", ":"))
    else:
        spec["nodeAffinity"] = {"required": {"nodeSelectorTerms": terms}}
    if configuration.set_owner:
        metadata["ownerReferences"] = [{"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}]
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": spec}


def labels(configuration: Configuration, class_config: ClassConfiguration, node: Node) -> dict[str, str]:
    """In rising precedence: those of the Node, those for all classes, those for the class."""
    copied = {key: node.labels[key] for key in configuration.node_labels if key in node.labels}
    return {**copied, **configuration.labels, **class_config.labels, **names.labels_of(node.name, node.hostname)}
