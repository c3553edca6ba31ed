from dataclasses import replace
from typing import Any

import pytest

from contract import capacity, names, parameters, volume
from contract.parameters import NodeSecrets, SecretReference, VolumeParameters
from kube.records import IMMEDIATE, VolumeAttributesClass
from provisioner.decision import (
    PUBLISH_TIMEOUT,
    AvailableCapacity,
    ClassMissing,
    Create,
    Decision,
    Ignore,
    NodeCapacity,
    Refuse,
    Reschedule,
    Wait,
    decide,
)
from provisioner.volumecreation import persistent_volume
from tests.unit.provisioner.objects import EXTENT, GIB, MIB, claim, published, storage_class


def available(*nodes: tuple[str, int], unplaced: int = 0) -> AvailableCapacity:
    return AvailableCapacity([NodeCapacity(published(node), free) for node, free in nodes], unplaced)


ROOM = available(("n1", 10 * GIB), ("n2", 5 * GIB))


def decided(
    *, fields: dict[str, Any] | None = None, available: AvailableCapacity = ROOM, waited: float = 0, **claimed: Any
) -> Decision:
    return decide(claim(**claimed), storage_class(**(fields or {})), available, waited=waited)


def why(decision: Decision) -> str:
    assert isinstance(decision, Refuse | Reschedule), decision
    return decision.why


def test_a_claim_with_a_chosen_node_gets_exactly_its_size_there() -> None:
    assert decided(size="1500Mi", node="n2") == Create(1500 * MIB, VolumeParameters(), published("n2"))


@pytest.mark.parametrize("name", names.PROVISIONERS)
def test_both_provisioner_names_are_served(name: str) -> None:
    asked = replace(claim(), provisioner=name)
    assert isinstance(decide(asked, storage_class(provisioner=name), ROOM, waited=0), Create)


@pytest.mark.parametrize(
    "change",
    [
        {"volume_name": "pv"},
        {"provisioner": "ebs.csi.aws.com"},
        {"provisioner": ""},
        {"deleting": True},
        {"selected_node": ""},
    ],
)
def test_claims_that_are_not_ours_or_not_yet_are_left_alone(change: dict[str, Any]) -> None:
    asked = replace(claim(volumeMode="Block"), **change)
    assert decide(asked, storage_class(parameters={"colour": "red"}), ROOM, waited=0) == Ignore()


def test_a_class_that_names_another_provisioner_by_now_is_left_alone() -> None:
    assert decided(fields={"provisioner": "somebody.else"}) == Ignore()


def test_a_missing_class_is_said_before_anything_else() -> None:
    assert "no StorageClass 'elastic-local'" in why(decide(claim(node=""), None, ROOM, waited=0))
    assert "set storageClassName" in why(decide(claim(storageClassName=""), None, ROOM, waited=0))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"accessModes": ["ReadWriteOnce", "ReadWriteMany"]}, ["ReadWriteMany", "Use ReadWriteOnce, with which all"]),
        ({"accessModes": ["ReadWriteOncePod"]}, ["ReadWriteOncePod", "volumeSource csi, or ReadWriteOnce"]),
        ({"volumeMode": "Block"}, ["Block", "volumeSource csi, or volumeMode Filesystem"]),
        ({"dataSource": {"kind": "VolumeSnapshot", "name": "s"}}, ["VolumeSnapshot", "remove dataSource"]),
        (
            {"dataSourceRef": {"apiGroup": "example.com", "kind": "PersistentVolumeClaim", "name": "c"}},
            ["PersistentVolumeClaim.example.com", "remove dataSource"],
        ),
        ({"selector": {"matchLabels": {"a": "b"}}}, ["selector", "remove"]),
        ({"volumeAttributesClassName": "fast"}, ["volumeAttributesClassName", "volumeSource csi"]),
        ({"size": "512Ki"}, ["512Ki", "ext4 needs at least 1Mi"]),
        ({"size": "0"}, ["0 bytes", "ext4 needs at least 1Mi"]),
        ({"size": "-5Gi"}, ["-5Gi", "ext4 needs at least 1Mi"]),
    ],
)
def test_what_can_not_be_served_is_refused_in_words_that_say_what_to_do(spec: dict[str, Any], words: list[str]) -> None:
    message = why(decided(**spec))
    assert all(word in message for word in words), message


