"""VolumeSnapshotContents: the one record of them that all programs read, and the patches that we make to ours.

A snapshot is a volume of its own on the node of its source, whole before it is ready: in a thin pool it shares blocks,
elsewhere it is a copy. So it outlives its source, which grows and goes as it likes. The common snapshot controller of
Kubernetes makes the objects; what a csi-snapshotter does with them is done here: the provisioner assigns each to the
node of its source, and that node's daemon makes the snapshot, reports it in the status, and removes it.

Source: kubernetes-csi/external-snapshotter, client/apis/volumesnapshot/v1/types.go and pkg/sidecar-controller.
"""

import re
from dataclasses import dataclass
from typing import Any

from contract import names
from contract.parameters import SecretReference
from contract.volume import DELETE, RETAIN, ObjectReference

Json = dict[str, Any]

GROUP, VERSION = "snapshot.storage.k8s.io", "v1"
SNAPSHOT_KIND, CONTENT_KIND = "VolumeSnapshot", "VolumeSnapshotContent"
FINALIZER = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"
"""The snapshot controller puts it on, and whoever removes the snapshot takes it off."""
BEING_CREATED = "snapshot.storage.kubernetes.io/volumesnapshot-being-created"
"""Annotation, "yes": the snapshot is being made, and the content must not go before it is known what became of that."""
BEING_DELETED = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted"
"""Annotation, "yes": the snapshot controller has let the VolumeSnapshot go."""
FILESYSTEM_ANNOTATION = "elastic-local.volumes.k8s.elastic.co/filesystem"
"""What the snapshot holds, as the record of its volume says: what is restored from it has the same."""

HOSTNAME_ANNOTATION = "elastic-local.volumes.k8s.elastic.co/hostname"
"""The hostname label of the node that the snapshot is on: that stays when the node is registered under another name."""

_VOLUME = re.compile(r"snap_[a-z0-9][a-z0-9-]{0,63}")
"""No PersistentVolume can have such a name: it has an underscore."""
_HANDLE = re.compile(rf"(?P<node>[a-z0-9][a-z0-9.-]{{0,252}})/(?P<volume>{_VOLUME.pattern})")


def volume_name(content_uid: str) -> str:
    """Of the volume that is the snapshot: it follows from the content, so that it is made once."""
    return f"snap_{content_uid}"


def is_snapshot(volume: str) -> bool:
    """Whether a volume of that name is a snapshot."""
    return _VOLUME.fullmatch(volume) is not None


@dataclass(frozen=True)
class Handle:
    """Where a snapshot is. Written `<node>/<volume>`."""

    node: str
    volume: str

    def __str__(self) -> str:
        return f"{self.node}/{self.volume}"

    @classmethod
    def parse(cls, text: str) -> "Handle | None":
        """None for what is no handle of ours."""
        match = _HANDLE.fullmatch(text)
        return cls(match["node"], match["volume"]) if match else None


@dataclass(frozen=True)
class SnapshotContent:
    """What we read of a VolumeSnapshotContent of our driver."""

    name: str
    uid: str
    resource_version: str
    deletion_policy: str
    snapshot_namespace: str
    snapshot_name: str
    snapshot_uid: str
    """Of the VolumeSnapshot that it is for. Empty: one that was made by hand, and that nothing is bound to yet."""
    source_volume: str
    """Name of the PersistentVolume that it is to be a snapshot of. Empty: `source_handle` says which snapshot it is."""
    source_handle: str
    handle: str
    """Of the status: its snapshot exists, or is being made. Empty: not yet."""
    ready: bool
    restore_size: int
    """Bytes. 0: not known."""
    error: str
    """What the status says went wrong."""
    node_label: str
    """Value of names.NODE_LABEL: empty while it is not assigned to a node."""
    hostname: str
    """See HOSTNAME_ANNOTATION."""
    filesystem: str
    """See FILESYSTEM_ANNOTATION."""
    encryption: str
    """How it is encrypted. Empty: it is not."""
    secret: SecretReference | None
    """The Secret that opened its source. None: it is not encrypted, or nobody knows."""
    pool: str
    """The pool of its node that the snapshot is in."""
    finalizers: tuple[str, ...]
    deleting: bool
    being_created: bool
    """By its node. It says so for the snapshot controller, and is not kept from removing what it was making."""
    being_deleted: bool

    @property
    def reference(self) -> ObjectReference:
        """For events."""
        return ObjectReference(CONTENT_KIND, f"{GROUP}/{VERSION}", "", self.name, self.uid)

    @property
    def volume(self) -> str:
        """Name of the volume that is its snapshot. Empty: its handle is none of ours."""
        if not self.source_handle:
            return volume_name(self.uid)
        handle = Handle.parse(self.source_handle)
        return handle.volume if handle else ""

    @property
    def reclaimable(self) -> bool:
        """Deleted, and nobody needs the snapshot any more: shouldDelete of the csi-snapshotter, which only its own
        making of a snapshot would stop."""
        if not self.deleting:
            return False
        if self.source_handle and not self.snapshot_uid:
            return True
        return self.being_deleted


