"""What becomes of volumes whose node is gone: every case of the decision, and which nodes a volume names."""

from dataclasses import replace

import pytest

from contract import names
from contract import volume as contract_volume
from contract.volume import (
    AVAILABLE,
    BOUND,
    DELETE,
    FAILED,
    PENDING,
    PV_PROTECTION,
    RELEASED,
    RETAIN,
    ClaimReference,
    read_any,
)
from kube.errors import Json
from provisioner import nodetracker
from provisioner.nodeloss import NodeLossStep, NodePinnedVolume, next_step, pinned_volume, warning
from tests.unit.provisioner.objects import local_body, node_body, our_body

VOLUME = NodePinnedVolume(
    name="pv",
    uid="uid",
    resource_version="1",
    nodes=frozenset({"n1", "host-n1"}),
    phase=BOUND,
    reclaim_policy=DELETE,
    storage_class="fast",
    claim=ClaimReference("ns", "data", "uid-of-data"),
    deleting=False,
    awaits_node=False,
    ours=True,
    node_label="n1",
)
KEEP, REMOVE_FINALIZER, REMOVE, REMOVE_CLAIM = (
    NodeLossStep.KEEP,
    NodeLossStep.REMOVE_FINALIZER,
    NodeLossStep.DELETE,
    NodeLossStep.DELETE_CLAIM,
)


@pytest.mark.parametrize(
    ("phase", "policy", "ours_not_named", "ours_named", "local_named"),
    [
        (PENDING, DELETE, KEEP, KEEP, KEEP),
        (AVAILABLE, DELETE, KEEP, REMOVE, REMOVE),
        (AVAILABLE, RETAIN, KEEP, KEEP, REMOVE),
        (BOUND, DELETE, KEEP, REMOVE_CLAIM, REMOVE_CLAIM),
        (BOUND, RETAIN, KEEP, REMOVE_CLAIM, REMOVE_CLAIM),
        (RELEASED, DELETE, REMOVE, REMOVE, REMOVE),
        (RELEASED, RETAIN, KEEP, KEEP, KEEP),
        (FAILED, DELETE, KEEP, KEEP, KEEP),
    ],
)
def test_what_is_done(
    phase: str, policy: str, ours_not_named: NodeLossStep, ours_named: NodeLossStep, local_named: NodeLossStep
) -> None:
    ours = replace(VOLUME, phase=phase, reclaim_policy=policy)
    local = replace(ours, ours=False, node_label="")
    assert next_step(ours, opted_in=False) is ours_not_named
    assert next_step(ours, opted_in=True) is ours_named
    assert next_step(local, opted_in=True) is local_named
    assert next_step(local, opted_in=False) is KEEP


@pytest.mark.parametrize("claim", [None, ClaimReference("ns", "data", "")])
@pytest.mark.parametrize("named", [False, True])
def test_one_that_is_offered_to_the_next_claim_is_not_deleted_as_released(
    claim: ClaimReference | None, named: bool
) -> None:
    assert next_step(replace(VOLUME, phase=RELEASED, claim=claim), named) is KEEP


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("policy", [DELETE, RETAIN])
@pytest.mark.parametrize("phase", [PENDING, AVAILABLE, BOUND, RELEASED, FAILED])
def test_the_finalizer_is_removed_only_when_nothing_else_keeps_the_volume(phase: str, policy: str, named: bool) -> None:
    going = replace(VOLUME, phase=phase, reclaim_policy=policy, deleting=True)
    assert next_step(going, named) is KEEP
    assert next_step(replace(going, awaits_node=True), named) is (REMOVE_FINALIZER if policy == DELETE else KEEP)


def test_one_that_is_to_be_retained_waits_for_its_node_to_note_that() -> None:
    """What the node's disks have noted may still say Delete: they would lose it when they come back."""
    held = replace(VOLUME, phase=RELEASED, reclaim_policy=RETAIN, deleting=True, awaits_node=True)
    assert next_step(held, opted_in=True) is KEEP
    for delay in (60, None):
        assert "bring the node back" in warning(held, KEEP, delay)
        assert "set the reclaim policy of this PersistentVolume to Delete" in warning(held, KEEP, delay)


