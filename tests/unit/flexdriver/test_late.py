"""A daemon that is slow: nobody waits for the real deadline of a mount in a test, so each program is brought to it in
its own way."""

import json
import os
import platform
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract import callout, names
from flexdriver import callout as program
from flexdriver import installation
from flexdriver.installation import Driver
from tests.unit.flexdriver.daemon import Daemon

BUSY = {"status": "Failure", "message": callout.BUSY % ("unmount", callout.DEADLINES["unmount"])}


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path / "socket")
    daemon.may_answer.clear()
    yield daemon
    daemon.close()


def test_native(native: Driver, machine: str, hanging: Daemon, tmp_path: Path) -> None:
    """Its timer is the kernel's, which ends with a signal: here it comes early. It is blocked at the start, as a parent
    may have left it."""
    executable = installation.install(native, tmp_path)
    emulator = [f"qemu-{machine}"] if machine != platform.machine() else []
    with subprocess.Popen(
        [*emulator, str(executable), "unmount", "/x"],
        env={"PATH": os.environ["PATH"], names.SOCKET_VARIABLE: str(tmp_path / "socket")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM}),
    ) as running:
        assert hanging.asked.wait(20)
        running.send_signal(signal.SIGALRM)
        output, _ = running.communicate(timeout=20)
    assert running.returncode == 0
    assert json.loads(output) == BUSY


def test_python(hanging: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(names.SOCKET_VARIABLE, str(tmp_path / "socket"))
    monkeypatch.setattr(callout, "DEADLINES", dict.fromkeys(callout.DEADLINES, 0.05))
    answer = json.loads(program.answer(["unmount", "/x"]))
    assert answer["status"] == "Failure"
    assert "still busy with the unmount" in answer["message"]
