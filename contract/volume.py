"""A PersistentVolume of ours: the manifest that the provisioner creates and the record that both programs read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contract import filesystems, names, parameters, quantity
from contract.parameters import VolumeParameters

Json = dict[str, Any]

PENDING, AVAILABLE, BOUND, RELEASED, FAILED = "Pending", "Available", "Bound", "Released", "Failed"
DELETE, RETAIN = "Delete", "Retain"
PV_PROTECTION = "kubernetes.io/pv-protection"


@dataclass(frozen=True)
class ClaimReference:
    """The claim that a volume is for. The uid tells a claim from its namesake of yesterday."""

    namespace: str
    name: str
    uid: str
    resource_version: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Pin:
    """The node that a volume lives on: its name, the value of its hostname label (they differ on many clouds) and
    the pool there that the volume takes its space from."""

    node: str
    hostname: str
    pool: str


@dataclass(frozen=True)
class Original:
    """The PersistentVolume that another one begins as a copy of."""

    pv: str
    uid: str

    def to_options(self) -> dict[str, str]:
        """How it travels to the node, in the flexVolume options of the copy."""
        return {parameters.CLONE_OF_OPTION: self.pv, parameters.CLONE_OF_UID_OPTION: self.uid}


@dataclass(frozen=True)
class PersistentVolume:
    """What we read of a PersistentVolume that names our driver."""

    name: str
    uid: str
    resource_version: str
    size: int
    """Bytes, from spec.capacity. Not what it has, nor what it was promised: Kubernetes raises it to what the claim asks
    for before anybody was asked whether there is room."""
    options: Mapping[str, str]
    filesystem: str
    reclaim_policy: str
    storage_class: str
    provisioned_by: str
    claim: ClaimReference | None
    node_label: str
    """Value of NODE_LABEL: empty while no node is chosen."""
    hostnames: tuple[str, ...]
    """Hostname label values that the node affinity admits: empty = any node."""
    pool: str
    phase: str
    finalizers: tuple[str, ...]
    deleting: bool
    made: bool = False
    """See names.MADE_ANNOTATION."""
    access_modes: tuple[str, ...] = ()
    granted: int | None = None
    """See names.GRANTED_ANNOTATION. None: it was made by hand, or by a provisioner that did not say."""
    actual: int = 0
    """Bytes that its node says it has. 0: it did not say."""

    @property
    def given(self) -> int:
        """Bytes that it was created with. 0: its options don't say."""
        return min(_bytes(self.options.get(parameters.SIZE_OPTION)), self.size)

    @property
    def promised(self) -> int:
        """Bytes that it has a right to, and that its node is to give it."""
        return max(self.given, self.granted or 0) or self.size

    @property
    def charged(self) -> int:
        """Bytes that it counts with in all sums: what it was promised, or has, where that is more. Of one that nobody
        wrote down a grant for, all that it might have been granted."""
        return max(self.promised, self.actual, self.size if self.granted is None else 0)

    @property
    def pinned(self) -> bool:
        return bool(self.hostnames)

    @property
    def reclaimable(self) -> bool:
        """Deleted, and nobody can be using it any more: only then may its node let go of it."""
        return self.deleting and self.phase != BOUND and PV_PROTECTION not in self.finalizers

    @property
    def original(self) -> Original | None:
        """What it begins as a copy of. None: it begins empty."""
        pv = self.options.get(parameters.CLONE_OF_OPTION, "")
        return Original(pv, self.options.get(parameters.CLONE_OF_UID_OPTION, "")) if pv else None

    def parameters(self) -> VolumeParameters:
        """Raises parameters.ParameterError: options are checked again on the node, whoever wrote them."""
        return parameters.from_options(self.options, self.filesystem)


