"""A listener that clients can't exhaust, over real sockets."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
from aiohttp import web

from service import listener
from service.listener import Limits, OncePer
from tests.waiting import until

REQUEST = b"GET /small HTTP/1.0\r\n\r\n"


class Served:
    def __init__(self, server: asyncio.Server) -> None:
        self.port = int(server.sockets[0].getsockname()[1])
        self.gate = asyncio.Event()
        self.waiting = 0

    async def ask(self, request: bytes = REQUEST) -> bytes:
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(request)
            answer = await reader.read()
            writer.close()
        return answer

    @contextlib.contextmanager
    def silent(self, number: int) -> Iterator[list[socket.socket]]:
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(socket.create_connection(("127.0.0.1", self.port))) for _ in range(number)]


@contextlib.asynccontextmanager
async def serving(limits: Limits) -> AsyncIterator[Served]:
    served: Served

    async def small(_: web.Request) -> web.Response:
        return web.Response(text="small")

    async def large(_: web.Request) -> web.Response:
        return web.Response(body=bytes(32 << 20))

    async def slow(_: web.Request) -> web.Response:
        served.waiting += 1
        await served.gate.wait()
        return web.Response(text="slow")

    async def broken(_: web.Request) -> web.Response:
        raise RuntimeError("a fault of our own")

    async def bind(connection: listener.Factory) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(connection, "127.0.0.1", 0, backlog=listener.BACKLOG)

    application = web.Application()
    application.add_routes([web.get(f"/{each.__name__}", each) for each in (small, large, slow, broken)])
    async with listener.listening(application, bind, limits) as server:
        served = Served(server)
        yield served


def closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def cut_off(connection: socket.socket) -> bool:
    try:
        connection.send(b"x")
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return False


async def test_more_silent_connections_than_there_may_be_keep_nobody_from_asking() -> None:
    async with serving(Limits(connections=8, silence=60)) as served:
        with served.silent(40) as connections:
            assert (await served.ask()).endswith(b"small")
            await until(lambda: sum(map(closed, connections)) >= 32)
            assert not closed(connections[-1]), "the newest may still ask"


async def test_who_asked_or_may_yet_ask_stands_back_for_nobody_who_has_gone() -> None:
    """The server learns of all of them at once. Such come in crowds after a flood: their kernels try to connect for
    seconds after they gave up."""
    async with serving(Limits(connections=4, silence=60)) as served:
        with served.silent(2) as (asks, will_ask):
            asks.sendall(REQUEST)
            with served.silent(6):
                pass
            for each in (asks, will_ask):
                if each is will_ask:
                    await served.ask()
                    each.sendall(REQUEST)
                each.setblocking(False)
                async with asyncio.timeout(10):
                    assert await asyncio.get_running_loop().sock_recv(each, 8) == b"HTTP/1.0"


async def test_who_is_being_answered_is_closed_last() -> None:
    async with serving(Limits(connections=4, silence=60)) as served:
        answer = asyncio.create_task(served.ask(REQUEST.replace(b"small", b"slow")))
        await until(lambda: served.waiting == 1)
        with served.silent(20) as connections:
            await until(lambda: sum(map(closed, connections)) >= 16)
            served.gate.set()
            assert (await answer).endswith(b"slow")


async def test_who_says_nothing_or_half_of_it_is_closed() -> None:
    async with serving(Limits(connections=8, silence=0.1)) as served:
        with served.silent(2) as (silent, half):
            half.sendall(REQUEST[:-2])
            await until(lambda: closed(silent) and closed(half))


async def test_who_does_not_read_the_answer_is_closed() -> None:
    async with serving(Limits(connections=8, silence=0.1)) as served:
        with served.silent(1) as (deaf,):
            deaf.sendall(REQUEST.replace(b"small", b"large"))
            deaf.setblocking(False)
            # That it was aborted is seen by sending: reading is what it must not do.
            await until(lambda: cut_off(deaf))


async def test_junk_is_one_short_line_and_a_fault_of_ours_one_traceback(caplog: pytest.LogCaptureFixture) -> None:
    junk = b"GET /\x9d" + b"A" * 9000 + b" HTTP/1.1\r\n\r\n"
    async with serving(Limits(connections=8, silence=60)) as served:
        for _ in range(20):
            assert b" 400 " in await served.ask(junk)
        for _ in range(20):
            assert b" 500 " in await served.ask(REQUEST.replace(b"small", b"broken"))
    lines = [record for record in caplog.records if record.name.startswith("service.listener")]
    assert [(line.levelno, bool(line.exc_info)) for line in lines] == [(logging.INFO, False), (logging.ERROR, True)]
    assert len(lines[0].getMessage()) < 250


def test_what_was_kept_back_is_counted() -> None:
    now = 0.0
    once = OncePer(60, clock=lambda: now)

    def record() -> logging.LogRecord:
        return logging.LogRecord("http", logging.WARNING, __file__, 1, "more than %d", (8,), None)

    assert [once.filter(record()) for _ in range(5)] == [True, False, False, False, False]
    now = 61.0
    last = record()
    assert once.filter(last)
    assert last.getMessage() == "more than 8 (and 4 like it before)"