CSI_CLASS = {"parameters": {"volumeSource": "csi"}}


ENCRYPTED = {
    "volumeSource": "csi",
    "encryption": "luks2",
    "csi.storage.k8s.io/node-stage-secret-name": "key",
    "csi.storage.k8s.io/node-stage-secret-namespace": "storage",
}


LIMITED = {"parameters": {"volumeSource": "csi", "readIOPS": "500", "writeIOPS": "600"}}
FAST = VolumeAttributesClass("fast", names.CSI_DRIVER, {"readIOPS": "2k", "readBandwidth": "1Mi", "writeIOPS": "max"})


def with_class(attributes: VolumeAttributesClass | ClassMissing, fields: dict[str, Any] = LIMITED) -> Decision:
    asked = claim(volumeAttributesClassName="fast")
    return decide(asked, storage_class(**fields), ROOM, waited=0, attributes=attributes)


def test_the_limits_of_the_attributes_class_are_over_those_of_the_storage_class() -> None:
    create = with_class(FAST)
    assert isinstance(create, Create)
    assert create.parameters == VolumeParameters(read_bandwidth=MIB, read_iops=2000)
    body = persistent_volume(claim(), storage_class(**LIMITED), create)
    assert body["spec"]["volumeAttributesClassName"] == "fast"
    attributes = body["spec"]["csi"]["volumeAttributes"]
    assert attributes == {"size": str(GIB), "readBandwidth": str(MIB), "readIOPS": "2000"}
    plain = persistent_volume(claim(), storage_class(**LIMITED), replace(create, attributes_class=""))
    assert "volumeAttributesClassName" not in plain["spec"]


def test_a_claim_waits_for_its_attributes_class() -> None:
    assert why(with_class(ClassMissing("there is none"))) == "there is none"
    assert isinstance(with_class(ClassMissing("", unread=True)), Wait)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parameters": {"iops": "5"}}, ["'iops'", "readBandwidth writeBandwidth readIOPS writeIOPS"]),
        ({"parameters": {"fsType": "xfs"}}, ["'fsType'", "readBandwidth writeBandwidth readIOPS writeIOPS"]),
        ({"parameters": {"readIOPS": "1"}}, ["'readIOPS' is '1'", "from 10 to 100M"]),
        ({"driver": "ebs.csi.aws.com"}, ["'driverName' is 'ebs.csi.aws.com'", names.CSI_DRIVER]),
    ],
)
def test_a_wrong_attributes_class_is_refused(change: dict[str, Any], words: list[str]) -> None:
    message = why(with_class(replace(FAST, **change)))
    assert all(word in message for word in ("VolumeAttributesClass fast", *words)), message


def test_an_encrypted_volume_names_the_secret_that_opens_it() -> None:
    grows_with = {
        "csi.storage.k8s.io/node-expand-secret-name": "grow-key",
        "csi.storage.k8s.io/node-expand-secret-namespace": "other",
    }
    create = decided(fields={"parameters": {**ENCRYPTED, **grows_with}})
    layout = VolumeParameters(encryption="luks2")
    secrets = NodeSecrets(SecretReference("storage", "key"), SecretReference("other", "grow-key"))
    assert create == Create(GIB, layout, published("n1"), source="csi", secrets=secrets)
    assert isinstance(create, Create)
    body = persistent_volume(claim(), storage_class(parameters=ENCRYPTED), create)
    assert body["spec"]["csi"]["nodeStageSecretRef"] == {"namespace": "storage", "name": "key"}
    assert body["spec"]["csi"]["nodeExpandSecretRef"] == {"namespace": "other", "name": "grow-key"}
    alone = persistent_volume(claim(), storage_class(), replace(create, secrets=NodeSecrets(secrets.stage)))
    assert "nodeExpandSecretRef" not in alone["spec"]["csi"]
    assert body["spec"]["csi"]["volumeAttributes"] == {"size": str(GIB), "encryption": "luks2"}
    read = volume.read({**body, "metadata": {**body["metadata"], "uid": "u", "resourceVersion": "1"}})
    assert read
    assert read.secret == SecretReference("storage", "key")
    assert read.parameters() == layout


def test_an_encrypted_volume_needs_room_for_its_header() -> None:
    exactly = available(("n1", GIB))
    assert isinstance(decided(available=exactly), Create)
    assert isinstance(decided(available=exactly, fields={"parameters": ENCRYPTED}), Reschedule)
    assert isinstance(decided(available=available(("n1", GIB + 16 * MIB)), fields={"parameters": ENCRYPTED}), Create)


