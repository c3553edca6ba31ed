"""The model of the campaigns on a whole cluster complains about what is lost, left over or not done."""

import random
from dataclasses import replace

import pytest

from tests.torture.cluster.model import Model
from tests.torture.cluster.operation import Operation
from tests.torture.cluster.plan import SIZE, plan
from tests.torture.cluster.seen import (
    Seen,
    SeenClaim,
    SeenContent,
    SeenData,
    SeenPod,
    SeenSnapshot,
    SeenVolume,
    begins_with,
    flushed,
    lines_of,
)
from tests.torture.cluster.workloads import Workload

NODE, CAPACITY = "node-loop", 64 * SIZE
DATA = SeenData(NODE, SIZE, "Delete", "first\n", (("w0", 4),))
VOLUME = SeenVolume("w0", "Bound", retain=False, capacity=SIZE, granted=SIZE, node=NODE)
NOTHING = Seen(
    claims={},
    pods={},
    volumes={},
    data={},
    mounts=frozenset(),
    staged={},
    staging_folders=frozenset(),
    loop_devices=0,
    room={NODE: CAPACITY},
    capacity={NODE: CAPACITY},
    loop_nodes=frozenset({NODE}),
)
RUNNING = replace(
    NOTHING,
    claims={"w0": SeenClaim("Bound", "pv", SIZE)},
    pods={"w0": SeenPod("uid", ready=True, node=NODE)},
    volumes={"pv": VOLUME},
    data={"pv": DATA},
    mounts=frozenset({("uid", "pv")}),
    staged={"pv": "7:0"},
    staging_folders=frozenset({"pv"}),
    loop_devices=1,
    room={NODE: CAPACITY - SIZE},
)
CREATE = Operation("create", "w0", SIZE, csi=True)


def running(*operations: Operation) -> Model:
    """After it ran well, and these were asked for."""
    model = Model(cloning=frozenset({NODE})).after(CREATE).learned(RUNNING)
    for operation in operations:
        model = model.after(operation)
    return model


