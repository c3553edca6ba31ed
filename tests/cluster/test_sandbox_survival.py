"""What the sandbox's parts survive, as the real ones do, and what nothing survives: the sandbox's own end."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from kube.resources import CLAIMS, PODS
from tests.cluster.conftest import MakeSandbox
from tests.forkserver import REPOSITORY
from tests.sandbox import mountspace
from tests.sandbox.nodes import NodeSpec
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until

_CALLER = """
import asyncio, json, sys
from pathlib import Path
from kube.resources import CLAIMS, PODS
from tests.sandbox import mountspace
from tests.sandbox.nodes import NodeSpec
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, pod

async def main():
    async with Sandbox(Path(sys.argv[1]), [NodeSpec("only")]) as sandbox, Namespace(sandbox, "work") as namespace:
        await namespace.create(CLAIMS, claim("data", "16Mi"))
        await namespace.create(PODS, pod("user", {"/data": "data"}))
        await namespace.until_running("user")
        print(json.dumps([program.pid for program in sandbox.programs]), flush=True)
        await asyncio.sleep(600)

mountspace.enter_private()
asyncio.run(main())
"""


async def test_a_kubelet_that_was_killed_goes_on_where_it_was(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(NodeSpec("only"))
    node = sandbox.nodes["only"]
    async with Namespace(sandbox, "work") as namespace:
        for name in ("stays", "vanishes"):
            await namespace.create(CLAIMS, claim(name, "16Mi"))
            await namespace.create(PODS, pod(name, {"/data": name}))
        before = await namespace.until_running("stays")
        vanished = await namespace.until_running("vanishes")
        await node.kubelet.kill()
        await sandbox.api.delete(PODS, "vanishes", "work", grace_seconds=0)
        await node.kubelet.start()

        left = node.kubelet_root / "pods" / vanished["metadata"]["uid"]
        await until(lambda: not left.exists(), what="what belonged to the vanished pod is unmounted and gone")
        after = await namespace.until_running("stays")
        assert after["status"]["containerStatuses"] == before["status"]["containerStatuses"]
        assert after["metadata"]["uid"] == before["metadata"]["uid"]
        assert len(mountspace.mounts_below(node.kubelet_root)) == 1


async def test_an_api_server_that_was_killed_is_only_a_delay(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(NodeSpec("only"))
    async with Namespace(sandbox, "work") as namespace:
        await namespace.create(CLAIMS, claim("data", "16Mi"))
        await namespace.create(PODS, pod("user", {"/data": "data"}))
        await sandbox.apiserver.restart()
        await sandbox.controlplane.restart()
        await namespace.until_running("user")


async def test_nothing_outlives_a_caller_that_was_killed(short_folders: Callable[[], Path]) -> None:
    folder = short_folders()
    caller = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _CALLER, str(folder), stdout=asyncio.subprocess.PIPE, cwd=REPOSITORY
    )
    assert caller.stdout is not None
    pids = json.loads(await caller.stdout.readline())
    assert list(mountspace.loop_devices(folder / "nodes"))
    os.kill(caller.pid, signal.SIGKILL)
    await caller.wait()
    await until(lambda: not any(_alive(pid) for pid in pids), what="its programs have ended")
    await until(lambda: not list(mountspace.loop_devices(folder / "nodes")), what="its loop devices are free")


def _alive(pid: int) -> bool:
    """A zombie, which only waits for its parent, is not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
