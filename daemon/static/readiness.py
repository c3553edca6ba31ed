"""The original's /ready, for probes and scripts that were written for it: `ok` with 200, or 500.

/readyz of the daemon has the same check among its own; here it stands alone, under the original's name.
"""

from collections.abc import Callable

from aiohttp import web

CHECK = "DiscovererReadyzCheck"


def routes(problem: Callable[[], str]) -> list[web.RouteDef]:
    """/ready with ?verbose and ?exclude=CHECK, and /ready/CHECK. `problem` is empty when all is well."""

    async def ready(request: web.Request) -> web.Response:
        excluded = request.query.getall("exclude", [])
        wrong = "" if CHECK in excluded else problem()
        if CHECK in excluded:
            line = f"[+]{CHECK} excluded: ok"
        else:
            line = f"[-]{CHECK} failed: {wrong}" if wrong else f"[+]{CHECK} ok"
        report = f"{line}\nready check {'failed' if wrong else 'passed'}\n"
        if wrong:
            return web.Response(text=report, status=500)
        return web.Response(text=report if "verbose" in request.query else "ok")

    async def check(_: web.Request) -> web.Response:
        wrong = problem()
        return web.Response(text=f"{wrong}\n", status=500) if wrong else web.Response(text="ok")

    return [web.get("/ready", ready), web.get(f"/ready/{CHECK}", check)]
