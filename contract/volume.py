"""PersistentVolumes: the one record of them that all programs read, and the patches that we make to ours."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from contract import filesystems, names, parameters, quantity
from contract.parameters import NodeSecrets, SecretReference, VolumeParameters

Json = dict[str, Any]

PENDING, AVAILABLE, BOUND, RELEASED, FAILED = "Pending", "Available", "Bound", "Released", "Failed"
DELETE, RETAIN = "Delete", "Retain"
FLEX_VOLUME, CSI = parameters.VOLUME_SOURCES
"""The volume sources of a PersistentVolume of ours, as its spec calls them: by which the kubelet mounts it."""
FILESYSTEM, BLOCK = "Filesystem", "Block"
"""The volume modes: what a pod gets, a mounted filesystem or a device node."""
PV_PROTECTION = "kubernetes.io/pv-protection"
CLAIM_KIND = "PersistentVolumeClaim"


@dataclass(frozen=True)
class ObjectReference:
    """An object that an event is about. Empty strings: not known, or does not exist."""

    kind: str
    api_version: str
    namespace: str
    name: str
    uid: str
    resource_version: str = ""


def volume_reference(name: str, uid: str) -> ObjectReference:
    """The PersistentVolume of that name and uid, for events."""
    return ObjectReference("PersistentVolume", "v1", "", name, uid)


@dataclass(frozen=True, slots=True)
class ClaimReference:
    """The claim that a volume is for. The uid distinguishes a claim from an earlier one of the same name."""

    namespace: str
    name: str
    uid: str
    resource_version: str = ""

    @property
    def reference(self) -> ObjectReference | None:
        """For events. None while its uid is not known: an event would be nobody's."""
        if not self.uid:
            return None
        return ObjectReference(CLAIM_KIND, "v1", self.namespace, self.name, self.uid)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class NodeAssignment:
    """The node that a volume is on: its name, the value of its hostname label (they differ on many clouds) and the
    pool there that the volume takes its space from."""

    node: str
    hostname: str
    pool: str


@dataclass(frozen=True)
class Original:
    """The PersistentVolume that another one begins as a copy of."""

    pv: str
    uid: str

    def to_options(self) -> dict[str, str]:
        """How it travels to the node, in the options of the copy."""
        return {parameters.CLONE_OF_OPTION: self.pv, parameters.CLONE_OF_UID_OPTION: self.uid}


@dataclass(frozen=True, slots=True)
class PersistentVolume:
    """What we read of a PersistentVolume. `read` makes the record of ours only, `read_any` that of each."""

    name: str
    uid: str
    resource_version: str
    size: int
    """Bytes, from spec.capacity. Not what it has, nor what it was granted: Kubernetes raises it to what the claim
    requests before anybody has checked that there is capacity."""
    options: Mapping[str, str]
    filesystem: str
    """filesystems.RAW of a block volume."""
    reclaim_policy: str
    storage_class: str
    provisioned_by: str
    claim: ClaimReference | None
    node_label: str
    """Value of NODE_LABEL: empty while no node is chosen."""
    hostnames: tuple[str, ...]
    """See `admitted_hostnames`."""
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
    pre_resize: int = 0
    """See names.PRE_RESIZE_ANNOTATION. Bytes; 0: it has none."""
    source: str = FLEX_VOLUME
    """FLEX_VOLUME or CSI. Empty: another volume source."""
    driver: str = names.DRIVER
    """Of its source. Empty: it is neither FlexVolume nor CSI."""
    local_path: str = ""
    """spec.local.path, as the node sees it. Empty: it is no local volume."""
    volume_mode: str = FILESYSTEM
    secret: SecretReference | None = None
    """The one that the kubelet reads for it when it stages it (csi.nodeStageSecretRef)."""
    attributes_class: str = ""
    """The VolumeAttributesClass that it has. Empty: none."""
    io_limits: str = ""
    """See names.IO_LIMITS_ANNOTATION. Empty: they were never changed."""

    @property
    def reference(self) -> ObjectReference:
        """For events."""
        return volume_reference(self.name, self.uid)

    @property
    def claim_reference(self) -> ObjectReference | None:
        """For events on its claim."""
        return self.claim.reference if self.claim else None

    @property
    def created_size(self) -> int:
        """Bytes that it was created with. 0: its options don't say."""
        return min(_bytes(self.options.get(parameters.SIZE_OPTION)), self.size)

    @property
    def target_size(self) -> int:
        """Bytes that its node is to make it."""
        return max(self.created_size, self.granted or 0) or self.size

    @property
    def charged_size(self) -> int:
        """Bytes that it counts with in all sums: its target size, or what it has, where that is more. Without a
        recorded grant, all that it might have been granted."""
        return max(self.target_size, self.actual, self.size if self.granted is None else 0)

    @property
    def pinned(self) -> bool:
        return bool(self.hostnames)

    @property
    def reclaimable(self) -> bool:
        """Deleted, and nobody can be using it any more: only then may our finalizer be removed."""
        return self.deleting and self.phase != BOUND and PV_PROTECTION not in self.finalizers

    @property
    def released(self) -> bool:
        """See `is_released`."""
        return is_released(self.phase, self.claim.uid if self.claim else "")

    @property
    def original(self) -> Original | None:
        """What it begins as a copy of. None: it begins empty."""
        pv = self.options.get(parameters.CLONE_OF_OPTION, "")
        return Original(pv, self.options.get(parameters.CLONE_OF_UID_OPTION, "")) if pv else None

    def parameters(self) -> VolumeParameters:
        """Raises parameters.ParameterError: options are checked again on the node, whoever wrote them."""
        created = parameters.from_options(self.options, self.filesystem)
        return parameters.limited(created, parameters.parse_limits(self.io_limits)) if self.io_limits else created


