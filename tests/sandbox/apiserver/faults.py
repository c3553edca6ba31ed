"""Bad days on purpose: what service accounts ask for is refused, carried out unanswered, cut off or left hanging.

`PUT /sandbox/faults` with a Plan begins them, one with share 0 ends them: hanging requests and silent watches are cut
then, as when the machine behind them is restarted. The answer says how often each was done under the plan before. What
administrators ask for is answered as ever, so the kubelets and controllers of the sandbox have good days.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field

from aiohttp import web

from tests.sandbox.apiserver import codec, errors
from tests.sandbox.apiserver.errors import ApiError

PATH = "/sandbox/faults"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_LONGEST_HANG = 6.0
_LONGEST_DELAY = 1.5
_LONGEST_WATCH = 5.0
"""Seconds that a watch goes well while there are faults."""
_HANGS_FOR_GOOD = 0.1
"""Share of the requests that hang until the faults end."""

REFUSALS: dict[str, Callable[[], ApiError]] = {
    "403": lambda: ApiError(403, "Forbidden", 'RBAC: clusterrole.rbac.authorization.k8s.io "elastic-local" not found'),
    "410": lambda: errors.expired("The resourceVersion for the provided list is too old."),
    "429": lambda: ApiError(429, "TooManyRequests", "The server has received too many requests"),
    "500": lambda: ApiError(500, "InternalError", "Internal error occurred: etcdserver: leader changed"),
    "503": lambda: ApiError(503, "ServiceUnavailable", "apiserver is shutting down"),
    "504": lambda: ApiError(504, "Timeout", "Timeout: request did not complete within the allotted timeout"),
}
"""Source of the words: k8s.io/apimachinery/pkg/api/errors, k8s.io/apiserver/pkg/server/filters."""

NOT_FOUND, UNANSWERED, FAILED_AFTER, CLOSED, CUT_SHORT, HUNG, SLOW = (
    "404", "carried out, unanswered", "carried out, 500", "closed", "cut short", "hung", "slow",
)  # fmt: skip
KINDS = (*REFUSALS, NOT_FOUND, UNANSWERED, FAILED_AFTER, CLOSED, CUT_SHORT, HUNG, SLOW)
WATCH_CUT, WATCH_SILENT = "watches cut", "watches silent"


@dataclass(frozen=True)
class Plan:
    seed: int = 0
    share: float = 0
    """Of the requests that something is done to, 0 to 1."""
    kinds: tuple[str, ...] = KINDS
    methods: tuple[str, ...] = ()
    """Of HTTP. Empty: all, and watches too."""

    def to_fields(self) -> dict[str, object]:
        return asdict(self)


@dataclass(eq=False)
class _Open:
    """A watch."""

    request: web.Request
    task: asyncio.Task[web.StreamResponse]
    silenced: bool = False


@dataclass
class Faults:
    counts: Counter[str] = field(default_factory=Counter)
    _plan: Plan = field(default_factory=Plan)
    _chance: random.Random = field(default_factory=random.Random)
    _ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Of the plan."""
    _watches: set[_Open] = field(default_factory=set)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == PATH:
            return await self._told(request)
        if "Authorization" not in request.headers:
            return await handler(request)
        plan = self._plan
        fate = ""
        if plan.share and (not plan.methods or request.method in plan.methods) and self._chance.random() < plan.share:
            fate = self._chance.choice(plan.kinds)
        if fate:
            self.counts[fate] += 1
            return await self._disturb(request, handler, fate)
        if codec.flag(request.query, "watch"):
            return await self._watch(request, handler)
        return await handler(request)

    async def _told(self, request: web.Request) -> web.StreamResponse:
        fields = await request.json()
        listed = {name: tuple(fields[name]) for name in ("kinds", "methods") if name in fields}
        counts_before = dict(self.counts)
        self.counts.clear()
        self._begin(Plan(**{**fields, **listed}))
        return web.json_response(counts_before)

    def _begin(self, plan: Plan) -> None:
        self._ended.set()
        self._ended = asyncio.Event()
        self._plan = plan
        self._chance = random.Random(plan.seed)
        if plan.share and not plan.methods:
            for watch in tuple(self._watches):
                self._doom(watch)

    async def _disturb(self, request: web.Request, handler: Handler, fate: str) -> web.StreamResponse:
        if fate in REFUSALS:
            return _refused(REFUSALS[fate]())
        if fate == NOT_FOUND:
            # What the mux of an API server says of a path that it does not serve yet.
            return web.Response(text="404 page not found\n", status=404)
        if fate == CLOSED:
            return _closed(request)
        if fate == HUNG:
            for_good = self._chance.random() < _HANGS_FOR_GOOD
            seconds = None if for_good else self._chance.uniform(0.2, _LONGEST_HANG)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), seconds)
            return _closed(request)
        if fate == SLOW:
            await asyncio.sleep(self._chance.uniform(0, _LONGEST_DELAY))
            return await handler(request)
        if codec.flag(request.query, "watch"):
            return await self._watch(request, handler)
        response = await handler(request)
        if fate == FAILED_AFTER:
            return _refused(REFUSALS["500"]())
        if fate == CUT_SHORT and isinstance(response, web.Response) and isinstance(response.body, bytes):
            return await _cut_short(request, response.body)
        return _closed(request)

    async def _watch(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        watch = _Open(request, asyncio.ensure_future(handler(request)))
        self._watches.add(watch)
        if self._plan.share and not self._plan.methods:
            self._doom(watch)
        try:
            return await watch.task
        except asyncio.CancelledError:
            if not watch.silenced:
                raise
            await self._ended.wait()
            return _closed(request)
        finally:
            watch.task.cancel()
            self._watches.discard(watch)

    def _doom(self, watch: _Open) -> None:
        plan = self._plan
        seconds = self._chance.uniform(0.1, _LONGEST_WATCH)
        silent = self._chance.random() < 0.5

        def strike() -> None:
            if self._plan is not plan or watch not in self._watches:
                return
            self.counts[WATCH_SILENT if silent else WATCH_CUT] += 1
            if silent:
                watch.silenced = True
                watch.task.cancel()
            elif watch.request.transport is not None:
                watch.request.transport.abort()

        asyncio.get_running_loop().call_later(seconds, strike)


def _refused(error: ApiError) -> web.Response:
    response = codec.answer(error.status(), error.code)
    if error.code == 429:
        response.headers["Retry-After"] = "1"
    return response


def _closed(request: web.Request) -> web.StreamResponse:
    """No word of this answer arrives."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _cut_short(request: web.Request, body: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(body))})
    with contextlib.suppress(ConnectionError):
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
    return _closed(request)
