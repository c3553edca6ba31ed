"""Volumes as plain folders (driver kind BINDMOUNT), for nodes that have neither LVM nor loop devices.

    <folder>/<pv>.json     the record, with the size that was promised
    <folder>/<pv>.folder   the data

It enforces no size: a pod may fill the whole filesystem, and all volumes share it. What volumes ask for is only added
up, so that the scheduler spreads them. There is nothing to format; state FORMATTING means that the folder is not made
yet or half removed, so it is emptied before it is used.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Collection, Iterator
from functools import partial
from pathlib import Path

from daemon.backends.files import FilesBackend
from daemon.backends.recordfiles import StoredRecord, volume_errors
from daemon.errors import InUse, NotCloned, VolumeNotFound
from daemon.storage.deviceclasses import BINDMOUNT, FILE_POOLS
from daemon.storage.inventory import Volume
from daemon.storage.record import VolumeSpec, VolumeState
from host import foldertree, mounttable, presence

_STEP_SECONDS = 10.0
"""A removal is done in steps of so many seconds, so that a disk that hangs is known as such."""


class FolderBackend(FilesBackend):
    """See daemon.backends.files."""

    POOL = FILE_POOLS[BINDMOUNT]
    SUFFIX = ".folder"

    def on_device(self, pool: str) -> bool:
        return False

    async def clone_sharing_blocks(self, spec: VolumeSpec, source: Volume) -> Volume | None:
        """Files that are written at the same time can't be copied as of one moment."""
        instead = (
            "delete the VolumeSnapshot, and copy the files to another volume from a pod that mounts both"
            if spec.content
            else "delete the claim, make it anew without dataSource, and copy the files from a pod that mounts both"
        )
        raise NotCloned(
            f"this node keeps volumes in plain folders (BINDMOUNT), which can't be copied as of one moment: {instead}"
        )

    @contextlib.asynccontextmanager
    async def device(self, volume: Volume) -> AsyncIterator[Path]:
        yield await self._at(volume.pv, partial(self._present, volume.pv))

    @contextlib.contextmanager
    def opened(self, volume: Volume, likely: int = 0) -> Iterator[Path]:
        with volume_errors():
            data = self._present(volume.pv)
        yield data

    def _present(self, pv: str) -> Path:
        data = self._data(pv)
        if not presence.is_folder(data):
            raise VolumeNotFound(f"volume {pv} is not on this node (any more)")
        return data

    def _size(self, data: Path, promised: int) -> int:
        return promised

    def _offered(self, present: Collection[Path]) -> tuple[int, int | None]:
        """The whole filesystem, whoever else writes to it. What is used of it is not asked: that changes with every
        write, and whose it is could only be found by walking through all of it."""
        figures = os.statvfs(self._folder)
        for_root_alone = figures.f_bfree - figures.f_bavail
        return (figures.f_blocks - for_root_alone) * figures.f_frsize, None

    def _make(self, spec: VolumeSpec, size: int) -> Volume:
        self._records.write(spec.record(VolumeState.FORMATTING), size)
        self._refuse_in_use(spec.pv)
        while not self._delete(spec.pv):
            pass
        self._data(spec.pv).mkdir(mode=0o755)
        self._records.flush()
        ready = spec.record(VolumeState.READY)
        self._records.write(ready, size)
        return Volume(ready, size, self._pool)

    def _enlarge(self, stored: StoredRecord, size: int) -> int:
        if size > stored.size:
            self._records.write(stored.record, size)
        return max(size, stored.size)

    def _refuse_in_use(self, pv: str) -> None:
        """What a pod mounted inside of its volume may show up below the folder too, and is not ours to delete."""
        inside = f"{os.path.realpath(self._data(pv))}/"
        for mount in mounttable.read():
            if f"{mount.path}/".startswith(inside):
                raise InUse(f"volume {pv} is still in use, something is mounted on {mount.path}: unmount it")

    def _delete(self, pv: str) -> bool:
        if presence.is_there(self._data(pv)):
            if not foldertree.remove(self._data(pv), _STEP_SECONDS):
                return False
            self._records.flush()
        return True
