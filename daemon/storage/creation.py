"""Creates a volume: makes it, then formats it or copies its source. Refuses one that is another PersistentVolume's,
another cluster's, or lost.

A volume is formatted only while its own record says that it never held anything. Whatever is found on a ready one, it
is given out as it is or refused. What was ready once and is not there is lost, and no empty one takes its place.
"""

import time
from dataclasses import replace

from contract.filesystems import RAW
from daemon.errors import (
    BeingErased,
    ClusterUnknown,
    Damaged,
    Foreign,
    Lost,
    NoEncryption,
    NotABlockDevice,
    NotUnlocked,
    PoolMissing,
)
from daemon.storage.backend import Backend
from daemon.storage.blockdevices import BlockDevices
from daemon.storage.cloning import VolumeCloner
from daemon.storage.deletionguard import DeletionGuard
from daemon.storage.disks import Disks
from daemon.storage.encryption import EncryptedDevices
from daemon.storage.filesystems import Filesystems
from daemon.storage.freespace import FreeSpace
from daemon.storage.inventory import Volume
from daemon.storage.inventorycache import InventoryCache
from daemon.storage.record import VolumeSpec, VolumeState
from host.luks import Passphrase


def _encrypted(encryption: str) -> str:
    return f"encrypted ({encryption})" if encryption else "not encrypted"


def _now() -> int:
    """Seconds since 1970."""
    return int(time.time())


