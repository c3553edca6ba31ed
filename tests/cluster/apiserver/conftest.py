"""One server for each module; every test works in a namespace of its own."""

import uuid
from collections.abc import Iterator

import pytest

from tests.sandbox.apiserver.client import Client
from tests.sandbox.apiserver.process import ServerProcess


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path_factory.mktemp("apiserver"))
    process.start()
    yield process
    assert process.stop() == 0


@pytest.fixture(scope="module")
def api(server: ServerProcess) -> Client:
    return Client(server.port)


@pytest.fixture
def namespace(api: Client) -> str:
    name = f"test-{uuid.uuid4().hex[:8]}"
    api.post("/api/v1/namespaces", {"metadata": {"name": name}})
    return name


@pytest.fixture
def unique() -> str:
    """For objects without a namespace."""
    return f"test-{uuid.uuid4().hex[:8]}"
