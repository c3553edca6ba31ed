"""From the wish to the running pod, in the sandbox: real programs, mkfs and mounts under a small control plane.

The yardstick is the same pod without a volume, so what scheduler, kubelet and container cost falls out of the ratio.
The burst is of claims that wait for no pod: it is the provisioner alone.
"""

import asyncio
import shutil
import tempfile
import time
from pathlib import Path

from kube.resources import CLAIMS, CLASSES, PODS, VOLUMES
from tests.bench import report
from tests.sandbox import mountspace
from tests.sandbox.nodes import NodeSpec
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until

_RUNS = 10
_BURST = 100
_IMMEDIATE = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": "immediate"},
    "provisioner": "elastic-local.volumes.k8s.elastic.co",
    "volumeBindingMode": "Immediate",
}


async def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="elastic-"))
    try:
        async with Sandbox(folder, [NodeSpec("node", capacity="64Gi")]) as sandbox:
            async with Namespace(sandbox, "journey") as namespace:
                await _pods(namespace)
            async with Namespace(sandbox, "burst") as namespace:
                await _burst(namespace)
    finally:
        shutil.rmtree(folder)


async def _pods(namespace: Namespace) -> None:
    pairs = [(await _with_volume(namespace, number), await _without(namespace, number)) for number in range(_RUNS)]
    ours, theirs = zip(*pairs, strict=True)
    report.line("pod without a volume: created to ready", theirs)
    report.line("claim and pod: created to ready, ext4 of 64Mi", ours, theirs)


async def _with_volume(namespace: Namespace, number: int) -> float:
    begin = time.perf_counter()
    await namespace.create(CLAIMS, claim(f"data-{number}", "64Mi"))
    await namespace.create(PODS, pod(f"with-{number}", {"/data": f"data-{number}"}))
    await namespace.until_running(f"with-{number}")
    return time.perf_counter() - begin


async def _without(namespace: Namespace, number: int) -> float:
    begin = time.perf_counter()
    await namespace.create(PODS, pod(f"without-{number}"))
    await namespace.until_running(f"without-{number}")
    return time.perf_counter() - begin


async def _burst(namespace: Namespace) -> None:
    sandbox = namespace.sandbox
    await sandbox.api.create(CLASSES, _IMMEDIATE)
    begin = time.perf_counter()
    await asyncio.gather(
        *(namespace.create(CLAIMS, claim(f"claim-{number}", "64Mi", "immediate")) for number in range(_BURST))
    )

    async def all_there() -> bool:
        return len(await sandbox.api.list(VOLUMES)) == _BURST

    await until(all_there, what=f"{_BURST} volumes")
    report.line(f"{_BURST} claims at once: first created to last PersistentVolume", [time.perf_counter() - begin])


if __name__ == "__main__":
    mountspace.enter_private()
    asyncio.run(main())