def is_released(phase: str, claim_uid: str) -> bool:
    """Whether a claim that the volume still names has left it behind. The phase alone does not say so: an administrator
    who takes the claimRef off, or its uid, offers the volume with its data to the next claim, and it is called Released
    until the control plane has seen that (syncVolume in pkg/controller/volume/persistentvolume)."""
    return phase == RELEASED and bool(claim_uid)


def read(manifest: Json) -> PersistentVolume | None:
    """The record of a PersistentVolume, or None when it is not of our driver. A CSI volume of ours is called like its
    PersistentVolume: under another handle nobody of ours made it, and two could share one volume."""
    spec = manifest.get("spec") or {}
    csi = spec.get("csi") or {}
    ours = (spec.get("flexVolume") or {}).get("driver") == names.DRIVER or (
        csi.get("driver"),
        csi.get("volumeHandle"),
    ) == (names.CSI_DRIVER, manifest["metadata"]["name"])
    return read_any(manifest) if ours else None


def read_any(manifest: Json) -> PersistentVolume:
    """The record of a PersistentVolume, whoever made it."""
    spec, metadata = manifest.get("spec") or {}, manifest["metadata"]
    kind = next((each for each in (FLEX_VOLUME, CSI) if spec.get(each)), "")
    source = spec.get(kind) or {}
    annotations = metadata.get("annotations") or {}
    return PersistentVolume(
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        size=quantity.parse(str((spec.get("capacity") or {}).get("storage") or "0")),
        options=_options(spec, kind),
        filesystem=_one(
            filesystems.RAW if spec.get("volumeMode") == BLOCK else source.get("fsType") or filesystems.EXT4
        ),
        reclaim_policy=_one(spec.get("persistentVolumeReclaimPolicy") or RETAIN),
        storage_class=_one(spec.get("storageClassName") or ""),
        provisioned_by=_one(annotations.get(names.PROVISIONED_BY, "")),
        claim=_claim_reference(spec),
        node_label=_one((metadata.get("labels") or {}).get(names.NODE_LABEL, "")),
        hostnames=_one(admitted_hostnames((spec.get("nodeAffinity") or {}).get("required"))),
        pool=_one(annotations.get(names.POOL_ANNOTATION, "")),
        phase=_one((manifest.get("status") or {}).get("phase") or PENDING),
        finalizers=_one(tuple(metadata.get("finalizers") or ())),
        deleting="deletionTimestamp" in metadata,
        made=names.MADE_ANNOTATION in annotations,
        access_modes=_one(tuple(spec.get("accessModes") or ())),
        granted=_bytes(annotations.get(names.GRANTED_ANNOTATION)) or None,
        actual=_bytes(annotations.get(names.SIZE_ANNOTATION)),
        pre_resize=_quantity(annotations.get(names.PRE_RESIZE_ANNOTATION)),
        source=kind,
        driver=_one(source.get("driver") or ""),
        local_path=(spec.get("local") or {}).get("path") or "",
        volume_mode=_one(spec.get("volumeMode") or FILESYSTEM),
        secret=_secret(source.get("nodeStageSecretRef")),
        attributes_class=_one(spec.get("volumeAttributesClassName") or ""),
        io_limits=_io_limits(annotations.get(names.IO_LIMITS_ANNOTATION)),
    )


