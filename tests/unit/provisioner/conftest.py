import pytest

from kube.resources import CAPACITIES, CLASSES, NODES
from tests.memorycluster import MemoryCluster
from tests.unit.provisioner.objects import GIB, capacity_body, class_body, node_body


@pytest.fixture
async def cluster() -> MemoryCluster:
    made = MemoryCluster()
    made.put(CLASSES, class_body())
    made.put(NODES, node_body("n1"))
    made.put(NODES, node_body("n2"))
    made.put(CAPACITIES, capacity_body("n1", 10 * GIB))
    made.put(CAPACITIES, capacity_body("n2", 5 * GIB))
    return made
