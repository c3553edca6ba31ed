"""What becomes of volumes whose node is gone: decided here, done in provisioner.nodecleanup.

A volume that is on its way out anyway, deleted or released under policy Delete, would wait for its node for ever: it is
let go. Not one that is to be retained: what its disks have noted may be older than that wish, and they would lose it
when they come back. One that somebody still counts on is theirs: the claim's owner is told, and no more happens, unless
the StorageClass was named by the administrator as one whose claims and volumes go with their node.
"""

import enum

from contract.volume import AVAILABLE, BOUND, DELETE, RELEASED
from provisioner.residents import Nodes, Resident


class Step(enum.Enum):
    KEEP = "keep"
    LET_GO = "let go"
    """Take our finalizer off: nobody else will."""
    DELETE = "delete"
    DELETE_CLAIM = "delete claim"


def next_step(volume: Resident, opted_in: bool) -> Step:
    """What is to be done once the node has been gone for long enough. `opted_in`: the volume's class was named."""
    if volume.deleting:
        return Step.LET_GO if volume.held and not retained(volume) else Step.KEEP
    if volume.phase == RELEASED and volume.reclaim_policy == DELETE:
        return Step.DELETE if volume.ours or opted_in else Step.KEEP
    if not opted_in:
        return Step.KEEP
    if volume.phase == BOUND:
        return Step.DELETE_CLAIM
    return Step.DELETE if volume.phase == AVAILABLE and not retained(volume) else Step.KEEP


def retained(volume: Resident) -> bool:
    """Its node has to note on it that it is to be kept, before its PersistentVolume may go."""
    return volume.ours and volume.reclaim_policy != DELETE


def warning(volume: Resident, step: Step, delay: float | None) -> str:
    """What is said as soon as the node is gone, on the claim of a bound volume and on any other volume itself. Empty:
    nothing happens, and nobody asked. `delay` in seconds until the step is done; None: it never is."""
    lost = f"node {called(volume.nodes)} of volume {volume.name} was deleted"
    soon = f"in {delay or 0:g} s unless the node comes back"
    if volume.phase == BOUND and not volume.deleting:
        if step is Step.DELETE_CLAIM and delay is not None:
            return f"{lost}: this claim is deleted {soon}"
        return f"{lost}: bring the node back, or give the data up by deleting this claim and the pods that use it"
    if step is Step.KEEP and volume.held:
        return (
            f"{lost}, and it is to be retained: bring the node back, so that it notes that on the volume; to give the "
            "data up, set the reclaim policy of this PersistentVolume to Delete"
        )
    if step is Step.KEEP:
        return ""
    if delay is None:
        return f"{lost}: bring the node back, or take the finalizers off this volume and delete it"
    return f"{lost}: this volume is let go {soon}, and what the node's disks hold stays there"


def called(nodes: Nodes) -> str:
    """A node, or the nodes of a volume that has several, for a message."""
    return "/".join(sorted(nodes))
