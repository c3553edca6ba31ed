"""Which claims may begin as a copy of another one, and where the copy goes."""

from dataclasses import replace
from typing import Any

import pytest

from contract import names
from contract import snapshot as contract_snapshot
from contract import volume as contract_volume
from contract.parameters import NodeSecrets, SecretReference, VolumeParameters
from contract.volume import ClaimReference, Original, PersistentVolume
from kube.records import IMMEDIATE, Claim
from provisioner import clonesource
from provisioner.decision import (
    AvailableCapacity,
    Create,
    Decision,
    Ignore,
    NodeCapacity,
    Refuse,
    clone_obstacle,
    decide,
)
from provisioner.volumecreation import persistent_volume
from tests.unit.provisioner.objects import GIB, claim, published, storage_class

OF_SOURCE = {"dataSource": {"kind": "PersistentVolumeClaim", "name": "source"}}
SOURCE_CLAIM = replace(claim("source"), volume_name="pvc-source", phase="Bound")
SOURCE_VOLUME = PersistentVolume(
    name="pvc-source",
    uid="uid-of-pvc-source",
    resource_version="1",
    size=GIB,
    options={},
    filesystem="ext4",
    reclaim_policy="Delete",
    storage_class="elastic-local",
    provisioned_by=names.PROVISIONER,
    claim=ClaimReference("default", "source", "uid-of-source"),
    node_label="n2",
    hostnames=("host-n2",),
    pool="vg",
    phase="Bound",
    finalizers=(names.FINALIZER,),
    deleting=False,
    made=True,
)
ROOM = AvailableCapacity([NodeCapacity(published("n1"), 10 * GIB), NodeCapacity(published("n2"), 5 * GIB)])


Found = tuple[Claim | None, PersistentVolume | None]
"""A claim, and its volume."""
SOURCE: Found = (SOURCE_CLAIM, SOURCE_VOLUME)


def decided(
    source: Found = SOURCE,
    *,
    fields: dict[str, Any] | None = None,
    available: AvailableCapacity = ROOM,
    **claimed: Any,
) -> Decision:
    asked = claim(**{**OF_SOURCE, **claimed})
    return decide(
        asked, storage_class(**(fields or {})), available, waited=0, source=clonesource.of_claim(asked, *source)
    )


def of_claim(**changes: Any) -> Found:
    return replace(SOURCE_CLAIM, **changes), SOURCE_VOLUME


def of_volume(**changes: Any) -> Found:
    return SOURCE_CLAIM, replace(SOURCE_VOLUME, **changes)


def test_a_source_whose_claim_requests_more_is_as_large_as_it_was_granted() -> None:
    """And one that is granted more in this moment will be that large before it is copied."""
    expanding = of_volume(size=50 * GIB, granted=GIB, actual=GIB)
    assert placed(decided(expanding, size="1Gi")).size == GIB
    refused = decided(of_volume(size=GIB, granted=2 * GIB, actual=GIB), size="1Gi")
    assert isinstance(refused, Refuse)
    assert "source, which it is to be a copy of, has 2Gi: ask for at least that" in refused.why


ENCRYPTED = {
    "volumeSource": "csi",
    "encryption": "luks2",
    "csi.storage.k8s.io/node-stage-secret-name": "key",
    "csi.storage.k8s.io/node-stage-secret-namespace": "storage",
}
LOCKED = of_volume(source="csi", options={"encryption": "luks2"}, secret=SecretReference("storage", "key"))


def test_a_copy_of_an_encrypted_volume_is_opened_as_its_source_is() -> None:
    copy = placed(decided(LOCKED, fields={"parameters": ENCRYPTED}))
    assert copy.secrets == NodeSecrets(SecretReference("storage", "key"))
    for source, fields, words in (
        (LOCKED, {}, "use a class with encryption luks2 and Secret storage/key"),
        (SOURCE, {"parameters": ENCRYPTED}, "is not encrypted, and a copy of it can't be"),
        (
            LOCKED,
            {"parameters": {**ENCRYPTED, "csi.storage.k8s.io/node-stage-secret-name": "other"}},
            "is opened by Secret storage/key, and so is its copy, but the class names storage/other",
        ),
    ):
        refused = decided(source, fields=fields)
        assert isinstance(refused, Refuse)
        assert words in refused.why


