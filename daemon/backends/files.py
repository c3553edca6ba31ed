"""Volumes as what lies in one folder, each beside its record file: what all such storage has in common.

    <folder>/<pv>.json      the record
    <folder>/<pv><SUFFIX>   the data

The record is written first and goes last. So data without a record is not ours, a record in state FORMATTING without
data is a volume whose making or removal was cut off, and one in another state without data lost it.
"""

import os
import threading
from abc import abstractmethod
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

from contract.parameters import VolumeParameters
from daemon.backends.recordfiles import RecordFiles, StoredRecord, volume_errors
from daemon.errors import Foreign, NoSpace, NotAuthorized, PoolMissing, VolumeNotFound
from daemon.storage import disks
from daemon.storage.backend import Backend, StaleData, no_thin_pools
from daemon.storage.disks import disk_of, place_of
from daemon.storage.inventory import DamagedVolume, ForeignVolume, Inventory, Pool, SharedFilesystem, Volume
from daemon.storage.record import Record, VolumeSpec, VolumeState, differences
from daemon.storage.thinpools import PoolExtension
from host import mounttable, presence
from host.diskthreads import DiskThreads, threads

T = TypeVar("T")

_DELETE_SECONDS = 600.0
"""For one step of a removal: the kernel frees a large file of many pieces in one call."""


