"""The PersistentVolume as both programs read it."""

from typing import Any

import pytest

from contract import names, volume
from contract.parameters import ParameterError
from contract.volume import ClaimReference, NodeAssignment, admitted_hostnames

Json = dict[str, Any]


def manifest(**spec: Any) -> Json:
    return {
        "metadata": {"name": "pvc-1", "uid": "u", "resourceVersion": "7"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "flexVolume": {"driver": names.DRIVER, "fsType": "xfs", "options": {"size": "1073741824"}},
            **spec,
        },
    }


def read(body: Json) -> volume.PersistentVolume:
    record = volume.read(body)
    assert record is not None
    return record


def test_a_volume_without_a_node() -> None:
    record = read(manifest())
    assert (record.name, record.size, record.filesystem) == ("pvc-1", 2**30, "xfs")
    assert (record.phase, record.reclaim_policy) == ("Pending", "Retain")
    assert (record.claim, record.pinned, record.deleting) == (None, False, False)


@pytest.mark.parametrize(
    ("options", "annotations", "target_size", "charged_size"),
    [
        ({"size": "100"}, {}, 100, 2**30),
        ({"size": "100"}, {"granted": "100"}, 100, 100),
        ({"size": "100"}, {"granted": "200", "size": "150"}, 200, 200),
        ({"size": "100"}, {"granted": "100", "size": "150"}, 100, 150),
        ({"size": "100"}, {"granted": "60"}, 100, 100),
        ({}, {"granted": "60"}, 60, 60),
        ({}, {}, 2**30, 2**30),
        ({"size": str(2**31)}, {}, 2**30, 2**30),
        ({"size": "lots"}, {"granted": "-1", "size": "1e9"}, 2**30, 2**30),
        ({"size": "9" * 999}, {"granted": "9" * 999, "size": "\u0663"}, 2**30, 2**30),
    ],
)
def test_its_target_size_and_what_it_counts_with(
    options: dict[str, str], annotations: dict[str, str], target_size: int, charged_size: int
) -> None:
    body = manifest(flexVolume={"driver": names.DRIVER, "options": options})
    keys = {"granted": names.GRANTED_ANNOTATION, "size": names.SIZE_ANNOTATION}
    body["metadata"]["annotations"] = {keys[key]: value for key, value in annotations.items()}
    record = read(body)
    assert (record.target_size, record.charged_size) == (target_size, charged_size)


@pytest.mark.parametrize(
    ("text", "read_iops", "write_iops"),
    [
        ("readBandwidth=max writeBandwidth=max readIOPS=2000 writeIOPS=max", 2000, 0),
        ("readIOPS=max", 0, 600),
        ("", 500, 600),
        ("fsType=xfs", 500, 600),
        ("readIOPS=1", 500, 600),
        (f"readIOPS=2000{' ' * 900_000}", 500, 600),
    ],
)
def test_limits_that_were_changed_count_and_what_can_not_be_read_does_not(
    text: str, read_iops: int, write_iops: int
) -> None:
    """Least of all for what the volume takes of its pool."""
    options = {"size": "5", "raid": "raid1", "thin": "false", "readIOPS": "500", "writeIOPS": "600"}
    body = manifest(flexVolume={"driver": names.DRIVER, "options": options})
    body["metadata"]["annotations"] = {names.IO_LIMITS_ANNOTATION: text}
    record = read(body)
    assert len(record.io_limits) < 300
    of_volume = record.parameters()
    assert (of_volume.raid, of_volume.read_iops, of_volume.write_iops) == ("raid1", read_iops, write_iops)


def test_a_volume_in_use() -> None:
    body = manifest(
        claimRef={"namespace": "shop", "name": "data", "uid": "c"},
        persistentVolumeReclaimPolicy="Delete",
        accessModes=["ReadWriteOnce"],
    )
    body["status"] = {"phase": "Bound"}
    record = read(body)
    assert record.claim == ClaimReference("shop", "data", "c")
    assert str(record.claim) == "shop/data"
    assert (record.phase, record.reclaim_policy, record.access_modes) == ("Bound", "Delete", ("ReadWriteOnce",))


