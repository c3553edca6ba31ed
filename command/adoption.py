"""What can be adopted, and how. Pure.

Two kinds of volumes hold data that no PersistentVolume of ours can reach. Those of elastic/local-volume are logical
volumes without tags, named like their PersistentVolume: they get a record, and the PersistentVolume its node
assignment. Orphans have our record, but their PersistentVolume was deleted (policy Retain): it is made anew, for one
claim that a person names, because whoever gets it gets the data. Volumes of another cluster are taken over in the same
ways, but only by name: that cluster may be alive, and its pods write to them.

A plan is made from what is found each time, so one that was cut off is taken up by the next.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from contract import names, parameters, quantity
from contract import volume as contract_volume
from contract.filesystems import FILESYSTEMS
from contract.parameters import RAID1, NodeSecrets, ParameterError, VolumeParameters
from contract.volume import (
    BLOCK,
    CSI,
    FILESYSTEM,
    FLEX_VOLUME,
    RELEASED,
    RETAIN,
    NodeAssignment,
    PersistentVolume,
)
from daemon.cluster.nodevolumes import reclaim_policy
from daemon.storage.inventory import Volume
from daemon.storage.record import Record, VolumeState
from kube.records import Node

Json = dict[str, Any]

ADOPT, ASSIGN, RETAG, RECREATE = "adopt", "assign", "take over", "make its PersistentVolume anew"
ASK, REFUSE = "name a claim", "leave"


@dataclass(frozen=True)
class Untagged:
    """A logical volume without our mark. `size` in bytes; `signature` as blkid says."""

    name: str
    pool: str
    size: int
    signature: str


@dataclass(frozen=True)
class Plan:
    """What is to be done with one volume. `size` in bytes."""

    volume: str
    size: int
    action: str
    why: str
    record: Record | None = None
    """To be written; with RECREATE its uid is that of the PersistentVolume, once it is made."""
    patch: Json | None = None
    """Of the PersistentVolume."""
    manifest: Json | None = None
    """Of the PersistentVolume to be made."""

    @property
    def doable(self) -> bool:
        return self.action not in (ASK, REFUSE)


@dataclass(frozen=True)
class TargetClaim:
    """The claim that gets the volume of an orphan."""

    namespace: str
    claim: str
    storage_class: str
    source: str = FLEX_VOLUME
    """The volume source that the class asks for: FLEX_VOLUME or CSI."""
    secrets: NodeSecrets | None = None
    """Those that the class names. None: its volumes are not encrypted."""


def of_untagged(untagged: Untagged, volumes: Mapping[str, PersistentVolume], node: Node, cluster: str) -> Plan | None:
    """None when no PersistentVolume of this driver has its name: then it is none of our business. `volumes` by name,
    `cluster` is the identity of the one that gets it."""
    pv = volumes.get(untagged.name)
    if pv is None:
        return None

    def refuse(why: str) -> Plan:
        return Plan(untagged.name, untagged.size, REFUSE, why)

    if why := _not_here(pv, node):
        return refuse(why)
    if not untagged.signature:
        return refuse("nothing was ever written to it: delete its claim, a new one gets a new volume")
    if untagged.signature != pv.filesystem or untagged.signature not in FILESYSTEMS:
        return refuse(f"it holds {untagged.signature}, and its PersistentVolume says {pv.filesystem}")
    record = Record(pv.name, pv.uid, reclaim_policy(pv), pv.filesystem, VolumeState.READY, cluster=cluster)
    return Plan(
        untagged.name,
        untagged.size,
        ADOPT,
        f"of elastic/local-volume, for claim {pv.claim or 'none'}",
        record,
        adoption_patch(pv, NodeAssignment(node.name, node.hostname, untagged.pool)),
    )


def of_recorded(
    volume: Volume,
    mirrored: bool,
    volumes: Mapping[str, PersistentVolume],
    node: Node,
    target: TargetClaim | None,
    cluster: str,
    *,
    named: bool,
) -> Plan | None:
    """None when there is nothing to do: its PersistentVolume is there and assigned to this node. `named`: a person asks
    for this very volume."""
    pv = volumes.get(volume.pv)
    theirs = volume.record.cluster not in ("", cluster)
    whose = f"of another cluster ({volume.record.cluster})" if theirs else "an orphan"
    assignment = NodeAssignment(node.name, node.hostname, volume.pool)

    def refuse(why: str) -> Plan:
        return Plan(volume.pv, volume.size, REFUSE, why)

    if volume.record.state is not VolumeState.READY:
        return None
    if theirs and pv is not None and not named:
        why = f"{whose}: if nothing there uses it any more, `elastic-local adopt {volume.pv} --yes` takes it over"
        return Plan(volume.pv, volume.size, ASK, why)
    if pv is None and target is None:
        why = f"{whose}: `elastic-local adopt {volume.pv} --claim NAMESPACE/NAME` says who is to have its data"
        return Plan(volume.pv, volume.size, ASK, why)
    if pv is None:
        assert target is not None
        if volume.record.encryption and target.secrets is None:
            return refuse(
                "it is encrypted: --storage-class has to name a class with encryption and the Secret that opens it"
            )
        why = f"{whose}, for claim {target.namespace}/{target.claim}"
        record = replace(volume.record, policy=RETAIN, cluster=cluster)
        return Plan(
            volume.pv,
            volume.size,
            RECREATE,
            why,
            record,
            manifest=recreated_volume(volume, mirrored, assignment, target),
        )
    if why := _not_here(pv, node):
        return refuse(why)
    if pv.uid == volume.record.uid and not theirs:
        patch = adoption_patch(pv, assignment)
        return (
            Plan(volume.pv, volume.size, ASSIGN, "its PersistentVolume has no node assignment yet", patch=patch)
            if patch
            else None
        )
    if pv.filesystem != volume.record.filesystem:
        return refuse(f"it holds {volume.record.filesystem}, and the new PersistentVolume says {pv.filesystem}")
    if pv.options.get(parameters.ENCRYPTION, "") != volume.record.encryption:
        return refuse(
            f"it is {'' if volume.record.encryption else 'not '}encrypted, and the new PersistentVolume says otherwise"
        )
    record = replace(volume.record, uid=pv.uid, policy=reclaim_policy(pv), cluster=cluster)
    why = f"its PersistentVolume was made anew, for claim {pv.claim or 'any of its class'}"
    if theirs:
        why = f"{whose}, for claim {pv.claim or 'any of its class'}: be sure that nothing there uses it"
    return Plan(volume.pv, volume.size, RETAG, why, record, adoption_patch(pv, assignment))


def is_for(record: Record, pv: PersistentVolume | None) -> bool:
    """Whether a record that was planned for a PersistentVolume is right for the one that has its name now: it may say
    Delete, and one that is gone would leave data that was retained to be removed as an orphan."""
    return pv is not None and not pv.deleting and (pv.uid, reclaim_policy(pv)) == (record.uid, record.policy)


def _not_here(pv: PersistentVolume, node: Node) -> str:
    """Why the PersistentVolume can't have a volume of this node."""
    if pv.deleting or (pv.phase == RELEASED and pv.reclaim_policy != RETAIN):
        return "its PersistentVolume is being deleted: set its reclaim policy to Retain first, if the data is to stay"
    if pv.hostnames and pv.hostnames != (node.hostname,):
        return (
            f"its PersistentVolume is assigned to the hostname {', '.join(pv.hostnames)}, and this node has "
            f"{node.hostname}: that can't be changed, make the PersistentVolume anew (docs/operations.md)"
        )
    try:
        pv.parameters()
    except ParameterError as error:
        return f"the options of its PersistentVolume can't be served: {error}"
    return ""


