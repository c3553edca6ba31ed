"""A term of leadership in a test: run one, play the controller-manager's part, wait for what has to follow."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from contract.volume import RELEASED
from kube.errors import ApiError, Json
from kube.resources import CLAIMS, VOLUMES
from provisioner.main import Term
from provisioner.metrics import Metrics
from provisioner.settings import Settings
from service.lifecycle import Supervisor
from tests.memorycluster import MemoryCluster

Act = Callable[[], Awaitable[None]]
PV = "pvc-uid-of-data"


@asynccontextmanager
async def leading(cluster: MemoryCluster, metrics: Metrics | None = None) -> AsyncIterator[Term]:
    term = Term(cluster, Settings(identity="test"), metrics or Metrics())
    working = asyncio.create_task(term.run(Supervisor()))
    try:
        yield term
    finally:
        working.cancel()
        await asyncio.wait([working])
        assert working.cancelled(), working.exception()


def volume(cluster: MemoryCluster, name: str = PV) -> Json | None:
    return cluster.stored(VOLUMES, name)


def claim(cluster: MemoryCluster, name: str = "data") -> Json:
    body = cluster.stored(CLAIMS, name, "default")
    assert body, name
    return body


def does(act: Callable[[], object]) -> Act:
    async def disturbance() -> None:
        act()

    return disturbance


def raises(error: ApiError) -> Act:
    async def disturbance() -> None:
        raise error

    return disturbance


def bind(cluster: MemoryCluster, name: str = "data") -> None:
    """What the controller-manager does once there is a volume."""
    body = claim(cluster, name)
    cluster.put(CLAIMS, {**body, "spec": {**body["spec"], "volumeName": f"pvc-{body['metadata']['uid']}"}})


def release(cluster: MemoryCluster, name: str = PV) -> None:
    body = volume(cluster, name)
    assert body, name
    cluster.put(VOLUMES, {**body, "status": {"phase": RELEASED}})


def figures(metrics: Metrics) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name.startswith("controller_") and not sample.name.endswith(("_bucket", "_created", "_sum"))
    }