def test_the_owner_of_a_claim_reads_what_happens_to_it() -> None:
    kept = warning(VOLUME, KEEP, 60)
    assert "host-n1/n1" in kept
    assert "deleting this claim" in kept
    assert "this claim is deleted in 60 s unless" in warning(VOLUME, REMOVE_CLAIM, 60)
    assert warning(VOLUME, REMOVE_CLAIM, None) == kept


def test_of_a_volume_nobody_uses_only_what_happens_is_said() -> None:
    going = replace(VOLUME, phase=RELEASED)
    assert warning(replace(going, reclaim_policy=RETAIN), KEEP, 60) == ""
    assert "is removed in 60 s unless" in warning(going, REMOVE, 60)
    assert "take the finalizers off" in warning(going, REMOVE_FINALIZER, None)


def test_a_local_volume_counts_if_its_class_was_named_and_its_node_is_known() -> None:
    pinned = pinned_volume(read_any(local_body()), {"disks"})
    assert pinned is not None
    assert (pinned.nodes, pinned.ours, pinned.awaits_node) == (frozenset({"host-n1"}), False, False)
    assert pinned_volume(read_any(local_body()), {"other"}) is None
    assert pinned_volume(read_any(local_body(nodeAffinity={})), {"disks"}) is None
    offered = local_body()
    offered["metadata"]["labels"] = {names.NODE_LABEL: "n1"}
    pinned = pinned_volume(read_any(offered), {"disks"})
    assert pinned is not None
    assert (pinned.nodes, pinned.node_label) == (frozenset({"n1", "host-n1"}), "")
    not_local = local_body()
    del not_local["spec"]["local"]
    assert pinned_volume(read_any(not_local), {"disks"}) is None


@pytest.mark.parametrize(
    ("body", "held"),
    [
        (our_body(deletionTimestamp="now"), True),
        (our_body(), False),
        (our_body(BOUND, deletionTimestamp="now"), False),
        (our_body(finalizers=(names.FINALIZER, PV_PROTECTION), deletionTimestamp="now"), False),
        (our_body(finalizers=("somebody/else",), deletionTimestamp="now"), False),
        (our_body(finalizers=(names.FINALIZER, "somebody/else"), deletionTimestamp="now"), True),
    ],
)
def test_a_volume_of_ours_is_held_by_its_node_or_not(body: Json, held: bool) -> None:
    read = contract_volume.read(body)
    assert read is not None
    pinned = pinned_volume(read, ())
    assert pinned is not None
    assert pinned.awaits_node is held
    assert pinned.nodes == {"n1", "host-n1"}


def test_a_csi_volume_of_ours_is_held_by_its_node_like_a_flexvolume() -> None:
    body = our_body(deletionTimestamp="now")
    del body["spec"]["flexVolume"]
    body["spec"]["csi"] = {"driver": names.CSI_DRIVER, "volumeHandle": "pv"}
    read = contract_volume.read(body)
    assert read is not None
    pinned = pinned_volume(read, ())
    assert pinned is not None
    assert (pinned.ours, pinned.awaits_node, pinned.nodes) == (True, True, frozenset({"n1", "host-n1"}))


def test_a_volume_without_a_node_lives_nowhere() -> None:
    body = our_body()
    del body["spec"]["nodeAffinity"]
    read = contract_volume.read(body)
    assert read is not None
    assert pinned_volume(read, ()) is None


def test_a_node_answers_to_its_name_its_label_value_and_its_hostname() -> None:
    assert nodetracker.read(node_body("n1", "ip-1")).names == {"n1", "ip-1"}
    assert nodetracker.read({"metadata": {"name": "n1"}}).names == {"n1"}
    long = "n" * 70
    assert nodetracker.read(node_body(long, "ip-1")).names == {long, names.node_label_value(long), "ip-1"}