def test_all_is_well() -> None:
    assert running().complaints(RUNNING) == []
    assert running(Operation("delete", "w0")).complaints(NOTHING) == []
    assert running(Operation("delete", "w0")).settled(NOTHING).workloads == {}


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        (replace(RUNNING, data={"pv": replace(DATA, file="second\n")}), "LOST: its file has"),
        (replace(RUNNING, data={"pv": replace(DATA, file="")}), "its file is not there"),
        (replace(RUNNING, data={"pv": replace(DATA, size=SIZE // 2)}), "LOST: it has"),
        (replace(RUNNING, data={"pv": replace(DATA, lines=(("w0", 3),))}), "LOST: it has lines"),
        (replace(RUNNING, data={}), "its file is not there"),
        (replace(RUNNING, volumes={}), "its PersistentVolume is gone"),
        (replace(RUNNING, claims={}), "its claim is gone"),
        (replace(RUNNING, pods={}), "its pod is gone"),
        (replace(RUNNING, mounts=frozenset()), "is not mounted for pod"),
        (replace(RUNNING, mounts=RUNNING.mounts | {("gone", "pv")}), "is mounted still for pod gone"),
        (replace(RUNNING, staging_folders=frozenset({"pv", "old"})), "old has a staging folder"),
        (replace(RUNNING, loop_devices=2), "2 loop devices for 1 volumes"),
        (replace(RUNNING, room={NODE: CAPACITY}), "offers"),
        (replace(RUNNING, volumes={"pv": VOLUME, "other": VOLUME}), "PersistentVolume other is nobody's"),
        (replace(RUNNING, data={"pv": DATA, "other": DATA}), "volume other on a node is nobody's"),
    ],
)
def test_what_is_wrong_is_reported(seen: Seen, message: str) -> None:
    assert [each for each in running().complaints(seen) if message in each]


def test_what_is_deleted_leaves_nothing_and_what_is_retained_stays() -> None:
    left = replace(NOTHING, data={"pv": DATA}, room={NODE: CAPACITY - SIZE})
    deleted = running(Operation("delete", "w0"))
    assert [each for each in deleted.complaints(left) if "its data is left" in each]
    retained = running(Operation("policy", "w0", retain=True), Operation("delete", "w0"))
    assert [each for each in retained.complaints(NOTHING) if "LOST" in each]
    parted = retained.after(Operation("part", "w0"))
    assert parted.complaints(left) == []
    assert [each for each in parted.complaints(NOTHING) if "LOST" in each]


def test_after_a_restore_nothing_that_was_not_given_up_may_be_lost() -> None:
    saved = running()
    later = saved.after(Operation("create", "w1", SIZE))
    made = replace(RUNNING, volumes={"pv": VOLUME, "pv1": replace(VOLUME, claim="w1")}, data={"pv": DATA, "pv1": DATA})
    restored = later.learned(made).restored(saved, ["pv", "pv1"])
    assert restored.orphans["pv1"].sure
    assert [each for each in restored.complaints(RUNNING) if "orphan pv1: LOST" in each]

    erased = running(Operation("delete", "w0")).restored(saved, ["pv"])
    assert erased.workloads["w0"].doubtful
    waiting = replace(
        RUNNING,
        pods={"w0": replace(RUNNING.pods["w0"], ready=False)},
        data={},
        mounts=frozenset(),
        staged={},
        staging_folders=frozenset(),
        loop_devices=0,
    )
    assert erased.complaints(waiting) == []
    # An empty volume in its place would look to a database like all data deleted.
    empty = replace(RUNNING, data={"pv": replace(DATA, file="second\n")})
    assert [each for each in erased.complaints(empty) if "LOST" in each]


REBIND = Operation("rebind", "w1", SIZE, source="w0")


def test_a_volume_that_another_claim_has_keeps_what_is_in_it() -> None:
    retained = running(Operation("policy", "w0", retain=True), Operation("delete", "w0"))
    model = retained.after(REBIND)
    (again,) = model.workloads.values()
    assert (again.name, again.volume, again.deleted, model.number) == ("w1", "pv", False, 2)
    seen = replace(
        RUNNING,
        claims={"w1": RUNNING.claims["w0"]},
        pods={"w1": RUNNING.pods["w0"]},
        volumes={"pv": replace(VOLUME, claim="w1")},
    )
    assert model.complaints(seen) == []
    empty = replace(seen, data={"pv": replace(DATA, file="second\n")})
    assert [each for each in model.complaints(empty) if "LOST" in each]
    restored = model.restored(retained, ["pv"])
    assert (restored.workloads["w0"].doubtful, restored.orphans) == (False, {})
    gone = model.after(Operation("delete", "w1")).restored(retained, ["pv"])
    assert (gone.workloads["w0"].doubtful, gone.orphans) == (True, {})


def test_names_are_not_given_again() -> None:
    assert running().restored(Model(), []).number == 1
    assert Model().after(CREATE).workloads["w0"] == Workload("w0", SIZE, retain=False, csi=True)


SNAPSHOT = Operation("snapshot", "s1", source="w0")
HELD = replace(DATA, lines=(("w0", 5),))
TAKEN = replace(
    RUNNING,
    snapshots={"s1": SeenSnapshot(ready=True, size=SIZE)},
    contents={"c1": SeenContent("s1", "snap_1", ready=True, retain=False)},
    data={"pv": replace(DATA, lines=(("w0", 6),)), "snap_1": HELD},
    room={NODE: CAPACITY - 2 * SIZE},
)
"""While its pod wrote on."""


def taken(*operations: Operation) -> Model:
    model = running(SNAPSHOT).learned(TAKEN).learned(TAKEN)
    for operation in operations:
        model = model.after(operation)
    return model


def test_a_snapshot_holds_what_was_flushed_and_nothing_later() -> None:
    assert taken().complaints(TAKEN) == []
    early = replace(TAKEN, data={**TAKEN.data, "snap_1": replace(HELD, lines=(("w0", 2),))})
    assert [each for each in running(SNAPSHOT).learned(early).complaints(early) if "its source had" in each]
    late = replace(TAKEN, data={**TAKEN.data, "snap_1": replace(HELD, lines=(("w0", 7),))})
    model = running(SNAPSHOT).learned(late).learned(late)
    assert [each for each in model.complaints(late) if "had only" in each]


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        (replace(TAKEN, data={**TAKEN.data, "snap_1": replace(HELD, lines=(("w0", 6),))}), "LOST: it has lines"),
        (replace(TAKEN, data={"pv": DATA}), "s1 (snap_1): LOST: it is on no node"),
        (replace(TAKEN, data={**TAKEN.data, "snap_1": replace(HELD, whole=False)}), "LOST: its record"),
        (replace(TAKEN, data={**TAKEN.data, "snap_1": replace(HELD, policy="Retain")}), "it has policy Retain"),
        (replace(TAKEN, snapshots={"s1": SeenSnapshot(ready=False, size=SIZE)}), "it is not ready"),
        (replace(TAKEN, snapshots={}), "s1 (snap_1): it is gone"),
        (replace(TAKEN, contents={}), "its content is gone"),
        (replace(TAKEN, contents={**TAKEN.contents, "c2": SeenContent("x", "snap_2", True, True)}), "c2 is nobody's"),
    ],
)
def test_what_is_wrong_with_a_snapshot_is_reported(seen: Seen, message: str) -> None:
    assert [each for each in taken().complaints(seen) if message in each]


