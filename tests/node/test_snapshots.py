"""Copies of volumes in use, made from thick snapshots: on real LVM, with pods that write meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import InUse, NotCloned
from daemon.kubelet.podfolder import PodFolder
from daemon.storage import cloning
from daemon.storage.freespace import Reservation
from daemon.storage.record import VolumeSpec, VolumeState
from daemon.storage.volumes import Volumes
from host import devicecopy, freezing
from lvm import Lvm
from lvm import errors as lvm_errors
from tests.node.conftest import ByHand, MakeDisks
from tests.node.snapshot_node import SECRET, SIZE, no_snapshots, secrets, small_node, used, write
from tests.node.test_cloning import clone_of
from tests.node.volume_node import MIB, Node, started

pytestmark = pytest.mark.device_mapper


@pytest.fixture
async def node(lvm: Lvm, make_disks: MakeDisks, by_hand: ByHand, tmp_path: Path) -> AsyncIterator[Node]:
    async with small_node(lvm, make_disks, by_hand, tmp_path) as node:
        yield node


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is copied while its filesystem is frozen."""
    monkeypatch.setattr(cloning, "FROZEN_SIZE", 0)


class Gate:
    """Copying waits here until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = asyncio.Event(), asyncio.Event()
        copy = devicecopy.copy

        async def gated(*arguments: Any, **keywords: Any) -> None:
            self.reached.set()
            await self.opened.wait()
            await copy(*arguments, **keywords)

        monkeypatch.setattr(devicecopy, "copy", gated)


async def short_of_room(node: Node, spare: int) -> tuple[Volumes, VolumeSpec, PodFolder, VolumeSpec]:
    """A daemon that has promised all but `spare` bytes of what is left when the clone is made; with it the source, the
    folder where that is in use, and the clone."""
    volumes = await started(node)
    source = node.spec(SIZE)
    folder = await used(node, volumes, source)
    clone = clone_of(source)
    left = node.free(volumes) - clone.size - spare
    volumes = node.volumes([Reservation("zzz", node.pool, left)])
    await volumes.start()
    return volumes, source, folder, clone


@pytest.mark.parametrize("layout", [{}, {"stripes": 2}, {"raid": "raid1"}], ids=["linear", "striped", "raid1"])
async def test_pods_come_go_and_write_while_their_volume_is_copied(
    node: Node, monkeypatch: pytest.MonkeyPatch, layout: dict[str, Any]
) -> None:
    volumes = await started(node)
    source = node.spec(SIZE, **layout)
    folder = await used(node, volumes, source)
    before = node.free(volumes)
    gate = Gate(monkeypatch)
    clone = replace(clone_of(source), parameters=node.spec().parameters)
    copying = asyncio.create_task(volumes.prepare(clone))
    await gate.reached.wait()

    (snapshot,) = volumes.inventory.snapshots
    assert snapshot.record.snapshot_of == source.pv
    assert snapshot.size == SIZE + 4 * MIB  # all that LVM takes: it can't overflow
    assert node.free(volumes) == before - SIZE - snapshot.size
    seen = await node.make_backend().inspect()
    assert [volume.pv for volume in seen.snapshots] == [snapshot.pv]
    assert {volume.pv for volume in seen.volumes} == {source.pv, clone.pv}
    assert not [*seen.foreign, *seen.damaged]
    assert {(pool.name, pool.free) for pool in seen.pools} == {(node.pool, node.free(volumes))}

    write(folder.path / "file", bytes(len(SECRET) * 4096))
    await volumes.unmount(folder)
    larger = replace(source, size=2 * SIZE)
    for refused in (volumes.expand(larger), volumes.reclaim(source.pv, source.uid, node.pool)):
        with pytest.raises(InUse, match=f"{source.pv} can't be .* while a copy of it is made"):
            await refused
    assert isinstance((await volumes.mount(larger, folder, read_only=False)).shortfall, InUse)
    write(folder.path / "file", bytes(len(SECRET) * 4096))
    gate.opened.set()
    assert (await copying).record.state is VolumeState.READY

    shown = node.folder(clone.pv)
    await volumes.mount(clone, shown, read_only=False)
    assert (shown.path / "file").read_bytes() == SECRET * 4096
    assert (folder.path / "file").read_bytes() == bytes(len(SECRET) * 4096)
    inventory = await no_snapshots(volumes)
    assert {volume.pv for volume in inventory.volumes} == {source.pv, clone.pv}
    assert (await volumes.expand(larger)).size == 2 * SIZE
    await volumes.unmount(folder)
    await reclaimed(node, volumes, source)


async def reclaimed(node: Node, volumes: Volumes, spec: VolumeSpec) -> None:
    async with asyncio.timeout(60):
        while not await volumes.reclaim(spec.pv, spec.uid, node.pool):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(("erase", "left"), [("zero", False), ("discard", False), ("none", True)])
async def test_the_disks_are_searched_for_what_the_snapshot_kept(
    node: Node, monkeypatch: pytest.MonkeyPatch, erase: str, left: bool
) -> None:
    volumes = await started(node)
    source = node.spec(SIZE, erase=erase)
    folder = await used(node, volumes, source)
    gate = Gate(monkeypatch)
    clone = clone_of(source)
    copying = asyncio.create_task(volumes.prepare(clone))
    await gate.reached.wait()
    write(folder.path / "file", bytes(len(SECRET) * 4096))
    assert secrets(node) > 4000  # only the snapshot has them now
    gate.opened.set()
    await copying
    await no_snapshots(volumes)
    shown = node.folder(clone.pv)
    await volumes.mount(clone, shown, read_only=False)
    write(shown.path / "file", bytes(len(SECRET) * 4096))
    assert bool(secrets(node)) is left


async def test_a_snapshot_that_overflows_fails_the_copy_and_not_the_source(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes, _, folder, clone = await short_of_room(node, 8 * MIB)
    with monkeypatch.context() as gated:
        gate = Gate(gated)
        copying = asyncio.create_task(volumes.prepare(clone))
        await gate.reached.wait()
        (snapshot,) = volumes.inventory.snapshots
        assert snapshot.size == 8 * MIB
        write(folder.path / "file", bytes(len(SECRET) * 4096))
        gate.opened.set()
        with pytest.raises(NotCloned, match=r"so much was written to .* the 8Mi of .* were not enough: this is tried"):
            await copying
    seen = (await no_snapshots(volumes)).volume(clone.pv)
    assert seen
    assert seen.record.state is VolumeState.COPYING
    write(folder.path / "file", SECRET * 4096)
    assert (await volumes.prepare(clone)).record.state is VolumeState.READY
    await volumes.unmount(folder)
    await no_snapshots(volumes)
    shown = node.folder(clone.pv)
    await volumes.mount(clone, shown, read_only=False)
    assert (shown.path / "file").read_bytes() == SECRET * 4096


async def test_what_overflows_with_the_last_bytes_is_no_copy(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing failed, but what was being read in that moment may have been newer than the rest."""
    volumes, _, folder, clone = await short_of_room(node, 8 * MIB)
    copy = devicecopy.copy

    async def late(*arguments: Any, **keywords: Any) -> None:
        await copy(*arguments, **keywords)
        write(folder.path / "file", bytes(len(SECRET) * 4096))

    monkeypatch.setattr(devicecopy, "copy", late)
    with pytest.raises(NotCloned, match="so much was written"):
        await volumes.prepare(clone)
    await no_snapshots(volumes)


