"""The model of the campaigns on a whole cluster complains about what is lost, left over or not done."""

from dataclasses import replace

import pytest

from tests.torture.clustermodel import (
    SIZE,
    Model,
    Operation,
    Seen,
    SeenClaim,
    SeenData,
    SeenPod,
    SeenVolume,
    Workload,
)

NODE, CAPACITY = "node-loop", 64 * SIZE
DATA = SeenData(NODE, SIZE, "Delete", "first\n")
VOLUME = SeenVolume("w0", "Bound", retain=False, capacity=SIZE, granted=SIZE, node=NODE)
NOTHING = Seen(
    claims={},
    pods={},
    volumes={},
    data={},
    mounts=frozenset(),
    staged=frozenset(),
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
    staged=frozenset({"pv"}),
    staging_folders=frozenset({"pv"}),
    loop_devices=1,
    room={NODE: CAPACITY - SIZE},
)
CREATE = Operation("create", "w0", SIZE)


def running(*operations: Operation) -> Model:
    """After it ran well, and these were asked for."""
    model = Model().after(CREATE).learned(RUNNING)
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
        staged=frozenset(),
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
    assert Model().after(CREATE).workloads["w0"] == Workload("w0", SIZE, retain=False)
