"""SIGKILL of the daemons and provisioners of a whole cluster at work, the leader among them, in random order."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

from contract import names
from kube.errors import NotFound
from kube.resources import LEASES
from tests.sandbox.programs import Program
from tests.sandbox.sandbox import Sandbox
from tests.torture.cluster.cgroups import ControlGroups
from tests.torture.cluster.work import Campaign, cluster
from tests.torture.figures import Figures

_SETTLE_EVERY = 8
"""Rounds."""
_MOST_KILLS = 3
_LEADER, _STANDBY = 0.12, 0.12
"""Shares of the kills. A leader that is killed is followed only when its lease ran out, 15 s later."""
_LONGEST_DOWN = 1.0
_LEASE = "elastic-local-provisioner"


class ClusterKills(Campaign):
    def __init__(self, sandbox: Sandbox, groups: ControlGroups, seed: int, figures: Figures) -> None:
        super().__init__(sandbox, groups, seed, figures, _SETTLE_EVERY)

    async def disturb(self) -> None:
        for _ in range(self.chance.randint(1, _MOST_KILLS)):
            await asyncio.sleep(self.chance.uniform(0, 0.8))
            await self._kill()

    async def calm(self) -> None:
        for program in self.programs:
            await self.restart(program)

    async def _kill(self) -> None:
        leader = await self._leader()
        standby = [program for program in self.sandbox.provisioners if program is not leader]
        daemons = [node.daemon for node in self.sandbox.nodes.values()]
        dice, pause = self.chance.random(), self.chance.uniform(0, _LONGEST_DOWN)
        whole, daemon, other = self.chance.random() < 0.5, self.chance.choice(daemons), self.chance.choice(standby)
        kind, program = "daemon", daemon
        if dice < _LEADER and leader:
            kind, program = "leader", leader
        elif dice < _LEADER + _STANDBY:
            kind, program = "standby", other
        self.note(f"kill of {program.name}, {kind}{' with all that it started' if whole else ''}")
        self.down.add(program.name)
        if whole and program.running:
            # As with its container: the programs that it started die with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
        await program.kill()
        self.figures.counts[f"kills of a {kind}"] += 1
        await asyncio.sleep(pause)
        program.launch()
        self.down.discard(program.name)

    async def _leader(self) -> Program | None:
        """Who holds the lease, alive or not."""
        try:
            spec = (await self.sandbox.api.get(LEASES, _LEASE, names.NAMESPACE))["spec"]
        except NotFound:
            return None
        holder = str(spec.get("holderIdentity") or "")
        return next(
            (each for each in self.sandbox.provisioners if holder.startswith(f"{each.environment['POD_NAME']}_")), None
        )


def run(folder: Path, seed: int, figures: Figures, enough: Callable[[], bool]) -> None:
    async def live() -> None:
        async with cluster(folder, provisioners=2) as (sandbox, groups):
            await ClusterKills(sandbox, groups, seed, figures).run(enough)

    asyncio.run(live())
