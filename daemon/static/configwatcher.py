"""The configuration as it is now: read again and again, because a mounted ConfigMap changes under us.

Each reading makes a fresh record, so a key that was taken out is gone. A folder that can't be used keeps the last good
configuration, and says so: in the log, in a metric, in an event on the Node and, when there was no good one yet, by
readiness. The dynamic volumes of the node do not suffer for it.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from daemon.static import configuration
from daemon.static.configuration import Configuration, ConfigurationError, OwnFolders, keep_apart
from daemon.static.metrics import StaticMetrics
from kube.events import Recorder
from kube.records import ObjectReference

log = logging.getLogger(__name__)

INVALID, RELOADED = "StaticConfigurationInvalid", "StaticConfigurationReloaded"


class Reloader:
    """`current` is None until the folder could be used for the first time. `problem` is why the folder can't be used
    now; empty: it can."""

    def __init__(
        self,
        folder: Path,
        node: ObjectReference,
        events: Recorder,
        metrics: StaticMetrics,
        changed: Callable[[], None],
        own: OwnFolders = (),
    ) -> None:
        self._folder = folder
        self._own = own
        self._node = node
        self._events = events
        self._metrics = metrics
        self._changed = changed
        self.current: Configuration | None = None
        self.problem = ""

    async def run(self, period: float) -> None:
        """For ever."""
        while True:
            await self.look()
            await asyncio.sleep(period)

    async def look(self) -> None:
        """Takes what the folder says, if it differs and can be used."""
        try:
            found = keep_apart(await asyncio.to_thread(configuration.read, self._folder), self._own)
        except ConfigurationError as error:
            if str(error) != self.problem:
                kept = "the last good configuration stays" if self.current else "no static volumes until it is right"
                log.error("%s (%s)", error, kept)
                self._metrics.reload_failed()
                self._events.warning(self._node, INVALID, f"{error} ({kept})")
            self.problem = str(error)
            return
        recovered, self.problem = bool(self.problem), ""
        if found == self.current and not recovered:
            return
        for key in found.unknown_keys:
            log.warning("%s/%s is not a key that has a meaning here, it is ignored", self._folder, key)
        if self.current is not None:
            self._events.normal(self._node, RELOADED, f"static volumes are configured by {self._folder} as it is now")
        self.current = found
        log.info("static volumes of classes: %s", ", ".join(found.classes) or "none")
        self._changed()
