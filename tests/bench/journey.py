"""From the wish to the running pod, in the sandbox: real programs, mkfs and mounts under a small control plane.

The yardstick is the same pod without a volume, so what scheduler, kubelet and container cost falls out of the ratio.
The burst is of claims that wait for no pod: it is the provisioner alone.
"""

import asyncio
import shutil
import tempfile
import time
from pathlib import Path

from contract.volume import CSI, FLEX_VOLUME
from kube.resources import CLAIMS, CLASSES, PODS, VOLUMES
from tests.bench import report
from tests.sandbox import mountspace
from tests.sandbox.nodes import NodeSpec
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, pod, storage_class
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
            async with Namespace(sandbox, "prepared") as namespace:
                await _prepared(namespace)
            async with Namespace(sandbox, "burst") as namespace:
                await _burst(namespace)
    finally:
        shutil.rmtree(folder)


async def _pods(namespace: Namespace) -> None:
    pairs = [(await _with_volume(namespace, number), await _without(namespace, number)) for number in range(_RUNS)]
    ours, theirs = zip(*pairs, strict=True)
    report.line("pod without a volume: created to ready", theirs)
    report.line("claim and pod: created to ready, ext4 of 64Mi", ours, theirs)


async def _prepared(namespace: Namespace) -> None:
    """Both drivers, in turn: only the kubelet's calls to them differ."""
    for source in (FLEX_VOLUME, CSI):
        await namespace.sandbox.api.create(CLASSES, storage_class(source.lower(), volume_source=source))
    pairs = [
        (await _again(namespace, CSI, number), await _again(namespace, FLEX_VOLUME, number)) for number in range(_RUNS)
    ]
    csi, flex_volume = zip(*pairs, strict=True)
    report.line("pod with a prepared FlexVolume: created to ready", flex_volume)
    report.line("pod with a prepared CSI volume: created to ready", csi, flex_volume)


async def _again(namespace: Namespace, source: str, number: int) -> float:
    """A second pod with a claim that has been used."""
    name = f"{source.lower()}-{number}"
    await namespace.create(CLAIMS, claim(name, "64Mi", source.lower()))
    await namespace.create(PODS, pod(f"{name}-first", {"/data": name}))
    await namespace.until_running(f"{name}-first")
    await namespace.delete(PODS, f"{name}-first")
    await namespace.until_gone(PODS, f"{name}-first")
    begin = time.perf_counter()
    await namespace.create(PODS, pod(f"{name}-second", {"/data": name}))
    await namespace.until_running(f"{name}-second")
    return time.perf_counter() - begin


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
