"""`make bench-scale`: what grows with the cluster, each at three sizes.

The provisioner is executed against the sandbox's API server, which was given its nodes and PersistentVolumes before it
started. No control plane runs: this module writes what the scheduler and the controllers would, so what is measured is
the provisioner's own. The API server is in Python and slower than a real one, and both share the machine. So times hold
for comparing sizes; the processor time is the kernel's count for the provisioner's process alone.
"""

import argparse
import asyncio
import json
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Container, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from contract import capacity, names
from contract.capacity import Capacity
from contract.parameters import VolumeParameters
from contract.volume import BOUND, CSI, RELEASED
from kube.client import Cluster
from kube.records import SELECTED_NODE, Claim, StorageClass, read_storage_class
from kube.resources import CAPACITIES, CLAIMS, CLASSES, NODES, PODS, VOLUMES
from provisioner.decision import Create
from provisioner.volumecreation import persistent_volume
from tests.bench import figures
from tests.bench.executed import Executed, executed
from tests.inmemory import kind_of
from tests.sandbox import mountspace
from tests.sandbox.apiserver import builtin, defaults
from tests.sandbox.apiserver.journal import Journal
from tests.sandbox.apiserver.registry import Registry
from tests.sandbox.apiserver.store import Store
from tests.sandbox.programs import says
from tests.sandbox.sandbox import BASE, PROVISIONER_ACCOUNT, Sandbox
from tests.sandbox.workloads import claim, pod, storage_class
from tests.waiting import until

Json = dict[str, Any]

SIZES = ((40, 2_000), (200, 10_000), (1_000, 50_000))
"""Nodes, and PersistentVolumes of ours on them."""

_GIB = 1 << 30
_ONE_BY_ONE, _AT_ONCE = 30, 300
_ROUNDS = 3
"""Of which the median counts: other work on the machine takes caches from this one."""
_KNOWN = "the state of the cluster is known"
_SETTLE_SECONDS = 2.0
"""Events and the second look at each claim come after its volume."""
_START_SECONDS = 1200.0
_LATE, _AT_ANY = "late", "any"
"""The classes: WaitForFirstConsumer and Immediate."""
_MODES = {_LATE: "WaitForFirstConsumer", _AT_ANY: "Immediate"}


@dataclass
class Measured:
    """At one size. Seconds, bytes, and numbers of requests for each claim. What is not measured yet is None, or not
    there."""

    nodes: int
    volumes: int
    start: float | None = None
    """From its own start until the state of the cluster is known."""
    start_processor: float | None = None
    one: dict[str, float] = field(default_factory=dict)
    """By class: one claim to its PersistentVolume."""
    create_processor: dict[str, float] = field(default_factory=dict)
    delete_processor: dict[str, float] = field(default_factory=dict)
    requests: dict[str, dict[str, float]] = field(default_factory=dict)
    """By class: to create one, by verb and resource."""
    delete_requests: dict[str, dict[str, float]] = field(default_factory=dict)
    memory: int | None = None
    most_memory: int | None = None
    after_crash: float | None = None
    """From SIGKILL to the next volume, with the wait for the dead one's lease."""


Keep = Callable[[str], None]
"""Prints a line, and writes down what was measured so far: a run that is cut off keeps that."""


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description=__doc__)
    parser.add_argument("--largest", type=int, default=SIZES[-1][1], help="leave out sizes with more PersistentVolumes")
    largest = parser.parse_args().largest
    results: list[Measured] = []

    def keep(line: str) -> None:
        print(line, flush=True)
        figures.MEASURED.mkdir(parents=True, exist_ok=True)
        kept = json.dumps([asdict(each) for each in results], indent=1)
        (figures.MEASURED / "provisioner.json").write_text(kept)

    for nodes, volumes in SIZES:
        if volumes <= largest:
            results.append(Measured(nodes, volumes))
            keep(f"{nodes} nodes, {volumes} PersistentVolumes")
            await _measure(results[-1], keep)


async def _measure(found: Measured, keep: Keep) -> None:
    folder = Path(tempfile.mkdtemp(prefix="elastic-"))
    try:
        sandbox = Sandbox(folder, [])
        _fill(folder / "etcd", found.nodes, found.volumes)
        async with _served(sandbox) as cluster:
            await _Run(sandbox, cluster, found, keep).measure()
    finally:
        shutil.rmtree(folder)


def _node(number: int) -> str:
    return f"node-{number}"