def adoption_patch(pv: PersistentVolume, assignment: NodeAssignment) -> Json | None:
    """The patch that gives a PersistentVolume what those of ours have; None when it has all of it. The affinity can be
    set only once."""
    patch = contract_volume.node_assignment_patch(assignment)
    assigned = pv.node_label == names.node_label_value(assignment.node) and names.FINALIZER in pv.finalizers
    if assigned and pv.pool == assignment.pool and pv.pinned:
        return None
    patch["metadata"]["finalizers"] = list(dict.fromkeys((*pv.finalizers, names.FINALIZER)))
    patch["metadata"]["resourceVersion"] = pv.resource_version
    return {"metadata": patch["metadata"]} if pv.pinned else patch


def recreated_volume(volume: Volume, mirrored: bool, assignment: NodeAssignment, target: TargetClaim) -> Json:
    """The PersistentVolume of an orphan, by the driver of its class; a block device can have CSI only. Policy Retain:
    nobody said that the data may go with the next claim."""
    group, _, thin_pool = assignment.pool.partition("/")
    layout = VolumeParameters(filesystem=volume.record.filesystem, encryption=volume.record.encryption)
    if thin_pool:
        layout = replace(layout, volume_group=group, thin=True, thin_pool=thin_pool)
    elif mirrored:
        layout = replace(layout, volume_group=group, raid=RAID1)
    assigned = contract_volume.node_assignment_patch(assignment)
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": volume.pv,
            **assigned["metadata"],
            "annotations": {
                **assigned["metadata"]["annotations"],
                names.PROVISIONED_BY: names.PROVISIONER,
                names.GRANTED_ANNOTATION: str(volume.size),
                names.MADE_ANNOTATION: "true",
            },
        },
        "spec": {
            "capacity": {"storage": quantity.render(volume.size)},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": RETAIN,
            "storageClassName": target.storage_class,
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": target.namespace,
                "name": target.claim,
            },
            "volumeMode": BLOCK if layout.block else FILESYSTEM,
            **contract_volume.source_spec(
                CSI if layout.block else target.source,
                volume.pv,
                volume.record.filesystem,
                parameters.to_options(layout, volume.size),
                target.secrets if layout.encryption else None,
            ),
            **assigned["spec"],
        },
    }


def chosen(plans: Collection[Plan], named: Collection[str]) -> list[Plan]:
    """The plans for the volumes that were named, or all."""
    return sorted((plan for plan in plans if not named or plan.volume in named), key=lambda plan: plan.volume)
