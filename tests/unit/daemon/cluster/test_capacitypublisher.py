"""What room is offered to which class, and that the API server has it whatever happens to the objects."""

from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract import capacity, names
from contract.parameters import VolumeParameters
from daemon.cluster.capacitypublisher import desired, read_class, read_published
from daemon.storage.inventory import Inventory, Pool
from kube.errors import Forbidden, Json
from kube.records import Node, StorageClass
from kube.resources import CAPACITIES, CLASSES, Resource
from tests.unit.daemon.nodecluster import (
    CAPACITY,
    CLASS,
    MI,
    NAMESPACE,
    NODE,
    NodeParts,
    create_pv,
    kind,
    node_parts,
    read_pv,
)
from tests.waiting import until

OBJECT = capacity.object_name(NODE, CLASS)
HERE = Node(NODE, "node-uid", "host-1", {}, deleting=False)
FAST = StorageClass(
    name="fast",
    provisioner=names.PROVISIONER,
    parameters={},
    reclaim_policy="Delete",
    mount_options=(),
    binding_mode="WaitForFirstConsumer",
    allowed_topologies=(),
)
VG = Pool("vg", size=1000, free=600, ours=400, granularity=10, reserve=100)


def room(storage_class: StorageClass, inventory: Inventory, folder_pools: Collection[str] = ()) -> capacity.Capacity:
    def pool_of(wanted: VolumeParameters) -> str:
        return wanted.volume_group or "vg"

    (published_capacity,) = desired([storage_class], pool_of, inventory, [], HERE, folder_pools).values()
    assert published_capacity.owners == ("node-uid",)
    assert published_capacity.maximum == published_capacity.capacity.available
    return published_capacity.capacity


def test_a_class_is_offered_what_its_pool_has_less_the_reserve() -> None:
    expected = capacity.Capacity(NODE, "host-1", "fast", "vg", 500, 500, 10, block=True, encryption=True)
    assert room(FAST, Inventory(pools=[VG])) == expected


def test_encrypted_volumes_are_offered_without_their_header_and_not_of_folders() -> None:
    mi = 1 << 20
    asked = {
        "volumeSource": "csi",
        "encryption": "luks2",
        "csi.storage.k8s.io/node-stage-secret-name": "key",
        "csi.storage.k8s.io/node-stage-secret-namespace": "storage",
    }
    encrypted = replace(FAST, parameters=asked)
    large = Inventory(pools=[Pool("vg", size=100 * mi, free=100 * mi, ours=0, granularity=4 * mi)])
    assert room(encrypted, large).available == 84 * mi
    assert room(encrypted, large).allocatable == 100 * mi
    of_folders = room(encrypted, large, folder_pools=["vg"])
    assert (of_folders.encryption, of_folders.available) == (False, 0)
    assert room(FAST, large, folder_pools=["vg"]).available == 100 * mi


def test_no_block_devices_are_offered_of_folders() -> None:
    assert not room(FAST, Inventory(pools=[VG]), folder_pools=["vg"]).block
    assert room(FAST, Inventory(pools=[VG]), folder_pools=["folders"]).block
    assert not room(FAST, Inventory()).block


def test_a_mirror_is_offered_the_size_that_fits_twice() -> None:
    mirrored = room(replace(FAST, parameters={"raid": "raid1"}), Inventory(pools=[VG]))
    assert (mirrored.allocatable, mirrored.available) == (500, 240)


@pytest.mark.parametrize(
    "storage_class",
    [replace(FAST, parameters={"raid": "raid7"}), replace(FAST, parameters={"volumeGroup": "absent"})],
    ids=["wrong parameters", "no such group"],
)
def test_a_class_that_cannot_be_served_here_has_no_room(storage_class: StorageClass) -> None:
    none = room(storage_class, Inventory(pools=[VG]))
    assert (none.allocatable, none.available, none.pool) == (0, 0, "")


def test_a_node_without_storage_has_no_room() -> None:
    assert room(FAST, Inventory()).available == 0


def test_what_is_written_is_read_back() -> None:
    (wanted,) = desired([FAST], lambda _: "vg", Inventory(pools=[VG]), [], HERE).values()
    owner = {"kind": "Node", "name": NODE, "uid": "node-uid"}
    assert read_published(capacity.manifest(wanted.capacity, NAMESPACE, owner)) == wanted


