"""Monitors how full the thin pools of this node are: reports it, once at each threshold, and extends pools.

It needs no API server to extend them: what happens while there is none is reported when there is one.
"""

import logging
from collections.abc import Callable, Collection

from contract import quantity
from daemon.cluster.events import NodeEvents
from daemon.errors import VolumeError
from daemon.storage.inventory import Pool
from daemon.storage.thinpools import (
    Level,
    PoolExtension,
    autoextend_percent,
    describe_usage,
    level,
    monitored,
    usage_percent,
)
from daemon.storage.volumes import Volumes
from service.lifecycle import PeriodicLoop

log = logging.getLogger(__name__)

FILLING, NEARLY_FULL, HAS_ROOM = "ThinPoolFilling", "ThinPoolNearlyFull", "ThinPoolHasRoom"
EXTENDED, NOT_EXTENDED = "ThinPoolExtended", "ThinPoolNotExtended"

PERIOD = 30.0
"""Seconds between two checks when nothing seems to change. What the storage monitor finds is checked at once."""

_REMEDY = "extend it (lvextend), or delete volumes and have `fstrim` run in those that stay"


class ThinPoolMonitor:
    """`own` are the pools that new thin volumes of this node come from. `recovered` is called when a pool takes new
    volumes again."""

    def __init__(
        self, volumes: Volumes, own: Collection[str], events: NodeEvents, recovered: Callable[[], None]
    ) -> None:
        self._volumes = volumes
        self._own = own
        self._events = events
        self._recovered = recovered
        self._levels: dict[str, Level] = {}
        self._stuck: set[str] = set()
        """Pools that were to be extended and could not: reported once, until they can."""
        self._loop = PeriodicLoop(self.check, lambda: PERIOD)
        events.on_known(self._report_filling)

    def trigger(self) -> None:
        """The storage changed."""
        self._loop.trigger()

    async def run(self) -> None:
        """For ever."""
        await self._loop.run()

    async def check(self) -> None:
        """Reads how full they are from the inventory, and extends those that fill up."""
        for pool in self._pools():
            if autoextend_percent(pool, self._volumes.inventory.volumes) and usage_percent(pool) >= Level.WARNING:
                await self._extend(pool)
        pools = self._pools()
        before, self._levels = self._levels, {}
        for pool in pools:
            was = before.get(pool.name, Level.OK)
            now = self._levels[pool.name] = level(pool, was)
            if now is not was:
                self._report_level(pool)
            if was is Level.CRITICAL and now < was:
                self._recovered()

    def _pools(self) -> list[Pool]:
        """Those that were reported are among them until they have room again, whoever has volumes there then."""
        reported = {name for name, level in self._levels.items() if level > Level.OK}
        return monitored(self._volumes.inventory, {*self._own, *reported})

    async def _extend(self, pool: Pool) -> None:
        try:
            got = await self._volumes.enlarge(pool.name)
            why = "its volume group has nothing left that is not reserved or kept back"
        except VolumeError as error:
            got, why = PoolExtension(), str(error)
        if got.taken:
            self._stuck.discard(pool.name)
            parts = ((got.data, "data"), (got.metadata, "metadata"))
            grown = " and ".join(f"{quantity.humane(size)} for {part}" for size, part in parts if size)
            self._report(EXTENDED, f"thin pool {pool.name} had used {describe_usage(pool)}: it got {grown}", good=True)
        elif pool.name not in self._stuck:
            self._stuck.add(pool.name)
            self._report(NOT_EXTENDED, f"thin pool {pool.name} has used {describe_usage(pool)} and can't grow: {why}")

    def _report_filling(self) -> None:
        """What was found before the Node was known."""
        for pool in self._pools():
            if self._levels.get(pool.name, Level.OK) > Level.OK:
                self._report_level(pool)

    def _report_level(self, pool: Pool) -> None:
        used = f"thin pool {pool.name} has used {describe_usage(pool)}"
        match self._levels[pool.name]:
            case Level.OK:
                self._report(HAS_ROOM, f"{used}: it has room again", good=True)
            case Level.WARNING:
                self._report(FILLING, f"{used}: {_REMEDY}, before writes of its volumes fail")
            case Level.CRITICAL:
                self._report(NEARLY_FULL, f"{used}, so nothing new is made in it: {_REMEDY}")

    def _report(self, reason: str, message: str, *, good: bool = False) -> None:
        log.log(logging.INFO if good else logging.WARNING, "%s", message)
        (self._events.normal if good else self._events.warning)(reason, message)
