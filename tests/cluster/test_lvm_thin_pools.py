"""Thin pools that claims were promised more of than there is: what their people are told, and what helps them."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from kube.resources import CLAIMS, PODS
from tests.cluster.lvmcluster import CHECK, MIB, RESERVE, WRITE, LvmCluster
from tests.cluster.published import room
from tests.cluster.test_observability import scrape
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until

pytestmark = pytest.mark.device_mapper

MakePool = Callable[[int], Awaitable[str]]


@pytest_asyncio.fixture(loop_scope="session")
async def make_pool(lvm_cluster: LvmCluster) -> AsyncIterator[MakePool]:
    """The name of a new thin pool of so many bytes. Ask for it before `on_lvm`, whose volumes lie in it."""
    made: list[str] = []

    async def make(size: int) -> str:
        made.append(f"pool-{secrets.token_hex(4)}")
        await lvm_cluster.tools.create_pool(lvm_cluster.group, made[-1], size)
        return made[-1]

    yield make
    for pool in made:
        await lvm_cluster.tools.remove(lvm_cluster.group, pool)


def of(pool: str, messages: list[str]) -> list[str]:
    return [message for message in messages if pool in message]


async def test_a_pool_that_fills_up_takes_no_more_claims_until_there_is_room(
    lvm_cluster: LvmCluster, make_pool: MakePool, on_lvm: Namespace
) -> None:
    sandbox, node = lvm_cluster.sandbox, lvm_cluster.node
    pool = await make_pool(256 * MIB)
    thin = await lvm_cluster.make_class(thin="true", thinPool=pool, overprovisionRatio="3")
    on_paper = 3 * 256 * MIB - RESERVE

    async def offered(size: int) -> bool:
        return (await room(sandbox, thin)).get(node.hostname) == size

    await until(lambda: offered(on_paper), what="the pool's room is published")
    await on_lvm.create(CLAIMS, claim("greedy", "300Mi", thin))
    script = """
        head -c 210M /dev/urandom > /data/one; sync; touch /data/done
        until test -s /data/more; do sleep 0.1; done
        head -c $(cat /data/more) /dev/urandom > /data/two; sync
        exec sleep infinity
    """
    await on_lvm.create(PODS, pod("greedy", {"/data": "greedy"}, script=script))
    await on_lvm.until_running("greedy")
    volume = (await on_lvm.until_bound("greedy"))["metadata"]["name"]

    async def reported(reason: str) -> list[str]:
        return of(pool, await lvm_cluster.told_of_node(reason))

    [filling] = await until(lambda: reported("ThinPoolFilling"), what="a first warning")
    assert "extend it (lvextend), or delete volumes" in filling
    await until(lambda: offered(on_paper - 300 * MIB), what="what is promised is no longer offered")

    await until((node.staging / volume / "done").exists, what="the pod has written")
    # Just not full: then every write to it would hang for a minute, the pod's end among them.
    used = (await lvm_cluster.volume(pool)).data_percent
    assert used
    (node.staging / volume / "more").write_text(str(int((96 - used) / 100 * 256 * MIB)))
    [full] = await until(lambda: reported("ThinPoolNearlyFull"), what="a last warning")
    assert "so nothing new is made in it" in full
    await until(lambda: offered(0), what="no room is published")
    figures = await scrape(node.url)
    assert figures.sum("elastic_local_thin_pool_data_percent", pool=f"{lvm_cluster.group}/{pool}") >= 95

    await on_lvm.create(CLAIMS, claim("late", "32Mi", thin))
    await on_lvm.create(PODS, pod("late", {"/data": "late"}))
    refusal = await on_lvm.until_event("late", "FailedScheduling")
    assert refusal.startswith("0/1 nodes are available: 1 node(s) did not have enough free storage. ")

    await on_lvm.delete(PODS, "greedy")
    await on_lvm.delete(CLAIMS, "greedy")
    await until(lambda: reported("ThinPoolHasRoom"), what="word that there is room")
    await on_lvm.until_running("late")


async def test_a_pool_grows_under_a_pod_that_writes_more_than_it_has(
    lvm_cluster: LvmCluster, make_pool: MakePool, on_lvm: Namespace
) -> None:
    pool = await make_pool(64 * MIB)
    thin = await lvm_cluster.make_class(thin="true", thinPool=pool, overprovisionRatio="4", thinPoolAutoextend="50%")
    await on_lvm.create(CLAIMS, claim("data", "160Mi", thin))
    script = "head -c 120M /dev/urandom > /data/file; sync; touch /data/done; exec sleep infinity"
    await on_lvm.create(PODS, pod("writer", {"/data": "data"}, script=script))
    await on_lvm.until_running("writer")
    staged = lvm_cluster.node.staging / (await on_lvm.until_bound("data"))["metadata"]["name"]
    await until((staged / "done").exists, what="all is written", seconds=60)
    assert (staged / "file").stat().st_size == 120 * MIB
    assert (await lvm_cluster.volume(pool)).size > 120 * MIB
    reported = of(pool, await lvm_cluster.told_of_node("ThinPoolExtended"))
    assert any(message.endswith("it got 32Mi for data") for message in reported)


async def test_a_thin_copy_is_there_at_once_and_takes_what_is_changed_only(
    lvm_cluster: LvmCluster, make_pool: MakePool, on_lvm: Namespace
) -> None:
    pool = await make_pool(128 * MIB)
    thin = await lvm_cluster.make_class(thin="true", thinPool=pool, overprovisionRatio="3")
    await on_lvm.create(CLAIMS, claim("source", "128Mi", thin))
    script = WRITE.format(size="64M")
    await on_lvm.create(PODS, pod("writer", {"/data": "source"}, script=script))
    await on_lvm.until_running("writer")
    name = (await on_lvm.until_bound("source"))["metadata"]["name"]
    await until((lvm_cluster.node.staging / name / "done").exists, what="the source is written")

    copy = {"dataSource": {"kind": "PersistentVolumeClaim", "name": "source"}}
    await on_lvm.create(CLAIMS, claim("copy", "128Mi", thin, **copy))
    await on_lvm.create(PODS, pod("reader", {"/data": "copy"}, script=CHECK))
    await on_lvm.until_running("reader")
    taken = (await lvm_cluster.volume(pool)).data_percent
    assert taken is not None
    assert taken < 75
