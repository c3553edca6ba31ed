"""Copy-on-write snapshots for the time of a copy: a thick volume is cloned from one, so that pods may use the source
meanwhile. The VolumeSnapshots of Kubernetes are whole volumes: daemon.cluster.snapshotcontroller.

A snapshot keeps what is overwritten in its source, in room of its own that it takes from what is not reserved. If
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
from daemon.storage.erasing import Eraser, Rewrite
from daemon.storage.freespace import FreeSpace
from daemon.storage.inventory import Volume
from daemon.storage.inventorycache import InventoryCache
from daemon.storage.keyedqueue import VolumeQueue
from daemon.storage.record import VolumeState

_LEAST_SHARE = 10
"""One part in so many of its source: with less room none is made. Whoever rewrites a tenth of a volume in the time in
which all of it is read once, sequentially, writes about as fast as the disk does. With less than that, an attempt that
loads the disk for hours would too often be in vain."""


@dataclass(frozen=True)
class SnapshotSize:
    """The room that a snapshot can have. Bytes, in whole extents."""

    pool: str
    minimum: int
    maximum: int
    free: int

    @property
    def size(self) -> int:
        """0: there is not enough."""
        return min(self.maximum, self.free) if self.free >= self.minimum else 0


def snapshot_size(pool: str, source: int, maximum: int, spare: int, granularity: int) -> SnapshotSize:
    """For a source of that size, with which a snapshot of `maximum` bytes can't overflow, and so many bytes to
    spare."""
    extents = -(-maximum // granularity)
    minimum = min(extents, -(-source // (_LEAST_SHARE * granularity)))
    return SnapshotSize(pool, minimum * granularity, extents * granularity, max(spare, 0) // granularity * granularity)


class TemporarySnapshots:
    """Those of one node's volumes. Methods raise VolumeError, CommandError and OSError."""

    def __init__(
        self,
        backend: Backend,
        cache: InventoryCache,
        free_space: FreeSpace,
        eraser: Eraser,
        guard: DeletionGuard,
        queue: VolumeQueue,
        rewrite: Rewrite,
    ) -> None:
        self._backend = backend
        self._cache = cache
        self._free_space = free_space
        self._eraser = eraser
        self._guard = guard
        self._queue = queue
        self._rewrite = rewrite
        self._copied: set[str] = set()
        self._deleting: dict[str, asyncio.Task[None]] = {}

    def raise_if_copied(self, pv: str, what: str) -> None:
        """Raises InUse while there is a snapshot of this volume, of which `what` can't be done then."""
        for snapshot in self._cache.inventory.snapshots:
            if snapshot.record.snapshot_of == pv and snapshot.record.state is VolumeState.COPYING:
                raise InUse(f"volume {pv} can't be {what} while a copy of it is made: that is tried again until it can")

    async def create(self, source: Volume) -> Volume:
        """A snapshot, to be copied until it is given to `leave`. To be called in the turn of its source. Raises
        NoSnapshot."""
        storage = self._backend.snapshot_storage(source.pool)
        if storage is None:
            raise NoSnapshot("its storage has none")
        if not self._size_for(storage, source).size:
            await self._cache.refresh()
        given = self._size_for(storage, source)
        if not given.size:
            raise NoSnapshot(
                f"{given.pool} on this node should have {quantity.humane(given.minimum)} for it that nobody was "
                f"promised, better {quantity.humane(given.maximum)}, and has {quantity.humane(given.free)} (delete "
                "volumes there, or ask its administrator for more space)"
            )
        record = source.record.of_snapshot()
        record = replace(record, cluster=record.cluster or self._guard.cluster)
        self._copied.add(record.pv)
        try:
            with self._free_space.hold(record.pv, given.pool, given.size), self._cache.changing(record.pv):
                async with self._backend.device(source):
                    snapshot = await storage.make(source, record, given.size)
                self._cache.put(snapshot, snapshot.size)
        except BaseException:
            self._copied.discard(record.pv)
            raise
        return snapshot

    def _size_for(self, storage: SnapshotStorage, source: Volume) -> SnapshotSize:
        name = storage.pool_for(source)
        pool = self._cache.inventory.pool(name)
        if pool is None:
            raise NoSnapshot(f"this node does not show {name} now")
        return snapshot_size(
            name, source.device_size, storage.max_size(source), self._free_space.unreserved("", pool), pool.granularity
        )

    async def readable(self, snapshot: Volume) -> bool:
        """Whether it has not overflowed."""
        return await self._of(snapshot).readable(snapshot)

    def release(self, snapshot: Volume) -> None:
        """Nobody copies it any more."""
        self._copied.discard(snapshot.pv)
        self.collect_garbage()

    def collect_garbage(self) -> None:
        """Begins to delete all that nobody copies. What fails is logged, and tried again the next time."""
        for snapshot in self._cache.inventory.snapshots:
            if snapshot.pv not in self._copied and snapshot.pv not in self._deleting and self._is_ours(snapshot):
                task = asyncio.create_task(self._delete(snapshot), name=f"let go of {snapshot.pv}")
                self._deleting[snapshot.pv] = task

    def _is_ours(self, snapshot: Volume) -> bool:
        """Of this very cluster. One that does not say so is of the cluster of its source."""
        source = self._cache.inventory.volume(snapshot.record.snapshot_of)
        of_source = source.record.cluster if source and source.record.uid == snapshot.record.uid else ""
        return bool(self._guard.cluster) and (snapshot.record.cluster or of_source) == self._guard.cluster

    async def close(self) -> None:
        """Breaks off what runs; the next daemon goes on with it."""
        deleting = list(self._deleting.values())
        for task in deleting:
            task.cancel()
        if deleting:
            await asyncio.wait(deleting)

    async def _delete(self, snapshot: Volume) -> None:
        name = snapshot.pv
        try:
            if snapshot.record.state is VolumeState.COPYING:
                await self._queue("split", snapshot.record.snapshot_of, name, lambda: self._split(snapshot))
            while not await self._queue("reclaim", name, None, lambda: self._removed(name)):
                await self._eraser.wait_idle(name)
        except VolumeError:
            return  # it is logged
        finally:
            del self._deleting[name]

    async def _split(self, snapshot: Volume) -> None:
        await self._of(snapshot).split(snapshot)
        await self._rewrite(snapshot, replace(snapshot.record, state=VolumeState.ERASING))

    async def _removed(self, name: str) -> bool:
        snapshot = self._cache.inventory.snapshot(name)
        if snapshot is None:
            return True
        snapshot = await self._guard.before_snapshot_removal(snapshot)
        if not await self._eraser.ensure_erased(snapshot, self._guard.before_snapshot_removal):
            return False
        with self._cache.changing(name):
            await self._of(snapshot).remove(snapshot)
            self._cache.remove(snapshot)
        self._eraser.forget(name)
        return True

    def _of(self, volume: Volume) -> SnapshotStorage:
        storage = self._backend.snapshot_storage(volume.pool)
        assert storage
        return storage
