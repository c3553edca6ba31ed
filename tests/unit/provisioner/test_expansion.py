"""A claim that asks for more: what it is granted, what everybody is told, and in which order it is written. With a
FlexVolume, where Kubernetes raises spec.capacity at once."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import capacity, names
from contract import volume as contract_volume
from contract.volume import ClaimReference, PersistentVolume
from kube.errors import Forbidden, Json
from kube.records import IMMEDIATE, Claim
from kube.resources import CAPACITIES, CLAIMS, CLASSES, VOLUMES
from provisioner.decision import AvailableCapacity, NodeCapacity
from provisioner.expansion import ExpansionPlan, plan, plan_without_claim, refusal
from tests.memorycluster import MemoryCluster, lose_answer
from tests.unit.provisioner.expanding import AMOUNTS, FULL, ask, asking, bound, figures, grown, node_has, planned_again
from tests.unit.provisioner.leader import PV, does, leading, raises, release, volume
from tests.unit.provisioner.leader import claim as stored
from tests.unit.provisioner.objects import (
    EXTENT,
    GIB,
    MIB,
    capacity_body,
    claim_body,
    class_body,
    published,
)
from tests.waiting import drained, until


@pytest.mark.parametrize(
    ("volume", "claim", "refused", "grace", "planned"),
    [
        pytest.param(grown(300), asking(300), "", True, ExpansionPlan(300, 300), id="nothing to do"),
        pytest.param(
            grown(400), asking(400), "", True, ExpansionPlan(400, 400, waits=True), id="granted, the node will do it"
        ),
        pytest.param(
            grown(400, granted=400),
            asking(400),
            "",
            False,
            ExpansionPlan(400, 300, waits=True),
            id="the node takes its time",
        ),
        pytest.param(
            grown(300, granted=400, actual=400), asking(400), "", True, ExpansionPlan(400, 400), id="the node did it"
        ),
        pytest.param(
            grown(300, granted=400, actual=400),
            asking(400, allocated=400, status="NodeResizePending"),
            "",
            True,
            ExpansionPlan(400, 400),
            id="the kubelet knows how far",
        ),
        pytest.param(grown(5000), asking(5000), FULL, True, ExpansionPlan(300, 300, refused=FULL), id="a request"),
        pytest.param(
            grown(5000), asking(400), "", True, ExpansionPlan(400, 300, waits=True), id="lowered to what can be granted"
        ),
        pytest.param(
            grown(300, granted=400, actual=400),
            asking(400, allocated=5000, status="NodeResizeInProgress"),
            "",
            True,
            ExpansionPlan(400, 400, allocated=400, step="NodeResizePending"),
            id="lowered: the kubelet would grow to what was asked for first",
        ),
        pytest.param(
            grown(300, granted=400, actual=400),
            asking(400, allocated=400, status="NodeResizeInfeasible"),
            "",
            True,
            ExpansionPlan(400, 400, allocated=400, step="NodeResizePending"),
            id="the kubelet gave up",
        ),
        pytest.param(
            grown(300, granted=5000),
            asking(400),
            FULL,
            True,
            ExpansionPlan(400, 300, waits=True),
            id="lowered before it was given",
        ),
        pytest.param(
            grown(300, granted=5000, actual=5000),
            asking(400),
            FULL,
            True,
            ExpansionPlan(5000, 400),
            id="lowered too late",
        ),
        pytest.param(
            grown(300, granted=400),
            asking(5000),
            FULL,
            False,
            ExpansionPlan(400, 300, refused=FULL),
            id="raised beyond a grant",
        ),
        pytest.param(
            grown(300, actual=304),
            asking(302),
            FULL,
            True,
            ExpansionPlan(300, 300, refused=FULL),
            id="rounding is no grant",
        ),
        pytest.param(
            grown(200, granted=None, actual=0, given=100),
            asking(200, has=200),
            "",
            True,
            ExpansionPlan(200, 200),
            id="grown before grants were written down",
        ),
        pytest.param(
            grown(5000, granted=None, actual=0, given=100),
            asking(5000, has=200),
            FULL,
            True,
            ExpansionPlan(200, 200, refused=FULL),
            id="of old, and a request",
        ),
        pytest.param(
            grown(5000, granted=None, actual=0, given=0),
            asking(5000, has=200),
            FULL,
            True,
            ExpansionPlan(200, 200, refused=FULL),
            id="by hand, and a request",
        ),
        pytest.param(
            grown(400, actual=0, node_label="", made=False),
            asking(400),
            "",
            True,
            ExpansionPlan(400, 400),
            id="without a node",
        ),
        pytest.param(
            grown(400, actual=0, made=False),
            asking(400),
            "",
            True,
            ExpansionPlan(400, 400, waits=True),
            id="not made yet",
        ),
        pytest.param(
            grown(1000, granted=1000, given=1000),
            asking(300, has=1000),
            FULL,
            True,
            ExpansionPlan(1000, 1000),
            id="bound to a larger",
        ),
    ],
)
def test_plan(volume: PersistentVolume, claim: Claim, refused: str, grace: bool, planned: ExpansionPlan) -> None:
    assert plan(volume, claim, refused, in_grace=grace) == planned


@given(
    **AMOUNTS,
    status=st.tuples(st.integers(0, 100), st.sampled_from(("", "NodeResizePending", "NodeResizeInfeasible"))),
    grace=st.booleans(),
)
def test_no_request_becomes_more_than_it_may(
    asked: int,
    given: int,
    grant: int,
    real: int,
    behind: int,
    raised: int,
    status: tuple[int, str],
    has_capacity: bool,
    grace: bool,
) -> None:
    granted = given + grant
    has = max(granted - behind, given)
    volume = grown(has + raised, granted=granted, actual=real, given=given)
    claim = asking(asked, has=has, allocated=status[0], status=status[1])
    refused = "" if has_capacity else FULL
    after = plan(volume, claim, refused, in_grace=grace)
    assert has <= after.granted <= max(granted, asked if has_capacity else 0, has)
    if asked > granted and not has_capacity:
        assert after.refused
    if after.capacity > has and not (grace and after.waits):
        assert asked <= real <= max(after.granted, real), "spec.capacity says what the volume has"
        assert after.capacity == asked
    planned_again(volume, claim, refused, after, in_grace=grace)


def available(free: int) -> AvailableCapacity:
    return AvailableCapacity([NodeCapacity(published(free=10 * GIB), free)])


def test_a_refusal_says_how_much_is_missing_and_what_to_do() -> None:
    volume = grown(50 * GIB, granted=300 * MIB, actual=300 * MIB, given=300 * MIB)
    request = asking(50 * GIB, has=300 * MIB)
    assert refusal(volume, request, available(50 * GIB)) == ""
    assert refusal(volume, request, available(7 * GIB // 4)) == (
        "the claim asks for 50Gi, 49.7Gi more than it has, and node n1 has 1.7Gi left in pool vg: it keeps the 300Mi "
        "that it has and grows by itself when there is space; free up space on that node, or lower the claim again, to "
        "anything above 300Mi"
    )
    assert refusal(volume, request, AvailableCapacity()).startswith(
        "node n1 publishes no capacity of pool vg (is its elastic-local daemon ready?): it keeps the 300Mi"
    )
    unplaced_volume = replace(volume, node_label="")
    assert "the most that a node has is 2Gi left in pool vg" in refusal(unplaced_volume, request, available(2 * GIB))


def test_a_mirror_grows_twice() -> None:
    volume = grown(GIB, granted=300 * MIB, actual=300 * MIB, given=300 * MIB)
    mirror = replace(volume, options={**volume.options, "raid": "raid1"})
    request = asking(GIB, has=300 * MIB)
    assert refusal(mirror, request, available(2 * (GIB - 300 * MIB))) == ""
    assert "which takes 2Gi (raid1), 1.4Gi more than it has" in refusal(mirror, request, available(GIB))


def test_within_what_a_volume_has_anyway_there_is_always_room() -> None:
    """Whole extents: the last one has more than was asked for. Also on a node with too much reserved."""
    volume = grown(3 * EXTENT, granted=2 * EXTENT + 1, actual=3 * EXTENT, given=2 * EXTENT + 1)
    assert refusal(volume, asking(3 * EXTENT, has=2 * EXTENT + 1), available(-GIB)) == ""


def allocated(cluster: MemoryCluster) -> Json:
    return dict(stored(cluster)["status"]["allocatedResources"])


async def test_a_request_reserves_nothing_and_is_granted_when_there_is_capacity(cluster: MemoryCluster) -> None:
    cluster.put(CLAIMS, claim_body())
    async with leading(cluster) as term:
        await bound(cluster)
        ask(cluster, "50Gi")
        await until(lambda: figures(cluster) == ("1Gi", "1Gi"))
        await until(lambda: cluster.messages("VolumeResizeFailed"))
        assert term.cache.available_for_growth(term.cache.volumes.values()[0]).nodes[0].free == 9 * GIB
        cluster.put(CLAIMS, claim_body("other", size="9Gi"))
        await until(lambda: volume(cluster, "pvc-uid-of-other"))

        cluster.put(CAPACITIES, capacity_body("n1", 60 * GIB))
        await until(lambda: figures(cluster) == ("50Gi", "1Gi"))
        node_has(cluster, "50Gi")
        await until(lambda: figures(cluster) == ("50Gi", "50Gi"))
    assert allocated(cluster) == {"storage": "50Gi"}


async def test_what_the_node_knows_of_is_not_counted_against_a_volume_that_grows(cluster: MemoryCluster) -> None:
    """A class of several legs publishes what it knew to be reserved, this volume among it."""
    cluster.put(CLAIMS, claim_body())
    async with leading(cluster):
        await bound(cluster)
        knows = replace(published(free=2 * GIB), weight=2, reserved=GIB)
        cluster.put(CAPACITIES, capacity.manifest(knows, names.NAMESPACE, None))
        ask(cluster, "2Gi")
        await until(lambda: figures(cluster)[0] == "2Gi")


async def test_room_that_comes_back_with_a_volume_is_granted(cluster: MemoryCluster) -> None:
    cluster.put(CLAIMS, claim_body())
    cluster.put(CLAIMS, claim_body("other", size="6Gi"))
    async with leading(cluster):
        await bound(cluster)
        await until(lambda: volume(cluster, "pvc-uid-of-other"))
        ask(cluster, "5Gi")
        await until(lambda: cluster.messages("VolumeResizeFailed"))
        cluster.remove(CLAIMS, "other", "default")
        cluster.remove(VOLUMES, "pvc-uid-of-other")
        await until(lambda: figures(cluster)[0] == "5Gi")


async def test_a_claim_that_was_lowered_again_is_what_the_kubelet_grows_to(cluster: MemoryCluster) -> None:
    """Nobody of Kubernetes looks at a claim that was lowered."""
    cluster.put(CLAIMS, claim_body())
    async with leading(cluster):
        await bound(cluster)
        ask(cluster, "50Gi")
        await until(lambda: figures(cluster) == ("1Gi", "1Gi"))
        ask(cluster, "2Gi", raises_capacity=False)
        await until(lambda: figures(cluster)[0] == "2Gi")
        assert figures(cluster)[1] == "1Gi"
        assert allocated(cluster) == {"storage": "50Gi"}
        seen: list[Json] = []
        cluster.before["patch", "persistentvolumes"] = [does(lambda: seen.append(allocated(cluster)))]
        node_has(cluster, "2Gi")
        await until(lambda: figures(cluster) == ("2Gi", "2Gi"))
    assert seen == [{"storage": "2Gi"}], "before spec.capacity is raised"
    assert stored(cluster)["status"]["allocatedResourceStatuses"] == {"storage": "NodeResizePending"}


async def test_a_node_that_takes_its_time_keeps_no_pod_from_starting(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provisioner.expansion.NODE_GRACE", 0.05)
    cluster.put(CLAIMS, claim_body())
    async with leading(cluster):
        await bound(cluster)
        ask(cluster, "2Gi")
        await until(lambda: figures(cluster) == ("2Gi", "2Gi"))
        await until(lambda: figures(cluster) == ("2Gi", "1Gi"))
        node_has(cluster, "2Gi")
        await until(lambda: figures(cluster) == ("2Gi", "2Gi"))


async def test_two_that_grow_at_once_are_not_granted_the_same_capacity(cluster: MemoryCluster) -> None:
    for name in ("data", "more"):
        cluster.put(CLAIMS, claim_body(name))
    async with leading(cluster) as term:
        names_of = {name: f"pvc-uid-of-{name}" for name in ("data", "more")}
        await until(lambda: all(volume(cluster, pv) for pv in names_of.values()))
        cluster.watching.clear()
        for name, pv in names_of.items():
            body = volume(cluster, pv)
            assert body
            body["status"], body["spec"]["capacity"]["storage"] = {"phase": "Bound"}, "6Gi"
            cluster.put(VOLUMES, body)
            asked = stored(cluster, name)
            asked["spec"] |= {"volumeName": pv, "resources": {"requests": {"storage": "6Gi"}}}
            asked["status"] = {"phase": "Bound", "capacity": {"storage": "1Gi"}}
            cluster.put(CLAIMS, asked)
        cluster.watching.set()
        await until(lambda: cluster.messages("VolumeResizeFailed"))
        await drained(term._queues["growing"])
        pvs = [contract_volume.read(body) for body in cluster.all(VOLUMES)]
    assert sorted(each.granted or 0 for each in pvs if each) == [GIB, 6 * GIB]


async def test_a_lost_answer_is_noticed_and_the_capacity_stays_reserved(
    cluster: MemoryCluster,
) -> None:
    cluster.put(CLAIMS, claim_body())
    async with leading(cluster) as term:
        await bound(cluster)
        cluster.after["patch", "persistentvolumes"] = [lose_answer]
        cluster.before["patch", "persistentvolumes"] = [does(cluster.watching.clear)]
        ask(cluster, "9Gi")
        await until(lambda: figures(cluster)[0] == "9Gi")
        assert term.ledger.reserved(term.ledger._observed[PV].charge.account, EXTENT) == 9 * GIB  # type: ignore[union-attr]
        cluster.watching.set()
        node_has(cluster, "9Gi")
        await until(lambda: figures(cluster) == ("9Gi", "9Gi"))
        await until(lambda: not term.ledger._growths)
        assert term.ledger.reserved(term.ledger._observed[PV].charge.account, EXTENT) == 9 * GIB  # type: ignore[union-attr]


async def test_what_the_api_server_refuses_is_not_reserved(cluster: MemoryCluster) -> None:
    cluster.put(CLAIMS, claim_body())
    async with leading(cluster) as term:
        await bound(cluster)
        cluster.before["patch", "persistentvolumes"] = [raises(Forbidden(403, "Forbidden", "no"))]
        ask(cluster, "9Gi")
        await until(lambda: not cluster.before["patch", "persistentvolumes"])
        await until(lambda: not term.ledger._growths)
        await until(lambda: figures(cluster)[0] == "9Gi")


LAST = ClaimReference("default", "data", "last")


def left(size: int, **fields: Any) -> PersistentVolume:
    """A retained volume whose claim is gone."""
    return grown(size, **{"phase": "Released", "reclaim_policy": "Retain", **fields})


@pytest.mark.parametrize(
    ("volume", "planned"),
    [
        pytest.param(left(5000), ExpansionPlan(300, 300), id="a request that was not granted"),
        pytest.param(left(5000, granted=None, actual=0), ExpansionPlan(300, 300), id="nobody wrote down anything"),
        pytest.param(left(400, granted=400), None, id="granted: its node gives it, or gave it and did not say so yet"),
        pytest.param(left(5000, granted=400), ExpansionPlan(400, 400), id="granted, and more was requested then"),
        pytest.param(left(400, granted=400, actual=400), None, id="grown"),
        pytest.param(left(5000, phase="Available"), ExpansionPlan(300, 300), id="its claim was taken off already"),
        pytest.param(left(5000, reclaim_policy="Delete", claim=LAST), None, id="it goes"),
        pytest.param(left(5000, deleting=True), None, id="it is being deleted"),
        pytest.param(left(5000, given=0, granted=None, actual=0), None, id="made by hand"),
    ],
)
def test_a_volume_without_a_claim_says_what_it_has(volume: PersistentVolume, planned: ExpansionPlan | None) -> None:
    assert plan_without_claim(volume) == planned


async def test_a_claim_that_goes_before_its_request_was_refused_leaves_none_of_it(cluster: MemoryCluster) -> None:
    """Kubernetes would tell the next claim of that volume that it has all that the last one asked for."""
    cluster.put(CLASSES, class_body(reclaimPolicy="Retain"))
    cluster.put(CLAIMS, claim_body())
    async with leading(cluster):
        await bound(cluster)
    ask(cluster, "50Gi")
    cluster.remove(CLAIMS, "data", "default")
    release(cluster)
    async with leading(cluster):
        await until(lambda: figures(cluster) == ("1Gi", "1Gi"))


async def test_a_volume_without_a_node_is_granted_what_some_node_has(cluster: MemoryCluster) -> None:
    cluster.put(CLASSES, class_body(volumeBindingMode=IMMEDIATE))
    cluster.put(CLAIMS, claim_body(node=""))
    async with leading(cluster):
        await bound(cluster, made=False)
        ask(cluster, "11Gi")
        await until(lambda: cluster.messages("VolumeResizeFailed"))
        await until(lambda: figures(cluster) == ("1Gi", "1Gi"))
        assert "the most that a node has is 10Gi left in pool vg, on n1" in cluster.messages("VolumeResizeFailed")[0]
        ask(cluster, "9Gi")
        await until(lambda: figures(cluster) == ("9Gi", "9Gi"))
