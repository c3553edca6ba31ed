"""A disk fails under running pods: each volume says what ails it, and those that have a mirror serve on."""

import pytest

from kube.resources import CLAIMS, EVENTS, PODS
from tests.cluster.lvmcluster import LvmCluster
from tests.cluster.test_observability import scrape
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until

pytestmark = pytest.mark.device_mapper


async def test_a_disk_fails_and_comes_back(lvm_cluster: LvmCluster, on_lvm: Namespace) -> None:
    sandbox, node = lvm_cluster.sandbox, lvm_cluster.node
    mirrored = await lvm_cluster.make_class(raid="raid1", erase="none")
    await on_lvm.create(CLAIMS, claim("data", "64Mi", mirrored))
    script = """
        until test -e /data/go; do sleep 0.1; done
        head -c 8M /dev/urandom > /data/file; sync; touch /data/done
        exec sleep infinity
    """
    await on_lvm.create(PODS, pod("user", {"/data": "data"}, script=script))
    await on_lvm.until_running("user")
    name = (await on_lvm.until_bound("data"))["metadata"]["name"]

    async def reported(reason: str) -> list[str]:
        selector = f"involvedObject.name={name},reason={reason}"
        return [event["message"] for event in await sandbox.api.list(EVENTS, field_selector=selector)]

    lvm_cluster.bay.fail()
    try:
        (node.staging / name / "go").touch()
        await until((node.staging / name / "done").exists, what="the pod has written on what is left")
        [words] = await until(lambda: reported("VolumeUnhealthy"), what="word of the mirror")
        assert "is raid-degraded: its mirror lost a leg, the data is there once" in words
        assert (await scrape(node.url)).sum("elastic_local_unhealthy_volumes", state="raid-degraded") == 1
    finally:
        lvm_cluster.bay.mend()
    lvm_cluster.by_hand("lvchange", "--refresh", f"{lvm_cluster.group}/{name}")
    await until(lambda: reported("VolumeHealthy"), what="word that it is well again")
