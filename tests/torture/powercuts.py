"""The plug of a whole machine is pulled while it works, over and over: User-mode Linux with LVM on two disks, which are
files of the host. What the host was told stays told, and must be there after the next start.

One guest works without end. A cut is a moment at which it is paused: what its disks hold then, and what it had told by
then, is all that a pulled plug leaves. It goes on as if nothing had been. Another guest starts from the copies of the
disks; it may be cut too, in the middle of its mending or of its work afterwards. So a cut costs no boot.

The disks have a cache that loses what was not flushed: at one cut all of it, at another any part, or nothing.
"""

import contextlib
import json
import os
import pickle
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.parameters import DEFAULT_DEVICE_CLASS
from tests.torture import writelog
from tests.torture.figures import Figures
from tests.torture.guestlife import FOR_EVER, Job, job_file, replayed
from tests.torture.lvmnode import DISK_BYTES
from tests.torture.model import ENCRYPTED, ENCRYPTED_THIN, THIN, XFS, Model, traces
from tests.torture.writelog import Write
from tests.uml.guest import PROJECT, Guest

_DISKS = 2
CLASSES = (DEFAULT_DEVICE_CLASS, DEFAULT_DEVICE_CLASS, THIN, THIN, XFS, ENCRYPTED, ENCRYPTED, ENCRYPTED_THIN)
"""Device classes of new volumes, each as often as it stands here."""
_BOOT_SECONDS = 300.0
_LIFE_SECONDS = 600.0
_POLL_SECONDS = 0.02
_LONGEST_LOAD_SECONDS = 4.0
_LOST = ("all", "any part", "nothing")
"""Of what was written and not flushed."""
_AGAIN = 0.25
"""How often a guest that mends a cut is cut."""
_ROUNDS_AFTERWARDS = 2
_TOO_MANY_FAILURES = 4
_TRACED = 400


