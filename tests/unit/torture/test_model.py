"""The model of the campaigns says what is lost and what is leaked: one that can't is no proof."""

import random
from dataclasses import replace
from hashlib import sha256

import pytest

from contract.parameters import DEFAULT_DEVICE_CLASS
from daemon.storage.inventory import DamagedVolume, ForeignVolume, Inventory, Pool, Volume
from daemon.storage.record import Record, VolumeState
from tests.node.volume_node import MIB
from tests.torture.model import (
    ENCRYPTED,
    ENCRYPTED_THIN,
    THIN,
    XFS,
    Model,
    Operation,
    Seen,
    content,
    kind_of,
    plan,
    settlement,
    uid_of,
)

PV, POD, FILE = "pvc-1", "pod", "pvc-1-0"
MOUNT = Operation("mount", PV, 16 * MIB, POD)
WRITE = Operation("write", PV, pod=POD, file=FILE)
GOOD = {FILE: sha256(content(FILE)).hexdigest()}


def done(model: Model, operation: Operation) -> Model:
    return model.begin(operation).acknowledge(operation, operation.size)


def seen(state: VolumeState = VolumeState.READY, **changes: object) -> Seen:
    volume = Volume(Record(PV, uid_of(PV), "Delete", "ext4", state), 16 * MIB, "loop")
    pool = Pool("loop", 64 * MIB, 48 * MIB, 16 * MIB, 4096)
    whole = Seen(
        Inventory([volume], [pool]),
        frozenset({(POD, PV)}),
        frozenset({PV}),
        {PV: GOOD},
        frozenset({f"{PV}.img", f"{PV}.json"}),
        1,
        frozenset({PV}),
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


EMPTY = Inventory([], [Pool("loop", 64 * MIB, 64 * MIB, 0, 4096)])
WRITTEN = done(done(Model(), MOUNT), WRITE)


def test_what_was_acknowledged_and_is_there_is_no_complaint() -> None:
    assert WRITTEN.complaints(seen(), settled=True) == []


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        (seen(inventory=EMPTY), "acknowledged as ready and is LOST"),
        (seen(VolumeState.FORMATTING), "acknowledged as ready and is formatting"),
        (seen(VolumeState.ERASING), "half made given out"),
        (seen(mounts=frozenset()), "mounts were acknowledged and are gone"),
        (seen(mounts=frozenset({(POD, PV), ("other", PV)})), "folders that it was unmounted from"),
        (seen(files={PV: {}}), f"file {FILE} was acknowledged and is LOST"),
        (seen(files={PV: {FILE: "0"}}), f"file {FILE} was acknowledged and has OTHER CONTENT"),
        (seen(files={PV: {**GOOD, "pvc-2-0": "0"}}), "files of others"),
        (seen(unreadable={PV: "Input/output error"}), "can't be read"),
        (seen(inventory=replace(seen().inventory, foreign=[ForeignVolume("x", "loop", 1)])), "x is foreign"),
        (seen(inventory=replace(seen().inventory, damaged=[DamagedVolume("x", "loop", "y")])), "x is damaged"),
        (seen(inventory=replace(seen().inventory, pools=EMPTY.pools)), "volumes take"),
        (seen(paths=frozenset({f".{PV}.new"})), "is left"),
        (seen(staging_folders=frozenset({PV, "pvc-9"})), "the staging folder of pvc-9 is left"),
        (seen(loop_devices=2), "2 loop devices"),
        (seen(mappings=frozenset({"elastic_local_pvc--9"})), "the mapping elastic_local_pvc--9 of a removed volume"),
    ],
)
def test_each_loss_and_leak_is_a_complaint(shown: Seen, message: str) -> None:
    assert any(message in each for each in WRITTEN.complaints(shown, settled=True))


def test_what_was_acknowledged_as_removed_must_be_gone() -> None:
    model = done(done(WRITTEN, Operation("unmount", PV, pod=POD)), Operation("reclaim", PV))
    assert model.complaints(seen(inventory=EMPTY, mounts=frozenset(), files={})) == []
    complaints = model.complaints(seen())
    assert f"{PV} is not known" in complaints
    assert f"{POD}/{PV} is mounted still" in complaints