@pytest.mark.parametrize(("provisioner", "ours"), [(name, True) for name in names.PROVISIONERS] + [("other", False)])
def test_only_classes_of_our_provisioners_count(provisioner: str, ours: bool) -> None:
    body = {"metadata": {"name": "c"}, "provisioner": provisioner}
    assert (read_class(body) is not None) is ours


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeParts]:
    async with node_parts(tmp_path) as it:
        yield it


async def published(node: NodeParts) -> dict[str, Json]:
    return {body["storageClassName"]: body for body in await node.cluster.list(CAPACITIES, NAMESPACE)}


async def test_a_node_says_what_it_has_as_soon_as_it_starts(node: NodeParts) -> None:
    body = (await published(node))[CLASS]
    assert body["metadata"]["ownerReferences"][0]["uid"] == node.node.uid
    assert body["nodeTopology"] == {"matchLabels": {names.HOSTNAME_LABEL: node.node.hostname}}
    figures = read_published(body)
    assert figures
    assert (figures.capacity.allocatable, figures.capacity.available) == (CAPACITY, CAPACITY)


async def test_a_promised_volume_lowers_what_is_left_before_it_is_made(node: NodeParts) -> None:
    await create_pv(node.cluster, "pv", mi=30)

    async def lowered() -> bool:
        figures = read_published((await published(node))[CLASS])
        assert figures
        assert figures.capacity.allocatable == CAPACITY
        return figures.capacity.available == CAPACITY - 30 * MI

    await until(lowered)
    await until(lambda: node.volume_names() == {"pv"})
    await node.publisher.publish()
    assert await lowered()
    assert await read_pv(node.cluster, "pv")


async def test_what_somebody_deletes_or_edits_is_put_right(node: NodeParts) -> None:
    right = {**(await published(node))[CLASS], "metadata": None}

    async def restored() -> bool:
        return {**(await published(node)).get(CLASS, {}), "metadata": None} == right

    await node.cluster.delete(CAPACITIES, OBJECT, NAMESPACE)
    await until(restored)
    await node.cluster.patch(CAPACITIES, OBJECT, {"capacity": "1Ti", "maximumVolumeSize": "1Ti"}, NAMESPACE)
    await until(restored)
    unmarked = {"metadata": {"annotations": {names.ALLOCATABLE_ANNOTATION: None}}}
    await node.cluster.patch(CAPACITIES, OBJECT, unmarked, NAMESPACE)

    async def marked() -> bool:
        return read_published((await published(node))[CLASS]) is not None

    await until(marked)


async def test_what_is_refused_of_one_class_holds_up_no_other(node: NodeParts, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a quota, say."""
    patch = node.cluster.patch

    async def refuse(resource: Resource, name: str, *rest: Any, **more: Any) -> Json:
        if name == OBJECT:
            raise Forbidden(403, "Forbidden", "exceeded quota: few")
        return await patch(resource, name, *rest, **more)

    monkeypatch.setattr(node.cluster, "patch", refuse)
    await node.cluster.delete(CAPACITIES, OBJECT, NAMESPACE)
    other = {**kind("StorageClass", "storage.k8s.io/v1"), "metadata": {"name": "other"}}
    await node.cluster.create(CLASSES, {**other, "provisioner": names.PROVISIONER})

    async def there() -> bool:
        return set(await published(node)) == {"other"}

    await until(there)
    await until(lambda: "exceeded quota: few" in node.publisher.problem)
    monkeypatch.setattr(node.cluster, "patch", patch)
    await until(lambda: not node.publisher.problem)
    assert set(await published(node)) == {CLASS, "other"}


async def test_objects_come_and_go_with_their_classes(node: NodeParts) -> None:
    other = {**kind("StorageClass", "storage.k8s.io/v1"), "metadata": {"name": "other"}}
    await node.cluster.create(CLASSES, {**other, "provisioner": names.PROVISIONER_OF_ELASTIC})

    async def classes() -> set[str]:
        return set(await published(node))

    async def both() -> bool:
        return await classes() == {CLASS, "other"}

    async def one() -> bool:
        return await classes() == {CLASS}

    await until(both)
    await node.cluster.delete(CLASSES, "other")
    await until(one)
