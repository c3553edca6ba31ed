"""The claims of one pod: on one node all of them, or none."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import capacity, names
from contract.capacity import Capacity
from contract.parameters import VolumeParameters
from kube import records
from kube.errors import Json
from kube.records import IMMEDIATE, SELECTED_NODE, Pod
from kube.resources import CAPACITIES, CLAIMS, CLASSES, NODES, PODS, VOLUMES
from provisioner import placement
from provisioner.index import Index
from provisioner.podcapacity import (
    VolumeFit,
    VolumeRequest,
    all_selected,
    conflicting_node,
    fit_volumes,
    headroom,
    shortage,
)
from tests.memorycluster import MemoryCluster
from tests.unit.provisioner.leader import claim as stored
from tests.unit.provisioner.leader import does, leading, volume
from tests.unit.provisioner.objects import (
    CLASS,
    EXTENT,
    GIB,
    MIB,
    capacity_body,
    claim,
    claim_body,
    class_body,
    node_body,
    published,
)
from tests.waiting import until

PLAIN = VolumeParameters()
MIRROR = VolumeParameters(raid="raid1")


def pod_body(name: str = "p", *claims: str, node: str = "", ephemeral: bool = False, phase: str = "Pending") -> Json:
    volumes = [{"name": each, "persistentVolumeClaim": {"claimName": each}} for each in claims]
    if ephemeral:
        volumes = [{"name": each, "ephemeral": {"volumeClaimTemplate": {}}} for each in claims]
    return {
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-of-{name}", "resourceVersion": "1"},
        "spec": {
            "containers": [{"name": "main", "image": "busybox"}],
            "volumes": volumes,
            **({"nodeName": node} if node else {}),
        },
        "status": {"phase": phase},
    }


POD: Pod = records.read_pod(pod_body("p", "a", "b"))


def need(name: str, size: int, storage_class: str = CLASS, *, layout: VolumeParameters = PLAIN) -> VolumeRequest:
    return VolumeRequest(name, f"pvc-{name}", size, layout, storage_class)


def on(free: dict[str, Capacity], *requests: VolumeRequest, taken: int = 0) -> list[VolumeFit]:
    """On a node with this capacity for each class, and `taken` in each of its pools."""
    return fit_volumes(requests, free.get, lambda offered: lambda pool: taken)


def capacity_of(size: int, **fields: Any) -> Capacity:
    return replace(published(free=size), **fields)


FREE = {CLASS: capacity_of(GIB), "large": capacity_of(2 * GIB, pool="large"), "generous": capacity_of(9 * GIB)}
TIGHT = "take 1.3Gi together, node n1 has 1Gi left in pool vg"


@pytest.mark.parametrize(
    ("requests", "why"),
    [
        ([], ""),
        ([need("a", 700 * MIB)], ""),
        ([need("a", 700 * MIB, "large"), need("b", 700 * MIB, "large")], ""),
        ([need("b", 700 * MIB), need("a", 700 * MIB)], f"the claims a, b of pod p {TIGHT}"),
        ([need("a", 700 * MIB), need("b", 700 * MIB, "large")], ""),
        # One thin pool, by a class that has a higher overprovision ratio, and by one that doesn't.
        ([need("a", 700 * MIB, "generous"), need("b", 700 * MIB)], f"the claims a, b of pod p {TIGHT}"),
        (
            [need("a", 300 * MIB), need("b", 400 * MIB, layout=MIRROR)],
            "the claims a, b of pod p take 1Gi together, node n1 has 1Gi left in pool vg",
        ),
        (
            [need("a", MIB), need("b", MIB, "unheard-of")],
            "node n1 publishes no capacity for the class of claim b, which pod p needs too",
        ),
    ],
)
def test_shortage(requests: list[VolumeRequest], why: str) -> None:
    fits = on(FREE, *requests)
    assert shortage(POD, "n1", fits) == shortage(POD, "n1", fits, cautious=False) == why
    assert (headroom(fits) >= 0) == (not why)


def test_pools_that_share_a_filesystem_have_it_once() -> None:
    shared = {
        "one": capacity_of(GIB, storage_class="one", pool="x", shared_with=("y",), shared=GIB),
        "two": capacity_of(GIB, storage_class="two", pool="y", shared_with=("x",), shared=GIB),
    }
    assert not shortage(POD, "n1", on(shared, need("a", 500 * MIB, "one"), need("b", 500 * MIB, "two")))
    why = shortage(POD, "n1", on(shared, need("a", 700 * MIB, "one"), need("b", 700 * MIB, "two")))
    assert why == "the claims a, b of pod p take 1.3Gi together, node n1 has 1Gi left in pool x"


def test_a_block_volume_of_a_pod_has_no_place_where_its_class_keeps_folders() -> None:
    raw, plain = need("a", 500 * MIB, layout=PLAIN.as_block_device()), need("b", 300 * MIB)
    folders = {CLASS: capacity_of(GIB, block=False)}
    assert shortage(POD, "n1", on(folders, plain, raw)) == (
        "node n1 publishes no capacity for block devices of the class of claim a, which pod p needs too"
    )
    assert headroom(on(folders, plain, raw)) < 0
    assert shortage(POD, "n1", on({CLASS: capacity_of(GIB)}, plain, raw)) == ""


def test_with_several_legs_certain_and_possible_capacity_differ() -> None:
    legs = {CLASS: capacity_of(GIB, weight=2)}
    fits = on(legs, need("a", 400 * MIB), need("b", 400 * MIB))
    assert shortage(POD, "n1", fits)
    assert not shortage(POD, "n1", fits, cautious=False)
    assert shortage(POD, "n1", on(legs, need("a", 600 * MIB), need("b", 600 * MIB)), cautious=False)
    assert not shortage(POD, "n1", on(legs, need("a", 300 * MIB), need("b", 300 * MIB)))


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from("xy"), st.booleans())), st.integers(0, 30))
def test_what_fits_together_fits_one_after_the_other(volumes: list[tuple[int, str, bool]], free: int) -> None:
    classes = {pool: capacity_of(free * EXTENT, pool=pool, storage_class=pool) for pool in "xy"}
    fits = on(
        classes,
        *(
            need(f"c{number}", size * EXTENT, pool, layout=MIRROR if mirrored else PLAIN)
            for number, (size, pool, mirrored) in enumerate(volumes)
        ),
    )
    left = {"x": free * EXTENT, "y": free * EXTENT}
    for each in fits:
        assert each.capacity
        left[each.capacity.pool] -= each.required
    used = {pool for _, pool, _ in volumes}
    assert headroom(fits) == min((left[pool] for pool in used), default=0)
    assert bool(shortage(POD, "n1", fits)) == (headroom(fits) < 0)


def test_the_scheduler_names_one_node_on_all_claims() -> None:
    a, b, c = (claim(name, node=node) for name, node in (("a", "n1"), ("b", "n2"), ("c", "")))
    assert all_selected([a], "n1")
    assert not all_selected([a, c], "n1")
    assert conflicting_node([a, b, c], b) == "n1"
    assert conflicting_node([a, b, c], a) == ""
    assert conflicting_node([a, c], c) == "n1"
    assert conflicting_node([replace(a, selected_node=""), b], b) == ""


# A term of leadership; the scheduler is played.


@pytest.fixture
async def small(cluster: MemoryCluster) -> MemoryCluster:
    """n1 has 1Gi, n2 has 2Gi."""
    for name in ("n1", "n2"):
        cluster.put(NODES, node_body(name))
    cluster.put(CAPACITIES, capacity_body("n1", GIB))
    cluster.put(CAPACITIES, capacity_body("n2", 2 * GIB))
    return cluster


def waiting(cluster: MemoryCluster, *claims: str, size: str = "700Mi", **fields: Any) -> None:
    for name in claims:
        body = claim_body(name, size=size, node="", **fields)
        body["metadata"]["annotations"] = {}  # they come with the node
        cluster.put(CLAIMS, body)


def choose(cluster: MemoryCluster, node: str, *claims: str) -> None:
    """As the scheduler: what names a node already can go to that one only."""
    for name in claims:
        body = stored(cluster, name)
        assert body["metadata"]["annotations"].get(SELECTED_NODE) in (None, node)
        body["metadata"]["annotations"] |= {
            SELECTED_NODE: node,
            "volume.kubernetes.io/storage-provisioner": names.PROVISIONER,
        }
        cluster.put(CLAIMS, body)


def chosen(cluster: MemoryCluster, *claims: str) -> list[str]:
    return [stored(cluster, name)["metadata"]["annotations"].get(SELECTED_NODE, "") for name in claims]


def homes(cluster: MemoryCluster) -> dict[str, str]:
    """Claim to node."""
    return {
        body["spec"]["claimRef"]["name"]: body["metadata"]["labels"][names.NODE_LABEL] for body in cluster.all(VOLUMES)
    }


async def test_claims_that_do_not_fit_together_go_to_a_node_with_capacity_for_all(small: MemoryCluster) -> None:
    waiting(small, "a", "b")
    small.put(PODS, pod_body("p", "a", "b"))
    async with leading(small):
        choose(small, "n1", "a", "b")
        await until(lambda: chosen(small, "a", "b") == ["n2", ""])
        await until(lambda: len(small.messages("ProvisioningFailed")) == 2)
        expected = (
            "the claims a, b of pod p take 1.3Gi together, node n1 has 1Gi left in pool vg: node n2, which has space"
        )
        assert all(expected in message for message in small.messages("ProvisioningFailed"))
        assert not homes(small)
        choose(small, "n2", "b")
        await until(lambda: homes(small) == {"a": "n2", "b": "n2"})


async def test_nothing_is_made_before_the_scheduler_has_chosen_for_all(small: MemoryCluster) -> None:
    waiting(small, "a", "b", size="100Mi")
    small.put(PODS, pod_body("p", "a", "b"))
    async with leading(small) as term:
        choose(small, "n1", "a")
        await until(lambda: term.claims.queue.depth == 0 and "default/a" in term.claims._stalled)
        assert not homes(small)
        choose(small, "n1", "b")
        await until(lambda: homes(small) == {"a": "n1", "b": "n1"})


async def test_a_proposal_that_the_scheduler_ignores_is_withdrawn_for_good(
    small: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "SELECTION_TIMEOUT", 0.3)
    small.put(CAPACITIES, capacity_body("n3", 2 * GIB))
    small.put(NODES, node_body("n3"))
    waiting(small, "a", "b")
    small.put(PODS, pod_body("p", "a", "b"))
    proposed = []
    async with leading(small):
        for _ in range(2):
            choose(small, "n1", "a", "b")
            await until(lambda: chosen(small, "a", "b")[0] in ("n2", "n3"))
            proposed += chosen(small, "a")
            await until(lambda: chosen(small, "a", "b") == ["", ""])
        choose(small, "n1", "a", "b")
        await until(lambda: chosen(small, "a", "b") == ["", ""])
    assert sorted(proposed) == ["n2", "n3"]
    assert not homes(small)
    assert any("was not chosen for the other claims of pod p" in each for each in small.messages("ProvisioningFailed"))


async def test_where_no_node_has_room_for_all_each_owner_reads_so(small: MemoryCluster) -> None:
    waiting(small, "a", "b", "c")
    small.put(PODS, pod_body("p", "a", "b", "c"))
    async with leading(small):
        choose(small, "n2", "a", "b", "c")
        await until(lambda: chosen(small, "a", "b", "c") == ["", "", ""])
        await until(lambda: len(small.messages("ProvisioningFailed")) == 3)
        for message in small.messages("ProvisioningFailed"):
            assert message.endswith(
                "the claims a, b, c of pod p take 2Gi together, node n2 has 2Gi left in pool vg, and no node has space "
                "for all of them: ask for less, or free up space"
            )
    assert not homes(small)


async def test_one_that_does_not_fit_by_itself_takes_the_others_along(small: MemoryCluster) -> None:
    """Left behind, they would call the pod back to that node again and again."""
    waiting(small, "a", size="100Mi")
    waiting(small, "b", size="1536Mi")
    small.put(PODS, pod_body("p", "a", "b"))
    async with leading(small):
        choose(small, "n1", "a", "b")
        await until(lambda: chosen(small, "a", "b") == ["n2", ""])
    assert not homes(small)


async def test_what_may_fit_is_tried_only_where_nothing_fits_for_certain(small: MemoryCluster) -> None:
    """Of classes with several legs: what they take of the capacity is known when the node has made them."""
    small.put(CAPACITIES, capacity.manifest(replace(published("n1", GIB), weight=2), names.NAMESPACE, None))
    waiting(small, "a", "b", size="400Mi")
    small.put(PODS, pod_body("p", "a", "b"))
    async with leading(small):
        choose(small, "n1", "a", "b")
        await until(lambda: chosen(small, "a", "b") == ["n2", ""])
        assert not homes(small)
        small.remove(CAPACITIES, capacity.object_name("n2", CLASS), names.NAMESPACE)
        body = stored(small, "a")
        del body["metadata"]["annotations"][SELECTED_NODE]
        small.put(CLAIMS, body)
        choose(small, "n1", "a", "b")
        await until(lambda: homes(small))
        assert set(homes(small).values()) == {"n1"}


async def test_room_for_the_other_claims_is_kept(small: MemoryCluster) -> None:
    """The second one is held up, and a stranger comes meanwhile."""
    small.put(CAPACITIES, capacity_body("n2", GIB))
    waiting(small, "a", "b", size="500Mi")
    waiting(small, "stranger", size="500Mi")
    small.put(PODS, pod_body("p", "a", "b"))
    async with leading(small) as term:
        choose(small, "n1", "a", "b")
        await until(lambda: homes(small))
        small.put(PODS, pod_body("s", "stranger"))
        choose(small, "n1", "stranger")
        await until(lambda: chosen(small, "stranger") == [""])
        await until(lambda: homes(small) == {"a": "n1", "b": "n1"})
        await until(lambda: not term.ledger._pod_reservations)


async def test_the_next_leader_keeps_room_for_the_other_claims(small: MemoryCluster) -> None:
    """The one before it was killed when it had made the first volume. A stranger, whose claim is looked at first,
    would take the room of the second, and the pod could never start."""
    small.put(CAPACITIES, capacity_body("n2", GIB))
    waiting(small, "a", size="500Mi")
    choose(small, "n1", "a")
    async with leading(small):
        await until(lambda: homes(small) == {"a": "n1"})
    waiting(small, "a-stranger", "b", size="500Mi")
    small.put(PODS, pod_body("p", "a", "b"))
    small.put(PODS, pod_body("s", "a-stranger"))
    choose(small, "n1", "a-stranger", "b")
    stranger_decided = asyncio.Event()

    async def hold() -> None:
        await stranger_decided.wait()

    small.before["get", "persistentvolumeclaims"] = [does(lambda: None), hold]
    async with leading(small) as term:
        await until(lambda: chosen(small, "a-stranger") == [""])
        stranger_decided.set()
        await until(lambda: homes(small) == {"a": "n1", "b": "n1"})
        await until(lambda: not term.ledger._pod_reservations)


async def test_a_claim_of_several_pods_goes_where_one_of_them_can_start(small: MemoryCluster) -> None:
    waiting(small, "shared", "a", size="400Mi")
    waiting(small, "b", size="900Mi")
    small.put(PODS, pod_body("p", "shared", "a"))
    small.put(PODS, pod_body("q", "shared", "b"))
    async with leading(small):
        choose(small, "n1", "shared", "a")
        await until(lambda: homes(small) == {"shared": "n1", "a": "n1"})


async def test_the_volumes_that_come_along_without_a_node_need_room_as_well(small: MemoryCluster) -> None:
    """Of an Immediate class: the first mount ties them."""
    small.put(CLASSES, {**class_body(volumeBindingMode=IMMEDIATE), "metadata": {"name": "now"}})
    for node, free in (("n1", GIB), ("n2", 2 * GIB)):
        small.put(
            CAPACITIES, capacity.manifest(replace(published(node, free), storage_class="now"), names.NAMESPACE, None)
        )
    small.put(CLAIMS, claim_body("i", size="700Mi", node="", storageClassName="now"))
    waiting(small, "a")
    small.put(PODS, pod_body("p", "a", "i"))
    async with leading(small):
        await until(lambda: volume(small, "pvc-uid-of-i"))
        choose(small, "n1", "a")
        await until(lambda: chosen(small, "a") == [""])
        await until(lambda: small.messages("ProvisioningFailed"))
        assert "the claims a, i of pod p take 1.3Gi together" in small.messages("ProvisioningFailed")[0]
        choose(small, "n2", "a")
        await until(lambda: volume(small, "pvc-uid-of-a"))


async def test_what_is_made_for_one_pod_is_not_counted_for_a_namesake(small: MemoryCluster) -> None:
    waiting(small, "a", "p-b")
    small.put(PODS, {**pod_body("p", "b", ephemeral=True)})
    body = pod_body("p", "b", ephemeral=True)
    body["spec"]["volumes"].append({"name": "a", "persistentVolumeClaim": {"claimName": "a"}})
    small.put(PODS, body)
    async with leading(small):
        choose(small, "n1", "a")
        await until(lambda: homes(small) == {"a": "n1"})


async def test_a_pod_that_the_cache_does_not_show_yet_is_asked_for(small: MemoryCluster) -> None:
    waiting(small, "a", "b")
    async with leading(small) as term:
        await term.cache.wait_synced()
        term.cache._pods_of_claim = Index()
        term.cache._pod_changed = lambda *_: None  # type: ignore[method-assign]
        term.cache.pods._subscribers.clear()
        small.put(PODS, pod_body("p", "a", "b"))
        choose(small, "n1", "a", "b")
        await until(lambda: chosen(small, "a", "b") == ["n2", ""])
    assert not homes(small)


async def test_a_conflict_leaves_no_claims_that_name_different_nodes(small: MemoryCluster) -> None:
    """The one that is to propose another node is written last; then all is decided again."""
    waiting(small, "a", "b")
    small.put(PODS, pod_body("p", "a", "b"))

    def touched() -> None:
        small.put(CLAIMS, stored(small, "b"))

    small.before["patch", "persistentvolumeclaims"] = [does(touched)]
    async with leading(small):
        choose(small, "n1", "a", "b")
        await until(lambda: chosen(small, "a", "b") == ["n2", ""])


async def test_claims_that_name_different_nodes_come_together_again(small: MemoryCluster) -> None:
    waiting(small, "a", "b", size="100Mi")
    small.put(PODS, pod_body("p", "a", "b"))
    async with leading(small):
        choose(small, "n1", "b")
        choose(small, "n2", "a")
        await until(lambda: chosen(small, "a", "b") == ["n2", ""])
        choose(small, "n2", "b")
        await until(lambda: homes(small) == {"a": "n2", "b": "n2"})


async def test_a_pod_that_names_its_node_itself_is_why_its_claim_waits(small: MemoryCluster) -> None:
    waiting(small, "a")
    async with leading(small):
        small.put(PODS, pod_body("p", "a", node="n1"))
        await until(lambda: small.messages("ProvisioningFailed"))
    assert "pod p names its node itself (spec.nodeName: n1)" in small.messages("ProvisioningFailed")[0]
    assert not homes(small)


async def test_a_class_that_no_node_has_capacity_for_is_why_its_claim_waits(small: MemoryCluster) -> None:
    """The scheduler says that the nodes have not enough free storage, and chooses none."""
    small.put(CLASSES, class_body(parameters={"fstype": "xfs"}))
    waiting(small, "a")
    async with leading(small):
        await until(lambda: small.messages("ProvisioningFailed"))
    assert "parameter 'fstype' is 'xfs': there is no such parameter" in small.messages("ProvisioningFailed")[0]
    assert not homes(small)


async def test_a_class_keeps_to_its_topologies_whoever_chose_the_node(small: MemoryCluster) -> None:
    terms = [{"matchLabelExpressions": [{"key": names.HOSTNAME_LABEL, "values": ["host-n2"]}]}]
    small.put(CLASSES, class_body(allowedTopologies=terms))
    waiting(small, "a")
    async with leading(small):
        choose(small, "n1", "a")
        await until(lambda: chosen(small, "a") == [""])
        await until(lambda: small.messages("ProvisioningFailed"))
        assert small.messages("ProvisioningFailed")[0].endswith(
            f"node n1 is none of the allowedTopologies of StorageClass {CLASS}: another node is asked for"
        )
        choose(small, "n2", "a")
        await until(lambda: homes(small) == {"a": "n2"})


async def test_a_burst_costs_no_request_for_each_pod(small: MemoryCluster) -> None:
    for number in range(40):
        waiting(small, f"c{number}", size="8Mi")
        small.put(PODS, pod_body(f"p{number}", f"c{number}"))
    async with leading(small):
        for number in range(40):
            choose(small, "n1", f"c{number}")
        await until(lambda: len(homes(small)) == 40)
    assert [verb for verb, plural, _ in small.requests if plural == "pods"] == ["list"]
