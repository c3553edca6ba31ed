from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kube import taints
from kube.client import Cluster
from kube.resources import NODES
from tests.unit.kube.apiserver import ApiServer, connected, status

KEY = "storage/not-ready"
OTHER = {"key": "dedicated", "effect": "NoSchedule"}
TAINT = {"key": KEY, "effect": "NoSchedule"}
PATH = "/api/v1/nodes/node-1"


@pytest.fixture
def server() -> ApiServer:
    return ApiServer()


@pytest.fixture
async def cluster(server: ApiServer, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with connected(server, tmp_path) as cluster:
        yield cluster


def has(server: ApiServer, *present: dict[str, Any]) -> str:
    """The version of the Node that has these."""
    body = server.put(NODES, {"metadata": {"name": "node-1"}, "spec": {"taints": list(present)}})
    return str(body["metadata"]["resourceVersion"])


async def test_removed_with_a_patch_for_this_version_only(server: ApiServer, cluster: Cluster) -> None:
    version = has(server, OTHER, TAINT, {**TAINT, "effect": "NoExecute"})
    assert not await taints.remove_taint(cluster, "node-1", KEY)
    (patch,) = server.asked_for("PATCH")
    assert patch.body == {"metadata": {"resourceVersion": version}, "spec": {"taints": [OTHER]}}


async def test_a_node_without_it_is_left_alone(server: ApiServer, cluster: Cluster) -> None:
    has(server, OTHER)
    assert not await taints.remove_taint(cluster, "node-1", KEY)
    assert not server.asked_for("PATCH")


async def test_a_node_that_changed_meanwhile_is_read_again(server: ApiServer, cluster: Cluster) -> None:
    has(server, TAINT)
    server.next(f"PATCH {PATH}", status(409, "Conflict"), status(409, "Conflict"))
    assert not await taints.remove_taint(cluster, "node-1", KEY)
    assert len(server.asked_for("PATCH")) == len(server.asked_for("GET")) == 3


async def test_it_gives_up_after_three_conflicts(server: ApiServer, cluster: Cluster) -> None:
    has(server, TAINT)
    server.next(f"PATCH {PATH}", *[status(409, "Conflict")] * 4)
    assert await taints.remove_taint(cluster, "node-1", KEY)
    assert len(server.asked_for("PATCH")) == 3


async def test_without_permission_to_patch_nodes_it_says_so(
    server: ApiServer, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    has(server, TAINT)
    server.next(f"PATCH {PATH}", status(403, "Forbidden", "no right to patch nodes"))
    assert await taints.remove_taint(cluster, "node-1", KEY)
    assert "no right to patch nodes" in caplog.text
