"""What runs in the guests of the power cuts: lives of a node's daemon, one after the other, each on disks that a cut
left. It holds what is there against the model of what was acknowledged before the cut, ends what was under way, looks
again, and works on.

    python -m tests.torture.guestlife FOLDER

FOLDER is the host's: there it finds the jobs and the disks, and `events` is written there, each line on the host before
the next step. Each life is a process of its own, and afterwards the guest is as it was when it had just been booted, so
that its next disks are found as by a boot.

The disks are loop devices on files of the host: User-mode Linux hands each write there on at once, and a flush as an
fdatasync. (With the file as a disk of its own, "ubd", a flush comes to nothing: seen with Linux 6.1.)
"""

import asyncio
import contextlib
import itertools
import json
import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from daemon.storage.volumes import Volumes
from host import loopdevice
from tests.node.volume_node import Node
from tests.torture import victim
from tests.torture.faultydisk import dmsetup
from tests.torture.lvmnode import GROUP, lvm_node
from tests.torture.model import SETTLED_POD, Chain, Model, Operation, plan, settlement

FOR_EVER = 10**9
_ROOT = Path("/run/torture")
_POLL_SECONDS = 0.02
_NO_DEVICES = "No devices found"


@dataclass(frozen=True)
class Job:
    """One life."""

    model: Model
    seed: int
    rounds: int
    """Of work, after all was checked."""
    disks: Sequence[Path]
    """Files of the host."""


def job_file(folder: Path, number: int) -> Path:
    return folder / f"job-{number}"


class Life:
    def __init__(self, folder: Path, number: int) -> None:
        self._number = number
        self._events = os.open(folder / "events", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._job: Job = pickle.loads(job_file(folder, number).read_bytes())
        self._model = self._job.model

    @property
    def disks(self) -> Sequence[Path]:
        return self._job.disks

    def tell(self, event: dict[str, Any]) -> None:
        os.write(
            self._events, json.dumps({"job": self._number, "at": round(time.monotonic(), 2), **event}).encode() + b"\n"
        )
        os.fsync(self._events)
        self._model = replayed(self._model, event)

    async def live(self, disks: Sequence[str]) -> None:
        chance = random.Random(self._job.seed)
        node = await lvm_node(_ROOT, disks, self._model.classes)
        cluster = victim.Cluster([])
        volumes = Volumes(node.make_backend(), node.staging, cluster)
        await volumes.start()
        self.tell({"event": "started"})
        await self._check(node, settled=False)
        await self._perform(volumes, node, cluster, settlement(self._model))
        late = await victim.without_snapshots(volumes)
        await self._check(node, settled=True, late=late)
        shown = [volume for volume in self._model.volumes.values() if SETTLED_POD in volume.pods]
        hide: list[Chain] = [(volume.operation("unmount", pod=SETTLED_POD),) for volume in shown]
        await self._perform(volumes, node, cluster, hide)
        self.tell({"event": "loading"})
        for _ in range(self._job.rounds):
            chains, model = plan(self._model, chance)
            self.tell({"event": "number", "number": model.number})
            await self._perform(volumes, node, cluster, chains)
        await volumes.close()
        node.unmount_all()
        await volumes.lock_unstaged(lambda _: False)
        environment = {**os.environ, "LVM_SYSTEM_DIR": str(_ROOT / "lvm"), "LVM_SUPPRESS_FD_WARNINGS": "1"}
        subprocess.run(["lvm", "vgchange", "--activate=n", GROUP], check=True, capture_output=True, env=environment)

    async def _perform(self, volumes: Volumes, node: Node, cluster: victim.Cluster, chains: list[Chain]) -> None:
        def tell(event: dict[str, Any]) -> None:
            if event["event"] == "begin":
                cluster.note(Operation(**event["operation"]))
            self.tell(event)

        cluster.remove(chains)
        await asyncio.gather(*(victim.follow(volumes, node, chain, tell) for chain in chains))

    async def _check(self, node: Node, *, settled: bool, late: str = "") -> None:
        seen = replace(await victim.look(node, start=False), late=late)
        self.tell({"event": "checked", "complaints": self._model.complaints(seen, settled=settled)})


def replayed(model: Model, event: dict[str, Any]) -> Model:
    """The model after the event."""
    if event["event"] == "number":
        return model.numbered(event["number"])
    if "operation" not in event:
        return model
    operation = Operation(**event["operation"])
    if event["event"] == "begin":
        return model.begin(operation)
    if event["event"] == "done":
        return model.acknowledge(operation, event["size"])
    return model.fail(operation, disturbed=event.get("disturbed", False))


def _live(folder: Path, number: int) -> None:
    """In a process of its own: nothing is remembered of the life before."""
    life = Life(folder, number)
    with contextlib.ExitStack() as stack:
        disks = [str(stack.enter_context(loopdevice.attached(each))) for each in life.disks]
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(life.live(disks))
            except BaseException:
                life.tell({"event": "crashed", "why": traceback.format_exc()[-3000:]})
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    left = dmsetup("ls").strip()
    life.tell({"event": "ended", "left": "" if left == _NO_DEVICES else left})
    shutil.rmtree(_ROOT)


def main() -> None:
    folder = Path(sys.argv[1])
    logging.getLogger().addHandler(logging.NullHandler())
    for number in itertools.count(1):
        while not job_file(folder, number).exists():
            time.sleep(_POLL_SECONDS)
        _live(folder, number)


if __name__ == "__main__":
    main()
