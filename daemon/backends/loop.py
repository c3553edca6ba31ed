"""Volumes as sparse files on loop devices: real sizes on any kernel, for laptops, minikube and the demo.

<folder>/<pv>.json   the record
<folder>/<pv>.img    the data
"""

import asyncio
import contextlib
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path

from daemon.backends.files import FilesBackend
from daemon.backends.recordfiles import RECORD_SUFFIX, StoredRecord, volume_errors
from daemon.errors import BackendFailed, InUse, VolumeNotFound
from daemon.storage import disks
from daemon.storage.deviceclasses import FILE_POOLS, LOOP
from daemon.storage.disks import disk_of, place_of
from daemon.storage.inventory import Volume
from daemon.storage.record import VolumeSpec, VolumeState
from host import loopdevice, presence
from host.diskthreads import Hung, threads


async def volume_devices() -> list[Path]:
    """Loop devices of volumes, of all folders: beside each image is its record. What pods write
    to a block volume may be LVM's metadata, and a group of the name of ours would hide ours. Where a folder gives no
    answer each image counts as one: nothing on it can be used now."""
    images: defaultdict[Path, dict[Path, Path]] = defaultdict(dict)
    for device, image in (await asyncio.to_thread(loopdevice.backing_files)).items():
        if image.suffix == LoopBackend.SUFFIX:
            images[image.parent][device] = image
    found = await asyncio.gather(*(_of_volumes(folder, devices) for folder, devices in images.items()))
    return list(chain.from_iterable(found))


async def _of_volumes(folder: Path, images: Mapping[Path, Path]) -> Collection[Path]:
    def with_record() -> list[Path]:
        return [device for device, image in images.items() if presence.exists(image.with_suffix(RECORD_SUFFIX))]

    try:
        return await threads.at(folder, with_record)
    except (Hung, OSError):
        return images.keys()


class LoopBackend(FilesBackend):
    """See daemon.backends.files."""

    POOL = FILE_POOLS[LOOP]
    SUFFIX = ".img"
    BLOCK = 4096
    """So that filesystems with any block size use all of an image."""

    def on_device(self, pool: str) -> bool:
        return True

    async def clone_sharing_blocks(self, spec: VolumeSpec, source: Volume) -> Volume | None:
        """Never, also where files can share blocks: xfs writes to such files in whole blocks only, so from then on
        neither source nor copy could have direct I/O on a loop device with sectors of 512 bytes."""
        return None

    @contextlib.asynccontextmanager
    async def device(self, volume: Volume) -> AsyncIterator[Path]:
        held = self._threads.holding(
            place_of(volume.pv),
            partial(self._attach, volume.pv),
            lambda attached: os.close(attached[0]),
            disk=disk_of(self._pool),
            deadline=disks.CALL_SECONDS,
        )
        async with contextlib.AsyncExitStack() as stack:
            with volume_errors():
                _, device = await stack.enter_async_context(held)
            yield device

    @contextlib.contextmanager
    def opened(self, volume: Volume, likely: int = 0) -> Iterator[Path]:
        with volume_errors():
            descriptor, device = self._attach(volume.pv, likely)
        try:
            yield device
        finally:
            os.close(descriptor)

    def _attach(self, pv: str, likely: int = 0) -> tuple[int, Path]:
        image = self._data(pv)
        try:
            return loopdevice.hold(image, likely)
        except OSError as error:
            if not presence.exists(image):
                raise VolumeNotFound(f"volume {pv} is not on this node (any more)") from error
            raise BackendFailed(f"volume {pv} gets no block device: {error}") from error

    def _size(self, data: Path, promised: int) -> int:
        return data.stat().st_size

    def _offered(self, present: Collection[Path]) -> tuple[int, int | None]:
        """What is written in images is taken from the filesystem, and is the volumes' own room all the same."""
        figures = os.statvfs(self._folder)
        written = sum(image.stat().st_blocks * 512 for image in present)
        return figures.f_bavail * figures.f_frsize + written, written

    def _make(self, spec: VolumeSpec, size: int) -> Volume:
        record = spec.record(VolumeState.FORMATTING)
        self._records.write(record)
        return self._volume(record, self._grow_image(spec.pv, size))

    def _enlarge(self, stored: StoredRecord, size: int) -> int:
        pv = stored.record.pv
        grown = self._grow_image(pv, size)
        # Also when there was nothing to grow: the process may have ended between the two, the last time.
        device = loopdevice.find(self._data(pv), whole=True)
        if device:
            loopdevice.set_capacity(device)
        return grown

    def _grow_image(self, pv: str, size: int) -> int:
        """The size that the image has then: at least `size` bytes."""
        descriptor = os.open(self._data(pv), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(descriptor).st_size < size:
                os.ftruncate(descriptor, size)
            os.fsync(descriptor)
            self._records.flush()
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def _refuse_in_use(self, pv: str) -> None:
        image = self._data(pv)
        device = loopdevice.find(image) if presence.exists(image) else None
        if device:  # kept for a block volume that was not staged to the end
            loopdevice.let_go(device)
            device = loopdevice.find(image)
        if device:
            raise InUse(f"volume {pv} is still in use as {device}: stop what uses it")

    def _delete(self, pv: str) -> bool:
        image = self._data(pv)
        if presence.is_link(image):
            raise BackendFailed(
                f"volume {pv} is not gone: {image} is a link that somebody made, and its data is in "
                f"{os.path.realpath(image)}: remove first that on the node, then the link"
            )
        image.unlink(missing_ok=True)
        self._records.flush()
        return True
