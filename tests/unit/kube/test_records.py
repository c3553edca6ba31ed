from typing import Any

import pytest

from contract import names, snapshot
from contract.volume import ObjectReference
from kube.records import (
    SELECTED_NODE,
    PodVolume,
    bounded,
    read_claim,
    read_node,
    read_pod,
    read_storage_class,
    read_volume_snapshot,
)

Json = dict[str, Any]


def claim(annotations: dict[str, str] | None = None, **spec: Any) -> Json:
    metadata: Json = {"namespace": "shop", "name": "data", "uid": "u", "resourceVersion": "7"}
    if annotations:
        metadata["annotations"] = annotations
    return {"metadata": metadata, "spec": {"resources": {"requests": {"storage": "1Gi"}}, **spec}}


def test_a_new_claim() -> None:
    record = read_claim(claim(storageClassName="fast", accessModes=["ReadWriteOnce"]))
    assert (record.key, record.phase, record.storage_class) == ("shop/data", "Pending", "fast")
    assert (record.requested, record.capacity) == (2**30, 0)
    assert (record.access_modes, record.volume_mode) == (("ReadWriteOnce",), "Filesystem")
    assert (record.provisioner, record.selected_node, record.volume_name, record.data_source) == ("", "", "", "")
    assert not record.deleting
    assert record.reference == ObjectReference("PersistentVolumeClaim", "v1", "shop", "data", "u", "7")


def test_a_bound_claim_that_grows_and_goes() -> None:
    body = claim(volumeName="pv", volumeMode="Block", dataSource={"kind": "VolumeSnapshot", "name": "s"})
    body["status"] = {"phase": "Bound", "capacity": {"storage": "512Mi"}}
    body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    record = read_claim(body)
    assert (record.phase, record.volume_name, record.capacity) == ("Bound", "pv", 2**29)
    assert (record.volume_mode, record.data_source, record.deleting) == ("Block", "VolumeSnapshot", True)


@pytest.mark.parametrize(
    ("has", "phase", "holds"),
    [
        ("pv", "Bound", True),
        ("pv", "Pending", True),
        ("pv", "Released", True),
        ("", "Released", True),
        ("", "Available", True),
        ("", "Pending", False),
        ("another", "Released", False),
        ("another", "Available", False),
    ],
)
def test_whether_a_claim_holds_a_volume_that_names_it(has: str, phase: str, holds: bool) -> None:
    assert read_claim(claim(volumeName=has)).holds("pv", phase) is holds


@pytest.mark.parametrize(
    ("metadata", "wanted", "bound_to", "holds"),
    [
        ({}, "content", "u", True),
        ({}, None, "u", True),
        ({}, "content", "", True),
        ({}, None, "", False),
        ({}, "another", "", False),
        ({}, "content", "of-another", False),
        ({"deletionTimestamp": "2026-01-01T00:00:00Z"}, "content", "u", False),
    ],
)
def test_whether_a_volumesnapshot_holds_a_content_that_names_it(
    metadata: Json, wanted: str | None, bound_to: str, holds: bool
) -> None:
    body = {"metadata": {"namespace": "shop", "name": "s", "uid": "u", **metadata}}
    source = {"volumeSnapshotContentName": wanted} if wanted else {"persistentVolumeClaimName": "data"}
    reference = {"namespace": "shop", "name": "s", "uid": bound_to}
    content = snapshot.read(
        {
            "metadata": {"name": "content", "uid": "c", "resourceVersion": "1"},
            "spec": {"driver": names.CSI_DRIVER, "volumeSnapshotRef": reference},
        }
    )
    assert content
    assert read_volume_snapshot({**body, "spec": {"source": source}}).holds(content) is holds


@pytest.mark.parametrize(
    ("annotations", "storage_class", "provisioner"),
    [
        ({}, "spec", ""),
        ({"volume.beta.kubernetes.io/storage-class": "beta"}, "beta", ""),
        ({"volume.beta.kubernetes.io/storage-provisioner": "old"}, "spec", "old"),
        (
            {
                "volume.beta.kubernetes.io/storage-provisioner": "old",
                "volume.kubernetes.io/storage-provisioner": "new",
            },
            "spec",
            "new",
        ),
    ],
)
def test_old_annotations(annotations: dict[str, str], storage_class: str, provisioner: str) -> None:
    record = read_claim(claim(annotations, storageClassName="spec"))
    assert (record.storage_class, record.provisioner) == (storage_class, provisioner)


