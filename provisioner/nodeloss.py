"""What becomes of volumes whose node is gone: decided here, done in provisioner.nodecleanup.

A volume that is deleted, or released under policy Delete, would wait for its node for ever: our finalizer is removed.
Not from one that is to be retained: the record on its disks may be older than that policy, and the data would be lost
when they come back. A volume that is bound belongs to its claim's owner: a warning on the claim, and no more, unless
the administrator named its StorageClass as one whose claims and volumes are deleted with their node.

The node affinity of a volume says on which nodes it can be used, by the value of the hostname label; ours also have
their node's name as a label, which on many clouds differs. Where the affinity leaves other nodes open, or says nothing
of hostnames, the answer is "unknown", and an unknown node is never a lost one.
"""

import enum
from collections.abc import Collection
from dataclasses import dataclass

from contract import names
from contract.volume import (
    AVAILABLE,
    BOUND,
    DELETE,
    PENDING,
    ClaimReference,
    ObjectReference,
    PersistentVolume,
    is_released,
    volume_reference,
)

NodeNames = frozenset[str]
"""Names and hostname labels of nodes: the volume has a node as long as one has one of these names."""


@dataclass(frozen=True, slots=True)
class NodePinnedVolume:
    """A PersistentVolume that can be used on certain nodes only."""

    name: str
    uid: str
    resource_version: str
    nodes: NodeNames
    phase: str
    reclaim_policy: str
    storage_class: str
    claim: ClaimReference | None
    deleting: bool
    awaits_node: bool
    """It is being deleted, nobody can be using it, and it waits for its node to take our finalizer off."""
    ours: bool
    """Of our driver, not a local volume of another provisioner."""
    node_label: str = ""
    """Value of NODE_LABEL, of ours."""

    @property
    def reference(self) -> ObjectReference:
        """For events."""
        return volume_reference(self.name, self.uid)

    @property
    def released(self) -> bool:
        return is_released(self.phase, self.claim.uid if self.claim else "")

    @property
    def claim_reference(self) -> ObjectReference | None:
        """For events on its claim."""
        return self.claim.reference if self.claim else None


def nodes_of(volume: PersistentVolume) -> NodeNames | None:
    """The nodes that it can be used on. None: they are not known."""
    # Local ones that our daemons offer have the label as well: a Node may lose its hostname label and be there.
    return frozenset({volume.node_label, *volume.hostnames} - {""}) if volume.pinned else None


def pinned_volume(volume: PersistentVolume, classes: Collection[str]) -> NodePinnedVolume | None:
    """None for a volume whose nodes are not known, and for all but ours and the local ones of these classes."""
    ours, nodes = volume.driver in (names.DRIVER, names.CSI_DRIVER), nodes_of(volume)
    if nodes is None or not (ours or (volume.local_path and volume.storage_class in classes)):
        return None
    return NodePinnedVolume(
        name=volume.name,
        uid=volume.uid,
        resource_version=volume.resource_version,
        nodes=nodes,
        phase=volume.phase,
        reclaim_policy=volume.reclaim_policy,
        storage_class=volume.storage_class,
        claim=volume.claim,
        deleting=volume.deleting,
        awaits_node=_awaits_node(volume) if ours else _local_awaits_node(volume),
        ours=ours,
        node_label=volume.node_label if ours else "",
    )


def _awaits_node(volume: PersistentVolume) -> bool:
    return volume.reclaimable and names.FINALIZER in volume.finalizers


def _local_awaits_node(volume: PersistentVolume) -> bool:
    """Data that was to be kept is the administrator's to give up, so that waits for him and not for its node."""
    if not volume.deleting or names.STATIC_FINALIZER not in volume.finalizers:
        return False
    if volume.released:
        return volume.reclaim_policy == DELETE
    return volume.phase in (AVAILABLE, PENDING) and not (volume.claim and volume.claim.uid)


class NodeLossStep(enum.Enum):
    KEEP = "keep"
    REMOVE_FINALIZER = "remove finalizer"
    """Nobody else will."""
    DELETE = "delete"
    DELETE_CLAIM = "delete claim"


def next_step(volume: NodePinnedVolume, opted_in: bool) -> NodeLossStep:
    """What is to be done once the node has been gone for long enough. `opted_in`: the volume's class was named."""
    if volume.deleting:
        return (
            NodeLossStep.REMOVE_FINALIZER if volume.awaits_node and not must_be_retained(volume) else NodeLossStep.KEEP
        )
    if volume.released and volume.reclaim_policy == DELETE:
        return NodeLossStep.DELETE if volume.ours or opted_in else NodeLossStep.KEEP
    if not opted_in:
        return NodeLossStep.KEEP
    if volume.phase == BOUND:
        return NodeLossStep.DELETE_CLAIM
    return NodeLossStep.DELETE if volume.phase == AVAILABLE and not must_be_retained(volume) else NodeLossStep.KEEP


def must_be_retained(volume: NodePinnedVolume) -> bool:
    """Its node has to record on it that it is to be kept, before its PersistentVolume may go."""
    return volume.ours and volume.reclaim_policy != DELETE


def warning(volume: NodePinnedVolume, step: NodeLossStep, delay: float | None) -> str:
    """The event as soon as the node is gone, on the claim of a bound volume and on any other volume itself. Empty:
    none, because nothing happens. `delay` in seconds until the step is done; None: it never is."""
    lost = f"node {node_text(volume.nodes)} of volume {volume.name} was deleted"
    soon = f"in {delay or 0:g} s unless the node comes back"
    if volume.phase == BOUND and not volume.deleting:
        if step is NodeLossStep.DELETE_CLAIM and delay is not None:
            return f"{lost}: this claim is deleted {soon}"
        return f"{lost}: bring the node back, or give the data up by deleting this claim and the pods that use it"
    if step is NodeLossStep.KEEP and volume.awaits_node:
        return (
            f"{lost}, and it is to be retained: bring the node back, so that its daemon records that; to give the "
            "data up, set the reclaim policy of this PersistentVolume to Delete"
        )
    if step is NodeLossStep.KEEP:
        return ""
    if delay is None:
        return f"{lost}: bring the node back, or take the finalizers off this volume and delete it"
    return f"{lost}: the finalizer of this volume is removed {soon}, and the data on the node's disks stays there"


def node_text(nodes: NodeNames) -> str:
    """A node, or the nodes of a volume that has several, for a message."""
    return "/".join(sorted(nodes))
