"""The cluster under test: the shared sandbox, or the one of `--kubeconfig`.

Only of that option: the environment's KUBECONFIG may be that of a cluster which nobody wanted tested.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from kube.client import Cluster
from tests.cluster.acceptance import preflight
from tests.cluster.acceptance.trial import LIMIT, Trial
from tests.sandbox.sandbox import Sandbox
from tests.waiting import PATIENCE_VARIABLE, patience

_OPTION = "--kubeconfig"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("acceptance", "acceptance tests of elastic-local")
    group.addoption(_OPTION, help="test the cluster of this kubeconfig, with elastic-local in it, not a sandbox")
    group.addoption("--snapshots", action="store_true", help="test snapshots, too: the cluster has their component")
    group.addoption("--pod-image", default="busybox", help="image of the pods that tests start (busybox)")
    group.addoption(
        "--patience", type=float, default=2, help="how many times longer than a sandbox a step may take (2)"
    )
    group.addoption("--limit", type=float, default=LIMIT, help=f"seconds that a test may take in all ({LIMIT:g})")


def pytest_configure(config: pytest.Config) -> None:
    if kubeconfig := config.getoption(_OPTION, None):
        os.environ[PATIENCE_VARIABLE] = str(config.getoption("--patience"))
        try:
            asyncio.run(preflight.check(kubeconfig, snapshots=config.getoption("--snapshots")))
        except preflight.Unfit as unfit:
            raise pytest.UsageError(str(unfit)) from None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    if not config.getoption("--snapshots", None):
        # In the sandbox tests/cluster/test_snapshots.py runs them, where there are the kinds for them.
        unasked = [item for item in items if item.path == here / "test_snapshots.py"]
        config.hook.pytest_deselected(items=unasked)
        items[:] = [item for item in items if item not in unasked]
    for item in items:
        if here in item.path.parents and not config.getoption(_OPTION, None):
            # `cluster` asks for the sandbox only when it runs, which the fixtures' names do not tell.
            item.add_marker(pytest.mark.xdist_group("sandbox"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def handed_over(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    kubeconfig: str = request.config.getoption(_OPTION)
    async with await Cluster.connect(kubeconfig, program="acceptance") as connected:
        yield connected


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Cluster:
    if request.config.getoption(_OPTION, None):
        handed_over: Cluster = request.getfixturevalue("handed_over")
        return handed_over
    sandbox: Sandbox = request.getfixturevalue("sandbox")
    return sandbox.api


@pytest_asyncio.fixture(loop_scope="session")
async def namespace(request: pytest.FixtureRequest, cluster: Cluster) -> AsyncIterator[Trial]:
    """One for each test; nothing of it is left when the next begins."""
    limit: float = request.config.getoption("--limit", LIMIT)
    if not request.config.getoption(_OPTION, None):
        # A sandbox may be on an emulated machine.
        limit *= patience()
    async with Trial(cluster, request.config.getoption("--pod-image", "busybox"), limit) as made:
        yield made
