"""A static PersistentVolume: its name, the manifest that discovery creates and the record that the cache holds.

Names and sizes must be those of the local static provisioner: a cluster that moved over keeps its PersistentVolumes
because the same entry gets the same name again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contract import names, quantity
from contract import volume as contract_volume
from contract.volume import DELETE, RETAIN, ObjectReference, admitted_hostnames, volume_reference
from daemon.static.configuration import ClassConfiguration, Configuration
from kube.records import Node, StorageClass

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
    disk: str = ""
    """See names.DISK_ANNOTATION. Empty: it does not say."""

    @property
    def reference(self) -> ObjectReference:
        return volume_reference(self.name, self.uid)


def read(body: Json) -> StaticVolume | None:
    """The record of a PersistentVolume, or None if it is not of type `local`."""
    pv = contract_volume.read_any(body)
    if not pv.local_path:
        return None
    label = (body["metadata"].get("labels") or {}).get(names.HOSTNAME_LABEL)
    hostnames = pv.hostnames or _alpha_hostnames(body)
    return StaticVolume(
        name=pv.name,
        uid=pv.uid,
        phase=pv.phase,
        path=pv.local_path,
        mode=pv.volume_mode,
        storage_class=pv.storage_class,
        reclaim_policy=pv.reclaim_policy,
        capacity=pv.size,
        deleting=pv.deleting,
        provisioned_by=pv.provisioned_by,
        hostnames=tuple(dict.fromkeys((*hostnames, *((label,) if label else ())))),
        claim_uid=pv.claim.uid if pv.claim else "",
        has_claim=pv.claim is not None,
        has_finalizer=names.STATIC_FINALIZER in pv.finalizers,
        disk=(body["metadata"].get("annotations") or {}).get(names.DISK_ANNOTATION, ""),
    )


def _alpha_hostnames(body: Json) -> tuple[str, ...]:
    """Of a PersistentVolume from before Kubernetes 1.10, whose affinity is an annotation."""
    annotations = body["metadata"].get("annotations") or {}
    if (body["spec"].get("nodeAffinity") or {}).get("required") or ALPHA_AFFINITY not in annotations:
        return ()
    return admitted_hostnames(
        json.loads(annotations[ALPHA_AFFINITY]).get("requiredDuringSchedulingIgnoredDuringExecution")
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


def disk_patch(body: Json, disk: str) -> Json:
    """The merge patch by which this very version of a PersistentVolume says which disk it is."""
    metadata = body["metadata"]
    version = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
    return {"metadata": {**version, "annotations": {names.DISK_ANNOTATION: disk}}}


@dataclass(frozen=True)
class DiscoveredVolume:
    """A volume that has no PersistentVolume yet."""

    name: str
    path: str
    """On the node."""
    mode: str
    capacity: int
    """Bytes, rounded."""
    disk: str = ""
    """See names.DISK_ANNOTATION."""


def manifest(
    discovered: DiscoveredVolume,
    configuration: Configuration,
    class_config: ClassConfiguration,
    storage_class: StorageClass,
    node: Node,
    provisioner: str,
) -> Json:
    """Apart from NODE_LABEL, by which the informer selects them, OTHER_HOSTNAME_LABEL, STATIC_FINALIZER and
    DISK_ANNOTATION, it is the PersistentVolume that the local static provisioner creates."""
    annotations = {names.PROVISIONED_BY: provisioner}
    if discovered.disk:
        annotations[names.DISK_ANNOTATION] = discovered.disk
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
