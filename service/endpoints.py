"""What a person, Kubernetes and Prometheus can ask over HTTP: /healthz, /readyz and /metrics.

/healthz says that the event loop runs: nothing else is cured by killing the daemon. /readyz says whether mounts can
work, check by check with ?verbose and whenever one fails, in the form that the API server's own endpoint has.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service import listener
from service.listener import Limits

log = logging.getLogger(__name__)

LIMITS = Limits(connections=64, silence=10.0)
"""Prometheus and the kubelet need a handful, and connect anew when theirs was closed."""
_METRICS_SHARE = 0.1
"""Of one processor, which scrapes may take. Whoever asks more often gets the last answer once more."""

Check = Callable[[], str]
"""Empty: all is well. Else what is wrong and what to do about it."""


class HealthChecks:
    """`notes` are of checks that pass: what is not as it should be all the same."""

    def __init__(self, checks: Mapping[str, Check], notes: Mapping[str, Check] | None = None) -> None:
        self._checks = dict(checks)
        self._notes = dict(notes or {})

    def problems(self) -> dict[str, str]:
        """What is wrong now, by name of the check; empty: nothing."""
        return {name: check() for name, check in self._checks.items()}

    def report(self) -> tuple[bool, str]:
        """Whether all is well, and a line for each check."""
        problems = self.problems()
        lines = [
            f"[-]{name}: {wrong}" if wrong else f"[+]{name} ok{self._note(name)}" for name, wrong in problems.items()
        ]
        ready = not any(problems.values())
        return ready, "\n".join([*lines, f"readyz check {'passed' if ready else 'failed'}", ""])

    def _note(self, name: str) -> str:
        message = self._notes[name]() if name in self._notes else ""
        return f", but {message}" if message else ""


class _Readiness(Collector):
    """The checks of /readyz, for alerts: which of them fails says whom to wake."""

    def __init__(self, health: HealthChecks) -> None:
        self._health = health

    def collect(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily("elastic_local_ready", "1 while this check of /readyz passes.", labels=["check"])
        for name, wrong in self._health.problems().items():
            ready.add_metric([name], not wrong)
        yield ready


class Exposition:
    """The text of all metrics, made anew only where that leaves the event loop free for what else there is to do."""

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry
        self._clock = clock
        self._text = b""
        self._due = float("-inf")

    def text(self) -> bytes:
        begun = self._clock()
        if begun >= self._due:
            self._text = generate_latest(self._registry)
            ended = self._clock()
            self._due = ended + (ended - begun) * (1 / _METRICS_SHARE - 1)
        return self._text


def application(health: HealthChecks, registry: CollectorRegistry) -> web.Application:
    # The client library adds a series for the time at which each of the others began. The local-volume-provisioner,
    # whose metrics we have, does not export them.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry.register(_Readiness(health))
    exposition = Exposition(registry)

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def readyz(request: web.Request) -> web.Response:
        ready, report = health.report()
        text = report if not ready or "verbose" in request.query else "ok"
        return web.Response(text=text, status=200 if ready else 503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=exposition.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    served = web.Application()
    served.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    return served


@contextlib.asynccontextmanager
async def listening(served: web.Application, host: str, port: int) -> AsyncIterator[int]:
    """Serves for as long as the context lasts; yields the port, which port 0 leaves to the kernel."""
    loop = asyncio.get_running_loop()

    async def bind(connection: listener.Factory) -> asyncio.Server:
        return await loop.create_server(connection, host or None, port, backlog=listener.BACKLOG, reuse_address=True)

    async with listener.listening(served, bind, LIMITS) as server:
        bound = int(server.sockets[0].getsockname()[1])
        log.info("metrics and health are served on %s:%d", host, bound)
        yield bound
