"""What a volume takes from its pool, and the object in which a node says what it has."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import capacity, names
from contract.capacity import Capacity
from contract.parameters import VolumeParameters

MIB = 2**20
EXTENT = 4 * MIB
HERE = Capacity(
    node="node-1",
    hostname="node-1.example.com",
    storage_class="elastic-local",
    pool="lvm/elastic-local-vg",
    allocatable=100 * EXTENT,
    available=60 * EXTENT,
    granularity=EXTENT,
)


@pytest.mark.parametrize(
    ("size", "parameters", "extents"),
    [
        (1, VolumeParameters(), 1),
        (EXTENT, VolumeParameters(), 1),
        (EXTENT + 1, VolumeParameters(), 2),
        (10 * EXTENT, VolumeParameters(), 10),
        (10 * EXTENT, VolumeParameters(stripes=4), 12),
        (12 * EXTENT, VolumeParameters(stripes=4), 12),
        (10 * EXTENT, VolumeParameters(raid="raid1"), 22),
    ],
)
def test_footprint(size: int, parameters: VolumeParameters, extents: int) -> None:
    assert capacity.footprint(size, parameters, EXTENT) == extents * EXTENT


@given(st.integers(1, 2**50), st.integers(1, 8), st.sampled_from(["none", "raid1"]), st.integers(0, 26))
def test_a_footprint_holds_the_volume_in_whole_extents(size: int, stripes: int, raid: str, power: int) -> None:
    granularity = 2**power
    taken = capacity.footprint(size, VolumeParameters(stripes=stripes, raid=raid), granularity)
    legs = 2 if raid == "raid1" else 1
    assert taken >= size * legs
    assert taken % (granularity * legs) == 0
    assert taken < (size + granularity * (stripes + 1)) * legs


def test_what_is_published_is_read_back() -> None:
    body = capacity.manifest(HERE, "elastic-local", {"kind": "Node", "name": "node-1"})
    assert capacity.read(body) == HERE
    assert body["metadata"]["ownerReferences"] == [{"kind": "Node", "name": "node-1"}]


def test_what_the_stock_scheduler_reads() -> None:
    body = capacity.manifest(HERE, "elastic-local", None)
    assert (body["apiVersion"], body["kind"]) == ("storage.k8s.io/v1", "CSIStorageCapacity")
    assert body["storageClassName"] == "elastic-local"
    assert body["nodeTopology"] == {"matchLabels": {"kubernetes.io/hostname": "node-1.example.com"}}
    assert body["capacity"] == body["maximumVolumeSize"] == "240Mi"
    assert "ownerReferences" not in body["metadata"]


def test_a_node_that_promised_too_much_has_nothing_left() -> None:
    body = capacity.manifest(replace(HERE, available=-EXTENT), "elastic-local", None)
    assert body["capacity"] == body["maximumVolumeSize"] == "0"


def test_one_object_for_a_node_and_a_class() -> None:
    made = [capacity.object_name(node, kind) for node in ("a", "a-b") for kind in ("c", "b-c")]
    assert len(set(made)) == 4
    assert capacity.object_name("a", "c") == made[0]
    assert all(len(name) <= 253 and name.startswith(names.DRIVER_NAME) for name in made)


@pytest.mark.parametrize("missing", ["labels", "annotations", "nodeTopology"])
def test_objects_of_others_are_not_ours(missing: str) -> None:
    body = capacity.manifest(HERE, "elastic-local", None)
    (body if missing in body else body["metadata"]).pop(missing)
    assert capacity.read(body) is None
