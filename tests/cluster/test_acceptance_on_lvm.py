"""What the sandbox of loop files can't show of the acceptance tests: that the class of thin volumes is tested where a
node has a pool for it."""

import pytest

from kube.client import Cluster
from tests.cluster.acceptance import test_life
from tests.cluster.acceptance.trial import LIMIT, Trial
from tests.cluster.lvmcluster import MIB, LvmCluster
from tests.waiting import patience, until

pytestmark = pytest.mark.device_mapper

_POOL = "elastic-local-thinpool"
"""Of the nodes, unless their settings or the class name another."""
_CLASS = "elastic-local-thin"


async def is_offered(api: Cluster) -> bool:
    return max((await test_life.rooms(api, _CLASS)).values(), default=0) >= 320 * MIB


async def test_a_thin_volume_is_made_where_there_is_a_pool(lvm_cluster: LvmCluster) -> None:
    api = lvm_cluster.sandbox.api
    await lvm_cluster.tools.create_pool(lvm_cluster.group, _POOL, 400 * MIB)
    try:
        await until(lambda: is_offered(api), what="the pool's room is published")
        async with Trial(api, "busybox", LIMIT * patience()) as trial:
            await test_life.test_a_claim_becomes_a_filesystem_of_its_size(api, trial, _CLASS)
            [volume] = await trial.volumes()
            assert (await lvm_cluster.volume(volume["metadata"]["name"])).pool == _POOL
    finally:
        await lvm_cluster.tools.remove(lvm_cluster.group, _POOL)
