"""Snapshots that live while they are copied, so that their source may be in use meanwhile.

A snapshot keeps what is overwritten in its source, in room of its own that it takes from what nobody was promised. If
that room is not enough it overflows, and the copy with it; the source goes on. When it is no longer copied, its source
is freed of it at once, what it kept is erased as the class of its source wants it, and its room is given back.

It says itself, by its record, what it is. Whatever is found that is not being copied, after a crash or a failure, is
let go with the next look at the node, so it takes room for no longer than its erasure takes.
"""

import asyncio
from dataclasses import dataclass, replace

from contract import quantity
from daemon.errors import InUse, NoSnapshot, VolumeError
from daemon.storage.backend import Backend, SnapshotStorage
from daemon.storage.deletionguard import DeletionGuard
from daemon.storage.erasing import Erasures, Rewrite
from daemon.storage.inventory import Volume
from daemon.storage.ordering import Turn
from daemon.storage.record import VolumeState
from daemon.storage.room import Room
from daemon.storage.stock import Stock

_LEAST_SHARE = 10
"""One part in so many of its source: with less room none is made. Whoever rewrites a tenth of a volume in the time in
which all of it is read once, sequentially, writes about as fast as the disk does. With less than that, an attempt that
loads the disk for hours would too often be in vain."""


@dataclass(frozen=True)
class Share:
    """The room that a snapshot can have. Bytes, in whole extents."""

    pool: str
    least: int
    most: int
    left: int

    @property
    def size(self) -> int:
        """0: there is not enough."""
        return min(self.most, self.left) if self.left >= self.least else 0


def share(pool: str, source: int, most: int, spare: int, granularity: int) -> Share:
    """For a source of that size, with which a snapshot of `most` bytes can't overflow, and so many bytes to spare."""
    extents = -(-most // granularity)
    least = min(extents, -(-source // (_LEAST_SHARE * granularity)))
    return Share(pool, least * granularity, extents * granularity, max(spare, 0) // granularity * granularity)


class Snapshots:
    """All snapshots of one node's volumes. Methods raise VolumeError, CommandError and OSError."""

    def __init__(
        self,
        backend: Backend,
        stock: Stock,
        room: Room,
        erasures: Erasures,
        guard: DeletionGuard,
        turn: Turn,
        rewrite: Rewrite,
    ) -> None:
        self._backend = backend
        self._stock = stock
        self._room = room
        self._erasures = erasures
        self._guard = guard
        self._turn = turn
        self._rewrite = rewrite
        self._copied: set[str] = set()
        self._leaving: dict[str, asyncio.Task[None]] = {}

    def refuse(self, pv: str, what: str) -> None:
        """Raises InUse while there is a snapshot of this volume, of which `what` can't be done then."""
        for snapshot in self._stock.inventory.snapshots:
            if snapshot.record.snapshot_of == pv and snapshot.record.state is VolumeState.COPYING:
                raise InUse(f"volume {pv} can't be {what} while a copy of it is made: that is tried again until it can")

    async def take(self, source: Volume) -> Volume:
        """A snapshot, to be copied until it is given to `leave`. To be called in the turn of its source. Raises
        NoSnapshot."""
        storage = self._backend.snapshots(source.pool)
        if storage is None:
            raise NoSnapshot("its storage has none")
        if not self._share(storage, source).size:
            await self._stock.look()
        given = self._share(storage, source)
        if not given.size:
            raise NoSnapshot(
                f"{given.pool} on this node should have {quantity.humane(given.least)} for it that nobody was promised,"
                f" better {quantity.humane(given.most)}, and has {quantity.humane(given.left)} (delete volumes there, "
                "or ask its administrator for more space)"
            )
        record = source.record.of_snapshot()
        record = replace(record, cluster=record.cluster or self._guard.cluster)
        self._copied.add(record.pv)
        try:
            with self._room.holding(record.pv, given.pool, given.size), self._stock.changing(record.pv):
                async with self._backend.device(source):
                    snapshot = await storage.make(source, record, given.size)
                self._stock.put(snapshot, snapshot.size)
        except BaseException:
            self._copied.discard(record.pv)
            raise
        return snapshot

    def _share(self, storage: SnapshotStorage, source: Volume) -> Share:
        name = storage.pool_for(source)
        pool = self._stock.inventory.pool(name)
        if pool is None:
            raise NoSnapshot(f"this node does not show {name} now")
        return share(name, source.size, storage.most(source), self._room.spare("", pool), pool.granularity)

    async def readable(self, snapshot: Volume) -> bool:
        """Whether it has not overflowed."""
        return await self._of(snapshot).readable(snapshot)

    def leave(self, snapshot: Volume) -> None:
        """Nobody copies it any more."""
        self._copied.discard(snapshot.pv)
        self.tidy()

    def tidy(self) -> None:
        """Begins to let go of all that nobody copies. What fails is told in the log, and begun anew the next time."""
        for snapshot in self._stock.inventory.snapshots:
            if snapshot.pv not in self._copied and snapshot.pv not in self._leaving and self._is_ours(snapshot):
                task = asyncio.create_task(self._let_go(snapshot), name=f"let go of {snapshot.pv}")
                self._leaving[snapshot.pv] = task

    def _is_ours(self, snapshot: Volume) -> bool:
        """Of this very cluster. One that does not say so is of the cluster of its source."""
        source = self._stock.inventory.volume(snapshot.record.snapshot_of)
        of_source = source.record.cluster if source and source.record.uid == snapshot.record.uid else ""
        return bool(self._guard.cluster) and (snapshot.record.cluster or of_source) == self._guard.cluster

    async def close(self) -> None:
        """Breaks off what runs; the next daemon goes on with it."""
        leaving = list(self._leaving.values())
        for task in leaving:
            task.cancel()
        if leaving:
            await asyncio.wait(leaving)

    async def _let_go(self, snapshot: Volume) -> None:
        name = snapshot.pv
        try:
            if snapshot.record.state is VolumeState.COPYING:
                await self._turn("split", snapshot.record.snapshot_of, name, lambda: self._split(snapshot))
            while not await self._turn("reclaim", name, None, lambda: self._removed(name)):
                await self._erasures.settled(name)
        except VolumeError:
            return  # the turn has told of it
        finally:
            del self._leaving[name]

    async def _split(self, snapshot: Volume) -> None:
        await self._of(snapshot).split(snapshot)
        await self._rewrite(snapshot, replace(snapshot.record, state=VolumeState.ERASING))

    async def _removed(self, name: str) -> bool:
        snapshot = self._stock.inventory.snapshot(name)
        if snapshot is None:
            return True
        snapshot = await self._guard.before_snapshot_removal(snapshot)
        if not await self._erasures.done(snapshot, self._guard.before_snapshot_removal):
            return False
        with self._stock.changing(name):
            await self._of(snapshot).remove(snapshot)
            self._stock.drop(snapshot)
        return True

    def _of(self, volume: Volume) -> SnapshotStorage:
        storage = self._backend.snapshots(volume.pool)
        assert storage
        return storage
