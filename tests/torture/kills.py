"""SIGKILL, at a counted step or at a moment, of the daemon with all that it started, or of one command that it runs:
over and over on one node, and after each what is there is held against the model."""

import asyncio
import contextlib
import json
import os
import random
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from contract import quantity
from contract.parameters import DEFAULT_DEVICE_CLASS
from daemon.backends.folder import FolderBackend
from daemon.backends.loop import LoopBackend
from daemon.storage.backend import Backend
from host import filesystem, loopdevice
from tests.node.volume_node import MIB, Node
from tests.torture import faultydisk, victim
from tests.torture.figures import Figures
from tests.torture.lvmnode import GROUP, POOL, lvm_node, system_folder
from tests.torture.model import (
    BLOCK,
    BTRFS,
    ENCRYPTED,
    ENCRYPTED_BLOCK,
    ENCRYPTED_THIN,
    MIRROR,
    SETTLED_POD,
    STRIPES,
    THIN,
    XFS,
    Chain,
    Model,
    Operation,
    plan,
    settlement,
)
from tests.torture.victim import Arms
from tests.uml.guest import PROJECT, Guest

_HUNG_SECONDS = 180.0
_TOO_MANY_FAILURES = 4
_SETTLE_EVERY = 50
"""Rounds."""
_MOST_STEPS = 60
_LONGEST_SECONDS = 0.3
_MOST_COMMANDS = 5
_DISK_BYTES = 2400 * MIB
"""With room for all volumes being of xfs."""
_SHARE_INACTIVE = 0.3
"""Of the rounds on LVM: as after a restart of the node, volumes and thin pools are activated in them."""


_LVM_CLASSES = (
    DEFAULT_DEVICE_CLASS,
    MIRROR,
    STRIPES,
    THIN,
    THIN,
    ENCRYPTED,
    ENCRYPTED_THIN,
    XFS,
    BTRFS,
    BLOCK,
    ENCRYPTED_BLOCK,
)
"""Device classes of new volumes there."""


class Campaign:
    """On one node, from one seed. `restart_first`: what is there is looked at after a restart only. `slow`: how many
    times longer than here everything takes. `system_folder`: of LVM, where volumes are its."""

    def __init__(
        self,
        node: Node,
        seed: int,
        figures: Figures,
        *,
        restart_first: bool = False,
        slow: float = 1,
        classes: tuple[str, ...] = (DEFAULT_DEVICE_CLASS,),
        system_folder: Path | None = None,
    ) -> None:
        self._node = node
        self._chance = random.Random(seed)
        self._figures = figures
        self._restart_first = restart_first
        self._slow = slow
        self._system_folder = system_folder
        self._commands = node.pool != "folder"
        grows_mounted = filesystem.grows_mounted("ext4") or not self._commands
        self._model = Model(clones=self._commands, grows_mounted=grows_mounted, classes=classes)
        self._trace: list[str] = []

    def run(self, enough: Callable[[], bool]) -> None:
        """Until `enough`, or the first complaint."""
        number = 0
        while not enough() and not self._figures.complaints:
            number += 1
            chains, self._model = plan(self._model, self._chance)
            if self._system_folder and self._chance.random() < _SHARE_INACTIVE:
                self._deactivate(self._system_folder)
            self._live(chains, self._arms())
            self._figures.counts["rounds"] += 1
            if number % _SETTLE_EVERY == 0:
                self.settle()
            elif self._chance.random() < 0.5:
                self._check(settled=False)
        self.settle()

    def settle(self) -> None:
        """All is ended that was under way, nobody disturbs, and nothing may be lost or left over."""
        for _ in range(3):
            if self._figures.complaints:
                return
            self._live(settlement(self._model), Arms())
            if not any(volume.pending or volume.removing for volume in self._model.volumes.values()):
                break
        else:
            self._complain([f"{pv} does not come to its end" for pv in self._model.volumes])
        self._check(settled=True)
        self._live(
            [
                (volume.operation("unmount", pod=SETTLED_POD),)
                for volume in self._model.volumes.values()
                if SETTLED_POD in volume.pods
            ],
            Arms(),
        )
        self._figures.counts["settled"] += 1

    def _deactivate(self, system_folder: Path) -> None:
        """What nobody uses, as far as LVM lets it go. A block volume that a pod has, the kubelet keeps open."""
        unused = [volume.pv for volume in self._model.volumes.values() if not volume.pods | volume.perhaps]
        self._trace.append(f"-- not active: {unused}")
        for name in (*unused, POOL):
            _lvm(system_folder, "lvchange", "--activate=n", "--yes", f"{GROUP}/{name}")

    def _arms(self) -> tuple[Arms, float]:
        dice = self._chance.random()
        if dice < 0.5:
            most = _MOST_STEPS if self._commands else _MOST_STEPS // 2
            return Arms(step=self._chance.randint(1, most)), _HUNG_SECONDS
        if dice < 0.75 or not self._commands:
            return Arms(), self._chance.uniform(0.005, _LONGEST_SECONDS) * self._slow
        seconds = self._chance.uniform(0, 0.03) * self._slow
        return Arms(kill_command=self._chance.randint(1, _MOST_COMMANDS), command_seconds=seconds), _HUNG_SECONDS

    def _live(self, chains: list[Chain], arms: Arms | tuple[Arms, float]) -> None:
        how, seconds = arms if isinstance(arms, tuple) else (arms, _HUNG_SECONDS)
        self._trace = [*self._trace[-20_000:], f"-- {how}, {seconds:.3f} s"]
        inner, outer, events = victim.spawn(lambda tell: victim.perform(self._node, chains, how, tell))
        deadline = time.monotonic() + seconds
        disturbed = killed = False
        with os.fdopen(events, "rb", buffering=0) as stream:
            unread = b""
            while True:
                ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
                if not ready and not killed:
                    if seconds == _HUNG_SECONDS:
                        self._complain([f"it hangs: {how}"])
                    killed = self._kill(inner, "kills at a moment")
                    deadline = time.monotonic() + _HUNG_SECONDS
                    continue
                data = stream.read(65536) if ready else b""
                if not data:
                    break
                *lines, unread = (unread + data).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    self._trace.append(line.decode())
                    disturbed = disturbed or event["event"] == "command killed"
                    if event["event"] == "step" and not killed:
                        killed = self._kill(inner, "kills at a step")
                    self._note(event, disturbed=disturbed)
        os.waitpid(outer, 0)

    def _kill(self, pid: int, kind: str) -> bool:
        os.kill(pid, signal.SIGKILL)
        self._figures.counts[kind] += 1
        return True

    def _note(self, event: dict, *, disturbed: bool) -> None:  # type: ignore[type-arg]
        kind = event["event"]
        if kind == "command killed":
            self._figures.counts["kills of a command"] += 1
        elif kind == "not started" and not disturbed:
            self._complain([f"the daemon does not start: {event['why']}"])
        elif kind == "crashed":
            self._complain([f"the daemon ended with {event['why']}"])
        if "operation" not in event:
            return
        operation = Operation(**event["operation"])
        if kind == "begin":
            self._model = self._model.begin(operation)
        elif kind == "done":
            self._figures.counts[f"{operation.kind} done"] += 1
            self._model = self._model.acknowledge(operation, event["size"])
        elif kind == "failed":
            self._figures.counts["failed, asked again"] += 1
            self._model = self._model.fail(operation, disturbed=disturbed)
            if self._model.volumes[operation.pv].failures >= _TOO_MANY_FAILURES:
                self._complain([f"{operation.pv}: {operation.kind} fails for ever: {event['why']}"])

    def _check(self, *, settled: bool) -> None:
        seen = asyncio.run(victim.look(self._node, start=settled or self._restart_first))
        complaints = self._model.complaints(seen, settled=settled)
        if complaints and settled:
            time.sleep(1)  # the kernel lets go of loop devices in its own time
            complaints = self._model.complaints(asyncio.run(victim.look(self._node, start=True)), settled=True)
        if settled and self._system_folder:
            complaints += faultydisk.lost_devices(faultydisk.known_volumes(self._system_folder))
        self._figures.counts["checks"] += 1
        self._complain(complaints)

    def _complain(self, complaints: list[str]) -> None:
        """With all that ever was done to the volumes that are complained about."""
        if complaints:
            named = {pv for pv in self._model.volumes for words in complaints if pv in words}
            trace = [line for line in self._trace if "operation" not in line or any(f'"{pv}"' in line for pv in named)]
            self._figures.complaints += [*complaints, *(f"    {line}" for line in trace)]


