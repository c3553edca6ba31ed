from contract.parameters import VolumeParameters
from provisioner.capacityledger import Account, CapacityLedger, Charge, unplaced
from provisioner.clonesource import NO_SOURCE
from provisioner.clusterstate import ClusterCache, Published
from tests.memorycluster import MemoryCluster
from tests.unit.provisioner.objects import GIB, claim, published


def test_what_all_nodes_have_left_follows_each_change(cluster: MemoryCluster) -> None:
    """It is counted when it is asked for, and kept until it changes."""
    ledger = CapacityLedger()
    cache = ClusterCache(cluster, "elastic-local", ledger)
    asked = claim("data")

    def left() -> dict[str, int]:
        available = cache.available(asked, "pvc-own", NO_SOURCE)
        return {node.published.node: node.free // GIB for node in available.nodes}

    def publish(node: str, gib: int | None) -> None:
        cache.capacities._put(node, Published(published(node, gib * GIB), str(gib)) if gib is not None else None)

    def charge(node: str, gib: int) -> Charge:
        return Charge(Account(node, "vg"), gib * GIB, VolumeParameters())

    assert left() == {}
    publish("n1", 10)
    publish("n2", 20)
    assert left() == {"n1": 10, "n2": 20}
    ledger.reserve("pvc-a", charge("n1", 4), 0.0)
    assert left() == {"n1": 6, "n2": 20}
    publish("n2", 15)
    assert left() == {"n1": 6, "n2": 15}
    ledger.reserve("pvc-own", charge("n2", 5), 0.0)
    assert left() == {"n1": 6, "n2": 15}, "the claim's own volume does not count"
    ledger.release("pvc-own")
    ledger.release("pvc-a")
    ledger.reserve("pvc-b", Charge(unplaced(asked.storage_class), 3 * GIB, VolumeParameters()), 0.0)
    assert left() == {"n1": 10, "n2": 15}
    assert cache.available(asked, "pvc-own", NO_SOURCE).unplaced == 3 * GIB
    publish("n1", None)
    assert left() == {"n2": 15}