_LONGEST_SHARED = 253
"""Characters of a text, and entries of a tuple: what is longer is nobody's name, and not worth keeping."""
T = TypeVar("T", str, tuple[str, ...])


def _one(value: T) -> T:
    """The same object for all that say the same: who keeps 50,000 volumes of a thousand nodes and ten classes keeps
    each text once."""
    return _shared(value) if len(value) <= _LONGEST_SHARED else value


@lru_cache(maxsize=8192)
def _shared(value: T) -> T:
    return value


def _options(spec: Json, kind: str) -> dict[str, str]:
    """What its source says of the volume. The kubelet hands a CSI driver the mountOptions of the spec, so there they
    are; a FlexVolume with such is refused by it."""
    if kind == CSI:
        mount_options = spec.get("mountOptions")
        joined = {parameters.MOUNT_OPTIONS_OPTION: ",".join(mount_options)} if mount_options else {}
        return {**(spec[CSI].get("volumeAttributes") or {}), **joined}
    return (spec.get(kind) or {}).get("options") or {}


def _secret(reference: Json | None) -> SecretReference | None:
    return SecretReference(reference.get("namespace", ""), reference.get("name", "")) if reference else None


def source_spec(
    kind: str, name: str, filesystem: str, options: Mapping[str, str], secrets: NodeSecrets | None = None
) -> Json:
    """The fields of a PersistentVolume's spec that say what it is, the inverse of `_options`. `kind` is FLEX_VOLUME or
    CSI. The kubelet mounts no FlexVolume with spec.mountOptions, so there these stay among the options. `secrets` are
    of a CSI volume."""
    of_type = {} if filesystem == filesystems.RAW else {"fsType": filesystem}
    if kind == FLEX_VOLUME:
        return {FLEX_VOLUME: {"driver": names.DRIVER, **of_type, "options": dict(options)}}
    attributes = {key: text for key, text in options.items() if key != parameters.MOUNT_OPTIONS_OPTION}
    mount_options = options.get(parameters.MOUNT_OPTIONS_OPTION)
    named = {"nodeStageSecretRef": secrets.stage, "nodeExpandSecretRef": secrets.expand} if secrets else {}
    references = {field: {"namespace": each.namespace, "name": each.name} for field, each in named.items() if each}
    return {
        CSI: {
            "driver": names.CSI_DRIVER,
            "volumeHandle": name,
            **of_type,
            "volumeAttributes": attributes,
            **references,
        },
        **({"mountOptions": mount_options.split(",")} if mount_options else {}),
    }


def _bytes(text: object) -> int:
    """0 for what is no number of bytes: annotations and options may have been written by anybody."""
    return int(text) if isinstance(text, str) and _NUMBER.fullmatch(text) else 0


_NUMBER = re.compile(r"\d{1,18}", re.ASCII)


def _quantity(text: object) -> int:
    """0 for what is none, as `_bytes`."""
    try:
        return quantity.parse(text) if isinstance(text, str) else 0
    except ValueError:
        return 0


def _io_limits(text: object) -> str:
    """Empty for what is none, as `_bytes`: the volume has those then that it was made with."""
    if not isinstance(text, str) or not 0 < len(text) <= _LONGEST_SHARED:
        return ""
    try:
        parameters.limited(VolumeParameters(), parameters.parse_limits(text))
    except parameters.ParameterError:
        return ""
    return _one(text)


