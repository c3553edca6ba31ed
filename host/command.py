"""Running a program of the node: the only place that starts one.

Every tool we call can hang (a disk that went away, a lock somebody holds), so there is no call without a
deadline. A program starts in a session of its own, and at the deadline, or when the caller is cancelled, its whole
process group is killed and reaped: `lvcreate` starts `thin_check`, `fsck` starts `fsck.ext4`, and the child is the
one that hangs.

A process in an uninterruptible system call does not die. It is remembered with its group until it is gone, and no
command of its kind is started meanwhile: it would only hang beside it, one more for each try.

Output goes to anonymous memory files and not to pipes: nothing has to be read while the program runs, what it
said before it was killed is still there, and a daemon that it leaves behind can't keep us waiting at an open pipe.

    completed = await run("blkid", "-o", "export", device, deadline=10)
"""

import asyncio
import contextlib
import errno
import logging
import os
import shlex
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from host.diskthreads import Unresponsive

log = logging.getLogger(__name__)

_REAP_SECONDS = 5.0
"""How long a killed program may take to go. One that sits in an uninterruptible system call does not go at all,
and must not hold up its caller for ever."""
_LOOK_SECONDS = 0.02

_KEPT_COMMANDS = 50
_KEPT_OUTPUT = 4096
_KEPT_LINE = 1000
"""Characters of a command line in a message: one about many volumes tells each of their owners that much."""

PACKAGES = {
    "blkdiscard": "util-linux",
    "blkid": "util-linux",
    "cryptsetup": "cryptsetup-bin",
    "dmsetup": "dmsetup",
    "fsck": "util-linux",
    "lsblk": "util-linux",
    "lvm": "lvm2",
    "mount": "mount",
    "thin_check": "thin-provisioning-tools",
    "thin_ls": "thin-provisioning-tools",
    "umount": "mount",
    "wipefs": "util-linux",
}
"""Debian's package of each program. host.filesystem adds those of the filesystems."""