@pytest.mark.parametrize(
    "spec",
    [
        {"flexVolume": {"driver": "example.com/other"}},
        {"flexVolume": None, "local": {"path": "/mnt/disks/a"}},
    ],
)
def test_volumes_of_other_drivers_are_not_ours(spec: Json) -> None:
    assert volume.read(manifest(**spec)) is None


def test_a_pinned_volume_is_read_back() -> None:
    body = manifest()
    assignment = volume.node_assignment_patch(NodeAssignment("ip-10-0-0-1", "node1.example.com", "lvm/vg"))
    body["metadata"] |= assignment["metadata"]
    body["spec"] |= assignment["spec"]
    record = read(body)
    assert record.pinned
    assert record.hostnames == ("node1.example.com",)
    assert (record.node_label, record.pool) == ("ip-10-0-0-1", "lvm/vg")
    assert record.finalizers == (names.FINALIZER,)


@pytest.mark.parametrize(
    ("deleting", "phase", "finalizers", "reclaimable"),
    [
        (True, "Released", [names.FINALIZER], True),
        (True, "Available", [names.FINALIZER], True),
        (True, "Failed", [names.FINALIZER], True),
        (False, "Released", [names.FINALIZER], False),
        (True, "Bound", [names.FINALIZER], False),
        (True, "Released", [names.FINALIZER, volume.PV_PROTECTION], False),
    ],
)
def test_only_what_is_deleted_and_unused_is_reclaimable(
    deleting: bool, phase: str, finalizers: list[str], reclaimable: bool
) -> None:
    body = manifest()
    body["status"] = {"phase": phase}
    body["metadata"]["finalizers"] = finalizers
    if deleting:
        body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert read(body).reclaimable is reclaimable


def test_options_are_checked_again() -> None:
    body = manifest()
    body["spec"]["flexVolume"]["options"]["mkfsOptions"] = "-d name=/dev/sda"
    with pytest.raises(ParameterError, match="mkfsOptions"):
        read(body).parameters()


def test_a_long_node_name_fits_a_label_and_stays_unlike_others() -> None:
    one, two = (names.node_label_value("n" * 80 + end) for end in ("1", "2"))
    assert one != two
    assert max(len(one), len(two)) <= 63
    assert names.node_label_value("n" * 63) == "n" * 63


def term(*hostnames: list[str], **others: str) -> Json:
    expressions: list[Any] = [{"key": names.HOSTNAME_LABEL, "operator": "In", "values": values} for values in hostnames]
    return {
        "matchExpressions": [*expressions, *({"key": k, "operator": "In", "values": [v]} for k, v in others.items())]
    }


def affinity(*terms: Json) -> Json:
    return {"nodeAffinity": {"required": {"nodeSelectorTerms": list(terms)}}}


@pytest.mark.parametrize(
    ("spec", "nodes"),
    [
        ({}, set()),
        ({"nodeAffinity": {}}, set()),
        (affinity(), set()),
        (affinity({}), set()),
        (affinity(term(["a"])), {"a"}),
        (affinity(term(["a", "b"])), {"a", "b"}),
        (affinity(term(["a"], ["b"])), set()),
        (affinity(term(["a", "b"], ["b", "c"])), {"b"}),
        (affinity(term(["a"]), term(["b"])), {"a", "b"}),
        (affinity(term(["a", "b"], ["b"]), term(["c"])), {"b", "c"}),
        (affinity(term(["a"], zone="z")), {"a"}),
        (affinity(term(zone="z")), set()),
        (affinity(term(["a"]), term(zone="z")), set()),
        (affinity(term(zone="z"), term(["a"])), set()),
        (affinity({"matchExpressions": [{"key": names.HOSTNAME_LABEL, "operator": "NotIn", "values": ["a"]}]}), set()),
        (affinity({"matchExpressions": [{"key": names.HOSTNAME_LABEL, "operator": "Exists"}]}), set()),
    ],
)
def test_the_nodes_that_an_affinity_names(spec: Json, nodes: set[str]) -> None:
    assert set(admitted_hostnames((spec.get("nodeAffinity") or {}).get("required"))) == nodes
