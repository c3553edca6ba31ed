"""Fixtures of the cluster floor.

`sandbox` is one cluster of three nodes for a whole test process: tests that use it work in a namespace of their own
(`namespace`) and leave its programs alone. `cluster` is its API, or in `acceptance` perhaps that of another cluster.
`shaken` is a namespace of another sandbox, whose programs tests kill. `fresh_sandbox` makes one for a test that kills
what others need. `on_lvm` is a namespace of `lvm_cluster`, whose node has real LVM. All tests of this folder run in one
event loop, for the client of a shared sandbox lives in it.

What says something of the driver runs with both: a test that asks for `volume_source` runs once for each, and takes its
classes from `class_like` (`shaken_class_like`). All others have one of them, mostly FlexVolume as the shipped classes.
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

from contract.parameters import VOLUME_SOURCES
from contract.volume import CSI, FLEX_VOLUME
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
ClassLike = Callable[..., str]
"""The name of a class like that of the given name, `elastic-local` unless told, whose volumes have the source that the
test is run with."""

_SHIPPED = ("elastic-local", "elastic-local-xfs")

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
        made.append(Path(tempfile.mkdtemp(prefix="test-")))
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


@pytest.fixture(params=VOLUME_SOURCES)
def volume_source(request: pytest.FixtureRequest) -> str:
    """By which driver the kubelet mounts the volumes of the test: `flexVolume` or `csi`."""
    source: str = request.param
    return source


async def _csi_classes(api: Cluster) -> AsyncIterator[dict[str, str]]:
    made = {}
    for name in _SHIPPED:
        shipped = await api.get(CLASSES, name)
        kept = {key: shipped[key] for key in ("allowVolumeExpansion", "mountOptions", "parameters") if key in shipped}
        body = storage_class(f"class-{secrets.token_hex(4)}", volume_source=CSI, **kept)
        made[name] = (await api.create(CLASSES, body))["metadata"]["name"]
    yield made
    for name in made.values():
        await api.delete(CLASSES, name)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def csi_classes(cluster: Cluster) -> AsyncIterator[dict[str, str]]:
    """By the name of the shipped class that each is like."""
    async for made in _csi_classes(cluster):
        yield made


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shaken_csi_classes(shaken_sandbox: Sandbox) -> AsyncIterator[dict[str, str]]:
    async for made in _csi_classes(shaken_sandbox.api):
        yield made


@pytest.fixture
def class_like(request: pytest.FixtureRequest, volume_source: str) -> ClassLike:
    return _class_like({} if volume_source == FLEX_VOLUME else request.getfixturevalue("csi_classes"))


@pytest.fixture
def shaken_class_like(request: pytest.FixtureRequest, volume_source: str) -> ClassLike:
    return _class_like({} if volume_source == FLEX_VOLUME else request.getfixturevalue("shaken_csi_classes"))


def _class_like(others: dict[str, str]) -> ClassLike:
    def like(name: str = "elastic-local") -> str:
        return others.get(name, name)

    return like


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
