"""The manifest that discovery creates, apart from what the tests on real mounts show."""

import json
from pathlib import Path
from typing import Any

from contract import names
from contract import volume as contract_volume
from contract.volume import finalizer_removal_patch
from daemon.static import volume
from daemon.static.configuration import BLOCK, ClassConfiguration, Configuration
from daemon.static.volume import DiscoveredVolume
from kube.records import Node, StorageClass
from tests.unit.daemon.static.gopv import go_pv

Json = dict[str, Any]

NODE = Node("node-1", "node-uid", "host-1", {"zone": "a", "rack": "7", "secret": "x"}, deleting=False)
FAST = StorageClass("fast", "none", {}, "Delete", (), "WaitForFirstConsumer", ())
OFFER = DiscoveredVolume("local-pv-1", "/mnt/disks/disk1", "Filesystem", 10 << 30)
PROVISIONER = "local-volume-provisioner-node-1-node-uid"


def class_config(**more: Any) -> ClassConfiguration:
    return ClassConfiguration(name="fast", host_dir="/mnt/disks", mount_dir=Path("/mnt/disks"), **more)


def manifest(chosen: ClassConfiguration, discovered: DiscoveredVolume = OFFER, **configuration: Any) -> Json:
    return volume.manifest(discovered, Configuration(**configuration), chosen, FAST, NODE, PROVISIONER)


def test_it_is_the_go_provisioners_and_our_label_and_finalizer() -> None:
    body = manifest(class_config(), node_labels=("zone",))
    expected = go_pv(
        "local-pv-1",
        PROVISIONER,
        labels={"zone": "a", names.NODE_LABEL: "node-1", names.OTHER_HOSTNAME_LABEL: "host-1"},
    )
    assert body["metadata"].pop("finalizers") == [names.STATIC_FINALIZER]
    assert body == expected


LABEL = {names.NODE_LABEL: "node-1"}


def test_adoption_adds_label_and_finalizer_and_keeps_others() -> None:
    body = go_pv("local-pv-1", PROVISIONER, labels={"zone": "a"})
    body["metadata"] |= {"uid": "u", "resourceVersion": "7", "finalizers": ["kubernetes.io/pv-protection"]}
    patch = volume.adoption_patch(body, LABEL)
    finalizers = ["kubernetes.io/pv-protection", names.STATIC_FINALIZER]
    assert patch == {"metadata": {"uid": "u", "resourceVersion": "7", "labels": LABEL, "finalizers": finalizers}}
    body["metadata"] |= {"labels": {**LABEL, "zone": "a"}, "finalizers": finalizers}
    assert volume.adoption_patch(body, LABEL) is None
    patch = finalizer_removal_patch(contract_volume.read_any(body), names.STATIC_FINALIZER)
    assert patch["metadata"]["finalizers"] == ["kubernetes.io/pv-protection"]


def test_one_that_is_being_deleted_can_get_no_finalizer() -> None:
    body = go_pv("local-pv-1", PROVISIONER)
    body["metadata"] |= {"uid": "u", "resourceVersion": "7", "deletionTimestamp": "now"}
    assert volume.adoption_patch(body, LABEL) == {"metadata": {"uid": "u", "resourceVersion": "7", "labels": LABEL}}


def test_labels_of_the_node_of_all_classes_and_of_the_class() -> None:
    chosen = class_config(labels={"tier": "gold", "rack": "mine"})
    body = manifest(chosen, node_labels=("zone", "rack", "absent"), labels={"zone": "b", "tier": "any"})
    assert body["metadata"]["labels"] == {
        "zone": "b",
        "rack": "mine",
        "tier": "gold",
        names.NODE_LABEL: "node-1",
        names.OTHER_HOSTNAME_LABEL: "host-1",
    }


def test_affinity_in_the_alpha_annotation() -> None:
    body = manifest(class_config(), use_alpha_api=True)
    expected = go_pv("local-pv-1", PROVISIONER, alpha=True)
    assert body["metadata"]["annotations"] == expected["metadata"]["annotations"]
    assert "nodeAffinity" not in body["spec"]


def test_a_selector_is_beside_the_node_as_an_alternative() -> None:
    term = {"matchExpressions": [{"key": "rack", "operator": "In", "values": ["7"]}]}
    body = manifest(class_config(selector=(term,)))
    hostname, other = body["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
    assert hostname == {"matchExpressions": [{"key": names.HOSTNAME_LABEL, "operator": "In", "values": ["host-1"]}]}
    assert other == term


def test_a_block_volume_says_so() -> None:
    body = manifest(
        class_config(volume_mode=BLOCK, access_mode="ReadWriteOncePod"),
        DiscoveredVolume("pv", "/mnt/disks/a", BLOCK, 12345),
    )
    assert body["spec"]["volumeMode"] == "Block"
    assert body["spec"]["capacity"] == {"storage": "12345"}
    assert body["spec"]["accessModes"] == ["ReadWriteOncePod"]


def test_what_is_read_back() -> None:
    body = manifest(class_config())
    body["metadata"] |= {"uid": "pv-uid", "resourceVersion": "1"}
    body["status"] = {"phase": "Released"}
    read = volume.read(json.loads(json.dumps(body)))
    assert read == volume.StaticVolume(
        name="local-pv-1",
        uid="pv-uid",
        phase="Released",
        path="/mnt/disks/disk1",
        mode="Filesystem",
        storage_class="fast",
        reclaim_policy="Delete",
        capacity=10 << 30,
        deleting=False,
        provisioned_by=PROVISIONER,
        hostnames=("host-1",),
        has_finalizer=True,
    )


def test_a_volume_that_is_not_local_is_none_of_ours() -> None:
    body = go_pv("pv", PROVISIONER)
    del body["spec"]["local"]
    body["metadata"] |= {"uid": "pv-uid", "resourceVersion": "1"}
    assert volume.read(body) is None
