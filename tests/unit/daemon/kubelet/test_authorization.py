"""Each way in which somebody might get at a volume that is not theirs, and that the owner gets in."""

from dataclasses import replace
from pathlib import Path

import pytest

from contract import names
from contract import volume as contract_volume
from contract.volume import PersistentVolume
from daemon.cluster.nodevolumes import is_assigned, other_node
from daemon.errors import Refused
from daemon.flexvolume.callouts import read_only
from daemon.kubelet.authorization import Authorization, decide
from daemon.kubelet.podfolder import PodFolder
from kube.records import Claim, Node, Pod, PodVolume

POD_UID = "11111111-2222-3333-4444-555555555555"
NODE = Node("node-1", "node-uid", "host-1", {}, deleting=False)
FOLDER = PodFolder(Path("/var/lib/kubelet"), POD_UID, "pvc-1")
MENTION = PodVolume("data", "claim", read_only=False, ephemeral=False)
POD = Pod("tenant", "web", POD_UID, "node-1", "Pending", (MENTION,), deleting=False)
CLAIM = Claim(
    namespace="tenant",
    name="claim",
    uid="claim-uid",
    resource_version="1",
    phase="Bound",
    volume_name="pvc-1",
    storage_class="elastic-local",
    provisioner="",
    selected_node="",
    requested=1,
    capacity=1,
    access_modes=("ReadWriteOnce",),
    volume_mode="Filesystem",
    data_source="",
    deleting=False,
)


def pv(**changes: object) -> PersistentVolume:
    read = contract_volume.read(
        {
            "metadata": {
                "name": "pvc-1",
                "uid": "pv-uid",
                "resourceVersion": "7",
                "labels": {names.NODE_LABEL: "node-1"},
                "finalizers": [names.FINALIZER],
            },
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"],
                "flexVolume": {"driver": names.DRIVER},
                "claimRef": {"namespace": "tenant", "name": "claim", "uid": "claim-uid"},
                **contract_volume.node_assignment_patch(contract_volume.NodeAssignment("node-1", "host-1", "pool"))[
                    "spec"
                ],
            },
        }
    )
    assert read is not None
    return replace(read, **changes)  # type: ignore[arg-type]


def decided(
    *,
    asks_read_only: bool = False,
    pod: Pod | None = POD,
    volume: PersistentVolume | None = None,
    claim: Claim | None = CLAIM,
) -> Authorization:
    return decide(FOLDER, asks_read_only, pod, volume or pv(), claim, NODE)


def test_the_owner_mounts_read_write() -> None:
    assert decided() == Authorization(pv(), POD, read_only=False)


def test_a_volume_without_a_node_is_granted_too() -> None:
    nowhere = pv(node_label="", hostnames=(), finalizers=())
    assert decided(volume=nowhere).volume == nowhere


@pytest.mark.parametrize("phase", ["Released", "Bound"])
def test_an_unknown_pod_is_refused(phase: str) -> None:
    with pytest.raises(Refused, match="no pod with uid"):
        decided(pod=None, volume=pv(phase=phase))


def test_the_pod_that_the_hint_led_to_must_be_the_folders() -> None:
    with pytest.raises(Refused, match="no pod with uid"):
        decided(pod=replace(POD, uid="99999999-2222-3333-4444-555555555555"))


def test_a_pod_of_another_node_is_refused() -> None:
    with pytest.raises(Refused, match="runs on another node"):
        decided(pod=replace(POD, node_name="node-2"))


def test_a_refused_inline_volume_names_what_to_use() -> None:
    attacker = replace(POD, volumes=(), inline=("pvc-1",))
    with pytest.raises(Refused, match=r"inline flexVolume.*PersistentVolumeClaim"):
        decided(pod=attacker)


def test_an_inline_volume_beside_the_pods_own_claim_gives_nothing_more() -> None:
    attacker = replace(POD, volumes=(replace(MENTION, read_only=True),), inline=("pvc-1",))
    assert decided(pod=attacker).read_only


def test_a_refusal_does_not_show_whether_the_volume_exists() -> None:
    stranger = replace(POD, volumes=(replace(MENTION, claim="mine"),))
    with pytest.raises(Refused) as exists:
        decided(pod=stranger)
    with pytest.raises(Refused) as absent:
        decide(FOLDER, False, stranger, None, None, NODE)
    assert str(exists.value) == str(absent.value)
    assert "claim-uid" not in str(exists.value)


