"""The driver in the kubelet's plugin directory: put there, kept there, and known to be seen.

At its start the daemon puts the driver there anew, even when the very same one stands there: the kubelet then calls
init, which the driver tells the daemon. So a kubelet that looks elsewhere is noticed. Else nothing would show it but
pods that wait for ever.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from flexdriver import installation
from kube.events import ObjectReference, Recorder

log = logging.getLogger(__name__)

DRIVER_MISSING, DRIVER_FOUND = "DriverMissing", "DriverFound"
_NOT_YET = "not installed yet"

PERIOD = 30.0
"""Seconds between two looks at the installed file."""
PATIENCE = 300.0
"""Seconds that the kubelet has to call. It takes notice of a new driver when it next deals with any volume, and with
the volumes of every pod it deals about once a minute."""


class Driver:
    """`problem` says what is wrong with the driver, for readiness. Empty: all is well as far as is known."""

    def __init__(self, chosen: installation.Driver, plugin_directory: Path, patience: float = PATIENCE) -> None:
        """`patience` in seconds."""
        self._chosen = chosen
        self._plugin_directory = plugin_directory
        self._patience = patience
        self._put_at: float | None = None
        self._heard = False
        """Since it was put there."""
        self._unheard = (
            f"the kubelet does not call the driver that was put into {plugin_directory}: set PLUGIN_DIR to its "
            "--volume-plugin-dir, and mount that folder of the host there into this pod"
        )
        self._tell: Callable[[], None] = lambda: None
        self.problem = _NOT_YET

    def tell(self, events: Recorder, node: ObjectReference) -> None:
        """From now on, what is wrong is told on the Node, and that all is well again. What is wrong now, at once."""

        def tell() -> None:
            if self.problem:
                events.warning(node, DRIVER_MISSING, self.problem)
            else:
                events.normal(node, DRIVER_FOUND, "the driver is in its place now")

        self._tell = tell
        if self.problem not in ("", _NOT_YET):
            tell()

    def heard(self) -> None:
        """The kubelet called."""
        self._heard = True
        if self.problem == self._unheard:
            self._found("")

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.look()
            await asyncio.sleep(PERIOD)

    async def look(self) -> None:
        """One look: puts the driver there if it is not, is another, or was not put there by this daemon yet."""
        now = asyncio.get_running_loop().time()
        try:
            if self._put_at is None or not await asyncio.to_thread(self._stands):
                self._heard = False
                target = await asyncio.to_thread(installation.install, self._chosen, self._plugin_directory)
                self._put_at = now
                log.info("installed the driver (%s): %s", self._chosen.words, target)
        except OSError as error:
            self._found(
                f"the driver can't be installed in {self._plugin_directory} ({error.strerror}): set PLUGIN_DIR to the "
                "kubelet's --volume-plugin-dir, and mount that folder of the host into this pod, writable"
            )
            return
        late = not self._heard and now - self._put_at >= self._patience
        self._found(self._unheard if late else "")

    def _stands(self) -> bool:
        return installation.installed(self._chosen, self._plugin_directory)

    def _found(self, problem: str) -> None:
        before, self.problem = self.problem, problem
        if problem == before or (before == _NOT_YET and not problem):
            return
        log.log(logging.WARNING if problem else logging.INFO, "driver: %s", problem or "it is in its place now")
        self._tell()
