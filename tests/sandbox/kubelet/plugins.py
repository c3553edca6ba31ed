"""The plugin directory: which drivers there are.

The kubelet is told of changes by inotify and probes at the next look-up. Looking at the executable's identity and
times at each look-up comes to the same. A driver whose init fails is tried again at each look-up, and what was there
before it stays in use. One look-up at a time: the real one has a mutex around them.
"""

import asyncio
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from tests.sandbox.kubelet.driver import CallFailed, Driver

_log = logging.getLogger(__name__)

Signature = tuple[int, int, int, int]


class NoDriver(Exception):
    """No usable driver of that name; the text is the kubelet's."""

    def __init__(self) -> None:
        super().__init__("failed to get Plugin from volumeSpec: no volume plugin matched")


class Plugins:
    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._directory = directory
        self._environment = environment
        self._known: dict[str, tuple[Signature, Driver]] = {}
        self._probing = asyncio.Lock()

    async def find(self, name: str) -> Driver:
        """The driver `vendor/name`, probed if it is new or changed. Raises NoDriver."""
        async with self._probing:
            return await self._find(name)

    async def _find(self, name: str) -> Driver:
        executable = self._executable(name)
        signature = _signature(executable)
        if signature is None:
            self._known.pop(name, None)
            raise NoDriver
        known = self._known.get(name)
        if known and known[0] == signature:
            return known[1]
        driver = Driver(executable, self._environment)
        try:
            await driver.init()
        except CallFailed as error:
            _log.warning("probing %s: %s", executable, error)
            if known:
                return known[1]
            raise NoDriver from error
        self._known[name] = (signature, driver)
        return driver

    async def probe(self) -> None:
        """Look up every driver that is installed, as a kubelet does when it starts and when the directory changes."""
        for folder in self._directory.glob("*~*"):
            name = folder.name.replace("~", "/", 1)
            if not folder.name.startswith(".") and _signature(self._executable(name)):
                try:
                    await self.find(name)
                except NoDriver:
                    continue

    def _executable(self, name: str) -> Path:
        return self._directory / name.replace("/", "~") / name.rpartition("/")[2]


def _signature(executable: Path) -> Signature | None:
    try:
        found = executable.stat()
    except OSError:
        return None
    if not os.access(executable, os.X_OK):
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
