"""What a PersistentVolume asks of the node that it is tied to, in the node's own terms."""

from contract.parameters import ParameterError, VolumeParameters
from contract.volume import DELETE, RETAIN, PersistentVolume
from daemon.errors import VolumeError
from daemon.storage.record import Wanted


class WrongOptions(VolumeError):
    """flexVolume options that no daemon serves, whoever wrote them."""


def wanted(pv: PersistentVolume) -> Wanted:
    """The volume that it asks for. Raises WrongOptions."""
    try:
        return Wanted(pv.name, pv.uid, pv.promised, policy_of(pv), pv.parameters(), pv.made, pv.original)
    except ParameterError as error:
        raise WrongOptions(
            f"the options of PersistentVolume {pv.name} can't be served: {error}. They can't be changed any more: "
            "correct the StorageClass and make a new claim"
        ) from error


def policy_of(pv: PersistentVolume) -> str:
    """Anything but Delete keeps the data."""
    return DELETE if pv.reclaim_policy == DELETE else RETAIN


def parameters_of(pv: PersistentVolume) -> VolumeParameters:
    """For accounting: options that can't be read fail the mount, but what was promised is promised all the same."""
    try:
        return pv.parameters()
    except ParameterError:
        return VolumeParameters()
