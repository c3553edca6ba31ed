"""Takes the not-ready taint off the Node once its volumes are offered.

A cluster taints new Nodes so that no pod is scheduled before its local volumes are there.
"""

import logging
from typing import Any

from kube.client import NODES, ApiError, Cluster, Conflict

log = logging.getLogger(__name__)

Json = dict[str, Any]

_TRIES = 3


def without(node: Json, key: str) -> Json | None:
    """The merge patch that takes the taint off, or None when the Node does not have it. The list of taints is replaced
    as a whole, so the patch holds for this version of the Node only."""
    taints = (node.get("spec") or {}).get("taints") or []
    left = [taint for taint in taints if taint.get("key") != key]
    if len(left) == len(taints):
        return None
    return {"metadata": {"resourceVersion": node["metadata"]["resourceVersion"]}, "spec": {"taints": left}}


async def remove(cluster: Cluster, node: str, key: str) -> bool:
    """Whether the Node is without the taint now. Others change Nodes all the time, so a conflict is tried again."""
    for _ in range(_TRIES):
        try:
            patch = without(await cluster.get(NODES, node), key)
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
