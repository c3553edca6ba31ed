"""Watches how full the thin pools of this node are: tells people, once at each threshold, and lets pools grow.

It needs no API server for that: what happens while there is none is told when there is one.
"""

import asyncio
import logging
from collections.abc import Callable, Collection

from contract import quantity
from daemon.errors import VolumeError
from daemon.storage.inventory import Pool
from daemon.storage.thinpools import Enlargement, Level, described, fullness, level, share, watched
from daemon.storage.volumes import Volumes
from kube.events import ObjectReference, Recorder

log = logging.getLogger(__name__)

FILLING, NEARLY_FULL, HAS_ROOM = "ThinPoolFilling", "ThinPoolNearlyFull", "ThinPoolHasRoom"
EXTENDED, NOT_EXTENDED = "ThinPoolExtended", "ThinPoolNotExtended"

PERIOD = 30.0
"""Seconds between two looks when nothing seems to change. What the refresher finds is looked at when it finds it."""

_REMEDY = "extend it (lvextend), or delete volumes and have `fstrim` run in those that stay"


class ThinWatch:
    """`own` are the pools that new thin volumes of this node come from. `recovered` is called when a pool takes new
    volumes again."""

    def __init__(self, volumes: Volumes, own: Collection[str], recovered: Callable[[], None]) -> None:
        self._volumes = volumes
        self._own = own
        self._recovered = recovered
        self._levels: dict[str, Level] = {}
        self._stuck: set[str] = set()
        """Pools that were to grow and could not: told once, until they can."""
        self._changed = asyncio.Event()
        self._events: tuple[Recorder, ObjectReference] | None = None

    def trigger(self) -> None:
        """The storage changed."""
        self._changed.set()

    def tell(self, events: Recorder, node: ObjectReference) -> None:
        """From now on people are told on the Node, of what was found before as well."""
        self._events = events, node
        for pool in self._pools():
            if self._levels.get(pool.name, Level.FINE) > Level.FINE:
                self._tell_level(pool)

    async def run(self) -> None:
        """For ever."""
        while True:
            self._changed.clear()
            await self.look()
            try:
                async with asyncio.timeout(PERIOD):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def look(self) -> None:
        """One look at the inventory."""
        for pool in self._pools():
            if share(pool, self._volumes.inventory.volumes) and fullness(pool) >= Level.WARNING:
                await self._extend(pool)
        pools = self._pools()
        before, self._levels = self._levels, {}
        for pool in pools:
            was = before.get(pool.name, Level.FINE)
            now = self._levels[pool.name] = level(pool, was)
            if now is not was:
                self._tell_level(pool)
            if was is Level.CRITICAL and now < was:
                self._recovered()

    def _pools(self) -> list[Pool]:
        """Those that were told of are among them until they are told to be well, whoever has volumes there then."""
        told = {name for name, found in self._levels.items() if found > Level.FINE}
        return watched(self._volumes.inventory, {*self._own, *told})

    async def _extend(self, pool: Pool) -> None:
        try:
            got = await self._volumes.enlarge(pool.name)
            why = "its volume group has nothing left that was not promised or kept back"
        except VolumeError as error:
            got, why = Enlargement(), str(error)
        if got.taken:
            self._stuck.discard(pool.name)
            parts = ((got.data, "data"), (got.metadata, "metadata"))
            grown = " and ".join(f"{quantity.humane(size)} for {part}" for size, part in parts if size)
            self._say(EXTENDED, f"thin pool {pool.name} had used {described(pool)}: it got {grown}", good=True)
        elif pool.name not in self._stuck:
            self._stuck.add(pool.name)
            self._say(NOT_EXTENDED, f"thin pool {pool.name} has used {described(pool)} and can't grow: {why}")

    def _tell_level(self, pool: Pool) -> None:
        used = f"thin pool {pool.name} has used {described(pool)}"
        match self._levels[pool.name]:
            case Level.FINE:
                self._say(HAS_ROOM, f"{used}: it has room again", good=True)
            case Level.WARNING:
                self._say(FILLING, f"{used}: {_REMEDY}, before writes of its volumes fail")
            case Level.CRITICAL:
                self._say(NEARLY_FULL, f"{used}, so nothing new is made in it: {_REMEDY}")

    def _say(self, reason: str, words: str, *, good: bool = False) -> None:
        log.log(logging.INFO if good else logging.WARNING, "%s", words)
        if self._events:
            events, node = self._events
            (events.normal if good else events.warning)(node, reason, words)
