"""Two replicas: one leads, the other answers probes and takes over."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from kube.leadership import LeadershipLost
from kube.resources import CLAIMS, LEASES, VOLUMES
from provisioner.main import serve
from provisioner.settings import Settings
from tests.memorycluster import MemoryCluster
from tests.ports import reserved_port
from tests.unit.provisioner.objects import claim_body
from tests.waiting import until


class Replica:
    def __init__(self, cluster: MemoryCluster, identity: str, port: int) -> None:
        self.port = port
        settings = Settings(identity=identity, listen_host="127.0.0.1", listen_port=port)
        self.task = asyncio.create_task(serve(cluster, settings))

    async def ask(self, path: str) -> tuple[int, str]:
        """Waits until it listens."""
        async with aiohttp.ClientSession() as session, asyncio.timeout(10):
            while True:
                try:
                    async with session.get(f"http://127.0.0.1:{self.port}{path}") as response:
                        return response.status, await response.text()
                except aiohttp.ClientConnectionError:
                    assert not self.task.done(), self.task.exception()
                    await asyncio.sleep(0.01)


@asynccontextmanager
async def replica(cluster: MemoryCluster, identity: str) -> AsyncIterator[Replica]:
    with reserved_port() as port:
        made = Replica(cluster, identity, port)
        try:
            yield made
        finally:
            made.task.cancel()
            await asyncio.wait([made.task])


def holder(cluster: MemoryCluster) -> str:
    leases = cluster.all(LEASES)
    return str(leases[0]["spec"].get("holderIdentity") or "") if leases else ""


async def test_a_follower_is_ready_and_takes_over_when_the_leader_ends(cluster: MemoryCluster) -> None:
    async with replica(cluster, "second") as second, replica(cluster, "first") as first:
        await until(lambda: holder(cluster))
        leader, follower = (first, second) if holder(cluster) == "first" else (second, first)
        for path in ("/healthz", "/readyz"):
            assert await follower.ask(path) == (200, "ok")
        assert "elastic_local_provisioner_leading 1.0" in (await leader.ask("/metrics"))[1]
        assert "elastic_local_provisioner_leading 0.0" in (await follower.ask("/metrics"))[1]
        cluster.put(CLAIMS, claim_body())
        await until(lambda: cluster.all(VOLUMES))
        leader.task.cancel()
        await asyncio.wait([leader.task])
        cluster.put(CLAIMS, claim_body("next"))
        await until(lambda: len(cluster.all(VOLUMES)) == 2)
        assert "elastic_local_provisioner_leading 1.0" in (await follower.ask("/metrics"))[1]


async def test_who_loses_the_lease_ends_with_an_error(cluster: MemoryCluster) -> None:
    async with replica(cluster, "first") as first:
        await until(lambda: holder(cluster) == "first")
        lease = cluster.all(LEASES)[0]
        cluster.put(LEASES, {**lease, "spec": {**lease["spec"], "holderIdentity": "thief"}})
        await asyncio.wait([first.task], timeout=10)
        assert isinstance(first.task.exception(), LeadershipLost)
