"""The third part of `make bench-scale`: the life of a volume on thick LVM beside the bare commands, in turn, in a group
that has 125, 500 and 2,000 volumes already.

Where the kernel has no device-mapper this runs in User-mode Linux (tests/uml), where all takes 3 to 9 times as long:
the ratios are what to look at. The other volumes are in LVM's metadata alone.
"""

import asyncio
import ctypes
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from daemon.errors import VolumeError
from daemon.storage.erasing import Silent
from daemon.storage.inventory import Volume
from daemon.storage.volumes import Volumes
from host import loopdevice, mounting
from lvm import Lvm
from tests.agreeing import Agreeing
from tests.bench import figures
from tests.bench.commandcount import counted, seconds
from tests.node.lvmmetadata import Metadata, restored
from tests.node.volume_node import MIB, Node, lvm_backend
from tests.sandbox import mountspace
from tests.uml.guest import PROJECT, Guest
from tests.uml.plugin import has_device_mapper

_ROUNDS = {125: 5, 500: 4, 2_000: 3}
"""By number of volumes: a command of LVM takes seconds in a guest with the most of them."""
_GROUP = "benchmark"
_SIZE, _MORE = 32 * MIB, 64 * MIB
_BURST = 16
"""Volumes made at once: so many the reconciler takes in hand together."""
_GUEST_SECONDS, _COMMAND_SECONDS = 1200, 300
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Step:
    """Seconds, the best of several runs. `bare` is what a person would type."""

    name: str
    ours: float
    bare: float
    lvm: int
    """Commands of LVM that ours ran."""
    others: int


def main() -> None:
    if has_device_mapper():
        found = inside()
    else:
        with tempfile.TemporaryDirectory(prefix="elastic-") as folder:
            found = _in_guest(Path(folder))
    for number, steps in found.items():
        print(f"{number} volumes in a group of LVM")
        for step in map(Step, *zip(*(each.values() for each in steps), strict=True)):
            print(
                f"  {step.name} {1000 * step.ours:.0f} ms, bare {1000 * step.bare:.0f} ms: "
                f"{step.ours / step.bare:.2f} times; {step.lvm} commands of LVM and {step.others} others"
            )
    figures.MEASURED.mkdir(parents=True, exist_ok=True)
    (figures.MEASURED / "lvm.json").write_text(json.dumps(found, indent=1))


