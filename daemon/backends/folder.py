"""Volumes as plain folders (driver kind BINDMOUNT), for nodes that have neither LVM nor loop devices.

    <folder>/<pv>.json     the record, with the size that was promised
    <folder>/<pv>.folder   the data

It enforces no size: a pod may fill the whole filesystem, and all volumes share it. What volumes ask for is only added
up, so that the scheduler spreads them. There is nothing to format; state FORMATTING means that the folder is not made
yet or half removed, so it is emptied before it is used.
"""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from contract.parameters import VolumeParameters
from daemon.backends import check_room, no_thin_pools
from daemon.backends.recordfiles import RecordFiles, Remembered, told
from daemon.errors import Foreign, InUse, NotCloned, NotFound
from daemon.storage.erase import Reuse
from daemon.storage.record import Damaged as DamagedVolume
from daemon.storage.record import Foreign as ForeignVolume
from daemon.storage.record import Inventory, Pool, Record, State, Volume, Wanted
from daemon.storage.thinpools import Enlargement
from host import mounttable

POOL = "folder"

_SUFFIX = ".folder"


class FolderBackend:
    """See daemon.backends.Backend. `capacity` is what all volumes together may be promised, in bytes; None: the whole
    filesystem of `folder`, whoever else writes to it. What is used of it is not asked: that changes with every write,
    and whose it is could only be found by walking through all of it."""

    def __init__(self, folder: Path, capacity: int | None = None, *, pool: str = POOL, own_folder: bool = True) -> None:
        self._folder = folder
        self._capacity = capacity
        self._pool = pool
        self._own_folder = own_folder
        self._records = RecordFiles(folder)
        self._allocating = asyncio.Lock()
        """Two must not both be told that there is room for one."""

    def on_device(self, volume: Volume) -> bool:
        return False

    def pool_of(self, parameters: VolumeParameters) -> str:
        return self._pool

    async def establish(self) -> None:
        with told():
            if self._own_folder or self._folder.is_dir():
                await asyncio.to_thread(self._records.establish)

    async def inspect(self) -> Inventory:
        with told():
            return await asyncio.to_thread(self._inspect)

    async def create(self, wanted: Wanted) -> Volume:
        async with self._allocating:
            with told():
                return await asyncio.to_thread(self._create, wanted)

    async def snapshot(self, wanted: Wanted, source: Volume) -> Volume | None:
        """Files that are written at the same time can't be copied as of one moment."""
        raise NotCloned(
            "this node keeps volumes in plain folders (BINDMOUNT), which can't be copied as of one moment: delete the "
            "claim, make it anew without dataSource, and copy the files from a pod that mounts both"
        )

    async def rewrite(self, volume: Volume, record: Record) -> Volume:
        with told():
            return await asyncio.to_thread(self._rewrite, volume, record)

    @contextlib.asynccontextmanager
    async def device(self, volume: Volume) -> AsyncIterator[Path]:
        data = self._data(volume.pv)
        if not data.is_dir():
            raise NotFound(f"volume {volume.pv} is not on this node (any more)")
        yield data

    async def extend(self, volume: Volume, size: int) -> Volume:
        async with self._allocating:
            with told():
                return await asyncio.to_thread(self._extend, volume, size)

    async def reuse(self, volume: Volume) -> Reuse:
        """What filesystems hand out again, they show to nobody before it is written."""
        return Reuse.CLEAN

    async def extend_pool(self, pool: Pool, more: Enlargement) -> None:
        raise no_thin_pools(pool)

    async def remove(self, volume: Volume) -> None:
        with told():
            await asyncio.to_thread(self._remove, volume)

    def _inspect(self) -> Inventory:
        if not self._folder.is_dir():
            return Inventory()
        remembered, unreadable = self._records.read_all()
        folders = {path.name.removesuffix(_SUFFIX) for path in self._folder.glob(f"*{_SUFFIX}")}
        volumes, damaged = [], [DamagedVolume(pv, self._pool, reason) for pv, reason in unreadable.items()]
        for pv, entry in remembered.items():
            if pv in folders or entry.record.state is State.FORMATTING:
                volumes.append(Volume(entry.record, entry.size, self._pool))
            else:
                damaged.append(DamagedVolume(pv, self._pool, f"its data is gone: there is no {self._data(pv)}"))
        foreign = [
            ForeignVolume(f"{name}{_SUFFIX}", self._pool, 0) for name in sorted(folders - {*remembered, *unreadable})
        ]
        ours = sum(volume.size for volume in volumes)
        size = self._capacity if self._capacity is not None else self._all()
        return Inventory(volumes, [Pool(self._pool, size, size - ours, ours, 1)], foreign, damaged)

    def _all(self) -> int:
        figures = os.statvfs(self._folder)
        for_root_alone = figures.f_bfree - figures.f_bavail
        return (figures.f_blocks - for_root_alone) * figures.f_frsize

    def _create(self, wanted: Wanted) -> Volume:
        data = self._data(wanted.pv)
        before = self._records.claim(wanted)
        if before is None and os.path.lexists(data):
            raise Foreign(f"{data} exists and is not of elastic-local: ask the node's administrator to move it away")
        check_room(self._inspect(), wanted.pv, wanted.size)
        self._records.write(wanted.record(State.FORMATTING), wanted.size)
        self._empty(wanted.pv)
        data.mkdir(mode=0o755)
        self._records.flush()
        ready = wanted.record(State.READY)
        self._records.write(ready, wanted.size)
        return Volume(ready, wanted.size, self._pool)

    def _rewrite(self, volume: Volume, record: Record) -> Volume:
        before = self._records.own(volume)
        self._records.write(record, before.size)
        return Volume(record, before.size, self._pool)

    def _extend(self, volume: Volume, size: int) -> Volume:
        before = self._records.own(volume)
        if size > before.size:
            check_room(self._inspect(), volume.pv, size)
            before = Remembered(before.record, size)
            self._records.write(before.record, before.size)
        return Volume(before.record, before.size, self._pool)

    def _remove(self, volume: Volume) -> None:
        try:
            before = self._records.own(volume)
        except NotFound:
            return
        self._refuse_in_use(volume.pv)
        self._records.void(before)
        self._empty(volume.pv)
        self._records.forget(volume.pv)

    def _empty(self, pv: str) -> None:
        self._refuse_in_use(pv)
        if os.path.lexists(self._data(pv)):
            shutil.rmtree(self._data(pv))
            self._records.flush()

    def _refuse_in_use(self, pv: str) -> None:
        """What a pod mounted inside of its volume may show up below the folder too, and is not ours to delete."""
        inside = f"{os.path.realpath(self._data(pv))}/"
        for mount in mounttable.read():
            if f"{mount.path}/".startswith(inside):
                raise InUse(f"volume {pv} is still in use, something is mounted on {mount.path}: unmount it")

    def _data(self, pv: str) -> Path:
        return self._folder / f"{pv}{_SUFFIX}"
