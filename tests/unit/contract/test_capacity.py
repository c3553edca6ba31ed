"""What a volume takes from its pool, and the object in which a node says what it has."""

from collections.abc import Callable
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
        (10 * EXTENT, VolumeParameters(encryption="luks2"), 14),
        (10 * EXTENT, VolumeParameters(encryption="luks2", raid="raid1"), 30),
        (10 * EXTENT, VolumeParameters(encryption="luks2", stripes=4), 16),
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


def test_a_daemon_that_says_nothing_of_encryption_has_none() -> None:
    encrypted = VolumeParameters(encryption="luks2")
    able = replace(HERE, encryption=True)
    body = capacity.manifest(able, "elastic-local", None)
    assert capacity.read(body) == able
    assert able.serves(encrypted)
    assert not able.serves(encrypted.as_block_device()), "it says nothing of block devices"
    del body["metadata"]["annotations"][names.ENCRYPTION_ANNOTATION]
    [old] = filter(None, [capacity.read(body)])
    assert not old.serves(encrypted)
    assert old.serves(VolumeParameters())


def test_a_daemon_that_says_nothing_of_volume_modes_has_no_block_volumes() -> None:
    body = capacity.manifest(replace(HERE, block=True), "elastic-local", None)
    assert body["metadata"]["annotations"][names.VOLUME_MODES_ANNOTATION] == "Filesystem Block"
    assert capacity.read(body) == replace(HERE, block=True)
    del body["metadata"]["annotations"][names.VOLUME_MODES_ANNOTATION]
    assert capacity.read(body) == HERE


def test_what_the_stock_scheduler_reads() -> None:
    body = capacity.manifest(HERE, "elastic-local", None)
    assert (body["apiVersion"], body["kind"]) == ("storage.k8s.io/v1", "CSIStorageCapacity")
    assert body["storageClassName"] == "elastic-local"
    assert body["nodeTopology"] == {"matchLabels": {"kubernetes.io/hostname": "node-1.example.com"}}
    assert body["capacity"] == body["maximumVolumeSize"] == "240Mi"
    assert "ownerReferences" not in body["metadata"]


def test_a_node_with_too_much_reserved_has_nothing_free() -> None:
    body = capacity.manifest(replace(HERE, available=-EXTENT), "elastic-local", None)
    assert body["capacity"] == body["maximumVolumeSize"] == "0"


def test_one_object_for_a_node_and_a_class() -> None:
    label = names.node_label_value("n" * 253)
    made = [capacity.object_name(node, kind) for node in ("a", "a.b", label) for kind in ("c", "b.c")]
    assert len(set(made)) == 6
    assert capacity.object_name("a", "c") == made[0]
    assert all(len(name) <= 253 and name.startswith(names.DRIVER_NAME) for name in made)


@pytest.mark.parametrize("missing", ["labels", "annotations", "nodeTopology"])
def test_objects_of_others_are_not_ours(missing: str) -> None:
    body = capacity.manifest(HERE, "elastic-local", None)
    (body if missing in body else body["metadata"]).pop(missing)
    assert capacity.read(body) is None


def reserved(**pools: int) -> Callable[[str], int]:
    return lambda pool: pools.get(pool, 0)


def test_what_is_free_is_what_is_not_reserved() -> None:
    here = replace(HERE, pool="vg", allocatable=100)
    assert here.free(reserved(vg=30, other=50)) == 70


def test_an_unknown_reservation_may_cost_volumes_of_several_legs_more() -> None:
    here = replace(HERE, pool="vg", allocatable=100, weight=2, reserved=30)
    assert [here.free(reserved(vg=known)) for known in (0, 30, 40, 70)] == [70, 70, 50, -10]


def test_what_is_reserved_in_a_filesystem_counts_for_all_its_pools() -> None:
    here = replace(HERE, pool="a", allocatable=80, shared_with=("b", "c"), shared=100)
    assert here.free(reserved(a=10)) == 70
    assert here.free(reserved(a=10, b=30, c=5, d=90)) == 55


def test_all_that_a_node_says_is_read_back() -> None:
    for here in (
        replace(HERE, weight=2, reserved=30 * EXTENT),
        replace(HERE, shared_with=("folder:b", "loop"), shared=200 * EXTENT),
    ):
        assert capacity.read(capacity.manifest(here, "elastic-local", None)) == here


def test_a_daemon_of_an_earlier_version_is_believed() -> None:
    body = capacity.manifest(HERE, "elastic-local", None)
    for name in (names.LAYOUT_ANNOTATION, names.SHARED_ANNOTATION):
        del body["metadata"]["annotations"][name]
    assert capacity.read(body) == HERE


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (names.ALLOCATABLE_ANNOTATION, "-1"),
        (names.ALLOCATABLE_ANNOTATION, "lots"),
        (names.ALLOCATABLE_ANNOTATION, "1e9"),
        (names.ALLOCATABLE_ANNOTATION, "9" * 19),
        (names.ALLOCATABLE_ANNOTATION, "1" * 5000),
        (names.ALLOCATABLE_ANNOTATION, "\u0664"),
        (names.GRANULARITY_ANNOTATION, "0"),
        (names.GRANULARITY_ANNOTATION, str(1 << 41)),
        (names.POOL_ANNOTATION, "a" * 261),
        (names.LAYOUT_ANNOTATION, "0 0"),
        (names.LAYOUT_ANNOTATION, "129 0"),
        (names.LAYOUT_ANNOTATION, "2"),
        (names.LAYOUT_ANNOTATION, "2 -5"),
        (names.SHARED_ANNOTATION, ""),
        (names.SHARED_ANNOTATION, "lots a"),
        (names.SHARED_ANNOTATION, "5 " + "a" * 261),
        (names.SHARED_ANNOTATION, "5 " + "a " * 300),
    ],
)
def test_what_no_daemon_would_write_is_not_believed(annotation: str, value: str) -> None:
    body = capacity.manifest(HERE, "elastic-local", None)
    body["metadata"]["annotations"][annotation] = value
    assert capacity.read(body) is None


@pytest.mark.parametrize("capacity_text", ["-1", "lots", "1e30", "10E"])
def test_nor_is_room_that_no_node_has(capacity_text: str) -> None:
    assert capacity.read({**capacity.manifest(HERE, "elastic-local", None), "capacity": capacity_text}) is None


def test_nor_is_a_second_object_of_a_node_and_class_or_one_of_many_nodes() -> None:
    body = capacity.manifest(HERE, "elastic-local", None)
    twin = {**body, "metadata": {**body["metadata"], "name": "another"}}
    wide = {**body, "nodeTopology": {"matchLabels": {**body["nodeTopology"]["matchLabels"], "zone": "a"}}}
    assert (capacity.read(twin), capacity.read(wide)) == (None, None)
