"""The taint with which a new Node joins, so that no pod comes before its volumes can be mounted: the daemon takes it
off its own Node when it is ready, once.

Without it the scheduler sends pods to a Node whose capacity is not published yet, or not registered as that of a CSI
driver, and the cluster autoscaler may add one Node too many. The right to do so comes with components/startup-taint and
its admission policy: a daemon removes taints of its own Node and changes nothing else. So the token of a node reaches
no other Node, which the provisioner's right to patch them all would.
"""

import asyncio
import re
from collections.abc import Callable

from daemon.cluster.events import NodeEvents
from kube.client import Cluster
from kube.taints import remove_taint

NOT_REMOVED = "StartupTaintNotRemoved"

_POLL = 0.5
"""Seconds between two looks whether all is ready."""
_RETRY = 15.0
"""Seconds after which it is tried again."""
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"([a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_LABEL}", re.ASCII)


def taint_key(text: str) -> str:
    """Raises ValueError for what is none."""
    if not _KEY.fullmatch(text):
        raise ValueError(
            "allowed is the key of a taint, such as startup-taint.cluster-autoscaler.kubernetes.io/elastic-local"
        )
    return text


class StartupTaint:
    """`problem` says why pods can't have volumes on the node yet. Empty: they can."""

    def __init__(self, cluster: Cluster, node: str, key: str, problem: Callable[[], str], events: NodeEvents) -> None:
        self._cluster = cluster
        self._node = node
        self._key = key
        self._problem = problem
        self._events = events

    async def run(self) -> None:
        """Until the Node does not have the taint."""
        while True:
            pause = _POLL
            if not self._problem():
                wrong = await remove_taint(self._cluster, self._node, self._key)
                if not wrong:
                    return
                self._events.warning(
                    NOT_REMOVED,
                    f"{wrong}: it is tried again; the right to do so comes with the component startup-taint",
                )
                pause = _RETRY
            await asyncio.sleep(pause)