class VolumeCreator:
    """Methods are called in the volume's turn, and raise VolumeError, host.filesystem.DamagedFilesystem, CommandError,
    OSError and host.diskthreads.Hung."""

    def __init__(
        self,
        backend: Backend,
        cache: InventoryCache,
        free_space: FreeSpace,
        filesystems: Filesystems,
        cloning: VolumeCloner,
        guard: DeletionGuard,
        disks: Disks,
        block_devices: BlockDevices,
        devices: EncryptedDevices,
    ) -> None:
        self._backend = backend
        self._cache = cache
        self._free_space = free_space
        self._filesystems = filesystems
        self._cloner = cloning
        self._guard = guard
        self._disks = disks
        self._block_devices = block_devices
        self._devices = devices

    async def ensure_created(self, spec: VolumeSpec, passphrase: Passphrase | None = None) -> Volume:
        """The volume, ready to be mounted, with what the PersistentVolume says of it now. Without its passphrase an
        encrypted one that is neither ready nor a copy can't be made: raises NotUnlocked."""
        volume = await self._cache.volume(spec.pv)
        if volume is None and spec.made:
            await self._cache.refresh()  # who says "lost" must have seen it
            volume = self._cache.inventory.volume(spec.pv)
        if volume is None:
            self._cache.raise_if_damaged(spec.pv)
            self._cache.raise_if_foreign(spec.pv)
        elif volume.record.state is VolumeState.ERASING:
            raise BeingErased(
                f"volume {spec.pv} is being erased, because its PersistentVolume was deleted: its data is gone, "
                "make a new claim"
            )
        elif volume.record.uid != spec.uid:
            raise Foreign(
                f"this node holds a volume {spec.pv} of an earlier PersistentVolume (uid {volume.record.uid}) and "
                "does not show its data to another: use another name, or have the administrator remove the old volume, "
                f"or hand it over with `elastic-local adopt {spec.pv}`"
            )
        elif volume.record.encryption != spec.parameters.encryption:
            raise Damaged(
                f"volume {spec.pv} is {_encrypted(volume.record.encryption)} on this node, and its PersistentVolume "
                f"says that it is {_encrypted(spec.parameters.encryption)}: its data is not touched, make a "
                "PersistentVolume that says what it is"
            )
        if volume is None or volume.record.state in (VolumeState.FORMATTING, VolumeState.COPYING):
            if spec.made:
                if volume is None and (
                    why := self._cache.inventory.why_unavailable(self._backend.pool_of(spec.parameters))
                ):
                    raise PoolMissing(f"volume {spec.pv} was made on this node and can't be seen now: {why}")
                raise Lost(
                    f"volume {spec.pv} was made on this node and is not there any more: bring back the disks that it "
                    "lies on; if they are gone for good, so is its data: delete the claim and make it anew"
                )
            if not spec.cluster:
                raise ClusterUnknown(
                    f"volume {spec.pv} is not made yet: this node's daemon could not read which cluster it belongs "
                    "to, its /readyz says why; it is made as soon as that is known"
                )
            await self._guard.check_format(spec, partial=volume)
            if spec.original is not None:
                return await self._clone(spec, partial=volume)
            if spec.parameters.encryption:
                self._check_encryption(spec, volume, passphrase)
            if spec.parameters.filesystem == RAW:
                return await self._create_device(spec, partial=volume, passphrase=passphrase)
            return await self._create_and_format(spec, partial=volume, passphrase=passphrase)
        cluster = volume.record.cluster or spec.cluster
        if (volume.record.policy, volume.record.cluster) == (spec.policy, cluster):
            return volume
        return await self._cache.rewrite(volume, replace(volume.record, policy=spec.policy, cluster=cluster))

    def _check_encryption(self, spec: VolumeSpec, partial: Volume | None, passphrase: Passphrase | None) -> None:
        """Raises NoEncryption and NotUnlocked where an encrypted volume can't be made now."""
        pool = partial.pool if partial else self._backend.pool_of(spec.parameters)
        if not self._backend.on_device(pool):
            raise NoEncryption(
                f"volume {spec.pv} is to be encrypted, and {pool} of this node has folders only: use a class of "
                "another device class"
            )
        if passphrase is None:
            raise NotUnlocked(
                f"volume {spec.pv} is encrypted and made when the kubelet stages it for its first pod, by CSI: nobody "
                "else has its passphrase"
            )

    async def _create_and_format(
        self, spec: VolumeSpec, partial: Volume | None, passphrase: Passphrase | None
    ) -> Volume:
        """A new volume, or one whose making was cut off and that nobody has mounted yet."""
        async with self._disks.load(partial.pool if partial else self._backend.pool_of(spec.parameters)):
            if partial is not None:  # what a cryptsetup that was killed left open would keep it from being made anew
                await self._devices.lock_device(partial)
            async with self._free_space.reserve(spec, partial.size if partial else 0) as taken:
                with self._cache.changing(spec.pv):
                    volume = await self._backend.create(spec)
                    self._cache.put(volume, taken)
            if volume.record.state is VolumeState.READY:
                return volume
            if passphrase and volume.record.encryption:
                await self._devices.make(volume, passphrase)
            await self._filesystems.make(volume, spec.parameters)
        # The disk's turn is given back: the note waits for others rather than for the disk, and the more of them wait
        # at the same time, the more go together (daemon.backends.lvmrecords). The volume's own turn lasts.
        return await self._cache.rewrite(volume, spec.record(VolumeState.READY))

    async def _create_device(self, spec: VolumeSpec, partial: Volume | None, passphrase: Passphrase | None) -> Volume:
        """A new volume without a filesystem, overwritten with zeroes where it does not read as zeroes."""
        pool = partial.pool if partial else self._backend.pool_of(spec.parameters)
        if not self._backend.on_device(pool):
            raise NotABlockDevice(
                f"volume {spec.pv} is to be a block device, and {pool} of this node has folders only: use volumeMode "
                "Filesystem, or a class of another device class"
            )
        if partial is None:
            async with self._disks.load(pool), self._free_space.reserve(spec, 0) as taken:
                with self._cache.changing(spec.pv):
                    partial = await self._backend.create(spec)
                    self._cache.put(partial, taken)
        volume = await self._block_devices.ensure_clear(partial)
        if passphrase and volume.record.encryption:
            await self._devices.make(volume, passphrase)
        return await self._cache.rewrite(volume, replace(volume.record, state=VolumeState.READY))

    async def _clone(self, spec: VolumeSpec, partial: Volume | None) -> Volume:
        """A new volume with the data of another one, or of a snapshot."""
        volume = await self._cloner.clone(spec, partial)
        record = replace(spec.record(VolumeState.READY), taken=volume.record.taken or _now() if spec.content else 0)
        if record.encryption:
            # Without its passphrase nobody can renew what is behind the header; later, a crash meanwhile could cost it.
            await self._devices.renew_uuid(volume)
            return await self._cache.rewrite(volume, replace(record, uuid_inherited=record.filesystem != RAW))
        if spec.parameters.filesystem == RAW:
            copied = min(self._cloner.source(spec).size, volume.size)
            volume = await self._cache.rewrite(volume, replace(volume.record, cleared=copied))
            volume = await self._block_devices.ensure_clear(volume)
            return await self._cache.rewrite(volume, replace(record, cleared=volume.record.cleared))
        async with self._disks.load(volume.pool):
            await self._cloner.renew_uuid(volume)
        return await self._cache.rewrite(volume, record)
