"""The node floor: real lvm2, mkfs, mounts and loop devices. Nothing about LVM is ever mocked here.

What creates a logical volume is marked `device_mapper`: tests/uml/plugin.py.

Fixtures:

    lvm           an Lvm with a configuration folder of its own
    make_disks    make_disks(count, size) -> paths of fresh, empty block devices (sparse files on loop devices), with
                  sectors of 512 bytes; make_disks(count, size, 4096): with those of a 4Kn disk
    by_hand       by_hand("lvchange", ...) runs what the library does not offer and a person at the node might do
    metadata      LVM's decisions without device-mapper, for the command too: tests.node.lvmmetadata
    volume_group  the name of a fresh volume group on three disks of 3 GiB, extents of 4 MiB: 767 extents a disk

    node          a Node with volumes in images and one with volumes in folders, one after the other; or what the mark
                  `on` of tests.node.volume_node names
    loop_node, folder_node, lvm_node
                  one of these
    commands      the programs that ran from here on
    fast, slow    the discovery folders of two classes of static volumes
"""

import contextlib
import os
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from daemon.backends.folder import FolderBackend
from daemon.backends.loop import LoopBackend
from daemon.storage.backend import Backend
from host import command, loopdevice
from host.command import Completed
from lvm import Lvm, configuration
from tests.node.lvmmetadata import Metadata
from tests.node.volume_node import MIB, Node, lvm_backend
from tests.waiting import until

_DISK = 3 << 30
_CAPACITY = 4096 * MIB

MakeDisks = Callable[..., list[str]]
ByHand = Callable[..., None]


@pytest.fixture
def lvm(tmp_path: Path) -> Lvm:
    return Lvm(tmp_path / "lvm")


@pytest.fixture
def make_disks(tmp_path: Path) -> Iterator[MakeDisks]:
    with contextlib.ExitStack() as attached:

        def make(count: int, size: int, sector: int = 512) -> list[str]:
            paths = []
            for _ in range(count):
                image = tmp_path / f"disk-{uuid.uuid4().hex}"
                with image.open("wb") as file:
                    file.truncate(size)
                path = str(attached.enter_context(loopdevice.attached(image)))
                subprocess.run(["losetup", "--sector-size", str(sector), path], check=True)
                paths.append(path)
            return paths

        yield make


@pytest.fixture
def by_hand(lvm: Lvm, tmp_path: Path) -> ByHand:
    def run(*arguments: str) -> None:
        environment = {**os.environ, "LVM_SYSTEM_DIR": str(tmp_path / "lvm"), "LVM_SUPPRESS_FD_WARNINGS": "1"}
        subprocess.run(["lvm", *arguments], check=True, capture_output=True, env=environment)

    return run


async def remove_group(by_hand: ByHand, name: str) -> None:
    """With all that is in it, as soon as nobody has that open: a daemon that ends breaks off what it erases, but its
    thread is at the volume until that piece is done."""

    def removed() -> bool:
        try:
            by_hand("vgremove", "--force", "--yes", name)
        except subprocess.CalledProcessError as error:
            print(error.stdout.decode(), error.stderr.decode())  # with its log for reports LVM says it in both
            return False
        return True

    await until(removed, what=f"{name} is removed")


@pytest.fixture
async def volume_group(lvm: Lvm, make_disks: MakeDisks, by_hand: ByHand) -> AsyncIterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    await lvm.create_group(name, make_disks(3, _DISK))
    yield name
    await remove_group(by_hand, name)


@pytest.fixture
def loop_node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path, lambda: LoopBackend(tmp_path / "data", _CAPACITY))
    yield node
    node.unmount_all()


@pytest.fixture
def folder_node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path, lambda: FolderBackend(tmp_path / "data", _CAPACITY))
    yield node
    node.unmount_all()


@pytest.fixture
def lvm_node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    """The fixtures of LVM are asked for by name, so that the other kinds of node do without."""
    tools, group = request.getfixturevalue("lvm"), request.getfixturevalue("volume_group")

    def backend() -> Backend:
        return lvm_backend(tools, group, thin="lvm-thin" in request.node.callspec.id)

    node = Node(tmp_path, backend)
    yield node
    node.unmount_all()


@pytest.fixture(params=["loop", "folder"])
def node(request: pytest.FixtureRequest) -> Node:
    made = request.getfixturevalue(f"{request.param.split('-')[0]}_node")
    assert isinstance(made, Node)
    return made


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []

    def note(completed: Completed) -> None:
        seen.append(completed.argv[0])

    monkeypatch.setattr(command, "observers", [note])
    return seen


@pytest.fixture
def fast(tmp_path: Path) -> Path:
    folder = tmp_path / "fast"
    folder.mkdir()
    return folder


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    folder = tmp_path / "slow"
    folder.mkdir()
    return folder


@pytest.fixture
def metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Metadata:
    """LVM as the command runs it, without device-mapper too."""
    made = Metadata(tmp_path / "lvm")
    monkeypatch.setattr(configuration, "write", lambda folder, content: None)
    return made
