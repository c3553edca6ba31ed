"""`make bench-cluster`: what a claim takes in a real cluster in which elastic-local is installed.

Claims with their pods, in a namespace of their own that is deleted at the end. The pods never start, because their
image may not be pulled and is on no node, so none is needed; a kubelet mounts the volumes before it looks for the
image. The processor time is what the provisioner's own metrics say, of all its replicas, which are asked through the
API server. In it is all that the control plane and the nodes make of a claim, which `make bench-scale` leaves out.
"""

import argparse
import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

import aiohttp

from contract import names
from contract.volume import DELETE
from kube.client import Cluster
from kube.records import read_storage_class
from kube.resources import CLAIMS, CLASSES, PODS, VOLUMES, Resource
from tests.bench import report
from tests.sandbox.workloads import Workspace, claim, pod
from tests.waiting import until

_ONE_BY_ONE = 10
_TOGETHER = 16
"""Requests of this benchmark at the same time."""
_PROVISIONERS = "app.kubernetes.io/name=elastic-local,app.kubernetes.io/component=provisioner"
_METRICS_PORT = 8080
_STILL_SECONDS, _STILL_SHARE = 2.0, 0.02
"""Who takes less of a processor than that share for so long has nothing to do any more."""
_LONGEST = 300.0
"""Seconds that a step may take."""


@dataclass(frozen=True)
class Options:
    storage_class: str
    size: str
    claims: int
    """At once. A kubelet takes 110 pods, unless it was told otherwise."""
    rounds: int


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cluster", description=__doc__)
    parser.add_argument("--kubeconfig", required=True, help="of the cluster, as an administrator of it")
    parser.add_argument("--storage-class", default="elastic-local", help="(elastic-local)")
    parser.add_argument("--size", default="64Mi", help="of each volume (64Mi)")
    parser.add_argument("--claims", type=int, default=50, help="how many at once (50)")
    parser.add_argument("--rounds", type=int, default=3, help="(3)")
    parser.add_argument(
        "--metrics",
        action="append",
        metavar="URL",
        help="of a provisioner, or of any program that serves process_cpu_seconds_total, for one that is in no pod",
    )
    given = parser.parse_args()
    async with await Cluster.connect(given.kubeconfig, program="bench", deadline=60) as cluster:
        sources = given.metrics or await _proxied(cluster)
        processor = ProcessorTime(given.kubeconfig, sources)
        options = Options(given.storage_class, given.size, given.claims, given.rounds)
        await measure(cluster, processor.seconds, options)


async def _proxied(cluster: Cluster) -> list[str]:
    """Where the API server has the metrics of the provisioner's pods."""
    pods = await cluster.list(PODS, names.NAMESPACE, label_selector=_PROVISIONERS)
    running = [pod["metadata"]["name"] for pod in pods if pod["status"].get("phase") == "Running"]
    if not running:
        raise SystemExit(
            f"no pod of a provisioner runs in namespace {names.NAMESPACE}: install it, or name --metrics URL"
        )
    of_pods = PODS.path(names.NAMESPACE)
    return [f"{of_pods}/{name}:{_METRICS_PORT}/proxy/metrics" for name in running]


class ProcessorTime:
    """That of the programs whose metrics are at `sources`: URLs, or paths of the API server."""

    def __init__(self, kubeconfig: str, sources: Sequence[str]) -> None:
        self._kubeconfig = kubeconfig
        self._sources = sources

    async def seconds(self) -> float:
        return sum([_processor_seconds(await self._read(source)) for source in self._sources])

    async def _read(self, source: str) -> str:
        if not source.startswith("/"):
            async with aiohttp.ClientSession(raise_for_status=True) as session, session.get(source) as answer:
                return await answer.text()
        command = ("kubectl", "--kubeconfig", self._kubeconfig, "get", "--raw", source)
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed: see above")
        return output.decode()


def _processor_seconds(metrics: str) -> float:
    found = re.search(r"^process_cpu_seconds_total (\S+)$", metrics, re.MULTILINE)
    if found is None:
        raise SystemExit("the metrics have no process_cpu_seconds_total: is the program older than this benchmark?")
    return float(found[1])


async def measure(cluster: Cluster, processor: Callable[[], Awaitable[float]], options: Options) -> None:
    """Prints the figures. `processor`: seconds of processor that the provisioner took so far."""
    storage_class = read_storage_class(await cluster.get(CLASSES, options.storage_class))
    if storage_class.reclaim_policy != DELETE:
        raise SystemExit(f"StorageClass {storage_class.name} keeps the volumes: name one with reclaimPolicy {DELETE}")
    async with Workspace(cluster, f"bench-{secrets.token_hex(4)}") as namespace:
        await _Bench(namespace, processor, options).measure()


