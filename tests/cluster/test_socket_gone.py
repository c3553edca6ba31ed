"""Nobody listens, or there is no storage: the pod and the node say what to do, and all goes on by itself when it is
there."""

import aiohttp
import pytest

from contract import names, quantity
from contract.volume import CSI
from daemon.csi.server import driver_socket, registration_socket
from kube.resources import CAPACITIES, CLAIMS, EVENTS, PODS
from tests.cluster.conftest import ClassLike
from tests.cluster.published import room
from tests.sandbox.nodes import Node
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until


async def test_a_pod_without_a_daemon_gets_an_event_and_starts_when_there_is_one(
    shaken: Namespace, volume_source: str, shaken_class_like: ClassLike
) -> None:
    """Of FlexVolume it says what to do; to a CSI driver that is not there the kubelet has words of its own."""
    node, storage_class = shaken.sandbox.nodes["node-b"], shaken_class_like()

    async def offered() -> bool:
        return node.hostname in await room(shaken.sandbox, storage_class)

    await until(offered, what="the node offers space to the class")
    await node.daemon.kill()
    await shaken.create(CLAIMS, claim("data", "16Mi", storage_class))
    selector = {names.HOSTNAME_LABEL: node.hostname}
    await shaken.create(PODS, pod("user", {"/data": "data"}, nodeSelector=selector))
    if volume_source == CSI:
        await shaken.until_event("user", "FailedMount", "connect: connection refused")
    else:
        message = await shaken.until_event("user", "FailedMount", "does not run on this node")
        assert "kubectl get pods -A -o wide" in message
    await node.daemon.start()
    await shaken.until_running("user")


@pytest.mark.parametrize("which", ["flexVolume", "csi", "csi registration"])
async def test_a_socket_that_somebody_removed_makes_the_daemon_unready(shaken: Namespace, which: str) -> None:
    node = shaken.sandbox.nodes["node-b"]
    sockets = {
        "flexVolume": node.socket,
        "csi": driver_socket(node.kubelet_root),
        "csi registration": registration_socket(node.kubelet_root),
    }
    sockets[which].unlink()
    await _until_unready(node, f"{sockets[which]} is gone: restart this pod")
    await node.daemon.restart()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"DATA_DIR": "/proc/elastic-local"}, "No such file"),
        ({"DRIVER_KIND": "LVM", "LVM_VOLUME_GROUP": "no-such-group"}, "this node has no no-such-group for volumes"),
    ],
    ids=["folder", "group"],
)
async def test_a_node_without_storage_says_so_and_offers_nothing(
    shaken: Namespace, environment: dict[str, str], expected: str
) -> None:
    node = shaken.sandbox.nodes["node-b"]
    usual = node.daemon.environment
    await node.daemon.kill()
    node.daemon.environment = {**usual, **environment}
    node.daemon.launch()
    try:
        await _until_unready(node, expected)
        await until(lambda: _offers(shaken.sandbox, node, 0), what="the node offers nothing")
        await until(lambda: _told(shaken.sandbox, node, expected), what="an event on the Node")
    finally:
        await node.daemon.kill()
        node.daemon.environment = usual
    await node.daemon.start()
    whole = quantity.parse(node.spec.capacity)
    await until(lambda: _offers(shaken.sandbox, node, whole), what="the node offers what it has")


async def _until_unready(node: Node, expected: str) -> None:
    async def unready() -> bool:
        try:
            async with aiohttp.ClientSession() as session, session.get(f"{node.url}/readyz") as response:
                return response.status == 503 and expected in await response.text()
        except aiohttp.ClientError:
            return False  # not yet listening

    await until(unready, what=f"the daemon of {node.name} is not ready: {expected}")


async def _offers(sandbox: Sandbox, node: Node, size: int) -> bool:
    """Whether that many bytes are all that the node offers to the class."""
    offered = [
        quantity.parse(item["capacity"])
        for item in await sandbox.api.list(CAPACITIES, names.NAMESPACE)
        if item["storageClassName"] == "elastic-local"
        and item["nodeTopology"]["matchLabels"][names.HOSTNAME_LABEL] == node.hostname
    ]
    return offered == [size]


async def _told(sandbox: Sandbox, node: Node, expected: str) -> bool:
    selector = f"involvedObject.kind=Node,involvedObject.name={node.name},reason=StorageMissing"
    events = await sandbox.api.list(EVENTS, "default", field_selector=selector)
    return any(expected in event["message"] for event in events)
