"""Inspects the node's storage again and again, because people and other programs change it too.

A node that has no volume group yet is no reason to crash: the daemon says what is missing, in its readiness and in an
event on the Node, looks more often, and goes on when it is there.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping

from daemon.cluster.events import NodeEvents
from daemon.errors import VolumeError
from daemon.storage.deviceclasses import LVM, DeviceClass
from daemon.storage.inventory import Inventory
from daemon.storage.thinpools import Level, level
from daemon.storage.volumes import Volumes
from service.lifecycle import PeriodicLoop

log = logging.getLogger(__name__)

STORAGE_MISSING, STORAGE_FOUND = "StorageMissing", "StorageFound"
STORAGE_BLOCKED = "StorageBlocked"
"""The storage is there, and nothing new can be made in it."""
STORAGE_LESSENED, STORAGE_WHOLE = "StorageLessened", "StorageWhole"
"""It gives less room than it could, or no longer does."""

PERIOD_WHILE_MISSING, PERIOD_WHILE_FILLING = 10.0, 5.0
"""Seconds between two checks at most, while there is more to see than usual."""


class StorageMonitor:
    """Checks every `period` seconds. `problem` says what is wrong with the storage, for readiness. Empty: it is there,
    though perhaps not for all device classes: nodes differ, and `lacking` says for each class what this one does not
    have, or why nothing new can be made in it. `notices` say what gives less room than it could, while the rest serves.

    `changed` is called when a check found something else than before, with whether some storage has just come to be
    usable.
    """

    def __init__(
        self,
        volumes: Volumes,
        classes: Mapping[str, DeviceClass],
        events: NodeEvents,
        changed: Callable[[bool], None],
        period: float = 30.0,
    ) -> None:
        self._volumes = volumes
        self._classes = classes
        self._events = events
        self._changed = changed
        self._period = period
        self._checked = asyncio.Event()
        self._loop = PeriodicLoop(self.check, self._pause)
        self._seen: set[str] = set()
        """Device classes that were there once."""
        self.problem = "not looked at yet"
        self.lacking: Mapping[str, str] = {}
        self.notices: tuple[str, ...] = ()
        events.on_known(self._report_all)

    def trigger(self) -> None:
        """A check is wanted now."""
        self._loop.trigger()

    async def wait_checked(self) -> None:
        """Returns after the first check, whatever it found."""
        await self._checked.wait()

    async def run(self) -> None:
        """For ever."""
        await self._loop.run()

    def _pause(self) -> float:
        if self.problem:
            return min(self._period, PERIOD_WHILE_MISSING)
        filling = any(level(pool) > Level.OK for pool in self._volumes.inventory.pools)
        return min(self._period, PERIOD_WHILE_FILLING) if filling else self._period

    async def check(self) -> None:
        """Inspects the storage, and reports what changed."""
        before, problem_before, lacking_before = self._volumes.inventory, self.problem, self.lacking
        notices_before = self.notices
        try:
            await (self._volumes.start() if self.problem or self.lacking else self._volumes.refresh())
            self.lacking = lacking(self._volumes.inventory, self._classes)
            all_lack = len(self.lacking) == len(self._classes)
            self.problem = "; ".join(dict.fromkeys(self.lacking.values())) if all_lack else ""
            self.notices = noticed(self._volumes.inventory, self._classes)
        except VolumeError as error:
            self.problem = str(error)
        first = not self._checked.is_set()
        self._checked.set()
        self._report_storage("" if first else problem_before, {} if first else lacking_before)
        self._report_notices(notices_before)
        self._seen |= self._classes.keys() - self.lacking.keys()
        recovered = lacking_before.keys() - self.lacking.keys()
        if (self._volumes.inventory, self.problem, self.lacking) != (before, problem_before, lacking_before):
            self._changed((bool(problem_before) or bool(recovered)) and not self.problem)
        await self._volumes.back_up()

    def _report_all(self) -> None:
        """What was found before the Node was known."""
        if self._checked.is_set():
            self._report_storage("", {})
            self._report_notices(())

    def _report_storage(self, problem_before: str, lacking_before: Mapping[str, str]) -> None:
        """What changed since then."""
        if self.problem:
            if self.problem != problem_before:
                self._report(logging.WARNING, self._reason(), self.problem)
            return
        if problem_before:
            lacking_before = {}
            self._report(logging.INFO, STORAGE_FOUND, f"this node has {self._pools_there()} for volumes now")
        for name in sorted({*lacking_before, *self.lacking}):
            why = self.lacking.get(name)
            if why == lacking_before.get(name):
                continue
            if why is None:
                self._report(logging.INFO, STORAGE_FOUND, f"this node has device class {name} now")
            else:
                # Nodes differ, and that is fine. One that had the class has lost a disk.
                reason = self._reason(name)
                level = logging.WARNING if name in self._seen or reason == STORAGE_BLOCKED else logging.INFO
                self._report(level, reason, f"no room for device class {name}: {why}")

    def _reason(self, *names: str) -> str:
        """What keeps these classes, or all that have no room, from having some."""
        inventory = self._volumes.inventory
        blocked = all(inventory.pool(self._classes[name].pool) for name in names or self.lacking)
        return STORAGE_BLOCKED if blocked and self.lacking else STORAGE_MISSING

    def _report_notices(self, before: Collection[str]) -> None:
        for notice in self.notices:
            if notice not in before:
                self._report(logging.WARNING, STORAGE_LESSENED, notice)
        if before and not self.notices:
            self._report(logging.INFO, STORAGE_WHOLE, "this node's storage gives all of its room again")

    def _pools_there(self) -> str:
        return ", ".join(dict.fromkeys(each.pool for name, each in self._classes.items() if name not in self.lacking))

    def _report(self, level: int, reason: str, message: str) -> None:
        log.log(level, "storage: %s", message)
        (self._events.warning if level == logging.WARNING else self._events.normal)(reason, message)


def lacking(inventory: Inventory, classes: Mapping[str, DeviceClass]) -> dict[str, str]:
    """What the node lacks for each of its device classes that has no room, and what to do about it."""
    reasons = {name: missing(inventory, each) for name, each in classes.items()}
    return {name: why for name, why in reasons.items() if why}


def noticed(inventory: Inventory, classes: Mapping[str, DeviceClass]) -> tuple[str, ...]:
    """What gives less room than it could of the pools of these classes and of those with volumes of ours. The rest is
    the node's own system."""
    own = {each.pool.partition("/")[0] for each in classes.values()}
    ours = {volume.pool.partition("/")[0] for volume in inventory.volumes}
    notices: list[str] = []
    for pool in inventory.pools:
        if pool.name in own | ours:
            # What blocks a pool of a class is reported as the class's.
            notices += [*pool.notices, *([pool.blocked] if pool.blocked and pool.name not in own else ())]
    return tuple(notices)


def missing(inventory: Inventory, device_class: DeviceClass) -> str:
    """What the node lacks to make volumes of a device class, and what to do about it."""
    present = inventory.pool(device_class.pool)
    if present is not None:
        return present.blocked
    hidden = {each.pool: each.reason for each in inventory.unavailable}
    if why := hidden.get(device_class.pool) or hidden.get(device_class.group):
        return why
    if device_class.kind != LVM:
        return f"this node has no folder {device_class.folder} for volumes: mount the disk that it is on, or make it"
    group, thin_pool = device_class.group, device_class.thin_pool
    if inventory.pool(group) is not None:
        return f"this node has no thin pool {thin_pool} in volume group {group}: the daemon's log says why it made none"
    pool = device_class.pool
    return f"this node has no {pool} for volumes: make it there with `elastic-local vg create {group} DEVICE...`"
