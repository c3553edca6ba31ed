"""/metrics, /healthz and /readyz.

Healthy means that the event loop turns. A follower is ready as well: it is as good as the leader the moment it leads,
and a rollout must not wait for a lease that the old replica holds. A leader is ready once it has seen the cluster.
"""

import contextlib
from collections.abc import AsyncIterator, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest


def application(registry: CollectorRegistry, unready: Callable[[], str]) -> web.Application:
    """`unready`: why not, empty when all is well."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def readyz(_: web.Request) -> web.Response:
        why = unready()
        return web.Response(text=why or "ok", status=503 if why else 200)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    served = web.Application()
    served.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    return served


@contextlib.asynccontextmanager
async def listening(served: web.Application, host: str, port: int) -> AsyncIterator[int]:
    """Serves for as long as the context lasts. The value is the port, which port 0 leaves to the kernel."""
    runner = web.AppRunner(served, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host or None, port).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
