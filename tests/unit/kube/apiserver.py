"""The sandbox's API server in this process over real HTTP, and before it answers that a test scripts, because what
matters here is how the programs take bad days."""

import asyncio
import json
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from kube.client import Cluster
from tests.inmemory import InMemory
from tests.sandbox.apiserver import server
from tests.unit.kube.certificate import TRUSTED

Json = dict[str, Any]
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

_BOOKMARK_SECONDS = 30.0


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


def status(code: int, reason: str, message: str = "because", **headers: str) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        name = request.path.rpartition("/")[2]
        return web.json_response(
            {"kind": "Status", "code": code, "reason": reason, "message": message, "details": {"name": name}},
            status=code,
            headers=headers,
        )

    return answer


def page(names: list[str], version: str, more: str = "") -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        metadata = {"resourceVersion": version} | ({"continue": more} if more else {})
        return web.json_response({"metadata": metadata, "items": [volume(name, version) for name in names]})

    return answer


def stream(*events: tuple[str, Json], keep_open: bool = False, cut: bool = False) -> Answer:
    """A watch that tells these events, and then ends well, stays silent, or is cut off."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for kind, body in events:
            await response.write(json.dumps({"type": kind, "object": body}).encode() + b"\n")
        if keep_open:
            await asyncio.Event().wait()
        if cut and request.transport is not None:
            request.transport.abort()
        return response

    return answer


async def hang(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError("nothing wakes this")


def volume(name: str, version: str, **more: Any) -> Json:
    return {"metadata": {"name": name, "resourceVersion": version}, **more}


class ApiServer(InMemory):
    """The sandbox's API server. `script` has answers for the next requests, each for one whose "METHOD path" begins so,
    in order; what it does not answer, the objects do."""

    def __init__(self, namespaces: Iterable[str] = ()) -> None:
        super().__init__(namespaces)
        self.asked: list[Asked] = []
        self.script: list[tuple[str, Answer]] = []

    def next(self, request: str, *answers: Answer) -> None:
        self.script += [(request, answer) for answer in answers]

    def asked_for(self, method: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.method == method]

    def application(self) -> web.Application:
        application = server.application(self.registry, bookmark_seconds=_BOOKMARK_SECONDS)
        application.middlewares.insert(0, self._answer)
        return application

    @web.middleware
    async def _answer(self, request: web.Request, handler: Answer) -> web.StreamResponse:
        text = await request.text()
        body = json.loads(text) if text else None
        self.asked.append(Asked(request.method, request.path, dict(request.query), dict(request.headers), body))
        line = f"{request.method} {request.path}"
        for position, (beginning, answer) in enumerate(self.script):
            if line.startswith(beginning):
                del self.script[position]
                return await answer(request)
        return await handler(request)


@asynccontextmanager
async def serving(api: ApiServer, port: int = 0, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """The URL of the server, for as long as it runs."""
    runner = web.AppRunner(api.application(), handler_cancellation=True, shutdown_timeout=0.01)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls)
    await site.start()
    try:
        yield _url(runner.addresses[0][1], tls)
    finally:
        await runner.cleanup()


def begun(status_line: str, *objects: Json) -> bytes:
    """An answer without an end, with these objects, one a line."""
    lines = [json.dumps(each).encode() + b"\n" for each in objects]
    chunks = [f"{len(line):x}\r\n".encode() + line + b"\r\n" for line in lines]
    return f"HTTP/1.1 {status_line}\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + b"".join(chunks)


@contextmanager
def falling_silent(begin: bytes, tls: ssl.SSLContext | None) -> Iterator[str]:
    """The URL of a server that takes one request, sends so much of an answer, and is dead then: not even an end of TLS
    gets an answer."""
    over = threading.Event()

    def serve() -> None:
        accepted, _ = listening.accept()
        with tls.wrap_socket(accepted, server_side=True) if tls else accepted as connection:
            connection.recv(1 << 16)
            connection.sendall(begin)
            over.wait()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(60)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield _url(listening.getsockname()[1], tls)
        finally:
            over.set()
            thread.join()


def _url(port: int, tls: ssl.SSLContext | None) -> str:
    return f"{'https' if tls else 'http'}://127.0.0.1:{port}"


def write_kubeconfig(path: Path, url: str, token: str = "first") -> str:
    """It trusts the certificate of these tests."""
    config = {
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": url, **TRUSTED}}],
        "users": [{"name": "test", "user": {"token": token}}],
    }
    path.write_text(yaml.safe_dump(config))
    return str(path)


@asynccontextmanager
async def connected(api: ApiServer, folder: Path, deadline: float = 5) -> AsyncIterator[Cluster]:
    async with serving(api) as url:
        kubeconfig = write_kubeconfig(folder / "kubeconfig", url)
        async with await Cluster.connect(kubeconfig, deadline=deadline) as cluster:
            yield cluster