class Disk:
    """A file that is the disk of a guest, with what its cache would lose."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inode = path.stat().st_ino
        self._flushed = path.with_name(f"{path.name}-flushed")
        self._unflushed: list[Write | None] = []
        _copy(path, self._flushed)

    def note(self, entries: Iterable[Write | None]) -> None:
        """It was written to, and flushed."""
        self._unflushed += entries
        if surely := writelog.flushed(self._unflushed):
            with self._flushed.open("r+b") as disk:
                writelog.apply(disk, self._unflushed[:surely], surely, lambda: surely)
            del self._unflushed[:surely]

    def cut(self, left: Path, lost: str, chance: random.Random) -> None:
        """The file `left` becomes what is there after a power cut."""
        _copy(self._flushed, left)
        reached = {
            "all": lambda: 0,
            "any part": writelog.any_part(self._unflushed, 0, chance),
            "nothing": lambda: len(self._unflushed),
        }
        with left.open("r+b") as disk:
            writelog.apply(disk, self._unflushed, 0, reached[lost])

    def remove(self) -> None:
        self.path.unlink()
        self._flushed.unlink()


@dataclass(frozen=True)
class Cut:
    """What one left."""

    model: Model
    disks: Sequence[Path]
    told: Sequence[str]
    """Of the machine, before."""


class Machine:
    """A guest, which has other disks in each of its lives."""

    def __init__(self, folder: Path, figures: Figures, processor: int) -> None:
        folder.mkdir()
        self._folder = folder
        self._figures = figures
        self._disks: list[Disk] = []
        self._notes = folder / "writes"
        self._notes.touch()
        self._model = Model()
        self._number = 0
        self._read = 0
        self._told: list[str] = []
        self._events: set[str] = set()
        """Kinds of those of this life."""
        path = [str(PROJECT), *(each for each in sys.path if each)]
        self._guest = Guest(
            folder,
            # Without -S half of a boot is Python's imports.
            [sys.executable, "-S", "-m", "tests.torture.guestlife", str(folder)],
            cwd=PROJECT,
            environment={"PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"},
            preload=[writelog.library(folder)],
            kernel_environment={"WRITE_LOG": str(self._notes)},
            processor=processor,
        )

    def close(self) -> None:
        self._guest.kill()

    def live(self, model: Model, seed: int, rounds: int, disks: Sequence[Path], told: Sequence[str] = ()) -> None:
        """Begin a life, on disks that it takes. `told`: what led to it."""
        for disk in self._disks:
            disk.remove()
        os.truncate(self._notes, 0)
        self._number += 1
        # A file of a new name each, or the guest shows what it knows of the old one.
        self._disks = [Disk(path.rename(self._folder / f"{path.name}-{self._number}")) for path in disks]
        self._model = model
        self._told = list(told)
        self._events.clear()
        new = self._folder / "job"
        new.write_bytes(pickle.dumps(Job(model, seed, rounds, [disk.path for disk in self._disks])))
        new.replace(job_file(self._folder, self._number))

    def wait(self, *kinds: str, seconds: float) -> bool:
        """Until it told one of them."""
        deadline = time.monotonic() + seconds
        while not self._events.intersection(kinds):
            if not self._guest.running or time.monotonic() > deadline:
                self._complain([f"the guest never came to {' or '.join(kinds)}", self._guest.console()])
            if self._figures.complaints:
                return False
            time.sleep(_POLL_SECONDS)
            self._hear()
        return True

    def cut(self, folder: Path, lost: str, chance: random.Random) -> Cut:
        """What a power cut at this moment leaves, in `folder`. The guest itself goes on."""
        folder.mkdir()
        left = [folder / f"disk-{number}" for number in range(len(self._disks))]
        if not self._guest.running:
            self._complain(["the guest is not running any more", self._guest.console()])
        self._guest.pause()
        try:
            self._hear()
            notes = self._notes.read_bytes()
            os.truncate(self._notes, 0)
        finally:
            self._guest.resume()
        entries = list(writelog.parsed(notes))
        for disk, path in zip(self._disks, left, strict=True):
            disk.note(entry for inode, entry in entries if inode == disk.inode)
            disk.cut(path, lost, chance)
        found = {name for path in left for piece in _pieces(path) for name in traces(piece)}
        self._complain(f"file {name} is on the disk" for name in sorted(found - self._model.may_show()))
        return Cut(self._model.powered_off(), left, [*self._told, "-- cut"])

    def _hear(self) -> None:
        """What it told since. The last line may be half written."""
        file = self._folder / "events"
        if not file.exists():
            return
        with file.open("rb") as events:
            events.seek(self._read)
            lines = events.read().rpartition(b"\n")[0].splitlines()
        for line in lines:
            self._read += len(line) + 1
            self._told = [*self._told[-_TRACED:], line.decode()]
            self._replay(json.loads(line))

    def _replay(self, event: dict[str, Any]) -> None:
        self._model = replayed(self._model, event)
        kind, counts = event["event"], self._figures.counts
        self._events.add(kind)
        if kind == "checked":
            counts["checks"] += 1
            self._complain(event["complaints"])
        elif kind == "crashed":
            self._complain([f"the daemon ended with {event['why']}"])
        elif kind == "ended" and event["left"]:
            self._complain([f"devices are left: {event['left']}"])
        elif kind == "done":
            counts[f"{event['operation']['kind']} done"] += 1
            if event["operation"]["kind"] == "prepare":
                counts[f"made of class {event['operation']['device_class']}"] += 1
        elif kind == "failed":
            counts["failed, asked again"] += 1
            if self._model.volumes[event["operation"]["pv"]].failures >= _TOO_MANY_FAILURES:
                self._complain([f"fails for ever: {event['why']}"])

    def _complain(self, complaints: Iterable[str]) -> None:
        if found := list(complaints):
            self._figures.complaints += [*found, *(f"    {line}" for line in self._told)]


class PowerCuts:
    """In `folder`, from one seed."""

    def __init__(self, folder: Path, seed: int, figures: Figures) -> None:
        self._folder = folder
        self._chance = random.Random(seed)
        self._figures = figures

    def run(self, enough: Callable[[], bool]) -> None:
        """Until `enough`, or the first complaint. What each cut left is checked."""
        with contextlib.ExitStack() as stack:
            machines = [Machine(self._folder / name, self._figures, n) for n, name in enumerate(("works", "mends"))]
            for machine in machines:
                stack.callback(machine.close)
            working, mending = machines
            model = Model(classes=CLASSES, retains=True)
            working.live(model, self._chance.getrandbits(32), FOR_EVER, self._new_disks())
            working.wait("loading", seconds=_BOOT_SECONDS)
            cut: Cut | None = None
            while not self._figures.complaints and (cut or not enough()):
                if cut is None:
                    time.sleep(self._chance.uniform(0, _LONGEST_LOAD_SECONDS))
                    cut = self._cut(working, "at work")
                again = self._chance.random() < _AGAIN and not enough()
                rounds = self._chance.choice([0, _ROUNDS_AFTERWARDS]) if again else 0
                mending.live(cut.model, self._chance.getrandbits(32), rounds, cut.disks, cut.told)
                cut = None
                if again and mending.wait("loading" if rounds else "started", "ended", seconds=_LIFE_SECONDS):
                    time.sleep(self._chance.uniform(0, _LONGEST_LOAD_SECONDS))
                    cut = self._cut(mending, "after mending" if rounds else "while mending")
                if mending.wait("ended", seconds=_LIFE_SECONDS):
                    self._figures.counts["checked to the end"] += 1

    def _cut(self, machine: Machine, when: str) -> Cut:
        self._figures.counts["rounds"] += 1
        self._figures.counts[f"cuts {when}"] += 1
        lost = self._chance.choice(_LOST)
        self._figures.counts[f"cuts that lose {lost}"] += 1
        return machine.cut(self._folder / f"cut-{self._figures.counts['rounds']}", lost, self._chance)

    def _new_disks(self) -> list[Path]:
        disks = [self._folder / f"disk-{number}" for number in range(_DISKS)]
        for disk in disks:
            with disk.open("wb") as file:
                file.truncate(DISK_BYTES)
        return disks


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--sparse=always", source, target], check=True)


def _pieces(path: Path) -> Iterator[bytes]:
    """What is not a hole."""
    with path.open("rb", buffering=0) as file:
        end = 0
        while True:
            try:
                begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:  # there is no more
                return
            end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            yield os.pread(file.fileno(), end - begin, begin)
