"""How the cluster learns that the volumes of this node were discovered: /ready and the not-ready taint.

/ready is that of the local static provisioner, for probes and scripts that were written for it: `ok` with 200, or 500.
/readyz of the daemon has the same check among its own. The taint is for clusters that taint new Nodes so that no pod is
scheduled before its local volumes are there; it is removed once.
"""

import logging
from collections.abc import Callable
from typing import Any

from aiohttp import web

from kube.client import Cluster
from kube.errors import ApiError, Conflict
from kube.resources import NODES

Json = dict[str, Any]

log = logging.getLogger(__name__)

CHECK = "DiscovererReadyzCheck"

_TRIES = 3


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


def without_taint(node: Json, key: str) -> Json | None:
    """The merge patch that removes the taint, or None if the Node does not have it. A merge patch replaces the whole
    list of taints, so it applies to this version of the Node only."""
    taints = (node.get("spec") or {}).get("taints") or []
    remaining = [taint for taint in taints if taint.get("key") != key]
    if len(remaining) == len(taints):
        return None
    return {"metadata": {"resourceVersion": node["metadata"]["resourceVersion"]}, "spec": {"taints": remaining}}


async def remove_taint(cluster: Cluster, node: str, key: str) -> bool:
    """Whether the Node does not have the taint now. Nodes change often, so a conflict is retried."""
    for _ in range(_TRIES):
        try:
            patch = without_taint(await cluster.get(NODES, node), key)
            if patch is None:
                return True
            await cluster.patch(NODES, node, patch)
        except Conflict:
            continue
        except ApiError as error:
            log.warning("the taint %s can't be removed from node %s: %s", key, node, error)
            return False
        log.info("removed the taint %s from node %s", key, node)
        return True
    log.warning("the taint %s can't be removed from node %s: it changed at each of %d attempts", key, node, _TRIES)
    return False
