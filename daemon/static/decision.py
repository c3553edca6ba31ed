"""What to do with a PersistentVolume that may have been released: a pure function of it and of its cleaning."""

from dataclasses import dataclass

from contract.volume import DELETE, RELEASED, RETAIN
from daemon.static.proctable import Cleaning, Release, State
from daemon.static.volume import RECYCLE, StaticVolume
from kube.backoff import Backoff

UNSUPPORTED_POLICY, UNKNOWN_POLICY = "VolumeUnsupportedReclaimPolicy", "VolumeUnknownReclaimPolicy"


@dataclass(frozen=True)
class Leave:
    """Nothing to do now."""


@dataclass(frozen=True)
class Refuse:
    """The policy is none that we serve."""

    reason: str
    message: str


@dataclass(frozen=True)
class Clean:
    """It has to be cleaned (again)."""


@dataclass(frozen=True)
class Remove:
    """It is clean: delete the PersistentVolume."""

    cleaning: Cleaning


def decide(
    volume: StaticVolume, cleaning: Cleaning | None, now: float, retry: Backoff
) -> Leave | Refuse | Clean | Remove:
    """`cleaning` is what the process table has under the volume's name, `now` the time by its clock."""
    if volume.phase != RELEASED or volume.deleting or volume.reclaim_policy == RETAIN:
        return Leave()
    policy = volume.reclaim_policy
    if policy == RECYCLE:
        return Refuse(UNSUPPORTED_POLICY, f"Volume has unsupported PersistentVolumeReclaimPolicy: {policy}")
    if policy != DELETE:
        return Refuse(UNKNOWN_POLICY, f"Volume has unrecognized PersistentVolumeReclaimPolicy: {policy}")
    if cleaning is None:
        return Clean()
    if cleaning.running:
        return Leave()
    if cleaning.release != Release.of(volume):
        return Clean()
    if cleaning.state is State.SUCCEEDED:
        return Remove(cleaning)
    return Clean() if now >= cleaning.ended + retry.delay(cleaning.failures) else Leave()
