"""How the cluster learns that the volumes of this node were discovered: /ready and the not-ready taint.

/ready is that of the local static provisioner, for probes and scripts that were written for it: `ok` with 200, or 500.
/readyz of the daemon has the same check among its own. The taint is for clusters that taint new Nodes so that no pod is
scheduled before its local volumes are there; it is removed once.
"""

import logging
from collections.abc import Callable
from typing import Any

from aiohttp import web

from kube.client import NODES, ApiError, Cluster, Conflict

Json = dict[str, Any]

log = logging.getLogger(__name__)


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


_TRIES = 3


def without_taint(node: Json, key: str) -> Json | None:
    """The merge patch that takes the taint off, or None when the Node does not have it. The list of taints is replaced
    as a whole, so the patch holds for this version of the Node only."""
    taints = (node.get("spec") or {}).get("taints") or []
    left = [taint for taint in taints if taint.get("key") != key]
    if len(left) == len(taints):
        return None
    return {"metadata": {"resourceVersion": node["metadata"]["resourceVersion"]}, "spec": {"taints": left}}


async def remove_taint(cluster: Cluster, node: str, key: str) -> bool:
    """Whether the Node is without the taint now. Others change Nodes all the time, so a conflict is tried again."""
    for _ in range(_TRIES):
        try:
            patch = without_taint(await cluster.get(NODES, node), key)
            if patch is None:
                return True
            await cluster.patch(NODES, node, patch)
        except Conflict:
            continue
        except ApiError as error:
            log.warning("the taint %s can't be taken off node %s: %s", key, node, error)
            return False
        log.info("took the taint %s off node %s", key, node)
        return True
    log.warning("the taint %s can't be taken off node %s: it changed at each of %d tries", key, node, _TRIES)
    return False
