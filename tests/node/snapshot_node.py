"""A node of which volumes are copied from snapshots, with disks small enough to be searched."""

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from daemon.kubelet.podfolder import PodFolder
from daemon.storage.inventory import Inventory
from daemon.storage.record import VolumeSpec
from daemon.storage.volumes import Volumes
from lvm import Lvm
from tests.node.conftest import ByHand, MakeDisks, remove_group
from tests.node.volume_node import MIB, Node, lvm_backend

SIZE = 64 * MIB
SECRET = b"what the source held once, again. "[:32] * 128


@contextlib.asynccontextmanager
async def small_node(lvm: Lvm, make_disks: MakeDisks, by_hand: ByHand, root: Path) -> AsyncIterator[Node]:
    """With one group of two disks."""
    group = f"snapshots-{uuid.uuid4().hex[:8]}"
    await lvm.create_group(group, make_disks(2, 260 * MIB))
    node = Node(root, lambda: lvm_backend(lvm, group, thin=False))
    yield node
    node.unmount_all()
    await remove_group(by_hand, group)


def secrets(node: Node) -> int:
    """How many blocks of the disks show what the source held once."""
    count = 0
    for path in node.root.glob("disk-*"):
        with path.open("rb") as file:
            while content := file.read(4 * MIB):
                count += content.count(SECRET)
    return count


def write(path: Path, content: bytes) -> None:
    """Over what the file holds, and to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.pwrite(descriptor, content, 0)
    os.fsync(descriptor)
    os.close(descriptor)


async def used(node: Node, volumes: Volumes, spec: VolumeSpec) -> PodFolder:
    folder = node.folder(spec.pv)
    await volumes.mount(spec, folder, read_only=False)
    write(folder.path / "file", SECRET * 4096)
    return folder


async def no_snapshots(volumes: Volumes) -> Inventory:
    """What the node has when the last of them is gone. It must be what a fresh look finds."""
    async with asyncio.timeout(60):
        while volumes.inventory.snapshots:
            await asyncio.sleep(0.02)
    noted = volumes.inventory
    await volumes.refresh()
    seen = volumes.inventory
    assert not [*seen.snapshots, *seen.foreign, *seen.damaged]
    assert {(pool.name, pool.free) for pool in noted.pools} == {(pool.name, pool.free) for pool in seen.pools}
    return seen
