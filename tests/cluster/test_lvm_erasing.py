"""A claim is deleted: what its volume held is gone from the disks before its room is given to anybody else."""

import pytest

from daemon.storage.record import VolumeState, from_tags
from kube.resources import CLAIMS, EVENTS, PODS, VOLUMES
from tests.cluster.lvmcluster import MIB, ROOM, LvmCluster
from tests.cluster.published import has_room, room
from tests.cluster.test_command import on_node
from tests.cluster.test_observability import scrape
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until

pytestmark = pytest.mark.device_mapper

SECRET = "the last tenant's secret"
SIZE = 128 * MIB


async def used_by_a_tenant(cluster: LvmCluster, namespace: Namespace, storage_class: str) -> str:
    """A volume that a pod wrote secrets to; the pod and its claim are gone."""
    await namespace.create(CLAIMS, claim("data", "128Mi", storage_class))
    script = f'yes "{SECRET}" | head -c 16M > /data/file; sync; touch /data/done; exec sleep infinity'
    await namespace.create(PODS, pod("tenant", {"/data": "data"}, script=script))
    await namespace.until_running("tenant")
    name: str = (await namespace.until_bound("data"))["metadata"]["name"]
    await until((cluster.node.staging / name / "done").exists, what="the pod has written")
    assert cluster.found_on_disks(SECRET.encode()) > 500_000
    await namespace.delete(PODS, "tenant")
    await namespace.delete(CLAIMS, "data")
    return name


async def test_a_deleted_claim_leaves_nothing_although_the_daemon_is_killed(
    lvm_cluster: LvmCluster, on_lvm: Namespace
) -> None:
    sandbox, node = lvm_cluster.sandbox, lvm_cluster.node
    await until(lambda: has_room(sandbox, node.hostname, ROOM), what="nobody else has anything")
    name = await used_by_a_tenant(lvm_cluster, on_lvm, "elastic-local")

    async def remembered() -> int:
        record = from_tags((await lvm_cluster.volume(name)).tags)
        assert record
        return record.erased

    done = await until(remembered, what="the volume's record says how far it is")
    assert (await scrape(node.url)).sum("elastic_local_volumes", state=VolumeState.ERASING.value) == 1
    await node.daemon.kill()
    assert done < SIZE
    [row] = (await on_node(node, "volumes", "--output", "json")).json
    assert (row["volume"], row["state"]) == (name, "erasing")
    assert f"{100 * done // SIZE}% of its data is gone" in row["remark"]
    assert (await room(sandbox))[node.hostname] == ROOM - SIZE

    await node.daemon.start()
    await on_lvm.until_gone(VOLUMES, name)
    await until(lambda: has_room(sandbox, node.hostname, ROOM), what="its room is free")
    assert lvm_cluster.found_on_disks(SECRET.encode()) == 0
    assert (await scrape(node.url)).sum("elastic_local_erase_bytes_total") == SIZE - done
    events = await sandbox.api.list(EVENTS, field_selector=f"involvedObject.name={name}")
    assert {"VolumeErasing", "VolumeErased"} <= {event["reason"] for event in events}


async def test_with_discard_the_disk_itself_forgets(lvm_cluster: LvmCluster, on_lvm: Namespace) -> None:
    name = await used_by_a_tenant(lvm_cluster, on_lvm, await lvm_cluster.make_class(erase="discard"))
    await on_lvm.until_gone(VOLUMES, name)
    assert lvm_cluster.found_on_disks(SECRET.encode()) == 0
