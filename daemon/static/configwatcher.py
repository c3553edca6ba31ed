"""Reads the configuration folder periodically, because a mounted ConfigMap changes while the daemon runs.

Each read makes a new record, so a key that was removed is gone. While the folder is invalid the last valid
configuration stays in force, and the log, a metric, an event on the Node and readiness say what is wrong. The dynamic
volumes of the node are not affected.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from contract.volume import ObjectReference
from daemon.static import configuration
from daemon.static.configuration import Configuration, ConfigurationError, ReservedFolders, refuse_reserved_folders
from daemon.static.metrics import StaticMetrics
from kube.events import Recorder
from service.lifecycle import PeriodicLoop

log = logging.getLogger(__name__)

INVALID, RELOADED = "StaticConfigurationInvalid", "StaticConfigurationReloaded"


class ConfigWatcher:
    """`current` is None until the folder was valid for the first time. `problem` is why the folder is invalid now;
    empty: it is valid."""

    def __init__(
        self,
        folder: Path,
        node: ObjectReference,
        events: Recorder,
        metrics: StaticMetrics,
        changed: Callable[[], None],
        reserved: ReservedFolders = (),
    ) -> None:
        self._folder = folder
        self._reserved = reserved
        self._node = node
        self._events = events
        self._metrics = metrics
        self._changed = changed
        self._configured = asyncio.Event()
        self.current: Configuration | None = None
        self.problem = ""

    async def run(self, period: float) -> None:
        """For ever."""
        await PeriodicLoop(self.reload, lambda: period).run()

    async def wait_configured(self) -> Configuration:
        """The configuration in force, as soon as there is one."""
        await self._configured.wait()
        assert self.current
        return self.current

    async def reload(self) -> None:
        """Reads the folder, and applies what it says if that is valid and differs."""
        try:
            read = await asyncio.to_thread(configuration.read, self._folder)
        except ConfigurationError as error:
            self._reject(str(error))
        else:
            self._apply(refuse_reserved_folders(read, self._reserved))

    def _reject(self, problem: str) -> None:
        if problem != self.problem:
            effect = "the last valid configuration stays" if self.current else "no static volumes until it is valid"
            log.error("%s (%s)", problem, effect)
            self._metrics.reload_failed()
            self._events.warning(self._node, INVALID, f"{problem} ({effect})")
        self.problem = problem

    def _apply(self, valid: Configuration) -> None:
        recovered, self.problem = bool(self.problem), ""
        if valid == self.current and not recovered:
            return
        for key in valid.unknown_keys:
            log.warning("%s/%s is not a known key, it is ignored", self._folder, key)
        if self.current:
            self._events.normal(self._node, RELOADED, f"static volumes use the new configuration in {self._folder}")
        self.current = valid
        self._configured.set()
        log.info("static volumes of classes: %s", ", ".join(valid.classes) or "none")
        self._changed()