def read(manifest: Json) -> SnapshotContent | None:
    """The record of a VolumeSnapshotContent, or None when it is not of our driver."""
    spec, metadata = manifest.get("spec") or {}, manifest["metadata"]
    if spec.get("driver") != names.CSI_DRIVER:
        return None
    status, source = manifest.get("status") or {}, spec.get("source") or {}
    reference, annotations = spec.get("volumeSnapshotRef") or {}, metadata.get("annotations") or {}
    encryption, _, opened_by = annotations.get(names.ENCRYPTION_ANNOTATION, "").partition(" ")
    namespace, _, secret = opened_by.partition("/")
    return SnapshotContent(
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        deletion_policy=DELETE if spec.get("deletionPolicy") == DELETE else RETAIN,
        snapshot_namespace=reference.get("namespace") or "",
        snapshot_name=reference.get("name") or "",
        snapshot_uid=reference.get("uid") or "",
        source_volume=source.get("volumeHandle") or "",
        source_handle=source.get("snapshotHandle") or "",
        handle=status.get("snapshotHandle") or "",
        ready=status.get("readyToUse") is True,
        restore_size=int(status.get("restoreSize") or 0),
        error=(status.get("error") or {}).get("message") or "",
        node_label=(metadata.get("labels") or {}).get(names.NODE_LABEL, ""),
        hostname=annotations.get(HOSTNAME_ANNOTATION, ""),
        filesystem=annotations.get(FILESYSTEM_ANNOTATION, ""),
        encryption=encryption,
        secret=SecretReference(namespace, secret) if secret else None,
        pool=annotations.get(names.POOL_ANNOTATION, ""),
        finalizers=tuple(metadata.get("finalizers") or ()),
        deleting="deletionTimestamp" in metadata,
        being_created=annotations.get(BEING_CREATED) == "yes",
        being_deleted=annotations.get(BEING_DELETED) == "yes",
    )


def assignment_patch(content: SnapshotContent, node_label: str, hostname: str) -> Json:
    """The merge patch that assigns this very version of a content to the node with that value of names.NODE_LABEL, and
    that hostname label. An empty one is not known."""
    return {
        "metadata": {
            "uid": content.uid,
            "resourceVersion": content.resource_version,
            "labels": {names.NODE_LABEL: node_label},
            **({"annotations": {HOSTNAME_ANNOTATION: hostname}} if hostname else {}),
        }
    }


def handle_patch(content: SnapshotContent, handle: Handle) -> Json:
    """The merge patch of the status that says where the snapshot is, and changes nothing else."""
    return {"metadata": {"uid": content.uid}, "status": {"snapshotHandle": str(handle)}}


def being_created_patch(
    content: SnapshotContent, pool: str, filesystem: str, encryption: str = "", secret: SecretReference | None = None
) -> Json:
    """The merge patch that says, before there is a snapshot, that it is being made, where, and what it will hold.
    `secret`: that of its source, where that is known."""
    annotations = {BEING_CREATED: "yes", names.POOL_ANNOTATION: pool, FILESYSTEM_ANNOTATION: filesystem}
    if encryption:
        secret = secret or content.secret
        annotations[names.ENCRYPTION_ANNOTATION] = f"{encryption} {secret}" if secret else encryption
    return {"metadata": {"uid": content.uid, "annotations": annotations}}


def created_patch(content: SnapshotContent) -> Json:
    """The merge patch that says that it is no longer being made."""
    return {"metadata": {"uid": content.uid, "annotations": {BEING_CREATED: None}}}


def ready_status(content: SnapshotContent, handle: Handle, size: int, taken: int) -> Json:
    """The merge patch of the status of a whole snapshot of `size` bytes, of a moment in seconds since 1970."""
    return {
        "metadata": {"uid": content.uid},
        "status": {
            "snapshotHandle": str(handle),
            "creationTime": taken * 10**9,
            "restoreSize": size,
            "readyToUse": True,
            "error": None,
        },
    }


def error_status(content: SnapshotContent, message: str, time: str) -> Json:
    """The merge patch of the status while there is no snapshot, and why. `time` as the API writes it."""
    return {
        "metadata": {"uid": content.uid},
        "status": {"readyToUse": False, "error": {"message": message, "time": time}},
    }


def finalizer_removal_patch(content: SnapshotContent) -> Json:
    """The merge patch that takes FINALIZER, and no other, off this very version of a content."""
    return {
        "metadata": {
            "uid": content.uid,
            "resourceVersion": content.resource_version,
            "finalizers": [each for each in content.finalizers if each != FINALIZER],
        }
    }
