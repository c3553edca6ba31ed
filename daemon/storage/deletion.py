"""How a volume goes: unmounted, erased, removed. Or stays, when its PersistentVolume says so.

Nothing is removed that is mounted anywhere, of which a copy is being made, or that bears only the name of what is to
go; and nothing without asking right before (daemon.storage.deletionguard). And nobody says that a volume is gone while
its pool can't be seen: it may come back with its disk.
"""

import logging
from dataclasses import replace
from functools import partial

from contract import names
from contract.snapshot import CONTENT_KIND, FINALIZER, is_snapshot
from contract.volume import DELETE, RETAIN
from daemon.errors import Foreign, NotAuthorized, PoolMissing
from daemon.storage.backend import Backend
from daemon.storage.deletionguard import DeletionGuard, RemovalReason
from daemon.storage.disks import Disks
from daemon.storage.encryption import EncryptedDevices
from daemon.storage.erasing import Eraser
from daemon.storage.filesystems import Filesystems
from daemon.storage.inventory import Volume
from daemon.storage.inventorycache import InventoryCache
from daemon.storage.record import VolumeState
from daemon.storage.staging import Staging
from daemon.storage.temporarysnapshots import TemporarySnapshots

log = logging.getLogger(__name__)


class VolumeDeleter:
    """Methods are called in the volume's turn, and raise VolumeError, CommandError, OSError and
    host.diskthreads.Hung."""

    def __init__(
        self,
        backend: Backend,
        cache: InventoryCache,
        staging: Staging,
        filesystems: Filesystems,
        snapshots: TemporarySnapshots,
        eraser: Eraser,
        guard: DeletionGuard,
        disks: Disks,
        devices: EncryptedDevices,
    ) -> None:
        self._backend = backend
        self._cache = cache
        self._staging = staging
        self._filesystems = filesystems
        self._snapshots = snapshots
        self._eraser = eraser
        self._guard = guard
        self._disks = disks
        self._devices = devices

    async def ensure_deleted(self, pv: str, uid: str, pool: str, removal: RemovalReason) -> bool:
        """Whether it is gone. False: not yet, its data is being erased."""
        volume = await self._cache.volume(pv)
        if volume is None or volume.record.uid != uid:
            await self._cache.refresh()  # who says "gone" must have seen it
            volume = self._cache.inventory.volume(pv)
        if volume is None:
            self._cache.raise_if_damaged(pv)
            if why := self._cache.inventory.why_unavailable(pool):
                raise PoolMissing(
                    f"volume {pv} is not to be seen {_in(pool)} now, and so not gone: {why}; if its data is gone for "
                    f"good, {_release(pv)}"
                )
            return True
        if volume.record.uid != uid:
            log.warning("volume %s has uid %s, not %s: it stays", pv, volume.record.uid, uid, extra={"volume": pv})
            return True
        self._snapshots.raise_if_copied(pv, "removed")
        await self._disks.at(pv, partial(self._staging.release, pv))
        await self._devices.lock_device(volume)
        async with self._disks.load(volume.pool):
            try:
                if not await self._erase_and_delete(volume, removal):
                    return False
            except NotAuthorized:
                await self._cache.refresh()  # it is asked again, of what there is then
                raise
        there = self._cache.inventory.pool(volume.pool)
        if there and there.notices:
            await self._cache.refresh()  # its space may have come back where nothing new is made
        return True

    async def _erase_and_delete(self, volume: Volume, removal: RemovalReason) -> bool:
        precondition = self._guard.before_removal(removal)
        if removal is RemovalReason.RECLAIM and await self._policy_became_delete(volume):
            volume = await self._cache.rewrite(volume, replace(volume.record, policy=DELETE))
        volume = await precondition(volume)
        if not await self._eraser.ensure_erased(volume, precondition):
            return False
        with self._cache.changing(volume.pv):
            await self._backend.remove(volume)
            self._cache.remove(volume)
        self._eraser.forget(volume.pv)
        self._filesystems.changed(volume.pv)
        return True

    async def _policy_became_delete(self, volume: Volume) -> bool:
        """Its record says Retain, and its PersistentVolume, which was changed since, Delete. An erasure that was called
        off goes on."""
        return volume.record.policy != DELETE and await self._guard.wants_removal(volume)

    async def retain(self, pv: str, uid: str, pool: str, *, made: bool) -> None:
        """Its record says from now on that it is to be kept, if there ever was a volume: one that was `made` and is
        not found is somewhere else, and would come back with a record that says otherwise. One whose data is being
        erased keeps what is left of it. Of one that was never whole there is nothing to be kept: it is noted as one
        that goes with the other orphans."""
        volume = await self._cache.volume(pv)
        if volume is None:
            await self._cache.refresh()
            volume = self._cache.inventory.volume(pv)
        if volume is None:
            self._cache.raise_if_damaged(pv)
            why = self._cache.inventory.why_unavailable(pool)
            if why or made:
                named = "deletionPolicy" if is_snapshot(pv) else "reclaim policy"
                raise PoolMissing(
                    f"volume {pv} is to be retained, and is not to be seen {_in(pool)} now, so it can't be noted on "
                    f"it: {why or 'bring back the disk that it lies on'}; if its data is gone for good, set the "
                    f"{named} to Delete, or {_release(pv)}"
                )
        elif volume.record.uid != uid:
            if made:
                adopt = f"if it is the same data, run `elastic-local adopt {pv} --yes` on the node; if not, "
                raise Foreign(
                    f"volume {pv} is to be retained, and what this node has under its name is noted as that of uid "
                    f"{volume.record.uid}, not {uid}: {'' if is_snapshot(pv) else adopt}{_release(pv)}"
                )
        else:
            unfinished = volume.record.state in (VolumeState.FORMATTING, VolumeState.COPYING) and not made
            policy = DELETE if unfinished else RETAIN
            if volume.record.policy != policy:
                await self._cache.rewrite(volume, replace(volume.record, policy=policy))


def _in(pool: str) -> str:
    return f"in {pool}" if pool else "on this node"


def _release(pv: str) -> str:
    """What a person does to the object of a volume whose data the node is to leave alone."""
    finalizer, kind = (FINALIZER, CONTENT_KIND) if is_snapshot(pv) else (names.FINALIZER, "PersistentVolume")
    return f"take the finalizer {finalizer} off this {kind}"
