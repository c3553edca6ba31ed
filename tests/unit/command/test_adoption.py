"""What may be adopted. The data of one tenant must never come to another by it."""

import contextlib
from dataclasses import replace
from typing import cast

import pytest
from typer.testing import CliRunner

from command import adopt, adoption
from command.adoption import Plan, TargetClaim, Untagged
from command.main import app
from command.running import Stop
from contract import names, volume
from contract.parameters import NodeSecrets, SecretReference
from daemon.storage.backend import Backend
from daemon.storage.inventory import Inventory, Volume
from daemon.storage.record import Record, VolumeState
from kube.errors import Json
from kube.resources import CLASSES, VOLUMES
from tests.agreeing import CLUSTER
from tests.memorycluster import MemoryCluster
from tests.unit.command.objects import GIB, NODE, held, of_elastic, persistent_volume

_OLD = Untagged("pvc-1", "vg", GIB, "ext4")
_TARGET = TargetClaim("default", "heir", "elastic-local")


def test_a_volume_of_elastic_gets_a_record_and_its_persistentvolume_is_tied() -> None:
    plan = adoption.of_untagged(_OLD, {"pvc-1": of_elastic()}, NODE, CLUSTER)
    assert plan is not None
    assert plan.record is not None
    assert plan.action == adoption.ADOPT
    assert (plan.record.uid, plan.record.policy, plan.record.state) == ("uid-1", "Delete", VolumeState.READY)
    assert plan.patch is not None
    assert "spec" not in plan.patch  # an affinity that is there can't be set again
    assert plan.patch["metadata"]["finalizers"] == [names.FINALIZER]
    assert plan.patch["metadata"]["resourceVersion"] == "7"


def test_one_that_has_no_node_yet_gets_its_affinity_too() -> None:
    plan = adoption.of_untagged(_OLD, {"pvc-1": persistent_volume(pinned=False)}, NODE, CLUSTER)
    assert plan is not None
    assert plan.patch is not None
    assert "nodeAffinity" in plan.patch["spec"]


@pytest.mark.parametrize(
    ("untagged", "pv", "message"),
    [
        (replace(_OLD, signature=""), of_elastic(), "nothing was ever written"),
        (replace(_OLD, signature="xfs"), of_elastic(), "it holds xfs"),
        (_OLD, of_elastic("node-1"), "assigned to the hostname node-1"),
        (_OLD, replace(of_elastic(), deleting=True), "is being deleted"),
        (_OLD, replace(of_elastic(), phase="Released"), "is being deleted"),
        (_OLD, replace(of_elastic(), options={"fsck": "never"}), "'fsck'"),
    ],
)
def test_what_is_doubtful_is_left_alone(untagged: Untagged, pv: volume.PersistentVolume, message: str) -> None:
    plan = adoption.of_untagged(untagged, {"pvc-1": pv}, NODE, CLUSTER)
    assert plan is not None
    assert not plan.doable
    assert (plan.patch, plan.record, plan.manifest) == (None, None, None)
    assert message in plan.why


_SOURCE: Json = {"persistentVolumeReclaimPolicy": "Delete", "flexVolume": {"driver": names.DRIVER, "fsType": "ext4"}}