class FilesBackend(Backend):
    """Leaves `on_device`, `snapshot` and `device` to the kinds of storage, and what is abstract below.

    `capacity` is what all volumes together may have, in bytes; None: what the filesystem of `folder` offers them.
    `pool` is the name of that room, and `own_folder` says whether the folder is made when it is missing. Whatever
    touches its disk is done in `threads`."""

    SUFFIX: ClassVar[str]
    """Of the data's name."""
    POOL: ClassVar[str]
    """The pool's name on a node that has one such folder."""
    BLOCK: ClassVar[int] = 1
    """Bytes. Sizes are whole blocks."""

    def __init__(
        self,
        folder: Path,
        capacity: int | None = None,
        *,
        pool: str | None = None,
        own_folder: bool = True,
        threads: DiskThreads = threads,
    ) -> None:
        self._folder = folder
        self._capacity = capacity
        self._pool = pool or self.POOL
        self._own_folder = own_folder
        self._records = RecordFiles(folder)
        self._threads = threads
        self._allocating = threading.Lock()
        """Two must not both get the space that there is for one, and what was given up may still be taking it."""

    def pool_of(self, parameters: VolumeParameters) -> str:
        """What only LVM can do has no pool here, so nodes without it have no capacity for such a class."""
        return _needs_lvm(parameters) or self._pool

    async def establish(self) -> None:
        await self._at(self._folder, self._establish)

    async def inspect(self) -> Inventory:
        return await self._at(self._folder, self._inspect)

    async def create(self, spec: VolumeSpec) -> Volume:
        return await self._at(spec.pv, partial(self._create, spec))

    def snapshot_storage(self, pool: str) -> None:
        return None

    async def reread(self, volume: Volume) -> Volume:
        return await self._at(volume.pv, partial(self._reread, volume))

    async def rewrite(self, volume: Volume, record: Record) -> Volume:
        return await self._at(volume.pv, partial(self._rewrite, volume, record))

    async def extend(self, volume: Volume, size: int) -> Volume:
        return await self._at(volume.pv, partial(self._extend, volume, size))

    async def stale_data(self, volume: Volume) -> StaleData:
        """What is deleted gives its blocks to the filesystem, which shows them to nobody before they are written."""
        return StaleData.CLEAN

    async def back_up(self) -> None:
        """The records lie beside the data, and there is nothing else."""

    async def extend_pool(self, pool: Pool, more: PoolExtension) -> None:
        raise no_thin_pools(pool)

    async def remove(self, volume: Volume) -> None:
        """However long that takes, as it does with some million files, each step of it has to end in time."""
        pv = volume.pv
        if await self._at(pv, partial(self._void, volume)):
            while not await self._at(pv, partial(self._delete, pv), deadline=_DELETE_SECONDS):
                pass
            await self._at(pv, partial(self._records.forget, pv))

    async def _at(self, where: Path | str, work: Callable[[], T], deadline: float | None = None) -> T:
        """In the folder, or on the volume of that name."""
        place = where if isinstance(where, Path) else place_of(where)
        with volume_errors():
            return await self._threads.at(
                place, work, disk=disk_of(self._pool), deadline=deadline or disks.CALL_SECONDS
            )

    # What follows blocks and raises OSError.

    @abstractmethod
    def _size(self, data: Path, promised: int) -> int:
        """Bytes of data that is there. `promised` is what its record file says, 0 when it says nothing."""

    @abstractmethod
    def _offered(self, present: Collection[Path]) -> tuple[int, int | None]:
        """Bytes that the folder's filesystem has for volumes, those that are there included, whose data is `present`,
        and what of that is written: see daemon.storage.inventory.Filesystem."""

    @abstractmethod
    def _make(self, spec: VolumeSpec, size: int) -> Volume:
        """Writes the record, then makes the data, of `size` bytes. Goes on from wherever the same call was cut off."""

    @abstractmethod
    def _enlarge(self, stored: StoredRecord, size: int) -> int:
        """The size that the data has then: at least `size` bytes. Called also when it has that already: the last call
        may have been cut off."""

    @abstractmethod
    def _refuse_in_use(self, pv: str) -> None:
        """Raises InUse."""

    @abstractmethod
    def _delete(self, pv: str) -> bool:
        """Whether the data is gone, on disk when this returns. False: a part of it is left, as it may be after some
        seconds. What is not there is no error."""

    def _establish(self) -> None:
        if self._own_folder or presence.is_folder(self._folder):
            self._records.establish()

    def _inspect(self) -> Inventory:
        if not presence.is_folder(self._folder):
            return Inventory()
        stored, unreadable = self._records.read_all()
        # Not by glob, which shows a folder that can't be read as an empty one. A link that leads nowhere is no data.
        paths = sorted(
            path for path in self._folder.iterdir() if path.name.endswith(self.SUFFIX) and presence.exists(path)
        )
        present = {path.name.removesuffix(self.SUFFIX): path for path in paths}
        volumes, damaged = [], [DamagedVolume(pv, self._pool, reason) for pv, reason in unreadable.items()]
        for pv, entry in stored.items():
            if pv in present:
                volumes.append(self._volume(entry.record, self._size(present[pv], entry.size)))
            elif entry.record.state is VolumeState.FORMATTING:
                volumes.append(self._volume(entry.record, entry.size))
            else:
                damaged.append(DamagedVolume(pv, self._pool, f"its data is gone: there is no {self._data(pv)}"))
        foreign = [
            ForeignVolume(present[name].name, self._pool, self._size(present[name], 0))
            for name in sorted(present.keys() - stored.keys() - unreadable.keys())
        ]
        ours = sum(volume.size + volume.overhead for volume in volumes)
        filesystem = self._filesystem([path for pv, path in present.items() if pv in stored], ours)
        size = filesystem.allocatable if self._capacity is None else self._capacity
        pool = Pool(self._pool, size, size - ours, ours, self.BLOCK, filesystem=filesystem)
        return Inventory(volumes, [pool], foreign, damaged)

    def _filesystem(self, present: Collection[Path], ours: int) -> SharedFilesystem:
        offered, written = self._offered(present)
        return SharedFilesystem(_identity(self._folder), (self._pool,), offered, ours, written=written)

    def _create(self, spec: VolumeSpec) -> Volume:
        if missing := _needs_lvm(spec.parameters):
            raise PoolMissing(
                f"volume {spec.pv} needs {missing}, and {self._pool} of this node has files or directories: use a "
                "class without it, or of another device class"
            )
        data = self._data(spec.pv)
        if self._records.claim(spec) is None and presence.is_there(data):
            raise Foreign(f"{data} exists and is not of elastic-local: ask the node's administrator to move it away")
        size = self._whole_blocks(spec.size + spec.parameters.header_size)
        with self._allocating:
            self._check_room(spec.pv, size)
            return self._make(spec, size)

    def _reread(self, volume: Volume) -> Volume:
        stored = self._records.present(volume.pv)
        data = self._data(volume.pv)
        size = self._size(data, stored.size) if presence.exists(data) else stored.size
        return self._volume(stored.record, size)

    def _rewrite(self, volume: Volume, record: Record) -> Volume:
        before = self._records.own(volume)
        self._records.write(record, before.size)
        return replace(volume, record=record, size=before.size or volume.size)

    def _extend(self, volume: Volume, size: int) -> Volume:
        before = self._records.own(volume)
        size = self._whole_blocks(size + before.record.header_size)
        with self._allocating:
            if size > self._size(self._data(volume.pv), before.size):
                self._check_room(volume.pv, size)
            return self._volume(before.record, self._enlarge(before, size))

    def _void(self, volume: Volume) -> bool:
        """The first step of a removal. False: nothing is there."""
        try:
            before = self._records.present(volume.pv)
        except VolumeNotFound:
            return False
        self._refuse_in_use(volume.pv)
        if changed := differences(volume.record, before.record):
            raise NotAuthorized(f"volume {volume.pv} is not removed: its record changed meanwhile ({changed})")
        self._records.void(before)
        return True

    def _check_room(self, pv: str, size: int) -> None:
        """Raises NoSpace unless the volume may have `size` bytes, its present ones included. Asked because more can be
        promised here than was taken: neither sparse images nor folders take their room when they are made."""
        inventory = self._inspect()
        (pool,) = inventory.pools
        present = inventory.volume(pv)
        more = size - (present.size + present.overhead if present else 0)
        if more > pool.available():
            raise NoSpace(pv, f"the {pool.name} storage of this node", more, pool.available())

    def _volume(self, record: Record, size: int) -> Volume:
        """One whose data has `size` bytes, with the header of an encrypted one."""
        header = min(record.header_size, size)
        return Volume(record, size - header, self._pool, overhead=header)

    def _whole_blocks(self, size: int) -> int:
        return -(-size // self.BLOCK) * self.BLOCK

    def _data(self, pv: str) -> Path:
        return self._folder / f"{pv}{self.SUFFIX}"


def _needs_lvm(parameters: VolumeParameters) -> str:
    """What the volume needs of LVM. Empty: nothing. One copy in place of a mirror would be found out when its disk
    fails. Not `thin`: sparse files are."""
    if parameters.volume_group:
        return f"volume group {parameters.volume_group}"
    return "LVM (raid, stripes)" if parameters.needs_thick else ""


def _identity(folder: Path) -> str:
    """The same for folders on one filesystem. A subvolume of btrfs has a device number of its own."""
    real = Path(os.path.realpath(folder))
    home = max(
        (mount for mount in mounttable.read() if real.is_relative_to(mount.path)), key=lambda mount: len(mount.path)
    )
    if home.filesystem == "btrfs":
        return home.source
    number = folder.stat().st_dev
    return f"{os.major(number)}:{os.minor(number)}"
