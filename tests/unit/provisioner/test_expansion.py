"""A claim that asks for more: what it is granted, what everybody is told, and in which order it is written."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import capacity, names, quantity
from contract import volume as contract_volume
from contract.volume import PersistentVolume
from kube.errors import Forbidden, Invalid, Json
from kube.records import IMMEDIATE, Claim
from kube.resources import CAPACITIES, CLAIMS, CLASSES, VOLUMES
from provisioner.decision import AvailableCapacity, NodeCapacity
from provisioner.expansion import ExpansionPlan, plan, plan_without_claim, refusal, status_patch, wanted_conditions
from provisioner.main import Term
from tests.memorycluster import MemoryCluster, lose_answer
from tests.unit.provisioner.leader import PV, does, leading, raises, release, volume
from tests.unit.provisioner.leader import claim as stored
from tests.unit.provisioner.objects import (
    CLASS,
    EXTENT,
    GIB,
    MIB,
    capacity_body,
    claim,
    claim_body,
    class_body,
    published,
)
from tests.waiting import drained, until

FULL = "no capacity"


def grown(
    size: int, *, granted: int | None = 300, actual: int = 300, given: int = 300, **changes: Any
) -> PersistentVolume:
    """With `size` for its spec.capacity."""
    made = PersistentVolume(
        name=PV,
        uid="uid",
        resource_version="1",
        size=size,
        options={"size": str(given)} if given else {},
        filesystem="ext4",
        reclaim_policy="Delete",
        storage_class=CLASS,
        provisioned_by=names.PROVISIONER,
        claim=None,
        node_label="n1",
        hostnames=("host-n1",),
        pool="vg",
        phase="Bound",
        finalizers=(),
        deleting=False,
        made=True,
        granted=granted,
        actual=actual,
    )
    return replace(made, **changes)


def asking(size: int, *, has: int = 300, allocated: int = 0, status: str = "") -> Claim:
    return replace(claim(volumeName=PV), requested=size, capacity=has, allocated=allocated, resize_status=status)


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
    asked=st.integers(1, 100),
    given=st.integers(1, 50),
    grant=st.integers(0, 50),
    real=st.integers(0, 60),
    behind=st.integers(0, 50),
    raised=st.integers(0, 50),
    status=st.tuples(st.integers(0, 100), st.sampled_from(("", "NodeResizePending", "NodeResizeInfeasible"))),
    has_capacity=st.booleans(),
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
    # It is a goal, and no swing: what was written is what is planned then.
    settled = replace(volume, granted=after.granted, size=after.capacity)
    rewritten = written(volume, claim, after)
    assert status_patch(settled, rewritten, plan(settled, rewritten, refused, in_grace=grace), "") == {}


def written(volume: PersistentVolume, claim: Claim, planned: ExpansionPlan) -> Claim:
    """The claim with its status as planned."""
    found = replace(claim, allocated=planned.allocated or claim.allocated)
    if planned.step is None:
        return found
    conditions: dict[str, str | None] = dict(claim.resize_conditions)
    if volume.source == "csi":
        conditions |= wanted_conditions(planned.step, planned.refused)
    kept = tuple((kind, text) for kind, text in conditions.items() if text is not None)
    return replace(found, resize_status=planned.step, resize_conditions=kept)


def csi(size: int, **fields: Any) -> PersistentVolume:
    return replace(grown(size, **fields), source="csi")


PENDING, INFEASIBLE, IN_PROGRESS = "NodeResizePending", "ControllerResizeInfeasible", "ControllerResizeInProgress"


@pytest.mark.parametrize(
    ("volume", "claim", "refused", "planned"),
    [
        pytest.param(csi(300), asking(300), "", ExpansionPlan(300, 300), id="nothing to do"),
        pytest.param(
            csi(300),
            asking(400),
            "",
            ExpansionPlan(400, 300, 400, IN_PROGRESS, waits=True),
            id="there is room: the node is to extend it",
        ),
        pytest.param(
            csi(300, granted=400, actual=350),
            asking(400, allocated=400, status=IN_PROGRESS),
            "",
            ExpansionPlan(400, 300, 400, IN_PROGRESS, waits=True),
            id="the node takes its time",
        ),
        pytest.param(
            csi(300, granted=400, actual=400),
            asking(400, allocated=400, status=IN_PROGRESS),
            "",
            ExpansionPlan(400, 400, 400, PENDING, pre_resize=300),
            id="the node did it: the kubelet is to finish",
        ),
        pytest.param(
            csi(300, granted=400, actual=400),
            asking(400, allocated=400, status=PENDING),
            "",
            ExpansionPlan(400, 400, 400, PENDING, pre_resize=300),
            id="cut off between claim and volume",
        ),
        pytest.param(
            csi(400, granted=400, actual=400, pre_resize=300),
            asking(400, allocated=400, status="NodeResizeInProgress"),
            "",
            ExpansionPlan(400, 400, pre_resize=300),
            id="the kubelet is at it",
        ),
        pytest.param(
            csi(400, granted=400, actual=400, pre_resize=300),
            asking(400, has=400, allocated=400),
            "",
            ExpansionPlan(400, 400),
            id="the kubelet finished",
        ),
        pytest.param(
            csi(500, granted=500, actual=500, pre_resize=300),
            asking(400, has=400, allocated=400),
            "",
            ExpansionPlan(500, 400),
            id="lowered, and cut off before spec.capacity followed",
        ),
        pytest.param(
            csi(300), asking(5000), FULL, ExpansionPlan(300, 300, step=INFEASIBLE, refused=FULL), id="no room"
        ),
        pytest.param(
            csi(300),
            asking(5000, allocated=5000, status=IN_PROGRESS),
            FULL,
            ExpansionPlan(300, 300, step=INFEASIBLE, refused=FULL),
            id="the room went before it was granted",
        ),
        pytest.param(
            csi(300),
            asking(400, allocated=5000, status=INFEASIBLE),
            "",
            ExpansionPlan(400, 300, 400, IN_PROGRESS, waits=True),
            id="lowered to what there is",
        ),
        pytest.param(
            csi(300, actual=304),
            asking(302, status=INFEASIBLE),
            "",
            ExpansionPlan(302, 302, 302, PENDING, pre_resize=300),
            id="lowered to what the volume has anyway",
        ),
        pytest.param(
            csi(300, granted=5000, actual=5000),
            asking(400, allocated=5000, status=IN_PROGRESS),
            FULL,
            ExpansionPlan(5000, 400, 400, PENDING, pre_resize=300),
            id="lowered after the node had done it",
        ),
        pytest.param(
            csi(5000, granted=5000, actual=5000, pre_resize=300),
            asking(400, allocated=5000, status=PENDING),
            "",
            ExpansionPlan(5000, 5000, pre_resize=300),
            id="lowered while the kubelet is at it: that one is finished",
        ),
        pytest.param(
            csi(400, granted=400, actual=400, pre_resize=300),
            asking(500, allocated=400, status=PENDING),
            "",
            ExpansionPlan(500, 400, pre_resize=300, waits=True),
            id="raised again: the kubelet finishes first, the room is reserved",
        ),
        pytest.param(
            csi(400, granted=400, actual=400, pre_resize=300),
            asking(5000, allocated=400, status=PENDING),
            FULL,
            ExpansionPlan(400, 400, pre_resize=300, refused=FULL),
            id="raised beyond the room while the kubelet is at it",
        ),
        pytest.param(
            csi(400, granted=400, actual=400, pre_resize=300),
            asking(400, allocated=400, status="NodeResizeInfeasible"),
            "",
            ExpansionPlan(400, 400, 400, PENDING, pre_resize=300),
            id="the kubelet gave up",
        ),
        pytest.param(
            csi(5000, granted=300),
            asking(400),
            FULL,
            ExpansionPlan(300, 300, step=INFEASIBLE, refused=FULL),
            id="somebody raised spec.capacity by hand",
        ),
        pytest.param(
            csi(300),
            asking(5000, allocated=5000, status=PENDING),
            FULL,
            ExpansionPlan(300, 300, step=INFEASIBLE, refused=FULL),
            id="a claim that was asked for more as a FlexVolume",
        ),
        pytest.param(
            csi(300, actual=0, node_label="", made=False),
            asking(400),
            "",
            ExpansionPlan(400, 400, 400, PENDING, pre_resize=300),
            id="without a node",
        ),
        pytest.param(
            csi(300),
            asking(300, allocated=400, status=INFEASIBLE),
            "",
            ExpansionPlan(300, 300, step=""),
            id="nothing of it is left",
        ),
    ],
)
@pytest.mark.parametrize("grace", [True, False])
def test_plan_of_a_csi_volume(
    volume: PersistentVolume, claim: Claim, refused: str, planned: ExpansionPlan, grace: bool
) -> None:
    assert plan(volume, claim, refused, in_grace=grace) == planned


@given(
    asked=st.integers(1, 100),
    given=st.integers(1, 50),
    grant=st.integers(0, 50),
    real=st.integers(0, 60),
    behind=st.integers(0, 50),
    raised=st.integers(0, 50),
    allocated=st.integers(0, 100),
    status=st.sampled_from(("", IN_PROGRESS, INFEASIBLE, PENDING, "NodeResizeInProgress", "NodeResizeInfeasible")),
    has_capacity=st.booleans(),
)
def test_a_csi_volume_is_promised_no_more_than_it_has(
    asked: int,
    given: int,
    grant: int,
    real: int,
    behind: int,
    raised: int,
    allocated: int,
    status: str,
    has_capacity: bool,
) -> None:
    granted = given + grant
    has = max(granted - behind, given)
    volume = csi(has + raised, granted=granted, actual=real, given=given)
    claim = asking(asked, has=has, allocated=allocated, status=status)
    refused = "" if has_capacity else FULL
    after = plan(volume, claim, refused, in_grace=True)
    assert has <= after.granted <= max(granted, asked if has_capacity else 0, has)
    if after.capacity > volume.size:
        assert after.capacity == asked <= real
        assert after.step == PENDING
    assert after.capacity <= max(after.granted, has)
    assert after.pre_resize == (has if after.capacity > has else 0)
    if after.step == PENDING:
        assert after.allocated == after.capacity == asked
    settled = replace(volume, granted=after.granted, size=after.capacity, pre_resize=after.pre_resize)
    rewritten = written(volume, claim, after)
    again = plan(settled, rewritten, refused, in_grace=True)
    assert status_patch(settled, rewritten, again, "") == {}
    assert (again.granted, again.capacity, again.pre_resize) == (after.granted, after.capacity, after.pre_resize)


def test_only_what_differs_of_a_status_is_written_and_other_conditions_are_left_alone() -> None:
    claim = asking(400)
    planned = plan(csi(300), claim, FULL, in_grace=True)
    patch = status_patch(csi(300), claim, planned, "now")
    assert patch["metadata"] == {"uid": claim.uid, "resourceVersion": claim.resource_version}
    error = {"type": "ControllerResizeError", "status": "True", "message": FULL, "lastTransitionTime": "now"}
    assert patch["status"] == {"allocatedResourceStatuses": {"storage": INFEASIBLE}, "conditions": [error]}
    refused = written(csi(300), claim, planned)
    assert status_patch(csi(300), refused, planned, "later") == {}
    granted = status_patch(csi(300), refused, plan(csi(300), refused, "", in_grace=True), "later")
    assert granted["status"] == {
        "allocatedResources": {"storage": "400"},
        "allocatedResourceStatuses": {"storage": IN_PROGRESS},
        "conditions": [
            {"type": "Resizing", "status": "True", "message": "", "lastTransitionTime": "later"},
            {"type": "ControllerResizeError", "$patch": "delete"},
        ],
    }


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


# A term of leadership, and the others played: Kubernetes raises spec.capacity, the node does what it is granted.


async def bound(cluster: MemoryCluster, *, size: str = "1Gi", made: bool = True) -> None:
    """The claim of `data` has its volume."""
    await until(lambda: volume(cluster))
    body = volume(cluster)
    assert body
    body["status"] = {"phase": "Bound"}
    if made:
        body["metadata"]["annotations"] |= {
            names.MADE_ANNOTATION: "true",
            names.SIZE_ANNOTATION: str(quantity.parse(size)),
        }
    cluster.put(VOLUMES, body)
    asked = stored(cluster)
    asked["spec"]["volumeName"] = PV
    asked["status"] = {"phase": "Bound", "capacity": {"storage": size}}
    cluster.put(CLAIMS, asked)


def ask(cluster: MemoryCluster, size: str, *, raises_capacity: bool = True) -> None:
    body = stored(cluster)
    body["spec"]["resources"]["requests"]["storage"] = size
    cluster.put(CLAIMS, body)
    if raises_capacity:
        body["status"] |= {
            "allocatedResources": {"storage": size},
            "allocatedResourceStatuses": {"storage": "NodeResizePending"},
        }
        cluster.put(CLAIMS, body)
        kept = volume(cluster)
        assert kept
        kept["spec"]["capacity"]["storage"] = size
        cluster.put(VOLUMES, kept)


def node_has(cluster: MemoryCluster, size: str) -> None:
    body = volume(cluster)
    assert body
    body["metadata"]["annotations"][names.SIZE_ANNOTATION] = str(quantity.parse(size))
    cluster.put(VOLUMES, body)


def figures(cluster: MemoryCluster) -> tuple[str, str]:
    """Granted, and spec.capacity."""
    body = volume(cluster)
    assert body
    return (
        quantity.render(int(body["metadata"]["annotations"][names.GRANTED_ANNOTATION])),
        str(body["spec"]["capacity"]["storage"]),
    )


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


def left(size: int, **fields: Any) -> PersistentVolume:
    """A retained volume whose claim is gone."""
    return grown(size, **{"phase": "Released", "reclaim_policy": "Retain", **fields})


@pytest.mark.parametrize(
    ("volume", "planned"),
    [
        pytest.param(left(5000), ExpansionPlan(300, 300), id="a request that was not granted"),
        pytest.param(left(5000, granted=None, actual=0), ExpansionPlan(300, 300), id="nobody wrote down anything"),
        pytest.param(left(400, granted=400), ExpansionPlan(400, 300), id="granted, and not given yet"),
        pytest.param(left(400, granted=400, actual=400), None, id="grown"),
        pytest.param(left(5000, phase="Available"), ExpansionPlan(300, 300), id="its claim was taken off already"),
        pytest.param(left(5000, reclaim_policy="Delete"), None, id="it goes"),
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


# The same for CSI: nobody but the provisioner raises spec.capacity, and the kubelet heeds the claim's status.


@pytest.fixture
async def growing(cluster: MemoryCluster) -> AsyncIterator[MemoryCluster]:
    """A claim with a CSI volume of 1Gi, and 10Gi in its pool."""
    async with leading_with_csi(cluster):
        yield cluster


@asynccontextmanager
async def leading_with_csi(cluster: MemoryCluster) -> AsyncIterator[Term]:
    cluster.put(CLASSES, class_body(parameters={"volumeSource": "csi"}))
    cluster.put(CLAIMS, claim_body())
    async with leading(cluster) as term:
        await bound(cluster)
        yield term


def request(cluster: MemoryCluster, size: str) -> None:
    ask(cluster, size, raises_capacity=False)


def status(cluster: MemoryCluster) -> tuple[str, str, set[str]]:
    """Step, allocated size and types of conditions of the claim."""
    found = stored(cluster)["status"]
    return (
        found.get("allocatedResourceStatuses", {}).get("storage", ""),
        found.get("allocatedResources", {}).get("storage", ""),
        {each["type"] for each in found.get("conditions") or []},
    )


def kubelet_finishes(cluster: MemoryCluster) -> None:
    body = stored(cluster)
    body["status"]["capacity"] = body["status"]["allocatedResources"]
    del body["status"]["allocatedResourceStatuses"], body["status"]["conditions"]
    cluster.put(CLAIMS, body)


def pre_resize(cluster: MemoryCluster) -> str:
    body = volume(cluster)
    assert body
    return str(body["metadata"]["annotations"].get(names.PRE_RESIZE_ANNOTATION, ""))


async def test_a_csi_volume_grows_step_by_step(growing: MemoryCluster) -> None:
    request(growing, "5Gi")
    await until(lambda: figures(growing) == ("5Gi", "1Gi"))
    assert status(growing) == (IN_PROGRESS, "5Gi", {"Resizing"})
    seen: list[str] = []
    growing.before["patch", "persistentvolumes"] = [does(lambda: seen.append(status(growing)[0]))]
    node_has(growing, "5Gi")
    await until(lambda: figures(growing) == ("5Gi", "5Gi"))
    assert seen == [PENDING], "the status comes before spec.capacity"
    assert status(growing) == (PENDING, "5Gi", {"Resizing", "FileSystemResizePending"})
    assert pre_resize(growing) == "1Gi"
    await until(lambda: growing.messages("FileSystemResizeRequired"))
    kubelet_finishes(growing)
    await until(lambda: not pre_resize(growing))
    assert figures(growing) == ("5Gi", "5Gi")
    assert growing.messages("VolumeResizeFailed") == []


async def test_a_csi_volume_without_room_keeps_its_size_until_the_claim_is_lowered(growing: MemoryCluster) -> None:
    request(growing, "50Gi")
    await until(lambda: status(growing)[0] == INFEASIBLE)
    assert status(growing) == (INFEASIBLE, "", {"ControllerResizeError"})
    (condition,) = stored(growing)["status"]["conditions"]
    assert "the claim asks for 50Gi, 49Gi more than it has, and node n1 has 9Gi left" in condition["message"]
    await until(lambda: growing.messages("VolumeResizeFailed") == [condition["message"]])
    assert figures(growing) == ("1Gi", "1Gi")
    request(growing, "2Gi")
    await until(lambda: figures(growing) == ("2Gi", "1Gi"))
    assert status(growing) == (IN_PROGRESS, "2Gi", {"Resizing"})
    node_has(growing, "2Gi")
    await until(lambda: figures(growing) == ("2Gi", "2Gi"))
    assert status(growing)[:2] == (PENDING, "2Gi")


async def test_a_csi_volume_is_granted_its_room_when_that_comes(growing: MemoryCluster) -> None:
    request(growing, "50Gi")
    await until(lambda: status(growing)[0] == INFEASIBLE)
    growing.put(CAPACITIES, capacity_body("n1", 60 * GIB))
    await until(lambda: figures(growing) == ("50Gi", "1Gi"))
    assert status(growing) == (IN_PROGRESS, "50Gi", {"Resizing"})


async def test_a_kubelet_that_gave_up_tries_again_and_not_at_once_for_ever(cluster: MemoryCluster) -> None:
    def give_up() -> None:
        body = stored(cluster)
        body["status"]["allocatedResourceStatuses"] = {"storage": "NodeResizeInfeasible"}
        cluster.put(CLAIMS, body)

    async with leading_with_csi(cluster) as term:
        request(cluster, "5Gi")
        await until(lambda: figures(cluster) == ("5Gi", "1Gi"))
        node_has(cluster, "5Gi")
        await until(lambda: status(cluster)[0] == PENDING)
        give_up()
        await until(lambda: status(cluster)[0] == PENDING)
        give_up()
        request(cluster, "4Gi")
        await until(lambda: figures(cluster) == ("5Gi", "4Gi"))
        assert status(cluster)[:2] == (PENDING, "4Gi")
        give_up()
        live = ("get", "persistentvolumeclaims", "data")
        looked = cluster.requests.count(live)
        await until(lambda: cluster.requests.count(live) > looked)
        await drained(term._queues["growing"])
        assert status(cluster)[0] == "NodeResizeInfeasible"


async def test_an_api_server_that_drops_the_status_holds_up_nothing(growing: MemoryCluster) -> None:
    """Before 1.32, where the feature is off."""

    def drop() -> None:
        body = stored(growing)
        for key in ("allocatedResources", "allocatedResourceStatuses"):
            body["status"].pop(key, None)
        growing.put(CLAIMS, body)

    growing.after["patch", "persistentvolumeclaims"] = [does(drop) for _ in range(20)]
    request(growing, "5Gi")
    await until(lambda: figures(growing) == ("5Gi", "1Gi"))
    node_has(growing, "5Gi")
    await until(lambda: figures(growing) == ("5Gi", "5Gi"))


async def test_one_that_does_not_know_the_word_for_infeasible_gets_the_event_all_the_same(
    growing: MemoryCluster,
) -> None:
    unknown = Invalid(422, "Invalid", 'Unsupported value: "ControllerResizeInfeasible"')
    growing.before["patch", "persistentvolumeclaims"] = [raises(unknown)]
    request(growing, "50Gi")
    await until(lambda: growing.messages("VolumeResizeFailed"))
    await until(lambda: not growing.before["patch", "persistentvolumeclaims"])
    request(growing, "2Gi")
    await until(lambda: figures(growing) == ("2Gi", "1Gi"))
