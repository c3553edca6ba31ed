"""The endpoints that people, Kubernetes and Prometheus ask."""

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.endpoints import Exposition, HealthChecks, application, listening


@pytest.fixture
def problems() -> dict[str, str]:
    return {"socket": "", "storage": ""}


@pytest.fixture
async def url(problems: dict[str, str]) -> AsyncIterator[str]:
    registry = CollectorRegistry()
    Gauge("answer", "For the test.", registry=registry).set(42)
    Counter("questions", "For the test.", registry=registry).inc()
    Histogram("patience", "For the test.", registry=registry).observe(1)
    checks = {name: lambda name=name: problems[name] for name in problems}
    async with listening(application(HealthChecks(checks), registry), "127.0.0.1", 0) as port:
        yield f"http://127.0.0.1:{port}"


async def get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


async def test_a_ready_node(url: str) -> None:
    assert await get(f"{url}/healthz") == (200, "ok")
    assert await get(f"{url}/readyz") == (200, "ok")
    assert await get(f"{url}/readyz?verbose") == (200, "[+]socket ok\n[+]storage ok\nreadyz check passed\n")
    metrics = (await get(f"{url}/metrics"))[1]
    assert "answer 42.0" in metrics
    assert "questions_total 1.0" in metrics
    assert "_created" not in metrics


async def test_a_node_that_is_not_ready_says_why_and_is_alive(url: str, problems: dict[str, str]) -> None:
    problems["storage"] = "make a volume group"
    status, text = await get(f"{url}/readyz")
    assert status == 503
    assert "[+]socket ok\n[-]storage: make a volume group\n" in text
    metrics = (await get(f"{url}/metrics"))[1]
    assert 'elastic_local_ready{check="socket"} 1.0' in metrics
    assert 'elastic_local_ready{check="storage"} 0.0' in metrics
    assert await get(f"{url}/healthz") == (200, "ok")


class Slow(Collector):
    """Takes two seconds of the clock, and counts how often it was asked."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked = 0

    def collect(self) -> Iterator[GaugeMetricFamily]:
        self.now += 2
        self.asked += 1
        yield GaugeMetricFamily("asked", "For the test.", value=self.asked)


def test_scrapes_take_a_tenth_of_the_time_however_many_there_are() -> None:
    registry, slow = CollectorRegistry(), Slow()
    registry.register(slow)
    exposition, slow.asked, slow.now = Exposition(registry, clock=lambda: slow.now), 0, 0.0
    texts = {exposition.text() for _ in range(1000)}
    assert slow.asked == 1
    assert len(texts) == 1
    slow.now = 19.9
    assert exposition.text() in texts
    slow.now = 20.0
    assert b"asked 2.0" in exposition.text()
