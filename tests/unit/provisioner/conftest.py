import pytest

from kube.client import CAPACITIES, CLASSES
from tests.unit.provisioner.memory import MemoryCluster
from tests.unit.provisioner.objects import GIB, capacity_body, class_body


@pytest.fixture
async def cluster() -> MemoryCluster:
    made = MemoryCluster()
    made.put(CLASSES, class_body())
    made.put(CAPACITIES, capacity_body("n1", 10 * GIB))
    made.put(CAPACITIES, capacity_body("n2", 5 * GIB))
    return made
