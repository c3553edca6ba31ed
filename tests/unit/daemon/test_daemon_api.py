"""The callout protocol over a real Unix socket."""

import asyncio
import gc
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from contract import callout
from daemon.api import LARGEST_REQUEST, Api, Expand, Mount, Unmount
from daemon.errors import NoSpace
from daemon.rootsocket import admitted

FOLDER = "/var/lib/kubelet/pods/1/volumes/v~d/pvc-1"
REQUEST = {"dir": FOLDER, "options": {callout.READ_WRITE_OPTION: "rw"}}


class Scripted:
    """Callouts that note what they are asked, wait at a gate, and fail as told."""

    def __init__(self) -> None:
        self.asked: list[Mount | Unmount | Expand] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = asyncio.Event()
        self.failure: Exception | None = None
        self.mounted_before = False

    async def _do(self, request: Mount | Unmount | Expand) -> None:
        self.asked.append(request)
        self.begun.set()
        await self.gate.wait()
        if self.failure:
            raise self.failure

    async def mount(self, request: Mount) -> bool:
        await self._do(request)
        return not self.mounted_before

    async def unmount(self, request: Unmount) -> None:
        await self._do(request)

    async def expand(self, request: Expand) -> None:
        await self._do(request)


class Served:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.callouts = Scripted()
        self.observed: list[tuple[str, str]] = []
        self.ended = asyncio.Event()
        self.api = Api(self.callouts, self._observe)

    def _observe(self, verb: str, outcome: str, _: float) -> None:
        self.observed.append((verb, outcome))
        self.ended.set()

    async def send(self, verb: str, body: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Speaks HTTP/1.0, as the callout does."""
        reader, writer = await asyncio.open_unix_connection(self.path)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        writer.write(f"POST /{verb} HTTP/1.0\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
        await writer.drain()
        return reader, writer

    async def ask(self, verb: str, body: Any) -> tuple[int, dict[str, Any]]:
        reader, writer = await self.send(verb, body)
        return await answer(reader, writer)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, dict[str, Any]]:
    async with asyncio.timeout(10):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), json.loads(body)


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Served]:
    served = Served(folder / "run" / "socket")
    async with served.api.listening(served.path):
        yield served


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as it:
        yield it


async def test_init_says_what_the_kubelet_may_expect(served: Served) -> None:
    reader, writer = await asyncio.open_unix_connection(served.path)
    writer.write(b"GET /init HTTP/1.0\r\n\r\n")
    status, said = await answer(reader, writer)
    assert (status, said) == (200, {"status": "Success", "message": "", "capabilities": callout.CAPABILITIES})


@pytest.mark.parametrize(
    ("verb", "body", "request_"),
    [
        ("mount", REQUEST, Mount(FOLDER, {callout.READ_WRITE_OPTION: "rw"})),
        ("unmount", {"dir": FOLDER}, Unmount(FOLDER)),
        ("expandfs", {"dir": FOLDER, "options": {}, "new_size": 2, "old_size": 1}, Expand(FOLDER, {}, 2, 1)),
    ],
)
async def test_each_verb_arrives_as_a_record(
    served: Served, verb: str, body: dict[str, Any], request_: Mount | Unmount | Expand
) -> None:
    assert await served.ask(verb, body) == (200, {"status": "Success", "message": ""})
    assert served.callouts.asked == [request_]
    assert served.observed == [(verb, "success")]


@pytest.mark.parametrize(
    ("verb", "body", "words"),
    [
        ("mount", b"{", "not JSON"),
        ("mount", b"[" * 100_000, "not JSON"),
        ("mount", b"\xff\xfe\xfd", "not JSON"),
        ("mount", [], "JSON object"),
        ("mount", {"options": {}}, '"dir"'),
        ("mount", {"dir": "relative", "options": {}}, '"dir"'),
        ("mount", {"dir": "/a\0b", "options": {}}, '"dir"'),
        ("mount", {"dir": FOLDER, "options": {"size": 1}}, '"options"'),
        ("unmount", {"dir": 1}, '"dir"'),
        ("expandfs", {"dir": FOLDER, "options": {}, "new_size": "1", "old_size": 1}, '"new_size"'),
        ("expandfs", {"dir": FOLDER, "options": {}, "new_size": 1, "old_size": True}, '"old_size"'),
        ("expandfs", {"dir": FOLDER, "options": {}, "new_size": -1, "old_size": 1}, '"new_size"'),
    ],
)
async def test_what_is_malformed_is_a_failure_that_says_what(served: Served, verb: str, body: Any, words: str) -> None:
    status, said = await served.ask(verb, body)
    assert (status, said["status"]) == (400, "Failure")
    assert words in said["message"]
    assert served.callouts.asked == []


async def test_a_body_that_is_too_large_is_a_failure(served: Served) -> None:
    status, said = await served.ask("mount", b" " * (LARGEST_REQUEST + 1))
    assert (status, said["status"]) == (413, "Failure")


async def test_an_unknown_verb_is_a_failure(served: Served) -> None:
    status, said = await served.ask("attach", {})
    assert (status, said["status"]) == (404, "Failure")


async def test_an_error_for_the_pods_owner_is_passed_on(served: Served) -> None:
    served.callouts.failure = NoSpace("pvc-1", "vg", 2 << 30, 1 << 30)
    status, said = await served.ask("mount", REQUEST)
    assert (status, said) == (200, {"status": "Failure", "message": str(served.callouts.failure)})
    assert served.observed == [("mount", "NoSpace")]


async def test_a_fault_of_ours_is_logged_and_not_shown(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    served.callouts.failure = ZeroDivisionError("secret inside")
    _, said = await served.ask("mount", REQUEST)
    assert said["status"] == "Failure"
    assert "log" in said["message"]
    assert "secret inside" not in said["message"]
    assert "secret inside" in caplog.text
    assert (await served.ask("unmount", {"dir": FOLDER}))[1]["status"] == "Failure"


async def test_equal_callouts_share_one_work_and_its_answer(served: Served) -> None:
    served.callouts.gate.clear()
    asking = [asyncio.create_task(served.ask("mount", REQUEST)) for _ in range(3)]
    await served.callouts.begun.wait()
    other = asyncio.create_task(served.ask("mount", {**REQUEST, "dir": f"{FOLDER}0"}))
    while served.api.waiting() < 4:
        await asyncio.sleep(0)
    served.callouts.gate.set()
    assert {said["status"] for _, said in await asyncio.gather(*asking, other)} == {"Success"}
    assert len(served.callouts.asked) == 2


async def test_a_retry_joins_the_work_that_its_callout_gave_up_on(served: Served) -> None:
    served.callouts.gate.clear()
    _, writer = await served.send("mount", REQUEST)
    await served.callouts.begun.wait()
    writer.close()
    while served.api.waiting():
        await asyncio.sleep(0)
    retry = asyncio.create_task(served.ask("mount", REQUEST))
    while not served.api.waiting():
        await asyncio.sleep(0)
    served.callouts.gate.set()
    assert (await retry)[1]["status"] == "Success"
    assert served.callouts.asked == [Mount(FOLDER, {callout.READ_WRITE_OPTION: "rw"})]


@pytest.mark.parametrize("mounted_before", [False, True])
async def test_a_mount_that_nobody_waits_for_is_undone_unless_it_was_there(
    served: Served, mounted_before: bool, caplog: pytest.LogCaptureFixture
) -> None:
    served.callouts.gate.clear()
    served.callouts.mounted_before = mounted_before
    _, writer = await served.send("mount", REQUEST)
    await served.callouts.begun.wait()
    writer.close()
    while served.api.waiting():
        await asyncio.sleep(0)
    served.callouts.gate.set()
    async with asyncio.timeout(10):
        await served.ended.wait()
    undone = Unmount(FOLDER) in served.callouts.asked
    assert undone is not mounted_before
    assert served.observed == [("mount", "success" if mounted_before else "Abandoned")]
    await asyncio.sleep(0)
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_only_root_and_our_own_user_are_admitted() -> None:
    assert admitted(0)
    assert admitted(os.geteuid())
    assert not admitted(os.geteuid() + 1)


async def test_the_peer_is_asked_who_it_is(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def nobody(uid: int) -> bool:
        seen.append(uid)
        return False

    monkeypatch.setattr("daemon.rootsocket.admitted", nobody)
    status, said = await served.ask("mount", REQUEST)
    assert (status, said["status"]) == (403, "Failure")
    assert seen == [os.getuid()]
    assert served.callouts.asked == []


async def test_the_socket_is_private_and_takes_the_place_of_a_stale_one(tmp_path: Path) -> None:
    path = tmp_path / "run" / "socket"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with serving(tmp_path) as served:
        assert stat.filemode(path.stat().st_mode) == "srw-------"
        assert (await served.ask("unmount", {"dir": FOLDER}))[0] == 200
        assert [entry.name for entry in path.parent.iterdir()] == ["socket"]
    assert not path.exists()


async def test_an_old_daemon_leaves_the_socket_of_the_new_one(tmp_path: Path) -> None:
    old, new = Served(tmp_path / "socket"), Served(tmp_path / "socket")
    async with old.api.listening(old.path):
        listening = new.api.listening(new.path)
        await listening.__aenter__()
    assert (await new.ask("unmount", {"dir": FOLDER}))[0] == 200
    assert old.callouts.asked == []
    await listening.__aexit__(None, None, None)
    assert not new.path.exists()
