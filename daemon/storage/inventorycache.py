"""What the node's pools hold, kept in memory: one look at the start, and then our own changes.

A look costs a start of LVM and a scan of all devices, and nobody else makes volumes of ours, so a mount must not pay
for one. What a look finds always wins, except for the volumes that were being changed while it looked: of those it may
have seen either side. A change that failed leaves its volume in doubt, and the next one who asks for it looks first.
What a disk that gives no answer has shown last ends no doubt.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from daemon.errors import BackendFailed, Damaged, Foreign
from daemon.storage.backend import Backend
from daemon.storage.inventory import Inventory, Pool, Volume, of_cluster
from daemon.storage.record import Record
from daemon.storage.thinpools import PoolExtension


class InventoryCache:
    """The inventory of a backend, as a daemon of `cluster` sees it. Empty: it does not know its cluster yet."""

    def __init__(self, backend: Backend, cluster: Callable[[], str] = str) -> None:
        self._backend = backend
        self._cluster = cluster
        self._inventory = Inventory()
        self._changing: set[str] = set()
        self._touched: set[str] = set()
        self._uncertain: set[str] = set()
        self._refreshing = asyncio.Lock()
        self._begun = 0
        self._finished = 0
        """Number of the last look that succeeded: looks are numbered as they begin."""

    @property
    def inventory(self) -> Inventory:
        return self._inventory

    async def refresh(self) -> None:
        """Reads the backend. Whoever asks while a look is under way shares the next one. Raises VolumeError."""
        begun_before = self._begun
        async with self._refreshing:
            if self._finished > begun_before:
                return
            self._begun = number = self._begun + 1
            self._touched = set(self._changing)
            seen = of_cluster(await self._backend.inspect(), self._cluster())
            seen = with_last_known(self._inventory, seen)
            self._inventory = merged(self._inventory, seen, self._touched)
            if not any(each.unresponsive for each in seen.unavailable):
                self._uncertain &= self._touched
            self._finished = number

    async def volume(self, pv: str) -> Volume | None:
        """The volume of a PersistentVolume, which nobody else may be changing meanwhile."""
        if pv in self._uncertain or not self._finished:
            await self.refresh()
            for silent in self._inventory.unavailable:
                if pv in self._uncertain and silent.unresponsive:
                    raise BackendFailed(f"nobody can see how far volume {pv} was changed: {silent.reason}")
        return self._inventory.volume(pv)

    @contextlib.contextmanager
    def changing(self, pv: str) -> Iterator[None]:
        """Around each call of the backend that changes the volume, and the note of its result."""
        self._changing.add(pv)
        self._touched.add(pv)
        try:
            yield
        except BaseException:
            self._uncertain.add(pv)
            raise
        finally:
            self._changing.discard(pv)

    async def rewrite(self, volume: Volume, record: Record) -> Volume:
        """The volume with another record, in its own turn. Raises VolumeError."""
        with self.changing(volume.pv):
            volume = await self._backend.rewrite(volume, record)
            self.put(volume)
        return volume

    def raise_if_damaged(self, pv: str) -> None:
        """Raises Damaged when there is something by this name that nobody but a person may touch."""
        for damaged in self._inventory.damaged:
            if damaged.name == pv:
                raise Damaged(
                    f"volume {pv} exists on this node, but its record can't be relied on ({damaged.reason}): "
                    "the node's administrator has to look at it, its data is not touched"
                )

    def raise_if_foreign(self, pv: str) -> None:
        """Raises Foreign when another cluster has a volume of this name here."""
        for foreign in self._inventory.foreign:
            if foreign.name == pv and foreign.cluster:
                raise Foreign(
                    f"this node holds a volume {pv} of another cluster ({foreign.cluster}) and does not show its data: "
                    f"if that is gone and its data is to be had here, run `elastic-local adopt {pv}` on the node; else "
                    "use another name"
                )

    def put(self, volume: Volume, taken: int = 0) -> None:
        """Notes how a volume is now, and the bytes that it took from its pool for that."""
        self._inventory = _moved(_with(_without(self._inventory, volume), volume), volume.pool, taken)

    def extend_pool(self, pool_name: str, more: PoolExtension) -> None:
        """Notes what a thin pool took from its group."""
        group = pool_name.partition("/")[0]
        pools = tuple(
            replace(pool, size=pool.size + more.data, free=pool.free + more.data)
            if pool.name == pool_name
            else replace(pool, free=pool.free - more.taken, allocated_since_look=pool.allocated_since_look + more.taken)
            if pool.name == group
            else pool
            for pool in self._inventory.pools
        )
        self._inventory = replace(self._inventory, pools=pools)

    def remove(self, volume: Volume) -> None:
        """Notes that a volume is gone, and gave back all that it took."""
        self._inventory = _moved(_without(self._inventory, volume), volume.pool, -(volume.size + volume.overhead))


def with_last_known(known: Inventory, seen: Inventory) -> Inventory:
    """What was found, and of pools that give no answer what is known: those who use their volumes go on, and nothing
    new is made there."""
    hung = {each.pool: each.reason for each in seen.unavailable if each.unresponsive}
    if not hung:
        return seen

    def why(pool: str) -> str:
        return hung.get(pool) or hung.get(pool.partition("/")[0], "")

    return replace(
        seen,
        volumes=(*seen.volumes, *(each for each in known.volumes if why(each.pool))),
        snapshots=(*seen.snapshots, *(each for each in known.snapshots if why(each.pool))),
        foreign=(*seen.foreign, *(each for each in known.foreign if why(each.pool))),
        damaged=(*seen.damaged, *(each for each in known.damaged if why(each.pool))),
        pools=(*seen.pools, *(replace(pool, blocked=why(pool.name)) for pool in known.pools if why(pool.name))),
    )


def merged(known: Inventory, seen: Inventory, touched: Collection[str]) -> Inventory:
    """What a look found, except where it may have seen a change half done: there, what is known. How full a pool really
    is changes under our feet, and no change of ours says it."""
    if not touched:
        return seen
    volumes, snapshots = (
        (*(each for each in ours if each.pv not in touched), *(each for each in noted if each.pv in touched))
        for ours, noted in ((seen.volumes, known.volumes), (seen.snapshots, known.snapshots))
    )
    pools = tuple(_figures_of(known.pool(pool.name) or pool, pool) for pool in seen.pools)
    return replace(seen, volumes=volumes, snapshots=snapshots, pools=pools)


def _figures_of(known: Pool, seen: Pool) -> Pool:
    """What a look found, with the figures that are known: `allocated_since_look` among them, for it may not have seen
    those."""
    return replace(
        seen, size=known.size, free=known.free, ours=known.ours, allocated_since_look=known.allocated_since_look
    )


def _with(inventory: Inventory, volume: Volume) -> Inventory:
    if volume.record.snapshot_of:
        return replace(inventory, snapshots=(*inventory.snapshots, volume))
    return replace(inventory, volumes=(*inventory.volumes, volume))


def _without(inventory: Inventory, volume: Volume) -> Inventory:
    volumes = tuple(other for other in inventory.volumes if other.pv != volume.pv)
    snapshots = tuple(other for other in inventory.snapshots if other.pv != volume.pv)
    return replace(inventory, volumes=volumes, snapshots=snapshots)


def _moved(inventory: Inventory, pool_name: str, taken: int) -> Inventory:
    return replace(inventory, pools=tuple(_taken_from(pool, pool_name, taken) for pool in inventory.pools))


def _taken_from(pool: Pool, pool_name: str, taken: int) -> Pool:
    if (shared := pool.filesystem) and pool_name in shared.pools:
        pool = replace(pool, filesystem=replace(shared, ours=shared.ours + taken))
    if pool.name != pool_name:
        return pool
    allocated_since_look = pool.allocated_since_look + max(taken, 0) if pool.extents else 0
    return replace(pool, free=pool.free - taken, ours=pool.ours + taken, allocated_since_look=allocated_since_look)
