"""The executable as the kubelet runs it: argv in, stdout and stderr together as one JSON object out, whatever happens.

Everything goes through the installed file, started as the kubelet starts it, so that another implementation of the
callout can be held to the same tests.
"""

import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contract import callout, names
from flexdriver import bundle

Json = dict[str, Any]
FOLDER = "/var/lib/kubelet/pods/8f5e/volumes/volumes.k8s.elastic.co~elastic-local/pvc-1"


@pytest.fixture(scope="module")
def executable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    installed = bundle.install(bundle.build(), tmp_path_factory.mktemp("plugins"))
    assert installed is not None
    return installed


class Daemon:
    """Answers one connection after the other on a Unix socket with the bytes it is told to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reply = b""
        self.requests: list[bytes] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                request = b""
                while not _whole(request):
                    piece = connection.recv(65536)
                    if not piece:
                        break
                    request += piece
                self.requests.append(request)
                connection.sendall(self.reply)

    def says(self, body: object, head: bytes = b"HTTP/1.0 200 OK\r\nServer: x") -> None:
        self.reply = head + b"\r\n\r\n" + (body if isinstance(body, bytes) else json.dumps(body).encode())

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=5)


def _whole(request: bytes) -> bool:
    head, end, body = request.partition(b"\r\n\r\n")
    if not end:
        return False
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    return len(body) >= length


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path / "socket")
    yield daemon
    daemon.close()


@pytest.fixture
def call(executable: Path, tmp_path: Path) -> Callable[..., Json]:
    def run(*words: str) -> Json:
        done = subprocess.run(
            [executable, *words],
            cwd="/",
            env={names.SOCKET_VARIABLE: str(tmp_path / "socket")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=30,
            check=False,
        )
        answer = json.loads(done.stdout)
        assert isinstance(answer, dict)
        assert answer["status"] in (callout.SUCCESS, callout.FAILURE, callout.NOT_SUPPORTED)
        return answer

    return run


def test_init_answers_its_capabilities_without_a_daemon(call: Callable[..., Json]) -> None:
    assert call("init") == {"status": "Success", "capabilities": callout.CAPABILITIES}


@pytest.mark.parametrize(
    ("words", "route", "body"),
    [
        (("mount", FOLDER, '{"a": "b"}'), b"POST /mount ", {"dir": FOLDER, "options": {"a": "b"}}),
        (("unmount", FOLDER), b"POST /unmount ", {"dir": FOLDER}),
        (
            ("expandfs", "{}", "", FOLDER, "33554432", "16777216"),
            b"POST /expandfs ",
            {"dir": FOLDER, "options": {}, "new_size": 33554432, "old_size": 16777216},
        ),
    ],
)
def test_a_verb_is_one_request(
    call: Callable[..., Json], daemon: Daemon, words: tuple[str, ...], route: bytes, body: Json
) -> None:
    daemon.says({"status": "Success", "message": "mounted"})
    assert call(*words) == {"status": "Success", "message": "mounted"}
    (request,) = daemon.requests
    assert request.startswith(route)
    assert json.loads(request.partition(b"\r\n\r\n")[2]) == body


def test_a_failure_reaches_the_kubelet_word_for_word(call: Callable[..., Json], daemon: Daemon) -> None:
    daemon.says({"status": "Failure", "message": 'no room: "10Gi" asked'})
    assert call("unmount", FOLDER) == {"status": "Failure", "message": 'no room: "10Gi" asked'}


@pytest.mark.parametrize("verb", ["attach", "getvolumename", "isattached", "expandvolume", "mountdevice", "x" * 500])
def test_every_other_verb_is_not_supported(call: Callable[..., Json], verb: str) -> None:
    assert call(verb, "{}", "node-1")["status"] == "Not supported"


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("init", "more"),
        ("mount", FOLDER),
        ("mount", FOLDER, "{"),
        ("mount", FOLDER, "[]"),
        ("unmount",),
        ("unmount", FOLDER, "more"),
        ("expandfs", "{}", "", FOLDER, "1e9", "0"),
        ("expandfs", "{}", "", FOLDER, "-1", "0"),
    ],
)
def test_a_call_that_makes_no_sense_fails_with_words(
    call: Callable[..., Json], daemon: Daemon, words: tuple[str, ...]
) -> None:
    answer = call(*words)
    assert answer["status"] == "Failure"
    assert answer["message"]
    assert daemon.requests == []


def test_without_a_socket_the_message_says_what_to_look_at(call: Callable[..., Json], tmp_path: Path) -> None:
    answer = call("mount", FOLDER, "{}")
    assert answer["status"] == "Failure"
    assert str(tmp_path / "socket") in answer["message"]
    assert "kubectl -n elastic-local get pods" in answer["message"]


def test_a_socket_that_nobody_serves_is_the_same_as_none(call: Callable[..., Json], tmp_path: Path) -> None:
    left_behind = socket.socket(socket.AF_UNIX)
    left_behind.bind(str(tmp_path / "socket"))
    left_behind.close()
    assert "does not run on this node" in call("unmount", FOLDER)["message"]


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"garbage",
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.0 500 Internal Server Error\r\n\r\n<html>",
        b'HTTP/1.0 200 OK\r\n\r\n{"status": "Not supported", "message": ""}',
        b'HTTP/1.0 200 OK\r\n\r\n{"status": "success", "message": ""}',
        b'HTTP/1.0 200 OK\r\n\r\n{"status": "Success"}',
        b'HTTP/1.0 200 OK\r\n\r\n{"status": ["Success"], "message": ""}',
        b'HTTP/1.0 200 OK\r\n\r\n{"status": "Failure", "message": 7}',
        b"HTTP/1.0 200 OK\r\n\r\n[]",
        b"\xff\xfe" * 5000,
    ],
)
def test_an_answer_that_is_not_the_daemons_is_a_failure(
    call: Callable[..., Json], daemon: Daemon, reply: bytes
) -> None:
    """Above all never `Not supported`: the kubelet would remember that and not call again."""
    daemon.reply = reply
    answer = call("mount", FOLDER, "{}")
    assert answer["status"] == "Failure"
    assert answer["message"].startswith("elastic-local:")


def test_a_daemon_that_is_slow_is_a_failure_in_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In process, because nobody waits for the real deadline in a test."""
    from flexdriver import callout as program

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    listener.listen()
    monkeypatch.setenv(names.SOCKET_VARIABLE, str(tmp_path / "socket"))
    monkeypatch.setattr(program, "DEADLINES", dict.fromkeys(callout.DEADLINES, 0.05))
    with listener:
        answer = program.answer(["unmount", FOLDER])
    assert answer["status"] == "Failure"
    assert "still busy" in str(answer["message"])
