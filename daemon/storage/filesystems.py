"""The filesystems on a node's volumes: made once, and checked and grown on the way to the staging mount.

A volume may have grown while it was not mounted, or the daemon may have ended between the two steps of growing, so
each mount of an older one sees to it that the filesystem fills its device. That it can't is no reason to withhold the
data: the mount says why, and who asks for the room, asks by `grow`.

Where a filesystem has to grow unmounted, its volume's record says so from before the first byte is written until it is
done. What is found half done is mended by a check that repairs everything, which is right only because that record says
that the filesystem was sound before: on any other, such a check may throw away what a person could have saved.
"""

import asyncio
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

from contract import quantity
from contract.filesystems import RAW
from contract.parameters import VolumeParameters
from daemon.errors import BackendFailed, Damaged, MountRefused, VolumeError
from daemon.storage.backend import Backend, NeedsProgram
from daemon.storage.blockdevices import raise_if_write_protected
from daemon.storage.disks import Disks
from daemon.storage.encryption import EncryptedDevices
from daemon.storage.inventory import Volume
from daemon.storage.inventorycache import InventoryCache
from daemon.storage.record import VolumeState
from daemon.storage.staging import Staging
from host import blockdevice, filesystem
from host.command import CommandError, CommandFailed

log = logging.getLogger(__name__)


_OTHER_CLASS = "Correct mkfsOptions or mountOptions in a new StorageClass, and make a new claim of that"


def _reason(error: Exception) -> str:
    return error.what if isinstance(error, filesystem.DamagedFilesystem) else str(error)


