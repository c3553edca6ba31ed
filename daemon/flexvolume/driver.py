"""The driver in the kubelet's plugin directory: put there, kept there, and known to be seen. There may be several such
directories, where the nodes of a cluster have different ones: the kubelet of this node looks into one of them.

At its start the daemon puts the driver there anew, even when the very same one stands there: the kubelet then calls
init, which the driver passes on to the daemon. So a kubelet that looks elsewhere is noticed. Else nothing would show it
but pods that wait for ever.
"""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from daemon.cluster.events import NodeEvents
from flexdriver import installation
from service.lifecycle import PeriodicLoop

log = logging.getLogger(__name__)

DRIVER_MISSING, DRIVER_FOUND = "DriverMissing", "DriverFound"
_NOT_YET = "not installed yet"

PERIOD = 30.0
"""Seconds between two checks of the installed file."""
PATIENCE = 300.0
"""Seconds that the kubelet has to call. It takes notice of a new driver when it next deals with any volume, and with
the volumes of every pod it deals about once a minute."""


class DriverInstaller:
    """`problem` says what is wrong with the driver, for readiness. Empty: all is well as far as is known."""

    def __init__(
        self,
        chosen: installation.Driver,
        plugin_directories: Sequence[Path],
        events: NodeEvents,
        patience: float = PATIENCE,
    ) -> None:
        """`patience` in seconds."""
        self._chosen = chosen
        self._plugin_directories = plugin_directories
        self._put_anew: set[Path] = set()
        """Where this daemon has put it."""
        self._events = events
        self._patience = patience
        self._installed_at = 0.0
        """By the clock of the event loop: for the last time, anywhere."""
        self._was_called = False
        """Since it was installed."""
        places = " and ".join(map(str, plugin_directories))
        self._never_called = (
            f"the kubelet does not call the driver that was put into {places}: set PLUGIN_DIR to its "
            "--volume-plugin-dir, and mount that folder of the host there into this pod"
        )
        self._loop = PeriodicLoop(self.check, lambda: PERIOD)
        self.problem = _NOT_YET
        events.on_known(self._report_problem)

    def called(self) -> None:
        """The kubelet called."""
        self._was_called = True
        if self.problem == self._never_called:
            self._set_problem("")

    async def run(self) -> None:
        """For ever."""
        await self._loop.run()

    async def check(self) -> None:
        """Puts the driver there if it is not, is another, or was not put there by this daemon yet."""
        now = asyncio.get_running_loop().time()
        refused = [problem for each in self._plugin_directories if (problem := await self._keep_in(each, now))]
        late = not self._was_called and now - self._installed_at >= self._patience
        self._set_problem(refused[0] if refused else self._never_called if late else "")

    async def _keep_in(self, directory: Path, now: float) -> str:
        """Why it can't be there. Empty: it is there."""
        try:
            if directory in self._put_anew and await asyncio.to_thread(installation.installed, self._chosen, directory):
                return ""
            self._was_called = False
            target = await asyncio.to_thread(installation.install, self._chosen, directory)
        except OSError as error:
            return (
                f"the driver can't be installed in {directory} ({error.strerror}): set PLUGIN_DIR to the "
                "kubelet's --volume-plugin-dir, and mount that folder of the host into this pod, writable"
            )
        self._put_anew.add(directory)
        self._installed_at = now
        log.info("installed the driver (%s): %s", self._chosen.description, target)
        return ""

    def _set_problem(self, problem: str) -> None:
        before, self.problem = self.problem, problem
        if problem == before or (before == _NOT_YET and not problem):
            return
        log.log(logging.WARNING if problem else logging.INFO, "driver: %s", problem or "it is in its place now")
        self._report()

    def _report(self) -> None:
        if self.problem:
            self._events.warning(DRIVER_MISSING, self.problem)
        else:
            self._events.normal(DRIVER_FOUND, "the driver is in its place now")

    def _report_problem(self) -> None:
        """What is wrong when the Node becomes known."""
        if self.problem not in ("", _NOT_YET):
            self._report()
