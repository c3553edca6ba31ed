"""Volumes that live on nodes, as far as the loss of a node concerns them: ours, and local ones of other makers.

Which nodes a volume could be used on is written in its node affinity, by the value of the hostname label; ours also
bear their node's name, which on many clouds is another word. Where the affinity leaves other nodes open, or says
nothing of hostnames, the answer is "unknown", and an unknown node is never a lost one.
"""

from collections.abc import Collection
from dataclasses import dataclass

from contract import names, volume
from contract.volume import ClaimReference, PersistentVolume
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
