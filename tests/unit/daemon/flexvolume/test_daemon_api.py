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

import aiohttp
import pytest

from contract import callout
from daemon.errors import NoSpace, VolumeError
from daemon.flexvolume.api import LARGEST_REQUEST, Api
from daemon.flexvolume.calls import Expand, Mount, Unmount
from service.rootsocket import is_admitted

FOLDER = "/var/lib/kubelet/pods/1/volumes/v~d/pvc-1"
OPTIONS = {callout.READ_WRITE_OPTION: "rw"}
MOUNT = ["mount", FOLDER, json.dumps(OPTIONS)]


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
        self.heard = 0
        self.api = Api(self.callouts, self._observe, self._hear)

    def _observe(self, verb: str, outcome: str, _: float) -> None:
        self.observed.append((verb, outcome))
        self.ended.set()

    def _hear(self) -> None:
        self.heard += 1

    async def send(
        self, words: list[str] | bytes, route: str = callout.ROUTE
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Speaks HTTP/1.0, as the callout does. Bytes are a body that no callout sends."""
        reader, writer = await asyncio.open_unix_connection(self.path)
        body = words if isinstance(words, bytes) else callout.request(words)
        head = callout.REQUEST_HEAD.replace(callout.ROUTE, route) % len(body)
        writer.write(head.encode() + body)
        await writer.drain()
        return reader, writer

    async def ask(self, words: list[str] | bytes, route: str = callout.ROUTE) -> tuple[int, dict[str, Any]]:
        reader, writer = await self.send(words, route)
        return await answer(reader, writer)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, dict[str, Any]]:
    async with asyncio.timeout(10):
        reply = await reader.read()
    writer.close()
    head, _, body = reply.partition(b"\r\n\r\n")
    said: dict[str, Any] = json.loads(body)
    assert len(reply) <= callout.ANSWER_LIMIT
    assert body.decode() == callout.answer(said["status"], said["message"]), "the form that the callout knows"
    return int(head.split()[1]), said


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Served]:
    served = Served(folder / "run" / "socket")
    async with served.api.listening(served.path):
        yield served


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as it:
        yield it


async def test_init_is_heard(served: Served) -> None:
    assert await served.ask(["init"]) == (200, {"status": "Success", "message": ""})
    assert served.heard == 1


@pytest.mark.parametrize(
    ("words", "request_"),
    [
        (MOUNT, Mount(FOLDER, OPTIONS)),
        (["unmount", FOLDER], Unmount(FOLDER)),
        (["expandfs", "{}", "", FOLDER, "2", "1"], Expand(FOLDER, {}, 2, 1)),
    ],
)
async def test_each_verb_arrives_as_a_record(
    served: Served, words: list[str], request_: Mount | Unmount | Expand
) -> None:
    assert await served.ask(words) == (200, {"status": "Success", "message": ""})
    assert served.callouts.asked == [request_]
    assert served.observed == [(words[0], "success")]
    assert served.heard == 1


async def test_what_is_malformed_is_a_failure_that_says_what(served: Served) -> None:
    status, said = await served.ask(["mount", "relative", "{}"])
    assert (status, said["status"]) == (400, "Failure")
    assert "absolute path" in said["message"]
    assert (served.callouts.asked, served.heard) == ([], 0)


@pytest.mark.parametrize(
    ("route", "body", "call"),
    [
        ("/mount", {"dir": "/d", "options": {"a": "b"}}, Mount("/d", {"a": "b"})),
        ("/unmount", {"dir": "/d"}, Unmount("/d")),
        ("/expandfs", {"dir": "/d", "options": {}, "new_size": 2, "old_size": 1}, Expand("/d", {}, 2, 1)),
    ],
)
async def test_each_call_has_a_route_of_its_own(
    served: Served, route: str, body: dict[str, Any], call: Mount | Unmount | Expand
) -> None:
    assert await served.ask(json.dumps(body).encode(), route) == (200, {"status": "Success", "message": ""})
    assert served.callouts.asked == [call]
    assert served.heard == 0, "only the kubelet's own callout shows that the kubelet sees the driver"
    for missing in body:
        rest = {key: value for key, value in body.items() if key != missing}
        status, said = await served.ask(json.dumps(rest).encode(), route)
        assert (status, said["status"]) == (400, "Failure")
    assert served.callouts.asked == [call]


async def test_a_body_that_is_too_large_is_a_failure(served: Served) -> None:
    status, said = await served.ask(b" " * (LARGEST_REQUEST + 1))
    assert (status, said["status"]) == (413, "Failure")


async def test_another_route_is_a_failure(served: Served) -> None:
    status, said = await served.ask(MOUNT, "/attach")
    assert (status, said["status"]) == (404, "Failure")


async def test_a_message_is_cut_to_what_the_callout_reads(served: Served) -> None:
    served.callouts.failure = VolumeError("\U0001f600" * 100_000)
    _, said = await served.ask(MOUNT)
    assert said["message"].startswith("\U0001f600" * 1000)


async def test_an_error_for_the_pods_owner_is_passed_on(served: Served) -> None:
    served.callouts.failure = NoSpace("pvc-1", "vg", 2 << 30, 1 << 30)
    status, said = await served.ask(MOUNT)
    assert (status, said) == (200, {"status": "Failure", "message": str(served.callouts.failure)})
    assert served.observed == [("mount", "NoSpace")]


async def test_a_fault_of_ours_is_logged_and_not_shown(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    served.callouts.failure = ZeroDivisionError("secret inside")
    _, said = await served.ask(MOUNT)
    assert said["status"] == "Failure"
    assert "log" in said["message"]
    assert "secret inside" not in said["message"]
    assert "secret inside" in caplog.text
    assert (await served.ask(["unmount", FOLDER]))[1]["status"] == "Failure"


async def test_equal_callouts_share_one_work_and_its_answer(served: Served) -> None:
    served.callouts.gate.clear()
    asking = [asyncio.create_task(served.ask(MOUNT)) for _ in range(3)]
    await served.callouts.begun.wait()
    other = asyncio.create_task(served.ask(["mount", f"{FOLDER}0", "{}"]))
    while served.api.waiting() < 4:
        await asyncio.sleep(0)
    served.callouts.gate.set()
    assert {said["status"] for _, said in await asyncio.gather(*asking, other)} == {"Success"}
    assert len(served.callouts.asked) == 2


async def test_a_retry_joins_the_work_that_its_callout_gave_up_on(served: Served) -> None:
    served.callouts.gate.clear()
    _, writer = await served.send(MOUNT)
    await served.callouts.begun.wait()
    writer.close()
    while served.api.waiting():
        await asyncio.sleep(0)
    retry = asyncio.create_task(served.ask(MOUNT))
    while not served.api.waiting():
        await asyncio.sleep(0)
    served.callouts.gate.set()
    assert (await retry)[1]["status"] == "Success"
    assert served.callouts.asked == [Mount(FOLDER, OPTIONS)]


@pytest.mark.parametrize("mounted_before", [False, True])
async def test_a_mount_that_nobody_waits_for_is_undone_unless_it_was_there(
    served: Served, mounted_before: bool, caplog: pytest.LogCaptureFixture
) -> None:
    served.callouts.gate.clear()
    served.callouts.mounted_before = mounted_before
    _, writer = await served.send(MOUNT)
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
    assert is_admitted(0)
    assert is_admitted(os.geteuid())
    assert not is_admitted(os.geteuid() + 1)


async def test_the_peer_is_asked_who_it_is(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def nobody(uid: int) -> bool:
        seen.append(uid)
        return False

    monkeypatch.setattr("daemon.flexvolume.api.is_admitted", nobody)
    status, said = await served.ask(MOUNT)
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
        assert (await served.ask(["unmount", FOLDER]))[0] == 200
        assert [entry.name for entry in path.parent.iterdir()] == ["socket"]
    assert not path.exists()


async def test_an_old_daemon_leaves_the_socket_of_the_new_one(tmp_path: Path) -> None:
    old, new = Served(tmp_path / "socket"), Served(tmp_path / "socket")
    async with old.api.listening(old.path):
        listening = new.api.listening(new.path)
        await listening.__aenter__()
    assert (await new.ask(["unmount", FOLDER]))[0] == 200
    assert old.callouts.asked == []
    await listening.__aexit__(None, None, None)
    assert not new.path.exists()


async def test_whoever_asks_gets_the_capabilities(served: Served) -> None:
    connector = aiohttp.UnixConnector(str(served.path))
    async with aiohttp.ClientSession(connector=connector) as session, session.get("http://daemon/init") as response:
        assert await response.json() == {"status": "Success", "capabilities": callout.CAPABILITIES}
