"""How a command of LVM is run: on a node where disks hang, a check takes an hour and power fails.

Before it there is an lvm.conf, and devices that give no answer are left out. A command that would wait for one of them,
or for a group that is being checked, is not started. One that checks a thin pool goes on without its caller.

What was changed, and what is reported, survives a power cut. LVM itself writes its metadata past the page cache and
leaves them in the disks' own caches (seen with LVM 2.03.16), so the disks are flushed here.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from host import blockdevice, command, diskthreads
from host.command import CommandFailed, CommandHung, CommandTimedOut, Completed, LongWork
from host.diskthreads import threads
from lvm import configuration, errors, report, unconfirmed
from lvm.records import Report
from lvm.unresponsive import UnresponsiveDevices

log = logging.getLogger(__name__)

_POOL_CHECK = "thin_check"
_POOL_CHECK_SECONDS = 3600.0
"""That long LVM may check the metadata of a thin pool, which are up to 16 GiB."""

_UNLOCKED_REPORT = (report.FULL_REPORT[0], "--nolocking", *report.FULL_REPORT[1:])
_NO_WAIT = "global/wait_for_locks=0"

_SELECT = "--select="
_NO_LOG = "log/report_command_log=0"
"""A command that changes something and selects crashes while it keeps a log for its report (seen with LVM 2.03.16): its
errors stand on stderr."""


@dataclass(frozen=True)
class _Check:
    """A thin pool of the group is being checked for longer than a command may take, since `begin` in monotonic
    seconds."""

    group: str
    begin: float

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begin


class Runner:
    """What `lvm.Lvm` runs its commands with, and it explains the parameters. `unresponsive` are the devices that LVM
    does without.

    `group` is what a command is about, and must not be waited for; "" where that is no group. All methods raise
    LvmError or one of its kinds, and host.command.MissingTool.
    """

    def __init__(
        self, folder: Path, *, deadline: float, configured: bool, foreign: Callable[[], Awaitable[Collection[Path]]]
    ) -> None:
        self._folder = folder
        self._configured = configured
        self._deadline = deadline
        self._foreign = foreign
        self.unresponsive = UnresponsiveDevices()
        self._flushed: set[str] = set()
        """Groups whose metadata are on their disks, as far as this process knows: one before it may have been killed
        after its LVM command."""
        self._checks: dict[asyncio.Task[Completed], _Check] = {}
        """By the task of the command. LVM's lock lets one at a time at a group, and nothing here depends on that."""
        self._locked_out = False
        """The last report had to do without the lock of a group."""
        self._environment = {"LVM_SYSTEM_DIR": str(folder), "LVM_SUPPRESS_FD_WARNINGS": "1"}

    async def report(self, *, even_unlocked: bool = False) -> Report:
        """Groups, volumes and devices of the whole node, as LVM says. It is on the disks, as far as these can be
        flushed.

        LVM takes the lock of each group for it. Somebody may have one for long: a question of LVM's that is left
        unanswered, a thin pool that is repaired. `even_unlocked`: after one deadline the report goes without locks, and
        what is being changed at that moment shows half done.
        """
        await self.unresponsive.look_again()
        done = await self._read(even_unlocked)
        try:
            state = report.state(done)
        except ValueError as error:
            said = f"what LVM reports can't be read: {error}"
            raise errors.LvmError(done.command_line, done.exit_code, said) from error
        self.unresponsive.note(state)
        for group in state.groups:
            if group.name not in self._flushed and not self.unresponsive.of_group(group.name):
                try:
                    await self._flush(group.name, self.unresponsive.members(group.name))
                except errors.LvmError as error:
                    log.warning("%s", error)  # no reason to know nothing; the next report tries again
        return state

    async def _read(self, even_unlocked: bool) -> Completed:
        # It would wait for the lock of a group that is checked, and with it all others.
        if self._checks or (even_unlocked and self._locked_out and not await self._has_locks()):
            return await self._run_once("", *_UNLOCKED_REPORT)
        try:
            return await self._run_once("", *report.FULL_REPORT)
        except errors.TimedOut as late:
            if not even_unlocked or self.unresponsive.silent:
                raise
            log.warning("somebody has LVM's lock of a group, so what is there is read without: %s", late)
            self._locked_out = True
            return await self._run_once("", *_UNLOCKED_REPORT)

    async def _has_locks(self) -> bool:
        """Whether nobody has a lock of LVM's any more that a report would wait for."""
        try:
            await self._run_once("", "vgs", settings=[_NO_WAIT])
        except errors.LvmError:
            return False
        self._locked_out = False
        return True

    async def commit(self, group: str, *arguments: str, added: Sequence[str] = ()) -> Completed:
        """Run a command that changes the metadata of a group, or adds these devices to it. Afterwards they are on its
        disks."""
        try:
            done = await self.run(group, *arguments)
        except BaseException:
            self._flushed.discard(group)  # it may have changed them all the same: who reports them flushes them
            raise
        self._flushed.discard(group)
        devices = [Path(device) for device in added]
        await self._flush(group, devices or self.unresponsive.members(group), each=bool(devices))
        return done

    async def run(self, group: str, *arguments: str) -> Completed:
        """Run a command that leaves the metadata as they are. Where it fails for what a killed command left it is run
        again: parts of a volume that are active without it are deactivated, a thin device that LVM does not know of yet
        is removed."""
        met: set[str] = set()
        while True:
            try:
                return await self._run_once(group, *arguments)
            except errors.PartsActive as error:
                if error.part in met:
                    raise
                met.add(error.part)
                try:
                    await self._free_parts(group, error)
                except errors.LvmError as failed:
                    raise error from failed  # somebody has them open
            except errors.ThinDeviceLeft as error:
                if error.device in met or not await unconfirmed.remove(
                    group, error.pool, error.device, deadline=self._deadline
                ):
                    raise
                met.add(error.device)

    async def dmsetup(self, *arguments: str) -> None:
        """Take back by dmsetup(8) what LVM had the kernel prepare. Of what is not there, nothing has to be."""
        await command.run("dmsetup", "--noudevsync", *arguments, deadline=self._deadline, check=False)

    async def _flush(self, group: str, devices: Collection[Path], *, each: bool = False) -> None:
        """The metadata of the group are on its disks. One that has them is enough, for LVM takes the latest and writes
        them to the others; not so with `each`: a new disk bears its label nowhere else."""
        flushes = [
            threads.at(device, partial(blockdevice.flush, device), deadline=self._deadline) for device in devices
        ]
        failures = []
        for device, answer in zip(devices, await asyncio.gather(*flushes, return_exceptions=True), strict=True):
            if isinstance(answer, (OSError, diskthreads.Hung)):
                failures.append((device, answer))
            elif isinstance(answer, BaseException):
                raise answer
        if failures and (each or len(failures) == len(devices)):
            device, why = failures[0]
            kind = errors.Hung if isinstance(why, diskthreads.Hung) else errors.LvmError
            raise kind("flush", None, f"the metadata of group {group} may not be on {device} yet: {why}") from why
        if devices:
            self._flushed.add(group)

    async def _free_parts(self, group: str, active: errors.PartsActive) -> None:
        """This part of a volume is not active without it. Where LVM names none, the volume is activated, so that it
        does."""
        if active.part:
            await self._run_once(group, "lvchange", "--activate=n", "--yes", active.part)
        else:
            await self.run(group, "lvchange", "--activate=y", "--yes", active.volume)

    async def _run_once(self, group: str, *arguments: str, settings: Sequence[str] = ()) -> Completed:
        if not self._configured:
            await self._configure()
        verb = arguments[0]
        if group:
            self._refuse(verb, group)
        # What one group's disks keep waiting is no reason not to change another group.
        kind = ("lvm", verb, group, self.unresponsive.silent)
        options = await self._settings(arguments, settings)
        return await self._unless_it_checks((verb, *options, *arguments[1:]), group, kind)

    async def _configure(self) -> None:
        """Before each command: without the file, which somebody may have removed with its folder, LVM reports other
        figures and no JSON. Not at the start of the program: the folder's disk may hang, and other storage is served
        without LVM."""
        text = configuration.text(udev=configuration.udev_runs())
        try:
            await threads.at(self._folder, partial(configuration.write, self._folder, text))
        except diskthreads.Hung as error:
            raise errors.Hung("lvm", None, str(error)) from error
        except OSError as error:
            raise errors.LvmError("lvm", None, f"{self._folder} gets no lvm.conf: {error}") from error

    def _refuse(self, verb: str, group: str) -> None:
        """What would wait for a device without an answer, or for the lock of a group that is being checked."""
        if silent := self.unresponsive.of_group(group):
            raise errors.Hung(verb, None, str(silent)) from silent
        if check := self._check_of(group):
            raise _being_checked(verb, check)

    async def _settings(self, arguments: Sequence[str], more: Sequence[str]) -> list[str]:
        """What is set beside lvm.conf. LVM takes the option once."""
        settings = [*more, *([_NO_LOG] if any(each.startswith(_SELECT) for each in arguments) else [])]
        left_out = [*self.unresponsive.paths(), *await self._foreign()]
        if left_out:
            refused = ",".join(f'"r|^{path}$|"' for path in left_out)
            settings.append(f"devices/global_filter=[{refused}]")
        return [f"--config={' '.join(settings)}"] if settings else []

    async def _unless_it_checks(self, arguments: Sequence[str], group: str, kind: Hashable) -> Completed:
        begin, checks = time.monotonic(), asyncio.Event()
        running = asyncio.create_task(self._execute(arguments, group, kind, checks.set), name=f"lvm {arguments[0]}")
        noticed = asyncio.create_task(checks.wait())
        try:
            await asyncio.wait({running, noticed}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            running.cancel()
            await asyncio.wait({running})
            raise
        finally:
            noticed.cancel()
        if running.done():
            return running.result()
        check = self._checks[running] = _Check(group, begin)
        running.add_done_callback(self._checked)
        error = _being_checked(arguments[0], check)
        log.warning("%s", error)
        raise error

    def _check_of(self, group: str) -> _Check | None:
        """That of a group that began first."""
        return next((check for check in self._checks.values() if check.group == group), None)

    def _checked(self, running: asyncio.Task[Completed]) -> None:
        check = self._checks.pop(running)
        self._flushed.discard(check.group)
        if not running.cancelled():
            error = running.exception()
            outcome = f"failed: {error}" if error else "is done"
            log.warning("the check of a thin pool of group %s %s, %.0f s", check.group, outcome, check.seconds)

    async def _execute(
        self, arguments: Sequence[str], group: str, kind: Hashable, checks: Callable[[], None]
    ) -> Completed:
        long_work = LongWork(_POOL_CHECK, _POOL_CHECK_SECONDS, checks)
        try:
            return await command.run(
                "lvm", *arguments, deadline=self._deadline, env=self._environment, kind=kind, long_work=long_work
            )
        except CommandHung as hung:
            await self.unresponsive.look()
            raise errors.Hung(hung.survivor.command_line, None, str(hung)) from hung
        except CommandTimedOut as late:
            await self.unresponsive.look()
            message = f"LVM did not answer within {self._deadline:g} s: {late.completed.output or 'it said nothing'}"
            if asyncio.current_task() in self._checks:
                message = _no_check_any_more(late)
            elif check := self._check_of(group):
                message = _being_checked(arguments[0], check).message
            elif group and not self.unresponsive.silent:
                message += (
                    f"; `fuser -v /run/lock/lvm/V_{group}` on the node shows who may have LVM's lock of the group"
                )
            raise errors.TimedOut(late.completed.command_line, late.completed.exit_code, message) from late
        except CommandFailed as failed:
            done = failed.completed
            if done.exit_code < 0:
                message = f"LVM was killed (signal {-done.exit_code}): {done.output or 'it said nothing'}"
                raise errors.Interrupted(done.command_line, done.exit_code, message) from failed
            raise errors.explain(done.command_line, done.exit_code, report.errors(done)) from failed


def _being_checked(verb: str, check: _Check) -> errors.BeingChecked:
    return errors.BeingChecked(
        verb,
        None,
        f"LVM has been checking the metadata of a thin pool of group {check.group} for {check.seconds:.0f} s "
        f"({_POOL_CHECK}), and lets nobody else at the group: that takes minutes where they are large and may take "
        f"up to {_POOL_CHECK_SECONDS / 60:.0f}, wait for it",
    )


def _no_check_any_more(late: CommandTimedOut) -> str:
    return (
        f"{_POOL_CHECK} of a thin pool's metadata was ended after {late.completed.seconds:.0f} s: it took longer than "
        f"{_POOL_CHECK_SECONDS / 60:.0f} minutes, or its disk gave no answer any more: see the kernel's log on the node"
    )