def _in_guest(folder: Path) -> dict[str, list[dict[str, object]]]:
    output = folder / "output"
    command = shlex.join([sys.executable, "-m", "tests.bench.lvm", str(folder / "found")])
    guest = Guest(
        folder,
        ["sh", "-c", f"{command} >{output} 2>&1"],
        cwd=PROJECT,
        environment={"PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    try:
        if guest.wait(_GUEST_SECONDS) != 0:
            raise SystemExit(output.read_text() if output.exists() else guest.console())
    finally:
        guest.kill()
    found: dict[str, list[dict[str, object]]] = json.loads((folder / "found").read_text())
    return found


def inside() -> dict[str, list[dict[str, object]]]:
    """The steps by the number of volumes."""
    return {
        str(number): [asdict(step) for step in asyncio.run(_measured(number, rounds))]
        for number, rounds in _ROUNDS.items()
    }


async def _measured(number: int, count: int) -> list[Step]:
    with tempfile.TemporaryDirectory(prefix="elastic-") as name:
        folder = Path(name)
        disk = folder / "disk"
        with disk.open("wb") as file:
            file.truncate(48 << 30)
        with loopdevice.attached(disk) as device:
            metadata = Metadata(folder / "metadata")
            metadata.show(str(device))
            metadata.run("vgcreate", "--metadatasize=64m", _GROUP, str(device))
            assert restored(metadata, _GROUP, folder, number)
            tools = Lvm(folder / "lvm", deadline=_COMMAND_SECONDS)
            node = Node(folder, lambda: lvm_backend(tools, _GROUP, thin=False))
            try:
                erased = _Erased()
                volumes = Volumes(node.make_backend(), node.staging, Agreeing(), erasing=erased)
                await volumes.start()
                rounds = [
                    [*await _round(node, volumes, erased, each), *await _burst(node, volumes, each)]
                    for each in range(count)
                ]
                await volumes.close()
            finally:
                node.unmount_all()
                metadata.run("vgcfgrestore", "--force", "--file", str(folder / "empty"), _GROUP)
                metadata.run("vgremove", "--force", "--force", "--yes", _GROUP, check=False)
    return [
        replace(steps[0], ours=min(step.ours for step in steps), bare=min(step.bare for step in steps))
        for steps in zip(*rounds, strict=True)
    ]


class _Erased(Silent):
    """Asks no more often than the daemon does: when an erasure has ended."""

    def __init__(self) -> None:
        self.heard = asyncio.Event()

    def ended(self, volume: Volume, error: VolumeError | None) -> None:
        assert error is None, error
        self.heard.set()


async def _round(node: Node, volumes: Volumes, erased: _Erased, number: int) -> list[Step]:
    pv, by_hand, there = f"pvc-round-{number}", f"by-hand-{number}", node.root / "by-hand"
    there.mkdir(exist_ok=True)
    spec, larger, target = node.spec(_SIZE, pv=pv), node.spec(_MORE, pv=pv), node.folder(pv)
    device = Path("/dev", _GROUP, by_hand)

    async def removed() -> None:
        await volumes.unmount(target)
        while not await volumes.reclaim(pv, "uid", node.pool):
            await erased.heard.wait()
            erased.heard.clear()

    def mounted() -> None:
        if _libc.mount(os.fsencode(device), os.fsencode(there), b"ext4", 0, None) != 0:
            raise OSError(ctypes.get_errno(), "mount(2)")

    def created() -> None:
        for command in _made(by_hand, there):
            run(*command)

    def expanded() -> None:
        run("lvm", "lvextend", f"--size={_MORE}b", f"{_GROUP}/{by_hand}")
        run("resize2fs", str(device))

    def removed_by_hand() -> None:
        mounting.unmount(there)
        run("lvm", "lvremove", "--yes", f"{_GROUP}/{by_hand}")

    def run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, env=_environment(node))

    return [
        await _step("lvcreate, mkfs, mount", volumes.mount(spec, target, False), created),
        await _step("unmount", volumes.unmount(target), lambda: mounting.unmount(there)),
        await _step("mount", volumes.mount(spec, target, False), mounted),
        await _step("expand", volumes.expand(larger), expanded),
        await _step("unmount, erase, lvremove (bare: nothing is erased)", removed(), removed_by_hand),
    ]


async def _burst(node: Node, volumes: Volumes, number: int) -> list[Step]:
    """Bare: with a shell for each, all at once, and one after the other, because each way is the faster one
    somewhere."""
    ours, at_once, in_turn = (
        [f"{who}-{number}-{each}" for each in range(_BURST)] for who in ("pvc-burst", "at-once", "in-turn")
    )
    targets = [node.folder(pv) for pv in ours]
    folders = {name: node.root / name for name in (*at_once, *in_turn)}
    for folder in folders.values():
        folder.mkdir()

    async def mounted() -> None:
        specs = [node.spec(_SIZE, pv=pv) for pv in ours]
        await asyncio.gather(*(volumes.mount(*each, False) for each in zip(specs, targets, strict=True)))

    def shell(name: str) -> subprocess.Popen[bytes]:
        commands = " && ".join(map(shlex.join, _made(name, folders[name])))
        return subprocess.Popen(["sh", "-c", commands], stdout=subprocess.DEVNULL, env=_environment(node))

    def created_at_once() -> None:
        shells = [shell(name) for name in at_once]
        assert {each.wait() for each in shells} == {0}

    async def created_in_turn() -> None:
        assert {shell(name).wait() for name in in_turn} == {0}

    step = await _step(f"{_BURST} volumes at once: lvcreate, mkfs, mount", mounted(), created_at_once)
    other = replace(step, name=f"{step.name} (bare: one after the other)", bare=await seconds(created_in_turn()))
    for target in targets:
        await volumes.unmount(target)
    for folder in folders.values():
        mounting.unmount(folder)
    paths = [f"{_GROUP}/{name}" for name in (*ours, *folders)]
    subprocess.run(["lvm", "lvremove", "--yes", *paths], check=True, capture_output=True, env=_environment(node))
    await volumes.refresh()
    return [step, other]


def _made(name: str, there: Path) -> list[list[str]]:
    """What a person would type for a mounted volume."""
    device = f"/dev/{_GROUP}/{name}"
    return [
        ["lvm", "lvcreate", "--yes", "--wipesignatures=y", "--zero=y", f"--size={_SIZE}b", f"--name={name}", _GROUP],
        ["mkfs.ext4", "-q", "-F", "-m", "0", device],
        ["mount", device, str(there)],
    ]


def _environment(node: Node) -> dict[str, str]:
    return {**os.environ, "LVM_SYSTEM_DIR": str(node.root / "lvm"), "LVM_SUPPRESS_FD_WARNINGS": "1"}


async def _step(name: str, ours: Awaitable[object], bare: Callable[[], None]) -> Step:
    with counted() as commands:
        took = await seconds(ours)
    of_lvm = sum(command.argv[0] == "lvm" for command in commands)

    async def by_hand() -> None:
        bare()

    return Step(name, took, await seconds(by_hand()), of_lvm, len(commands) - of_lvm)


if __name__ == "__main__":
    mountspace.enter_private()
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(json.dumps(inside()))
    else:
        main()
