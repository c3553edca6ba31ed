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
    """The PersistentVolume of an entry. `node` is the Node's name, not its hostname label."""
    return f"local-pv-{_fnv1a(entry, node, storage_class)}"


def job_volume_name(host_dir: str, mount_dir: str) -> str:
    """The name inside a cleaning Job of the volume that shows a class's folder."""
    return f"mount-{_fnv1a(host_dir, mount_dir)}"


def provisioner_name(node: str, uid: str, node_name_only: bool) -> str:
    """Who a PersistentVolume says it is provisioned by."""
    name = f"local-volume-provisioner-{node}"
    return name if node_name_only else f"{name}-{uid}"


def round_down(size: int) -> int:
    """Bytes that a PersistentVolume offers of a volume of `size`: whole GiB from 10 GiB, whole MiB from 10 MiB. A disk
    is a little more than its label says, and a claim for what the label says is a round number."""
    unit = _GIB if size >= 10 * _GIB else _MIB if size >= 10 * _MIB else 1
    return size // unit * unit


RECYCLE = "Recycle"
POLICIES = (DELETE, RETAIN)
"""What a StorageClass of static volumes may ask for."""
ALPHA_AFFINITY = "volume.alpha.kubernetes.io/node-affinity"


@dataclass(frozen=True)
class StaticVolume:
    """What we read of a PersistentVolume with a local path."""

    name: str
    uid: str
    phase: str
    path: str
    """spec.local.path: as the node sees it."""
    mode: str
    storage_class: str
    reclaim_policy: str
    capacity: int
    """Bytes."""
    deleting: bool
    provisioned_by: str
    hostnames: tuple[str, ...]
    """Hostname label values of its node affinity, and of its own hostname label."""
    claim_uid: str = ""
    """Of the claim that it is, or was last, bound to."""
    claimed: bool = False
    """It is bound to a claim or kept for one."""
    held: bool = False
    """It carries our finalizer: however it was deleted, it stays until we let it go."""

    @property
    def reference(self) -> ObjectReference:
        return ObjectReference("PersistentVolume", "v1", "", self.name, self.uid)


def read(body: Json) -> StaticVolume | None:
    """The record of a PersistentVolume, or None when it is no local one."""
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
        claimed=bool(spec.get("claimRef")),
        held=names.STATIC_FINALIZER in (metadata.get("finalizers") or ()),
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


def adopting(body: Json, label: Mapping[str, str]) -> Json | None:
    """The merge patch that gives this very version of a PersistentVolume our label and our finalizer, or None when it
    has both. The API server takes no finalizer for one that is being deleted."""
    metadata = body["metadata"]
    wanted: Json = {}
    if not label.items() <= (metadata.get("labels") or {}).items():
        wanted["labels"] = dict(label)
    finalizers = metadata.get("finalizers") or []
    if names.STATIC_FINALIZER not in finalizers and "deletionTimestamp" not in metadata:
        wanted["finalizers"] = [*finalizers, names.STATIC_FINALIZER]
    if not wanted:
        return None
    return {"metadata": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"], **wanted}}


@dataclass(frozen=True)
class Offer:
    """A volume that stands ready and has no PersistentVolume yet."""

    name: str
    path: str
    """As the node sees it."""
    mode: str
    capacity: int
    """Bytes, rounded."""


def manifest(
    offer: Offer,
    configuration: Configuration,
    settings: ClassConfiguration,
    storage_class: StorageClass,
    node: Node,
    provisioner: str,
) -> Json:
    """The PersistentVolume of an offer. Apart from NODE_LABEL, by which we ask the API server for ours,
    OTHER_HOSTNAME_LABEL and STATIC_FINALIZER, it is the one that the original creates."""
    annotations = {names.PROVISIONED_BY: provisioner}
    terms = [
        {"matchExpressions": [{"key": names.HOSTNAME_LABEL, "operator": "In", "values": [node.hostname]}]},
        *settings.selector,
    ]
    metadata: Json = {
        "name": offer.name,
        "labels": labels(configuration, settings, node),
        "annotations": annotations,
        "finalizers": [names.STATIC_FINALIZER],
    }
    spec: Json = {
        "capacity": {"storage": quantity.render(offer.capacity)},
        "local": {"path": offer.path} | ({"fsType": settings.fs_type} if settings.fs_type else {}),
        "accessModes": [settings.access_mode],
        "storageClassName": settings.name,
        "persistentVolumeReclaimPolicy": storage_class.reclaim_policy,
        "volumeMode": offer.mode,
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


def labels(configuration: Configuration, settings: ClassConfiguration, node: Node) -> dict[str, str]:
    """Later ones win: the node's, those of all classes, those of the class."""
    copied = {key: node.labels[key] for key in configuration.node_labels if key in node.labels}
    return {**copied, **configuration.labels, **settings.labels, **names.labels_of(node.name, node.hostname)}