def _fill(data: Path, nodes: int, volumes: int) -> None:
    """What the API server has when it starts."""
    store = Store(Journal(data), history=10)
    builtin.provide(Registry(store))

    def put(resource: Any, body: Json) -> None:
        kind = kind_of(resource)
        body |= {"apiVersion": kind.api_version, "kind": kind.kind}
        body["metadata"].setdefault("uid", str(uuid.uuid4()))
        defaults.fill_in(body)
        store.write(kind, body)

    classes = {name: storage_class(name, mode, volume_source="csi") for name, mode in _MODES.items()}
    for body in classes.values():
        put(CLASSES, body)
    pools = {}
    for number in range(nodes):
        name = _node(number)
        put(NODES, {"metadata": {"name": name, "labels": {names.HOSTNAME_LABEL: name}}})
        for each in classes:
            pools[number] = Capacity(name, name, each, "group", 10_000 * _GIB, 10_000 * _GIB, 4 << 20)
            put(CAPACITIES, capacity.manifest(pools[number], names.NAMESPACE, None))
    late = read_storage_class(classes[_LATE])
    for number in range(volumes):
        put(VOLUMES, _bound(late, pools[number % nodes], f"data-{number}"))
    store.close()


def _bound(made_by: StorageClass, target: Capacity, name: str) -> Json:
    """A PersistentVolume as it is after months: bound, and made on its node."""
    of = Claim(
        namespace="default",
        name=name,
        uid=str(uuid.uuid4()),
        resource_version="1",
        phase=BOUND,
        volume_name="",
        storage_class=made_by.name,
        provisioner=made_by.provisioner,
        selected_node=target.node,
        requested=_GIB,
        capacity=0,
        access_modes=("ReadWriteOnce",),
        volume_mode="Filesystem",
        data_source="",
        deleting=False,
    )
    body = persistent_volume(of, made_by, Create(_GIB, VolumeParameters(), target, source=CSI))
    body["metadata"]["annotations"] |= {names.MADE_ANNOTATION: "true", names.SIZE_ANNOTATION: str(_GIB)}
    body["metadata"]["finalizers"] += ["kubernetes.io/pv-protection"]
    return body | {"status": {"phase": BOUND}}


@asynccontextmanager
async def _served(sandbox: Sandbox) -> AsyncIterator[Cluster]:
    """The API server of a sandbox, alone, with the rights and policies of deploy/."""
    sandbox.apiserver.launch()
    try:
        await sandbox.apiserver.wait_ready(_START_SECONDS)
        await sandbox.kubectl("apply", "-k", str(BASE))
        sandbox.issue_token(PROVISIONER_ACCOUNT)
        async with await Cluster.connect(str(sandbox.kubeconfig), program="bench", deadline=120) as cluster:
            yield cluster
    finally:
        await sandbox.apiserver.stop()


