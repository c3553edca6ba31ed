"""Fixtures of the cluster floor.

`sandbox` is one cluster of three nodes for a whole test process: tests that use it work in a namespace of their own
(`namespace`) and leave its programs alone. `cluster` is its API, or in `acceptance` perhaps that of another cluster.
`shaken` is a namespace of another sandbox, whose programs tests kill. `fresh_sandbox` makes one for a test that kills
what others need. `on_lvm` is a namespace of `lvm_cluster`, whose node has real LVM. All tests of this folder run in one
event loop, for the client of a shared sandbox lives in it.

What says something of the driver runs with both: a test that asks for `volume_source` runs once for each, and takes its
classes from `class_like` (`shaken_class_like`). All others have CSI volumes, as a new installation has: the classes of
every sandbox are those of the component `csi`. `--volume-source flexVolume` (`make test-driver`) runs them all with the
other driver. Of FlexVolume alone are, whatever is chosen:

| test | is of |
|---|---|
| test_sandbox_kubelet.py | the callouts that a kubelet makes |
| test_socket_callers.py | the socket that the callout asks |
| in acceptance/test_refusals.py what names FlexVolume | what FlexVolume can't do |
| in test_provisioning.py the old name of the provisioner | a name that no CSIDriver can have |
| in test_migrating.py, test_snapshots.py, test_rbac.py what is made as `flexVolume` | what only it does |
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from contract.parameters import VOLUME_SOURCE, VOLUME_SOURCES
from contract.volume import CSI, FLEX_VOLUME
from kube.client import Cluster
from kube.resources import CLASSES
from tests.cluster import lvmcluster
from tests.cluster.deaths import revive
from tests.cluster.lvmcluster import LvmCluster
from tests.sandbox.nodes import VOLUME_SOURCE_VARIABLE, NodeSpec
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, storage_class

MakeSandbox = Callable[..., Awaitable[Sandbox]]
MakeClass = Callable[..., Awaitable[str]]
ClassLike = Callable[..., str]
"""The name of a class like that of the given name, `elastic-local` unless told, whose volumes have the source that the
test is run with."""

ClassesAlike = dict[tuple[str, str], str]
"""Names of classes, by their volumes' source and the name of the shipped class that each is like, or is."""

_SHIPPED = ("elastic-local", "elastic-local-xfs")

THREE_NODES = (
    NodeSpec("node-a"),
    # As on many clouds: the hostname label is not the node's name.
    NodeSpec("node-b", hostname="ip-10-0-0-2.internal"),
    NodeSpec("node-c"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("acceptance", "acceptance tests of elastic-local").addoption(
        "--volume-source",
        choices=VOLUME_SOURCES,
        help="run all with volumes of this driver, and nothing with the other (both, most with csi)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if only := config.getoption("--volume-source", None):
        os.environ[VOLUME_SOURCE_VARIABLE] = only
    else:
        # Set where a test of another process, or a guest, is run for this one.
        os.environ.setdefault(VOLUME_SOURCE_VARIABLE, CSI)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    only = config.getoption("--volume-source", None)
    others = [item for item in items if here in item.path.parents and _source(item) not in ("", only or _source(item))]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]
    for item in items:
        if here not in item.path.parents:
            continue
        if isinstance(item, pytest.Function) and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
        for shared in ("sandbox", "shaken_sandbox"):
            if shared in getattr(item, "fixturenames", ()):
                # One process makes the shared sandbox, and the others get on with the rest.
                item.add_marker(pytest.mark.xdist_group(shared))


def _source(item: pytest.Item) -> str:
    """By which driver the volumes of the test are mounted. Empty: by that of the sandbox's classes."""
    called = getattr(item, "callspec", None)
    given = called.params if called else {}
    return str(given.get("volume_source") or given.get("tenants") or "")


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


async def _classes_alike(api: Cluster) -> AsyncIterator[ClassesAlike]:
    made: dict[tuple[str, str], str] = {}
    for name in _SHIPPED:
        shipped = await api.get(CLASSES, name)
        kept = {key: shipped[key] for key in ("allowVolumeExpansion", "mountOptions") if key in shipped}
        parameters = dict(shipped.get("parameters") or {})
        made[parameters.pop(VOLUME_SOURCE, FLEX_VOLUME), name] = name
        for source in VOLUME_SOURCES:
            if (source, name) not in made:
                body = storage_class(
                    f"class-{secrets.token_hex(4)}", volume_source=source, parameters=parameters, **kept
                )
                made[source, name] = (await api.create(CLASSES, body))["metadata"]["name"]
    yield made
    for name in set(made.values()) - set(_SHIPPED):
        await api.delete(CLASSES, name)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def classes_alike(cluster: Cluster) -> AsyncIterator[ClassesAlike]:
    async for made in _classes_alike(cluster):
        yield made


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shaken_classes_alike(shaken_sandbox: Sandbox) -> AsyncIterator[ClassesAlike]:
    async for made in _classes_alike(shaken_sandbox.api):
        yield made


@pytest.fixture
def class_like(classes_alike: ClassesAlike, volume_source: str) -> ClassLike:
    return _class_like(classes_alike, volume_source)


@pytest.fixture
def shaken_class_like(shaken_classes_alike: ClassesAlike, volume_source: str) -> ClassLike:
    return _class_like(shaken_classes_alike, volume_source)


def _class_like(alike: ClassesAlike, source: str) -> ClassLike:
    def like(name: str = "elastic-local") -> str:
        return alike[source, name]

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
