"""A claim of a CSI volume that asks for more: nobody but the provisioner raises spec.capacity, and the kubelet heeds
the claim's status."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import names
from contract.volume import PersistentVolume
from kube.errors import Invalid, Json
from kube.records import Claim
from kube.resources import CAPACITIES, CLAIMS, CLASSES, VOLUMES
from provisioner.expansion import ExpansionPlan, plan, status_patch
from provisioner.main import Term
from tests.memorycluster import MemoryCluster
from tests.unit.provisioner.expanding import (
    AMOUNTS,
    FULL,
    ask,
    asking,
    bound,
    figures,
    grown,
    node_has,
    planned_again,
    written,
)
from tests.unit.provisioner.leader import PV, does, leading, raises, volume
from tests.unit.provisioner.leader import claim as stored
from tests.unit.provisioner.objects import (
    GIB,
    capacity_body,
    claim_body,
    class_body,
)
from tests.waiting import drained, until


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
    **AMOUNTS,
    allocated=st.integers(0, 100),
    status=st.sampled_from(("", IN_PROGRESS, INFEASIBLE, PENDING, "NodeResizeInProgress", "NodeResizeInfeasible")),
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
    again = planned_again(volume, claim, refused, after, in_grace=True)
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


@pytest.mark.parametrize("behind", [{"status": {"phase": "Pending"}}, None])
async def test_a_claim_that_was_seen_before_its_volume_grows(cluster: MemoryCluster, behind: Json | None) -> None:
    """Each cache has a watch of its own, and one may be behind the other."""
    async with leading_with_csi(cluster) as term:
        body = volume(cluster)
        assert body
        if behind is None:
            cluster.remove(VOLUMES, PV)
        else:
            cluster.put(VOLUMES, {**body, **behind})
        await until(lambda: (seen := term.cache.volumes.get(PV)) is None or seen.phase == "Pending")
        request(cluster, "5Gi")
        await until(lambda: (seen := term.cache.claims.get("default/data")) and seen.grows)
        await drained(term._expansion.queue)
        assert figures(cluster) == ("1Gi", "1Gi") if behind else volume(cluster) is None
        cluster.put(VOLUMES, body)
        await until(lambda: figures(cluster) == ("5Gi", "1Gi"))


async def test_a_kubelet_at_it_is_left_alone_while_the_cache_of_volumes_is_behind(cluster: MemoryCluster) -> None:
    """Its last write would be refused, because it names the version of the claim that it began with."""

    def kubelet_begins() -> None:
        body = stored(cluster)
        body["status"]["allocatedResourceStatuses"] = {"storage": "NodeResizeInProgress"}
        cluster.put(CLAIMS, body)

    async with leading_with_csi(cluster) as term:
        request(cluster, "5Gi")
        await until(lambda: figures(cluster) == ("5Gi", "1Gi"))
        cluster.before["patch", "persistentvolumes"] = [does(lambda: cluster.hold(VOLUMES))]
        cluster.after["patch", "persistentvolumes"] = [does(kubelet_begins)]
        node_has(cluster, "5Gi")
        await until(
            lambda: (seen := term.cache.claims.get("default/data")) and seen.resize_status == "NodeResizeInProgress"
        )
        await drained(term._expansion.queue)
        behind = term.cache.volumes.get(PV)
        assert behind is not None
        assert behind.size == GIB
        assert status(cluster)[0] == "NodeResizeInProgress"
        cluster.hold(VOLUMES).set()
        kubelet_finishes(cluster)
        await until(lambda: not pre_resize(cluster))
        assert figures(cluster) == ("5Gi", "5Gi")


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