@pytest.mark.parametrize("state", [VolumeState.FORMATTING, VolumeState.READY])
def test_what_was_only_begun_may_have_happened_or_not(state: VolumeState) -> None:
    model = Model().begin(replace(MOUNT, kind="prepare", pod=""))
    assert model.complaints(seen(inventory=EMPTY, mounts=frozenset(), staged=frozenset(), files={})) == []
    assert model.complaints(seen(state, mounts=frozenset(), staged=frozenset(), files={})) == []


def test_a_write_that_was_only_begun_may_be_there_in_part() -> None:
    model = done(Model(), MOUNT).begin(WRITE)
    for files in ({}, {FILE: "half"}, GOOD):
        assert model.complaints(seen(files={PV: files})) == []


def test_a_copy_shows_what_its_source_held_when_it_was_begun() -> None:
    model = done(WRITTEN, Operation("prepare", "pvc-2", 16 * MIB, original=PV))
    assert model.volumes["pvc-2"].files == {FILE}
    later = done(model, replace(WRITE, file="pvc-1-1"))
    assert later.volumes["pvc-2"].files == {FILE}
    assert "pvc-1-1" not in later.volumes["pvc-2"].begun


def test_nothing_is_mounted_after_a_power_cut_and_data_is_still_expected() -> None:
    off = WRITTEN.powered_off()
    assert not off.volumes[PV].pods
    assert off.complaints(seen(mounts=frozenset(), files={PV: {}})) == [
        f"{PV}: file {FILE} was acknowledged and is LOST"
    ]


@pytest.mark.parametrize(
    ("device_class", "shown", "shown_when_it_is_gone"),
    [
        (DEFAULT_DEVICE_CLASS, {FILE}, set()),
        (THIN, {FILE}, {FILE}),
        (ENCRYPTED, set(), set()),
        (ENCRYPTED_THIN, set(), set()),
    ],
)
def test_what_the_disks_may_show(device_class: str, shown: set[str], shown_when_it_is_gone: set[str]) -> None:
    mount, write = (replace(each, device_class=device_class) for each in (MOUNT, WRITE))
    model = done(Model(), mount).begin(write)
    assert model.may_show() == shown
    gone = done(model.acknowledge(write, 0), replace(write, kind="reclaim"))
    assert gone.may_show() == shown_when_it_is_gone


def test_a_copy_in_a_pool_leaves_what_it_held_there() -> None:
    model = done(WRITTEN, Operation("prepare", "pvc-2", 16 * MIB, original=PV, device_class=THIN))
    for pv in (PV, "pvc-2"):
        model = done(model, Operation("reclaim", pv))
    assert model.may_show() == {FILE}


def test_copies_are_of_the_kind_of_their_source_and_all_kinds_are_made() -> None:
    chance, model = random.Random(1), Model(classes=(DEFAULT_DEVICE_CLASS, THIN, XFS, ENCRYPTED, ENCRYPTED_THIN))
    copied: set[tuple[str, str]] = set()
    for _ in range(400):
        chains, model = plan(model, chance)
        for operation in (each for chain in chains for each in chain):
            source = model.volumes.get(operation.original)
            if source and operation.kind == "prepare":
                copied.add((source.device_class, operation.device_class))
                assert kind_of(operation.device_class).takes_copies_of(kind_of(source.device_class))
            assert operation.kind != "prepare" or operation.size >= kind_of(operation.device_class).size
            model = done(model, operation)
    assert {(XFS, XFS), (THIN, DEFAULT_DEVICE_CLASS)} <= copied
    assert {ENCRYPTED, ENCRYPTED_THIN} & {source for source, _ in copied}


def test_a_plan_follows_from_its_seed_and_does_all_kinds_of_things() -> None:
    def played(seed: int) -> list[str]:
        chance, model, kinds = random.Random(seed), Model(), []
        for _ in range(200):
            chains, model = plan(model, chance)
            for operation in (each for chain in chains for each in chain):
                model = done(model, operation)
                kinds.append(f"{operation.kind} {operation.pv}")
        for chain in settlement(model):
            for operation in chain:
                model = done(model, operation)
        assert not any(volume.pending or volume.removing for volume in model.volumes.values())
        return kinds

    assert played(1) == played(1) != played(2)
    assert {each.split()[0] for each in played(1)} == {"prepare", "mount", "write", "unmount", "expand", "reclaim"}
