import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kube.client import Cluster
from kube.errors import NoLongerLeading
from kube.leadership import Clock, LeadershipLost, lead
from kube.resources import LEASES
from tests.unit.kube.apiserver import ApiServer, Json, connected, hang, status
from tests.waiting import until

CLOCK = Clock(speed=25)


@pytest.fixture
def server() -> ApiServer:
    return ApiServer(["ns"])


@pytest.fixture
async def cluster(server: ApiServer, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with connected(server, tmp_path) as made:
        yield made


class Candidate:
    def __init__(self, cluster: Cluster, identity: str) -> None:
        self.began: float | None = None
        self.stopped: float | None = None
        self.finish = asyncio.Event()
        self.task = asyncio.create_task(lead(cluster, "it", "ns", identity, self.work, clock=CLOCK))

    async def work(self, leading: Cluster) -> None:
        self.leading = leading
        self.began = CLOCK.now()
        try:
            await self.finish.wait()
        finally:
            self.stopped = CLOCK.now()

    @property
    def leads(self) -> bool:
        return self.began is not None and self.stopped is None


def lease(server: ApiServer) -> Json:
    body = server.stored(LEASES, "it", "ns")
    assert body, "there is no lease"
    return body


def spec(server: ApiServer) -> Json:
    held: Json = lease(server)["spec"]
    return held


async def test_a_lease_as_the_api_server_wants_it(cluster: Cluster, server: ApiServer) -> None:
    one = Candidate(cluster, "one")
    await until(lambda: one.leads)
    first = spec(server)
    assert (first["holderIdentity"], first["leaseDurationSeconds"], first["leaseTransitions"]) == ("one", 15, 0)
    for moment in (first["acquireTime"], first["renewTime"]):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", moment)
    await until(lambda: bool(spec(server)["renewTime"] > first["renewTime"]))
    assert spec(server)["acquireTime"] == first["acquireTime"]
    one.finish.set()
    await one.task
    assert "holderIdentity" not in spec(server)


async def test_the_next_begins_when_the_lease_is_given_back(cluster: Cluster, server: ApiServer) -> None:
    one = Candidate(cluster, "one")
    await until(lambda: one.leads)
    two = Candidate(cluster, "two")
    await until(lambda: len(server.asked_for("GET")) >= 4)
    assert not two.leads
    one.task.cancel()
    await until(lambda: two.leads)
    assert one.stopped is not None
    assert two.began is not None
    assert two.began - one.stopped < 15
    assert spec(server)["leaseTransitions"] == 1
    two.finish.set()
    await two.task
    with pytest.raises(asyncio.CancelledError):
        await one.task


async def test_a_dead_leader_is_followed_when_its_lease_ran_out(cluster: Cluster, server: ApiServer) -> None:
    far_future = "2999-01-01T00:00:00.000000Z"
    dead = {"holderIdentity": "dead", "leaseDurationSeconds": 15, "renewTime": far_future, "leaseTransitions": 4}
    server.put(LEASES, {"metadata": {"name": "it", "namespace": "ns"}, "spec": dead})
    started = CLOCK.now()
    two = Candidate(cluster, "two")
    await until(lambda: two.leads)
    assert two.began is not None
    assert two.began - started >= 15
    assert spec(server)["leaseTransitions"] == 5
    two.finish.set()
    await two.task


async def test_a_hung_request_never_leaves_two_leaders(cluster: Cluster, server: ApiServer) -> None:
    one = Candidate(cluster, "one")
    await until(lambda: one.leads)
    server.next("PUT", hang)
    two = Candidate(cluster, "two")
    with pytest.raises(LeadershipLost, match="could not be renewed for 10 s: no answer"):
        await one.task
    assert one.stopped is not None
    assert not two.leads
    await until(lambda: two.leads)
    assert two.began is not None
    assert two.began > one.stopped
    two.finish.set()
    await two.task


async def test_an_api_server_that_restarts_costs_no_leadership(cluster: Cluster, server: ApiServer) -> None:
    one = Candidate(cluster, "one")
    await until(lambda: one.leads)
    before = spec(server)["renewTime"]
    server.next("PUT", *[status(503, "ServiceUnavailable")] * 2)
    await until(lambda: bool(spec(server)["renewTime"] > before))
    assert one.leads
    one.finish.set()
    await one.task


def taken(server: ApiServer) -> None:
    server.put(LEASES, lease(server) | {"spec": spec(server) | {"holderIdentity": "thief"}})


def deleted(server: ApiServer) -> None:
    server.remove(LEASES, "it", "ns")


@pytest.mark.parametrize(("happens", "message"), [(taken, "now held by thief"), (deleted, "was deleted")])
async def test_a_lease_that_is_ours_no_more(
    cluster: Cluster, server: ApiServer, happens: Callable[[ApiServer], None], message: str
) -> None:
    one = Candidate(cluster, "one")
    await until(lambda: one.leads)
    happens(server)
    with pytest.raises(LeadershipLost, match=message):
        await one.task
    assert not one.leads
    assert not server.all(LEASES) or spec(server)["holderIdentity"] == "thief"


async def test_a_label_on_the_lease_costs_no_leadership(cluster: Cluster, server: ApiServer) -> None:
    one = Candidate(cluster, "one")
    await until(lambda: one.leads)
    body = lease(server)
    server.put(LEASES, body | {"metadata": body["metadata"] | {"labels": {"a": "b"}}})
    before = len(server.asked_for("PUT"))
    await until(lambda: len(server.asked_for("PUT")) >= before + 3)
    assert one.leads
    assert lease(server)["metadata"]["labels"] == {"a": "b"}
    one.finish.set()
    await one.task


async def test_what_the_work_raises_passes_through_and_frees_the_lease(cluster: Cluster, server: ApiServer) -> None:
    async def fail(_: Cluster) -> None:
        raise RuntimeError("the work's own")

    with pytest.raises(RuntimeError, match="the work's own"):
        await lead(cluster, "it", "ns", "one", fail, clock=CLOCK)
    assert "holderIdentity" not in spec(server)


async def test_work_that_ignores_its_end_keeps_the_lease_from_being_given_away(
    cluster: Cluster, server: ApiServer
) -> None:
    released = asyncio.Event()

    async def stubborn(_: Cluster) -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue

    task = asyncio.create_task(lead(cluster, "it", "ns", "one", stubborn, clock=CLOCK))
    await until(lambda: server.all(LEASES))
    server.next("PUT", hang)
    with pytest.raises(LeadershipLost):
        await task
    assert (await cluster.get(LEASES, "it", "ns"))["spec"]["holderIdentity"] == "one"
    released.set()


async def test_two_that_take_at_once(cluster: Cluster) -> None:
    candidates = [Candidate(cluster, str(number)) for number in range(5)]
    await until(lambda: any(candidate.leads for candidate in candidates))
    for _ in range(5):
        await asyncio.sleep(0)
        assert sum(candidate.leads for candidate in candidates) == 1
    for candidate in candidates:
        candidate.task.cancel()
    await asyncio.wait([candidate.task for candidate in candidates])


async def test_a_leader_that_was_stopped_writes_nothing_when_it_goes_on(cluster: Cluster, server: ApiServer) -> None:
    """It goes on in the middle of its work, before the renewal notices how late it is."""
    one = Candidate(cluster, "one")
    await until(lambda: one.leads)
    before = await one.leading.get(LEASES, "it", "ns")
    asked = len(server.asked_for("PATCH"))
    time.sleep(12 / CLOCK.speed)  # the whole process stands still, as with SIGSTOP
    assert one.leads
    with pytest.raises(NoLongerLeading, match="the lease it was not renewed in time"):
        await one.leading.patch(LEASES, "it", {}, "ns")
    assert len(server.asked_for("PATCH")) == asked
    assert (await one.leading.get(LEASES, "it", "ns"))["metadata"] == before["metadata"]
    with pytest.raises(LeadershipLost):
        await one.task


async def test_deadlines_that_make_no_sense(cluster: Cluster) -> None:
    async def idle(_: Cluster) -> None: ...

    with pytest.raises(ValueError, match="renew_deadline < lease_seconds"):
        await lead(cluster, "it", "ns", "one", idle, renew_deadline=15)
