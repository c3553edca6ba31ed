"""A thin pool that really fills up: what it does to its volumes, to new ones, and how it is let grow."""

import errno
import hashlib
import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from daemon.backends.deviceclassbackend import DeviceClassBackend
from daemon.cluster.capacity import AvailableCapacity, available_capacity
from daemon.cluster.events import NodeEvents
from daemon.cluster.thinpoolmonitor import ThinPoolMonitor
from daemon.errors import NoSpace, PoolFull
from daemon.storage.deviceclasses import LVM, DeviceClass
from daemon.storage.freespace import Reservation
from daemon.storage.inventory import Pool
from daemon.storage.thinpools import Level, PoolExtension, level
from daemon.storage.volumes import Volumes
from kube.events import Recorder
from lvm import Lvm
from tests.agreeing import Agreeing
from tests.node.conftest import ByHand
from tests.node.volume_node import MIB, Node, lvm_backend

pytestmark = pytest.mark.device_mapper

POOL = 128 * MIB
RATIO = 4.0


@pytest.fixture
async def node(lvm: Lvm, volume_group: str, by_hand: ByHand, tmp_path: Path) -> AsyncIterator[Node]:
    """Its thin pool is small, and so its group has plenty left. Writes to a full one fail at once, not in a minute."""
    await lvm.create_pool(volume_group, "pool", POOL)
    by_hand("lvchange", "--errorwhenfull=y", f"{volume_group}/pool")
    node = Node(tmp_path, lambda: lvm_backend(lvm, volume_group, thin=True))
    yield node
    node.unmount_all()


def pool_of(volumes: Volumes, node: Node) -> Pool:
    pool = volumes.inventory.pool(node.pool)
    assert pool
    return pool


def write_on(path: Path) -> None:
    """Until it fails."""
    with path.open("wb") as file:
        while True:
            file.write(b"\xa5" * 4 * MIB)
            file.flush()
            os.fsync(file.fileno())


async def test_a_pool_that_is_really_full_hurts_nobody_who_was_not_writing(node: Node) -> None:
    volumes = node.volumes()
    await volumes.start()
    quiet = node.spec(32 * MIB, overprovision_ratio=RATIO)
    greedy = node.spec(256 * MIB, pv=f"{node.pv}-greedy", overprovision_ratio=RATIO, thin_pool_autoextend=100)
    calm, wild = node.folder(), node.folder(greedy.pv)
    await volumes.mount(quiet, calm, read_only=False)
    await volumes.mount(greedy, wild, read_only=False)
    data = os.urandom(4 * MIB)
    (calm.path / "data").write_bytes(data)
    os.sync()
    assert level(pool_of(volumes, node)) is Level.OK

    # What fsync(2) makes of the pool's error: Linux 6.1 the one, 6.12 the other.
    with pytest.raises(OSError, match=f"{os.strerror(errno.EIO)}|{os.strerror(errno.ENOSPC)}"):
        write_on(wild.path / "data")
    assert (wild.path / "data").stat().st_size > 0.6 * POOL

    await volumes.refresh()
    pool = pool_of(volumes, node)
    assert level(pool) is Level.CRITICAL
    assert pool.available(RATIO) > 200 * MIB  # on paper
    assert available_capacity(pool, quiet.parameters, volumes.inventory.volumes, ()) == AvailableCapacity(0, 0, 0)
    late = node.spec(32 * MIB, pv=f"{node.pv}-late", overprovision_ratio=RATIO)
    before = {volume.pv for volume in volumes.inventory.volumes}
    with pytest.raises(PoolFull, match=f"thin pool {node.pool} of this node, which is nearly full: delete volumes"):
        await volumes.prepare(late)
    with pytest.raises(PoolFull):
        await volumes.expand(node.spec(64 * MIB, overprovision_ratio=RATIO))
    await volumes.refresh()
    assert {volume.pv for volume in volumes.inventory.volumes} == before
    assert (calm.path / "data").read_bytes() == data

    recovered: list[str] = []
    monitor = ThinPoolMonitor(volumes, {node.pool}, NodeEvents(cast(Recorder, None)), lambda: recovered.append("yes"))
    await monitor.check()
    assert pool_of(volumes, node).size == 2 * POOL
    assert level(pool_of(volumes, node)) is Level.OK
    await volumes.prepare(late)

    # What failed to be written is gone, and nothing else: both are sound, also to a full check.
    for folder in (calm, wild):
        await volumes.unmount(folder)
        device = Path("/dev", node.pool.split("/")[0], folder.name)
        checked = subprocess.run(["e2fsck", "-p", device], capture_output=True, text=True, check=False)
        assert checked.returncode in (0, 1), checked.stdout
        subprocess.run(["e2fsck", "-f", "-n", device], capture_output=True, check=True)
    await volumes.mount(quiet, calm, read_only=False)
    await volumes.mount(greedy, wild, read_only=False)
    assert hashlib.sha256((calm.path / "data").read_bytes()).digest() == hashlib.sha256(data).digest()
    with (wild.path / "more").open("wb") as file:
        file.write(b"\xa5" * 8 * MIB)
        os.fsync(file.fileno())


