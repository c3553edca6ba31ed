"""The startup taint goes when all is ready, and not before; why it stays is said on the Node."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contract.volume import ObjectReference
from daemon.cluster import startuptaint
from daemon.cluster.events import NodeEvents
from daemon.cluster.startuptaint import StartupTaint
from daemon.settings import read
from kube.client import Cluster
from kube.events import Recorder
from kube.resources import NODES
from service.environment import SettingsError
from tests.unit.kube.apiserver import ApiServer, connected, status
from tests.waiting import until

KEY = "startup-taint.cluster-autoscaler.kubernetes.io/elastic-local"
OTHER = {"key": "dedicated", "effect": "NoSchedule"}


@pytest.fixture
def server() -> ApiServer:
    server = ApiServer()
    server.put(NODES, {"metadata": {"name": "node-1"}, "spec": {"taints": [OTHER, {"key": KEY}]}})
    return server


@pytest.fixture
async def cluster(server: ApiServer, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with connected(server, tmp_path) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startuptaint, "_POLL", 0.01)
    monkeypatch.setattr(startuptaint, "_RETRY", 0.01)


class Told(NodeEvents):
    def __init__(self, cluster: Cluster) -> None:
        super().__init__(Recorder(cluster, "test"))
        self.set_node(ObjectReference("Node", "v1", "", "node-1", "uid"))
        self.warnings: list[tuple[str, str]] = []

    def warning(self, reason: str, message: str) -> None:
        self.warnings.append((reason, message))


async def test_the_taint_goes_when_all_is_ready(server: ApiServer, cluster: Cluster) -> None:
    problems = ["not yet published"]
    looks = 0

    def problem() -> str:
        nonlocal looks
        looks += 1
        return problems[-1]

    events = Told(cluster)
    running = asyncio.create_task(StartupTaint(cluster, "node-1", KEY, problem, events).run())
    await until(lambda: looks > 3)
    assert not server.asked_for("PATCH")
    problems.append("")
    await asyncio.wait_for(running, 5)
    (patch,) = server.asked_for("PATCH")
    assert isinstance(patch.body, dict)
    assert patch.body["spec"] == {"taints": [OTHER]}
    assert not events.warnings


async def test_a_taint_that_may_not_be_removed_is_reported_and_tried_again(server: ApiServer, cluster: Cluster) -> None:
    server.next("PATCH /api/v1/nodes/node-1", status(403, "Forbidden", "no right to patch nodes"))
    events = Told(cluster)
    await asyncio.wait_for(StartupTaint(cluster, "node-1", KEY, lambda: "", events).run(), 5)
    ((reason, message),) = events.warnings
    assert reason == "StartupTaintNotRemoved"
    assert "no right to patch nodes" in message
    assert "component startup-taint" in message
    assert len(server.asked_for("PATCH")) == 2


@pytest.mark.parametrize("key", ["a taint", "/x", "-a", "a/b/c", "key=value:NoSchedule"])
def test_a_key_that_no_taint_has_is_refused(key: str) -> None:
    with pytest.raises(SettingsError, match="STARTUP_TAINT is"):
        read({"NODE_NAME": "n", "STARTUP_TAINT": key})
    assert read({"NODE_NAME": "n", "STARTUP_TAINT": KEY}).startup_taint == KEY
