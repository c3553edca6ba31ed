"""A claim on LVM asks for more while its pod runs."""

import os

import pytest

from kube.resources import CLAIMS, PODS
from tests.cluster.lvmcluster import CHECK, EXTENT, MIB, ROOM, WRITE, LvmCluster
from tests.cluster.test_growing import ask, until_grown
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until

pytestmark = pytest.mark.device_mapper


async def test_a_mounted_filesystem_grows_by_extents_but_not_into_the_reserve(
    lvm_cluster: LvmCluster, on_lvm: Namespace
) -> None:
    """ext4, which takes the full rights of a privileged daemon."""
    quick = await lvm_cluster.make_class(erase="none")
    await on_lvm.create(CLAIMS, claim("neighbour", "500Mi", quick))
    await on_lvm.create(PODS, pod("neighbour", {"/data": "neighbour"}))
    await on_lvm.create(CLAIMS, claim("data", "100Mi", quick))
    script = WRITE.format(size="50M")
    await on_lvm.create(PODS, pod("user", {"/data": "data"}, script=script))
    await on_lvm.until_running("neighbour")
    await on_lvm.until_running("user")
    name = (await on_lvm.until_bound("data"))["metadata"]["name"]
    staged = lvm_cluster.node.staging / name
    await until((staged / "done").exists, what="the pod has written")
    before = os.statvfs(staged)

    await ask(on_lvm, "150Mi")
    await until_grown(on_lvm, "150Mi")
    assert (await lvm_cluster.volume(name)).size == 38 * EXTENT
    after = os.statvfs(staged)
    assert (after.f_blocks - before.f_blocks) * after.f_frsize > 48 * MIB

    assert ROOM == (500 + 152 + 52) * MIB
    await ask(on_lvm, "250Mi")
    message = await on_lvm.until_event("data", "VolumeResizeFailed", "the claim asks for 250Mi, 100Mi more than it has")
    assert f"has 52Mi left in pool {lvm_cluster.group}" in message
    assert (await lvm_cluster.volume(name)).size == 38 * EXTENT

    await on_lvm.delete(PODS, "neighbour")
    await on_lvm.delete(CLAIMS, "neighbour")
    await until_grown(on_lvm, "250Mi")
    assert (await lvm_cluster.volume(name)).size == 63 * EXTENT
    await on_lvm.delete(PODS, "user")
    await on_lvm.until_gone(PODS, "user")
    await on_lvm.create(PODS, pod("next", {"/data": "data"}, script=CHECK))
    await on_lvm.until_running("next")
