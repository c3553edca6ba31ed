"""The PersistentVolumes that are assigned to this node: which ones they are, and what each asks of the node's storage.

The informer finds them by label. The affinity has the last word: an object whose label names this node and whose
affinity names another is somebody's mistake, and nothing here touches it. A PersistentVolume that this daemon assigned
to its node a moment ago counts at once; until the informer shows it too, two mounts could otherwise reserve the
same space.
"""

from contract import names
from contract.parameters import ParameterError, VolumeParameters
from contract.volume import DELETE, RETAIN, PersistentVolume
from daemon.errors import VolumeError
from daemon.storage.record import VolumeSpec
from kube.informer import Informer
from kube.records import Node


def is_assigned(volume: PersistentVolume, node: Node) -> bool:
    """To this node, in every way: label, affinity and finalizer came together, so less than all of them is the work of
    somebody else."""
    return (
        volume.node_label == names.node_label_value(node.name)
        and volume.hostnames == (node.hostname,)
        and names.FINALIZER in volume.finalizers
    )


def other_node(volume: PersistentVolume, node: Node) -> str:
    """The node that a volume lives on when it isn't this one, else empty."""
    if volume.hostnames and volume.hostnames != (node.hostname,):
        return ", ".join(volume.hostnames)
    return volume.node_label if volume.node_label not in ("", names.node_label_value(node.name)) else ""


class NodeVolumes:
    def __init__(self, informer: Informer[PersistentVolume], node: Node) -> None:
        self._informer = informer
        self._node = node
        self._just_assigned: dict[str, PersistentVolume] = {}
        informer.subscribe(self._seen)

    def get(self, name: str) -> PersistentVolume | None:
        """As the informer shows it: what is to be done is decided on nothing else."""
        found = self._informer.get(name)
        return found if found and is_assigned(found, self._node) else None

    def all(self) -> list[PersistentVolume]:
        return [*(pv for pv in self._informer.values() if is_assigned(pv, self._node)), *self._just_assigned.values()]

    def may_clone(self, one: str, other: str) -> bool:
        """Whether two PersistentVolumes of this node are for claims of one namespace: whoever may create a
        PersistentVolume can name any other as what it is to be a copy of."""
        first, second = self.get(one), self.get(other)
        return bool(
            first and second and first.claim and second.claim and first.claim.namespace == second.claim.namespace
        )

    def assigned(self, volume: PersistentVolume) -> None:
        """Counts a PersistentVolume that was assigned to this node just now. Our finalizer keeps it until the informer
        showed it."""
        if self._informer.get(volume.name) is None:
            self._just_assigned[volume.name] = volume

    def _seen(self, key: str, _: PersistentVolume | None, new: PersistentVolume | None) -> None:
        self._just_assigned.pop(key, None)


class WrongOptions(VolumeError):
    """flexVolume options that no daemon serves, whoever wrote them."""


def volume_spec(pv: PersistentVolume) -> VolumeSpec:
    """The volume that it asks for. Raises WrongOptions."""
    return VolumeSpec(pv.name, pv.uid, pv.target_size, reclaim_policy(pv), checked_parameters(pv), pv.made, pv.original)


def checked_parameters(pv: PersistentVolume) -> VolumeParameters:
    """Raises WrongOptions."""
    try:
        return pv.parameters()
    except ParameterError as error:
        raise WrongOptions(
            f"the options of PersistentVolume {pv.name} can't be served: {error}. They can't be changed any more: "
            "correct the StorageClass and make a new claim"
        ) from error


def reclaim_policy(pv: PersistentVolume) -> str:
    """Anything but Delete keeps the data."""
    return DELETE if pv.reclaim_policy == DELETE else RETAIN


def parameters_of(pv: PersistentVolume) -> VolumeParameters:
    """For accounting: options that can't be read fail the mount, but what was reserved stays so."""
    try:
        return pv.parameters()
    except ParameterError:
        return VolumeParameters()
