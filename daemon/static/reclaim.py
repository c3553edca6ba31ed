"""What to do with a released PersistentVolume: a pure function of it and of the process table.

The process table says which volumes are or were cleaned, and with what result. It is in memory only. After a restart of
the daemon a volume that is still Released is cleaned again, even if its cleanup had just succeeded: that costs time and
loses nothing. A cleanup Job outlives the daemon and is found again (cleanupjob.py). What is remembered is the cleanup
of one *release*: a PersistentVolume that an administrator gave to another claim has new data on it, and its next
release has to be cleaned anew.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from contract import names
from contract.volume import AVAILABLE, BOUND, DELETE, PENDING, RELEASED, RETAIN
from daemon.static.metrics import ProcessCounts
from daemon.static.volume import RECYCLE, StaticVolume
from kube.backoff import Backoff


class State(Enum):
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True)
class Release:
    """What is cleaned: a PersistentVolume as one claim left it."""

    volume: str
    uid: str
    claim_uid: str

    @classmethod
    def of(cls, volume: StaticVolume) -> "Release":
        return cls(volume.name, volume.uid, volume.claim_uid)


@dataclass(frozen=True)
class Cleaning:
    release: Release
    mode: str
    kind: str
    """metrics.PROCESS or metrics.JOB."""
    command: str
    """First word of the cleaner. Empty: no command was configured."""
    began: float
    """time.monotonic(), like `ended`."""
    state: State = State.RUNNING
    ended: float = 0.0
    failures: int = 0
    """In a row, of this release."""

    @property
    def running(self) -> bool:
        return self.state is State.RUNNING


class AlreadyRunning(Exception):
    """A volume is cleaned once at a time."""


class StillRunning(Exception):
    """A cleaning that runs can't be forgotten."""


class ProcessTable:
    """One entry per PersistentVolume."""

    def __init__(self) -> None:
        self._cleanings: dict[str, Cleaning] = {}
        self._totals = {State.SUCCEEDED: 0, State.FAILED: 0}

    def __iter__(self) -> Iterator[Cleaning]:
        return iter(tuple(self._cleanings.values()))

    def get(self, volume: str) -> Cleaning | None:
        return self._cleanings.get(volume)

    def running(self, volume: str) -> bool:
        found = self._cleanings.get(volume)
        return found is not None and found.running

    def start(self, cleaning: Cleaning) -> None:
        """Takes over the number of failures of the same release. Raises AlreadyRunning."""
        known = self._cleanings.get(cleaning.release.volume)
        if known and known.running:
            raise AlreadyRunning(f"{cleaning.release.volume} is being cleaned already")
        failures = known.failures if known and known.release == cleaning.release else 0
        self._cleanings[cleaning.release.volume] = replace(cleaning, failures=failures)

    def succeed(self, volume: str, now: float) -> None:
        self._end(volume, State.SUCCEEDED, now, failures=0)

    def fail(self, volume: str, now: float) -> None:
        self._end(volume, State.FAILED, now, failures=self._cleanings[volume].failures + 1)

    def call_off(self, volume: str) -> None:
        """It ended before its time, because the volume is not to be cleaned any more: that is no outcome."""
        del self._cleanings[volume]

    def _end(self, volume: str, state: State, now: float, failures: int) -> None:
        self._cleanings[volume] = replace(self._cleanings[volume], state=state, ended=now, failures=failures)
        self._totals[state] += 1

    def forget(self, volume: str) -> None:
        """Raises StillRunning."""
        if self.running(volume):
            raise StillRunning(f"{volume} is being cleaned: only what ended can be forgotten")
        self._cleanings.pop(volume, None)

    def counts(self) -> ProcessCounts:
        running = sum(cleaning.running for cleaning in self._cleanings.values())
        totals: Mapping[State, int] = self._totals
        return ProcessCounts(running, totals[State.SUCCEEDED], totals[State.FAILED])


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
