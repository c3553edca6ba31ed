"""Records that are rewritten at the same time go with one command: group commit, as databases have it.

Commands of LVM on one group take turns at its lock, and each reads the whole group. Where many volumes are made at
once, each of them has the same change to note, and they differ only in their names and in the tags that say whose they
are. So what comes while such a command waits or runs is collected, and goes with the next. Nobody is kept waiting for
company: where no command runs, one begins at once.

Each hears of its own volume only, and not before that is on the disk. A command that fails for one of them may have
changed the others: each is asked for alone then, which changes nothing a second time. Where the group gives no answer,
all hear that.
"""

import asyncio
from collections.abc import Collection
from contextvars import Context
from dataclasses import dataclass, replace

import lvm
from daemon.backends.lvmerrors import errors_of
from daemon.storage.inventory import PoolName, Volume
from daemon.storage.record import Record
from lvm import Lvm

_TOGETHER = 32
"""Volumes of one command. Their names and tags, up to 1 KiB for each, are one argument, of which the kernel takes
128 KiB; and each adds to what all of them wait for."""

_OF_THE_GROUP = (lvm.TimedOut, lvm.Hung, lvm.BeingChecked, lvm.GroupNotFound)
"""Errors that each of its volumes would get alone as well, some of them after a minute."""


@dataclass(frozen=True)
class _Change:
    group: str
    add: frozenset[str]
    remove: frozenset[str]


class LvmRecords:
    """Writes the records of volumes into their tags, in all groups."""

    def __init__(self, tools: Lvm) -> None:
        self._lvm = tools
        self._last: dict[_Change, _Command] = {}

    async def rewrite(self, volume: Volume, record: Record) -> Volume:
        """The volume with another record, in its own turn. Raises VolumeError. Who gives up has broken nothing off that
        others wait for; nor is anything done to the volume later."""
        before, after = volume.record.to_tags(), record.to_tags()
        change = _Change(PoolName.of(volume.pool).group, add=after - before, remove=before - after)
        with errors_of(volume):
            await self._command(change, volume.pv).done(volume.pv, volume.record.owner_tags())
        return replace(volume, record=record)

    def _command(self, change: _Change, name: str) -> "_Command":
        """The command that makes the change for this volume: one that still takes volumes, or a new one."""
        last = self._last.get(change)
        if last is not None and last.takes(name):
            return last
        command = self._last[change] = _Command(self._lvm, change, last)
        command.task.add_done_callback(lambda _: self._leave(change, command))
        return command

    def _leave(self, change: _Change, command: "_Command") -> None:
        if self._last.get(change) is command:
            del self._last[change]


class _Command:
    """One command, which runs when the one `before` it has ended, well or badly."""

    def __init__(self, tools: Lvm, change: _Change, before: "_Command | None") -> None:
        self._lvm = tools
        self._change = change
        self._volumes: dict[str, Collection[str]] = {}
        """The tags that each must have."""
        self._outcomes: dict[str, asyncio.Future[None]] = {}
        """Those that are waited for."""
        self._begun = False
        # What it logs is of no one volume.
        self.task = asyncio.create_task(self._run(before), name=f"records of {change.group}", context=Context())

    def takes(self, name: str) -> bool:
        return not self._begun and name not in self._volumes and len(self._volumes) < _TOGETHER

    async def done(self, name: str, having: Collection[str]) -> None:
        """Raises LvmError."""
        outcome = asyncio.get_running_loop().create_future()
        self._volumes[name], self._outcomes[name] = having, outcome
        try:
            await asyncio.shield(outcome)
        except asyncio.CancelledError:
            await self._give_up(name)
            raise

    async def _give_up(self, name: str) -> None:
        """Nothing is done to the volume from here on: who has its next turn sees what it is."""
        self._outcomes.pop(name, None)
        if not self._begun:
            del self._volumes[name]
            return
        if not self._outcomes:
            self.task.cancel()
        await asyncio.wait({self.task})

    async def _run(self, before: "_Command | None") -> None:
        if before is not None:
            await asyncio.wait({before.task})
        self._begun = True
        try:
            await self._retag_all()
        except Exception as error:
            for name in self._volumes:
                self._settle(name, error)

    async def _retag_all(self) -> None:
        try:
            await self._retag(self._volumes)
        except _OF_THE_GROUP:
            raise
        except lvm.LvmError:
            if len(self._volumes) == 1:
                raise
            for name, having in self._volumes.items():
                if name in self._outcomes:
                    await self._retag_alone(name, having)

    async def _retag_alone(self, name: str, having: Collection[str]) -> None:
        try:
            await self._retag({name: having})
        except _OF_THE_GROUP:
            raise
        except lvm.LvmError as error:
            self._settle(name, error)

    async def _retag(self, volumes: dict[str, Collection[str]]) -> None:
        left = await self._lvm.retag(self._change.group, volumes, add=self._change.add, remove=self._change.remove)
        for name in volumes:
            self._settle(name, left.get(name))

    def _settle(self, name: str, error: Exception | None) -> None:
        outcome = self._outcomes.pop(name, None)
        if outcome is not None and error is not None:
            outcome.set_exception(error)
        elif outcome is not None:
            outcome.set_result(None)
