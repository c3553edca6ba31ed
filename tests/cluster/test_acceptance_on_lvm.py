"""What the sandbox of loop files can't show of the acceptance tests: that the class of thin volumes is tested where a
node has a pool for it, and what snapshots are on LVM, thin and thick, each restored as the other."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from contract.snapshot import Handle
from contract.volume import CSI
from kube.client import Cluster
from tests.cluster.acceptance import test_life, test_snapshots
from tests.cluster.acceptance.trial import LIMIT, Trial
from tests.cluster.lvmcluster import MIB, LvmCluster
from tests.waiting import patience, until

pytestmark = pytest.mark.device_mapper

_POOL = "elastic-local-thinpool"
"""Of the nodes, unless their settings or the class name another."""
_CLASS = "elastic-local-thin"


async def is_offered(api: Cluster) -> bool:
    return max((await test_life.rooms(api, _CLASS)).values(), default=0) >= 320 * MIB


@pytest_asyncio.fixture(loop_scope="session")
async def pool(lvm_cluster: LvmCluster) -> AsyncIterator[str]:
    await lvm_cluster.tools.create_pool(lvm_cluster.group, _POOL, 400 * MIB)
    await until(lambda: is_offered(lvm_cluster.sandbox.api), what="the pool's room is published")
    yield _POOL
    await lvm_cluster.tools.remove(lvm_cluster.group, _POOL)


async def test_a_thin_volume_is_made_where_there_is_a_pool(lvm_cluster: LvmCluster, pool: str) -> None:
    api = lvm_cluster.sandbox.api
    async with Trial(api, "busybox", LIMIT * patience()) as trial:
        await test_life.test_a_claim_becomes_a_filesystem_of_its_size(api, trial, _CLASS)
        [volume] = await trial.volumes()
        assert (await lvm_cluster.volume(volume["metadata"]["name"])).pool == pool


@pytest.mark.parametrize("kind", ["thick", "thin"])
async def test_a_snapshot_is_taken_and_restored_as_the_other_kind(
    lvm_cluster: LvmCluster, pool: str, kind: str
) -> None:
    """In a pool it shares blocks with its source; elsewhere it is a volume of its own once it is ready."""
    # Nothing is erased here, which would take seconds each time.
    classes = {
        "thick": await lvm_cluster.make_class(volumeSource=CSI, erase="none"),
        "thin": await lvm_cluster.make_class(volumeSource=CSI, erase="none", thin="true"),
    }
    pools = {"thick": "", "thin": pool}
    [other] = classes.keys() - {kind}
    async with Trial(lvm_cluster.sandbox.api, "busybox", LIMIT * patience()) as trial:
        content = await test_snapshots.take(trial, classes[kind])
        handle = Handle.parse(content["status"]["snapshotHandle"])
        assert handle
        taken = await lvm_cluster.volume(handle.volume)
        source = await lvm_cluster.volume(content["spec"]["source"]["volumeHandle"])
        assert taken.pool == source.pool == pools[kind]
        assert kind == "thin" or taken.origin == ""
        await test_snapshots.restore(trial, classes[other])
        copy = await lvm_cluster.volume((await trial.until_bound("copy"))["metadata"]["name"])
        assert copy.pool == pools[other]
        assert (await lvm_cluster.tools.report()).volume(lvm_cluster.group, handle.volume) is None
