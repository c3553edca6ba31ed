"""Who and what may knock at the daemon's socket: root alone, and nothing that anybody sends stops the daemon."""

import asyncio
import os
import socket
import uuid

import aiohttp
import pytest

from contract import callout
from contract.volume import FLEX_VOLUME
from tests.cluster.callouts import driver_of
from tests.sandbox.nodes import Node
from tests.sandbox.sandbox import Sandbox

_NOBODY = 65534
_ANSWER_LIMIT = 1 << 16


def _post(body: bytes, length: int | None = None) -> bytes:
    return callout.REQUEST_HEAD.encode() % (len(body) if length is None else length) + body


@pytest.fixture
def node(sandbox: Sandbox) -> Node:
    return sandbox.nodes["node-c"]


async def test_who_is_not_root_gets_nothing(node: Node) -> None:
    """The socket's mode keeps others out, and where somebody changed that, the kernel says who they are."""
    assert await asyncio.to_thread(_answer_to_nobody, node) == "Permission denied"
    node.socket.chmod(0o666)
    try:
        answer = await asyncio.to_thread(_answer_to_nobody, node)
    finally:
        node.socket.chmod(0o600)
    head, _, body = answer.partition("\r\n\r\n")
    assert " 403 " in head
    assert callout.SUCCESS not in body
    assert "only root" in body


@pytest.mark.parametrize(
    "sent",
    [
        b"\0" * 4096,
        b"GET / HTTP/1.1\r\n\r\n",
        _post(b"}{}{"),
        _post(b'{"argv": ["mount", null, {}]}'),
        _post(b'{"argv": ["mount", "/\\u0000", "[]"]}'),
        _post(b"[" * 200_000),
        _post(b"x" * (4 << 20), length=99999999999),
        _post(b"", length=-1),
        b"POST /callout HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        b"A" * (1 << 20),
    ],
    ids=[
        "zeros",
        "no verb",
        "no JSON",
        "wrong types",
        "zero in a path",
        "deep",
        "huge",
        "negative",
        "chunks",
        "no end",
    ],
)
async def test_garbage_is_refused_and_the_daemon_works_on(node: Node, sent: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(str(node.socket))
    try:
        writer.write(sent)
        writer.write_eof()
        answer = await reader.read(_ANSWER_LIMIT)
    except ConnectionError:
        answer = b""  # it hung up before it had read all
    finally:
        writer.close()
    assert callout.SUCCESS.encode() not in answer

    gone = node.volume_folder(str(uuid.uuid4()), "pvc-nothing", FLEX_VOLUME)
    await driver_of(node).unmount(gone)
    async with aiohttp.ClientSession() as session, session.get(f"{node.url}/readyz") as ready:
        assert ready.status == 200


def _answer_to_nobody(node: Node) -> str:
    """What a process without rights gets from the socket: an answer or the system's error."""
    mine, childs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.chdir(node.folder)  # while it may
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
            os.write(childs, _ask(node.socket.name))
        except OSError as error:
            os.write(childs, (error.strerror or "").encode())
        finally:
            os._exit(0)
    os.close(childs)
    os.waitpid(child, 0)
    with os.fdopen(mine, "rb") as answer:
        return answer.read().decode()


def _ask(path: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(path)
        asking.sendall(_post(callout.request([callout.UNMOUNT, "/"])))
        return asking.makefile("rb").read()
