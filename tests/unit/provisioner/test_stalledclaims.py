"""Who waits, and what wakes them. What is counted is the work: how many are looked at again for one change."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import volume
from contract.volume import ClaimReference, PersistentVolume
from kube.records import IMMEDIATE, Claim
from provisioner.capacityledger import Account, unplaced
from provisioner.clusterstate import Published
from provisioner.index import Index
from provisioner.main import Term
from provisioner.metrics import Metrics
from provisioner.settings import Settings
from provisioner.stalledclaims import StalledClaims
from tests.memorycluster import MemoryCluster
from tests.unit.provisioner.expanding import asking, grown
from tests.unit.provisioner.objects import CLASS, GIB, claim, our_body, published, storage_class

SNAPSHOT = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot"}


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sets(st.integers(0, 3)))))
def test_an_index_has_what_was_put_there_last(puts: list[tuple[str, set[int]]]) -> None:
    index, plain = Index[int](), dict[str, set[int]]()
    for key, values in puts:
        index.put(key, values)
        plain[key] = values
        assert {value: set(index.get(value)) for value in range(4)} == {
            value: {each for each, its in plain.items() if value in its} for value in range(4)
        }
        assert (key in index) == bool(values)
    for key in plain:
        index.discard(key)
    assert not index._keys
    assert not index._values


def test_those_that_lack_no_more_than_there_is_are_handed_out_in_the_order_in_which_they_came() -> None:
    stalled = StalledClaims()
    for name, size in (("a", 3), ("b", 1), ("c", 9), ("d", 3)):
        stalled.refuse(claim(name), size)
    stalled.refuse(claim("e"))
    stalled.refuse(claim("b"), 2)  # again, and it does not lose its place
    assert stalled.lacking(CLASS, lambda _: 3) == ["default/a", "default/b", "default/d"]
    assert stalled.lacking(CLASS, lambda _: 1) == []
    stalled.wait(claim("a"))
    stalled.discard("default/b")
    assert stalled.lacking(CLASS, lambda _: 3) == ["default/d"]
    assert stalled.of_class(CLASS) == [f"default/{name}" for name in "acde"]
    for name in "acde":
        stalled.discard(f"default/{name}")
    assert stalled.lacking(CLASS, lambda _: pytest.fail("nobody asks what is left when none lacks it")) == []


def test_how_long_it_waited_counts_for_one_node_and_one_wait() -> None:
    times = [5.0]
    stalled = StalledClaims(clock=lambda: times[-1])
    first = claim()
    assert stalled.waited(first) == 0
    stalled.wait(first)
    times.append(7.0)
    assert stalled.waited(first) == 2
    stalled.wait(first)
    assert stalled.waited(first) == 2
    assert stalled.waited(claim(node="n2")) == stalled.waited(claim(uid="another")) == 0
    stalled.refuse(first)
    assert stalled.waited(first) == 0


@pytest.fixture
def term(cluster: MemoryCluster) -> Iterator[Term]:
    """Not running: what its queues are given stays there. Two nodes with 10Gi each, n2 for `other` too."""
    made = Term(cluster, Settings(identity="test"), Metrics())
    for name in (CLASS, "other"):
        made.cache.classes._put(name, replace(storage_class(volumeBindingMode=IMMEDIATE), name=name))
    for node, name in (("n1", CLASS), ("n2", CLASS), ("n2", "other")):
        offered = replace(published(node), storage_class=name)
        made.cache.capacities._put(f"{node}-{name}", Published(offered, "1"))
    yield made
    for each in (made.claims.queue, made._expansion.queue):
        for timer in each._later.values():
            timer.cancel()


async def refused(term: Term, *claims: Claim) -> None:
    for each in claims:
        term.cache.claims._put(each.key, each)
        await term.claims._handle(each.key)
        assert each.key in term.claims._stalled
    woken(term)


def woken(term: Term) -> list[str]:
    """The claims that are to be looked at since this was asked last, by their names."""
    keys = [key.removeprefix("default/") for key in term.claims.queue._waiting]
    term.claims.queue._waiting.clear()
    return keys


def of_claim(name: str, node: str = "n1", size: int = 5 * GIB, **changes: Any) -> PersistentVolume:
    record = volume.read(our_body(volume.BOUND))
    assert record
    named = ClaimReference("default", name, f"uid-of-{name}")
    record = replace(record, name=f"pv-{name}", claim=named, storage_class=CLASS, reclaim_policy=volume.DELETE)
    return replace(record, node_label=node, size=size, **changes)


def asks(name: str, size: str = "20Gi", storage_class: str = CLASS, **fields: Any) -> Claim:
    return claim(name, size=size, node="", storageClassName=storage_class, **fields)


def copies(name: str, source: str, **fields: Any) -> Claim:
    return asks(name, "1Gi", dataSource={"kind": "PersistentVolumeClaim", "name": source, **fields})


async def test_a_volume_wakes_the_claims_that_become_copies_of_its_claims_and_no_others(term: Term) -> None:
    await refused(term, *(copies(f"copy-{number}", f"source-{number}") for number in range(300)), asks("large"))
    await refused(term, copies("restored", "source-3", **SNAPSHOT))
    term.cache.volumes._put("pv", of_claim("source-3"))
    assert woken(term) == ["copy-3"]
    term.cache.volumes._put("pv", of_claim("source-3", made=True))
    assert woken(term) == ["copy-3"]
    term.cache.volumes._put("pv", None)
    assert woken(term) == ["copy-3", "source-3"]


async def test_a_volume_that_went_wakes_the_claims_that_may_have_its_capacity_and_no_others(term: Term) -> None:
    for node in ("n1", "n2"):
        term.cache.volumes._put(f"pv-{node}", of_claim(node, node, 8 * GIB))
    await refused(
        term,
        *(asks(f"large-{number}") for number in range(300)),
        *(asks(f"elsewhere-{number}", "9Gi", "other") for number in range(3)),
        *(asks(f"raw-{number}", "1Gi", volumeMode="Block") for number in range(300)),
        asks("waits", "9Gi"),
        asks("unclassed", "1Gi", "none"),
    )
    term.cache.volumes._put("pv-n1", None)
    assert woken(term) == ["waits", "n1"], (
        "what is too large for any node, or refused for another reason, is left alone"
    )
    term.cache.volumes._put("pv-n2", None)
    assert woken(term) == ["waits", "elsewhere-0", "elsewhere-1", "elsewhere-2", "n2"]


async def test_a_reservation_that_ends_wakes_those_that_wait_for_its_account(term: Term) -> None:
    await refused(term, asks("large"), *(asks(f"small-{number}", "11Gi") for number in range(3)))
    term._capacity_freed(Account("n1", "vg"))
    term._capacity_freed(unplaced(CLASS))
    assert woken(term) == []
    term.cache.capacities._put(f"n1-{CLASS}", Published(published("n1", 12 * GIB), "2"))
    assert set(woken(term)) == {"large", "small-0", "small-1", "small-2"}, "a node that publishes more tells all"
    term._capacity_freed(Account("n2", "vg"))
    assert set(woken(term)) == {"small-0", "small-1", "small-2"}
    term._capacity_freed(Account("n3", "vg"))
    assert woken(term) == []
    term.claims.volume_missing("pvc-uid-of-large")
    assert woken(term) == ["large"]


async def test_a_class_wakes_its_claims_and_no_others(term: Term) -> None:
    await refused(term, *(asks(f"data-{number}") for number in range(30)), asks("elsewhere", storage_class="other"))
    term.cache.classes._put("other", None)
    assert woken(term) == ["elsewhere"]


async def test_capacity_wakes_the_expansions_of_its_node_and_of_volumes_without_one(term: Term) -> None:
    expansion = term._expansion
    for name, node in (*((f"n1-{number}", "n1") for number in range(300)), ("n2", "n2"), ("unplaced", "")):
        record = replace(grown(300), name=name, node_label=node)
        expansion._track(record, asking(50 * GIB), expansion._plan(record, asking(50 * GIB)))
    expansion.queue._later.clear()
    term.cache.volumes._put("pv", of_claim("any", "n2"))
    term.cache.volumes._put("pv", None)
    assert list(expansion.queue._waiting) == ["unplaced", "n2"]
