"""What we read of the API's own objects, as frozen records. PersistentVolumes and capacities are in contract/.

Each `read_` function takes the JSON object and raises KeyError or ValueError for one that no API server would hand out.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from contract import names, quantity
from contract.snapshot import GROUP, SNAPSHOT_KIND, SnapshotContent
from contract.volume import BOUND, CLAIM_KIND, PENDING, ObjectReference

Json = dict[str, Any]

IMMEDIATE, WAIT_FOR_FIRST_CONSUMER = "Immediate", "WaitForFirstConsumer"
SELECTED_NODE = "volume.kubernetes.io/selected-node"

RESIZING, RESIZE_PENDING = "Resizing", "FileSystemResizePending"
CONTROLLER_RESIZE_ERROR, NODE_RESIZE_ERROR = "ControllerResizeError", "NodeResizeError"
RESIZE_CONDITIONS = (RESIZING, RESIZE_PENDING, CONTROLLER_RESIZE_ERROR, NODE_RESIZE_ERROR)
"""Types of conditions of a claim that grows."""
MODIFYING_VOLUME, MODIFY_VOLUME_ERROR = "ModifyingVolume", "ModifyVolumeError"
MODIFY_CONDITIONS = (MODIFYING_VOLUME, MODIFY_VOLUME_ERROR)
"""Types of conditions of a claim whose VolumeAttributesClass is changed."""
LONGEST_MESSAGE = 1024
"""Characters of a condition's message that are kept."""
_LONGEST_NAME = 253
"""Characters: DNS subdomains, which all names here are."""
SNAPSHOT_SOURCE = f"{SNAPSHOT_KIND}.{GROUP}"
"""A VolumeSnapshot as the data source of a claim."""

_PROVISIONER = "volume.kubernetes.io/storage-provisioner"
_PROVISIONER_BETA = "volume.beta.kubernetes.io/storage-provisioner"
_CLASS_BETA = "volume.beta.kubernetes.io/storage-class"


def bounded(text: str) -> str:
    """The text as it is if it can be a name, else its beginning with a mark that no name has. The API server checks
    few of the fields and annotations that users write, and each may have a million characters: what is kept, logged and
    reported is not more than this."""
    return text if len(text) <= _LONGEST_NAME else f"{text[:64]}... ({len(text)} characters)"


@dataclass(frozen=True)
class Claim:
    """A PersistentVolumeClaim."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    phase: str
    volume_name: str
    """The PersistentVolume it is bound to, or is to be."""
    storage_class: str
    """The beta annotation before spec.storageClassName, as everybody reads it. Empty: none."""
    provisioner: str
    """Whom the controller-manager asks to serve the claim. Empty: nobody yet."""
    selected_node: str
    """The scheduler's choice for a claim that waits for its first consumer."""
    requested: int
    """Bytes."""
    capacity: int
    """Bytes, as the bound volume was last seen by the kubelet. 0: not bound."""
    access_modes: tuple[str, ...]
    volume_mode: str
    data_source: str
    """Kind of the object that the volume is to be filled from, with its API group unless that is the core one. Empty:
    it starts empty."""
    deleting: bool
    has_selector: bool = False
    """It asks for one of the volumes that exist, by their labels."""
    attributes_class: str = ""
    """The VolumeAttributesClass that it asks for. Empty: none."""
    data_source_name: str = ""
    allocated: int = 0
    """Bytes that the kubelet is to let it grow to (status.allocatedResources). 0: it never grew."""
    resize_status: str = ""
    """How far its growing is (status.allocatedResourceStatuses)."""
    resize_conditions: tuple[tuple[str, str], ...] = ()
    """Type and message of those conditions in its status that are of growing, and true."""
    current_attributes_class: str = ""
    """The VolumeAttributesClass that its volume has (status.currentVolumeAttributesClassName)."""
    modify_status: str = ""
    """How far the change to `modify_target` is (status.modifyVolumeStatus). Empty: none is under way."""
    modify_target: str = ""
    modify_conditions: tuple[tuple[str, str], ...] = ()
    """As `resize_conditions`, of MODIFY_CONDITIONS."""
    data_source_namespace: str = ""
    """Where dataSourceRef points to. Empty: the claim's own."""
    controller: str = ""
    """UID of the object that made the claim for itself and takes it along when it goes. Empty: a person made it."""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def grows(self) -> bool:
        """It has a volume, and asks for more than that has."""
        return bool(self.volume_name) and self.requested > self.capacity > 0 and not self.deleting

    @property
    def modifies(self) -> bool:
        """It has a volume, and asks for another VolumeAttributesClass, or did so and its status says that still."""
        asks = self.attributes_class != self.current_attributes_class or self.modify_status or self.modify_conditions
        return bool(self.volume_name and asks) and self.phase == BOUND and not self.deleting

    @property
    def restores(self) -> bool:
        """Its volume is to begin as a copy of a snapshot."""
        return self.data_source == SNAPSHOT_SOURCE

    @property
    def clones(self) -> bool:
        """Its volume is to begin as a copy, of another claim's or of a snapshot."""
        return self.data_source == CLAIM_KIND or self.restores

    def holds(self, volume: str, phase: str) -> bool:
        """Whether it has the PersistentVolume of this name, whose claimRef names it with its uid, or is about to get
        it. A claim without a volume gets the one that was offered to it; one that was just made for it (Pending) holds
        nothing yet, and a claim that got another volume needs none."""
        return self.volume_name == volume or (not self.volume_name and phase != PENDING)

    @property
    def reference(self) -> ObjectReference:
        return ObjectReference(CLAIM_KIND, "v1", self.namespace, self.name, self.uid, self.resource_version)


