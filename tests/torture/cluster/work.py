"""Claims, pods and snapshots that come, grow, are copied and go in a sandbox, while something disturbs the programs:
what the campaigns on a whole cluster have in common.

The disturbance ends every few rounds. Then all that was asked for must come to its end within a bound, and nothing may
be lost or left over (`model`).
"""

import asyncio
import contextlib
import random
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from host import filesystem
from kube.errors import AlreadyExists, Conflict, Invalid, NotFound
from tests.sandbox.nodes import NodeSpec
from tests.sandbox.programs import Program, StartFailed
from tests.sandbox.sandbox import COMPONENTS, Sandbox
from tests.torture.cluster.cgroups import ControlGroups, control_groups
from tests.torture.cluster.look import look
from tests.torture.cluster.model import Model
from tests.torture.cluster.operation import Operation
from tests.torture.cluster.plan import plan
from tests.torture.cluster.requests import NAMESPACE, NotReleased, Requests, class_of, prepare
from tests.torture.cluster.seen import Seen
from tests.torture.figures import Figures
from tests.waiting import patience

NODES = (NodeSpec("loop", capacity="4Gi"), NodeSpec("folder", backend="folder", capacity="4Gi"))

SETTLE_SECONDS = 90.0
"""Within which all must have come to its end once nothing disturbs it. Most of that is the kubelet's own back-off."""
_LAST_SECONDS = 60.0
_LOOK_PAUSE = 0.2
_MOST_OPERATIONS = 4
_TRACED = 4000


class Campaign:
    """From one seed. `settle_every`: rounds between two times of quiet."""

    def __init__(self, sandbox: Sandbox, groups: ControlGroups, seed: int, figures: Figures, settle_every: int) -> None:
        self.sandbox = sandbox
        self._groups = groups
        self._requests = Requests(sandbox, groups)
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
        await prepare(self.sandbox)
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
            await self._clear(seen)
            await asyncio.sleep(_LOOK_PAUSE)
            seen = await self.seen()
            complaints = self.model.complaints(seen)
        if complaints:
            self._complain([f"still so {SETTLE_SECONDS * patience():.0f} s after the last disturbance:", *complaints])
            shown = (
                *self.model.workloads.items(),
                *self.model.snapshots.items(),
                *seen.volumes.items(),
                *seen.snapshots.items(),
                *seen.contents.items(),
                *seen.data.items(),
            )
            self.figures.complaints += [f"    {name}: {each}" for name, each in shown]
            return
        self.model = self.model.settled(seen)
        slowest = self.figures.counts["settled within, s"]
        self.figures.counts["settled within, s"] = max(slowest, round(time.monotonic() - begin))
        self.figures.counts["settled"] += 1
        there = f"{len(self.model.workloads)} workloads, {len(self.model.snapshots)} snapshots"
        self.note(f"settled after {time.monotonic() - begin:.1f} s, {there}")

    async def _clear(self, seen: Seen) -> None:
        """What only a person lets go of."""
        for stray in self.model.strays(seen):
            with contextlib.suppress(NotFound):
                await self._requests.discard(stray)
        for name in self.model.unreleased(seen):
            with contextlib.suppress(NotFound, Conflict):
                await self._requests.release(name)

    async def seen(self) -> Seen:
        """With what is learned from it."""
        state = await look(self.sandbox, self._groups, NAMESPACE, class_of(csi=True, retain=False))
        self.model = self.model.learned(state)
        return state

    def note(self, message: str) -> None:
        self._trace = [*self._trace[-_TRACED:], f"{time.monotonic() - self._begin:8.2f} {message}"]

    async def _ask(self) -> None:
        for operation in plan(self.model, self._asking, self._asking.randint(1, _MOST_OPERATIONS)):
            await self._perform(operation)
            await asyncio.sleep(self._asking.uniform(0, 0.6))
        await self.seen()

    async def _perform(self, operation: Operation) -> None:
        self.note(str(operation))
        if operation.kind == "snapshot":
            # What is flushed by now is to be in it.
            await self.seen()
        try:
            if operation.makes or operation.name in self.model.workloads or operation.name in self.model.snapshots:
                operation = await self._requests.make(operation, self.model)
        except (AlreadyExists, NotFound, Conflict, Invalid, NotReleased) as error:
            self.note(f"  refused: {error}")
            return
        restores = operation.kind == "create" and operation.source in self.model.snapshots
        self.figures.counts["create, restored" if restores else operation.kind] += 1
        self.model = self.model.after(operation)

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
        for taken in list(self.model.snapshots.values()):
            if not taken.deleted:
                if taken.retain and taken.content:
                    await self._perform(Operation("snapshotpolicy", taken.name, retain=False))
                await self._perform(Operation("unsnapshot", taken.name))
            elif taken.retain and not taken.parted and taken.content:
                await self._perform(Operation("freesnapshot", taken.name))
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
        parted |= {each.volume for each in self.model.snapshots.values() if each.parted and each.ready}
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
async def cluster(folder: Path, provisioners: int) -> AsyncIterator[tuple[Sandbox, ControlGroups]]:
    with control_groups() as groups:
        async with Sandbox(
            folder, NODES, provisioners=provisioners, components=[COMPONENTS / "snapshots"], snapshots=True
        ) as sandbox:
            yield sandbox, groups
