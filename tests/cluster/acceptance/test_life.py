"""The life of a volume: made for a pod, found again by the next one, gone with its claim, or kept."""

import asyncio

import pytest

from contract import capacity, names
from contract.parameters import VOLUME_SOURCES
from contract.volume import CSI
from kube.client import Cluster
from kube.resources import CAPACITIES, CLAIMS, PODS, VOLUMES
from tests.cluster.acceptance.preflight import CLASSES_SHIPPED
from tests.cluster.acceptance.trial import Trial
from tests.cluster.conftest import ClassLike, MakeClass
from tests.sandbox.workloads import Json, claim, pod

_KIB_OF_320_MIB = 320 * 1024
_FILESYSTEM_OF_320_MIB = f"""
size=$(df -Pk /data | awk 'NR == 2 {{ print $2 }}')
test "$size" -gt {_KIB_OF_320_MIB * 2 // 3}
test "$size" -le {_KIB_OF_320_MIB}
echo kept > /data/file
grep -q kept /data/file
"""

_THIN = "elastic-local-thin"
_NO_ROOM = "did not have enough free storage"
_ROUNDS = 5
"""How often a test whose observation others disturb begins anew."""
_PUBLISHED_SECONDS = 2.0
"""After so long a node has mostly published its room."""


async def rooms(cluster: Cluster, storage_class: str) -> dict[str, int]:
    """Bytes that each node offers to the class, by the value of the node's label."""
    published = [room for room in map(capacity.read, await cluster.list(CAPACITIES)) if room]
    return {room.node: room.available for room in published if room.storage_class == storage_class}


@pytest.mark.parametrize("storage_class", CLASSES_SHIPPED)
async def test_a_claim_becomes_a_filesystem_of_its_size(cluster: Cluster, namespace: Trial, storage_class: str) -> None:
    """Where there are no thin pools, the scheduler says that no node has so much for thin volumes. For the others
    there is room (preflight.py): that a node has not published it yet is no excuse."""
    await namespace.create(CLAIMS, claim("data", "320Mi", storage_class))
    await namespace.create(PODS, pod("user", {"/data": "data"}, script=_FILESYSTEM_OF_320_MIB))

    async def is_refused() -> bool:
        events = await namespace.events("user")
        offered = max((await rooms(cluster, storage_class)).values(), default=0)
        return _NO_ROOM in "".join(events) and offered < _KIB_OF_320_MIB * 1024

    async def decision() -> str:
        if (await namespace.get(PODS, "user"))["spec"].get("nodeName"):
            return "placed"
        return "refused" if storage_class == _THIN and await is_refused() else ""

    decided = await namespace.wait(decision, what=f"class {storage_class} gets a node, or is told why not")
    if decided == "refused":
        return
    await namespace.until_succeeded("user")
    volume = await namespace.until_bound("data")
    assert volume["spec"]["capacity"]["storage"] == "320Mi"


async def test_a_pod_that_is_made_anew_finds_its_data_where_it_left_it(namespace: Trial, class_like: ClassLike) -> None:
    await namespace.create(CLAIMS, claim("data", "16Mi", class_like()))
    home = await namespace.run("first", "echo first > /data/log")
    # Any other node has fewer pods now, and so the scheduler would like it better.
    await namespace.create(PODS, pod("ballast", nodeName=home))
    await namespace.until_running("ballast")
    assert await namespace.run("second", 'test "$(cat /data/log)" = first; echo second >> /data/log') == home
    assert await namespace.run("third", 'test "$(cat /data/log)" = "$(printf "first\\nsecond")"') == home


async def test_one_pod_with_several_claims(namespace: Trial, class_like: ClassLike) -> None:
    volumes = ["first", "second", "third"]
    for number, name in enumerate(volumes):
        await namespace.create(CLAIMS, claim(name, f"{16 + 4 * number}Mi", class_like()))
    mounts = {f"/{name}": name for name in volumes}
    await namespace.run("writer", "for name in first second third; do echo $name > /$name/name; done", mounts)
    for name in volumes:
        await namespace.run(f"reader-of-{name}", f'test "$(cat /data/name)" = {name}', {"/data": name})


async def test_an_immediate_volume_lives_where_its_first_pod_runs(
    cluster: Cluster, namespace: Trial, make_class: MakeClass, volume_source: str
) -> None:
    immediate = await make_class("Immediate", volume_source=volume_source)
    await namespace.create(CLAIMS, claim("data", "16Mi", immediate))
    volume = await namespace.until_bound("data")
    assert "nodeAffinity" not in volume["spec"]
    home = await namespace.run("first", "echo kept > /data/file")
    placed = await cluster.get(VOLUMES, volume["metadata"]["name"])
    assert placed["metadata"]["labels"][names.NODE_LABEL] == names.node_label_value(home)
    assert await namespace.run("second", "grep -q kept /data/file") == home


