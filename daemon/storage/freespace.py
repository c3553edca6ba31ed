"""Whether a volume may take space: what is free, less what others have a right to.

A PersistentVolume has its space reserved when it is created, long before its volume is made, so what lies free in a
pool is not all anybody's. `space_for` decides it for the figures of one moment; `FreeSpace` sees to it that no two
volumes decide by the same figures.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from contract.capacity import footprint
from contract.parameters import VolumeParameters
from daemon.errors import NoSpace, PoolBlocked, PoolFull
from daemon.storage.backend import Backend
from daemon.storage.inventory import Pool
from daemon.storage.inventorycache import InventoryCache
from daemon.storage.record import VolumeSpec
from daemon.storage.thinpools import Level, PoolExtension, autoextend_percent, level, pool_extension

_PLAIN = VolumeParameters()


@dataclass(frozen=True)
class Reservation:
    """Space that a PersistentVolume of this node has a right to, made or not. `footprint` in bytes of the pool."""

    pv: str
    pool: str
    footprint: int
    parameters: VolumeParameters = _PLAIN


def space_for(
    pv: str,
    pool: Pool,
    made: Mapping[str, int],
    reservations: Iterable[Reservation],
    *,
    ratio: float,
    parameters: VolumeParameters = _PLAIN,
) -> int:
    """Bytes that the volume of `pv`, with these parameters, may take from the pool now, on top of what it has. Can be
    negative.

    `made` says what the volumes that exist take already: it is no longer free. What they lack of what they were
    promised, since they are to grow, is owed to them like to those that are not made yet. When what is owed exceeds the
    pool, because someone took space behind our back, they must not all wait for each other: each yields only to those
    before it in the order of names that can have theirs.

    Volumes with several legs need free space on several devices, which any other volume may take from them. So they
    come first: nothing is taken that one of them, reserved and not made, may need, and they yield to others only what
    they don't need themselves. Who waits here waits for seconds.
    """
    here = [reservation for reservation in reservations if reservation.pool == pool.name]
    lacking = {reservation.pv: reservation.footprint - made.get(reservation.pv, 0) for reservation in here}
    unmade = sorted(
        (replace(reservation, footprint=more) for reservation in here if (more := lacking[reservation.pv]) > 0),
        key=lambda reservation: reservation.pv,
    )
    first = {reservation.pv for reservation in unmade if _finds_devices(pool, reservation)}
    room = pool.available(ratio)
    if lacking.get(pv, 0) <= 0:
        room -= sum(reservation.footprint for reservation in unmade)
    else:
        for reservation in unmade:
            if reservation.pv == pv:
                break
            if reservation.footprint <= room - (0 if pv not in first or reservation.pv in first else lacking[pv]):
                room -= reservation.footprint
    return min(room, *_beside_legs(pv, pool, unmade, parameters), room)


def _beside_legs(pv: str, pool: Pool, unmade: list[Reservation], parameters: VolumeParameters) -> Iterator[int]:
    """What is left for it where volumes of several legs have to find their devices: for itself, if it is one, and so
    that each of the others still does."""
    own = pool.placeable(parameters)
    first: list[Reservation] = []
    for reservation in unmade:
        if reservation.pv == pv:
            if own is not None:
                break  # of its own kind, those after it wait for it
            continue
        if _finds_devices(pool, reservation):
            first.append(reservation)
    for reservation in first:
        others = sum(pool.weight(reservation.parameters, each.parameters) * each.footprint for each in first)
        others -= pool.weight(reservation.parameters, reservation.parameters) * reservation.footprint
        left = (pool.placeable(reservation.parameters) or 0) - reservation.footprint - others
        yield left // pool.weight(reservation.parameters, parameters)
    if own is not None:
        yield own - sum(pool.weight(parameters, each.parameters) * each.footprint for each in first)


def _finds_devices(pool: Pool, reservation: Reservation) -> bool:
    """Whether it needs space on several devices, and has it there. Others find their place anywhere, or nowhere."""
    possible = pool.placeable(reservation.parameters)
    return possible is not None and possible >= reservation.footprint


class FreeSpace:
    """The free space of a node's pools, while volumes take from it."""

    def __init__(
        self, backend: Backend, cache: InventoryCache, reservations: Callable[[], Iterable[Reservation]]
    ) -> None:
        self._backend = backend
        self._cache = cache
        self._reservations = reservations
        self._held: dict[str, tuple[str, int]] = {}
        """Pool and bytes that are being taken, by PersistentVolume, snapshot or thin pool."""

    @contextlib.asynccontextmanager
    async def reserve(self, spec: VolumeSpec, size: int) -> AsyncIterator[int]:
        """The bytes of its pool that a volume takes for growing from `size` (0: not made yet) to what is wanted, held
        for it meanwhile. Raises NoSpace and PoolFull, but not before a fresh look."""
        pool_name = self._backend.pool_of(spec.parameters)
        if self._cache.inventory.pool(pool_name) is None:
            await self._backend.establish()
            await self._cache.refresh()
        elif self._lacks(spec, size, pool_name) or self._is_full(pool_name) or self._blocked(pool_name):
            await self._cache.refresh()
        needs = self._needs(spec, size, pool_name)
        if needs and (blocked := self._blocked(pool_name)):
            raise PoolBlocked(f"volume {spec.pv} gets no room in {pool_name} of this node: {blocked}")
        if needs and self._is_full(pool_name):
            raise PoolFull(
                f"volume {spec.pv} gets no room in thin pool {pool_name} of this node, which is nearly full: delete "
                "volumes on this node, or ask its administrator to extend the pool"
            )
        if self._lacks(spec, size, pool_name):
            raise NoSpace(spec.pv, pool_name, needs, self._available(spec, pool_name))
        with self.hold(spec.pv, pool_name, needs):
            yield needs

    @contextlib.contextmanager
    def reserve_pool_extension(self, pool_name: str) -> Iterator[PoolExtension]:
        """What the thin pool may get from its group, held for it meanwhile."""
        pool, group = self._cache.inventory.pool(pool_name), self._cache.inventory.pool(pool_name.partition("/")[0])
        if pool is None or group is None:
            yield PoolExtension()
            return
        percent = autoextend_percent(pool, self._cache.inventory.volumes)
        more = pool_extension(pool, percent, self.unreserved(pool_name, group))
        with self.hold(pool_name, group.name, more.taken):
            yield more

    def unreserved(self, name: str, pool: Pool) -> int:
        """Bytes of the pool that are not reserved and that nobody is taking: what something that no PersistentVolume
        asks for may take. Can be negative."""
        return self._space(name, pool, _PLAIN)

    @contextlib.contextmanager
    def hold(self, name: str, pool_name: str, size: int) -> Iterator[None]:
        """Nobody else gets these bytes meanwhile."""
        self._held[name] = (pool_name, size)
        try:
            yield
        finally:
            del self._held[name]

    def _blocked(self, pool_name: str) -> str:
        pool = self._cache.inventory.pool(pool_name)
        return pool.blocked if pool else ""

    def _is_full(self, pool_name: str) -> bool:
        pool = self._cache.inventory.pool(pool_name)
        return pool is not None and level(pool) is Level.CRITICAL

    def _lacks(self, spec: VolumeSpec, size: int, pool_name: str) -> bool:
        """What takes nothing is welcome also where more is reserved than there is."""
        needs = self._needs(spec, size, pool_name)
        return needs > 0 and needs > self._available(spec, pool_name)

    def _needs(self, spec: VolumeSpec, size: int, pool_name: str) -> int:
        pool = self._cache.inventory.pool(pool_name)
        if pool is None:
            return 0  # the backend words what is missing
        has = footprint(size, spec.parameters, pool.granularity) if size else 0
        return max(footprint(spec.size, spec.parameters, pool.granularity) - has, 0)

    def _available(self, spec: VolumeSpec, pool_name: str) -> int:
        pool = self._cache.inventory.pool(pool_name)
        if pool is None:
            return 0
        return self._space(spec.pv, pool, spec.parameters)

    def _space(self, name: str, pool: Pool, parameters: VolumeParameters) -> int:
        made = {volume.pv: volume.size + volume.overhead for volume in self._cache.inventory.volumes if volume.size}
        # What is being taken is subtracted as held, and not a second time as reserved.
        reservations = [reservation for reservation in self._reservations() if reservation.pv not in self._held]
        ratio, held = parameters.overprovision_ratio, self._held_in({pool.name})
        taken = replace(pool, allocated_since_look=pool.allocated_since_look + held)
        room = space_for(name, taken, made, reservations, ratio=ratio, parameters=parameters) - held
        if pool.sharing() and (shared := pool.filesystem):
            whole = Pool("", 0, shared.allocatable - shared.ours, shared.ours, 1, reserve=shared.reserve)
            owed = [replace(reservation, pool="") for reservation in reservations if reservation.pool in shared.pools]
            room = min(room, space_for(name, whole, made, owed, ratio=1.0) - self._held_in(shared.pools))
        return room

    def _held_in(self, pools: Collection[str]) -> int:
        return sum(held for held_in, held in self._held.values() if held_in in pools)
