"""The plug of a whole machine is pulled while it works, over and over: User-mode Linux with LVM on two disks, which are
files of the host. What the host was told stays told, and must be there after the next boot."""

import json
import os
import pickle
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.torture.figures import Figures
from tests.torture.guestlife import replayed
from tests.torture.lvmnode import DISK_BYTES
from tests.torture.model import Model
from tests.uml.guest import PROJECT, Guest

_BOOT_SECONDS = 300.0
_POLL_SECONDS = 0.02
_LONGEST_LOAD_SECONDS = 4.0
_TOO_MANY_FAILURES = 4


class PowerCuts:
    """In `folder`, from one seed."""

    def __init__(self, folder: Path, seed: int, figures: Figures) -> None:
        self._folder = folder
        self._chance = random.Random(seed)
        self._figures = figures
        self._model = Model()
        self._disks = [folder / "disk-0", folder / "disk-1"]
        for disk in self._disks:
            with disk.open("wb") as file:
                file.truncate(DISK_BYTES)

    def run(self, enough: Callable[[], bool]) -> None:
        """Until `enough`, or the first complaint. The last boot checks what the last cut left."""
        number = 0
        while not self._figures.complaints:
            number += 1
            last = enough()
            self._boot(number, cut=not last)
            if last:
                return

    def _boot(self, number: int, *, cut: bool) -> None:
        shared = self._folder / f"boot-{number}"
        shared.mkdir()
        (shared / "model").write_bytes(pickle.dumps(self._model.powered_off()))
        self._model = self._model.powered_off()
        # Half a dozen of a hundred cuts come while the last one is mended still.
        event = "started" if self._chance.random() < 0.06 and number > 1 else "loading"
        seconds = self._chance.uniform(0, 1.0 if event == "started" else _LONGEST_LOAD_SECONDS)
        path = [str(PROJECT), *(each for each in sys.path if each)]
        guest = Guest(
            shared,
            [
                *(sys.executable, "-S", "-m", "tests.torture.guestlife"),  # half of a boot is Python's imports
                *(str(shared), str(self._chance.getrandbits(32))),
                *("/dev/ubda", "/dev/ubdb"),
            ],
            cwd=PROJECT,
            environment={"PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"},
            disks=self._disks,
        )
        try:
            self._wait(guest, shared, event if cut else "loading")
            if cut:
                time.sleep(seconds)
        finally:
            guest.kill()
        events = _events(shared)
        for each in events:
            self._note(each)
        if self._figures.complaints:
            self._figures.complaints += [f"    {json.dumps(each)}" for each in events[-40:]]
        self._figures.counts["power cuts" if cut else "last boots"] += 1
        self._figures.counts["rounds"] += 1
        shutil.rmtree(shared)

    def _wait(self, guest: Guest, shared: Path, event: str) -> None:
        deadline = time.monotonic() + _BOOT_SECONDS
        while not any(each["event"] == event for each in _events(shared)):
            if not guest.running or time.monotonic() > deadline:
                self._figures.complaints += [f"the guest never came to {event}", guest.console()]
                return
            time.sleep(_POLL_SECONDS)

    def _note(self, event: dict[str, Any]) -> None:
        self._model = replayed(self._model, event)
        kind = event["event"]
        if kind == "checked":
            self._figures.counts["checks"] += 1
            self._figures.complaints += event["complaints"]
        elif kind == "crashed":
            self._figures.complaints.append(f"the daemon ended with {event['why']}")
        elif kind == "done":
            self._figures.counts[f"{event['operation']['kind']} done"] += 1
        elif kind == "failed":
            self._figures.counts["failed, asked again"] += 1
            if self._model.volumes[event["operation"]["pv"]].failures >= _TOO_MANY_FAILURES:
                self._figures.complaints.append(f"fails for ever: {event['why']}")


def _events(shared: Path) -> list[dict[str, Any]]:
    """Of which the last may be half written."""
    file = shared / "events"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