def test_what_becomes_of_a_snapshot_follows_from_its_policy() -> None:
    left = replace(TAKEN, snapshots={}, contents={})
    deleted = taken(Operation("unsnapshot", "s1"))
    assert [each for each in deleted.complaints(left) if "its data is left" in each]
    retained = replace(left, data={**TAKEN.data, "snap_1": replace(HELD, policy="Retain")})
    kept = [Operation("snapshotpolicy", "s1", retain=True), Operation("unsnapshot", "s1")]
    assert [each for each in taken(*kept).complaints(retained) if "its content is gone" in each]
    parted = taken(*kept, Operation("partsnapshot", "s1"))
    assert parted.complaints(retained) == []
    assert [each for each in parted.complaints(left) if "it has policy Delete" in each]
    again = parted.after(Operation("regain", "s2", source="s1"))
    found = replace(
        TAKEN,
        snapshots={"s2": SeenSnapshot(ready=True, size=SIZE)},
        contents={"s2": SeenContent("s2", "snap_1", ready=True, retain=False)},
    )
    assert again.complaints(found) == []
    assert again.restored(taken(), []).complaints(TAKEN) == []
    assert again.after(Operation("unsnapshot", "s2")).restored(taken(), []).snapshots["s1"].doubtful


def test_what_waits_for_a_snapshot_that_went_waits_for_ever() -> None:
    restore = Operation("create", "w2", SIZE, source="s1", csi=True)
    waiting = replace(
        TAKEN,
        claims={**TAKEN.claims, "w2": SeenClaim("Pending", "", 0)},
        pods={**TAKEN.pods, "w2": SeenPod("uid2", ready=False, node="")},
    )
    assert [each for each in taken(restore).complaints(waiting) if "w2 (no volume): its pod is not ready" in each]
    assert taken(restore, Operation("unsnapshot", "s1")).complaints(waiting) == []
    assert taken(restore).workloads["w2"].lines == HELD.lines


def test_the_source_of_what_can_not_be_a_snapshot_waits_with_it() -> None:
    model = replace(running(SNAPSHOT, Operation("delete", "w0")), cloning=frozenset())
    model = replace(model, snapshots={"s1": replace(model.snapshots["s1"], able=False)})
    held = replace(
        RUNNING,
        pods={},
        mounts=frozenset(),
        staged={},
        loop_devices=0,
        snapshots={"s1": SeenSnapshot(ready=False, size=0)},
    )
    assert model.complaints(held) == []
    assert model.settled(held).complaints(held) == []
    gone = model.after(Operation("unsnapshot", "s1"))
    assert [each for each in gone.complaints(held) if "its claim is there still" in each]


def test_what_the_snapshot_controller_remembers_is_left_to_a_person() -> None:
    """After the API server went back to before the VolumeSnapshot."""
    back = taken().restored(running(), [])
    seen = replace(TAKEN, snapshots={})
    assert (back.strays(seen), back.unreleased(seen)) == (["c1"], [])
    assert back.after(Operation("delete", "w0")).unreleased(seen) == ["w0"]
    assert (taken().strays(seen), running(Operation("delete", "w0")).unreleased(seen)) == ([], [])


def test_a_claim_ends_with_the_class_that_it_names() -> None:
    model = running(Operation("modify", "w0", attributes="gold"))
    assert [each for each in model.complaints(RUNNING) if "has class '' and not 'gold'" in each]
    limits = "readBandwidth=8388608 writeBandwidth=4194304 readIOPS=2000 writeIOPS=max"
    held = "7:0 rbps=8388608 wbps=4194304 riops=2000 wiops=max"
    seen = replace(
        RUNNING,
        claims={"w0": replace(RUNNING.claims["w0"], attributes="gold")},
        volumes={"pv": replace(VOLUME, attributes="gold", limits=limits)},
        pods={"w0": replace(RUNNING.pods["w0"], limits=held)},
    )
    assert model.complaints(seen) == []
    late = replace(seen, claims={"w0": replace(seen.claims["w0"], step="InProgress+")})
    assert [each for each in model.complaints(late) if "InProgress" in each]
    free = replace(seen, pods=RUNNING.pods)
    assert [each for each in model.complaints(free) if "its pod is held to ''" in each]
    flex = replace(model, workloads={"w0": replace(model.workloads["w0"], csi=False)})
    refused = replace(RUNNING, claims={"w0": replace(RUNNING.claims["w0"], step="Infeasible++")})
    assert flex.complaints(refused) == []


def test_what_is_asked_for_follows_from_the_seed() -> None:
    first, second = (plan(taken(), random.Random(5), 4) for _ in range(2))
    assert first == second


def test_lines_are_told_by_who_wrote_them() -> None:
    lines = lines_of(["a", "a", "b"])
    assert lines == (("a", 2), ("b", 1))
    assert begins_with(lines, (("a", 2),))
    assert not begins_with(lines, (("a", 3),))
    assert not begins_with((("a", 1), ("b", 1)), (("b", 1),))
    assert [flushed(lines), flushed(flushed(lines)), flushed(())] == [(("a", 2),), (("a", 1),), ()]
