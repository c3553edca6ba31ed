"""The process table: which volume is being cleaned, or was, and with what outcome.

It is kept in memory. After a restart of the daemon a volume that is still Released is cleaned again, also one whose
cleaning had ended well a moment before: that costs time and harms nobody. A cleaning Job outlives us and is found again
(jobs.py). What is remembered is the cleaning of a *release*: a PersistentVolume that an administrator gave to another
claim has new data in it, and its next release has to be cleaned anew.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from daemon.static.metrics import ProcessCounts
from daemon.static.volume import StaticVolume


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
