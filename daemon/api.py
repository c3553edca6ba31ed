"""The daemon's side of the callout protocol (contract/callout.py): HTTP on a Unix socket, for root alone.

The kubelet shows its user nothing but the message of an answer, and one answer that is not JSON breaks a mount; so
whatever comes in or goes wrong, what goes out is {"status", "message"}.

A callout gives up at its deadline, but the work it asked for is worth finishing: somebody has to finish a volume that
is half made. So work runs in a task of its own, a second callout with the same words joins it, and a caller that goes
away cancels nothing. One thing is undone, though: the kubelet takes a callout without answer for a failed mount, and
never unmounts what failed. A folder mounted with nobody waiting is therefore unmounted again; the volume stays
prepared, so the next try takes a moment only.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from contract import callout
from daemon import rootsocket
from daemon.errors import VolumeError

log = logging.getLogger(__name__)

Json = dict[str, Any]

LARGEST_REQUEST = 1 << 20
"""Bytes. The kubelet passes the options as one argument, which the kernel limits to 128 KiB; JSON may escape them."""


class Abandoned(VolumeError):
    """Nobody waited for the mount any more. Never an answer, only an outcome."""


class Malformed(Exception):
    """A request that is not as the protocol says."""


@dataclass(frozen=True)
class Mount:
    dir: str
    options: Mapping[str, str]


@dataclass(frozen=True)
class Unmount:
    dir: str


@dataclass(frozen=True)
class Expand:
    """Sizes in bytes."""

    dir: str
    options: Mapping[str, str]
    new_size: int
    old_size: int


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


def parse_mount(body: Json) -> Mount:
    return Mount(_dir(body), _options(body))


def parse_unmount(body: Json) -> Unmount:
    return Unmount(_dir(body))


def parse_expand(body: Json) -> Expand:
    return Expand(_dir(body), _options(body), _bytes(body, "new_size"), _bytes(body, "old_size"))


def _dir(body: Json) -> str:
    folder = body.get("dir")
    if not isinstance(folder, str) or not folder.startswith("/") or "\0" in folder:
        raise Malformed('"dir" must be the absolute path of the volume\'s folder')
    return folder


def _options(body: Json) -> Mapping[str, str]:
    options = body.get("options")
    if not isinstance(options, dict) or not all(isinstance(value, str) for value in options.values()):
        raise Malformed('"options" must be an object whose values are strings')
    return options


def _bytes(body: Json, key: str) -> int:
    size = body.get(key)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise Malformed(f'"{key}" must be a number of bytes')
    return size


class Api:
    """Answers callouts. `observe` is told the verb, the outcome ("success" or an error's class) and the seconds."""

    def __init__(self, callouts: Callouts, observe: Callable[[str, str, float], None]) -> None:
        self._callouts = callouts
        self._observe = observe
        self._running: dict[tuple[str, str], _Work] = {}

    def application(self) -> web.Application:
        application = web.Application(client_max_size=LARGEST_REQUEST, middlewares=[_always_an_answer, _root_only])
        application.add_routes(
            [
                web.get(f"/{callout.INIT}", self._init),
                web.post(f"/{callout.MOUNT}", self._mount),
                web.post(f"/{callout.UNMOUNT}", self._unmount),
                web.post(f"/{callout.EXPANDFS}", self._expand),
            ]
        )
        return application

    @contextlib.asynccontextmanager
    async def listening(self, path: Path) -> AsyncIterator[None]:
        """Serves on the socket for as long as the context lasts."""
        runner = web.AppRunner(self.application(), access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        with rootsocket.listening(path) as listener:
            try:
                await web.SockSite(runner, listener).start()
                log.info("callouts are answered on %s", path)
                yield
            finally:
                await runner.cleanup()
                for work in list(self._running.values()):
                    work.task.cancel()

    def waiting(self) -> int:
        """How many callouts wait for an answer."""
        return sum(work.waiting for work in self._running.values())

    async def _init(self, _: web.Request) -> web.Response:
        return _answer(callout.SUCCESS, "", capabilities=callout.CAPABILITIES)

    async def _mount(self, request: web.Request) -> web.Response:
        body = await _body(request)
        wanted = parse_mount(body)
        return await self._perform(callout.MOUNT, body, lambda work: self._mount_for_somebody(wanted, work))

    async def _unmount(self, request: web.Request) -> web.Response:
        body = await _body(request)
        wanted = parse_unmount(body)
        return await self._perform(callout.UNMOUNT, body, lambda _: self._callouts.unmount(wanted))

    async def _expand(self, request: web.Request) -> web.Response:
        body = await _body(request)
        wanted = parse_expand(body)
        return await self._perform(callout.EXPANDFS, body, lambda _: self._callouts.expand(wanted))

    async def _mount_for_somebody(self, wanted: Mount, work: _Work) -> None:
        while await self._callouts.mount(wanted) and not work.waiting:
            log.warning("%s was mounted when the callout had given up, so it is unmounted again", wanted.dir)
            await self._callouts.unmount(Unmount(wanted.dir))
            if not work.waiting:
                raise Abandoned("the mount took longer than the callout waits: the next try finds the volume prepared")

    async def _perform(
        self, verb: str, body: Json, begin: Callable[[_Work], Coroutine[Any, Any, None]]
    ) -> web.Response:
        key = (verb, json.dumps(body, sort_keys=True))
        work = self._running.get(key)
        if work is None:
            work = self._running[key] = _Work()
            work.task = asyncio.create_task(self._observed(key, body["dir"], begin(work)), name=f"{verb} {body['dir']}")
            work.task.add_done_callback(_noted)
        work.waiting += 1
        try:
            await asyncio.shield(work.task)
        except VolumeError as refused:
            return _answer(callout.FAILURE, str(refused))
        finally:
            work.waiting -= 1
        return _answer(callout.SUCCESS, "")

    async def _observed(self, key: tuple[str, str], folder: str, work: Coroutine[Any, Any, None]) -> None:
        verb = key[0]
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


def _noted(task: asyncio.Task[None]) -> None:
    """An error that nobody waits for was logged by the work itself."""
    if not task.cancelled():
        task.exception()


async def _body(request: web.Request) -> Json:
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise Malformed("the body must be a JSON object")
    return body


def _answer(status: str, message: str, *, http: int = 200, **more: Any) -> web.Response:
    return web.json_response({"status": status, "message": message, **more}, status=http)


@web.middleware
async def _always_an_answer(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except Malformed as error:
        return _answer(callout.FAILURE, f"malformed {request.path} request: {error}", http=400)
    except web.HTTPException as error:
        return _answer(callout.FAILURE, f"{request.method} {request.path}: {error.reason}", http=error.status)


@web.middleware
async def _root_only(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    assert request.transport is not None
    uid = rootsocket.peer(request.transport.get_extra_info("socket"))
    if not rootsocket.admitted(uid):
        log.warning("refused a callout of uid %d", uid)
        return _answer(callout.FAILURE, f"only root may ask, and this is uid {uid}", http=403)
    return await handler(request)
