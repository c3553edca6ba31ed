"""How a volume gets into the folder of a pod: mounted on its staging path, and bound from there.

Mostly that takes no program: the filesystem was unmounted cleanly, or another pod has it mounted already. Then all of
it is one function in one thread, from the first look to the last: `_show`. What takes a program leaves it with
NeedsProgram, is done by that, and the same function is called again.

What is mounted is asked of the kernel by path and never remembered, and what is at the staging path is compared with
the volume's device when it is open to be bound: a pod is not shown what somebody else mounted there.
"""

import contextlib
import logging
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from contract.filesystems import RAW
from daemon.errors import BackendFailed, InUse, Occupied, VolumeError
from daemon.storage.backend import Backend, NeedsProgram
from daemon.storage.blockdevices import BlockDevices
from daemon.storage.disks import Disks
from daemon.storage.encryption import EncryptedDevices
from daemon.storage.filesystems import Filesystems
from daemon.storage.inventory import Volume
from daemon.storage.staging import Staging, TargetPath
from host import filesystem
from host.diskthreads import Hung
from host.mountpoint import MountPoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MountResult:
    """How a mount went that did not fail."""

    anew: bool
    """False: the target showed the volume already."""
    shortfall: VolumeError | None = None
    """Why the volume, or its filesystem, is smaller than it should be, if it is."""


@dataclass(frozen=True)
class _Mount:
    """What is asked for."""

    volume: Volume
    options: tuple[str, ...]
    target: TargetPath
    read_only: bool
    exclusive: bool


class VolumeMounter:
    """Methods are called in the volume's turn, and raise VolumeError, host.filesystem.DamagedFilesystem, CommandError,
    OSError and host.diskthreads.Hung."""

    def __init__(
        self,
        backend: Backend,
        devices: EncryptedDevices,
        staging: Staging,
        filesystems: Filesystems,
        block_devices: BlockDevices,
        disks: Disks,
    ) -> None:
        self._backend = backend
        self._devices = devices
        self._staging = staging
        self._filesystems = filesystems
        self._block_devices = block_devices
        self._disks = disks

    async def mount(
        self, volume: Volume, options: tuple[str, ...], target: TargetPath, read_only: bool, exclusive: bool
    ) -> MountResult:
        """The volume, which is made, in the folder of a pod: see Volumes.mount."""
        mount = _Mount(volume, options, target, read_only, exclusive)
        try:
            async with await self._turn(volume):
                return await self._mount(mount)
        except BaseException:
            await self.release_if_idle(volume.pv)
            raise

    async def is_staged(self, pv: str) -> bool:
        """Whether something is mounted on its staging path."""
        return await self._disks.at(pv, partial(self._staging.staged, pv)) is not None

    async def release_if_idle(self, pv: str) -> None:
        """Removes the staging mount, unless a pod uses it. Failures are logged only."""
        try:
            await self._disks.at(pv, partial(self._staging.release, pv))
        except InUse as used:
            log.debug("the staging mount stays: %s", used, extra={"volume": pv})
        except (OSError, Hung) as error:
            log.warning("the staging mount of %s stays: %s", pv, error, extra={"volume": pv})

    async def _turn(self, volume: Volume) -> AbstractAsyncContextManager[None]:
        """To be held while the volume is mounted. To bind one that is mounted already is no load for its disk."""
        load = self._disks.load(volume.pool)
        return contextlib.nullcontext() if load.locked() and await self.is_staged(volume.pv) else load

    async def _mount(self, mount: _Mount) -> MountResult:
        try:
            return MountResult(await self._shown(mount))
        except NeedsProgram:
            return await self._mount_by_programs(mount)

    async def _mount_by_programs(self, mount: _Mount) -> MountResult:
        volume = mount.volume
        async with self._devices.device(volume) as device:
            with contextlib.suppress(NeedsProgram):  # to have the device may have been all that needed one
                return MountResult(await self._shown(mount, device))
            shortfall = await self._filesystems.mount(volume, device, mount.options)
            try:
                return MountResult(await self._shown(mount, device), shortfall)
            except NeedsProgram:
                raise BackendFailed(
                    f"volume {volume.pv} vanished from {self._staging.path(volume.pv)}: somebody unmounted it, the "
                    "next try mounts it"
                ) from None

    async def _shown(self, mount: _Mount, device: Path | None = None) -> bool:
        """`device`: the volume's, if it is there already."""
        return await self._disks.at(
            mount.volume.pv,
            partial(self._show, mount, device),
            deadline=filesystem.MOUNT_SECONDS,
            late=partial(self._take_back, mount),
        )

    # What follows blocks.

    def _show(self, mount: _Mount, device: Path | None) -> bool:
        """Whether the target did not show the volume before. Raises NeedsProgram, and then the target is as it was."""
        before = self._staging.shown(mount.target)
        staged = self._staging.staged(mount.volume.pv)
        likely = (staged.node or staged.device) if staged else 0
        try:
            with contextlib.nullcontext(device) if device else self._devices.opened(mount.volume, likely) as source:
                return self._show_device(mount, source, staged)
        except (NeedsProgram, Occupied):
            raise
        except BaseException:
            # The kubelet takes a folder that shows anything for a success, and would not ask again. But what was there
            # before, a pod has: a kubelet that starts anew asks again for what is mounted.
            if before is None or self._staging.shown(mount.target) != before:
                self._take_back(mount, anew=True)
            raise

    def _show_device(self, mount: _Mount, source: Path, staged: MountPoint | None) -> bool:
        volume = mount.volume
        if volume.record.filesystem == RAW:
            self._block_devices.stage(volume, source, read_only=mount.read_only)
        elif staged is None:
            if self._backend.on_device(volume.pool):
                self._filesystems.mount_sound(volume, source, mount.options)
            else:
                self._staging.stage_folder(volume.pv, source)
        if mount.exclusive:
            self._staging.refuse_second_pod(volume.pv, mount.target)
        return self._staging.bind(volume.pv, source, mount.target, read_only=mount.read_only, options=mount.options)

    def _take_back(self, mount: _Mount, anew: bool) -> None:
        """What `_show` did to the target. The volume itself, if nobody uses it, is unmounted by who is told of the
        failure, or where nobody waits any more with the next look at what is idle."""
        if not anew:
            return
        try:
            self._staging.unbind(mount.target)
        except (VolumeError, OSError) as error:
            log.warning("%s is left mounted: %s", mount.target.path, error, extra={"volume": mount.volume.pv})
