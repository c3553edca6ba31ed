"""An API server that was away for longer than a leader keeps its lease: what waited goes on soon after it is back."""

import asyncio
from collections.abc import Callable

from kube.resources import CLAIMS, PODS, VOLUMES
from tests.cluster import onnode
from tests.cluster.conftest import MakeSandbox
from tests.cluster.test_orphans import tear_out
from tests.sandbox.apiserver.faults import Plan
from tests.sandbox.nodes import NodeSpec
from tests.sandbox.programs import Program
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until

_MIB = 1024**2
_AWAY = 20.0
_SOON = 5.0
"""Seconds."""

_NO_WRITES = Plan(share=1, kinds=("503",), methods=("POST", "PUT", "PATCH", "DELETE"))


async def test_all_goes_on_within_seconds(fresh_sandbox: MakeSandbox) -> None:
    """Reclaiming by provisioner and daemon, an orphan, a new claim and one that grows: each was tried in vain."""
    sandbox = await fresh_sandbox(NodeSpec("only", settings={"ORPHAN_GRACE": "1s"}), provisioners=2)
    node = sandbox.nodes["only"]
    async with Namespace(sandbox, "work") as namespace:
        names = ["released", "deleted", "orphan", "grows"]
        volume = dict(zip(names, await asyncio.gather(*(_written(namespace, name) for name in names)), strict=True))

        await sandbox.begin_faults(_NO_WRITES)
        for name in ("released", "deleted"):
            await namespace.delete(CLAIMS, name)
        await sandbox.api.delete(VOLUMES, volume["deleted"])
        await tear_out(sandbox, volume["orphan"])
        request = {"spec": {"resources": {"requests": {"storage": "32Mi"}}}}
        await sandbox.api.patch(CLAIMS, "grows", request, namespace.name)
        await namespace.create(CLAIMS, claim("new", "16Mi"))
        await namespace.create(PODS, pod("new", {"/data": "new"}))
        await _until_tried(sandbox, "work/new", volume["grows"], volume["released"])
        await until(lambda: _failed(node.daemon, volume["deleted"]), what="the daemon tries to let the volume go")

        await sandbox.apiserver.kill()
        back = asyncio.get_running_loop().time() + _AWAY
        while asyncio.get_running_loop().time() < back:
            # The leader ends when it can't renew its lease, and its kubelet starts the container again.
            for program in sandbox.provisioners:
                if not program.running:
                    program.launch()
            await asyncio.sleep(0.1)
        await sandbox.apiserver.start()

        async with asyncio.TaskGroup() as tasks:
            for name in ("released", "deleted"):
                tasks.create_task(namespace.until_gone(VOLUMES, volume[name], seconds=_SOON))
            tasks.create_task(_soon(lambda: volume["orphan"] not in onnode.sizes(node), "the orphan is removed"))
            tasks.create_task(
                _soon(lambda: onnode.sizes(node)[volume["grows"]] == 32 * _MIB, "the volume has what was asked for")
            )
            tasks.create_task(namespace.until_bound("new", seconds=_SOON))


async def _written(namespace: Namespace, name: str) -> str:
    """The volume of a claim, whose pod has come and gone."""
    await namespace.create(CLAIMS, claim(name, "16Mi"))
    await namespace.create(PODS, pod(name, {"/data": name}))
    await namespace.until_running(name)
    await namespace.delete(PODS, name)
    await namespace.until_gone(PODS, name)
    return str((await namespace.until_bound(name))["metadata"]["name"])


async def _until_tried(sandbox: Sandbox, *keys: str) -> None:
    def tried() -> bool:
        return all(any(_failed(program, key) for program in sandbox.provisioners) for key in keys)

    await until(tried, what=f"the provisioner has tried {keys}")


def _failed(program: Program, key: str) -> bool:
    return any(key in line and "next try in" in line for line in program.output.splitlines())


async def _soon(condition: Callable[[], bool], what: str) -> None:
    await until(condition, what=what, seconds=_SOON)