async def test_with_its_claim_a_volume_goes_and_gives_its_room_back(cluster: Cluster, namespace: Trial) -> None:
    """While others make and delete volumes on the node nothing can be said of its room: then it is looked at anew."""
    for number in range(_ROUNDS):
        # Of another size each time: one that takes the place of the last would not show in the figure.
        if await room_is_given_back(cluster, namespace, f"data-{number}", mebibytes=28 + 8 * number):
            return
        # A round that begins before all is published is one more disturbed one, and nothing worse.
        await asyncio.sleep(_PUBLISHED_SECONDS)
    pytest.fail(f"others made or deleted volumes on the same node in each of {_ROUNDS} rounds: try when less happens")


async def room_is_given_back(cluster: Cluster, namespace: Trial, name: str, mebibytes: int) -> bool:
    """Of a claim that is made and deleted. False: others disturbed the observation."""
    before = await rooms(cluster, "elastic-local")
    others = await volumes_on(cluster, namespace)
    await namespace.create(CLAIMS, claim(name, f"{mebibytes}Mi"))
    home = names.node_label_value(await namespace.run(f"user-of-{name}", "echo gone > /data/file", {"/data": name}))
    volume = (await namespace.until_bound(name))["metadata"]["name"]

    async def is_busy() -> bool:
        return (await volumes_on(cluster, namespace)).get(home) != others.get(home)

    async def taken() -> str:
        room = (await rooms(cluster, "elastic-local"))[home]
        if await is_busy():
            return "disturbed"
        if room == before[home]:
            return ""
        # Else what others gave back just before is published only now.
        return "so" if room <= before[home] - (mebibytes << 20) else "disturbed"

    async def given_back() -> str:
        room = (await rooms(cluster, "elastic-local"))[home]
        if await is_busy():
            return "disturbed"
        return "so" if room >= before[home] else ""

    seen: str = await namespace.wait(taken, what=f"{home} publishes that there is less")
    await namespace.delete(CLAIMS, name)
    await namespace.until_gone(VOLUMES, volume)
    if seen != "so":
        return False
    seen = await namespace.wait(given_back, what=f"{home} publishes {before[home]} bytes again")
    return seen == "so"


async def test_what_was_retained_can_be_given_to_another_claim(
    cluster: Cluster, namespace: Trial, make_class: MakeClass
) -> None:
    """The way that the Kubernetes documentation describes: take the claimRef off, and name the volume in a claim."""
    keeping = await make_class(reclaimPolicy="Retain", volume_source=CSI)
    await namespace.create(CLAIMS, claim("data", "16Mi", keeping))
    home = await namespace.run("writer", "echo kept > /data/file")
    volume = (await namespace.until_bound("data"))["metadata"]["name"]
    await namespace.delete(CLAIMS, "data")
    await namespace.until(VOLUMES, volume, lambda body: body["status"]["phase"] == "Released", what="is Released")
    try:
        await cluster.patch(VOLUMES, volume, {"spec": {"claimRef": None}})
        await namespace.create(CLAIMS, claim("heir", "16Mi", keeping, volumeName=volume))
        assert await namespace.run("reader", "grep -q kept /data/file", {"/data": "heir"}) == home
    finally:
        # Also when no claim has it: then nobody else would know that it is of this test.
        await namespace.set_policy(volume, "Delete")
        await cluster.delete(VOLUMES, volume)


async def volumes_on(cluster: Cluster, namespace: Trial) -> dict[str, dict[str, str]]:
    """Size of each volume of others, by node."""
    sizes: dict[str, dict[str, str]] = {}
    for body in await cluster.list(VOLUMES):
        if (body["spec"].get("claimRef") or {}).get("namespace") != namespace.name and _is_ours(body):
            node = body["metadata"].get("labels", {}).get(names.NODE_LABEL, "")
            sizes.setdefault(node, {})[body["metadata"]["name"]] = body["spec"]["capacity"]["storage"]
    return sizes


def _is_ours(volume: Json) -> bool:
    drivers = {(volume["spec"].get(source) or {}).get("driver") for source in VOLUME_SOURCES}
    return not drivers.isdisjoint({names.DRIVER, names.CSI_DRIVER})