def test_a_claim_of_the_same_name_in_another_namespace_is_no_right() -> None:
    with pytest.raises(Refused, match="has no claim"):
        decided(pod=replace(POD, namespace="other"))


def test_a_forged_claim_that_names_the_volume_is_no_right() -> None:
    """volumeName is written by whoever makes a claim; the PersistentVolume's claimRef is not."""
    forged = replace(MENTION, claim="forged")
    with pytest.raises(Refused, match="has no claim"):
        decided(pod=replace(POD, volumes=(forged,)), claim=replace(CLAIM, name="forged"))


def test_a_namesake_of_the_claim_that_was_deleted_is_no_right() -> None:
    with pytest.raises(Refused, match="is gone"):
        decided(claim=replace(CLAIM, uid="another"))
    with pytest.raises(Refused, match="is gone"):
        decided(claim=None)


def test_a_claim_that_is_bound_elsewhere_is_refused() -> None:
    with pytest.raises(Refused, match="not bound"):
        decided(claim=replace(CLAIM, volume_name="pvc-2"))


def test_a_volume_reserved_for_a_claim_by_name_alone_is_refused() -> None:
    reserved = pv()
    assert reserved.claim
    with pytest.raises(Refused, match="is gone"):
        decided(volume=replace(reserved, claim=replace(reserved.claim, uid="")))
    with pytest.raises(Refused, match="has no claim"):
        decided(volume=replace(reserved, claim=None))


def test_an_ephemeral_claim_must_have_been_made_for_the_pod() -> None:
    """Else a pod named so that <pod>-<volume> is somebody's claim would get at it."""
    pod = replace(POD, volumes=(replace(MENTION, ephemeral=True),))
    with pytest.raises(Refused, match="not made for pod web"):
        decided(pod=pod)
    assert decided(pod=pod, claim=replace(CLAIM, controller=POD_UID)).pod == pod


@pytest.mark.parametrize(
    "volume",
    [pv(hostnames=("host-2",)), pv(hostnames=("host-1", "host-2")), pv(node_label="node-2", hostnames=())],
)
def test_a_volume_of_another_node_is_refused_with_its_name(volume: PersistentVolume) -> None:
    with pytest.raises(Refused, match=r"lives on node .*-2"):
        decided(volume=volume)
    assert not is_assigned(volume, NODE)


@pytest.mark.parametrize(
    ("volume", "home"),
    [
        (pv(), True),
        (pv(finalizers=()), False),
        (pv(node_label=""), False),
        (pv(hostnames=()), False),
    ],
)
def test_a_volume_is_at_home_only_with_label_affinity_and_finalizer(volume: PersistentVolume, home: bool) -> None:
    assert is_assigned(volume, NODE) is home
    assert other_node(volume, NODE) == ""


@pytest.mark.parametrize(
    ("asks", "mentions", "modes", "is_read_only"),
    [
        (False, (False,), ("ReadWriteOnce",), False),
        (True, (False,), ("ReadWriteOnce",), True),
        (False, (True,), ("ReadWriteOnce",), True),
        (False, (False,), ("ReadOnlyMany",), True),
        (False, (False,), ("ReadWriteOnce", "ReadOnlyMany"), False),
        (False, (True, False), ("ReadWriteOnce",), False),
        (False, (False,), (), False),
    ],
)
def test_whoever_says_read_only_is_obeyed(
    asks: bool, mentions: tuple[bool, ...], modes: tuple[str, ...], is_read_only: bool
) -> None:
    pod = replace(POD, volumes=tuple(replace(MENTION, read_only=mention) for mention in mentions))
    assert decided(asks_read_only=asks, pod=pod, volume=pv(access_modes=modes)).read_only is is_read_only


@pytest.mark.parametrize(("word", "is_read_only"), [("rw", False), ("ro", True), ("", True), ("RW", True)])
def test_only_a_plain_rw_asks_to_write(word: str, is_read_only: bool) -> None:
    assert read_only({"kubernetes.io/readwrite": word}) is is_read_only
    assert read_only({})