@pytest.mark.parametrize(
    ("annotation", "encryption", "secret"),
    [
        (None, "", None),
        ("luks2 storage/key", "luks2", SecretReference("storage", "key")),
        ("luks2", "luks2", None),
    ],
)
def test_a_snapshot_says_how_it_is_encrypted_and_what_opens_it(
    annotation: str | None, encryption: str, secret: SecretReference | None
) -> None:
    """Its source, and the PersistentVolume of that, may be gone when it is restored."""
    metadata = {"name": "snapcontent-1", "uid": "u", "resourceVersion": "1"}
    body = {"metadata": metadata, "spec": {"driver": names.CSI_DRIVER, "source": {"volumeHandle": "pvc-source"}}}
    content = contract_snapshot.read(body)
    assert content
    patch = contract_snapshot.being_created_patch(content, "vg", "ext4", encryption, secret)
    assert patch["metadata"]["annotations"].get(names.ENCRYPTION_ANNOTATION) == annotation
    again = contract_snapshot.read({**body, "metadata": {**metadata, **patch["metadata"]}})
    source = clonesource.of_content(again)
    assert (source.encryption, source.secret) == (encryption, secret)
    layout = VolumeParameters(encryption="luks2")
    refusal = clone_obstacle(claim(), layout, source, SecretReference("storage", "another"))
    assert bool(refusal) == (annotation != "luks2"), (
        "of one whose Secret nobody knows, staging says whether it opens it"
    )


def placed(decision: Decision) -> Create:
    assert isinstance(decision, Create), decision
    assert decision.target
    return decision


@pytest.mark.parametrize("node", ["n1", "n2"])
def test_a_copy_goes_to_its_sources_node_whatever_the_scheduler_chose(node: str) -> None:
    decision = placed(decided(node=node))
    assert decision.target == published("n2")
    assert decision.original == Original("pvc-source", "uid-of-pvc-source")


def test_a_copy_of_an_immediate_class_has_a_node_from_the_start() -> None:
    assert placed(decided(node="", fields={"volumeBindingMode": IMMEDIATE})).target == published("n2")


def test_a_copy_waits_for_its_first_pod_if_its_class_says_so() -> None:
    assert decided(node="") == Ignore()


def test_dataSourceRef_counts_as_well() -> None:  # noqa: N802
    asked = claim(dataSourceRef={"kind": "PersistentVolumeClaim", "name": "source", "namespace": "default"})
    placed(decide(asked, storage_class(), ROOM, waited=0, source=clonesource.of_claim(asked, *SOURCE)))


def test_the_filesystem_is_the_sources_unless_the_class_has_one() -> None:
    xfs = of_volume(filesystem="xfs")
    assert placed(decided(xfs)).parameters.filesystem == "xfs"
    placed(decided(xfs, fields={"parameters": {"fsType": "xfs"}}))
    placed(decided(xfs, fields={"parameters": {"csi.storage.k8s.io/fstype": "xfs"}}))
    decision = decided(xfs, fields={"parameters": {"fsType": "ext4"}})
    assert isinstance(decision, Refuse)
    assert "has xfs, and a copy can't have ext4: use a class" in decision.why


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ((None, None), "no claim source (any more) to copy: create it"),
        (of_claim(deleting=True), "no claim source (any more) to copy"),
        (of_claim(volume_name=""), "has no volume yet: start the pod"),
        ((SOURCE_CLAIM, None), "has no volume of elastic-local"),
        (of_claim(uid="of another day"), "has no volume of elastic-local"),
        (of_volume(filesystem="raw"), "has volumeMode Block"),
        (of_volume(node_label=""), "is not made yet"),
        (of_volume(made=False), "is not made yet"),
        (of_volume(deleting=True), "is being deleted"),
        (of_volume(filesystem="btrfs"), "has btrfs, of which the kernel can't have two copies"),
        (of_volume(size=GIB + 1), "asks for 1Gi, and source, which it is to be a copy of, has"),
        (of_volume(node_label="n9"), "node n9, where source lives, publishes no capacity for this class"),
    ],
)
def test_what_stands_against_a_copy_is_said_before_there_is_a_volume(source: Found, words: str) -> None:
    decision = decided(source, fields={"parameters": {"fsType": "btrfs"}} if "btrfs" in words else None)
    assert isinstance(decision, Refuse), decision
    assert words in decision.why


def test_a_claim_of_another_namespace_is_not_copied() -> None:
    reference = {"kind": "PersistentVolumeClaim", "name": "source", "namespace": "others"}
    decision = decided(dataSource=None, dataSourceRef=reference)
    assert isinstance(decision, Refuse)
    assert "names a claim of namespace others" in decision.why


def test_a_full_node_refuses_the_copy_with_its_figures() -> None:
    decision = decided(size="6Gi")
    assert isinstance(decision, Refuse)
    assert decision.why == (
        "the claim asks for 6Gi, node n2, where source lives, has 5Gi left in pool vg: free up space there"
    )


def test_the_node_reads_what_to_copy_in_the_options_of_the_volume() -> None:
    asked = claim(dataSource=OF_SOURCE["dataSource"])
    body = persistent_volume(asked, storage_class(), placed(decided()))
    body["metadata"] |= {"uid": "uid", "resourceVersion": "1"}
    read = contract_volume.read(body)
    assert read
    assert read.original == Original("pvc-source", "uid-of-pvc-source")
    assert read.hostnames == ("host-n2",)
    assert read.parameters() == placed(decided()).parameters
