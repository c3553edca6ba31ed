"""Asks every node of the cluster what it holds: `elastic-local volumes --local` in the pod of its daemon, by way of
kubectl exec. So nothing has to be published for it, nobody gets new rights, and the answer is of this moment.

A node that does not answer is said so and left out: what it holds is not guessed.
"""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from command.options import ApiAccess
from command.running import Stop
from command.volumerows import Row
from contract import names
from host.command import CommandError, Completed, MissingTool, run
from kube.client import Cluster
from kube.errors import ApiError
from kube.records import Pod, read_pod
from kube.resources import PODS

DAEMONS = "app.kubernetes.io/name=elastic-local,app.kubernetes.io/component=daemon"
"""Labels of the daemon's pods in deploy/."""

_DEADLINE = 60.0
"""Seconds for one node."""
_WHOLE = 120.0
"""Seconds for all of them: those that give no answer hold up those after them."""
_AT_ONCE = 16
_NAMED = 5
"""Nodes that a message names at most."""


@dataclass
class Answers:
    rows: list[Row] = field(default_factory=list)
    nodes: set[str] = field(default_factory=set)
    """Those that answered."""
    failures: dict[str, str] = field(default_factory=dict)
    """By node: why it did not."""
    waiting: set[str] = field(default_factory=set)
    """Those that have yet to answer."""

    def __str__(self) -> str:
        """What is being waited for."""
        if not self.waiting:
            return "asking the cluster for its volumes and nodes"
        of = len(self.waiting) + len(self.nodes) + len(self.failures)
        named = ", ".join(sorted(self.waiting)[:_NAMED]) + (", ..." if len(self.waiting) > _NAMED else "")
        return f"asking the nodes: {len(self.waiting)} of {of} have not answered yet, {named}"


async def namespace_of(cluster: Cluster, given: str) -> str:
    """Where daemons run: an overlay may put them elsewhere than people say when they say nothing. What is `given` and
    is not the default stands; so does the default where daemons are there, are in several places, or can't be seen."""
    if given != names.NAMESPACE:
        return given
    try:
        namespaces = {read_pod(body).namespace for body in await cluster.list(PODS, label_selector=DAEMONS)}
    except ApiError:
        return given
    return next(iter(namespaces)) if len(namespaces) == 1 else given


async def ask(cluster: Cluster, namespace: str, access: ApiAccess, answers: Answers) -> None:
    """Fills `answers`. Raises ApiError when not even the daemons are known, and Stop without kubectl."""
    pods = [*_running(map(read_pod, await cluster.list(PODS, namespace, label_selector=DAEMONS)))]
    answers.waiting |= {pod.node_name for pod in pods}
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one(pod: Pod) -> None:
        async with turns:
            try:
                answers.rows += await _ask(pod, access)
                answers.nodes.add(pod.node_name)
            except (CommandError, ValueError, TypeError) as error:
                answers.failures[pod.node_name] = str(error)
        answers.waiting.discard(pod.node_name)

    try:
        async with asyncio.timeout(_WHOLE):
            await asyncio.gather(*map(one, pods))
    except TimeoutError:
        answers.failures |= dict.fromkeys(answers.waiting, f"no answer in the {_WHOLE:g} s that all nodes have")
    answers.waiting.clear()


def _running(pods: Iterable[Pod]) -> Iterable[Pod]:
    return (pod for pod in pods if pod.phase == "Running" and pod.node_name and not pod.deleting)


async def _ask(pod: Pod, access: ApiAccess) -> list[Row]:
    answer = await _exec(pod, access, "volumes", "--local", "--output", "json")
    return [Row(**{**row, "pods": tuple(row["pods"])}) for row in json.loads(answer.stdout)]


async def _exec(pod: Pod, access: ApiAccess, *words: str) -> Completed:
    """Raises CommandError, and Stop without kubectl: then no node can be asked."""
    try:
        return await run(
            "kubectl",
            *(("--context", access.context) if access.context else ()),
            *("--namespace", pod.namespace, "exec", pod.name, "--container", "daemon", "--"),
            *("elastic-local", *words),
            deadline=_DEADLINE,
            env={"KUBECONFIG": access.kubeconfig} if access.kubeconfig else None,
        )
    except MissingTool:
        raise Stop("there is no kubectl on your PATH, and nodes are asked by kubectl exec: install it") from None


class DaemonPods:
    """The daemons' pods of the nodes, one at a time. Methods raise CommandError when kubectl or the command fails, and
    Stop when no daemon runs there."""

    def __init__(self, cluster: Cluster, namespace: str, access: ApiAccess) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._access = access

    async def rows(self, node: str) -> list[Row]:
        """What the node holds, as it says itself."""
        return await _ask(await self._pod(node), self._access)

    async def adopt(self, node: str, volume: str) -> None:
        """Hands a volume over to the PersistentVolume of its name."""
        await _exec(await self._pod(node), self._access, "adopt", volume, "--yes", "--output", "json")

    async def _pod(self, node: str) -> Pod:
        found = map(read_pod, await self._cluster.list(PODS, self._namespace, label_selector=DAEMONS))
        for pod in _running(found):
            if pod.node_name == node:
                return pod
        raise Stop(f"no daemon runs on node {node}: `elastic-local doctor --cluster` says more")
