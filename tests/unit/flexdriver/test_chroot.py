"""The native driver where there is nothing else: no libraries, no interpreter, no /dev, no /etc."""

import json
import os
import platform
import subprocess
from pathlib import Path

import pytest

from contract import callout, names
from flexdriver import installation
from flexdriver.installation import Driver
from tests.unit.flexdriver.daemon import Daemon

Json = dict[str, object]


@pytest.fixture
def empty(native: Driver, machine: str, tmp_path: Path) -> Path:
    """An empty root folder but for the driver. An emulator would have to be in it, too: on another machine's the kernel
    must know one."""
    assert machine == platform.machine(), "deselect test_chroot.py with --machine"
    (tmp_path / "root").mkdir()
    installation.install(native, tmp_path / "plugins").rename(tmp_path / "root" / "callout")
    return tmp_path / "root"


def call(root: Path, *words: str) -> Json:
    own_namespace = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    done = subprocess.run(
        ["unshare", *own_namespace, "--root", root, "/callout", *words],
        env={"PATH": os.environ["PATH"], names.SOCKET_VARIABLE: "/socket"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=30,
        check=True,
    )
    answer: Json = json.loads(done.stdout)
    return answer


def test_it_needs_nothing_else_to_answer(empty: Path) -> None:
    assert [path.name for path in empty.iterdir()] == ["callout"]
    assert call(empty, "init") == {"status": "Success", "capabilities": callout.CAPABILITIES}
    assert call(empty, "mount", "/x", "{}") == {"status": "Failure", "message": callout.AWAY % ("/socket", "mount")}


def test_it_needs_nothing_but_the_socket_to_ask(empty: Path) -> None:
    daemon = Daemon(empty / "socket")
    daemon.says(callout.answer("Success", "done"))
    try:
        assert call(empty, "unmount", "/x") == {"status": "Success", "message": "done"}
        assert daemon.words == ["unmount", "/x"]
    finally:
        daemon.close()
