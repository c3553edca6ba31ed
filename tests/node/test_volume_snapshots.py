"""Snapshots that users asked for: volumes of their own, which outlive what they were taken of."""

import asyncio
import time
import uuid
from dataclasses import replace

import pytest

from contract import snapshot
from contract.volume import RETAIN, Original
from daemon.errors import Foreign
from daemon.storage.inventory import Volume
from daemon.storage.record import VolumeSpec, VolumeState, from_fields, from_tags
from daemon.storage.volumes import Volumes
from tests.node.volume_node import MIB, Node, on, started


def snapshot_spec(node: Node, source: VolumeSpec, policy: str = "Delete") -> VolumeSpec:
    uid = str(uuid.uuid4())
    return replace(
        node.spec(source.size, pv=snapshot.volume_name(uid), uid=uid, policy=policy),
        original=Original(source.pv, source.uid),
        content=f"snapcontent-{uid}",
    )


def restored_spec(node: Node, of: VolumeSpec, size: int) -> VolumeSpec:
    return replace(node.spec(size, pv=f"pvc-{uuid.uuid4()}", uid="restored"), original=Original(of.pv, of.uid))


async def removed(node: Node, volumes: Volumes, spec: VolumeSpec) -> None:
    async with asyncio.timeout(60):
        while not await volumes.reclaim(spec.pv, spec.uid, node.pool):
            await asyncio.sleep(0.02)


def volume_of(volumes: Volumes, spec: VolumeSpec) -> Volume:
    volume = volumes.inventory.volume(spec.pv)
    assert volume
    return volume


@on("loop", "lvm-thick", "lvm-thin")
async def test_it_outlives_its_source(node: Node) -> None:
    volumes, begun = await started(node), int(time.time())
    source, folder = node.spec(), node.folder()
    await volumes.mount(source, folder, read_only=False)
    (folder.path / "word").write_text("first")
    taken = snapshot_spec(node, source)
    made = await volumes.prepare(taken)
    (folder.path / "word").write_text("second")
    assert made.record.state is VolumeState.READY
    assert made.record.content == taken.content
    assert begun <= made.record.taken <= time.time()
    await volumes.unmount(folder)
    await node.reclaim(volumes)

    daemon = await started(node)  # one that starts anew reads the same
    assert volume_of(daemon, taken).record == made.record
    larger, shown = restored_spec(node, taken, 48 * MIB), None
    shown = node.folder(larger.pv)
    await daemon.mount(larger, shown, read_only=False)
    assert (shown.path / "word").read_text() == "first"
    assert volume_of(daemon, larger).record.content == ""
    await removed(node, daemon, taken)
    assert daemon.inventory.volume(taken.pv) is None
    assert (shown.path / "word").read_text() == "first"
    await daemon.unmount(shown)


async def test_one_that_was_retained_is_handed_over(loop_node: Node) -> None:
    node = loop_node
    volumes = await started(node)
    await volumes.prepare(node.spec())
    taken = snapshot_spec(node, node.spec())
    made = await volumes.prepare(taken)
    await volumes.retain(taken.pv, taken.uid, node.pool, made=True)
    to = replace(made.record, uid="of-another-content", content="by-hand", policy="Delete")
    await volumes.transfer(taken.pv, taken.uid, to)
    record = volume_of(await started(node), taken).record
    assert (record.uid, record.content, record.policy, record.taken) == (
        "of-another-content",
        "by-hand",
        "Delete",
        made.record.taken,
    )
    with pytest.raises(Foreign, match="by-hand"):
        await volumes.transfer(taken.pv, taken.uid, to)
    await removed(node, volumes, replace(taken, uid="of-another-content"))


@on("loop", "lvm-thick")
async def test_one_that_was_cut_off_is_made_anew(node: Node) -> None:
    """And never shown: it is whole or not ready."""
    volumes = await started(node)
    source, folder = node.spec(), node.folder()
    await volumes.mount(source, folder, read_only=False)
    (folder.path / "word").write_text("first")
    await volumes.unmount(folder)
    taken = snapshot_spec(node, source)
    backend = node.make_backend()
    partial = await backend.create(taken)
    await backend.rewrite(partial, replace(taken.record(VolumeState.COPYING), taken=1, cluster=volumes.cluster))
    daemon = await started(node)
    made = await daemon.prepare(taken)
    assert made.record.state is VolumeState.READY
    assert made.record.taken > 1
    restored = restored_spec(node, taken, 32 * MIB)
    shown = node.folder(restored.pv)
    await daemon.mount(restored, shown, read_only=False)
    assert (shown.path / "word").read_text() == "first"
    await daemon.unmount(shown)


def test_its_record_is_read_back(loop_node: Node) -> None:
    record = replace(
        snapshot_spec(loop_node, loop_node.spec(), RETAIN).record(VolumeState.READY), cluster="c", taken=17
    )
    assert from_fields(record.to_fields()) == record
    assert from_tags(record.to_tags()) == record
