"""How a volume goes: unmounted, erased, removed. Or stays, when its PersistentVolume says so.

Nothing is removed that is mounted anywhere, of which a copy is being made, or that bears only the name of what is to
go. And nobody says that a volume is gone while its pool can't be seen: it may come back with its disk.
"""

import asyncio
import logging
from dataclasses import replace

from contract import names
from contract.volume import RETAIN
from daemon.backends import Backend
from daemon.errors import PoolMissing
from daemon.storage.erasing import Erasures
from daemon.storage.filesystems import Filesystems
from daemon.storage.record import State
from daemon.storage.snapshots import Snapshots
from daemon.storage.staging import Staging
from daemon.storage.stock import Stock

log = logging.getLogger(__name__)


class Removing:
    """`disks` bounds the operations that load the disks for a moment. Methods are called in the volume's turn, and
    raise VolumeError, CommandError and OSError."""

    def __init__(
        self,
        backend: Backend,
        stock: Stock,
        staging: Staging,
        filesystems: Filesystems,
        snapshots: Snapshots,
        erasures: Erasures,
        disks: asyncio.Semaphore,
    ) -> None:
        self._backend = backend
        self._stock = stock
        self._staging = staging
        self._filesystems = filesystems
        self._snapshots = snapshots
        self._erasures = erasures
        self._disks = disks

    async def removed(self, pv: str, uid: str, pool: str) -> bool:
        """Whether it is gone. False: not yet, its data is being erased."""
        volume = await self._stock.volume(pv)
        if volume is None:
            await self._stock.look()  # who says "gone" must have seen it
            volume = self._stock.inventory.volume(pv)
        if volume is None:
            self._stock.refuse_damaged(pv)
            if self._stock.inventory.pool(pool) is None:
                raise PoolMissing(
                    f"volume {pv} lies in {pool}, which this node does not show now: bring its disks back, or if they "
                    f"are gone for good take the finalizer {names.FINALIZER} off this PersistentVolume"
                )
            return True
        if volume.record.uid != uid:
            log.warning("volume %s has uid %s, not %s: it stays", pv, volume.record.uid, uid, extra={"volume": pv})
            return True
        self._snapshots.refuse(pv, "removed")
        await asyncio.to_thread(self._staging.release, pv)
        if not await self._erasures.done(volume):
            return False
        async with self._disks:
            with self._stock.changing(pv):
                await self._backend.remove(volume)
                self._stock.drop(volume)
        self._filesystems.changed(pv)
        return True

    async def retain(self, pv: str, uid: str) -> None:
        """Its record says from now on that it is to be kept."""
        volume = await self._stock.volume(pv)
        if volume is None or volume.record.uid != uid or volume.record.state is State.ERASING:
            return  # of one whose data is going there is nothing to keep
        if volume.record.policy != RETAIN:
            await self._stock.rewrite(volume, replace(volume.record, policy=RETAIN))
