"""A program that the fork server starts sees, and ends as, what one does that was executed."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

from tests import forkserver
from tests.forkserver import REPOSITORY, ForkServerDied
from tests.waiting import eventually

_SECONDS = 60.0

_PROBE = """
import json, os, signal, sys, threading
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status"))
numbers = [int(name) for name in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + name)]
print(json.dumps({
    "argv": sys.argv,
    "path": sys.path,
    "main": __name__ == "__main__" and vars(sys.modules["__main__"]) is globals(),
    "environment": dict(os.environ),
    "to its children": os.popen("env -0").read().split("\\0"),
    "folder": os.getcwd(),
    "descriptors": {number: [os.readlink(f"/proc/self/fd/{number}"), os.get_inheritable(number)] for number in numbers},
    "signals": [str(signal.getsignal(number)) for number in signal.valid_signals()],
    "masks": [status[name] for name in ("SigBlk", "SigIgn", "SigCgt")],
    "umask": status["Umask"],
    "leads its session": os.getsid(0) == os.getpid(),
    "threads": threading.active_count(),
    "buffered": not sys.stdout.write_through,
    "flags": str(sys.flags),
    "sitecustomize": getattr(sys.modules.get("sitecustomize"), "__file__", None),
}))
"""

_ENDINGS = {
    "by itself": "pass",
    "with a code": "import sys; sys.exit(3)",
    "with words": "import sys; sys.exit('words')",
    "by an exception": "raise ValueError('why')",
    "at once": "import os; os._exit(7)",
    "by SIGTERM": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "by SIGINT": "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)",
    "by an abort": "import os; os.abort()",
    "after its functions for that": "import atexit; atexit.register(print, 'registered')",
    "after its threads": "import threading, time; threading.Timer(0.1, print, ['from a thread']).start()",
    "by failing to find itself": "import nowhere",
}


@pytest.fixture(autouse=True, scope="module")
def server() -> Iterator[None]:
    """One without modules, for these tests alone: it is there at once, and they end it. Whoever runs them in the
    background of a shell has SIGINT ignored, and so would have what they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forkserver, "_PRELOADED", ())
        patch.setattr(forkserver, "_server", None)
        yield
        assert forkserver._server
        forkserver._server.close()
    signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class Ended:
    code: int
    output: str
    errors: str


def execute(
    argv: Sequence[str], environment: dict[str, str], descriptors: Sequence[int], output: int, errors: int
) -> int:
    return subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        env=environment,
        cwd=REPOSITORY,
        pass_fds=descriptors,
        start_new_session=True,
        timeout=_SECONDS,
        check=False,
    ).returncode


def fork(argv: Sequence[str], environment: dict[str, str], descriptors: Sequence[int], output: int, errors: int) -> int:
    return forkserver.start(argv, stdout=output, stderr=errors, environment=environment, descriptors=descriptors).wait(
        _SECONDS
    )


