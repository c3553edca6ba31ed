"""The process table and what is decided with it."""

from dataclasses import replace

import pytest

from daemon.static.configuration import BLOCK, FILESYSTEM
from daemon.static.metrics import PROCESS, ProcessCounts
from daemon.static.reclaim import (
    DELETED_WITH_DATA,
    AbortCleanup,
    AlreadyRunning,
    Cleanup,
    CleanupState,
    DeleteVolume,
    DoNothing,
    ProcessTable,
    ReleasedVolume,
    RemoveFinalizer,
    StartCleanup,
    StillRunning,
    Warn,
    next_step,
)
from daemon.static.volume import StaticVolume
from kube.backoff import Backoff

RETRY = Backoff(first=5, factor=2, limit=300, jitter=0)
VOLUME = StaticVolume(
    name="local-pv-1",
    uid="uid-1",
    phase="Released",
    path="/mnt/disks/one",
    mode=FILESYSTEM,
    storage_class="fast-disks",
    reclaim_policy="Delete",
    capacity=1 << 30,
    deleting=False,
    provisioned_by="local-volume-provisioner-node",
    hostnames=("host",),
    claim_uid="claim-1",
)
RUNNING = Cleanup(ReleasedVolume.of(VOLUME), FILESYSTEM, PROCESS, "", started=100)


def cleaning_of(name: str) -> Cleanup:
    return replace(RUNNING, released=ReleasedVolume(name, f"uid-{name}", ""))


def test_running_is_a_live_count_and_the_others_are_totals() -> None:
    table = ProcessTable()
    for number in range(8):
        table.start(cleaning_of(f"pv-{number}"))
    for name in ("pv-0", "pv-1"):
        table.succeed(name, 200)
    table.fail("pv-2", 200)
    assert table.counts() == ProcessCounts(running=5, succeeded=2, failed=1)
    for name in ("pv-0", "pv-1", "pv-2"):
        table.forget(name)
    assert table.counts() == ProcessCounts(running=5, succeeded=2, failed=1)


def test_a_volume_is_cleaned_once_at_a_time() -> None:
    table = ProcessTable()
    table.start(RUNNING)
    with pytest.raises(AlreadyRunning, match="local-pv-1 is being cleaned already"):
        table.start(replace(RUNNING, released=ReleasedVolume("local-pv-1", "uid-2", "")))
    assert table.running("local-pv-1")


def test_a_running_cleanup_is_not_forgotten() -> None:
    table = ProcessTable()
    table.start(RUNNING)
    with pytest.raises(StillRunning):
        table.forget("local-pv-1")
    table.succeed("local-pv-1", 200)
    table.forget("local-pv-1")
    assert table.get("local-pv-1") is None


def test_failures_in_a_row_are_those_of_one_release() -> None:
    table = ProcessTable()
    for expected in (1, 2):
        table.start(RUNNING)
        table.fail("local-pv-1", 200)
        failures = table.get("local-pv-1")
        assert failures
        assert failures.failures == expected
    table.start(replace(RUNNING, released=replace(RUNNING.released, claim_uid="claim-2")))
    table.fail("local-pv-1", 300)
    failures = table.get("local-pv-1")
    assert failures
    assert failures.failures == 1


SUCCEEDED = replace(RUNNING, state=CleanupState.SUCCEEDED, ended=200)
FAILED = replace(RUNNING, state=CleanupState.FAILED, ended=200, failures=2)
OTHER_CLAIM = ReleasedVolume("local-pv-1", "uid-1", "claim-0")
OTHER_UID = ReleasedVolume("local-pv-1", "uid-0", "claim-1")
OF_ANOTHER = replace(RUNNING, released=OTHER_UID)


@pytest.mark.parametrize("phase", ["Pending", "Available", "Bound", "Failed"])
def test_only_a_released_volume_is_cleaned(phase: str) -> None:
    assert next_step(replace(VOLUME, phase=phase), None, 0, RETRY) == DoNothing()
    assert next_step(replace(VOLUME, phase=phase), SUCCEEDED, 0, RETRY) == DoNothing()


@pytest.mark.parametrize("deleting", [False, True])
def test_one_that_is_offered_with_its_data_is_not_cleaned(deleting: bool) -> None:
    """An administrator took the claimRef off, or its uid, and the control plane has not seen that yet."""
    offered = replace(VOLUME, claim_uid="", deleting=deleting, has_finalizer=True)
    assert next_step(offered, None, 0, RETRY) == DoNothing()
    of_nobody = replace(RUNNING, released=ReleasedVolume.of(offered))
    assert next_step(offered, of_nobody, 0, RETRY) == AbortCleanup(of_nobody, "its claim reference was removed")


