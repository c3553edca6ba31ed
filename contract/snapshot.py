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
    filesystem: str
    """See FILESYSTEM_ANNOTATION."""
    finalizers: tuple[str, ...]
    deleting: bool
    being_created: bool
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
        """Deleted, and nobody needs the snapshot any more: shouldDelete of the csi-snapshotter."""
        if not self.deleting:
            return False
        if self.source_handle and not self.snapshot_uid:
            return True
        return self.being_deleted and not self.being_created


def read(manifest: Json) -> SnapshotContent | None:
    """The record of a VolumeSnapshotContent, or None when it is not of our driver."""
    spec, metadata = manifest.get("spec") or {}, manifest["metadata"]
    if spec.get("driver") != names.CSI_DRIVER:
        return None
    status, source = manifest.get("status") or {}, spec.get("source") or {}
    reference, annotations = spec.get("volumeSnapshotRef") or {}, metadata.get("annotations") or {}
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
        filesystem=annotations.get(FILESYSTEM_ANNOTATION, ""),
        finalizers=tuple(metadata.get("finalizers") or ()),
        deleting="deletionTimestamp" in metadata,
        being_created=annotations.get(BEING_CREATED) == "yes",
        being_deleted=annotations.get(BEING_DELETED) == "yes",
    )


def assignment_patch(content: SnapshotContent, node_label: str) -> Json:
    """The merge patch that assigns this very version of a content to the node with that value of names.NODE_LABEL."""
    return {
        "metadata": {
            "uid": content.uid,
            "resourceVersion": content.resource_version,
            "labels": {names.NODE_LABEL: node_label},
        }
    }