async def test_a_pool_grows_by_what_nobody_was_promised_and_no_more(node: Node, lvm: Lvm) -> None:
    """The reserve and a thick volume that is promised but not made keep their room."""
    group = node.pool.split("/")[0]
    state = await lvm.report()
    free = state.group(group).free  # type: ignore[union-attr]
    spare = 20 * MIB
    promised, reserve = free // 2, free - free // 2 - spare
    here = DeviceClass("default", LVM, group=group, thin=True, thin_pool="pool", reserve=reserve)
    backend = DeviceClassBackend({"default": node.make_backend()}, {"default": here})
    volumes = Volumes(
        backend, node.staging, Agreeing(), reservations=lambda: [Reservation("pv-thick", group, promised)]
    )
    await volumes.start()
    folder = node.folder()
    # Promised well beyond its size, for the pool keeps the reserve back as well.
    spec = node.spec(2 * POOL, overprovision_ratio=100.0, thin_pool_autoextend=100)
    await volumes.mount(spec, folder, read_only=False)
    assert (await volumes.enlarge(node.pool)).taken == 0  # it has room
    (folder.path / "data").write_bytes(os.urandom(104 * MIB))
    os.sync()

    got = await volumes.enlarge(node.pool)
    assert 0 < got.data <= spare
    assert got.metadata == 0
    pool = pool_of(volumes, node)
    assert pool.size == POOL + got.data
    known = [replace(pool, thin=None) for pool in volumes.inventory.pools]  # how full they are changes by itself
    await volumes.refresh()
    assert [replace(pool, thin=None) for pool in volumes.inventory.pools] == known
    left = volumes.inventory.pool(group)
    assert left
    assert left.free - promised - reserve < pool.granularity * 2
    assert left.free >= promised + reserve
    with (folder.path / "more").open("wb") as file:
        file.write(os.urandom(14 * MIB))
        os.fsync(file.fileno())
    assert (await volumes.enlarge(node.pool)).taken == 0
    with pytest.raises(NoSpace):
        await volumes.prepare(node.spec(2 * pool.granularity, pv=f"{node.pv}-thick", thin=False))


async def test_metadata_grows_too(node: Node) -> None:
    backend = node.make_backend()
    volumes = node.volumes()
    await volumes.start()
    before = pool_of(volumes, node)
    assert before.thin
    await backend.extend_pool(before, PoolExtension(metadata=before.thin.metadata_size))
    await volumes.refresh()
    after = pool_of(volumes, node)
    assert after.thin
    assert after.thin.metadata_size == 2 * before.thin.metadata_size
    assert after.size == before.size
