"""The CSI driver with real mounts, of images on loop devices: what the calls of a kubelet leave on the node."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from grpclib import Status

from contract import names
from daemon.backends.loop import LoopBackend
from daemon.csi.proto.csi_pb2 import VolumeUsage
from host import blockdevice, mounttable
from kube.resources import VOLUMES
from tests.unit.daemon.csi.csinode import MODE, CsiNode, capability, csi_node, refused
from tests.unit.daemon.nodecluster import MI


@pytest.fixture
async def csi(tmp_path: Path) -> AsyncIterator[CsiNode]:
    async with csi_node(tmp_path, backend=LoopBackend, mounts=True) as node:
        yield node
        for uid in node.pods:
            for volume in node.parts.volume_names():
                await node.node.NodeUnpublishVolume(node.unpublish(uid, volume))
        assert not [mount for mount in mounttable.read() if mount.path.startswith(str(node.kubelet))]


def mounts_of(csi: CsiNode, uid: str, volume: str = "pv") -> list[mounttable.Mount]:
    return [mount for mount in mounttable.read() if mount.path == str(csi.target(uid, volume))]


async def published(csi: CsiNode, volume: str = "pv") -> str:
    """The uid of a pod that has the volume."""
    uid = await csi.pod(volume)
    await csi.node.NodeStageVolume(csi.stage(volume))
    await csi.node.NodePublishVolume(csi.publish(uid, volume))
    return uid


async def test_a_volume_is_mounted_once_for_each_pod_and_keeps_its_data(csi: CsiNode) -> None:
    await csi.volume(mi=20)
    one, two = await published(csi), await published(csi)
    (csi.target(one) / "file").write_text("kept")
    assert (csi.target(two) / "file").read_text() == "kept"
    await csi.node.NodePublishVolume(csi.publish(one))
    assert len(mounts_of(csi, one)) == 1, "a second call mounts nothing on top"
    status, words = await refused(csi.node.NodeUnstageVolume(csi.unstage()))
    assert status is Status.FAILED_PRECONDITION
    assert "delete the pod" in words
    for uid in (one, two):
        await csi.node.NodeUnpublishVolume(csi.unpublish(uid))
        assert not csi.target(uid).exists()
    await csi.node.NodeUnstageVolume(csi.unstage())
    assert (csi.target(await published(csi)) / "file").read_text() == "kept"


async def test_a_read_only_mount_is_not_turned_into_a_writable_one(csi: CsiNode) -> None:
    await csi.volume(mi=20)
    uid = await csi.pod()
    await csi.node.NodeStageVolume(csi.stage())
    await csi.node.NodePublishVolume(csi.publish(uid, readonly=True))
    [mount] = mounts_of(csi, uid)
    assert "ro" in mount.options
    status, words = await refused(csi.node.NodePublishVolume(csi.publish(uid, readonly=False)))
    assert status is Status.ALREADY_EXISTS
    assert "unpublish it first" in words
    assert mounts_of(csi, uid) == [mount]


async def test_a_pod_keeps_its_mount_when_a_new_kubelet_asks_for_it_and_fails(csi: CsiNode) -> None:
    """A kubelet that starts anew stages and publishes all that is mounted once more."""
    await csi.volume(mi=20)
    uid = await published(csi)
    [mount] = mounts_of(csi, uid)
    [record] = csi.parts.data.rglob("pv.json")
    content = record.read_text()
    record.write_text("{")
    await csi.parts.volumes.refresh()
    status, _ = await refused(csi.node.NodePublishVolume(csi.publish(uid)))
    assert status is Status.FAILED_PRECONDITION
    assert mounts_of(csi, uid) == [mount]
    newcomer = await csi.pod()
    await refused(csi.node.NodePublishVolume(csi.publish(newcomer)))
    assert not csi.target(newcomer).exists()
    record.write_text(content)
    await csi.parts.volumes.refresh()
    await csi.node.NodePublishVolume(csi.publish(uid))
    assert mounts_of(csi, uid) == [mount]


async def test_a_volume_for_one_pod_is_published_for_one(csi: CsiNode) -> None:
    await csi.volume(mi=20, access_modes=["ReadWriteOncePod"])
    alone = capability(MODE.SINGLE_NODE_SINGLE_WRITER)
    first, second = await csi.pod(), await csi.pod()
    await csi.node.NodeStageVolume(csi.stage(volume_capability=alone))
    await csi.node.NodePublishVolume(csi.publish(first, volume_capability=alone))
    await csi.node.NodePublishVolume(csi.publish(first, volume_capability=alone))
    status, words = await refused(csi.node.NodePublishVolume(csi.publish(second, volume_capability=alone)))
    assert status is Status.FAILED_PRECONDITION
    assert "is for one pod" in words
    assert not csi.target(second).exists()
    await csi.node.NodeUnpublishVolume(csi.unpublish(first))
    await csi.node.NodePublishVolume(csi.publish(second, volume_capability=alone))
    assert mounts_of(csi, second)


async def test_statistics_are_those_of_the_mounted_filesystem(csi: CsiNode) -> None:
    await csi.volume(mi=20)
    uid = await csi.pod()
    assert (await refused(csi.node.NodeGetVolumeStats(csi.stats(uid))))[0] is Status.NOT_FOUND
    await csi.node.NodeStageVolume(csi.stage())
    await csi.node.NodePublishVolume(csi.publish(uid))
    (csi.target(uid) / "file").write_bytes(os.urandom(MI))
    os.sync()
    found = await csi.node.NodeGetVolumeStats(csi.stats(uid))
    now = os.statvfs(csi.target(uid))
    usage = {each.unit: each for each in found.usage}
    size = usage[VolumeUsage.BYTES]
    assert size.total == now.f_blocks * now.f_frsize
    assert size.available == now.f_bavail * now.f_frsize
    assert size.used == (now.f_blocks - now.f_bfree) * now.f_frsize >= MI
    inodes = usage[VolumeUsage.INODES]
    assert (inodes.total, inodes.used) == (now.f_files, now.f_files - now.f_ffree)
    assert not found.volume_condition.abnormal
    assert found.volume_condition.message


async def test_what_is_wrong_with_a_volume_is_its_condition(csi: CsiNode) -> None:
    await csi.volume("ill", mi=20)
    found = await csi.node.NodeGetVolumeStats(csi.stats(await published(csi, "ill"), "ill"))
    assert found.volume_condition.abnormal
    assert found.volume_condition.message


async def test_a_staged_volume_grows_for_its_next_pod(csi: CsiNode) -> None:
    """Of ext4, which may be grown under a pod by the fully privileged only."""
    await csi.volume(mi=20, size=str(20 * MI))
    uid = await published(csi)
    before = os.statvfs(csi.target(uid)).f_blocks
    await csi.node.NodeUnpublishVolume(csi.unpublish(uid))
    granted = {"metadata": {"annotations": {names.GRANTED_ANNOTATION: str(40 * MI)}}}
    await csi.parts.cluster.patch(VOLUMES, "pv", granted)
    for _ in range(2):
        request = csi.expand(uid, size=40 * MI, volume_path=str(csi.staged()))
        assert (await csi.node.NodeExpandVolume(request)).capacity_bytes == 40 * MI
    await csi.node.NodePublishVolume(csi.publish(uid))
    assert os.statvfs(csi.target(uid)).f_blocks > before


async def test_calls_of_many_pods_cross(csi: CsiNode) -> None:
    await csi.volume(mi=20)
    uids = [await csi.pod() for _ in range(6)]
    await csi.node.NodeStageVolume(csi.stage())
    await asyncio.gather(*(csi.node.NodePublishVolume(csi.publish(uid)) for uid in uids for _ in range(2)))
    going, staying = uids[:3], uids[3:]
    await asyncio.gather(
        *(csi.node.NodeUnpublishVolume(csi.unpublish(uid)) for uid in going for _ in range(2)),
        *(csi.node.NodePublishVolume(csi.publish(uid)) for uid in staying for _ in range(2)),
    )
    assert all(len(mounts_of(csi, uid)) == 1 for uid in staying)
    assert not any(csi.target(uid).exists() for uid in going)


async def test_a_device_is_shown_at_the_kubelets_path_and_counted_at_both(csi: CsiNode) -> None:
    await csi.volume(mi=20, mode="Block")
    uid, block = await csi.pod(), capability(block=True)
    device = csi.kubelet / names.CSI_DEVICES / "pv" / uid
    device.parent.mkdir(parents=True)
    await csi.node.NodeStageVolume(csi.stage(volume_capability=block))
    request = csi.publish(uid, target_path=str(device), volume_capability=block)
    for _ in range(2):
        await csi.node.NodePublishVolume(request)
    assert blockdevice.is_block_device(device)
    mapped = csi.kubelet / Path(names.CSI_DEVICES).parent / "pv" / "dev" / uid
    for path in (device, mapped):
        [usage] = (await csi.node.NodeGetVolumeStats(csi.stats(uid, volume_path=str(path)))).usage
        assert (usage.unit, usage.total) == (VolumeUsage.BYTES, 20 * MI)
    elsewhere = csi.stats(uid, "other", volume_path=str(mapped))
    assert (await refused(csi.node.NodeGetVolumeStats(elsewhere)))[0] is Status.NOT_FOUND
    for _ in range(2):
        await csi.node.NodeUnpublishVolume(csi.unpublish(uid, target_path=str(device)))
    assert not device.exists()
    await csi.node.NodeUnstageVolume(csi.unstage())