class _Rewritten:
    """A backend, of which a test sees what is written."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    async def reread(self, volume: Volume) -> Volume:
        return volume

    async def rewrite(self, volume: Volume, record: Record) -> Volume:
        self.records.append(record)
        return replace(volume, record=record)


@pytest.mark.parametrize(
    ("changed", "written"),
    [({}, True), (None, False), ({"uid": "uid-2"}, False), ({"deletionTimestamp": "now"}, False)],
    ids=["the same", "gone", "made anew", "being deleted"],
)
async def test_no_record_is_written_for_a_persistentvolume_that_changed_meanwhile(
    changed: Json | None, written: bool
) -> None:
    """Data that was retained would say Delete then, and be removed as an orphan."""
    found, pv, cluster, backend = held("uid-0"), persistent_volume(), MemoryCluster(), _Rewritten()
    plan = adoption.of_recorded(found, False, {"pvc-1": pv}, NODE, None, CLUSTER, named=False)
    assert plan is not None
    assert plan.record is not None
    assert (found.record.policy, plan.record.policy) == ("Retain", "Delete")
    if changed is not None:
        metadata = {"name": "pvc-1", "uid": "uid-1", "resourceVersion": "7", "finalizers": ["x/y"], **changed}
        spec = {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], **_SOURCE}
        cluster.put(VOLUMES, {"metadata": metadata, "spec": spec})
    view = adopt._View(cast(Backend, backend), None, Inventory([found]), {"pvc-1": pv}, NODE, CLUSTER)
    with contextlib.nullcontext() if written else pytest.raises(Stop, match="changed while it was looked at"):
        await adopt._carry_out(plan, view, cluster)
    assert backend.records == ([plan.record] if written else [])


def test_a_logical_volume_without_a_persistentvolume_is_none_of_our_business() -> None:
    assert adoption.of_untagged(_OLD, {}, NODE, CLUSTER) is None


def test_an_adoption_that_was_cut_off_is_taken_up_and_a_whole_one_left() -> None:
    plan = adoption.of_recorded(held(), False, {"pvc-1": of_elastic()}, NODE, None, CLUSTER, named=False)
    assert plan is not None
    assert (plan.action, plan.record) == (adoption.ASSIGN, None)
    assert adoption.of_recorded(held(), False, {"pvc-1": persistent_volume()}, NODE, None, CLUSTER, named=False) is None


def test_an_orphan_waits_for_a_person_to_name_its_heir() -> None:
    plan = adoption.of_recorded(held(), False, {}, NODE, None, CLUSTER, named=False)
    assert plan is not None
    assert plan.action == adoption.ASK
    assert not plan.doable
    assert (
        adoption.of_recorded(held(state=VolumeState.FORMATTING), False, {}, NODE, _TARGET, CLUSTER, named=False) is None
    )


def test_the_new_persistentvolume_is_bound_to_the_target_claim_only() -> None:
    plan = adoption.of_recorded(held(pool="vg/pool"), False, {}, NODE, _TARGET, CLUSTER, named=False)
    assert plan is not None
    assert plan.manifest is not None
    body = plan.manifest
    assert body["spec"]["claimRef"] == {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "namespace": "default",
        "name": "heir",
    }
    assert body["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
    read = volume.read({**body, "metadata": {**body["metadata"], "uid": "new", "resourceVersion": "1"}})
    assert read is not None
    assert (read.size, read.pool, read.hostnames, read.finalizers) == (GIB, "vg/pool", ("host-1",), (names.FINALIZER,))
    assert read.parameters().thin
    assert read.parameters().thin_pool == "pool"

    mirrored = adoption.of_recorded(held(), True, {}, NODE, _TARGET, CLUSTER, named=False)
    assert mirrored is not None
    assert mirrored.manifest is not None
    assert mirrored.manifest["spec"]["flexVolume"]["options"]["raid"] == "raid1"


def test_the_new_persistentvolume_has_the_driver_of_its_class_and_a_device_csi_in_any_case() -> None:
    def made(target: TargetClaim, filesystem: str) -> volume.PersistentVolume:
        found = replace(held(), record=replace(held().record, filesystem=filesystem))
        plan = adoption.of_recorded(found, False, {}, NODE, target, CLUSTER, named=False)
        assert plan is not None
        assert plan.manifest is not None
        metadata = {**plan.manifest["metadata"], "uid": "new", "resourceVersion": "1"}
        read = volume.read({**plan.manifest, "metadata": metadata})
        assert read is not None
        return read

    of_csi = replace(_TARGET, source="csi")
    assert (made(_TARGET, "xfs").source, made(_TARGET, "xfs").filesystem) == ("flexVolume", "xfs")
    assert (made(of_csi, "xfs").source, made(of_csi, "xfs").volume_mode) == ("csi", "Filesystem")
    for target in (_TARGET, of_csi):
        device = made(target, "raw")
        assert (device.source, device.volume_mode, device.filesystem) == ("csi", "Block", "raw")


def test_a_persistentvolume_made_anew_takes_over_what_it_names() -> None:
    again = persistent_volume(uid="uid-2")
    plan = adoption.of_recorded(held(), False, {"pvc-1": again}, NODE, None, CLUSTER, named=False)
    assert plan is not None
    assert plan.record is not None
    assert (plan.action, plan.record.uid, plan.record.policy) == (adoption.RETAG, "uid-2", "Delete")
    plan = adoption.of_recorded(
        held(), False, {"pvc-1": replace(again, filesystem="xfs")}, NODE, None, CLUSTER, named=False
    )
    assert plan is not None
    assert plan.action == adoption.REFUSE


def test_an_encrypted_orphan_goes_to_a_class_that_names_what_opens_it() -> None:
    locked = replace(held(), record=replace(held().record, encryption="luks2"))
    plan = adoption.of_recorded(locked, False, {}, NODE, replace(_TARGET, source="csi"), CLUSTER, named=True)
    assert plan is not None
    assert plan.action == adoption.REFUSE
    assert "--storage-class has to name a class with encryption" in plan.why
    target = replace(_TARGET, source="csi", secrets=NodeSecrets(SecretReference("storage", "key")))
    plan = adoption.of_recorded(locked, False, {}, NODE, target, CLUSTER, named=True)
    assert plan is not None
    assert plan.manifest is not None
    metadata = {**plan.manifest["metadata"], "uid": "u", "resourceVersion": "1"}
    read = volume.read({**plan.manifest, "metadata": metadata})
    assert read
    assert read.secret == SecretReference("storage", "key")
    assert read.parameters().encryption == "luks2"


def test_a_persistentvolume_that_says_otherwise_of_encryption_takes_nothing_over() -> None:
    locked = replace(held(), record=replace(held().record, encryption="luks2"))
    again = persistent_volume(uid="uid-2")
    for there, pv in ((locked, again), (held(), replace(again, options={"encryption": "luks2"}))):
        plan = adoption.of_recorded(there, False, {"pvc-1": pv}, NODE, None, CLUSTER, named=False)
        assert plan is not None
        assert plan.action == adoption.REFUSE


def test_what_is_taken_over_says_of_which_cluster_it_is() -> None:
    untagged = adoption.of_untagged(_OLD, {"pvc-1": of_elastic()}, NODE, CLUSTER)
    retagged = adoption.of_recorded(held("uid-2"), False, {"pvc-1": of_elastic()}, NODE, None, CLUSTER, named=False)
    orphan = adoption.of_recorded(held(), False, {}, NODE, _TARGET, CLUSTER, named=False)
    for plan in (untagged, retagged, orphan):
        assert plan is not None
        assert plan.record is not None
        assert plan.record.cluster == CLUSTER


def test_an_orphan_is_to_be_retained_from_the_moment_an_heir_is_named() -> None:
    orphan = replace(held(), record=replace(held().record, policy="Delete"))
    plan = adoption.of_recorded(orphan, False, {}, NODE, _TARGET, CLUSTER, named=True)
    assert plan is not None
    assert plan.record is not None
    assert plan.record.policy == "Retain"


@pytest.mark.parametrize("uid", ["uid-1", "uid-2"])
def test_a_volume_of_another_cluster_is_taken_over_only_by_name(uid: str) -> None:
    """That cluster may be alive, and have a volume of this name by chance."""
    theirs = replace(held(uid), record=replace(held(uid).record, cluster="another"))
    by_name = {"pvc-1": of_elastic()}
    left = adoption.of_recorded(theirs, False, by_name, NODE, None, CLUSTER, named=False)
    assert left is not None
    assert not left.doable
    assert "of another cluster (another)" in left.why
    taken = adoption.of_recorded(theirs, False, by_name, NODE, None, CLUSTER, named=True)
    assert taken is not None
    assert taken.record is not None
    assert (taken.action, taken.record.uid, taken.record.cluster) == (adoption.RETAG, "uid-1", CLUSTER)
    ask = adoption.of_recorded(theirs, False, {}, NODE, None, CLUSTER, named=True)
    assert ask is not None
    assert (ask.action, ask.record) == (adoption.ASK, None)


async def test_a_class_that_is_not_there_chooses_no_driver() -> None:
    """A name that was mistyped would give the claim a volume of the default one, for ever."""
    cluster = MemoryCluster()
    parameters = {"volumeSource": volume.CSI}
    cluster.put(CLASSES, {"metadata": {"name": "local"}, "provisioner": names.PROVISIONER, "parameters": parameters})
    with pytest.raises(Stop, match=r"no StorageClass locl.* --storage-class \(ours are: local\)"):
        await adopt._of_class(replace(_TARGET, storage_class="locl"), cluster)
    assert (await adopt._of_class(replace(_TARGET, storage_class="local"), cluster)).source == volume.CSI


def test_a_volume_that_was_asked_for_and_is_not_adopted_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `migrate` asks on the node of a claim."""

    async def planned(*_: object) -> list[Plan]:
        return [Plan("pvc-1", GIB, adoption.REFUSE, "it holds xfs")]

    monkeypatch.setattr(adopt, "_adopt", planned)
    done = CliRunner().invoke(app, ["adopt", "pvc-1", "--yes", "-o", "json"])
    assert (done.exit_code, done.stderr) == (1, "elastic-local: pvc-1 is not adopted: it holds xfs\n")
    assert CliRunner().invoke(app, ["adopt", "--yes"]).exit_code == 0
    assert CliRunner().invoke(app, ["adopt", "pvc-1"]).exit_code == 0
