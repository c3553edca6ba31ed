"""An HTTP listener that clients can't exhaust, whoever they are and whatever they send.

Anybody in the pod network may connect to a port. So connections are counted: one more than allowed closes the oldest
that is not being answered. Who sends no whole request in time, or does not read what was asked for, is closed as well.
Junk is worth one short line a minute, not a traceback each.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from aiohttp import http_exceptions, web
from aiohttp.web_protocol import RequestHandler

log = logging.getLogger(__name__)

BACKLOG = 64
"""Connections that the kernel accepts for us before we do, and the most that are accepted at one go."""
_GRACE = 0.2
"""Seconds that one connection too many has to ask for something, or to be seen to have gone."""
_NOTICE_SECONDS = 60.0
_NOTICE_LENGTH = 120

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Factory = Callable[[], RequestHandler]
"""Makes what serves one connection."""
Bind = Callable[[Factory], Awaitable[asyncio.Server]]
"""Opens the socket, by loop.create_server and its like."""


@dataclass(frozen=True)
class Limits:
    """What all clients of one listener may take together."""

    connections: int
    """One more closes the oldest that is not being answered, or if all are, the oldest. For a moment there may be twice
    as many: what they sent, or that they hung up, may not be read yet."""
    silence: float
    """Seconds within which a connection must bring a whole request head, its first one and each one after, and must
    read something of an answer."""


@contextlib.asynccontextmanager
async def listening(
    application: web.Application, bind: Bind, limits: Limits, *, handler_cancellation: bool = False
) -> AsyncIterator[asyncio.Server]:
    """Serves for as long as the context lasts. Raises OSError when the address can't be had."""
    answering: set[RequestHandler] = set()
    quiet = _quiet()

    @web.middleware
    async def counted(request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = request.protocol
        answering.add(connection)
        try:
            return await handler(request)
        finally:
            answering.discard(connection)

    application.middlewares.insert(0, counted)
    runner = web.AppRunner(
        application,
        access_log=None,
        logger=quiet,
        keepalive_timeout=limits.silence,
        lingering_time=1.0,
        shutdown_timeout=1,
        handler_cancellation=handler_cancellation,
    )
    await runner.setup()
    assert runner.server is not None
    serving = runner.server

    def close_surplus(most: int) -> None:
        opened = [each for each in serving.connections if each.transport and not each.transport.is_closing()]
        surplus = len(opened) - most
        if surplus > 0:
            quiet.warning("more than %d connections: the oldest that ask for nothing are closed", limits.connections)
            opened.sort(key=answering.__contains__)  # keeps their order otherwise, the oldest first
            for each in opened[:surplus]:
                _abort(each)

    def connection() -> RequestHandler:
        # A timer comes after what is ready in its turn of the loop: the connection is made by then.
        loop = asyncio.get_running_loop()
        loop.call_later(0, close_surplus, 2 * limits.connections)
        loop.call_later(_GRACE, close_surplus, limits.connections)
        return serving()

    reading = asyncio.create_task(_end_unread(serving, limits.silence))
    try:
        server = await bind(connection)
        try:
            yield server
        finally:
            server.close()
    finally:
        reading.cancel()
        await runner.cleanup()


async def _end_unread(serving: web.Server, seconds: float) -> None:
    """Closes the connections whose clients took nothing of what was written to them for so long. For ever."""
    before: dict[RequestHandler, int] = {}
    while True:
        await asyncio.sleep(seconds)
        unread = {
            each: size
            for each in serving.connections
            if each.transport and (size := each.transport.get_write_buffer_size())
        }
        for connection, size in unread.items():
            if before.get(connection) == size:
                _abort(connection)
        before = unread


def _abort(connection: RequestHandler) -> None:
    """Not `close`, which waits until the client has read all that was written."""
    if isinstance(connection.transport, asyncio.Transport):
        connection.transport.abort()


class OncePer(logging.Filter):
    """Lets one record of each kind (place and exception) through in so many seconds, and says how many it kept back.
    What strangers sent is cut short, and its traceback says nothing."""

    def __init__(self, seconds: float = _NOTICE_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._seconds = seconds
        self._clock = clock
        self._kinds: dict[tuple[str, int, type[BaseException] | None], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        kind = (record.pathname, record.lineno, type(error) if error else None)
        now = self._clock()
        last, kept_back = self._kinds.get(kind, (float("-inf"), 0))
        if now - last < self._seconds:
            self._kinds[kind] = (last, kept_back + 1)
            return False
        self._kinds[kind] = (now, 0)
        message = record.getMessage()
        if isinstance(error, http_exceptions.HttpProcessingError):
            text = " ".join(str(error.message).split())[:_NOTICE_LENGTH]
            message = f"a request that is no HTTP was refused: {text}"
            record.levelno, record.levelname = logging.INFO, "INFO"
            record.exc_info = None
        more = f" (and {kept_back} like it before)" if kept_back else ""
        record.msg, record.args = message + more, None
        return True


def _quiet() -> logging.Logger:
    """What aiohttp writes to. Each listener has its own, with its own counts."""
    logger = logging.Logger(f"{__name__}.http")
    logger.parent = log
    logger.addFilter(OncePer())
    return logger
