from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import ClientSession, web
from prometheus_client import CollectorRegistry

from daemon.static import readiness
from service import endpoints
from service.endpoints import HealthChecks

Get = Callable[[str], Awaitable[tuple[int, str]]]


@pytest.fixture
def problems() -> list[str]:
    """The last one counts."""
    return [""]


@pytest.fixture
async def get(problems: list[str]) -> AsyncIterator[Get]:
    served: web.Application = endpoints.application(HealthChecks({}), CollectorRegistry())
    served.add_routes(readiness.routes(lambda: problems[-1]))
    async with endpoints.listening(served, "127.0.0.1", 0) as port, ClientSession() as session:

        async def get(path: str) -> tuple[int, str]:
            async with session.get(f"http://127.0.0.1:{port}{path}") as answer:
                return answer.status, await answer.text()

        yield get


async def test_ready(get: Get) -> None:
    assert await get("/ready") == (200, "ok")
    assert await get("/ready?verbose") == (200, "[+]DiscovererReadyzCheck ok\nready check passed\n")
    assert await get("/ready/DiscovererReadyzCheck") == (200, "ok")
    assert (await get("/ready/another"))[0] == 404


async def test_not_ready(get: Get, problems: list[str]) -> None:
    problems.append("class fast: why")
    report = "[-]DiscovererReadyzCheck failed: class fast: why\nready check failed\n"
    assert await get("/ready") == (500, report)
    assert await get("/ready?verbose") == (500, report)
    assert await get("/ready/DiscovererReadyzCheck") == (500, "class fast: why\n")
    assert await get("/ready?exclude=another") == (500, report)


async def test_what_is_excluded_does_not_count(get: Get, problems: list[str]) -> None:
    problems.append("class fast: why")
    assert await get("/ready?exclude=DiscovererReadyzCheck") == (200, "ok")
    message = "[+]DiscovererReadyzCheck excluded: ok\nready check passed\n"
    assert await get("/ready?verbose&exclude=another&exclude=DiscovererReadyzCheck") == (200, message)
