"""What is rendered once for all tests of deploy/, and the nodes whose daemons ask."""

import pytest

from contract import names, volume
from kube.records import Node
from tests.sandbox.apiserver.journal import NoJournal
from tests.sandbox.apiserver.policies import Policies
from tests.sandbox.apiserver.resources import BY_KIND
from tests.sandbox.apiserver.store import Store
from tests.unit.deploy.daemonwrites import LONG, NODES, UID, Json, a_node, fill
from tests.unit.deploy.rendered import with_components


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> tuple[Json, ...]:
    return with_components(tmp_path_factory.mktemp("all"))


@pytest.fixture(scope="session")
def policies(objects: tuple[Json, ...]) -> Policies:
    store = Store(NoJournal(), 100)
    for name, hostname in NODES.items():
        labels = {names.HOSTNAME_LABEL: hostname}
        store.write(BY_KIND["v1", "Node"], {"metadata": {"name": name, "uid": UID, "labels": labels}, "spec": {}})
    fill(store, objects)
    return Policies(store)


@pytest.fixture(params=["one", "two", LONG], ids=["plain", "other hostname", "long name"])
def node(request: pytest.FixtureRequest) -> Node:
    return a_node(request.param)


@pytest.fixture(params=[volume.FLEX_VOLUME, volume.CSI])
def source(request: pytest.FixtureRequest) -> str:
    return str(request.param)
