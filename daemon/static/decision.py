"""What to do with a PersistentVolume that may have been released: a pure function of it and of its cleaning."""

from dataclasses import dataclass

from contract import names
from contract.volume import AVAILABLE, BOUND, DELETE, PENDING, RELEASED, RETAIN
from daemon.static.proctable import Cleaning, Release, State
from daemon.static.volume import RECYCLE, StaticVolume
from kube.backoff import Backoff

UNSUPPORTED_POLICY, UNKNOWN_POLICY = "VolumeUnsupportedReclaimPolicy", "VolumeUnknownReclaimPolicy"
HELD = "VolumeDeletedWithData"
"""Ours: somebody deleted the PersistentVolume, and nobody said what becomes of its data."""


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
class CallOff:
    """It is being cleaned and must not be any more."""

    cleaning: Cleaning
    why: str


@dataclass(frozen=True)
class Remove:
    """It is clean: delete the PersistentVolume."""

    cleaning: Cleaning


@dataclass(frozen=True)
class LetGo:
    """It was deleted by hand while it was nobody's: our finalizer comes off, and the place is offered again."""


def spared(volume: StaticVolume, release: Release) -> str:
    """Why what one release left must not be cleaned, or be gone on with, now that its PersistentVolume is this. Empty:
    it is to be cleaned."""
    if volume.uid != release.uid:
        return "its PersistentVolume was made anew"
    if volume.phase != RELEASED:
        return f"it is {volume.phase}"
    if volume.claim_uid != release.claim_uid:
        return "it was given to another claim" if volume.claim_uid else "its claim was taken off it"
    return "" if volume.reclaim_policy == DELETE else f"its reclaim policy is {volume.reclaim_policy}"


def decide(
    volume: StaticVolume, cleaning: Cleaning | None, now: float, retry: Backoff
) -> Leave | Refuse | Clean | CallOff | Remove | LetGo:
    """`cleaning` is what the process table has under the volume's name, `now` the time by its clock."""
    if cleaning and cleaning.running:
        why = spared(volume, cleaning.release)
        return CallOff(cleaning, why) if why else Leave()
    if volume.deleting and not volume.held:
        return Leave()
    if volume.deleting and volume.phase in (AVAILABLE, PENDING) and not volume.claim_uid:
        return LetGo()
    if volume.phase != RELEASED or volume.reclaim_policy == RETAIN:
        # One that a claim is still bound to, or is being bound to, is asked again when that is over.
        undecided = volume.deleting and volume.phase not in (AVAILABLE, PENDING, BOUND)
        return Refuse(HELD, _held(volume)) if undecided else Leave()
    policy = volume.reclaim_policy
    if policy == RECYCLE:
        return Refuse(UNSUPPORTED_POLICY, f"Volume has unsupported PersistentVolumeReclaimPolicy: {policy}")
    if policy != DELETE:
        return Refuse(UNKNOWN_POLICY, f"Volume has unrecognized PersistentVolumeReclaimPolicy: {policy}")
    if cleaning is None:
        return Clean()
    if cleaning.release != Release.of(volume):
        return Clean()
    if cleaning.state is State.SUCCEEDED:
        return Remove(cleaning)
    return Clean() if now >= cleaning.ended + retry.delay(cleaning.failures) else Leave()


def _held(volume: StaticVolume) -> str:
    state = f"it is {volume.phase} under policy {volume.reclaim_policy}"
    return (
        f"deleted by hand while it may hold data ({state}): it stays, and {volume.path} is not offered, until you say "
        f"what becomes of the data. To have it cleaned and offered anew: kubectl patch pv {volume.name} -p "
        '\'{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}\'. To have it offered with what is on it: take the '
        f"finalizer {names.STATIC_FINALIZER} off. To keep the data: take the disk out of the folder first"
    )