def ended(
    start: Callable[..., int],
    folder: Path,
    *argv: str,
    descriptors: Sequence[int] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Ended:
    output, errors = folder / f"output of {start.__name__}", folder / f"errors of {start.__name__}"
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | dict(environment)
    with output.open("wb") as out, errors.open("wb") as error:
        code = start(argv, variables, descriptors, out.fileno(), error.fileno())
    return Ended(code, output.read_text(), errors.read_text())


def script(folder: Path, text: str) -> str:
    path = folder / "script_of_a_test.py"
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return str(path)


def waiting(folder: Path) -> forkserver.Process:
    """A program that does nothing, and has begun."""
    begun = folder / "begun"
    begun.unlink(missing_ok=True)
    program = script(folder, f"import pathlib, time; pathlib.Path({str(begun)!r}).touch(); time.sleep(600)")
    process = forkserver.start([program], stdout=2, stderr=2, environment={})
    eventually(begun.exists, what="the program has begun")
    return process


def server_of(process: forkserver.Process) -> int:
    return int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("customized", [False, True])
@pytest.mark.parametrize("is_module", [False, True])
def test_it_sees_what_an_executed_one_sees(tmp_path: Path, is_module: bool, customized: bool) -> None:
    path = script(tmp_path, _PROBE)
    if customized:
        (tmp_path / "sitecustomize.py").touch()
    argv = [sys.executable, "-m", Path(path).stem, "one", "two words"] if is_module else [path, "one", "two words"]
    environment = {"PYTHONUNBUFFERED": "1"} | ({"PYTHONPATH": str(tmp_path)} if customized or is_module else {})
    with (tmp_path / "inherited").open("wb") as inherited:
        executed, forked = (
            json.loads(ended(start, tmp_path, *argv, descriptors=[inherited.fileno()], environment=environment).output)
            for start in (execute, fork)
        )
    for seen in (executed, forked):
        assert [str(tmp_path / "inherited"), True] in seen["descriptors"].values()
        for number in ("1", "2"):
            del seen["descriptors"][number]  # each has its own
        # libffi 3.5 keeps itself open from its first closure on, which one that was forked has with its modules.
        seen["descriptors"] = {number: at for number, at in seen["descriptors"].items() if "/libffi." not in at[0]}
    assert forked == executed
    assert (executed["sitecustomize"] == str(tmp_path / "sitecustomize.py")) == customized


@pytest.mark.parametrize("text", _ENDINGS.values(), ids=_ENDINGS)
def test_it_ends_as_an_executed_one_ends(tmp_path: Path, text: str) -> None:
    program = script(tmp_path, text)
    executed, forked = (ended(start, tmp_path, program) for start in (execute, fork))
    assert (forked.code, forked.output) == (executed.code, executed.output)
    # A traceback has the lines of the fork server above the program's own.
    assert forked.errors.splitlines()[-1:] == executed.errors.splitlines()[-1:]


def test_it_is_signalled_and_its_end_is_seen(tmp_path: Path) -> None:
    stopped, killed = waiting(tmp_path), waiting(tmp_path)
    assert (stopped.poll(), killed.poll()) == (None, None)
    with pytest.raises(TimeoutError):
        stopped.wait(0.01)
    stopped.send_signal(signal.SIGTERM)
    killed.send_signal(signal.SIGKILL)
    assert (stopped.wait(_SECONDS), killed.wait(_SECONDS)) == (-signal.SIGTERM, -signal.SIGKILL)
    stopped.send_signal(signal.SIGKILL)
    assert stopped.poll() == -signal.SIGTERM


def test_a_server_that_dies_takes_its_programs_along_and_is_reported_once(tmp_path: Path) -> None:
    process = waiting(tmp_path)
    server = server_of(process)
    os.kill(server, signal.SIGKILL)
    assert process.wait(_SECONDS) == -signal.SIGKILL
    with pytest.raises(ForkServerDied, match="exit code -9"):
        waiting(tmp_path)
    process = waiting(tmp_path)
    assert server_of(process) != server
    process.send_signal(signal.SIGKILL)
    process.wait(_SECONDS)


def test_a_server_that_cannot_begin_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forkserver, "_server", None)
    monkeypatch.setattr(forkserver, "_PRELOADED", ("tests.nowhere",))
    with pytest.raises(ForkServerDied, match=r"(?s)exit code 1.*No module named 'tests.nowhere'"):
        waiting(tmp_path)


_CALLER = """
import os, pathlib, sys, time
from tests import forkserver
from tests.unit.test_forkserver import waiting
forkserver._PRELOADED = ()
print(waiting(pathlib.Path(sys.argv[1])).pid, flush=True)
time.sleep(600)
"""


def test_a_caller_that_is_killed_takes_all_along(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _CALLER, tmp_path], stdout=subprocess.PIPE, cwd=REPOSITORY) as caller:
        assert caller.stdout
        program = os.pidfd_open(int(caller.stdout.readline()))
        caller.kill()
    ended, _, _ = select.select([program], [], [], _SECONDS)
    os.close(program)
    assert ended
