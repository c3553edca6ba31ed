"""The executable as the kubelet runs it: argv in, stdout and stderr together as one JSON object out, whatever happens.

Everything goes through the installed file, started as the kubelet starts it, so that both programs, the native and the
Python one, are held to the same tests.
"""

import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contract import callout, names
from flexdriver import bundle, installation
from flexdriver.installation import Driver
from tests.unit.flexdriver.daemon import Daemon

Json = dict[str, Any]
Call = Callable[..., Json]

FOLDER = "/var/lib/kubelet/pods/8f5e/volumes/volumes.k8s.elastic.co~elastic-local/pvc-1"
INIT_ANSWER = {"status": "Success", "capabilities": callout.CAPABILITIES}
HEAD = b"HTTP/1.0 200 OK\r\n\r\n"
WHOLE = HEAD + b'{"status": "Success", "message": "fine"}'


@pytest.fixture(scope="module", params=["native", "python"])
def program(
    request: pytest.FixtureRequest, machine: str, native: Driver, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """How the installed executable is started."""
    driver = native if request.param == "native" else Driver("", bundle.build())
    emulator = [f"qemu-{machine}"] if driver is native and machine != platform.machine() else []
    return [*emulator, str(installation.install(driver, tmp_path_factory.mktemp("plugins")))]


def run(program: list[str], path: Path, *words: str | bytes) -> Json:
    done = subprocess.run(
        [*program, *words],
        cwd="/",
        env={"PATH": os.environ["PATH"], names.SOCKET_VARIABLE: str(path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=30,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


@pytest.fixture
def call(program: list[str], tmp_path: Path) -> Call:
    return lambda *words: run(program, tmp_path / "socket", *words)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path / "socket")
    yield daemon
    daemon.close()


def test_init_answers_its_capabilities_without_a_daemon(call: Call) -> None:
    assert call("init") == INIT_ANSWER


@pytest.mark.parametrize("said", [callout.answer("Success", ""), callout.answer("Failure", "no"), "garbage"])
def test_init_reaches_the_daemon_and_ignores_its_answer(call: Call, daemon: Daemon, said: str) -> None:
    daemon.says(said)
    assert call("init") == INIT_ANSWER
    assert daemon.words == ["init"]


def test_init_waits_a_moment_only_for_a_daemon_that_hangs(call: Call, daemon: Daemon) -> None:
    """The deadline that is short enough for a test to wait for it: the others are kept by the same code."""
    daemon.may_answer.clear()
    started = time.monotonic()
    assert call("init") == INIT_ANSWER
    assert daemon.words == ["init"]
    assert callout.DEADLINES["init"] * 0.9 < time.monotonic() - started < 20


@pytest.mark.parametrize(
    "words",
    [
        ["mount", FOLDER, '{"a": "b\\u00e4", "c": "\\\\"}'],
        ["unmount", FOLDER],
        ["expandfs", "{}", "", FOLDER, "33554432", "16777216"],
        ["unmount"],
        ["mount", "\n\t\x01\x7f", "ä€😀", "more"],
        ["mount", FOLDER, "ß" * 60_000],
    ],
)
def test_a_call_is_one_request_with_all_its_words(call: Call, daemon: Daemon, words: list[str]) -> None:
    daemon.says(callout.answer("Success", "mounted"))
    assert call(*words) == {"status": "Success", "message": "mounted"}
    assert daemon.requests[0].startswith(b"POST /callout HTTP/1.0\r\n")
    assert [os.fsencode(word).decode() for word in daemon.words] == words


def test_a_word_that_is_no_text_arrives_byte_by_byte(call: Call, daemon: Daemon) -> None:
    word = bytes(range(1, 256))
    call("unmount", word)
    assert os.fsencode(daemon.words[1]) == word


@pytest.mark.parametrize("message", ["", 'no room: "10Gi" asked\n\\', "zu groß \U0001f600", '"}', "long " * 800])
def test_a_failure_reaches_the_kubelet_word_for_word(call: Call, daemon: Daemon, message: str) -> None:
    daemon.says(callout.answer("Failure", message))
    assert call("unmount", FOLDER) == {"status": "Failure", "message": message}


def test_an_answer_that_comes_in_pieces_is_put_together(call: Call, daemon: Daemon) -> None:
    daemon.in_pieces = True
    daemon.says(callout.answer("Success", "in pieces"))
    assert call("unmount", FOLDER) == {"status": "Success", "message": "in pieces"}


@pytest.mark.parametrize("verb", ["attach", "getvolumename", "isattached", "expandvolume", "mountdevice", "", "x" * 99])
def test_every_other_verb_is_not_supported_and_nobody_is_asked(call: Call, daemon: Daemon, verb: str) -> None:
    answer = call(verb, "{}", "node-1")
    assert answer == {"status": "Not supported", "message": f"elastic-local does not implement {verb[:64]}"}
    assert daemon.requests == []


def test_a_call_without_a_verb_fails_with_words(call: Call) -> None:
    assert call() == {"status": "Failure", "message": callout.NO_VERB}


@pytest.mark.parametrize("verb", ["mount", "unmount", "expandfs"])
def test_without_a_socket_the_message_says_what_to_look_at(call: Call, tmp_path: Path, verb: str) -> None:
    message = callout.AWAY % (tmp_path / "socket", verb)
    assert "kubectl get pods -A -o wide" in message
    assert call(verb, FOLDER, "{}") == {"status": "Failure", "message": message}


def test_a_socket_that_nobody_serves_is_the_same_as_none(call: Call, tmp_path: Path) -> None:
    left_behind = socket.socket(socket.AF_UNIX)
    left_behind.bind(str(tmp_path / "socket"))
    left_behind.close()
    assert "does not run on this node" in call("unmount", FOLDER)["message"]


@pytest.mark.parametrize("path", ["/dev/null/socket", "/" + "x" * 120, "/" + "ä" * 2000])
def test_a_socket_that_can_not_be_is_a_failure(program: list[str], path: str) -> None:
    answer = run(program, Path(path), "unmount", FOLDER)
    assert answer["status"] == "Failure"
    assert "broke off the unmount" in answer["message"]


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"garbage",
        HEAD,
        b"HTTP/1.0 500 Internal Server Error\r\n\r\n<html>",
        HEAD + b'{"status": "Not supported", "message": ""}',
        HEAD + b'{"status": "success", "message": ""}',
        HEAD + b'{"status": "Success"}',
        HEAD + b'{"status": ["Success"], "message": ""}',
        HEAD + b'{"status": "Failure", "message": 7}',
        HEAD + b'{"status": "Success", "message": "", "more": 1}',
        HEAD + b'{"status": "Success", "message": "\\x"}',
        HEAD + b'{"status": "Success", "message": "\\u12"}',
        HEAD + b'{"status": "Success", "message": "\n"}',
        HEAD + b'{"status": "Success", "message": "\xff"}',
        HEAD + b"[]",
        HEAD + b"[" * 40_000,
        b"\xff\xfe" * 5000,
        WHOLE + b" ",
        WHOLE + b"\0",
        WHOLE + WHOLE,
        HEAD + b'{"status": "Success", "message": "' + b"x" * callout.ANSWER_LIMIT + b'"}',
        *(WHOLE[:length] for length in range(len(HEAD), len(WHOLE))),
    ],
)
def test_an_answer_that_is_not_the_daemons_whole_one_is_a_failure(call: Call, daemon: Daemon, reply: bytes) -> None:
    """Above all never `Not supported`: the kubelet would remember that and not call again."""
    daemon.reply = reply
    answer = call("mount", FOLDER, "{}")
    assert answer["status"] == "Failure"
    assert "no sensible answer" in answer["message"]
