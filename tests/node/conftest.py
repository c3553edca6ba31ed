"""The node floor: real lvm2, mkfs, mounts and loop devices. Nothing about LVM is ever mocked here.

What creates a logical volume is marked `device_mapper`: tests/uml/plugin.py.

Fixtures:

    lvm           an Lvm with a configuration folder of its own
    make_disks    make_disks(count, size) -> paths of fresh, empty block devices (sparse files on loop devices)
    by_hand       by_hand("lvchange", ...) runs what the library does not offer and a person at the node might do
    volume_group  the name of a fresh volume group on three disks of 3 GiB, extents of 4 MiB: 767 extents a disk
"""

import contextlib
import os
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from host import loopdevice
from lvm import Lvm

_DISK = 3 << 30

MakeDisks = Callable[[int, int], list[str]]
ByHand = Callable[..., None]


@pytest.fixture
def lvm(tmp_path: Path) -> Lvm:
    return Lvm(tmp_path / "lvm")


@pytest.fixture
def make_disks(tmp_path: Path) -> Iterator[MakeDisks]:
    with contextlib.ExitStack() as attached:

        def make(count: int, size: int) -> list[str]:
            paths = []
            for _ in range(count):
                image = tmp_path / f"disk-{uuid.uuid4().hex}"
                with image.open("wb") as file:
                    file.truncate(size)
                paths.append(str(attached.enter_context(loopdevice.attached(image))))
            return paths

        yield make


@pytest.fixture
def by_hand(lvm: Lvm, tmp_path: Path) -> ByHand:
    def run(*arguments: str) -> None:
        environment = {**os.environ, "LVM_SYSTEM_DIR": str(tmp_path / "lvm"), "LVM_SUPPRESS_FD_WARNINGS": "1"}
        subprocess.run(["lvm", *arguments], check=True, capture_output=True, env=environment)

    return run


@pytest.fixture
async def volume_group(lvm: Lvm, make_disks: MakeDisks, by_hand: ByHand) -> AsyncIterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    await lvm.create_group(name, make_disks(3, _DISK))
    yield name
    by_hand("vgremove", "--force", "--yes", name)
