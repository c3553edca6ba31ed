"""`make demo`: the main job on one machine, step by step, with the commands that a person would type.

Everything shown is what the real programs did: kubectl prints it, or the node's own df and cat. The sandbox under it,
and with it every mount, ends with this process, also on Ctrl-C.
"""

import asyncio
import contextlib
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contract import capacity, quantity
from host import mounttable
from kube.resources import CAPACITIES, CLAIMS, PODS, VOLUMES
from tests.forkserver import REPOSITORY
from tests.sandbox import mountspace
from tests.sandbox.nodes import Node, NodeSpec
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace
from tests.waiting import until

NODES = (NodeSpec("node-a", capacity="1Gi"), NodeSpec("node-b", capacity="2Gi"))
SAMPLES = Path("deploy/samples")
CLAIM, POD, GROWING = SAMPLES / "claim.yaml", SAMPLES / "pod.yaml", SAMPLES / "growing.yaml"
GROWN = "640Mi"

_BOLD, _DIM, _PLAIN = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")
_ROOM = "custom-columns=NODE:.metadata.labels.*,CLASS:.storageClassName,ROOM:.capacity"


def say(title: str) -> None:
    print(f"\n{_BOLD}{title}{_PLAIN}", flush=True)


class Demo:
    """One run, in a sandbox that is up."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.default = Namespace(sandbox, "default")

    async def kubectl(self, *words: str) -> None:
        """Show the command and what it prints."""
        print(f"{_DIM}$ kubectl {shlex.join(words)}{_PLAIN}", flush=True)
        print((await self.sandbox.kubectl(*words)).rstrip(), flush=True)

    async def on_node(self, *words: str) -> None:
        """The same for a command of the node."""
        print(f"{_DIM}# {shlex.join(words)}{_PLAIN}", flush=True)
        process = await asyncio.create_subprocess_exec(*words)
        assert await process.wait() == 0

    async def play(self) -> None:
        say("1. Two nodes publish how much room they have for each class; the scheduler reads it.")
        room = await self._room()
        await self._show_room()

        say("2. A claim of 64Mi. The class waits for the first pod, so that the scheduler can choose the node.")
        await self.kubectl("apply", "-f", str(CLAIM))
        await self.default.until_event("sample", "WaitForFirstConsumer")
        await self.kubectl("get", "pvc", "sample")

        say("3. A pod that uses it: a node is chosen, the volume is made, formatted and mounted.")
        begin = time.monotonic()
        await self.kubectl("apply", "-f", str(POD))
        pod = await self.default.until_running("sample")
        print(f"running {time.monotonic() - begin:.1f} s after it was applied")
        volume = await self.default.until_bound("sample")
        name = volume["metadata"]["name"]
        await self.kubectl("get", "pod,pvc", "-o", "wide")
        await self.kubectl("get", "pv", name)
        await self.kubectl("get", "events", "--sort-by=.lastTimestamp")

        node = self.sandbox.node_of(pod)
        folder = node.volume_folder(pod["metadata"]["uid"], name)
        say(f"4. On {node.name}: a real filesystem of exactly that size, mounted once and bound into the pod's folder.")
        await self.on_node(
            "df", "-h", "--output=source,fstype,size,avail,target", str(node.staging / name), str(folder)
        )
        await self._show_room()

        say("5. The pod writes. It is deleted and made anew: same node, same data.")
        await until(lambda: _lines(folder) >= 1, what="the pod wrote a line")
        await self.kubectl("delete", "pod", "sample")
        await self.kubectl("apply", "-f", str(POD))
        again = await self.default.until_running("sample")
        assert self.sandbox.node_of(again) is node
        folder = node.volume_folder(again["metadata"]["uid"], name)
        before = _lines(folder)
        await until(lambda: _lines(folder) > before, what="the new pod wrote a line")
        await self.on_node("cat", str(folder / "log"))

        await self._grow()

        say("7. Pod and claim are deleted: nothing is left on the node, and the space is free again.")
        await self.kubectl("delete", "pod,pvc", "sample")
        await self.default.until_gone(PODS, "sample")
        await self.default.until_gone(VOLUMES, name)
        await until(lambda: self._has_room(room), what="the room is back")
        await self.on_node("find", str(node.data), str(node.staging), "-name", f"{name}*")
        assert _left(node, name) == []
        await self._show_room()

    async def _grow(self) -> None:
        say(f"6. Another volume, on xfs, grows to {GROWN} under its running pod.")
        await self.kubectl("apply", "-f", str(GROWING))
        pod = await self.default.until_running("growing")
        volume = await self.default.until_bound("growing")
        folder = self.sandbox.node_of(pod).volume_folder(pod["metadata"]["uid"], volume["metadata"]["name"])
        await self._show_filesystem(folder)
        request = f'{{"spec":{{"resources":{{"requests":{{"storage":"{GROWN}"}}}}}}}}'
        await self.kubectl("patch", "pvc", "growing", "--patch", request)
        await self.default.until(CLAIMS, "growing", _has_grown, what=f"has {GROWN}")
        await self.kubectl("get", "pvc", "growing")
        await self._show_filesystem(folder)
        await self.kubectl("delete", "-f", str(GROWING))
        await self.default.until_gone(VOLUMES, volume["metadata"]["name"])

    async def _show_filesystem(self, *folders: Path) -> None:
        """What the node's kernel says: the device's size to the byte, and the filesystem on it."""
        table = mounttable.read()
        mounts = [next(mount for mount in reversed(table) if mount.path == str(folder)) for folder in folders]
        await self.on_node("lsblk", "--bytes", "--nodeps", "--output", "NAME,SIZE", mounts[0].source)
        await self.on_node("df", "-h", "--output=source,fstype,size,avail,target", *map(str, folders))

    async def _show_room(self) -> None:
        await self.kubectl("get", "csistoragecapacities", "-n", "elastic-local", "-o", _ROOM)

    async def _room(self) -> dict[tuple[str, str], int]:
        """Bytes that each node offers to each class."""
        bodies = map(capacity.read, await self.sandbox.api.list(CAPACITIES, "elastic-local"))
        return {(room.node, room.storage_class): room.available for room in bodies if room}

    async def _has_room(self, room: dict[tuple[str, str], int]) -> bool:
        return await self._room() == room


def _lines(folder: Path) -> int:
    log = folder / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def _left(node: Node, name: str) -> list[Path]:
    """What bears the volume's name on a node: its data, its record, its mount."""
    return [path for path in (*node.data.rglob("*"), *node.staging.iterdir()) if path.name.startswith(name)]


def _has_grown(claim: dict[str, Any]) -> bool:
    return quantity.parse(claim["status"]["capacity"]["storage"]) == quantity.parse(GROWN)


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="elastic-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


async def main() -> None:
    begin = time.monotonic()
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with _temporary_folder() as folder, contextlib.chdir(REPOSITORY):
        say("Starting a cluster of two nodes on this machine: API server, scheduler, kubelets, and our programs.")
        async with Sandbox(folder, NODES) as sandbox:
            print(f"up after {time.monotonic() - begin:.1f} s")
            await Demo(sandbox).play()
            say("Taking it all down.")
    print(f"No mounts, loop devices, processes or files are left. {time.monotonic() - begin:.0f} s in all.")


if __name__ == "__main__":
    try:
        mountspace.enter_private()
        asyncio.run(main())
    except mountspace.NotRoot as error:
        sys.exit(str(error))
    except asyncio.CancelledError:
        sys.exit("\nStopped: no mounts, loop devices, processes or files are left.")
