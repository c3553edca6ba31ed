"""Claims that are to begin as a copy of another one: whether that can be. Pure.

A copy is made by the node that has the source, from disk to disk, so it lives there too. All that could make the copy
fail for ever is refused here, before there is a PersistentVolume, which can't be given another shape any more.
"""

from dataclasses import dataclass

from contract import quantity
from contract.filesystems import BTRFS
from contract.parameters import VolumeParameters
from contract.volume import PersistentVolume
from kube.records import Claim


@dataclass(frozen=True)
class Source:
    """What was found of the claim that is to be copied. `volume` is None also for a volume that is not of our
    driver."""

    claim: Claim | None = None
    volume: PersistentVolume | None = None

    @property
    def node(self) -> str:
        """Value of names.NODE_LABEL, empty while it has none."""
        return self.volume.node_label if self.volume else ""


NOTHING = Source()


def source_parameters(source: Source) -> dict[str, str]:
    """What a copy takes from its source where its class says nothing else."""
    return {"fsType": source.volume.filesystem} if source.volume else {}


def obstacle(claim: Claim, wanted: VolumeParameters, source: Source) -> str:
    """Why the copy can't be made as things are, empty when it can. Who may read the source may copy it: both are of
    one namespace."""
    name = claim.data_source_name
    if claim.data_source_namespace not in ("", claim.namespace):
        return f"dataSourceRef names a claim of namespace {claim.data_source_namespace}: a copy needs one of its own"
    if source.claim is None or source.claim.deleting:
        return f"there is no claim {name} (any more) to copy: create it, or remove dataSource and dataSourceRef"
    if not source.claim.volume_name:
        return f"claim {name}, which is to be copied, has no volume yet: start the pod that uses it"
    volume = source.volume
    if volume is None or volume.claim is None or volume.claim.uid != source.claim.uid:
        return f"claim {name} has no volume of elastic-local (that is known yet), and no other can be copied"
    if source.claim.volume_mode != claim.volume_mode:
        return f"claim {name} has volumeMode {source.claim.volume_mode}: ask for the same"
    if not volume.node_label or not volume.made:
        return f"the volume of claim {name} is not made yet: the copy follows when it is; start the pod that uses it"
    if volume.deleting:
        return f"the volume of claim {name} is being deleted: choose another source"
    if volume.filesystem == BTRFS:
        return f"claim {name} has {BTRFS}, of which the kernel can't have two copies on one node: use ext4 or xfs"
    if wanted.filesystem != volume.filesystem:
        return (
            f"claim {name} has {volume.filesystem}, and a copy can't have {wanted.filesystem}: use a class with the "
            "same fsType"
        )
    size = volume.granted or volume.size
    if claim.requested < size:
        return (
            f"the claim asks for {quantity.humane(claim.requested)}, and {name}, which it is to be a copy of, has "
            f"{quantity.humane(size)}: ask for at least that"
        )
    return ""