BACKENDS: dict[str, Callable[[Path], Backend]] = {
    "loop": lambda root: LoopBackend(root / "data", quantity.parse("1Gi")),
    "folder": lambda root: FolderBackend(root / "data", 1024 * MIB),
}


def on_files(kind: str, root: Path, seed: int, figures: Figures, enough: Callable[[], bool]) -> None:
    """On a node whose volumes are files, or folders. Leaves nothing behind."""
    node = Node(root, lambda: BACKENDS[kind](root))
    try:
        Campaign(node, seed, figures).run(enough)
    finally:
        node.unmount_all()


def _lvm(system_folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "LVM_SYSTEM_DIR": str(system_folder), "LVM_SUPPRESS_FD_WARNINGS": "1"}
    return subprocess.run(["lvm", *arguments], check=False, capture_output=True, env=environment)


@contextlib.contextmanager
def lvm(root: Path) -> Iterator[Node]:
    """A node with a volume group on two disks, which goes with all that is in it. Needs device-mapper."""
    disks = []
    for number in range(2):
        image = root / f"disk-{number}"
        with image.open("wb") as file:
            file.truncate(_DISK_BYTES)
        disks.append(loopdevice.attach(image))
    try:
        node = asyncio.run(lvm_node(root, [str(disk) for disk in disks], _LVM_CLASSES))
        yield node
        node.unmount_all()
        asyncio.run(victim.close_all(node))
        _lvm(system_folder(root), "vgremove", "--force", "--yes", GROUP).check_returncode()
    finally:
        for disk in disks:
            loopdevice.detach(disk)


def on_lvm(root: Path, seed: int, figures: Figures, enough: Callable[[], bool]) -> None:
    with lvm(root) as node:
        folder = system_folder(root)
        Campaign(node, seed, figures, restart_first=True, slow=5, classes=_LVM_CLASSES, system_folder=folder).run(
            enough
        )


def in_guest(arguments: list[str], folder: Path) -> int:
    """The same command in a guest, which has the device-mapper that is missing here. The exit code."""
    output = folder / "output"
    command = shlex.join([sys.executable, "-m", "tests.torture", *arguments])
    environment = {"PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"}
    guest = Guest(folder, ["sh", "-c", f"{command} >{output} 2>&1"], cwd=PROJECT, environment=environment)
    try:
        code = guest.wait(24 * 3600)
    finally:
        guest.kill()
    print(output.read_text() if output.exists() else guest.console(), flush=True)
    return 1 if code is None else code
