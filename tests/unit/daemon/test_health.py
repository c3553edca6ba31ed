"""The endpoints, and what a node says that has no storage yet."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Gauge

from daemon.backends.folder import FolderBackend
from daemon.errors import BackendFailed
from daemon.health import Health, application, listening
from daemon.record import Inventory, Pool
from daemon.refresh import Refresher, missing
from daemon.volumes import Volumes


@pytest.fixture
def problems() -> dict[str, str]:
    return {"socket": "", "storage": ""}


@pytest.fixture
async def url(problems: dict[str, str]) -> AsyncIterator[str]:
    registry = CollectorRegistry()
    Gauge("answer", "For the test.", registry=registry).set(42)
    checks = {name: lambda name=name: problems[name] for name in problems}
    async with listening(application(Health(checks), registry), "127.0.0.1", 0) as port:
        yield f"http://127.0.0.1:{port}"


async def get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


async def test_a_ready_node(url: str) -> None:
    assert await get(f"{url}/healthz") == (200, "ok")
    assert await get(f"{url}/readyz") == (200, "ok")
    assert await get(f"{url}/readyz?verbose") == (200, "[+]socket ok\n[+]storage ok\nreadyz check passed\n")
    assert "answer 42.0" in (await get(f"{url}/metrics"))[1]


async def test_a_node_that_is_not_ready_says_why_and_is_alive(url: str, problems: dict[str, str]) -> None:
    problems["storage"] = "make a volume group"
    status, text = await get(f"{url}/readyz")
    assert status == 503
    assert "[+]socket ok\n[-]storage: make a volume group\n" in text
    assert await get(f"{url}/healthz") == (200, "ok")


def test_what_is_missing_is_said_with_the_command_that_makes_it() -> None:
    group = Pool("vg", 10, 10, 0, 1)
    assert "elastic-local vg create vg" in missing(Inventory(), "vg")
    assert "elastic-local vg create vg" in missing(Inventory(), "vg/pool")
    assert "no thin pool pool in volume group vg" in missing(Inventory(pools=[group]), "vg/pool")
    assert missing(Inventory(pools=[group]), "vg") == ""


class Bare(FolderBackend):
    """A node whose storage fails until somebody repairs it."""

    failure = True

    async def inspect(self) -> Inventory:
        if self.failure:
            raise BackendFailed("the disk is out")
        return await super().inspect()


async def test_storage_that_fails_is_a_problem_until_it_is_there(tmp_path: Path) -> None:
    backend = Bare(tmp_path / "data", 100)
    volumes = Volumes(backend, tmp_path / "staging")
    changes: list[bool] = []
    refresher = Refresher(volumes, backend, changes.append)
    await refresher.look()
    await refresher.wait_looked()
    assert refresher.problem == "the disk is out"
    backend.failure = False
    await refresher.look()
    assert refresher.problem == ""
    assert volumes.inventory.pools
    assert changes == [False, True]
    await refresher.look()
    assert changes == [False, True]