def _claim_reference(spec: Json) -> ClaimReference | None:
    """Which claim the volume of this spec is for."""
    claim = spec.get("claimRef")
    return claim and ClaimReference(
        _one(claim.get("namespace", "")),
        claim.get("name", ""),
        claim.get("uid", ""),
        claim.get("resourceVersion", ""),
    )


def admitted_hostnames(selector: Json | None) -> tuple[str, ...]:
    """The values of the hostname label that a node selector (nodeAffinity.required) admits: of each term those that
    all of its expressions name, of the terms (they are alternatives) all together. Empty: unknown, as soon as one term
    names none, for then other nodes are open."""
    found: dict[str, None] = {}
    for term in (selector or {}).get("nodeSelectorTerms") or []:
        named = [
            expression.get("values") or []
            for expression in term.get("matchExpressions") or []
            if expression.get("key") == names.HOSTNAME_LABEL and expression.get("operator") == "In"
        ]
        if not named:
            return ()
        found |= dict.fromkeys(value for value in named[0] if all(value in values for values in named))
    return tuple(found)


def node_assignment_patch(assignment: NodeAssignment) -> Json:
    """The part of a PersistentVolume that assigns it to a node, as a merge patch: the API server lets spec.nodeAffinity
    be set once, so label, finalizer and affinity come together or not at all."""
    return {
        "metadata": {
            "labels": {names.NODE_LABEL: names.node_label_value(assignment.node)},
            "annotations": {names.POOL_ANNOTATION: assignment.pool},
            "finalizers": [names.FINALIZER],
        },
        "spec": {
            "nodeAffinity": {
                "required": {
                    "nodeSelectorTerms": [
                        {
                            "matchExpressions": [
                                {"key": names.HOSTNAME_LABEL, "operator": "In", "values": [assignment.hostname]}
                            ]
                        }
                    ]
                }
            }
        },
    }


def made_patch(volume: PersistentVolume, size: int) -> Json:
    """The merge patch that records for good that the volume was created, and how many bytes it has now."""
    annotations = {names.MADE_ANNOTATION: "true", names.SIZE_ANNOTATION: str(size)}
    return {"metadata": {"uid": volume.uid, "annotations": annotations}}


def grant_patch(volume: PersistentVolume, granted: int, capacity: int, pre_resize: int = 0) -> Json:
    """The merge patch that records, on this very version of a PersistentVolume, what it was granted, and sets
    spec.capacity to no more than that. `pre_resize`: what its claim has, where that is less."""
    grown: Json = {names.GRANTED_ANNOTATION: str(granted)}
    if pre_resize != volume.pre_resize:
        grown[names.PRE_RESIZE_ANNOTATION] = quantity.render(pre_resize) if pre_resize else None
    return {
        "metadata": {
            "uid": volume.uid,
            "resourceVersion": volume.resource_version,
            "annotations": grown,
        },
        **({"spec": {"capacity": {"storage": quantity.render(capacity)}}} if capacity != volume.size else {}),
    }


def modification_patch(volume: PersistentVolume, attributes_class: str, changed: VolumeParameters) -> Json:
    """The merge patch that gives this very version of a PersistentVolume another VolumeAttributesClass, and the I/O
    limits that follow from it: both or neither."""
    return {
        "metadata": {
            "uid": volume.uid,
            "resourceVersion": volume.resource_version,
            "annotations": {names.IO_LIMITS_ANNOTATION: parameters.render_limits(changed)},
        },
        "spec": {"volumeAttributesClassName": attributes_class},
    }


def finalizer_removal_patch(volume: PersistentVolume, finalizer: str = names.FINALIZER) -> Json:
    """The merge patch that takes one finalizer, and no other, off this very version of a PersistentVolume."""
    return {
        "metadata": {
            "uid": volume.uid,
            "resourceVersion": volume.resource_version,
            "finalizers": [each for each in volume.finalizers if each != finalizer],
        }
    }