def test_a_class_with_the_defaults_of_the_api() -> None:
    record = read_storage_class({"metadata": {"name": "c"}, "provisioner": "p"})
    assert (record.reclaim_policy, record.binding_mode) == ("Delete", "Immediate")
    assert (record.parameters, record.mount_options) == ({}, ())
    assert record.admits({})


def test_topologies_are_alternatives_of_joint_conditions() -> None:
    record = read_storage_class(
        {
            "metadata": {"name": "c"},
            "provisioner": "p",
            "allowedTopologies": [
                {
                    "matchLabelExpressions": [
                        {"key": "zone", "values": ["a", "b"]},
                        {"key": "disk", "values": ["ssd"]},
                    ]
                },
                {"matchLabelExpressions": [{"key": "zone", "values": ["c"]}]},
            ],
        }
    )
    assert record.admits({"zone": "b", "disk": "ssd"})
    assert record.admits({"zone": "c"})
    assert not record.admits({"zone": "b", "disk": "hdd"})
    assert not record.admits({})


def test_only_volumes_from_claims_are_read() -> None:
    record = read_pod(
        {
            "metadata": {"namespace": "shop", "name": "db-0", "uid": "u"},
            "spec": {
                "nodeName": "n",
                "volumes": [
                    {"name": "tmp", "emptyDir": {}},
                    {"name": "data", "persistentVolumeClaim": {"claimName": "c", "readOnly": True}},
                    {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {}}},
                    {"name": "pvc-1", "flexVolume": {"driver": "volumes.k8s.elastic.co/elastic-local"}},
                ],
            },
        }
    )
    assert record.volumes == (
        PodVolume("data", "c", read_only=True, ephemeral=False),
        PodVolume("scratch", "db-0-scratch", read_only=False, ephemeral=True),
    )
    assert (record.node_name, record.phase, record.deleting) == ("n", "Pending", False)


def test_a_nodes_hostname_is_its_label_and_nothing_else() -> None:
    metadata = {"name": "ip-10-0-0-1", "uid": "u", "labels": {"kubernetes.io/hostname": "node1.example.com"}}
    assert read_node({"metadata": metadata}).hostname == "node1.example.com"
    assert read_node({"metadata": {"name": "bare", "uid": "u"}}).hostname == ""


@pytest.mark.parametrize("text", ["..", "a/b", "a,b=c", "A", "-a", "a" * 254, "a\n", "a b"])
def test_what_is_no_name_of_a_node_chooses_none(text: str) -> None:
    assert read_claim(claim({SELECTED_NODE: text})).selected_node == ""
    assert read_claim(claim({SELECTED_NODE: "node-1.example.com"})).selected_node == "node-1.example.com"


def test_what_users_write_is_kept_in_its_first_letters_only() -> None:
    """The API server lets all of these through: it checks none of them."""
    long = "x" * 900_000
    annotations = {
        "volume.beta.kubernetes.io/storage-class": long,
        "volume.kubernetes.io/storage-provisioner": long,
        "volume.kubernetes.io/selected-node": long,
    }
    source = {"kind": long, "apiGroup": long, "name": long, "namespace": long}
    body = claim(annotations, volumeName=long, volumeAttributesClassName=long, dataSourceRef=source)
    body["metadata"]["ownerReferences"] = [{"uid": long, "controller": True}]
    assert len(repr(read_claim(body))) < 2000
    pod: Json = {"metadata": {"namespace": "n", "name": "p", "uid": "u"}}
    pod["spec"] = {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": long}}]}
    assert len(repr(read_pod(pod))) < 2000


def test_a_name_that_was_cut_is_no_other_name() -> None:
    assert bounded("x" * 253) == "x" * 253
    assert bounded("x" * 254) == f"{'x' * 64}... (254 characters)"