def test_an_encrypted_volume_goes_where_it_can_be() -> None:
    unable = AvailableCapacity([NodeCapacity(replace(published("n1"), encryption=False), 10 * GIB)])
    assert "encrypted volumes" in why(decided(available=unable, fields={"parameters": ENCRYPTED}))
    assert isinstance(decided(available=unable), Create)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"volumeSource": "flexVolume"}, "volumeSource csi"),
        ({"encryption": "aes"}, "allowed is luks2"),
        ({"csi.storage.k8s.io/node-stage-secret-name": ""}, "needs the name of a Secret"),
    ],
)
def test_half_of_what_encryption_takes_is_said_at_the_claim(change: dict[str, str], words: str) -> None:
    assert words in why(decided(fields={"parameters": {**ENCRYPTED, **change}}))


def test_a_class_chooses_the_driver_by_which_its_volumes_are_mounted() -> None:
    assert decided(fields=CSI_CLASS) == Create(GIB, VolumeParameters(), published("n1"), source="csi")
    assert decided(fields={"parameters": {"volumeSource": "flexVolume"}}) == decided()
    assert isinstance(decided(), Create)
    immediate = decided(node="", fields={**CSI_CLASS, **IMMEDIATELY})
    assert immediate == Create(GIB, VolumeParameters(), None, source="csi")


@pytest.mark.parametrize("modes", [["ReadWriteOncePod"], ["ReadWriteOnce", "ReadOnlyMany"]])
def test_a_csi_class_serves_every_mode_of_one_node(modes: list[str]) -> None:
    assert isinstance(decided(accessModes=modes, fields=CSI_CLASS), Create)
    assert "ReadWriteMany" in why(decided(accessModes=[*modes, "ReadWriteMany"], fields=CSI_CLASS))


def test_a_csi_class_has_the_name_that_the_scheduler_looks_for() -> None:
    asked = replace(claim(), provisioner=names.PROVISIONER_OF_ELASTIC)
    of_elastic = storage_class(provisioner=names.PROVISIONER_OF_ELASTIC, **CSI_CLASS)
    message = why(decide(asked, of_elastic, ROOM, waited=0))
    assert f"has the provisioner {names.PROVISIONER}" in message


RAW = VolumeParameters(filesystem="raw")
FOLDERS = AvailableCapacity([NodeCapacity(replace(published("n1"), block=False), 10 * GIB), *ROOM.nodes[1:]])


def test_a_block_volume_has_no_filesystem_whatever_its_class_says() -> None:
    fields = {"parameters": {"volumeSource": "csi", "fsType": "xfs", "mkfsOptions": "-K"}, "mountOptions": ["noatime"]}
    decision = decided(size="1Mi", volumeMode="Block", fields=fields)
    assert decision == Create(MIB, RAW, published("n1"), source="csi")
    assert "a device needs at least 1 bytes" in why(decided(size="0", volumeMode="Block", fields=fields))


def test_a_block_volume_goes_to_no_node_that_keeps_folders() -> None:
    decision = decided(volumeMode="Block", fields=CSI_CLASS, available=FOLDERS)
    assert isinstance(decision, Reschedule)
    assert (
        "node n1 can't have volumes of this class with volumeMode Block or with I/O limits (BINDMOUNT" in decision.why
    )
    limited = {"parameters": {"writeBandwidth": "10Mi"}}
    assert decided(fields=limited, available=FOLDERS) == decision
    assert isinstance(decided(fields=CSI_CLASS, available=FOLDERS), Create)


def test_an_immediate_block_volume_counts_on_nodes_that_can_have_it_only() -> None:
    fields = {**CSI_CLASS, **IMMEDIATELY}
    assert isinstance(decided(node="", size="5Gi", volumeMode="Block", fields=fields, available=FOLDERS), Create)
    message = why(decided(node="", size="6Gi", volumeMode="Block", fields=fields, available=FOLDERS))
    assert "the most that a node has is 5Gi" in message
    nowhere = AvailableCapacity(FOLDERS.nodes[:1])
    message = why(decided(node="", volumeMode="Block", fields=fields, available=nowhere))
    assert "each node can't have volumes of this class" in message


