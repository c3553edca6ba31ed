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
from contract.volume import AVAILABLE, BOUND, DELETE, PENDING, RELEASED, RETAIN, is_released
from daemon.static.metrics import ProcessCounts
from daemon.static.volume import RECYCLE, StaticVolume
from kube.backoff import Backoff


class CleanupState(Enum):
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True)
class ReleasedVolume:
    """One release of a PersistentVolume: what one claim left behind."""

    volume: str
    uid: str
    claim_uid: str

    @classmethod
    def of(cls, volume: StaticVolume) -> "ReleasedVolume":
        return cls(volume.name, volume.uid, volume.claim_uid)


@dataclass(frozen=True)
class Cleanup:
    released: ReleasedVolume
    mode: str
    cleanup_type: str
    """metrics.PROCESS or metrics.JOB."""
    command: str
    """First word of the cleaner. Empty: no command was configured."""
    started: float
    """time.monotonic(), like `ended`."""
    state: CleanupState = CleanupState.RUNNING
    ended: float = 0.0
    failures: int = 0
    """In a row, of this release."""

    @property
    def running(self) -> bool:
        return self.state is CleanupState.RUNNING


class AlreadyRunning(Exception):
    """The volume is being cleaned already."""


class StillRunning(Exception):
    """A running cleanup can't be forgotten."""


class ProcessTable:
    """One entry per PersistentVolume."""

    def __init__(self) -> None:
        self._cleanups: dict[str, Cleanup] = {}
        self._totals = {CleanupState.SUCCEEDED: 0, CleanupState.FAILED: 0}

    def __iter__(self) -> Iterator[Cleanup]:
        return iter(tuple(self._cleanups.values()))

    def get(self, volume: str) -> Cleanup | None:
        return self._cleanups.get(volume)

    def running(self, volume: str) -> bool:
        cleanup = self._cleanups.get(volume)
        return cleanup is not None and cleanup.running

    def start(self, cleanup: Cleanup) -> None:
        """Keeps the number of failures of the same release. Raises AlreadyRunning."""
        known = self._cleanups.get(cleanup.released.volume)
        if known and known.running:
            raise AlreadyRunning(f"{cleanup.released.volume} is being cleaned already")
        failures = known.failures if known and known.released == cleanup.released else 0
        self._cleanups[cleanup.released.volume] = replace(cleanup, failures=failures)

    def succeed(self, volume: str, now: float) -> None:
        self._end(volume, CleanupState.SUCCEEDED, now, failures=0)

    def fail(self, volume: str, now: float) -> None:
        self._end(volume, CleanupState.FAILED, now, failures=self._cleanups[volume].failures + 1)

    def abort(self, volume: str) -> None:
        """It ended early because the volume must not be cleaned any more: neither success nor failure."""
        del self._cleanups[volume]

    def _end(self, volume: str, state: CleanupState, now: float, failures: int) -> None:
        self._cleanups[volume] = replace(self._cleanups[volume], state=state, ended=now, failures=failures)
        self._totals[state] += 1

    def forget(self, volume: str) -> None:
        """Raises StillRunning."""
        if self.running(volume):
            raise StillRunning(f"{volume} is being cleaned: only a finished cleanup can be forgotten")
        self._cleanups.pop(volume, None)

    def counts(self) -> ProcessCounts:
        running = sum(cleanup.running for cleanup in self._cleanups.values())
        totals: Mapping[CleanupState, int] = self._totals
        return ProcessCounts(running, totals[CleanupState.SUCCEEDED], totals[CleanupState.FAILED])


UNSUPPORTED_POLICY, UNKNOWN_POLICY = "VolumeUnsupportedReclaimPolicy", "VolumeUnknownReclaimPolicy"
DELETED_WITH_DATA = "VolumeDeletedWithData"
"""Ours: the PersistentVolume was deleted by hand, and its data must not be erased yet."""


@dataclass(frozen=True)
class DoNothing:
    """Nothing to do now."""


@dataclass(frozen=True)
class Warn:
    """Somebody has to decide first: the policy is not supported, or it was deleted with data on it."""

    reason: str
    message: str


@dataclass(frozen=True)
class StartCleanup:
    """It has to be cleaned (again)."""


@dataclass(frozen=True)
class AbortCleanup:
    """It is being cleaned, and must not be any more."""

    cleanup: Cleanup
    reason: str


@dataclass(frozen=True)
class DeleteVolume:
    """It is clean: delete the PersistentVolume."""

    cleanup: Cleanup


@dataclass(frozen=True)
class RemoveFinalizer:
    """It was deleted by hand while no claim had it: its entry is offered again."""


def abort_reason(volume: StaticVolume, released: ReleasedVolume) -> str:
    """Why the cleanup of that release must not start or go on, given the current PersistentVolume. Empty: it may."""
    if volume.uid != released.uid:
        return "its PersistentVolume was recreated"
    if volume.phase != RELEASED:
        return f"it is {volume.phase}"
    if not volume.claim_uid:
        return "its claim reference was removed"
    if volume.claim_uid != released.claim_uid:
        return "it was given to another claim"
    return "" if volume.reclaim_policy == DELETE else f"its reclaim policy is {volume.reclaim_policy}"


def next_step(
    volume: StaticVolume, cleanup: Cleanup | None, now: float, retry: Backoff
) -> DoNothing | Warn | StartCleanup | AbortCleanup | DeleteVolume | RemoveFinalizer:
    """`cleanup`: the process table's entry of the volume. `now`: time.monotonic()."""
    if cleanup and cleanup.running:
        reason = abort_reason(volume, cleanup.released)
        return AbortCleanup(cleanup, reason) if reason else DoNothing()
    if volume.deleting and not volume.has_finalizer:
        return DoNothing()
    if volume.deleting and volume.phase in (AVAILABLE, PENDING) and not volume.claim_uid:
        return RemoveFinalizer()
    if volume.phase == RELEASED and not is_released(volume.phase, volume.claim_uid):
        return DoNothing()  # the control plane will call it Available
    if volume.phase != RELEASED or volume.reclaim_policy == RETAIN:
        # A volume that is bound to a claim, or about to be, is examined again after that.
        has_data = volume.deleting and volume.phase not in (AVAILABLE, PENDING, BOUND)
        return Warn(DELETED_WITH_DATA, _deleted_with_data(volume)) if has_data else DoNothing()
    policy = volume.reclaim_policy
    if policy == RECYCLE:
        return Warn(UNSUPPORTED_POLICY, f"Volume has unsupported PersistentVolumeReclaimPolicy: {policy}")
    if policy != DELETE:
        return Warn(UNKNOWN_POLICY, f"Volume has unrecognized PersistentVolumeReclaimPolicy: {policy}")
    if cleanup is None:
        return StartCleanup()
    if cleanup.released != ReleasedVolume.of(volume):
        return StartCleanup()
    if cleanup.state is CleanupState.SUCCEEDED:
        return DeleteVolume(cleanup)
    return StartCleanup() if now >= cleanup.ended + retry.delay(cleanup.failures) else DoNothing()


def _deleted_with_data(volume: StaticVolume) -> str:
    state = f"it is {volume.phase} under policy {volume.reclaim_policy}"
    return (
        f"deleted by hand while it may hold data ({state}): it stays, and {volume.path} is not offered, until you "
        f"decide about the data. To erase it and offer the volume again: kubectl patch pv {volume.name} -p "
        '\'{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}\'. To offer the volume with its data: remove the '
        f"finalizer {names.STATIC_FINALIZER}. To keep the data: remove the disk from the folder first"
    )