async def test_without_space_for_a_snapshot_small_volumes_freeze_large_ones_wait(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes, source, folder, clone = await short_of_room(node, 4 * MIB)
    with pytest.raises(
        NotCloned, match=r"too large .* should have 8Mi for it .*, better 68Mi, and has 4Mi \(delete .*: stop the pods"
    ):
        await volumes.prepare(clone)
    assert not volumes.inventory.volume(clone.pv)
    assert not volumes.inventory.snapshots
    frozen: list[Path] = []
    freeze = freezing.freeze

    def noted(path: Path) -> None:
        frozen.append(path)
        freeze(path)

    monkeypatch.setattr(freezing, "freeze", noted)
    monkeypatch.setattr(cloning, "FROZEN_SIZE", SIZE)
    await volumes.prepare(clone)
    assert [path.name for path in frozen] == [source.pv]
    await volumes.unmount(folder)


async def test_without_the_kernel_module_it_is_as_without_room(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lacking(*_: object, **__: object) -> None:
        message = "snapshot: Required device-mapper target(s) not detected in your kernel."
        raise lvm_errors.explain("lvcreate", 3, ["modprobe: FATAL: Module dm-snapshot not found", message])

    monkeypatch.setattr(Lvm, "create_thick_snapshot", lacking)
    volumes = await started(node)
    source = node.spec(SIZE)
    folder = await used(node, volumes, source)
    with pytest.raises(NotCloned, match=r"loads the module dm_snapshot\): stop the pods"):
        await volumes.prepare(clone_of(source))
    await volumes.unmount(folder)
    await volumes.prepare(clone_of(source))


async def test_a_thin_volume_is_copied_to_a_thick_one_from_a_snapshot(
    lvm: Lvm, node: Node, by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand("lvcreate", "--type=thin-pool", "--size=100m", "--name=pool", node.pool)
    volumes = await started(node)
    source = node.spec(SIZE, thin=True, thin_pool="pool")
    folder = await used(node, volumes, source)
    gate = Gate(monkeypatch)
    clone = replace(clone_of(source), parameters=node.spec().parameters)
    copying = asyncio.create_task(volumes.prepare(clone))
    await gate.reached.wait()
    assert [volume.pool for volume in volumes.inventory.snapshots] == [node.pool]
    write(folder.path / "file", bytes(len(SECRET) * 4096))
    gate.opened.set()
    await copying
    await no_snapshots(volumes)
    shown = node.folder(clone.pv)
    await volumes.mount(clone, shown, read_only=False)
    assert (shown.path / "file").read_bytes() == SECRET * 4096


@pytest.mark.parametrize("erase", ["none", "zero"])
async def test_what_somebody_made_a_snapshot_of_is_neither_erased_nor_removed(
    node: Node, by_hand: ByHand, erase: str
) -> None:
    volumes = await started(node)
    source = node.spec(SIZE, erase=erase)
    await volumes.prepare(source)
    by_hand("lvcreate", "--snapshot", "--size=8m", "--name=backup", f"{node.pool}/{source.pv}")
    with pytest.raises(InUse, match=f"has a snapshot backup, .*lvremove {node.pool}/backup"):
        await volumes.reclaim(source.pv, source.uid, node.pool)
    assert volumes.inventory.volume(source.pv).record.state is VolumeState.READY  # type: ignore[union-attr]
    by_hand("lvremove", "--yes", f"{node.pool}/backup")
    await node.reclaim(volumes, source.pv)