@dataclass(frozen=True)
class StorageClass:
    """With the defaults of the API filled in."""

    name: str
    provisioner: str
    parameters: Mapping[str, str]
    reclaim_policy: str
    mount_options: tuple[str, ...]
    binding_mode: str
    allowed_topologies: tuple[Mapping[str, tuple[str, ...]], ...]
    """Alternatives, each from label key to the values it may have. Empty: every node."""

    def admits(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels may serve the class."""
        return not self.allowed_topologies or any(
            all(labels.get(key) in values for key, values in term.items()) for term in self.allowed_topologies
        )


@dataclass(frozen=True)
class VolumeAttributesClass:
    """What of a volume may change while it exists. It can't be changed itself."""

    name: str
    driver: str
    """The CSI driver that it is for."""
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class PodVolume:
    """A volume of a pod that comes from a claim."""

    name: str
    claim: str
    """Name of the claim in the pod's namespace."""
    read_only: bool
    ephemeral: bool
    """The claim is made for the pod (named <pod>-<volume>), and belongs to it only if the pod owns it."""


@dataclass(frozen=True)
class Pod:
    namespace: str
    name: str
    uid: str
    node_name: str
    """Empty: not scheduled."""
    phase: str
    volumes: tuple[PodVolume, ...]
    deleting: bool
    inline: tuple[str, ...] = ()
    """Names of the volumes of our driver that its user wrote into the pod, without a claim."""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def claims(self) -> tuple[str, ...]:
        """Keys of the claims that it names."""
        return tuple(f"{self.namespace}/{volume.claim}" for volume in self.volumes)

    @property
    def reference(self) -> ObjectReference:
        return ObjectReference("Pod", "v1", self.namespace, self.name, self.uid)


@dataclass(frozen=True)
class Node:
    name: str
    uid: str
    hostname: str
    """Value of the hostname label, which on many clouds is not the name. Empty: the node has no such label, and no
    volume can be assigned to it."""
    labels: Mapping[str, str]
    deleting: bool

    @property
    def reference(self) -> ObjectReference:
        return ObjectReference("Node", "v1", "", self.name, self.uid)


@dataclass(frozen=True)
class VolumeSnapshot:
    """What a tenant has of a snapshot."""

    namespace: str
    name: str
    uid: str
    content_name: str
    """The VolumeSnapshotContent that it is bound to. Empty: none yet."""
    ready: bool
    deleting: bool
    wanted_content: str = ""
    """The VolumeSnapshotContent that it is to be bound to. Empty: one is made for it."""

    def holds(self, content: SnapshotContent) -> bool:
        """Whether it has this VolumeSnapshotContent, which names it, or is about to be bound to it. What the content
        says of being deleted may have been said of another VolumeSnapshot, before it was given to this one."""
        is_for = self.uid == content.snapshot_uid if content.snapshot_uid else self.wanted_content == content.name
        return is_for and not self.deleting


_NODE_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def _node_name(text: str) -> str:
    """Who owns a claim can write what he likes there: what is no name of a node (a DNS subdomain) names none."""
    return text if _NODE_NAME.fullmatch(text) else ""


def read_claim(body: Json) -> Claim:
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    annotations = metadata.get("annotations") or {}
    requests = (spec.get("resources") or {}).get("requests") or {}
    source = spec.get("dataSourceRef") or spec.get("dataSource") or {}
    return Claim(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        phase=status.get("phase") or "Pending",
        volume_name=bounded(spec.get("volumeName") or ""),
        storage_class=bounded(annotations.get(_CLASS_BETA) or spec.get("storageClassName") or ""),
        provisioner=bounded(annotations.get(_PROVISIONER) or annotations.get(_PROVISIONER_BETA) or ""),
        selected_node=_node_name(annotations.get(SELECTED_NODE) or ""),
        requested=quantity.parse(str(requests.get("storage") or "0")),
        capacity=quantity.parse(str((status.get("capacity") or {}).get("storage") or "0")),
        allocated=quantity.parse(str((status.get("allocatedResources") or {}).get("storage") or "0")),
        resize_status=(status.get("allocatedResourceStatuses") or {}).get("storage") or "",
        resize_conditions=_conditions(status, RESIZE_CONDITIONS),
        current_attributes_class=bounded(status.get("currentVolumeAttributesClassName") or ""),
        modify_status=bounded((status.get("modifyVolumeStatus") or {}).get("status") or ""),
        modify_target=bounded((status.get("modifyVolumeStatus") or {}).get("targetVolumeAttributesClassName") or ""),
        modify_conditions=_conditions(status, MODIFY_CONDITIONS),
        access_modes=tuple(spec.get("accessModes") or ()),
        volume_mode=spec.get("volumeMode") or "Filesystem",
        data_source=bounded(".".join(filter(None, (source.get("kind"), source.get("apiGroup"))))),
        data_source_name=bounded(source.get("name") or ""),
        data_source_namespace=bounded(source.get("namespace") or ""),
        deleting="deletionTimestamp" in metadata,
        has_selector=bool(spec.get("selector")),
        attributes_class=bounded(spec.get("volumeAttributesClassName") or ""),
        controller=bounded(next((o["uid"] for o in metadata.get("ownerReferences") or [] if o.get("controller")), "")),
    )


def _conditions(status: Json, types: Collection[str]) -> tuple[tuple[str, str], ...]:
    """Type and message of those that are true."""
    return tuple(
        (each["type"], str(each.get("message") or "")[:LONGEST_MESSAGE])
        for each in status.get("conditions") or []
        if each.get("type") in types and each.get("status") == "True"
    )


def read_volume_attributes_class(body: Json) -> VolumeAttributesClass:
    parameters = {bounded(key): bounded(text) for key, text in (body.get("parameters") or {}).items()}
    return VolumeAttributesClass(body["metadata"]["name"], bounded(body["driverName"]), parameters)


def read_storage_class(body: Json) -> StorageClass:
    return StorageClass(
        name=body["metadata"]["name"],
        provisioner=body["provisioner"],
        parameters=body.get("parameters") or {},
        reclaim_policy=body.get("reclaimPolicy") or "Delete",
        mount_options=tuple(body.get("mountOptions") or ()),
        binding_mode=body.get("volumeBindingMode") or IMMEDIATE,
        allowed_topologies=tuple(
            {
                expression["key"]: tuple(expression.get("values") or ())
                for expression in term.get("matchLabelExpressions") or []
            }
            for term in body.get("allowedTopologies") or []
        ),
    )


def read_pod(body: Json) -> Pod:
    metadata, spec = body["metadata"], body.get("spec") or {}
    return Pod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        node_name=spec.get("nodeName") or "",
        phase=(body.get("status") or {}).get("phase") or "Pending",
        volumes=tuple(
            volume
            for volume in (_pod_volume(metadata["name"], source) for source in spec.get("volumes") or [])
            if volume is not None
        ),
        deleting="deletionTimestamp" in metadata,
        inline=tuple(
            volume["name"]
            for volume in spec.get("volumes") or []
            if (volume.get("flexVolume") or {}).get("driver") == names.DRIVER
        ),
    )


def _pod_volume(pod: str, volume: Json) -> PodVolume | None:
    if source := volume.get("persistentVolumeClaim"):
        return PodVolume(volume["name"], bounded(source["claimName"]), bool(source.get("readOnly")), ephemeral=False)
    if "ephemeral" in volume:
        return PodVolume(volume["name"], f"{pod}-{volume['name']}", read_only=False, ephemeral=True)
    return None


def read_node(body: Json) -> Node:
    metadata = body["metadata"]
    labels = metadata.get("labels") or {}
    return Node(
        name=metadata["name"],
        uid=metadata["uid"],
        hostname=labels.get(names.HOSTNAME_LABEL) or "",
        labels=labels,
        deleting="deletionTimestamp" in metadata,
    )


def read_volume_snapshot(body: Json) -> VolumeSnapshot:
    metadata, status = body["metadata"], body.get("status") or {}
    return VolumeSnapshot(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        content_name=bounded(status.get("boundVolumeSnapshotContentName") or ""),
        ready=status.get("readyToUse") is True,
        deleting="deletionTimestamp" in metadata,
        wanted_content=bounded(((body.get("spec") or {}).get("source") or {}).get("volumeSnapshotContentName") or ""),
    )
