"""One request of a user or an administrator, of those that the campaigns on a whole cluster make."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Operation:
    """The kinds, of a claim and its pod: create, start and stop (the pod), grow, modify (name another
    VolumeAttributesClass), policy, delete (pod and claim); part (the PersistentVolume of a claim that is gone), free
    (let it be removed), rebind (give it to a new claim). Of a VolumeSnapshot: snapshot, unsnapshot (delete it),
    snapshotpolicy; partsnapshot (the VolumeSnapshotContent of one that is gone), freesnapshot (let it be removed),
    regain (give what the former left to a new one)."""

    kind: str
    name: str
    size: int = 0
    retain: bool = False
    source: str = ""
    """Name of the claim or VolumeSnapshot that a new one is a copy of, or has the volume of."""
    reserved: bool = False
    """The volume names the new claim before there is one, in place of no claim."""
    csi: bool = False
    """By which driver a new one is mounted."""
    attributes: str = ""
    """Name of the VolumeAttributesClass."""

    @property
    def makes(self) -> bool:
        """Whether it takes a new name."""
        return self.kind in ("create", "rebind", "snapshot", "regain")