def read(manifest: Json) -> PersistentVolume | None:
    """The record of a PersistentVolume, or None when it is not of our driver."""
    spec = manifest.get("spec") or {}
    source = spec.get("flexVolume") or {}
    if source.get("driver") != names.DRIVER:
        return None
    metadata = manifest["metadata"]
    annotations = metadata.get("annotations") or {}
    return PersistentVolume(
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        size=quantity.parse(str(spec["capacity"]["storage"])),
        options=source.get("options") or {},
        filesystem=source.get("fsType") or filesystems.EXT4,
        reclaim_policy=spec.get("persistentVolumeReclaimPolicy") or RETAIN,
        storage_class=spec.get("storageClassName") or "",
        provisioned_by=annotations.get(names.PROVISIONED_BY, ""),
        claim=read_claim_reference(spec),
        node_label=(metadata.get("labels") or {}).get(names.NODE_LABEL, ""),
        hostnames=_hostnames(spec),
        pool=annotations.get(names.POOL_ANNOTATION, ""),
        phase=(manifest.get("status") or {}).get("phase") or PENDING,
        finalizers=tuple(metadata.get("finalizers") or ()),
        deleting="deletionTimestamp" in metadata,
        made=names.MADE_ANNOTATION in annotations,
        access_modes=tuple(spec.get("accessModes") or ()),
        granted=_bytes(annotations.get(names.GRANTED_ANNOTATION)) or None,
        actual=_bytes(annotations.get(names.SIZE_ANNOTATION)),
    )


def _bytes(text: object) -> int:
    """0 for what is no number of bytes: annotations and options may have been written by anybody."""
    return int(text) if isinstance(text, str) and re.fullmatch(r"\d{1,18}", text, re.ASCII) else 0


def read_claim_reference(spec: Json) -> ClaimReference | None:
    """Which claim the volume of this spec is for."""
    claim = spec.get("claimRef")
    return claim and ClaimReference(
        claim.get("namespace", ""),
        claim.get("name", ""),
        claim.get("uid", ""),
        claim.get("resourceVersion", ""),
    )


def _hostnames(spec: Json) -> tuple[str, ...]:
    terms = ((spec.get("nodeAffinity") or {}).get("required") or {}).get("nodeSelectorTerms") or []
    return tuple(
        value
        for term in terms
        for expression in term.get("matchExpressions") or []
        if expression.get("key") == names.HOSTNAME_LABEL and expression.get("operator") == "In"
        for value in expression.get("values") or []
    )


def pinning(pin: Pin) -> Json:
    """The part of a PersistentVolume that ties it to a node, as a merge patch: the API server lets spec.nodeAffinity
    be set once, so label, finalizer and affinity come together or not at all."""
    return {
        "metadata": {
            "labels": {names.NODE_LABEL: names.node_label_value(pin.node)},
            "annotations": {names.POOL_ANNOTATION: pin.pool},
            "finalizers": [names.FINALIZER],
        },
        "spec": {
            "nodeAffinity": {
                "required": {
                    "nodeSelectorTerms": [
                        {
                            "matchExpressions": [
                                {"key": names.HOSTNAME_LABEL, "operator": "In", "values": [pin.hostname]}
                            ]
                        }
                    ]
                }
            }
        },
    }


def making(volume: PersistentVolume, size: int) -> Json:
    """The merge patch that says for good that the volume was made, and how many bytes it has now."""
    annotations = {names.MADE_ANNOTATION: "true", names.SIZE_ANNOTATION: str(size)}
    return {"metadata": {"uid": volume.uid, "annotations": annotations}}


def granting(volume: PersistentVolume, granted: int, capacity: int) -> Json:
    """The merge patch that writes down, on this very version of a PersistentVolume, what it was granted, and has
    spec.capacity say no more than that."""
    return {
        "metadata": {
            "uid": volume.uid,
            "resourceVersion": volume.resource_version,
            "annotations": {names.GRANTED_ANNOTATION: str(granted)},
        },
        **({"spec": {"capacity": {"storage": quantity.render(capacity)}}} if capacity != volume.size else {}),
    }


def releasing(volume: PersistentVolume) -> Json:
    """The merge patch that takes our finalizer, and nobody else's, off this very version of a PersistentVolume."""
    return {
        "metadata": {
            "uid": volume.uid,
            "resourceVersion": volume.resource_version,
            "finalizers": [finalizer for finalizer in volume.finalizers if finalizer != names.FINALIZER],
        }
    }


def releasing_static(body: Json) -> Json:
    """The same for the PersistentVolume, whole, of a disk that stands ready."""
    metadata = body["metadata"]
    kept = [finalizer for finalizer in metadata.get("finalizers") or [] if finalizer != names.STATIC_FINALIZER]
    return {"metadata": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"], "finalizers": kept}}