class Filesystems:
    """Those of one backend. Methods raise VolumeError, host.filesystem.DamagedFilesystem, CommandError, OSError, and
    host.diskthreads.Hung."""

    def __init__(
        self, backend: Backend, devices: EncryptedDevices, cache: InventoryCache, staging: Staging, disks: Disks
    ) -> None:
        self._backend = backend
        self._devices = devices
        self._cache = cache
        self._staging = staging
        self._disks = disks
        self._fresh: set[str] = set()
        """Formatted by this process and not mounted since: there is nothing to check or to grow."""

    async def make(self, volume: Volume, parameters: VolumeParameters) -> None:
        """Whatever the volume held is lost."""
        async with self._devices.device(volume) as device:
            await filesystem.make(parameters.filesystem, device, parameters.mkfs_options)
        self._fresh.add(volume.pv)

    def changed(self, pv: str) -> None:
        """The volume is not as it was when its filesystem was made."""
        self._fresh.discard(pv)

    def mount_sound(self, volume: Volume, device: Path, options: tuple[str, ...]) -> None:
        """The volume at its staging path, if its filesystem needs no check and fills it. Raises NeedsProgram, and then
        it is not mounted. Blocks."""
        path, kind, twin = self._staging.make_folder(volume.pv), volume.record.filesystem, volume.record.uuid_inherited
        if volume.record.growing or not filesystem.mount_sound(kind, device, path, options, twin=twin, smaller=False):
            raise NeedsProgram
        self._fresh.discard(volume.pv)

    async def mount(self, volume: Volume, device: Path, options: tuple[str, ...]) -> VolumeError | None:
        """The volume at its staging path, with all that it takes: where `mount_sound` can't. Returns why its filesystem
        is smaller than the volume, if it is."""
        path = await self._disks.at(volume.pv, partial(self._staging.make_folder, volume.pv))
        try:
            if volume.pv not in self._fresh:
                return await self._mount_old(volume, device, path, options)
            await filesystem.mount(volume.record.filesystem, device, path, options)
        except filesystem.OptionsRefused as error:
            raise MountRefused(
                f"volume {volume.pv} can't be mounted as its class wants it, its filesystem is sound: {error}. "
                f"{_OTHER_CLASS}"
            ) from error
        except filesystem.SectorsTooLarge as error:
            raise MountRefused(
                f"volume {volume.pv} can't be mounted where it lies now, its filesystem is sound: {error}; on the "
                "node move it back to a disk with smaller sectors (`pvmove`), or mount a copy there and move its "
                "files to a new claim"
            ) from error
        except (filesystem.DamagedFilesystem, CommandFailed) as error:
            if volume.pv not in self._fresh:
                raise
            # It was made a moment ago and holds nothing: what the kernel does not like can only be how it was made.
            raise MountRefused(
                f"volume {volume.pv} is new and empty, and the kernel of this node does not mount a "
                f"{volume.record.filesystem} that was made so: {_reason(error)}. {_OTHER_CLASS}"
            ) from error
        self._fresh.discard(volume.pv)
        return None

    async def raise_if_cut_off(self, volume: Volume) -> None:
        """Raises Damaged when the volume is smaller than its filesystem: extended, it would show zeroes, or what others
        left, for what it held, and nobody would hear of it."""
        record = volume.record
        if record.state is not VolumeState.READY or record.filesystem == RAW:
            return
        if not self._backend.on_device(volume.pool) or (record.encryption and not await self._devices.is_open(volume)):
            return
        async with self._devices.device(volume) as device:
            gone = await self._disks.at(volume.pv, partial(filesystem.missing, record.filesystem, device))
        if gone:
            raise Damaged(
                f"volume {volume.pv} was made smaller on the node than its filesystem, of which "
                f"{quantity.humane(gone)} are cut off: it is neither mounted nor extended until its administrator "
                "brings them back (after lvreduce: `vgcfgrestore`), or restores it from a backup"
            )

    async def check_staged(self, volume: Volume) -> None:
        """Raises Occupied when something else is mounted on its staging path."""
        async with self._devices.device(volume) as source:
            await self._disks.at(volume.pv, partial(self._staging.raise_if_covered, volume.pv, source))

    async def _mount_old(
        self, volume: Volume, device: Path, path: Path, options: tuple[str, ...]
    ) -> VolumeError | None:
        kind, twin = volume.record.filesystem, volume.record.uuid_inherited
        grows_mounted, shortfall = filesystem.grows_mounted(kind), None
        if grows_mounted and not volume.record.growing:
            mount = partial(filesystem.mount_sound, kind, device, path, options, twin=twin)
            if await self._disks.at(volume.pv, mount, deadline=filesystem.MOUNT_SECONDS):
                return await self._fill(volume, device)
        # To e2fsck it would be damage, and mount(8) would mount it read-only without being asked to.
        await self._disks.at(volume.pv, partial(raise_if_write_protected, volume.pv, device))
        await self.raise_if_cut_off(volume)
        # A container may keep it mounted in a mount namespace of its own: it was checked then, and can't be now.
        if not await self._disks.at(volume.pv, partial(blockdevice.is_claimed, device)):
            volume = await self._mended(volume, device)
            await filesystem.check(kind, device)
            if not grows_mounted:
                shortfall = await self._grow_unmounted(volume, device)
        await filesystem.mount(kind, device, path, options, twin=twin)
        return await self._fill(volume, device) if grows_mounted else shortfall

    async def _fill(self, volume: Volume, device: Path) -> VolumeError | None:
        try:
            await filesystem.grow(volume.record.filesystem, device, self._staging.path(volume.pv))
        except (CommandError, OSError) as error:
            return self._shortfall(volume, error)
        return None

    async def mend(self, volume: Volume) -> None:
        """The filesystem of a volume that is not mounted is not half grown any more."""
        if volume.record.growing and volume.record.filesystem != RAW:
            async with self._devices.device(volume) as device:
                if not await self._disks.at(volume.pv, partial(blockdevice.is_claimed, device)):
                    await self._mended(volume, device)

    async def _mended(self, volume: Volume, device: Path) -> Volume:
        if not volume.record.growing:
            return volume
        log.warning("growing the filesystem of %s was cut off: it is mended", volume.pv, extra={"volume": volume.pv})
        await filesystem.mend_growth(volume.record.filesystem, device)
        return await self._cache.rewrite(volume, replace(volume.record, growing=False))

    async def _grow_unmounted(self, volume: Volume, device: Path) -> VolumeError | None:
        kind = volume.record.filesystem
        try:
            if not await filesystem.can_grow_unmounted(kind, device):
                return None
        except (CommandError, OSError) as error:
            return self._shortfall(volume, error)
        growing = replace(volume, record=replace(volume.record, growing=True))
        try:
            growing = await self._cache.rewrite(volume, growing.record)
        except VolumeError as error:
            await self._cache.rewrite(growing, volume.record)  # it may have been noted all the same
            return self._shortfall(volume, error)
        try:
            await filesystem.grow_unmounted(kind, device)
        except (CommandError, OSError) as error:
            await self._mended(growing, device)
            return self._shortfall(volume, error)
        await self._cache.rewrite(growing, volume.record)
        return None

    @staticmethod
    def _shortfall(volume: Volume, error: Exception) -> VolumeError:
        log.warning("the filesystem of %s stays as it is: %s", volume.pv, error, extra={"volume": volume.pv})
        return BackendFailed(f"the filesystem of volume {volume.pv} does not fill it: {error}")

    async def grow(self, volume: Volume) -> None:
        """It fills its device, if it is mounted. If it isn't, the next mount sees to that."""
        await self._devices.fill(volume)
        staged = await asyncio.to_thread(self._staging.mounted, volume.pv)
        if staged is not None and volume.record.filesystem != RAW and self._backend.on_device(volume.pool):
            await self.check_staged(volume)
            await filesystem.grow(volume.record.filesystem, Path(staged.source), Path(staged.path))
