import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from contract.parameters import VolumeParameters
from kube.records import IMMEDIATE, StorageClass
from provisioner.capacityledger import Account, CapacityLedger, Charge, unplaced
from provisioner.clonesource import NO_SOURCE
from provisioner.clusterstate import ClusterCache, Published
from provisioner.decision import AvailableCapacity, Create, NodeCapacity, Refuse, decide
from provisioner.podcapacity import VolumeRequest, fit_volumes, headroom
from tests.memorycluster import MemoryCluster
from tests.unit.provisioner.objects import CLASS, EXTENT, GIB, MIB, claim, published, storage_class


def test_what_all_nodes_have_left_follows_each_change(cluster: MemoryCluster) -> None:
    """It is counted when it is asked for, and kept until it changes."""
    ledger = CapacityLedger()
    cache = ClusterCache(cluster, "elastic-local", ledger)
    asked = claim("data")

    def left() -> tuple[dict[str, int], int]:
        """The node with most, and what the others have."""
        available = cache.available(asked, "pvc-own", NO_SOURCE)
        most = {node.published.node: node.free // GIB for node in available.nodes}
        return most, sum(node.others for node in available.nodes) // GIB

    def publish(node: str, gib: int | None) -> None:
        cache.capacities._put(node, Published(published(node, gib * GIB), str(gib)) if gib is not None else None)

    def charge(node: str, gib: int) -> Charge:
        return Charge(Account(node, "vg"), gib * GIB, VolumeParameters())

    assert left() == ({}, 0)
    publish("n1", 10)
    publish("n2", 20)
    assert left() == ({"n2": 20}, 10)
    ledger.reserve("pvc-a", charge("n1", 4), 0.0)
    assert left() == ({"n2": 20}, 6)
    publish("n2", 15)
    assert left() == ({"n2": 15}, 6)
    ledger.reserve("pvc-own", charge("n2", 5), 0.0)
    assert left() == ({"n2": 15}, 6), "the claim's own volume does not count"
    ledger.release("pvc-own")
    ledger.release("pvc-a")
    ledger.reserve("pvc-b", Charge(unplaced(asked.storage_class), 3 * GIB, VolumeParameters()), 0.0)
    assert left() == ({"n2": 15}, 10)
    assert cache.available(asked, "pvc-own", NO_SOURCE).unplaced == 3 * GIB
    publish("n1", None)
    assert left() == ({"n2": 15}, 0)


KINDS: list[dict[str, object]] = [
    {},
    {"raid": "raid1", "thin": "false"},
    {"stripes": "2", "thin": "false"},
    {
        "encryption": "luks2",
        "volumeSource": "csi",
        "csi.storage.k8s.io/node-stage-secret-name": "key",
        "csi.storage.k8s.io/node-stage-secret-namespace": "keys",
    },
]


@pytest.mark.parametrize("seed", range(12))
def test_a_claim_for_any_node_is_decided_as_if_all_nodes_were_gone_through(cluster: MemoryCluster, seed: int) -> None:
    chance = random.Random(seed)
    ledger = CapacityLedger()
    cache = ClusterCache(cluster, "elastic-local", ledger)
    pools, decisions = ("vg", "vg/thin"), set()

    def change() -> None:
        node = f"n{chance.randrange(7)}"
        match chance.randrange(6):
            case 0:
                cache.capacities._put(node, None)
            case 1 | 2:
                offered = replace(
                    published(node),
                    allocatable=chance.randrange(8) * GIB,
                    granularity=chance.choice((EXTENT, EXTENT, 512 * MIB)),
                    block=chance.random() < 0.7,
                    encryption=chance.random() < 0.5,
                    weight=chance.choice((1, 1, 2)),
                    shared_with=chance.choice(((), pools[1:])),
                    shared=5 * GIB,
                )
                cache.capacities._put(node, Published(offered, str(chance.random())))
            case 3:
                name = f"pvc-{chance.randrange(6)}"
                ledger.release(name)
                account = chance.choice((Account(node, chance.choice(pools)), unplaced(CLASS)))
                ledger.reserve(name, Charge(account, chance.randrange(1, 4 * GIB), VolumeParameters()), 0.0)
            case 4:
                ledger.release(f"pvc-{chance.randrange(6)}")
            case 5:
                name, account = f"pvc-{chance.randrange(6)}", Account(node, "vg")
                ledger.reserve_for_pod(name, Charge(account, GIB, VolumeParameters()))

    def plain(own: str) -> AvailableCapacity:
        nodes = [published.capacity for published in cache.capacities.values()]
        granularity = max((offered.granularity for offered in nodes), default=1)
        return AvailableCapacity(
            [NodeCapacity(offered, offered.free(cache.reserved(offered, {own}))) for offered in nodes],
            ledger.reserved(unplaced(CLASS), granularity, excluding={own}),
        )

    def of_kind(parameters: object) -> StorageClass:
        return storage_class(volumeBindingMode=IMMEDIATE, parameters=parameters)

    for _ in range(150):
        for _ in range(chance.randrange(4)):
            change()
        own = f"pvc-{chance.randrange(6)}"
        asked = claim(size=f"{chance.randrange(1, 16) * 512}Mi", node="")
        kind = of_kind(chance.choice(KINDS))
        decision = decide(asked, kind, cache.available(asked, own, NO_SOURCE), waited=0)
        assert decision == decide(asked, kind, plain(own), waited=0)
        decisions.add(type(decision))
    assert decisions == {Create, Refuse}


def test_a_claim_for_any_node_costs_what_changed(cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = CapacityLedger()
    cache = ClusterCache(cluster, "elastic-local", ledger)
    for number in range(1000):
        cache.capacities._put(f"n{number}", Published(published(f"n{number}"), "1"))
    asked = claim(node="")
    cache.available(asked, "pvc-own", NO_SOURCE)
    counted = []
    count = ledger.reserved

    def counting(account: Account, granularity: int, **others: object) -> int:
        counted.append(account)
        return count(account, granularity)

    monkeypatch.setattr(ledger, "reserved", counting)
    ledger.reserve("pvc-a", Charge(Account("n7", "vg"), GIB, VolumeParameters()), 0.0)
    assert cache.available(asked, "pvc-own", NO_SOURCE).nodes[0].others == 999 * 10 * GIB - GIB
    assert counted == [Account("n7", "vg"), unplaced(CLASS)]


PLAIN = VolumeParameters()
ENCRYPTED = VolumeParameters(encryption="luks2")
MIRROR = VolumeParameters(raid="raid1")


def request(name: str, size: int, storage_class: str = CLASS, kind: VolumeParameters = PLAIN) -> VolumeRequest:
    return VolumeRequest(name, f"pvc-{name}", size, kind, storage_class)


class Places:
    """The nodes that have capacity for some volumes, and how many were looked at for that."""

    def __init__(self, cache: ClusterCache, requests: list[VolumeRequest]) -> None:
        self._cache, self._requests = cache, requests
        self.asked: list[str] = []

    def headroom(self, node: str) -> int:
        self.asked.append(node)
        own = {each.volume for each in self._requests}
        return headroom(
            fit_volumes(
                self._requests,
                lambda name: self._cache.published_by(node, name),
                lambda offered: self._cache.reserved(offered, own),
            )
        )

    def best_first(self) -> Iterator[str]:
        return self._cache.nodes_by_headroom(self._requests, self._requests[0].storage_class, self.headroom)


@pytest.mark.parametrize("seed", range(12))
def test_the_nodes_for_a_pod_come_in_the_order_of_what_they_have_left(cluster: MemoryCluster, seed: int) -> None:
    """As if all were gone through."""
    chance = random.Random(seed)
    ledger = CapacityLedger()
    cache = ClusterCache(cluster, "elastic-local", ledger)
    classes, pools, nodes = ("fast", "large", "mirrored"), ("vg", "vg/thin"), [f"n{number}" for number in range(12)]
    found = 0
    for _ in range(150):
        for _ in range(chance.randrange(8)):
            node, name, volume = chance.choice(nodes), chance.choice(classes), f"pvc-{chance.randrange(4)}"
            offered = replace(
                published(node, chance.randrange(8) * GIB),
                storage_class=name,
                pool=chance.choice(pools),
                encryption=chance.random() < 0.7,
                weight=chance.choice((1, 1, 2)),
                reserved=chance.randrange(2) * GIB,
                shared_with=chance.choice(((), (), pools[1:])),
                shared=5 * GIB,
            )
            cache.capacities._put(f"{node}-{name}", Published(offered, "") if chance.random() < 0.8 else None)
            ledger.release(volume)
            ledger.reserve(volume, Charge(Account(node, chance.choice(pools)), GIB, VolumeParameters()), 0.0)
        requests = [
            request(
                str(number), chance.randrange(1, 3 * GIB), chance.choice(classes), chance.choice((ENCRYPTED, MIRROR))
            )
            for number in range(chance.randrange(1, 4))
        ]
        places = Places(cache, requests)
        best = list(places.best_first())
        left = {node: places.headroom(node) for node in nodes}
        assert [left[node] for node in best] == sorted((each for each in left.values() if each >= 0), reverse=True)
        assert len(set(best)) == len(best)
        found += len(best)
    assert found > 100


@pytest.mark.parametrize(
    ("requests", "wanted", "most"),
    [
        pytest.param([request("a", GIB), request("b", GIB)], 8, 9, id="any of them"),
        pytest.param([request("a", GIB), request("b", GIB, "same pool")], 8, 9, id="two classes of one pool"),
        pytest.param([request("a", GIB), request("b", GIB, "fast")], 8, 16, id="one class has less"),
        pytest.param([request("a", GIB, "mirrored", MIRROR), request("b", GIB)], 8, 9, id="several legs"),
        pytest.param([request("a", GIB), request("b", 9 * GIB, "fast")], 0, 0, id="one class is full"),
        pytest.param([request("a", GIB), request("b", GIB, "unheard-of")], 0, 0, id="nobody has one class"),
    ],
)
def test_few_of_many_nodes_are_looked_at_for_a_pod(
    cluster: MemoryCluster, requests: list[VolumeRequest], wanted: int, most: int
) -> None:
    cache = ClusterCache(cluster, "elastic-local", CapacityLedger())
    for number in range(1000):
        node = f"n{number}"
        for name, pool, gib, weight in (
            (CLASS, "vg", 100 + number // 10, 1),
            ("same pool", "vg", 100 + number // 10, 1),
            ("mirrored", "vg", 100 + number // 10, 2),
            ("fast", "ssd", 8, 1),
        ):
            offered = replace(published(node, gib * GIB), storage_class=name, pool=pool, weight=weight)
            cache.capacities._put(f"{node}-{name}", Published(offered, "1"))
    for _ in range(2):
        places = Places(cache, requests)
        assert len(list(itertools.islice(places.best_first(), 8))) == wanted
        assert len(places.asked) <= most
        cache.ledger.reserve("pvc-other", Charge(Account("n999", "vg"), GIB, VolumeParameters()), 0.0)
