"""Encrypted volumes: the header at the beginning of their device, and the mapping that shows what is behind it.

What is encrypted is the volume's device, so all that is done from disk to disk (clones, snapshots, erasing) is done to
the device itself, and nothing that leaves it is plain. Filesystems, and pods that want a block device, get the mapping.

The passphrase comes with the kubelet's call that stages the volume, and nobody keeps it. So what needs it is done then:
a new volume gets its header and its filesystem, and the mapping is opened, which stays until the volume is unstaged. A
daemon that starts finds the mapping that another one opened. All else, growing included, needs no passphrase.

A header is made while the volume's own record says that it never held anything, as a filesystem is. What is found on a
ready volume is opened or refused, never made anew.
"""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Collection, Iterator
from functools import partial
from pathlib import Path

from daemon.errors import Damaged, InUse, NotUnlocked, VolumeError, WrongKey
from daemon.storage.backend import Backend, NeedsProgram
from daemon.storage.disks import Disks
from daemon.storage.inventory import Volume
from host import blockdevice, luks
from host.luks import Mapping, Passphrase

log = logging.getLogger(__name__)

_PREFIX = "elastic_local_"
_LONGEST_NAME = 127
"""Characters that device-mapper takes."""
_DERIVATIONS = 2
"""Keys derived at the same time on a node: each takes the memory that host.luks says."""


def mapping_name(pv: str) -> str:
    """The name of a volume's mapping, below /dev/mapper. Hyphens are doubled: LVM keeps a single one, which each of its
    names has, to separate group and volume."""
    name = f"{_PREFIX}{pv.replace('-', '--')}"
    return name if len(name) <= _LONGEST_NAME else f"{_PREFIX}{hashlib.sha256(pv.encode()).hexdigest()}"


def _is_among(pv: str, mappings: Collection[Mapping]) -> bool:
    return Mapping(mapping_name(pv), live=True) in mappings


def _refuse_closed(pv: str, mappings: Collection[Mapping]) -> None:
    """Raises NotUnlocked unless one of the mappings is that of the volume."""
    if not _is_among(pv, mappings):
        raise NotUnlocked(
            f"volume {pv} is encrypted and not open on this node: the kubelet opens it when it stages it for a pod; "
            "if a pod waits here, delete it, so that it is staged anew"
        )


class EncryptedDevices:
    """Those of one backend. Methods are called in the volume's turn, and raise VolumeError, CommandError, OSError and
    host.diskthreads.Hung."""

    def __init__(self, backend: Backend, disks: Disks) -> None:
        self._backend = backend
        self._disks = disks
        self._deriving = asyncio.Semaphore(_DERIVATIONS)

    @contextlib.asynccontextmanager
    async def device(self, volume: Volume) -> AsyncIterator[Path]:
        """What a volume's filesystem or its pod is shown: its own device, or its mapping, which fills it. Raises
        NotUnlocked."""
        async with self._backend.device(volume) as own:
            if not volume.record.encryption:
                yield own
                return
            _refuse_closed(volume.pv, await self._mappings(volume, own))
            await self._fill(volume)
            yield luks.path_of(mapping_name(volume.pv))

    @contextlib.contextmanager
    def opened(self, volume: Volume, likely: int = 0) -> Iterator[Path]:
        """The same, to be called in a thread: see daemon.storage.backend.Backend."""
        with self._backend.opened(volume, likely) as own:
            if not volume.record.encryption:
                yield own
                return
            _refuse_closed(volume.pv, luks.mappings(own))
            mapping = luks.path_of(mapping_name(volume.pv))
            if blockdevice.size(mapping) < volume.size:
                raise NeedsProgram
            yield mapping

    async def is_open(self, volume: Volume) -> bool:
        """Whether an encrypted volume has its mapping."""
        async with self._backend.device(volume) as own:
            return await self._is_open(volume, own)

    async def fill(self, volume: Volume) -> None:
        """The mapping of an encrypted volume that has grown is as large as it, if there is one."""
        if volume.record.encryption and await self.is_open(volume):
            await self._fill(volume)

    async def make(self, volume: Volume, passphrase: Passphrase) -> None:
        """A new header, and its mapping. Whatever the volume held is lost."""
        async with self._backend.device(volume) as own, self._deriving:
            await self._close_all(volume, own)
            await luks.make(own, passphrase, volume.record.header_size)
            await luks.open_mapping(own, mapping_name(volume.pv), passphrase)
        log.info("made the header of its encryption", extra={"volume": volume.pv})

    async def unlock(self, volume: Volume, passphrase: Passphrase) -> None:
        """An encrypted volume has its mapping, and this is a passphrase of it: also one that is open is not shown to
        who can't open it. Raises WrongKey and Damaged."""
        async with self._backend.device(volume) as own, self._deriving:
            try:
                if await self._is_open(volume, own):
                    await luks.check(own, passphrase)
                    return
                await self._close_all(volume, own)
                await luks.open_mapping(own, mapping_name(volume.pv), passphrase)
            except luks.WrongPassphrase as error:
                raise WrongKey(
                    f"volume {volume.pv} is not opened by {passphrase.origin}: put back the passphrase that it was "
                    "made with (a copy has that of its source); its data was not touched"
                ) from error
            except luks.NoHeader as error:
                raise Damaged(
                    f"volume {volume.pv} is encrypted, and {own} has no LUKS header: {error}; its data was not "
                    f"touched, on the node `cryptsetup luksHeaderRestore {own}` restores the header from a backup"
                ) from error
        log.info("opened", extra={"volume": volume.pv})

    async def renew_uuid(self, volume: Volume) -> None:
        """The header of an encrypted copy has a uuid of its own."""
        async with self._backend.device(volume) as own:
            await luks.renew_uuid(own)

    async def lock(self, pv: str) -> None:
        """The volume of that name, if there is one and whatever it is, is not open. Raises InUse."""
        if await asyncio.to_thread(luks.exists, mapping_name(pv)):
            await self._close(pv, mapping_name(pv))

    async def lock_device(self, volume: Volume) -> None:
        """Nothing shows what is behind the header of an encrypted volume that is about to go. Raises InUse."""
        await self.lock(volume.pv)
        if volume.record.encryption:
            async with contextlib.AsyncExitStack() as stack:
                try:
                    own = await stack.enter_async_context(self._backend.device(volume))
                except VolumeError:
                    return  # without a device nothing can be open
                await self._close_all(volume, own)

    async def _is_open(self, volume: Volume, own: Path) -> bool:
        return _is_among(volume.pv, await self._mappings(volume, own))

    async def _mappings(self, volume: Volume, own: Path) -> list[Mapping]:
        return await self._disks.at(volume.pv, partial(luks.mappings, own))

    async def _fill(self, volume: Volume) -> None:
        name = mapping_name(volume.pv)
        if await self._disks.at(volume.pv, partial(blockdevice.size, luks.path_of(name))) < volume.size:
            await luks.fill(name)

    async def _close_all(self, volume: Volume, own: Path) -> None:
        for mapping in await self._mappings(volume, own):
            await self._close(volume.pv, mapping.name)

    async def _close(self, pv: str, name: str) -> None:
        try:
            await luks.close_mapping(name)
        except luks.MappingInUse as error:
            raise InUse(
                f"volume {pv} can't be closed, {luks.path_of(name)} is in use: stop what uses it on the node"
            ) from error
        log.info("closed", extra={"volume": pv})
