"""Removes a taint from a Node, with a precondition on its resourceVersion, because a merge patch replaces the whole
list of taints."""

import logging

from kube.client import Cluster
from kube.errors import ApiError, Conflict, Json
from kube.resources import NODES

log = logging.getLogger(__name__)

_TRIES = 3


def without_taint(node: Json, key: str) -> Json | None:
    """The merge patch that removes the taint, or None if the Node does not have it. It applies to this version of the
    Node only."""
    taints = (node.get("spec") or {}).get("taints") or []
    remaining = [taint for taint in taints if taint.get("key") != key]
    if len(remaining) == len(taints):
        return None
    return {"metadata": {"resourceVersion": node["metadata"]["resourceVersion"]}, "spec": {"taints": remaining}}


async def remove_taint(cluster: Cluster, node: str, key: str) -> str:
    """Why the Node still has the taint; empty if it has not. Nodes change often, so a conflict is retried."""
    for _ in range(_TRIES):
        try:
            patch = without_taint(await cluster.get(NODES, node), key)
            if patch is None:
                return ""
            await cluster.patch(NODES, node, patch)
        except Conflict:
            continue
        except ApiError as error:
            return _still_there(node, key, str(error))
        log.info("removed the taint %s from node %s", key, node)
        return ""
    return _still_there(node, key, f"it changed at each of {_TRIES} attempts")


def _still_there(node: str, key: str, why: str) -> str:
    problem = f"the taint {key} can't be removed from node {node}: {why}"
    log.warning("%s", problem)
    return problem
