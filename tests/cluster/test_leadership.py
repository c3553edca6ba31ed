"""Two provisioners, one of which leads, and what becomes of a burst of claims when that one goes: every claim gets one
volume, none gets two, and no node is given more than it has."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Sequence

from contract import names, quantity
from kube.errors import NotFound
from kube.resources import CAPACITIES, CLAIMS, LEASES, PODS, VOLUMES
from tests.cluster.conftest import MakeSandbox
from tests.sandbox.nodes import NodeSpec
from tests.sandbox.programs import Program
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Json, Namespace, claim, is_ready, pod
from tests.waiting import until

_LEASE = "elastic-local-provisioner"
_CLAIMS = 24
_FIT_TOGETHER = (NodeSpec("node-a", capacity="256Mi"), NodeSpec("node-b", capacity="256Mi"))
"""Room for 16 of the 24 claims of 32Mi."""


async def test_a_leader_that_is_killed_in_a_burst_is_followed(fresh_sandbox: MakeSandbox) -> None:
    sandbox: Sandbox = await fresh_sandbox(*_FIT_TOGETHER, provisioners=2)
    async with Namespace(sandbox, "burst") as namespace:
        leader, follower = await _leader(sandbox)
        await _burst(namespace)
        await until(lambda: _volumes(namespace), what="the first volume is made")
        await leader.kill()
        await _until_served(namespace)
        await until(lambda: _leads(sandbox, follower), what="the other one leads")


async def test_a_leader_that_hangs_is_followed_and_ends_when_it_wakes(fresh_sandbox: MakeSandbox) -> None:
    sandbox: Sandbox = await fresh_sandbox(*_FIT_TOGETHER, provisioners=2)
    async with Namespace(sandbox, "burst") as namespace:
        leader, follower = await _leader(sandbox)
        # Stopped at rest: what it sent before counts as sent. By its ledger there is still room when it wakes.
        await _burst(namespace, range(_CLAIMS // 3))
        await until(lambda: _running(namespace, _CLAIMS // 3), what="the first third runs")
        os.kill(leader.pid, signal.SIGSTOP)
        await _burst(namespace, range(_CLAIMS // 3, _CLAIMS))
        await _until_served(namespace)
        await until(lambda: _leads(sandbox, follower), what="the other one leads")
        before = {volume["metadata"]["uid"] for volume in await _volumes(namespace)}

        os.kill(leader.pid, signal.SIGCONT)
        await until(lambda: not leader.running, what="the old leader ends")
        assert leader.exit_code not in (0, None)
        assert "the lease" in leader.output
        assert {volume["metadata"]["uid"] for volume in await _volumes(namespace)} == before

        # Who leads ends by SIGTERM, and the one that starts anew takes over without waiting for the lease to run out.
        await leader.start()
        begin = asyncio.get_running_loop().time()
        await follower.stop()
        assert follower.exit_code == 0
        await until(lambda: _leads(sandbox, leader), what="leadership is handed over")
        assert asyncio.get_running_loop().time() - begin < 8


async def _burst(namespace: Namespace, numbers: Sequence[int] = range(_CLAIMS)) -> None:
    """Claims, of which there are more than there is room for, each with a pod."""
    await asyncio.gather(*(namespace.create(CLAIMS, claim(f"data-{number}", "32Mi")) for number in numbers))
    bodies = [pod(f"user-{number}", {"/data": f"data-{number}"}) for number in numbers]
    await asyncio.gather(*(namespace.create(PODS, body) for body in bodies))


async def _until_served(namespace: Namespace) -> None:
    """As many claims have a volume and a running pod as there is room for, and the rest have none."""
    room = sum(quantity.parse(node.spec.capacity) for node in namespace.sandbox.nodes.values())
    served = room // (32 * 1024**2)

    await until(lambda: _running(namespace, served), what=f"{served} pods run", seconds=60)
    await until(lambda: _offers_nothing(namespace.sandbox), what="the nodes say that they are full")
    volumes = await _volumes(namespace)
    assert len(volumes) == served
    assert set(Counter(volume["spec"]["claimRef"]["uid"] for volume in volumes).values()) == {1}
    taken = Counter[str]()
    for volume in volumes:
        taken[volume["metadata"]["labels"][names.NODE_LABEL]] += quantity.parse(volume["spec"]["capacity"]["storage"])
    for node in namespace.sandbox.nodes.values():
        assert taken[node.name] <= quantity.parse(node.spec.capacity)
        assert sum(image.stat().st_size for image in node.data.glob("loop/*.img")) == taken[node.name]


async def _running(namespace: Namespace, count: int) -> bool:
    pods = await namespace.sandbox.api.list(PODS, namespace.name)
    return sum(is_ready(body) for body in pods) == count


async def _volumes(namespace: Namespace) -> list[Json]:
    return list(await namespace.sandbox.api.list(VOLUMES))


async def _offers_nothing(sandbox: Sandbox) -> bool:
    capacities = await sandbox.api.list(CAPACITIES, names.NAMESPACE)
    return all(quantity.parse(item["capacity"]) == 0 for item in capacities)


async def _leader(sandbox: Sandbox) -> tuple[Program, Program]:
    """Who leads and who follows, once somebody does."""

    async def leading() -> Program | None:
        for program in sandbox.provisioners:
            if await _leads(sandbox, program):
                return program
        return None

    leader: Program = await until(leading, what="somebody leads")
    return leader, next(program for program in sandbox.provisioners if program is not leader)


async def _leads(sandbox: Sandbox, program: Program) -> bool:
    try:
        lease = await sandbox.api.get(LEASES, _LEASE, names.NAMESPACE)
    except NotFound:
        return False
    holder = lease["spec"].get("holderIdentity") or ""
    return bool(holder and holder == sandbox.identity_of(program))
