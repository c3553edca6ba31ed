"""A fork server: starts our Python programs without what each of them imports, one to two seconds of a processor.

It is one process without threads that has imported all of them, and forks a child that becomes the program: a session
of its own, the environment, folder and descriptors that are asked for, signals as they are by default, then the entry
point that the command line names. It ends as an interpreter does, by returning from its main module. (`multiprocessing`
has a fork server too. A child of that one imports the caller's main module and leaves by `os._exit`.)

It differs from a program that was executed in /proc/PID/cmdline, in its memory, much of which it shares with the
others, and in having the others' modules. A test of one of these executes its program.

The server ends when its control socket does, so with the process that started it, however that ends; its children are
killed with it (PR_SET_PDEATHSIG). What goes over the sockets, a message each:

    control socket    a request, JSON, with the program's status socket and what it inherits
    status socket     of one program: its pid, with a pidfd; then its exit code, or end of file: the server is gone
"""

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import signal
import site
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]

_PRELOADED = (
    "command.adopt",
    "command.capacity",
    "command.doctor",
    "command.entrypoints",
    "command.main",
    "command.vg",
    "command.volumes",
    "daemon.node",
    "daemon.settings",
    "provisioner.main",
    "provisioner.settings",
    "tests.sandbox.apiserver.__main__",
    "tests.sandbox.controlplane.__main__",
    "tests.sandbox.kubelet.__main__",
)
_MOST_BYTES = 1 << 18
"""Of a message. The kernel refuses to send a longer one (EMSGSIZE)."""
_MOST_DESCRIPTORS = 64
_END_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1


class ForkServerDied(AssertionError):
    """The message has its last words. The next program that is started gets another server."""


class Process:
    """A program. Its end is not told, but asked for, as with subprocess.Popen."""

    def __init__(self, pid: int, pidfd: int, status: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        """As it was last asked for. None: it runs; negative: the signal that killed it."""
        self._pidfd = pidfd
        self._status = status

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._receive(0)

    def wait(self, seconds: float) -> int:
        """Its exit code. Raises TimeoutError."""
        code = self._receive(seconds)
        if code is None:
            raise TimeoutError(f"process {self.pid} still runs after {seconds:g} s")
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """To no other process: when it has ended, nothing happens."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _receive(self, seconds: float) -> int | None:
        if self.returncode is not None or not _readable(self._status.fileno(), seconds):
            return self.returncode
        if told := self._status.recv(_MOST_BYTES):
            self.returncode = int(told)
        elif _readable(self._pidfd, _END_SECONDS):
            self.returncode = -signal.SIGKILL  # as the kernel does it when the server has ended
        else:
            raise ForkServerDied(f"the fork server has ended, and its process {self.pid} was not killed with it")
        self._status.close()
        os.close(self._pidfd)
        return self.returncode


def start(
    argv: Sequence[str],
    *,
    stdout: int,
    stderr: int,
    environment: Mapping[str, str],
    descriptors: Sequence[int] = (),
    cwd: Path = REPOSITORY,
) -> Process:
    """Start PYTHON -m MODULE ARGUMENTS, or SCRIPT ARGUMENTS where the script is Python's, with nothing to read, exactly
    this environment, and these descriptors under the numbers that they have here.

    The first program of a process waits until the server is there. Raises ForkServerDied."""
    global _server
    if _server is None:
        _server = _Server()
    try:
        return _server.start(argv, (stdout, stderr), environment, descriptors, cwd)
    except ForkServerDied:
        _server = None
        raise


class _Server:
    """The side of the process that wants programs."""

    def __init__(self) -> None:
        self._namespace = _mount_namespace()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", "tests.forkserver", str(theirs.fileno()), *_PRELOADED],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                cwd=REPOSITORY,
                # Its programs have their own: _become.
                env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        atexit.register(self.close)

    def start(
        self,
        argv: Sequence[str],
        outputs: Sequence[int],
        environment: Mapping[str, str],
        descriptors: Sequence[int],
        cwd: Path,
    ) -> Process:
        assert self._namespace == _mount_namespace(), (
            "the fork server was started before this mount namespace was entered"
        )
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = {"argv": [*argv], "environment": {**environment}, "cwd": str(cwd), "descriptors": [*descriptors]}
        try:
            with theirs:
                socket.send_fds(
                    self._control, [json.dumps(request).encode()], [theirs.fileno(), *outputs, *descriptors]
                )
            told, pidfds, _, _ = socket.recv_fds(ours, _MOST_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        except (BrokenPipeError, ConnectionResetError):
            told = b""
        if not told:
            ours.close()
            message = self.close()
            raise ForkServerDied(f"the fork server ended with exit code {self._process.returncode}:\n{message}")
        return Process(int(told), pidfds[0], ours)

    def close(self) -> str:
        """End it, and what it started. The answer is all that it said."""
        atexit.unregister(self.close)
        self._control.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with self._log as log:
            log.seek(0)
            return log.read().decode(errors="replace")


_server: _Server | None = None


def _mount_namespace() -> str:
    return str(Path("/proc/self/ns/mnt").readlink())


def _readable(descriptor: int, seconds: float) -> bool:
    """Whether there is something to read, or the end."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _serve(control: socket.socket) -> dict[str, Any]:
    """The server: never returns. A child that it forked returns with what it is to become."""
    server = os.getpid()
    running: dict[int, tuple[int, socket.socket]] = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready != control.fileno():
                poll.unregister(ready)
                pid, status = running.pop(ready)
                _tell(status, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                status.close()
                os.close(ready)
                continue
            told, received, _, _ = socket.recv_fds(control, _MOST_BYTES, _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
            if not told:
                os._exit(0)
            status = socket.socket(fileno=received.pop(0))
            pid = os.fork()
            if pid == 0:
                # Closed one by one: an object that closes its number later on would close what has the number then.
                for pidfd, (_, other) in running.items():
                    os.close(pidfd)
                    other.close()
                status.close()
                control.close()
                _die_with(server)
                request: dict[str, Any] = json.loads(told)
                _place(received, (1, 2, *request["descriptors"]))
                return request
            for descriptor in received:
                os.close(descriptor)
            pidfd = os.pidfd_open(pid)
            running[pidfd] = pid, status
            poll.register(pidfd, select.POLLIN)
            _tell(status, pid, pidfd)


def _tell(status: socket.socket, number: int, *descriptors: int) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # nobody wants to know any more
        socket.send_fds(status, [str(number).encode()], descriptors)


def _die_with(server: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        os._exit(1)


def _place(received: Sequence[int], numbers: Sequence[int]) -> None:
    """Give what was received these numbers, beside the standard input, which stays what the server has."""
    above = max(numbers) + 1
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, above) for descriptor in received]
    for descriptor in received:
        os.close(descriptor)
    for descriptor, number in zip(moved, numbers, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)


def _become(argv: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run a program as its interpreter would have begun it."""
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    if path := os.environ.get("PYTHONPATH"):
        sys.path[1:1] = path.split(os.pathsep)
        sys.modules.pop("sitecustomize", None)
        site.execsitecustomize()
    if argv[0] == sys.executable:
        switch, module, *arguments = argv[1:]
        assert switch == "-m", f"the fork server knows {sys.executable} -m MODULE and scripts, not {argv}"
        sys.path[0] = str(Path.cwd())
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(argv[0]).parent)
        sys.argv = [*argv]
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else the first collection of each child copies every page
    asked = _serve(socket.socket(fileno=int(sys.argv[1])))
    os.setsid()
    os.chdir(asked["cwd"])
    _become(asked["argv"], asked["environment"])
