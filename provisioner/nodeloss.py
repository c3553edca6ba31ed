"""What becomes of volumes whose node is gone: decided here, done in provisioner.nodecleanup.

A volume that is on its way out anyway, deleted or released under policy Delete, would wait for its node for ever: it is
let go. Not one that is to be retained: what its disks have noted may be older than that wish, and they would lose it
when they come back. One that somebody still counts on is theirs: the claim's owner is told, and no more happens, unless
the StorageClass was named by the administrator as one whose claims and volumes go with their node.

The node affinity of a volume says on which nodes it can be used, by the value of the hostname label; ours also have
their node's name as a label, which on many clouds differs. Where the affinity leaves other nodes open, or says nothing
of hostnames, the answer is "unknown", and an unknown node is never a lost one.
"""

import enum
from collections.abc import Collection
from dataclasses import dataclass

from contract import names, volume
from contract.volume import AVAILABLE, BOUND, DELETE, RELEASED, ClaimReference, PersistentVolume
from kube.client import Json

Nodes = frozenset[str]
"""Names and hostname labels of nodes: the volume has a home as long as a node answers to one of them."""


@dataclass(frozen=True)
class Resident:
    """A PersistentVolume that lives on nodes."""

    name: str
    uid: str
    resource_version: str
    nodes: Nodes
    phase: str
    reclaim_policy: str
    storage_class: str
    claim: ClaimReference | None
    deleting: bool
    held: bool
    """It is being deleted, nobody can be using it, and it waits for its node to take our finalizer off."""
    ours: bool
    """Of our driver, not a local volume that somebody prepared."""
    label: str = ""
    """Value of NODE_LABEL, which only ours bear."""


def of_ours(found: PersistentVolume) -> Resident | None:
    """None for a volume that has no node yet."""
    if not found.pinned:
        return None
    return Resident(
        name=found.name,
        uid=found.uid,
        resource_version=found.resource_version,
        nodes=frozenset({found.node_label, *found.hostnames} - {""}),
        phase=found.phase,
        reclaim_policy=found.reclaim_policy,
        storage_class=found.storage_class,
        claim=found.claim,
        deleting=found.deleting,
        held=found.reclaimable and names.FINALIZER in found.finalizers,
        ours=True,
        label=found.node_label,
    )


def of_local(body: Json, classes: Collection[str]) -> Resident | None:
    """None for all but the local volumes of these classes whose nodes are known."""
    spec, metadata = body.get("spec") or {}, body["metadata"]
    storage_class = spec.get("storageClassName") or ""
    nodes = affine_nodes(spec)
    if "local" not in spec or storage_class not in classes or not nodes:
        return None
    return Resident(
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        nodes=nodes,
        phase=(body.get("status") or {}).get("phase") or volume.PENDING,
        reclaim_policy=spec.get("persistentVolumeReclaimPolicy") or volume.RETAIN,
        storage_class=storage_class,
        claim=volume.read_claim_reference(spec),
        deleting="deletionTimestamp" in metadata,
        held=_held(body),
        ours=False,
    )


def _held(body: Json) -> bool:
    """Data that was to be kept is the administrator's to give up, so that waits for him and not for its node."""
    metadata, spec, phase = body["metadata"], body.get("spec") or {}, (body.get("status") or {}).get("phase")
    if "deletionTimestamp" not in metadata or names.STATIC_FINALIZER not in (metadata.get("finalizers") or ()):
        return False
    if phase == volume.RELEASED:
        return bool(spec.get("persistentVolumeReclaimPolicy") == volume.DELETE)
    return phase in (volume.AVAILABLE, volume.PENDING) and not (spec.get("claimRef") or {}).get("uid")


def affine_nodes(spec: Json) -> Nodes:
    """The hostnames that a volume's affinity admits: of each term those that all of its expressions name, of the terms
    (they are alternatives) all together. Empty: unknown, as soon as one term names none."""
    found: Nodes = frozenset()
    for term in ((spec.get("nodeAffinity") or {}).get("required") or {}).get("nodeSelectorTerms") or []:
        named = [
            frozenset(expression.get("values") or ())
            for expression in term.get("matchExpressions") or []
            if expression.get("key") == names.HOSTNAME_LABEL and expression.get("operator") == "In"
        ]
        if not named:
            return frozenset()
        found |= frozenset.intersection(*named)
    return found


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
