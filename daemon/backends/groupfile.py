"""A volume group on a file, for nodes that have no disk to spare: minikube, laptops.

    <data folder>/groups/<volume group>.img

LVM sees a disk like any other, so volumes, thin pools and tags are the real thing. A loop device does not outlive a
restart of the node, and nothing on the node would know that there should be one. So the file's place is the memory: the
daemon attaches what it finds there when it starts, before it looks for its group, and again while one is missing.
"""

import asyncio
import logging
import os
from functools import partial
from pathlib import Path

from host import loopdevice, ownfolder
from host.diskthreads import Hung, threads

log = logging.getLogger(__name__)

_SUFFIX = ".img"
_UNFINISHED = ".new"


def _folder(data_dir: Path) -> Path:
    return data_dir / "groups"


def place(data_dir: Path, group: str) -> Path:
    """Where the file of a group is, or would be."""
    return _folder(data_dir) / f"{group}{_SUFFIX}"


def make(file: Path, size: int) -> None:
    """A new file of `size` bytes that has them all: a sparse one would fail its volumes when the disk under it is
    full. It is there whole or not at all. Raises OSError."""
    ownfolder.establish(file.parent)
    unfinished = file.with_suffix(_UNFINISHED)
    descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
        os.fsync(descriptor)
    except OSError:
        unfinished.unlink()
        raise
    finally:
        os.close(descriptor)
    unfinished.rename(file)


async def attach_all(data_dir: Path) -> list[Path]:
    """The devices of all files there are. One that can't be attached, or whose disk hangs, is logged: the node may
    have other groups, and whoever needs this one says that it is missing."""
    folder = _folder(data_dir)
    try:
        files = await threads.at(folder, lambda: sorted(folder.glob(f"*{_SUFFIX}")))
    except Hung as error:
        log.warning("volume groups on files get no loop devices: %s", error)
        return []
    answers = await asyncio.gather(*(_attach(file) for file in files))
    return [device for device in answers if device]


async def _attach(file: Path) -> Path | None:
    try:
        return await threads.at(file, partial(loopdevice.attach, file), disk=file.parent)
    except (OSError, Hung) as error:
        log.warning("%s, which has a volume group, gets no loop device: %s", file, error)
        return None
