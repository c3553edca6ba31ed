"""The daemon's side of the callout protocol (contract/callout.py): HTTP on a Unix socket, for root alone.

The kubelet shows its user nothing but the message of an answer, and one answer that is not JSON breaks a mount; so
whatever comes in or goes wrong, what goes out is {"status", "message"}.

A callout gives up at its deadline, but the work it asked for is worth finishing: somebody has to finish a volume that
is half made. So work runs in a task of its own, a second callout with the same arguments joins it, and a caller that
goes away cancels nothing. One thing is undone, though: the kubelet takes a callout without answer for a failed mount,
and never unmounts what failed. A folder mounted with nobody waiting is therefore unmounted again; the volume stays
prepared, so the next try takes a moment only.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from contract import callout
from daemon.errors import VolumeError
from daemon.flexvolume import calls
from daemon.flexvolume.calls import Call, Expand, Init, Malformed, Mount, Unmount
from service import listener
from service.listener import Limits
from service.rootsocket import is_admitted, peer_uid, root_socket

log = logging.getLogger(__name__)

LARGEST_REQUEST = 1 << 20
"""Bytes. The kubelet passes the options as one argument, which the kernel limits to 128 KiB; JSON may escape them."""

LIMITS = Limits(connections=512, silence=10.0)
"""Each mount that waits has one. Only root can connect, but a kubelet that is stopped and killed may leave some."""
_BODY_SECONDS = 10.0


class Abandoned(VolumeError):
    """Nobody waited for the mount any more. Never an answer, only an outcome."""


class Callouts(Protocol):
    """What callouts ask for. A VolumeError is an answer to the pod's owner; anything else is a fault of ours."""

    async def mount(self, request: Mount) -> bool:
        """True when this call mounted the folder, False when it found it mounted."""
        ...

    async def unmount(self, request: Unmount) -> None: ...

    async def expand(self, request: Expand) -> None: ...


class _Work:
    """One piece of work and the number of callouts that wait for it."""

    def __init__(self) -> None:
        self.waiting = 0
        self.task: asyncio.Task[None]


class Api:
    """Answers callouts. `observe` gets the verb, the outcome ("success" or an error's class) and the seconds;
    `called` is only called."""

    def __init__(
        self, callouts: Callouts, observe: Callable[[str, str, float], None], called: Callable[[], None]
    ) -> None:
        self._callouts = callouts
        self._observe = observe
        self._called = called
        self._running: dict[str, _Work] = {}

    def application(self) -> web.Application:
        application = web.Application(client_max_size=LARGEST_REQUEST, middlewares=[_always_an_answer, _root_only])
        verbs = (callout.MOUNT, callout.UNMOUNT, callout.EXPANDFS)
        application.add_routes(
            [
                web.post(callout.ROUTE, self._callout),
                web.get(f"/{callout.INIT}", self._init),
                *(web.post(f"/{verb}", self._named) for verb in verbs),
            ]
        )
        return application

    @contextlib.asynccontextmanager
    async def listening(self, path: Path) -> AsyncIterator[None]:
        """Serves on the socket for as long as the context lasts."""
        loop = asyncio.get_running_loop()
        with root_socket(path) as bound:

            async def bind(connection: listener.Factory) -> asyncio.Server:
                return await loop.create_unix_server(connection, sock=bound, backlog=listener.BACKLOG)

            try:
                async with listener.listening(self.application(), bind, LIMITS, handler_cancellation=True):
                    log.info("callouts are answered on %s", path)
                    yield
            finally:
                for work in list(self._running.values()):
                    work.task.cancel()

    def waiting(self) -> int:
        """How many callouts wait for an answer."""
        return sum(work.waiting for work in self._running.values())

    async def _callout(self, request: web.Request) -> web.Response:
        call = calls.read(await _body(request))
        self._called()
        return await self._answered(call)

    async def _init(self, request: web.Request) -> web.Response:
        return web.Response(text=callout.INIT_ANSWER, content_type="application/json")

    async def _named(self, request: web.Request) -> web.Response:
        return await self._answered(calls.named(request.path.removeprefix("/"), await _body(request)))

    async def _answered(self, call: Call) -> web.Response:
        match call:
            case Init():
                return _answer(callout.SUCCESS, "")
            case Mount():
                return await self._perform(callout.MOUNT, call, lambda work: self._mount_for_somebody(call, work))
            case Unmount():
                return await self._perform(callout.UNMOUNT, call, lambda _: self._callouts.unmount(call))
            case Expand():
                return await self._perform(callout.EXPANDFS, call, lambda _: self._callouts.expand(call))

    async def _mount_for_somebody(self, wanted: Mount, work: _Work) -> None:
        while await self._callouts.mount(wanted) and not work.waiting:
            log.warning("%s was mounted when the callout had given up, so it is unmounted again", wanted.dir)
            await self._callouts.unmount(Unmount(wanted.dir))
            if not work.waiting:
                raise Abandoned("the mount took longer than the callout waits: the next try finds the volume prepared")

    async def _perform(
        self, verb: str, call: Mount | Unmount | Expand, begin: Callable[[_Work], Coroutine[Any, Any, None]]
    ) -> web.Response:
        key = repr(call)
        work = self._running.get(key)
        if work is None:
            work = self._running[key] = _Work()
            work.task = asyncio.create_task(self._observed(key, verb, call.dir, begin(work)), name=f"{verb} {call.dir}")
            work.task.add_done_callback(_noted)
        work.waiting += 1
        try:
            await asyncio.shield(work.task)
        except VolumeError as refused:
            return _answer(callout.FAILURE, str(refused))
        finally:
            work.waiting -= 1
        return _answer(callout.SUCCESS, "")

    async def _observed(self, key: str, verb: str, folder: str, work: Coroutine[Any, Any, None]) -> None:
        clock = asyncio.get_running_loop().time
        started = clock()
        outcome = "cancelled"
        try:
            await work
            outcome = "success"
        except VolumeError as refused:
            outcome = type(refused).__name__
            log.info("%s of %s is answered: %s", verb, folder, refused)
            raise
        except Exception as fault:
            outcome = type(fault).__name__
            log.exception("%s of %s failed by a fault of this program", verb, folder)
            raise VolumeError(
                f"the elastic-local daemon failed ({type(fault).__name__}): its log on this node says more"
            ) from fault
        finally:
            del self._running[key]
            self._observe(verb, outcome, clock() - started)


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            return await request.read()
    except TimeoutError:
        raise Malformed(f"its body did not come within {_BODY_SECONDS:.0f} s") from None


def _noted(task: asyncio.Task[None]) -> None:
    """An error that nobody waits for was logged by the work itself."""
    if not task.cancelled():
        task.exception()


def _answer(status: str, message: str, *, http: int = 200) -> web.Response:
    return web.Response(text=callout.answer(status, message), content_type="application/json", status=http)


@web.middleware
async def _always_an_answer(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except Malformed as error:
        return _answer(callout.FAILURE, f"malformed callout: {error}", http=400)
    except web.HTTPException as error:
        return _answer(callout.FAILURE, f"{request.method} {request.path}: {error.reason}", http=error.status)


@web.middleware
async def _root_only(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    assert request.transport is not None
    uid = peer_uid(request.transport.get_extra_info("socket"))
    if not is_admitted(uid):
        log.warning("refused a callout of uid %d", uid)
        return _answer(callout.FAILURE, f"only root may ask, and this is uid {uid}", http=403)
    return await handler(request)
