"""/ready, by which the cluster learns that the volumes of this node were discovered.

It is that of the local static provisioner, for probes and scripts that were written for it: `ok` with 200, or 500.
/readyz of the daemon has the same check among its own.
"""

from collections.abc import Callable

from aiohttp import web

CHECK = "DiscovererReadyzCheck"


def routes(problem: Callable[[], str]) -> list[web.RouteDef]:
    """/ready with ?verbose and ?exclude=CHECK, and /ready/CHECK. `problem`: empty if all classes were discovered."""

    async def ready(request: web.Request) -> web.Response:
        excluded = CHECK in request.query.getall("exclude", [])
        error = "" if excluded else problem()
        line = f"[-]{CHECK} failed: {error}" if error else f"[+]{CHECK}{' excluded:' if excluded else ''} ok"
        report = f"{line}\nready check {'failed' if error else 'passed'}\n"
        if error:
            return web.Response(text=report, status=500)
        return web.Response(text=report if "verbose" in request.query else "ok")

    async def check(_: web.Request) -> web.Response:
        error = problem()
        return web.Response(text=f"{error}\n", status=500) if error else web.Response(text="ok")

    return [web.get("/ready", ready), web.get(f"/ready/{CHECK}", check)]
