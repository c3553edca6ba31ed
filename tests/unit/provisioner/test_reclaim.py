"""Released volumes: which are deleted, and which are not."""

import asyncio
import re

import pytest

from kube.errors import Json
from kube.resources import CLAIMS, VOLUMES
from provisioner.metrics import Metrics
from tests.memorycluster import MemoryCluster
from tests.unit.provisioner.leader import PV, bind, does, figures, leading, release, volume
from tests.unit.provisioner.objects import claim_body
from tests.waiting import until


async def released(cluster: MemoryCluster, metrics: Metrics | None = None) -> None:
    """A volume whose claim came and went."""
    cluster.put(CLAIMS, claim_body())
    async with leading(cluster, metrics):
        await until(lambda: volume(cluster))
        bind(cluster)
    cluster.remove(CLAIMS, "data", "default")
    release(cluster)


async def test_a_released_volume_is_deleted(cluster: MemoryCluster) -> None:
    await released(cluster)
    metrics = Metrics()
    async with leading(cluster, metrics):
        await until(lambda: "deletionTimestamp" in (volume(cluster) or {})["metadata"])
    assert figures(metrics)["controller_persistentvolume_delete_total"] == 1


async def test_a_released_volume_whose_claim_is_alive_is_kept_and_reported(cluster: MemoryCluster) -> None:
    await released(cluster)
    cluster.put(CLAIMS, {**claim_body(), "spec": {**claim_body()["spec"], "volumeName": PV}})
    async with leading(cluster):
        await until(lambda: cluster.messages("VolumeFailedDelete"))
    assert "deletionTimestamp" not in (volume(cluster) or {})["metadata"]
    assert "exists with the same uid" in cluster.messages("VolumeFailedDelete")[0]


async def test_of_a_volume_whose_claim_has_another_one_is_said_how_it_goes(cluster: MemoryCluster) -> None:
    """Who deleted the claim would lose that other one."""
    await released(cluster)
    cluster.put(CLAIMS, {**claim_body(), "spec": {**claim_body()["spec"], "volumeName": "by-hand"}})
    async with leading(cluster):
        await until(lambda: cluster.messages("VolumeFailedDelete"))
    assert "deletionTimestamp" not in (volume(cluster) or {})["metadata"]
    assert "delete its PersistentVolume" in cluster.messages("VolumeFailedDelete")[0]
    assert "delete the claim" not in cluster.messages("VolumeFailedDelete")[0]


@pytest.mark.parametrize("reference", [None, {"namespace": "default", "name": "data"}])
async def test_a_volume_that_is_offered_to_the_next_claim_is_not_deleted(
    cluster: MemoryCluster, reference: Json | None
) -> None:
    """An administrator takes the claimRef of a retained volume off, or names the next claim, and sets policy Delete in
    the same patch: it is called Released until the control plane has seen that."""
    await released(cluster)
    body = volume(cluster)
    assert body
    cluster.put(VOLUMES, {**body, "spec": {**body["spec"], "claimRef": reference}})
    cluster.put(VOLUMES, {**body, "metadata": {**body["metadata"], "name": "other", "uid": "other"}})
    async with leading(cluster):
        await until(lambda: "deletionTimestamp" in (volume(cluster, "other") or {})["metadata"])
    assert ("delete", "persistentvolumes", PV) not in cluster.requests
    assert "deletionTimestamp" not in (volume(cluster) or {})["metadata"]


async def test_a_namesake_of_the_claim_does_not_keep_the_volume(cluster: MemoryCluster) -> None:
    await released(cluster)
    cluster.put(CLAIMS, claim_body(uid="second", node=""))
    async with leading(cluster):
        await until(lambda: "deletionTimestamp" in (volume(cluster) or {})["metadata"])


async def test_a_policy_that_became_retain_at_the_last_moment_is_obeyed(cluster: MemoryCluster) -> None:
    await released(cluster)

    def retain() -> None:
        body = volume(cluster)
        assert body
        cluster.put(VOLUMES, {**body, "spec": {**body["spec"], "persistentVolumeReclaimPolicy": "Retain"}})

    cluster.before["delete", "persistentvolumes"] = [does(retain)]
    async with leading(cluster) as term:
        await until(lambda: ("delete", "persistentvolumes", PV) in cluster.requests)
        await until(lambda: (seen := term.cache.volumes.get(PV)) and seen.reclaim_policy == "Retain")
        await asyncio.sleep(0)
    assert "deletionTimestamp" not in (volume(cluster) or {})["metadata"]
    assert not cluster.messages("VolumeFailedDelete")


async def test_a_volume_that_no_node_would_clean_up_is_not_deleted_silently(cluster: MemoryCluster) -> None:
    await released(cluster)
    body = volume(cluster)
    assert body
    cluster.put(VOLUMES, {**body, "metadata": {**body["metadata"], "finalizers": []}})
    metrics = Metrics()
    async with leading(cluster, metrics):
        await until(lambda: cluster.messages("VolumeFailedDelete"))
    assert volume(cluster) is not None
    assert re.search(r"add the finalizer .* node host-n1", cluster.messages("VolumeFailedDelete")[0])
    assert figures(metrics)["controller_persistentvolume_delete_failed_total"] >= 1
