"""An API server that refuses, hangs, closes connections and watches, dies and goes back in time, with a cluster at it.

What is refused or lost follows from a plan (sandbox/apiserver/faults.py), of which each has a seed from the campaign's.
Going back in time is etcd restored from a backup: all that the API server knew since is undone, and what lies on the
nodes is not. Backups are taken when all is quiet, so that the model knows what is in them.
"""

import asyncio
import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

from kube.errors import AlreadyExists
from kube.resources import Resource
from tests.sandbox.apiserver import faults
from tests.sandbox.apiserver.faults import Plan
from tests.sandbox.sandbox import Sandbox
from tests.torture.cluster.cgroups import ControlGroups
from tests.torture.cluster.look import volumes_on
from tests.torture.cluster.model import Model
from tests.torture.cluster.requests import NAMESPACE
from tests.torture.cluster.work import Campaign, cluster
from tests.torture.figures import Figures

_SETTLE_EVERY = 4
"""Rounds."""
_RESTORE_EVERY = 3
"""Times of quiet. In between it may be killed."""
_LONGEST_OUTAGE = 4.0
_VERSIONS = 300
_CONFIG_MAPS = Resource("", "v1", "configmaps", namespaced=True)


class ApiFaults(Campaign):
    def __init__(self, sandbox: Sandbox, groups: ControlGroups, seed: int, figures: Figures) -> None:
        super().__init__(sandbox, groups, seed, figures, _SETTLE_EVERY)
        self._backup: tuple[Path, Model] | None = None
        self._number = 0

    async def disturb(self) -> None:
        self._number += 1
        seed, dice = self.chance.getrandbits(32), self.chance.random()
        if dice < 0.6:
            share = self.chance.uniform(0.1, 0.6)
            await self._disturb_with(Plan(seed, share), self.chance.uniform(1, 4))
        elif dice < 0.85:
            kind = self.chance.choice(faults.KINDS)
            methods = self.chance.choice([(), ("POST", "PUT", "PATCH", "DELETE")])
            await self._disturb_with(Plan(seed, 1, (kind,), methods), self.chance.uniform(1, _LONGEST_OUTAGE))

    async def calm(self) -> None:
        await self._disturb_with(Plan(), 0)
        if self._number and self.chance.random() < 0.5:
            await self._die(self.chance.uniform(0, _LONGEST_OUTAGE))

    async def settle(self) -> None:
        restore = self._backup is not None and self.chance.random() < 1 / _RESTORE_EVERY
        if restore and not self.figures.complaints:
            await self._go_back()
        await super().settle()
        if not self.figures.complaints and (self._backup is None or restore or self.chance.random() < 0.5):
            await self._back_up()

    async def _disturb_with(self, chosen: Plan, seconds: float) -> None:
        self.note(f"faults: {chosen.share:.2f} of {chosen.kinds if len(chosen.kinds) == 1 else 'all kinds'}")
        for kind, number in (await self.sandbox.begin_faults(chosen)).items():
            self.figures.counts[f"fault: {kind}"] += number
        await asyncio.sleep(seconds)

    async def _die(self, seconds: float) -> None:
        self.note(f"the API server is away for {seconds:.1f} s")
        await self.sandbox.apiserver.kill()
        await asyncio.sleep(seconds)
        await self.sandbox.apiserver.start()
        self.figures.counts["kills of the API server"] += 1

    @property
    def _journal(self) -> Path:
        [journal] = (self.sandbox.folder / "etcd").glob("journal.jsonl")
        return journal

    async def _back_up(self) -> None:
        """At rest; what is appended meanwhile comes in whole lines."""
        kept = self.sandbox.folder / "backup"
        shutil.copyfile(self._journal, kept)
        self._backup = kept, self.model
        self.note("backup")
        await self._pass_versions()

    async def _go_back(self) -> None:
        assert self._backup is not None
        kept, saved = self._backup
        there = await self.seen()
        await self.sandbox.apiserver.kill()
        # What was made since that look. Without an API server nothing is begun.
        made = [name for node in self.sandbox.nodes.values() for name, _ in volumes_on(node)]
        shutil.copyfile(kept, self._journal)
        self.model = self.model.restored(saved, [*there.volumes, *there.data, *made])
        self.note(f"the API server goes back in time, to {sorted(saved.workloads)}")
        await self.sandbox.apiserver.start()
        self.figures.counts["times back in time"] += 1

    async def _pass_versions(self) -> None:
        """Others write too, so that a backup is some hundred versions old when anything of ours changes. One that was
        overtaken before a cache asked how late it is would not be noticed."""
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "others"}}
        with contextlib.suppress(AlreadyExists):
            await self.sandbox.api.create(_CONFIG_MAPS, body, NAMESPACE)
        for number in range(_VERSIONS):
            await self.sandbox.api.patch(_CONFIG_MAPS, "others", {"data": {"number": str(number)}}, NAMESPACE)


def run(folder: Path, seed: int, figures: Figures, enough: Callable[[], bool]) -> None:
    async def live() -> None:
        async with cluster(folder, provisioners=2) as (sandbox, groups):
            await ApiFaults(sandbox, groups, seed, figures).run(enough)

    asyncio.run(live())
