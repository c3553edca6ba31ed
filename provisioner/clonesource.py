"""What the volume of a claim may begin as a copy of: the volume of another claim, or a snapshot. Whatever it is, it is
on one node, has a filesystem and a size, and is of the claim's own namespace: who may read it may copy it.
"""

from dataclasses import dataclass, replace

from contract import parameters
from contract.parameters import SecretReference
from contract.snapshot import SnapshotContent
from contract.volume import Original, PersistentVolume
from kube.records import Claim, VolumeSnapshot

_LONGEST_ERROR = 300
"""Characters of what somebody else says went wrong."""


@dataclass(frozen=True)
class CloneSource:
    """Facts of what was found, and why it can't be copied as it is."""

    original: Original | None = None
    node: str = ""
    """Value of names.NODE_LABEL, empty while it has none."""
    filesystem: str = ""
    """filesystems.RAW of a block volume. Empty: not known."""
    size: int = 0
    """Bytes that the copy needs at least."""
    encryption: str = ""
    secret: SecretReference | None = None
    """The Secret that opens it. None: it is not encrypted, or nobody says."""
    text: str = ""
    """What it is, for messages."""
    obstacle: str = ""
    """Why it can't be copied. Empty: nothing is known of the source that would stop it."""
    settling: bool = False
    """Others are about to remove the obstacle: it is too early to report it."""


NO_SOURCE = CloneSource()


def of_volume(volume: PersistentVolume | None) -> CloneSource:
    """What a volume of ours is as a source, whoever may copy it."""
    if volume is None:
        return NO_SOURCE
    return CloneSource(
        original=Original(volume.name, volume.uid),
        node=volume.node_label,
        filesystem=volume.filesystem,
        size=volume.granted or volume.size,
        encryption=volume.options.get(parameters.ENCRYPTION, ""),
        secret=volume.secret,
    )


def of_claim(claim: Claim, source: Claim | None, volume: PersistentVolume | None) -> CloneSource:
    """For a claim that is to be a copy of the claim `source`. `volume` is that one's, None also for one that is not of
    our driver."""
    return replace(
        of_volume(volume),
        text=f"claim {claim.data_source_name}",
        obstacle=_claim_obstacle(claim, source, volume),
    )


def of_content(content: SnapshotContent | None) -> CloneSource:
    """What a snapshot of ours is as a source, whoever may restore it. Its name and owner are what the spec and the uid
    of its content say: the status is written by a node."""
    if content is None:
        return NO_SOURCE
    return CloneSource(
        original=Original(content.volume, content.uid),
        node=content.node_label,
        filesystem=content.filesystem,
        size=content.restore_size,
        encryption=content.encryption,
        secret=content.secret,
    )


def of_snapshot(claim: Claim, snapshot: VolumeSnapshot | None, content: SnapshotContent | None) -> CloneSource:
    """For a claim that is to be restored from `snapshot`. `content`: the one that it is bound to, or is about to be
    bound to. None also for one that is not of our driver."""
    return replace(
        of_content(content),
        text=f"VolumeSnapshot {claim.data_source_name}",
        obstacle=_snapshot_obstacle(claim, snapshot, content),
        settling=_is_settling(snapshot, content),
    )


def _claim_obstacle(claim: Claim, source: Claim | None, volume: PersistentVolume | None) -> str:
    name = claim.data_source_name
    if claim.data_source_namespace not in ("", claim.namespace):
        return f"dataSourceRef names a claim of namespace {claim.data_source_namespace}: a copy needs one of its own"
    if source is None or source.deleting:
        return f"there is no claim {name} (any more) to copy: create it, or remove dataSource and dataSourceRef"
    if not source.volume_name:
        return f"claim {name}, which is to be copied, has no volume yet: start the pod that uses it"
    if volume is None or volume.claim is None or volume.claim.uid != source.uid:
        return f"claim {name} has no volume of elastic-local (that is known yet), and no other can be copied"
    if not volume.node_label or not volume.made:
        return f"the volume of claim {name} is not made yet: the copy follows when it is; start the pod that uses it"
    if volume.deleting:
        return f"the volume of claim {name} is being deleted: choose another source"
    return ""


def _snapshot_obstacle(claim: Claim, snapshot: VolumeSnapshot | None, content: SnapshotContent | None) -> str:
    name = claim.data_source_name
    if claim.data_source_namespace not in ("", claim.namespace):
        return (
            f"dataSourceRef names a VolumeSnapshot of namespace {claim.data_source_namespace}: a claim is restored "
            "from one of its own"
        )
    if snapshot is None or snapshot.deleting:
        return f"there is no VolumeSnapshot {name} (any more): create it, or remove dataSource and dataSourceRef"
    if content is None and not snapshot.content_name:
        return f"VolumeSnapshot {name} has no VolumeSnapshotContent yet: does the snapshot-controller run?"
    if content is None:
        return (
            f"VolumeSnapshot {name} is not of elastic-local (or its VolumeSnapshotContent is gone): choose another one"
        )
    if content.deleting or content.being_deleted:
        return f"the VolumeSnapshotContent of VolumeSnapshot {name} is being deleted: choose another one"
    bound_to = content.snapshot_namespace, content.snapshot_name, content.snapshot_uid
    if bound_to != (snapshot.namespace, snapshot.name, snapshot.uid) or snapshot.content_name != content.name:
        return f"VolumeSnapshot {name} and VolumeSnapshotContent {content.name} are not bound to each other (yet)"
    if not content.ready or not content.node_label or not content.volume:
        why = f" ({content.error[:_LONGEST_ERROR]})" if content.error else ""
        return f"VolumeSnapshot {name} is not ready to use yet{why}: the volume follows when it is"
    if not snapshot.ready:
        return f"VolumeSnapshot {name} is not ready to use yet: does the snapshot-controller run?"
    if not content.filesystem or not content.restore_size:
        return (
            f"VolumeSnapshotContent {content.name} does not say (any more) what it holds: the daemon of node "
            f"{content.node_label} writes that"
        )
    return ""


def _is_settling(snapshot: VolumeSnapshot | None, content: SnapshotContent | None) -> bool:
    """The snapshot is there, and the snapshot controller has yet to say so in the VolumeSnapshot."""
    if snapshot is None or content is None or snapshot.deleting or not content.ready:
        return False
    unbound = not snapshot.content_name and content.snapshot_uid in ("", snapshot.uid)
    return unbound or (snapshot.content_name == content.name and not snapshot.ready)
