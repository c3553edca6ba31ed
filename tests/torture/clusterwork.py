"""Claims and pods that come, grow, are copied and go in a sandbox, while something disturbs the programs: what the
campaigns on a whole cluster have in common.

The disturbance ends every few rounds. Then all that was asked for must come to its end within a bound, and nothing may
be lost or left over (clustermodel).
"""

import asyncio
import contextlib
import random
import time
import zlib
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from contract.volume import CSI, FLEX_VOLUME
from host import filesystem
from kube.errors import AlreadyExists, Conflict, Invalid, NotFound
from kube.resources import CLAIMS, CLASSES, PODS, VOLUMES
from tests.sandbox.nodes import NodeSpec
from tests.sandbox.programs import Program, StartFailed
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import NAMESPACES, claim, pod, storage_class
from tests.torture.clusterlook import FILE, look
from tests.torture.clustermodel import Model, Operation, Seen, plan
from tests.torture.figures import Figures
from tests.waiting import patience

NODES = (NodeSpec("loop", capacity="4Gi"), NodeSpec("folder", backend="folder", capacity="4Gi"))
NAMESPACE = "work"
DELETE, RETAIN = "torture-delete", "torture-retain"
"""Beginnings of the names of classes, one for each driver."""
VOLUME_SOURCES = (FLEX_VOLUME, CSI)

SETTLE_SECONDS = 90.0
"""Within which all must have come to its end once nothing disturbs it. Most of that is the kubelet's own back-off."""
_LAST_SECONDS = 60.0
_LOOK_PAUSE = 0.2
_MOST_OPERATIONS = 4
_TRACED = 4000

_WRITE = (
    f"test -e /data/{FILE} || cat /proc/sys/kernel/random/uuid > /data/.new && "
    f"{{ test -e /data/{FILE} || mv /data/.new /data/{FILE}; }}; exec sleep infinity"
)


def class_of(name: str, *, retain: bool) -> str:
    """Of a claim of that name: both drivers are in use, from any seed."""
    source = VOLUME_SOURCES[zlib.crc32(name.encode()) % len(VOLUME_SOURCES)]
    return f"{RETAIN if retain else DELETE}-{source.lower()}"


class _NotReleased(Exception):
    """The claim of a volume has not gone yet."""