@pytest.mark.parametrize("volume", [replace(VOLUME, deleting=True), replace(VOLUME, reclaim_policy="Retain")])
def test_deleted_or_retained_volumes_are_left_alone(volume: StaticVolume) -> None:
    assert next_step(volume, None, 0, RETRY) == DoNothing()


def test_messages_for_other_policies() -> None:
    assert next_step(replace(VOLUME, reclaim_policy="Recycle"), None, 0, RETRY) == Warn(
        "VolumeUnsupportedReclaimPolicy", "Volume has unsupported PersistentVolumeReclaimPolicy: Recycle"
    )
    assert next_step(replace(VOLUME, reclaim_policy="Shred"), None, 0, RETRY) == Warn(
        "VolumeUnknownReclaimPolicy", "Volume has unrecognized PersistentVolumeReclaimPolicy: Shred"
    )


@pytest.mark.parametrize(
    ("cleanup", "now", "expected"),
    [
        (None, 0, StartCleanup()),
        (RUNNING, 1e9, DoNothing()),
        (OF_ANOTHER, 1e9, AbortCleanup(OF_ANOTHER, "its PersistentVolume was recreated")),
        (SUCCEEDED, 200, DeleteVolume(SUCCEEDED)),
        (replace(SUCCEEDED, released=OTHER_UID), 200, StartCleanup()),
        (replace(SUCCEEDED, released=OTHER_CLAIM, mode=BLOCK), 200, StartCleanup()),
        (FAILED, 209, DoNothing()),
        (FAILED, 210, StartCleanup()),
        (replace(FAILED, released=OTHER_CLAIM), 200, StartCleanup()),
    ],
)
def test_next_step_by_cleanup(
    cleanup: Cleanup | None, now: float, expected: StartCleanup | DoNothing | DeleteVolume | AbortCleanup
) -> None:
    assert next_step(VOLUME, cleanup, now, RETRY) == expected


@pytest.mark.parametrize(
    ("volume", "reason"),
    [
        (replace(VOLUME, reclaim_policy="Retain"), "its reclaim policy is Retain"),
        (replace(VOLUME, reclaim_policy="Recycle"), "its reclaim policy is Recycle"),
        (replace(VOLUME, phase="Bound"), "it is Bound"),
        (replace(VOLUME, phase="Available", claim_uid=""), "it is Available"),
        (replace(VOLUME, claim_uid="claim-2"), "it was given to another claim"),
        (replace(VOLUME, claim_uid=""), "its claim reference was removed"),
        (replace(VOLUME, uid="uid-2"), "its PersistentVolume was recreated"),
    ],
)
def test_a_running_cleanup_is_aborted(volume: StaticVolume, reason: str) -> None:
    assert next_step(volume, RUNNING, 1e9, RETRY) == AbortCleanup(RUNNING, reason)


def test_deletion_during_a_cleanup_does_not_abort_it() -> None:
    assert next_step(replace(VOLUME, deleting=True), RUNNING, 1e9, RETRY) == DoNothing()


GOING = replace(VOLUME, deleting=True, has_finalizer=True)


@pytest.mark.parametrize(
    ("volume", "expected"),
    [
        (GOING, StartCleanup),
        (replace(GOING, phase="Available", claim_uid=""), RemoveFinalizer),
        (replace(GOING, phase="Pending", claim_uid=""), RemoveFinalizer),
        (replace(GOING, phase="Available"), DoNothing),
        (replace(GOING, phase="Bound"), DoNothing),
        (replace(GOING, reclaim_policy="Retain"), Warn),
        (replace(GOING, phase="Failed"), Warn),
        (replace(GOING, has_finalizer=False), DoNothing),
        (replace(GOING, has_finalizer=False, phase="Available", claim_uid=""), DoNothing),
    ],
)
def test_what_becomes_of_one_that_was_deleted_by_hand(volume: StaticVolume, expected: type) -> None:
    decided = next_step(volume, None, 0, RETRY)
    assert type(decided) is expected
    assert not isinstance(decided, Warn) or decided.reason == DELETED_WITH_DATA


def test_deleted_by_hand_goes_when_it_is_clean() -> None:
    assert next_step(GOING, SUCCEEDED, 200, RETRY) == DeleteVolume(SUCCEEDED)
