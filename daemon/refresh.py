"""Looks at the node's storage again and again, because people and other programs change it too.

A node that has no volume group yet is no reason to crash: the daemon says what is missing, in its readiness and in an
event on the Node, looks more often, and goes on when it is there.
"""

import asyncio
import logging
from collections.abc import Callable

from contract.parameters import VolumeParameters
from daemon.backends import Backend
from daemon.errors import VolumeError
from daemon.record import Inventory
from daemon.thinpools import Level, level
from daemon.volumes import Volumes
from kube.events import ObjectReference, Recorder

log = logging.getLogger(__name__)

STORAGE_MISSING, STORAGE_FOUND = "StorageMissing", "StorageFound"

PERIOD_WHILE_MISSING, PERIOD_WHILE_FILLING = 10.0, 5.0
"""Seconds between two looks at most, while there is more to see than usual."""


class Refresher:
    """Looks every `period` seconds. `problem` says what is wrong with the storage, for readiness. Empty: it is there.

    `changed` is called when a look found something else than before, with whether the storage has just come to be
    usable.
    """

    def __init__(
        self, volumes: Volumes, backend: Backend, changed: Callable[[bool], None], period: float = 30.0
    ) -> None:
        self._volumes = volumes
        self._pool = backend.pool_of(VolumeParameters())
        self._changed = changed
        self._period = period
        self._looked = asyncio.Event()
        self._tell: Callable[[], None] = lambda: None
        self.problem = "not looked at yet"

    async def wait_looked(self) -> None:
        """Returns after the first look, whatever it found."""
        await self._looked.wait()

    def tell(self, events: Recorder, node: ObjectReference) -> None:
        """From now on, what is missing and what was found is told on the Node. What is missing now is told at once."""

        def tell() -> None:
            if self.problem:
                events.warning(node, STORAGE_MISSING, self.problem)
            else:
                events.normal(node, STORAGE_FOUND, f"this node has {self._pool} for volumes now")

        self._tell = tell
        if self._looked.is_set() and self.problem:
            tell()

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.look()
            await asyncio.sleep(self._pause())

    def _pause(self) -> float:
        if self.problem:
            return min(self._period, PERIOD_WHILE_MISSING)
        filling = any(level(pool) > Level.FINE for pool in self._volumes.inventory.pools)
        return min(self._period, PERIOD_WHILE_FILLING) if filling else self._period

    async def look(self) -> None:
        """One look."""
        before, problem_before = self._volumes.inventory, self.problem
        try:
            await (self._volumes.start() if self.problem else self._volumes.refresh())
            self.problem = missing(self._volumes.inventory, self._pool)
        except VolumeError as error:
            self.problem = str(error)
        first = not self._looked.is_set()
        self._looked.set()
        if self.problem != problem_before and not (first and not self.problem):
            log.log(logging.WARNING if self.problem else logging.INFO, "storage: %s", self.problem or "all is well")
            self._tell()
        if self._volumes.inventory != before or self.problem != problem_before:
            self._changed(bool(problem_before) and not self.problem)


def missing(inventory: Inventory, pool: str) -> str:
    """What the node lacks to hold a volume of a class without parameters, and what to do about it."""
    if inventory.pool(pool) is not None:
        return ""
    group, _, thin_pool = pool.partition("/")
    if inventory.pool(group) is not None:
        return f"this node has no thin pool {thin_pool} in volume group {group}: the daemon's log says why it made none"
    return f"this node has no {pool} for volumes: make it there with `elastic-local vg create {group} DEVICE...`"
