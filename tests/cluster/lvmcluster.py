"""A cluster whose only node keeps its volumes in a volume group of two disks, with real LVM. Tests that use it are
marked `device_mapper`, and so run in User-mode Linux where the kernel has none.

One disk lies under a device of its own, so that it can be pulled out like one from its bay.
"""

import contextlib
import errno
import os
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from host import loopdevice
from kube.resources import CLASSES, EVENTS
from lvm import Lvm
from lvm.records import LogicalVolume
from tests.sandbox.nodes import Node, NodeSpec
from tests.sandbox.sandbox import COMPONENTS, Sandbox
from tests.sandbox.workloads import storage_class

MIB = 2**20
EXTENT = 4 * MIB
DISK = 96 * EXTENT
"""Bytes that each disk has for volumes."""
RESERVE = 16 * EXTENT
ROOM = 2 * DISK - RESERVE
"""Bytes that all volumes together may have."""
ERASE_RATE = 8 * MIB
"""Bytes a second: so slow that a test sees it happen."""

WRITE = """
    head -c {size} /dev/urandom > /data/file
    sha256sum /data/file > /data/sum
    sync
    touch /data/done
    exec sleep infinity
"""
CHECK = "sha256sum -c /data/sum && exec sleep infinity"
"""Scripts of pods: one writes, the other one finds what it wrote as it was."""

_LABEL = MIB
"""Bytes that LVM keeps for itself on a disk."""
_SHIFT = MIB
"""Bytes. What lies so far behind the beginning of a disk is not seen by who looks at the device below."""


@dataclass(frozen=True)
class Bay:
    """What holds a disk: a device of that name that is there or not. `below` is where its bytes are."""

    name: str
    below: Path

    @property
    def device(self) -> Path:
        return Path("/dev/mapper", self.name)

    def plug_in(self) -> None:
        self._dmsetup("create", self.name, "--table", self._table("linear", f"{self.below} {_SHIFT // 512}"))
        self._dmsetup("mknodes")  # udev's part, where none runs

    def fail(self) -> None:
        """From now on every read and write is an error."""
        self._exchange(self._table("error", ""))

    def mend(self) -> None:
        self._exchange(self._table("linear", f"{self.below} {_SHIFT // 512}"))

    def remove(self) -> None:
        self._dmsetup("remove", "--force", self.name)

    def _exchange(self, table: str) -> None:
        self._dmsetup("load", self.name, "--table", table)
        self._dmsetup("suspend", "--noflush", "--nolockfs", self.name)
        self._dmsetup("resume", self.name)

    @staticmethod
    def _table(target: str, of: str) -> str:
        return f"0 {(DISK + _LABEL) // 512} {target} {of}".rstrip()

    @staticmethod
    def _dmsetup(*arguments: str) -> None:
        subprocess.run(["dmsetup", *arguments], check=True, capture_output=True, text=True)


@dataclass(frozen=True)
class LvmCluster:
    sandbox: Sandbox
    group: str
    tools: Lvm
    system_dir: Path
    """Of LVM."""
    bay: Bay
    """Of the first disk."""
    images: tuple[Path, ...]
    """What is really on the disks."""

    @property
    def node(self) -> Node:
        [node] = self.sandbox.nodes.values()
        return node

    async def make_class(self, **parameters: str) -> str:
        """The name of a new StorageClass; it stays."""
        name = f"class-{secrets.token_hex(4)}"
        body = storage_class(name, parameters=parameters, allowVolumeExpansion=True)
        await self.sandbox.api.create(CLASSES, body)
        return name

    async def volume(self, name: str) -> LogicalVolume:
        """What LVM knows of it."""
        volume = (await self.tools.report()).volume(self.group, name)
        assert volume, f"there is no {self.group}/{name}"
        return volume

    def by_hand(self, *arguments: str) -> None:
        """What a person at the node does with LVM."""
        _by_hand(self.system_dir, *arguments)

    async def told_of_node(self, reason: str) -> list[str]:
        """Messages of the node's events with that reason."""
        selector = f"involvedObject.kind=Node,reason={reason}"
        return [event["message"] for event in await self.sandbox.api.list(EVENTS, field_selector=selector)]

    def found_on_disks(self, words: bytes) -> int:
        """How often these words stand on the raw disks."""
        return sum(_count(image, words) for image in self.images)


@contextlib.asynccontextmanager
async def running(folder: Path, state: Path) -> AsyncIterator[LvmCluster]:
    """Its disks are files in `folder`, all else is in `state`."""
    group = f"test-{secrets.token_hex(4)}"
    images = tuple(folder / f"disk-{number}" for number in (1, 2))
    tools = Lvm(folder / "lvm")
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(_disk(image)) for image in images)
        bay = Bay(f"{group}-bay", first)
        bay.plug_in()
        stack.callback(bay.remove)
        await tools.create_group(group, [str(bay.device), str(second)])
        stack.callback(_by_hand, folder / "lvm", "vgremove", "--force", "--yes", group)
        settings = {"RESERVE": str(RESERVE), "ERASE_RATE": str(ERASE_RATE)}
        node = NodeSpec("node-lvm", backend="lvm", group=group, settings=settings)
        async with Sandbox(state, [node], components=[COMPONENTS / "snapshots"], snapshots=True) as sandbox:
            yield LvmCluster(sandbox, group, tools, folder / "lvm", bay, images)


@contextlib.contextmanager
def _disk(image: Path) -> Iterator[Path]:
    with image.open("wb") as file:
        file.truncate(_SHIFT + _LABEL + DISK)
    with loopdevice.attached(image) as device:
        yield device


def _by_hand(system_dir: Path, *arguments: str) -> None:
    environment = {**os.environ, "LVM_SYSTEM_DIR": str(system_dir), "LVM_SUPPRESS_FD_WARNINGS": "1"}
    subprocess.run(["lvm", *arguments], check=True, capture_output=True, env=environment)


def _count(image: Path, words: bytes) -> int:
    """In what was ever written: the rest of the file is holes."""
    count, rest, end = 0, b"", 0
    with image.open("rb") as file:
        while (start := _next_data(file.fileno(), end)) is not None:
            if start > end:
                rest = b""
            content = os.pread(file.fileno(), MIB, start)
            end = start + len(content)
            count += (rest + content).count(words)
            rest = content[1 - len(words) :]
    return count


def _next_data(descriptor: int, offset: int) -> int | None:
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None