class _Bench:
    def __init__(self, namespace: Workspace, processor: Callable[[], Awaitable[float]], options: Options) -> None:
        self._namespace = namespace
        self._processor = processor
        self._options = options
        self._numbers = iter(range(1_000_000))
        self._made: dict[str, float] = {}
        """When the PersistentVolume of a claim was seen, by the claim's name and time.perf_counter()."""

    async def measure(self) -> None:
        version = ""
        async for page in self._namespace.api.pages(VOLUMES, limit=1):
            version = page.resource_version
            break
        watching = self._watching = asyncio.create_task(self._watch(version))
        try:
            singles = []
            for _ in range(_ONE_BY_ONE):
                [name], seconds = await self._create(1)
                singles.append(seconds)
                await self._delete([name])
            report.line("a claim and its pod: created to PersistentVolume", singles)
            rounds = [await self._round() for _ in range(self._options.rounds)]
        finally:
            watching.cancel()
            await asyncio.wait([watching])
        last, created, deleted = zip(*rounds, strict=True)
        report.line(f"{self._options.claims} at once: created to the last PersistentVolume", last)
        report.line("the provisioner's processor time to create one", created)
        report.line("the provisioner's processor time to delete one", deleted)

    async def _round(self) -> tuple[float, float, float]:
        """Seconds until the last PersistentVolume, and of processor to create one and to delete one."""
        number = self._options.claims
        before = await self._settled()
        claims, seconds = await self._create(number)
        await asyncio.gather(*(self._namespace.until_bound(name, seconds=_LONGEST) for name in claims))
        created = await self._settled()
        await self._delete_all(PODS, claims)
        unused = await self._settled()
        await self._delete_all(CLAIMS, claims)
        return seconds, (created - before) / number, (await self._settled() - unused) / number

    async def _create(self, number: int) -> tuple[list[str], float]:
        """So many claims with their pods at once, and the seconds until all have their PersistentVolumes."""
        claims = [f"claim-{next(self._numbers)}" for _ in range(number)]
        begin = time.perf_counter()
        await _limited(self._start, claims)

        def made() -> bool:
            assert not self._watching.done(), f"nobody watches any more: {self._watching}"
            return all(name in self._made for name in claims)

        await until(made, what=f"{number} PersistentVolumes", seconds=_LONGEST)
        return claims, max(self._made[name] for name in claims) - begin

    async def _start(self, name: str) -> None:
        await self._namespace.create(CLAIMS, claim(name, self._options.size, self._options.storage_class))
        container = {
            "name": "main",
            "image": "none",
            "imagePullPolicy": "Never",
            "volumeMounts": [{"name": name, "mountPath": "/data"}],
        }
        await self._namespace.create(PODS, pod(name, {"/data": name}, containers=[container]))

    async def _delete(self, claims: Sequence[str]) -> None:
        await self._delete_all(PODS, claims)
        await self._delete_all(CLAIMS, claims)

    async def _delete_all(self, resource: Resource, claims: Collection[str]) -> None:
        """Those objects, and with the claims their PersistentVolumes."""
        await _limited(lambda name: self._namespace.delete(resource, name), claims)

        async def gone() -> bool:
            if await self._namespace.api.list(resource, self._namespace.name):
                return False
            return resource != CLAIMS or not await self._namespace.volumes()

        await until(gone, what=f"{resource} are gone", seconds=_LONGEST)

    async def _settled(self) -> float:
        """Seconds of processor so far, once the provisioner has nothing to do any more."""
        seen, at = await self._processor(), time.monotonic()

        async def still() -> tuple[float] | None:
            nonlocal seen, at
            if time.monotonic() - at < _STILL_SECONDS:
                return None
            before, since = seen, at
            seen, at = await self._processor(), time.monotonic()
            return (seen,) if seen - before < _STILL_SHARE * (at - since) else None

        [processor] = await until(still, what="the provisioner has nothing to do", seconds=_LONGEST)
        return float(processor)

    async def _watch(self, version: str) -> None:
        api = self._namespace.api
        async for kind, body in api.watch(VOLUMES, resource_version=version, timeout_seconds=3600):
            of_claim = body.get("spec", {}).get("claimRef") or {}
            if kind == "ADDED" and of_claim.get("namespace") == self._namespace.name:
                self._made[of_claim["name"]] = time.perf_counter()


async def _limited(do: Callable[[str], Awaitable[object]], each: Collection[str]) -> None:
    free = asyncio.Semaphore(_TOGETHER)

    async def one(name: str) -> None:
        async with free:
            await do(name)

    await asyncio.gather(*map(one, each))


if __name__ == "__main__":
    asyncio.run(main())
