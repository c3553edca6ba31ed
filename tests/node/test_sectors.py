"""Disks with sectors of 4096 bytes (4Kn), and what was made on those of 512."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from daemon.backends.loop import LoopBackend
from host import blockdevice, loopdevice, mounting
from tests.node.conftest import MakeDisks
from tests.node.volume_node import MIB, Node, started

_DISK = 700 * MIB


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
async def test_images_are_used_on_another_disk(
    make_disks: MakeDisks, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """Moved to it, or when the kernel learns to give loop devices the sectors of the disk below."""
    (disk,) = make_disks(1, _DISK, 4096)
    small, large = tmp_path / "small", tmp_path / "large"
    mounted(disk, large, request)
    size = 320 * MIB
    node = Node(tmp_path, lambda: LoopBackend(small))
    volumes = await started(node)
    folder = node.folder()
    await volumes.mount(node.spec(size, filesystem=kind), folder, read_only=False)
    (folder.path / "word").write_text("precious")
    await volumes.unmount(folder)
    shutil.copytree(small, large / "volumes")

    node.make_backend = lambda: LoopBackend(large / "volumes")
    volumes = await started(node)
    await volumes.mount(node.spec(size, filesystem=kind), folder, read_only=False)
    assert (folder.path / "word").read_text() == "precious"
    await volumes.unmount(folder)


def test_a_file_that_shares_blocks_is_the_same_device(
    make_disks: MakeDisks, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """As cp makes one of an image on xfs."""
    (disk,) = make_disks(1, _DISK)
    folder = tmp_path / "xfs"
    mounted(disk, folder, request)
    image = folder / "image"
    image.write_bytes(os.urandom(MIB))
    with loopdevice.attached(image) as device:
        assert blockdevice.sector_size(device) == 512
    subprocess.run(["cp", "--reflink=always", image, folder / "copy"], check=True)
    with loopdevice.attached(image) as device:
        assert blockdevice.sector_size(device) == 512


def mounted(disk: str, folder: Path, request: pytest.FixtureRequest) -> None:
    """xfs, on the folder until the test ends."""
    folder.mkdir()
    subprocess.run(["mkfs.xfs", "-q", disk], check=True)
    mounting.mount("xfs", Path(disk), folder, ())
    request.addfinalizer(lambda: mounting.unmount(folder, detach=True))
