"""What runs in a guest until its plug is pulled: it holds what is there against the model of what was acknowledged
before the last cut, then it works.

    python -m tests.torture.guestlife FOLDER SEED DISK...

FOLDER is the host's: `model` is read there, and `events` is written, each line on the host before the next step.
"""

import asyncio
import json
import logging
import os
import pickle
import random
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from daemon.storage.volumes import Volumes
from tests.node.volume_node import Node
from tests.torture import victim
from tests.torture.lvmnode import lvm_node
from tests.torture.model import SETTLED_POD, Chain, Model, Operation, plan, settlement


class Life:
    def __init__(self, folder: Path, seed: int) -> None:
        self._events = os.open(folder / "events", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._model: Model = pickle.loads((folder / "model").read_bytes())
        self._chance = random.Random(seed)

    def tell(self, event: dict[str, Any]) -> None:
        os.write(self._events, json.dumps(event).encode() + b"\n")
        os.fsync(self._events)
        self._model = replayed(self._model, event)

    async def live(self, disks: list[str]) -> None:
        node = await lvm_node(Path("/run/torture"), disks)
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
        while True:
            chains, model = plan(self._model, self._chance)
            self.tell({"event": "number", "number": model.number})
            await self._perform(volumes, node, cluster, chains)

    async def _perform(self, volumes: Volumes, node: Node, cluster: victim.Cluster, chains: list[Chain]) -> None:
        cluster.remove(chains)
        await asyncio.gather(*(victim.follow(volumes, node, chain, self.tell) for chain in chains))

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


def main() -> None:
    folder, seed, *disks = sys.argv[1:]
    logging.getLogger().addHandler(logging.NullHandler())
    life = Life(Path(folder), int(seed))
    try:
        asyncio.run(life.live(disks))
    except BaseException:
        life.tell({"event": "crashed", "why": traceback.format_exc()[-3000:]})
        raise


if __name__ == "__main__":
    main()
