"""Volumes as sparse files on loop devices: real sizes on any kernel, for laptops, minikube and the demo.

    <folder>/<pv>.json   the record
    <folder>/<pv>.img    the data

The record is written first and goes last. So an image without a record is not ours, a record in state FORMATTING
without an image is a volume whose making or removal was cut off, and a READY one without an image lost its data.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

from contract.parameters import VolumeParameters
from daemon.backends import check_room, no_thin_pools
from daemon.backends.recordfiles import RecordFiles, told
from daemon.errors import BackendFailed, Foreign, InUse, NotFound
from daemon.storage.erase import Reuse
from daemon.storage.record import Damaged as DamagedVolume
from daemon.storage.record import Foreign as ForeignVolume
from daemon.storage.record import Inventory, Pool, Record, State, Volume, Wanted
from daemon.storage.thinpools import Enlargement
from host import loopdevice

POOL = "loop"
BLOCK = 4096
"""Bytes. Sizes are whole blocks, so that filesystems with any block size use all of them."""

_SUFFIX = ".img"


class LoopBackend:
    """See daemon.backends.Backend. `capacity` is what all volumes together may take, in bytes; None: what the
    filesystem of `folder` has for them."""

    def __init__(self, folder: Path, capacity: int | None = None, *, pool: str = POOL, own_folder: bool = True) -> None:
        self._folder = folder
        self._capacity = capacity
        self._pool = pool
        self._own_folder = own_folder
        self._records = RecordFiles(folder)
        self._allocating = asyncio.Lock()
        """Two must not both be told that there is room for one."""

    def on_device(self, volume: Volume) -> bool:
        return True

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
        """Never, also where files can share blocks: xfs writes to such files in whole blocks only, so from then on the
        kernel gives source and copy a loop device with sectors of 4096 bytes, and filesystems made for smaller ones
        can't be mounted any more (seen on Linux 6.18)."""
        return None

    async def rewrite(self, volume: Volume, record: Record) -> Volume:
        with told():
            return await asyncio.to_thread(self._rewrite, volume, record)

    @contextlib.asynccontextmanager
    async def device(self, volume: Volume) -> AsyncIterator[Path]:
        with contextlib.ExitStack() as stack:
            try:
                device = stack.enter_context(loopdevice.attached(self._image(volume.pv)))
            except OSError as error:
                if not self._image(volume.pv).exists():
                    raise NotFound(f"volume {volume.pv} is not on this node (any more)") from error
                raise BackendFailed(f"volume {volume.pv} gets no block device: {error}") from error
            yield device

    async def extend(self, volume: Volume, size: int) -> Volume:
        async with self._allocating:
            with told():
                return await asyncio.to_thread(self._extend, volume, size)

    async def reuse(self, volume: Volume) -> Reuse:
        """A file that is unlinked gives its blocks to the filesystem, and a new sparse one reads as zeroes."""
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
        images = {path.name.removesuffix(_SUFFIX): path.stat() for path in self._folder.glob(f"*{_SUFFIX}")}
        volumes, damaged = [], [DamagedVolume(pv, self._pool, reason) for pv, reason in unreadable.items()]
        for pv, entry in remembered.items():
            if pv in images:
                volumes.append(Volume(entry.record, images[pv].st_size, self._pool))
            elif entry.record.state is State.FORMATTING:
                volumes.append(Volume(entry.record, 0, self._pool))
            else:
                damaged.append(DamagedVolume(pv, self._pool, f"its data is gone: there is no {self._image(pv)}"))
        foreign = [
            ForeignVolume(f"{name}{_SUFFIX}", self._pool, status.st_size)
            for name, status in images.items()
            if name not in remembered and name not in unreadable
        ]
        ours = sum(volume.size for volume in volumes)
        written = sum(images[volume.pv].st_blocks * 512 for volume in volumes if volume.pv in images)
        size = self._capacity if self._capacity is not None else self._free() + written
        return Inventory(volumes, [Pool(self._pool, size, size - ours, ours, BLOCK)], foreign, damaged)

    def _free(self) -> int:
        figures = os.statvfs(self._folder)
        return figures.f_bavail * figures.f_frsize

    def _create(self, wanted: Wanted) -> Volume:
        record = wanted.record(State.FORMATTING)
        image = self._image(wanted.pv)
        before = self._records.claim(wanted)
        if before is None and image.exists():
            raise Foreign(f"{image} exists and is not of elastic-local: ask the node's administrator to move it away")
        size = -(-wanted.size // BLOCK) * BLOCK
        check_room(self._inspect(), wanted.pv, size)
        if before is None or before.record != record:
            self._records.write(record)
        return Volume(record, self._grow_image(wanted.pv, size), self._pool)

    def _grow_image(self, pv: str, size: int) -> int:
        """The size that the image has then: at least `size` bytes."""
        descriptor = os.open(self._image(pv), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(descriptor).st_size < size:
                os.ftruncate(descriptor, size)
            os.fsync(descriptor)
            self._records.flush()
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def _rewrite(self, volume: Volume, record: Record) -> Volume:
        self._records.own(volume)
        self._records.write(record)
        return Volume(record, volume.size, self._pool)

    def _extend(self, volume: Volume, size: int) -> Volume:
        record = self._records.own(volume).record
        image = self._image(volume.pv)
        size = -(-size // BLOCK) * BLOCK
        if size > image.stat().st_size:
            check_room(self._inspect(), volume.pv, size)
        grown = self._grow_image(volume.pv, size)
        # Also when there was nothing to grow: the process may have ended between the two, the last time.
        device = loopdevice.find(image)
        if device:
            loopdevice.set_capacity(device)
        return Volume(record, grown, self._pool)

    def _remove(self, volume: Volume) -> None:
        try:
            remembered = self._records.own(volume)
        except NotFound:
            return
        image = self._image(volume.pv)
        if image.exists():
            device = loopdevice.find(image)
            if device:
                raise InUse(f"volume {volume.pv} is still in use as {device}: stop what uses it")
            self._records.void(remembered)
            image.unlink()
            self._records.flush()
        self._records.forget(volume.pv)

    def _image(self, pv: str) -> Path:
        return self._folder / f"{pv}{_SUFFIX}"