class _Run:
    def __init__(self, sandbox: Sandbox, cluster: Cluster, found: Measured, keep: Keep) -> None:
        self._sandbox = sandbox
        self._cluster = cluster
        self._found = found
        self._keep = keep
        self._numbers = iter(range(1_000_000))
        self._made: dict[str, float] = {}
        """When the PersistentVolume of a claim was seen, by the claim's name and time.perf_counter()."""
        self._going: set[str] = set()
        """PersistentVolumes that were seen being deleted."""

    async def measure(self) -> None:
        watching = self._watching = asyncio.create_task(self._watch())
        program = self._sandbox.provisioners[0]
        program.ready = says(_KNOWN)
        found = self._found
        try:
            begin = time.perf_counter()
            async with executed(program, _START_SECONDS) as process:
                found.start, found.start_processor = time.perf_counter() - begin, process.processor_seconds
                self._keep(f"  start {found.start:.1f} s, {found.start_processor:.1f} s of processor")
                for name in _MODES:
                    await self._of_class(process, name)
                found.memory, found.most_memory = process.resident, process.most_resident
                resident, most = found.memory >> 20, found.most_memory >> 20
                self._keep(f"  memory {resident} MiB, the most {most} MiB (bound: 250 MiB)")
                process.process.kill()
                begin = time.perf_counter()
            async with executed(program, _START_SECONDS):
                await self._create(_LATE, 1)
                found.after_crash = time.perf_counter() - begin
            self._keep(f"  after SIGKILL {found.after_crash:.1f} s to the next volume, with the wait for the lease")
        finally:
            watching.cancel()
            await asyncio.wait([watching])

    async def _of_class(self, process: Executed, name: str) -> None:
        found, mode = self._found, _MODES[name]
        await self._create(name, 5)
        found.one[name] = median([(await self._create(name, 1))[1] for _ in range(_ONE_BY_ONE)])
        self._keep(f"  {mode}: one claim {1000 * found.one[name]:.1f} ms")
        await asyncio.sleep(_SETTLE_SECONDS)
        rounds = [await self._round(process, name) for _ in range(_ROUNDS)]
        found.create_processor[name], found.delete_processor[name] = map(median, zip(*rounds, strict=True))
        for what, seconds, asked in (
            ("create", found.create_processor[name], found.requests[name]),
            ("delete", found.delete_processor[name], found.delete_requests[name]),
        ):
            verbs = ", ".join(f"{number:.2f} {verb}" for verb, number in sorted(asked.items()))
            self._keep(f"  {mode}: {what} {1000 * seconds:.2f} ms of processor; requests: {verbs}")

    async def _round(self, process: Executed, name: str) -> tuple[float, float]:
        """Claims at once, and their end: seconds of processor for each. Their requests are those of the last round."""
        processor, asked = process.processor_seconds, self._requests()
        claims, _ = await self._create(name, _AT_ONCE)
        await asyncio.sleep(_SETTLE_SECONDS)
        created, to_create = process.processor_seconds - processor, self._requests() - asked
        await self._bind(claims)
        await asyncio.sleep(_SETTLE_SECONDS)
        processor, asked = process.processor_seconds, self._requests()
        await self._release(claims)
        await asyncio.sleep(_SETTLE_SECONDS)
        deleted, to_delete = process.processor_seconds - processor, self._requests() - asked
        self._found.requests[name] = {verb: number / _AT_ONCE for verb, number in to_create.items()}
        self._found.delete_requests[name] = {verb: number / _AT_ONCE for verb, number in to_delete.items()}
        return created / _AT_ONCE, deleted / _AT_ONCE

    def _requests(self) -> Counter[str]:
        """What the provisioner asked so far, without its lease and its watches."""
        return Counter(
            f"{request.asked.verb} {request.asked.resource}"
            for request in self._sandbox.requests()
            if request.asked.resource != "leases" and request.asked.verb != "watch"
        )

    async def _create(self, storage_class: str, number: int) -> tuple[list[str], float]:
        """So many claims at once, as the scheduler leaves them; and the seconds until all have their volumes."""
        claims = [f"claim-{next(self._numbers)}" for _ in range(number)]
        begin = time.perf_counter()
        await asyncio.gather(*(self._claim(name, storage_class) for name in claims))
        await self._until_all(claims, self._made, "a volume")
        return claims, max(self._made[name] for name in claims) - begin

    async def _claim(self, name: str, storage_class: str) -> None:
        body = claim(name, "1Gi", storage_class)
        annotations = {"volume.kubernetes.io/storage-provisioner": names.PROVISIONER}
        if storage_class == _LATE:
            annotations[SELECTED_NODE] = _node(int(name.rpartition("-")[2]) % self._found.nodes)
            await self._cluster.create(PODS, pod(name, {"/data": name}), "default")
        body["metadata"]["annotations"] = annotations
        await self._cluster.create(CLAIMS, body, "default")

    async def _bind(self, claims: Sequence[str]) -> None:
        """What the controller of Kubernetes does, and the node."""
        for name in claims:
            bound = await self._cluster.get(CLAIMS, name, "default")
            volume = f"pvc-{bound['metadata']['uid']}"
            unprotected = {"metadata": {"finalizers": []}, "spec": {"volumeName": volume}}
            await self._cluster.patch(CLAIMS, name, unprotected, "default")
            await self._cluster.patch(VOLUMES, volume, {"status": {"phase": BOUND}}, subresource="status")

    async def _release(self, claims: Sequence[str]) -> None:
        volumes = []
        for name in claims:
            bound = await self._cluster.get(CLAIMS, name, "default")
            volumes.append(bound["spec"]["volumeName"])
            await self._cluster.delete(CLAIMS, name, "default")
            await self._cluster.patch(VOLUMES, volumes[-1], {"status": {"phase": RELEASED}}, subresource="status")
        await self._until_all(volumes, self._going, "an end")

    async def _until_all(self, wanted: Sequence[str], seen: Container[str], what: str) -> None:
        def arrived() -> bool:
            assert not self._watching.done(), f"nobody watches any more: {self._watching}"
            return all(name in seen for name in wanted)

        await until(arrived, what=f"each of {len(wanted)} has {what}", seconds=1200)

    async def _watch(self) -> None:
        version = ""
        async for page in self._cluster.pages(VOLUMES, limit=1):
            version = page.resource_version
            break
        async for kind, body in self._cluster.watch(VOLUMES, resource_version=version, timeout_seconds=3600):
            if kind == "ADDED":
                self._made[body["spec"]["claimRef"]["name"]] = time.perf_counter()
            elif "deletionTimestamp" in body["metadata"] or kind == "DELETED":
                self._going.add(body["metadata"]["name"])


if __name__ == "__main__":
    mountspace.enter_private()
    asyncio.run(main())