@dataclass(frozen=True)
class Completed:
    """A command that ended. A negative exit code is the signal that killed it."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def command_line(self) -> str:
        """As a shell would take it, for a message: a long one is cut."""
        return _line(self.argv)

    @property
    def output(self) -> str:
        """What it said, for a message: stderr, else stdout."""
        return self.stderr.strip() or self.stdout.strip()


class CommandError(Exception):
    """A command that did not do its work."""


class CommandFailed(CommandError):
    """It ended with an exit code other than zero."""

    def __init__(self, completed: Completed) -> None:
        what = f"failed with exit code {completed.exit_code}"
        super().__init__(f"{completed.command_line} {what}: {completed.output}")
        self.completed = completed


class CommandTimedOut(CommandFailed):
    """It was killed at its deadline. What it said until then is in `.completed`."""

    def __init__(self, completed: Completed, deadline: float) -> None:
        super().__init__(completed)
        what = f"was killed at its deadline of {deadline:g} s"
        self.args = (f"{completed.command_line} {what}: {completed.output}",)


@dataclass(frozen=True)
class LongWork:
    """What a command may run that takes longer than its deadline on a sound disk, and no while can be told before:
    while a program of that name runs in its group and gets on, the command has its deadline anew, and `seconds` in
    all. `begun` hears the first time that it takes longer."""

    program: str
    seconds: float
    begun: Callable[[], None] = lambda: None


class CommandHung(CommandError, Unresponsive):
    """It was killed and is still there, or was not started because one of its kind is."""

    def __init__(self, survivor: "Survivor") -> None:
        super().__init__(
            f"{survivor.command_line} (process {survivor.group}) was killed {time.monotonic() - survivor.killed:.0f} s "
            "ago and still waits for a disk that gives no answer, so nothing like it is started: see the kernel's log "
            "on the node for the disk, bring it back or remove it, or restart the node"
        )
        self.survivor = survivor

    def lasts(self) -> bool:
        return self.survivor.alive


class MissingTool(CommandError):
    """The program is not installed."""

    def __init__(self, program: str) -> None:
        package = PACKAGES.get(program)
        remedy = f"apt-get install {package}" if package else "install the package that has it"
        super().__init__(f"{program} is not on this node: {remedy}")
        self.program = program
        self.package = package


@dataclass(frozen=True)
class Flight:
    """One line of the flight recorder. `started` is in seconds since the epoch; long output is cut."""

    started: float
    completed: Completed

    def __str__(self) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(self.started))
        done = self.completed
        text = f"{clock} {done.command_line}: exit code {done.exit_code} after {done.seconds:.3f} s"
        return "\n".join([text, *(part for part in (done.stdout.rstrip(), done.stderr.rstrip()) if part)])


class FlightRecorder:
    """The last commands, with times and output.

    When one fails, it is logged together with those before it that are not logged yet: what led to a failure is
    often what succeeded a moment earlier.
    """

    def __init__(self, length: int = _KEPT_COMMANDS) -> None:
        self._flights: deque[Flight] = deque(maxlen=length)
        self._unlogged: deque[Flight] = deque(maxlen=length)

    def __iter__(self) -> Iterator[Flight]:
        return iter(tuple(self._flights))

    def record(self, started: float, completed: Completed, *, failed: bool) -> None:
        short = replace(completed, stdout=_cut(completed.stdout), stderr=_cut(completed.stderr))
        flight = Flight(started, short)
        self._flights.append(flight)
        if not failed:
            self._unlogged.append(flight)
            return
        while self._unlogged:
            log.info("before the failure: %s", self._unlogged.popleft())
        log.warning("command failed: %s", flight)


def _line(argv: Collection[str]) -> str:
    return _cut(shlex.join(argv), _KEPT_LINE)


def _cut(text: str, kept: int = _KEPT_OUTPUT) -> str:
    return text if len(text) <= kept else f"{text[:kept]}... ({len(text)} characters)"


@dataclass(frozen=True)
class Survivor:
    """A process group that did not die when it was killed, in monotonic seconds. Its number is given to no other while
    one process of it is left."""

    group: int
    command_line: str
    killed: float

    @property
    def alive(self) -> bool:
        try:
            processes = list(Path("/proc").iterdir())
        except FileNotFoundError:
            return False  # no node but a person's macOS, where its leader was reaped
        return any(_in_group(process, self.group) for process in processes if process.name.isdigit())


def _in_group(process: Path, group: int) -> bool:
    return _ticks(process, group) is not None


def _ticks(process: Path, group: int, program: str = "") -> int | None:
    """The processor time of a process that is alive, in the group and, if one is named, of the program. Also one that
    was reaped by nobody is dead. Source of the format: proc_pid_stat(5)."""
    try:
        name, _, rest = (process / "stat").read_text().partition("(")[2].rpartition(")")
        state, _, its_group, *more = rest.split()
    except (OSError, ValueError):
        return None
    if int(its_group) != group or state in "ZX" or (program and name != program):
        return None
    return int(more[8]) + int(more[9])  # fields 14 and 15


def _work_done(group: int, program: str) -> dict[str, int]:
    """Of the processes of a group that run the program: their processor time, which one that waits for a disk without
    an answer does not take."""
    processes = [process for process in Path("/proc").iterdir() if process.name.isdigit()]
    ticks = {process.name: _ticks(process, group, program) for process in processes}
    return {process: taken for process, taken in ticks.items() if taken}


class Survivors:
    """By the kind of their command. At most one of each, as no second is started."""

    def __init__(self) -> None:
        self._by_kind: dict[Hashable, Survivor] = {}

    def add(self, kind: Hashable, survivor: Survivor) -> None:
        self._by_kind[kind] = survivor

    def refuse(self, kind: Hashable) -> None:
        """Raises CommandHung while there is one of that kind."""
        self._by_kind = {each: survivor for each, survivor in self._by_kind.items() if survivor.alive}
        if survivor := self._by_kind.get(kind):
            raise CommandHung(survivor)


survivors = Survivors()
recorder = FlightRecorder()
observers: list[Callable[[Completed], None]] = []
"""Called with every command that ended, successful or not: a program hangs its metrics here."""


async def run(
    *argv: str,
    deadline: float,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    input: bytes | None = None,  # noqa: A002  named like subprocess.run's
    secret: bytes = b"",
    pass_fds: Collection[int] = (),
    kind: Hashable = None,
    long_work: LongWork | None = None,
) -> Completed:
    """Run a program to its end, at most `deadline` seconds, or longer for its `long_work`.

    `env` is added to our own environment; the locale is always C, so that messages are what we know. `secret`, of up to
    a page, is its standard input in place of `input`, in memory that is never swapped. `pass_fds` are
    our open files that the program holds open as well, for as long as it lives, even after us. `kind` is what it has
    in common with those that would wait for the same disk, None: its command line. Raises MissingTool, CommandHung,
    CommandTimedOut, and with `check` CommandFailed for an exit code other than zero.
    """
    kind = argv if kind is None else kind
    survivors.refuse(kind)
    environment = {**os.environ, **(env or {}), "LC_ALL": "C"}
    started = time.time()
    begin = time.monotonic()
    given = _pipe(secret) if secret else _memory_file(input or b"")
    with _memory_file() as stdout, _memory_file() as stderr, given as stdin:
        try:
            start = asyncio.create_subprocess_exec(
                *argv,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=environment,
                start_new_session=True,
                pass_fds=tuple(pass_fds),
            )
            process = await _started(start, kind, _line(argv))
        except FileNotFoundError as missing:
            raise MissingTool(argv[0]) from missing
        timed_out, survivor = False, None
        try:
            await _ended(process, deadline, long_work)
        except TimeoutError:
            timed_out = True
        finally:
            if process.returncode is None:
                survivor = await _kill(process, kind, _line(argv))
        completed = Completed(
            argv=argv,
            exit_code=-signal.SIGKILL if process.returncode is None else process.returncode,
            stdout=_content(stdout),
            stderr=_content(stderr),
            seconds=time.monotonic() - begin,
        )
    failed = timed_out or (check and completed.exit_code != 0)
    recorder.record(started, completed, failed=failed)
    for observer in observers:
        observer(completed)
    if timed_out:
        raise CommandTimedOut(completed, deadline) from (CommandHung(survivor) if survivor else None)
    if failed:
        raise CommandFailed(completed)
    return completed


async def _started(
    start: Coroutine[None, None, asyncio.subprocess.Process], kind: Hashable, command_line: str
) -> asyncio.subprocess.Process:
    """Cancelled on the way, asyncio would kill the process, which runs by then, and not its group."""
    starting = asyncio.ensure_future(start)
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            await _kill(await starting, kind, command_line)
        raise


async def _ended(process: asyncio.subprocess.Process, deadline: float, long_work: LongWork | None) -> None:
    """Raises TimeoutError when it has not ended in time."""
    begin, before = time.monotonic(), dict[str, int]()
    while True:
        try:
            await asyncio.wait_for(process.wait(), deadline)
            return
        except TimeoutError:
            if long_work is None or time.monotonic() - begin >= long_work.seconds:
                raise
            done = await asyncio.to_thread(_work_done, process.pid, long_work.program)
            if done == before:
                raise
            if not before:
                long_work.begun()
            before = done


async def _kill(process: asyncio.subprocess.Process, kind: Hashable, command_line: str) -> Survivor | None:
    """Kill the process group and reap its leader. Until the leader is reaped, the group's number is its own. Returns
    what does not die."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    survivor = Survivor(process.pid, command_line, time.monotonic())
    try:
        async with asyncio.timeout(_REAP_SECONDS):
            await process.wait()
            while survivor.alive:  # noqa: ASYNC110 - only the kernel knows when
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        log.error("%s (process %d) was killed and does not end: its disk gives no answer", command_line, process.pid)
        survivors.add(kind, survivor)
        return survivor
    return None


@contextlib.contextmanager
def _memory_file(content: bytes = b"") -> Iterator[int]:
    descriptor = os.memfd_create("command") if hasattr(os, "memfd_create") else _temporary_file()
    try:
        if content:
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(content)
            os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _temporary_file() -> int:
    """For macOS, where a person's kubectl is asked and nodes are none."""
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


@contextlib.contextmanager
def _pipe(content: bytes) -> Iterator[int]:
    """The reading end of a pipe with all of the content in it, which is gone when both have closed it."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        try:
            if os.write(writing, content) != len(content):
                raise OSError(errno.EMSGSIZE, "it is longer than a pipe holds")
        finally:
            os.close(writing)
        os.set_blocking(reading, True)
        yield reading
    finally:
        os.close(reading)


def _content(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(os.dup(descriptor), "rb") as file:
        return file.read().decode(errors="backslashreplace")
