"""Volumes that are block devices to their pods (volumeMode Block): what must not be read from them, and how they are
staged.

Storage gives out again what others gave back. A filesystem shows nobody what it never wrote; a raw device shows all.
So what a block volume takes from storage that does not read as zeroes is overwritten before a pod sees it, also what it
grows by. Its record says up to which byte that is done, so a crash costs the last seconds. It is done in turns of a
minute, between which others get at the volume: who waits for the volume asks again. What an administrator adds to a
ready one by hand is its pod's at once, and may hold its data: by the record it is told from what we add.

The staging mount of a block volume is its device node, on a file of the staging folder. A node holds no device open,
and a loop device that nobody has open goes, and its number comes back for another file; so a loop device is kept until
the staging mount is released, and whoever mounts a node compares it with the volume's device first.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from contract import quantity
from contract.filesystems import RAW
from daemon.errors import BackendFailed, BeingCleared, PoolBlocked
from daemon.storage.backend import Backend, StaleData
from daemon.storage.disks import CALL_SECONDS, Disks
from daemon.storage.encryption import EncryptedDevices
from daemon.storage.erasing import Method, Throttle, steps
from daemon.storage.inventory import Volume
from daemon.storage.record import Record, VolumeState
from daemon.storage.staging import Staging
from host import blockdevice, erasure

log = logging.getLogger(__name__)

_TURN_SECONDS = 60.0
"""How long clearing keeps others from a volume. The kubelet waits two minutes for an answer."""
_STEP_SECONDS = 5 * CALL_SECONDS
_RECORD_SECONDS = 10.0
"""How often the record says how far it is."""

Rewrite = Callable[[Volume, Record], Awaitable[Volume]]


class BlockDevices:
    """Those of one backend. Methods are called in the volume's turn, and raise VolumeError, CommandError, OSError and
    host.diskthreads.Hung."""

    def __init__(
        self,
        backend: Backend,
        devices: EncryptedDevices,
        staging: Staging,
        disks: Disks,
        rewrite: Rewrite,
        throttle: Throttle,
    ) -> None:
        self._backend = backend
        self._devices = devices
        self._staging = staging
        self._disks = disks
        self._rewrite = rewrite
        self._throttle = throttle

    async def ensure_clear(self, volume: Volume) -> Volume:
        """The volume, of which no byte is anybody else's. Does nothing to one with a filesystem. Raises BeingCleared
        when that takes longer: it goes on when asked again. What others have left reads as noise through the new key of
        an encrypted one; so would zeroes."""
        record = volume.record
        if record.filesystem != RAW or record.encryption:
            return volume
        if record.cleared >= volume.size and not record.growing:
            return volume
        if record.state is VolumeState.READY and not record.growing:
            log.warning("it was extended by hand: what was added stays as it is", extra={"volume": volume.pv})
        elif record.cleared < volume.size:
            volume = await self._cleared(volume)
        return await self._rewrite(volume, replace(volume.record, cleared=volume.size, growing=False))

    async def begin_growth(self, volume: Volume) -> Volume:
        """To be called before a volume that its pods may use is extended: from now on what it gets is ours to clear."""
        record = volume.record
        if record.filesystem != RAW or record.encryption or record.growing or record.state is not VolumeState.READY:
            return volume
        present = await self._backend.reread(volume)  # an administrator may have extended it since the last look
        return await self._rewrite(volume, replace(record, cleared=present.size, growing=True))

    async def _cleared(self, volume: Volume) -> Volume:
        stale = await self._backend.stale_data(volume)
        if stale is StaleData.THIN_RAW:
            raise PoolBlocked(
                f"volume {volume.pv} is to be a block device, and its thin pool {volume.pool} does not zero what it "
                f"hands out, so it would show others' data: lvchange --zero y {volume.pool}"
            )
        return await self._overwritten(volume) if stale is StaleData.RAW else volume

    async def _overwritten(self, volume: Volume) -> Volume:
        clock = asyncio.get_running_loop().time
        begun = recorded = clock()
        async with (
            self._disks.copy(volume.pool),
            self._backend.device(volume) as device,
            self._disks.holding(volume.pv, partial(_opened, device), os.close) as descriptor,
        ):
            for extent in steps(Method.ZERO, volume.record.cleared, volume.size):
                await self._throttle.admit(len(extent))
                await self._at(volume, descriptor, partial(erasure.zero, extent=extent))
                over = clock() - begun >= _TURN_SECONDS and extent.stop < volume.size
                if over or clock() - recorded >= _RECORD_SECONDS:
                    await self._at(volume, descriptor, erasure.flush)
                    volume = await self._rewrite(volume, replace(volume.record, cleared=extent.stop))
                    recorded = clock()
                if over:
                    raise BeingCleared(
                        f"volume {volume.pv} is overwritten with zeroes before a pod may read it, "
                        f"{quantity.humane(extent.stop)} of {quantity.humane(volume.size)} are done: it goes on by "
                        "itself"
                    )
            await self._at(volume, descriptor, erasure.flush)
        return volume

    async def _at(self, volume: Volume, descriptor: int, work: Callable[[int], None]) -> None:
        await self._disks.at_file(volume.pv, descriptor, work, deadline=_STEP_SECONDS)

    def stage(self, volume: Volume, device: Path, *, read_only: bool) -> None:
        """The volume's device is on its staging path. `read_only`: for a pod that does not write to it. Blocks."""
        if not read_only and self._staging.staged(volume.pv) is None:
            raise_if_write_protected(volume.pv, device)
        self._staging.stage_device(volume.pv, device)

    async def flush(self, volume: Volume) -> None:
        """What pods wrote to the device is on the disk."""
        if volume.record.encryption and not await self._devices.is_open(volume):
            return
        async with self._devices.device(volume) as device:
            await self._disks.at(volume.pv, partial(blockdevice.flush, device))


def raise_if_write_protected(pv: str, device: Path) -> None:
    """Blocks. Raises BackendFailed when the kernel takes no writes to the device of a volume."""
    if blockdevice.is_write_protected(device):
        raise BackendFailed(
            f"volume {pv} can't be mounted: {device} is write-protected, its data was not touched; on the node "
            f"`lvchange --permission rw` or `blockdev --setrw {device}` ends that, or see its disk"
        )


def _opened(device: Path) -> int:
    return os.open(device, os.O_RDWR | os.O_CLOEXEC)