def test_the_smallest_size_depends_on_the_filesystem() -> None:
    fields = {"parameters": {"fsType": "xfs"}}
    assert "xfs needs at least 300Mi" in why(decided(size="299Mi", fields=fields))
    assert isinstance(decided(size="300Mi", fields=fields), Create)


def test_a_wrong_parameter_is_named_with_what_is_allowed() -> None:
    message = why(decided(fields={"parameters": {"fsType": "zfs"}}))
    assert "'fsType' is 'zfs'" in message
    assert "ext4 xfs btrfs" in message
    assert "'mountOptions' is 'suid'" in why(decided(fields={"mountOptions": ["noatime,suid"]}))


def test_a_full_node_sends_the_claim_back_with_the_figures() -> None:
    decision = decided(size="6Gi", node="n2")
    assert isinstance(decision, Reschedule)
    assert decision.why == "the claim asks for 6Gi, node n2 has 5Gi left in pool vg: another node is asked for"


def test_the_last_extent_of_a_node_can_be_had() -> None:
    full = available(("n1", EXTENT))
    assert isinstance(decided(size="4Mi", available=full), Create)
    assert isinstance(decided(size=str(EXTENT + 1), available=full), Reschedule)


def test_a_mirror_needs_twice_the_room_and_the_message_says_so() -> None:
    message = why(decided(size="6Gi", fields={"parameters": {"raid": "raid1"}}))
    assert "asks for 6Gi, which takes 12Gi (raid1)" in message


def test_an_overdrawn_node_is_shown_as_having_nothing() -> None:
    assert "has 0 bytes left" in why(decided(available=available(("n1", -GIB))))


def test_a_claim_is_rescheduled_when_its_node_publishes_nothing_for_a_while() -> None:
    assert decided(node="n9") == Wait(PUBLISH_TIMEOUT)
    assert decided(node="n9", waited=PUBLISH_TIMEOUT - 1) == Wait(1)
    assert "node n9 publishes no capacity" in why(decided(node="n9", waited=PUBLISH_TIMEOUT))


def test_a_long_node_name_is_found_by_its_label() -> None:
    name = "n" * 70
    decision = decided(node=name, available=available((names.node_label_value(name), GIB)))
    assert isinstance(decision, Create)


IMMEDIATELY = {"volumeBindingMode": IMMEDIATE}


def test_an_immediate_claim_gets_a_volume_without_a_node() -> None:
    assert decided(node="", fields=IMMEDIATELY) == Create(GIB, VolumeParameters(), None)


def test_an_immediate_claim_too_big_for_every_node_reads_the_largest_space() -> None:
    message = why(decided(size="11Gi", node="", fields=IMMEDIATELY))
    assert "the most that a node has is 10Gi left in pool vg, on n1" in message


def test_immediate_claims_together_get_no_more_than_all_nodes_have() -> None:
    together = available(("n1", 2 * GIB), ("n2", 2 * GIB), unplaced=3 * GIB)
    assert isinstance(decided(size="1Gi", node="", fields=IMMEDIATELY, available=together), Create)
    message = why(decided(size="2Gi", node="", fields=IMMEDIATELY, available=together))
    assert "of the 4Gi that all nodes have left, 3Gi are reserved" in message


def test_an_immediate_claim_without_any_daemon_gets_an_event() -> None:
    assert "daemon ready on any" in why(decided(node="", fields=IMMEDIATELY, available=AvailableCapacity()))


def test_topologies_are_the_schedulers_business_and_impossible_without_it() -> None:
    topologies = [{"matchLabelExpressions": [{"key": "zone", "values": ["a"]}]}]
    assert isinstance(decided(fields={"allowedTopologies": topologies}), Create)
    message = why(decided(fields={"allowedTopologies": topologies, **IMMEDIATELY}))
    assert "WaitForFirstConsumer" in message


def test_class_parameters_and_mount_options_reach_the_volume() -> None:
    fields = {"parameters": {"fsType": "xfs", "stripes": "2"}, "mountOptions": ["noatime"]}
    decision = decided(fields=fields)
    assert isinstance(decision, Create)
    assert decision.parameters == parameters.parse(fields["parameters"], fields["mountOptions"])  # type: ignore[arg-type]
    assert capacity.footprint(decision.size, decision.parameters, EXTENT) == GIB