class Campaign:
    """From one seed. `settle_every`: rounds between two times of quiet."""

    def __init__(self, sandbox: Sandbox, seed: int, figures: Figures, settle_every: int) -> None:
        self.sandbox = sandbox
        # Each has its own, or what is done would depend on who comes first.
        self.chance = random.Random(f"{seed} to disturb")
        self._asking = random.Random(f"{seed} to ask")
        self.figures = figures
        grows_mounted = filesystem.grows_mounted("ext4")
        self.model = Model(
            growing=frozenset(
                spec.name for spec in NODES if spec.backend == "folder" or (spec.backend == "loop" and grows_mounted)
            ),
            cloning=frozenset(spec.name for spec in NODES if spec.backend == "loop"),
        )
        self._settle_every = settle_every
        self._trace: list[str] = []
        self.down: set[str] = set()
        """Names of programs that the campaign itself keeps from running."""
        self._begin = time.monotonic()

    @abstractmethod
    async def disturb(self) -> None:
        """One round of it."""

    @abstractmethod
    async def calm(self) -> None:
        """From now on nothing disturbs anybody."""

    async def run(self, enough: Callable[[], bool]) -> None:
        """Until `enough`, or the first complaint; all is removed in the end, and nothing may stay."""
        await self._prepare()
        keeper = asyncio.create_task(self._keep_running())
        try:
            number = 0
            while not enough() and not self.figures.complaints:
                number += 1
                await asyncio.gather(self.disturb(), self._ask())
                self.figures.counts["rounds"] += 1
                if number % self._settle_every == 0:
                    await self.settle()
            await self.settle()
            await self._remove_all()
        finally:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper

    async def settle(self) -> None:
        """Nobody disturbs, and all comes to its end."""
        if self.figures.complaints:
            return
        await self.calm()
        begin = time.monotonic()
        seen = await self.seen()
        complaints = self.model.complaints(seen)
        while complaints and time.monotonic() - begin < SETTLE_SECONDS * patience():
            await asyncio.sleep(_LOOK_PAUSE)
            seen = await self.seen()
            complaints = self.model.complaints(seen)
        if complaints:
            self._complain([f"still so {SETTLE_SECONDS * patience():.0f} s after the last disturbance:", *complaints])
            shown = (*self.model.workloads.items(), *seen.volumes.items(), *seen.data.items())
            self.figures.complaints += [f"    {name}: {each}" for name, each in shown]
            return
        self.model = self.model.settled(seen)
        slowest = self.figures.counts["settled within, s"]
        self.figures.counts["settled within, s"] = max(slowest, round(time.monotonic() - begin))
        self.figures.counts["settled"] += 1
        self.note(f"settled after {time.monotonic() - begin:.1f} s, {len(self.model.workloads)} workloads")

    async def seen(self) -> Seen:
        """With what is learned from it."""
        state = await look(self.sandbox, NAMESPACE, class_of("", retain=False))
        self.model = self.model.learned(state)
        return state

    def note(self, message: str) -> None:
        self._trace = [*self._trace[-_TRACED:], f"{time.monotonic() - self._begin:8.2f} {message}"]

    async def _prepare(self) -> None:
        await self.sandbox.api.create(
            NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        )
        for name, policy in ((DELETE, "Delete"), (RETAIN, "Retain")):
            for source in VOLUME_SOURCES:
                body = storage_class(
                    f"{name}-{source.lower()}", volume_source=source, reclaimPolicy=policy, allowVolumeExpansion=True
                )
                await self.sandbox.api.create(CLASSES, body)

    async def _ask(self) -> None:
        for operation in plan(self.model, self._asking, self._asking.randint(1, _MOST_OPERATIONS)):
            await self._perform(operation)
            await asyncio.sleep(self._asking.uniform(0, 0.6))
        await self.seen()

    async def _perform(self, operation: Operation) -> None:
        """As a user or an administrator does it, to whom the API server answers."""
        self.note(str(operation))
        try:
            if operation.name in self.model.workloads or operation.kind in ("create", "rebind"):
                await self._request(operation)
        except (AlreadyExists, NotFound, Conflict, Invalid, _NotReleased) as error:
            self.note(f"  refused: {error}")
            return
        self.model = self.model.after(operation)
        self.figures.counts[operation.kind] += 1

    async def _request(self, operation: Operation) -> None:
        api, name = self.sandbox.api, operation.name
        known = self.model.workloads.get(operation.source if operation.kind == "rebind" else name)
        match operation.kind:
            case "create":
                more = (
                    {"dataSource": {"kind": "PersistentVolumeClaim", "name": operation.source}}
                    if operation.source
                    else {}
                )
                of_class = class_of(name, retain=operation.retain)
                await api.create(CLAIMS, claim(name, str(operation.size), of_class, **more), NAMESPACE)
                await api.create(PODS, pod(name, {"/data": name}, script=_WRITE), NAMESPACE)
            case "start":
                await api.create(PODS, pod(name, {"/data": name}, script=_WRITE), NAMESPACE)
            case "stop":
                await api.delete(PODS, name, NAMESPACE)
            case "grow":
                request = {"spec": {"resources": {"requests": {"storage": str(operation.size)}}}}
                await api.patch(CLAIMS, name, request, NAMESPACE)
            case "delete":
                with contextlib.suppress(NotFound):
                    await api.delete(PODS, name, NAMESPACE)
                await api.delete(CLAIMS, name, NAMESPACE)
            case "policy" | "free" if known:
                policy = "Retain" if operation.kind == "policy" and operation.retain else "Delete"
                await api.patch(VOLUMES, known.volume, {"spec": {"persistentVolumeReclaimPolicy": policy}})
            case "part" if known:
                await api.delete(VOLUMES, known.volume)
            case "rebind" if known:
                await self._rebind(operation, known.volume)

    async def _rebind(self, operation: Operation, volume: str) -> None:
        """In one change of the PersistentVolume, so that its phase is older than all the rest for a moment."""
        api, name = self.sandbox.api, operation.name
        body = await api.get(VOLUMES, volume)
        if body["status"]["phase"] != "Released":
            raise _NotReleased(f"{volume} is {body['status']['phase']}")
        policy = "Retain" if operation.retain else "Delete"
        reserved = {"namespace": NAMESPACE, "name": name, "uid": None, "resourceVersion": None}
        spec = {"claimRef": reserved if operation.reserved else None, "persistentVolumeReclaimPolicy": policy}
        await api.patch(VOLUMES, volume, {"spec": spec})
        storage_class = body["spec"]["storageClassName"]
        await api.create(CLAIMS, claim(name, str(operation.size), storage_class, volumeName=volume), NAMESPACE)
        await api.create(PODS, pod(name, {"/data": name}, script=_WRITE), NAMESPACE)

    async def _remove_all(self) -> None:
        """Nothing stays but what a person retained on purpose; orphans go when their time is over."""
        if self.figures.complaints:
            return
        for each in list(self.model.workloads.values()):
            if not each.deleted:
                if each.retain and each.volume:
                    await self._perform(Operation("policy", each.name, retain=False))
                await self._perform(Operation("delete", each.name))
            elif each.kept and not each.parted and each.volume:
                await self._perform(Operation("free", each.name))
        await self.settle()
        if self.figures.complaints:
            return
        for node in self.sandbox.nodes.values():
            self.down.add(node.daemon.name)
            await node.daemon.stop()
            node.daemon.environment = {**node.daemon.environment, "ORPHAN_GRACE": "1s"}
            await node.daemon.start()
            self.down.discard(node.daemon.name)
        begin = time.monotonic()
        while time.monotonic() - begin < _LAST_SECONDS * patience():
            seen = await self.seen()
            left = [
                f"volume {name} is left on {data.node}" for name, data in seen.data.items() if data.policy != "Retain"
            ]
            if not left:
                break
            await asyncio.sleep(_LOOK_PAUSE)
        self._complain([f"{message}, {_LAST_SECONDS:.0f} s after ORPHAN_GRACE" for message in left])
        self.figures.counts["orphans removed"] += sum(1 for name in self.model.orphans if name not in seen.data)
        parted = {each.volume for each in self.model.workloads.values() if each.parted and each.copied}
        self._complain([f"retained volume {name} is LOST" for name in parted - seen.data.keys()])
        self.figures.counts["retained to the end"] += len(parted)

    async def _keep_running(self) -> None:
        """What ends by itself is started again, as the kubelet does it. A daemon never does."""
        while True:
            await asyncio.sleep(0.5)
            for program in (*self.sandbox.provisioners, *(node.daemon for node in self.sandbox.nodes.values())):
                if program.running or program.name in self.down:
                    continue
                self.note(f"{program.name} ended with {program.exit_code}")
                self.figures.counts["provisioners that ended"] += 1
                if program not in self.sandbox.provisioners:
                    self._complain([f"{program.name} ended by itself with {program.exit_code}", program.output[-3000:]])
                program.launch()

    def _complain(self, complaints: list[str]) -> None:
        if complaints:
            logs = [f"    {message}" for program in self.sandbox.programs for message in _last_lines(program)]
            self.figures.complaints += [*complaints, *(f"    {message}" for message in self._trace), *logs]

    @property
    def programs(self) -> list[Program]:
        return [*self.sandbox.provisioners, *(node.daemon for node in self.sandbox.nodes.values())]

    async def restart(self, program: Program) -> None:
        """Ready within half a minute, or it is a complaint."""
        if not program.running:
            program.launch()
        try:
            await program.wait_ready()
        except StartFailed as error:
            self._complain([str(error)])


def _last_lines(program: Program) -> list[str]:
    if not program.log.exists():
        return []
    lines = program.log.read_text(errors="replace").splitlines()
    return [f"-- {program.name}", *(line[:400] for line in lines[-300:])]


@contextlib.asynccontextmanager
async def cluster(folder: Path, provisioners: int) -> AsyncIterator[Sandbox]:
    async with Sandbox(folder, NODES, provisioners=provisioners) as sandbox:
        yield sandbox
