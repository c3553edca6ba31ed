"""A hundred claims at once on three nodes that can't hold them all: no node is ever over-committed, those that wait are
told why, and get their room when there is some."""

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection
from typing import Any

from contract import names, quantity
from kube.resources import CLAIMS, EVENTS, PODS, VOLUMES
from tests.cluster import onnode
from tests.cluster.conftest import MakeSandbox
from tests.sandbox.nodes import NodeSpec
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, is_ready, pod
from tests.waiting import until

Json = dict[str, Any]

_CLAIMS = 100
_SIZE = 12 * 1024**2
_NODES = (
    NodeSpec("node-a", capacity="216Mi"),
    NodeSpec("node-b", hostname="ip-10-0-0-2.internal", capacity="160Mi"),
    NodeSpec("node-c", capacity="90Mi"),
)
_FIT = {"node-a": 18, "node-b": 13, "node-c": 7}
"""Volumes that each has room for. The last two have some bytes left that are of no use."""

_LEAVING = 20
_SAMPLE_SECONDS = 0.1


async def test_a_burst_fills_all_nodes_and_none_too_much(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(*_NODES)
    everyone = [f"user-{number:02}" for number in range(_CLAIMS)]
    async with Namespace(sandbox, "burst") as namespace, never_overcommitted(sandbox):
        await asyncio.gather(*(start(namespace, name) for name in everyone))
        first = await until_running(namespace, sum(_FIT.values()))
        assert Counter(body["spec"]["nodeName"] for body in first.values()) == _FIT
        assert {name: len(onnode.sizes(node)) for name, node in sandbox.nodes.items()} == _FIT

        waiting = [name for name in everyone if name not in first]
        await until(lambda: all_have_events(namespace, waiting), what="all that wait were told why")

        leaving = list(first)[:_LEAVING]
        for name in leaving:
            await namespace.delete(PODS, name)
            await namespace.delete(CLAIMS, name)
        second = await until_running(namespace, sum(_FIT.values()), without=leaving)
        assert Counter(body["spec"]["nodeName"] for body in second.values()) == _FIT
        assert len(second.keys() & set(waiting)) == _LEAVING


async def start(namespace: Namespace, name: str) -> None:
    await namespace.create(CLAIMS, claim(name, str(_SIZE)))
    await namespace.create(PODS, pod(name, {"/data": name}))


async def until_running(namespace: Namespace, number: int, without: Collection[str] = ()) -> dict[str, Json]:
    """That many pods are ready, and nobody of `without` is there any more."""

    async def ready() -> dict[str, Json] | None:
        pods = {body["metadata"]["name"]: body for body in await namespace.sandbox.api.list(PODS, namespace.name)}
        running = {name: body for name, body in pods.items() if is_ready(body)}
        return running if len(running) == number and not pods.keys() & set(without) else None

    running: dict[str, Json] = await until(ready, what=f"{number} pods are running", seconds=60)
    return running


async def all_have_events(namespace: Namespace, waiting: list[str]) -> bool:
    """Of pod and claim, which have one name, one at least says that there is no room."""
    messages = defaultdict(list)
    for event in await namespace.sandbox.api.list(EVENTS, namespace.name):
        messages[event["involvedObject"]["name"]].append(event["message"])
    return all(any(_no_room(message) for message in messages[name]) for name in waiting)


def _no_room(message: str) -> bool:
    return "did not have enough free storage" in message or "left in pool loop: another node is asked for" in message


@contextlib.asynccontextmanager
async def never_overcommitted(sandbox: Sandbox) -> AsyncIterator[None]:
    """Looks again and again whether volumes, and what was promised, stay within what each node has. Fails at the end
    of the context if it was not so once."""
    limits = {name: quantity.parse(node.spec.capacity) for name, node in sandbox.nodes.items()}
    excesses: list[str] = []
    peak: Counter[str] = Counter()

    async def look() -> None:
        promised: Counter[str] = Counter()
        for volume in await sandbox.api.list(VOLUMES, label_selector=names.NODE_LABEL):
            promised[volume["metadata"]["labels"][names.NODE_LABEL]] += quantity.parse(
                volume["spec"]["capacity"]["storage"]
            )
        for name, node in sandbox.nodes.items():
            for what, size in ("promised", promised[name]), ("taken", sum(onnode.sizes(node).values())):
                peak[name] = max(peak[name], size)
                if size > limits[name]:
                    excesses.append(f"{size} bytes {what} on {name}, which has {limits[name]}")

    async def keep_looking() -> None:
        while True:
            await look()
            await asyncio.sleep(_SAMPLE_SECONDS)

    watching = asyncio.create_task(keep_looking())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait([watching])
    assert watching.cancelled()
    assert excesses == []
    assert peak == {name: number * _SIZE for name, number in _FIT.items()}, "it looked when the nodes were full"
