"""Fixtures of the cluster floor.

`sandbox` is one cluster of three nodes for a whole test process: tests that use it work in a namespace of their own
(`namespace`) and leave its programs alone. `cluster` is its API, or in `acceptance` perhaps that of another cluster.
`shaken` is a namespace of another sandbox, whose programs tests kill. `fresh_sandbox` makes one for a test that kills
what others need. `on_lvm` is a namespace of `lvm_cluster`, whose node has real LVM. All tests of this folder run in one
event loop, for the client of a shared sandbox lives in it.
"""

import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kube.client import Cluster
from kube.resources import CLASSES
from tests.cluster import lvmcluster
from tests.cluster.deaths import revive
from tests.cluster.lvmcluster import LvmCluster
from tests.sandbox.nodes import NodeSpec
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, storage_class

MakeSandbox = Callable[..., Awaitable[Sandbox]]
MakeClass = Callable[..., Awaitable[str]]

THREE_NODES = (
    NodeSpec("node-a"),
    # As on many clouds: the hostname label is not the node's name.
    NodeSpec("node-b", hostname="ip-10-0-0-2.internal"),
    NodeSpec("node-c"),
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here not in item.path.parents:
            continue
        if isinstance(item, pytest.Function) and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
        for shared in ("sandbox", "shaken_sandbox"):
            if shared in getattr(item, "fixturenames", ()):
                # One process makes the shared sandbox, and the others get on with the rest.
                item.add_marker(pytest.mark.xdist_group(shared))


@pytest.fixture(scope="session")
def short_folders() -> Iterator[Callable[[], Path]]:
    """Makes folders with short paths: a socket's path has at most 107 bytes, and pytest's own folders are deep."""
    made: list[Path] = []

    def make() -> Path:
        made.append(Path(tempfile.mkdtemp(prefix="elastic-")))
        return made[-1]

    yield make
    for folder in made:
        shutil.rmtree(folder)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def sandbox(short_folders: Callable[[], Path]) -> AsyncIterator[Sandbox]:
    async with Sandbox(short_folders(), THREE_NODES) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def fresh_sandbox(short_folders: Callable[[], Path]) -> AsyncIterator[MakeSandbox]:
    """Call it with nodes and the number of provisioners; what it makes ends with the test."""
    async with AsyncExitStack() as stack:

        async def make(*nodes: NodeSpec, **options: Any) -> Sandbox:
            return await stack.enter_async_context(Sandbox(short_folders(), nodes or THREE_NODES, **options))

        yield make


@pytest_asyncio.fixture(loop_scope="session")
async def namespace(sandbox: Sandbox) -> AsyncIterator[Namespace]:
    """A namespace of the shared sandbox; what the test made in it is gone when the next test begins."""
    async with Namespace(sandbox, f"test-{secrets.token_hex(4)}") as made:
        yield made


@pytest.fixture(scope="session")
def cluster(sandbox: Sandbox) -> Cluster:
    return sandbox.api


@pytest_asyncio.fixture(loop_scope="session")
async def make_class(cluster: Cluster) -> AsyncIterator[MakeClass]:
    """Call it as workloads.storage_class, without a name: it returns that of the class, which goes with the test."""
    made: list[str] = []

    async def make(*arguments: Any, **fields: Any) -> str:
        body = storage_class(f"class-{secrets.token_hex(4)}", *arguments, **fields)
        created = await cluster.create(CLASSES, body)
        made.append(created["metadata"]["name"])
        return made[-1]

    yield make
    for name in made:
        await cluster.delete(CLASSES, name)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shaken_sandbox(short_folders: Callable[[], Path]) -> AsyncIterator[Sandbox]:
    async with Sandbox(short_folders(), THREE_NODES) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def shaken(shaken_sandbox: Sandbox) -> AsyncIterator[Namespace]:
    """A namespace of a sandbox whose programs the test may kill: what it left dead is started again, and only then what
    it made is deleted."""
    name = f"test-{secrets.token_hex(4)}"
    async with Namespace(shaken_sandbox, name) as made:
        try:
            yield made
        finally:
            for program in reversed(shaken_sandbox.programs):
                await revive(program)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def lvm_cluster(short_folders: Callable[[], Path]) -> AsyncIterator[LvmCluster]:
    async with lvmcluster.running(short_folders(), short_folders()) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def on_lvm(lvm_cluster: LvmCluster) -> AsyncIterator[Namespace]:
    """A namespace of the cluster on LVM; what the test made in it is gone when the next test begins."""
    async with Namespace(lvm_cluster.sandbox, f"test-{secrets.token_hex(4)}") as made:
        yield made
