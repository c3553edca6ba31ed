"""The third part of `make bench-scale`: the life of a volume on thick LVM beside the bare commands, in turn, in a group
that has 125, 500 and 2,000 volumes already.

The bare commands run twice: with LVM's own defaults, as a person has them who types them on the node, and with our
lvm.conf, which leaves out what takes LVM longest (lvm/configuration.py).

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
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from daemon.errors import VolumeError
from daemon.storage.erasing import Silent
from daemon.storage.inventory import Volume
from daemon.storage.volumes import Volumes
from host import loopdevice, mounting
from lvm import Lvm, configuration
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
    """Seconds, the best of several runs. `bare` is what a person would type, `tuned` the same with our lvm.conf."""

    name: str
    ours: float
    bare: float
    tuned: float
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
                f"{step.ours / step.bare:.2f} times, {step.ours / step.tuned:.2f} times with our lvm.conf "
                f"({1000 * step.tuned:.0f} ms); {step.lvm} commands of LVM and {step.others} others"
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
        replace(
            steps[0],
            ours=min(step.ours for step in steps),
            bare=min(step.bare for step in steps),
            tuned=min(step.tuned for step in steps),
        )
        for steps in zip(*rounds, strict=True)
    ]


class _Erased(Silent):
    """Asks no more often than the daemon does: when an erasure has ended."""

    def __init__(self) -> None:
        self.heard = asyncio.Event()

    def ended(self, volume: Volume, error: VolumeError | None) -> None:
        assert error is None, error
        self.heard.set()


@dataclass(frozen=True)
class _ByHand:
    """A volume made by commands, with the lvm.conf in `configuration`."""

    name: str
    there: Path
    configuration: Path

    def commands(self) -> list[list[str]]:
        """What makes it, mounted."""
        size = ("--wipesignatures=y", "--zero=y", f"--size={_SIZE}b")
        return [
            ["lvm", "lvcreate", "--yes", *size, f"--name={self.name}", _GROUP],
            ["mkfs.ext4", "-q", "-F", "-m", "0", str(self._device)],
            ["mount", str(self._device), str(self.there)],
        ]

    def make(self) -> None:
        self.there.mkdir()
        for command in self.commands():
            self._run(*command)

    def make_in_shell(self) -> subprocess.Popen[bytes]:
        self.there.mkdir()
        commands = " && ".join(map(shlex.join, self.commands()))
        return subprocess.Popen(["sh", "-c", commands], stdout=subprocess.DEVNULL, env=self._environment)

    def mount(self) -> None:
        if _libc.mount(os.fsencode(self._device), os.fsencode(self.there), b"ext4", 0, None) != 0:
            raise OSError(ctypes.get_errno(), "mount(2)")

    def unmount(self) -> None:
        mounting.unmount(self.there)

    def expand(self) -> None:
        self._run("lvm", "lvextend", f"--size={_MORE}b", f"{_GROUP}/{self.name}")
        self._run("resize2fs", str(self._device))

    def remove(self) -> None:
        self.unmount()
        self._run("lvm", "lvremove", "--yes", f"{_GROUP}/{self.name}")

    @property
    def _device(self) -> Path:
        return Path("/dev", _GROUP, self.name)

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "LVM_SYSTEM_DIR": str(self.configuration), "LVM_SUPPRESS_FD_WARNINGS": "1"}

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, env=self._environment)


def _by_hand(node: Node, name: str) -> tuple[_ByHand, _ByHand]:
    """With LVM's own defaults, but for what it needs where no udev runs, and with our lvm.conf."""
    defaults, here = node.root / "defaults", configuration.text(udev=configuration.udev_runs())
    configuration.write(defaults, here.removeprefix(configuration.text(udev=True)))
    return (
        _ByHand(f"bare-{name}", node.root / f"bare-{name}", defaults),
        _ByHand(f"tuned-{name}", node.root / f"tuned-{name}", node.root / "lvm"),
    )


async def _round(node: Node, volumes: Volumes, erased: _Erased, number: int) -> list[Step]:
    pv = f"pvc-round-{number}"
    bare, tuned = _by_hand(node, str(number))
    spec, larger, target = node.spec(_SIZE, pv=pv), node.spec(_MORE, pv=pv), node.folder(pv)

    async def removed() -> None:
        await volumes.unmount(target)
        while not await volumes.reclaim(pv, "uid", node.pool):
            await erased.heard.wait()
            erased.heard.clear()

    return [
        await _step("lvcreate, mkfs, mount", volumes.mount(spec, target, False), bare.make, tuned.make),
        await _step("unmount", volumes.unmount(target), bare.unmount, tuned.unmount),
        await _step("mount", volumes.mount(spec, target, False), bare.mount, tuned.mount),
        await _step("expand", volumes.expand(larger), bare.expand, tuned.expand),
        await _step("unmount, erase, lvremove (bare: nothing is erased)", removed(), bare.remove, tuned.remove),
    ]


async def _burst(node: Node, volumes: Volumes, number: int) -> list[Step]:
    """Bare: with a shell for each, all at once, and one after the other, because each way is the faster one
    somewhere."""
    ours = [f"pvc-burst-{number}-{each}" for each in range(_BURST)]
    targets = [node.folder(pv) for pv in ours]
    at_once, in_turn = (
        list(zip(*(_by_hand(node, f"{how}-{number}-{each}") for each in range(_BURST)), strict=True))
        for how in ("at-once", "in-turn")
    )

    async def mounted() -> None:
        specs = [node.spec(_SIZE, pv=pv) for pv in ours]
        await asyncio.gather(*(volumes.mount(*each, read_only=False) for each in zip(specs, targets, strict=True)))

    def made_at_once(hands: Iterable[_ByHand]) -> None:
        shells = [hand.make_in_shell() for hand in hands]
        assert {shell.wait() for shell in shells} == {0}

    def made_in_turn(hands: Iterable[_ByHand]) -> None:
        for hand in hands:
            assert hand.make_in_shell().wait() == 0

    name = f"{_BURST} volumes at once: lvcreate, mkfs, mount"
    step = await _step(name, mounted(), *(partial(made_at_once, hands) for hands in at_once))
    bare, tuned = [await _seconds(partial(made_in_turn, hands)) for hands in in_turn]
    other = replace(step, name=f"{name} (bare: one after the other)", bare=bare, tuned=tuned)
    for target in targets:
        await volumes.unmount(target)
    by_hand = [hand for hands in (*at_once, *in_turn) for hand in hands]
    for hand in by_hand:
        hand.unmount()
    for names in (ours, [hand.name for hand in by_hand]):
        paths = [f"{_GROUP}/{name}" for name in names]
        environment = {**os.environ, "LVM_SYSTEM_DIR": str(node.root / "lvm")}
        subprocess.run(["lvm", "lvremove", "--yes", *paths], check=True, capture_output=True, env=environment)
    await volumes.refresh()
    return [step, other]


async def _step(name: str, ours: Awaitable[object], bare: Callable[[], object], tuned: Callable[[], object]) -> Step:
    with counted() as commands:
        took = await seconds(ours)
    of_lvm = sum(command.argv[0] == "lvm" for command in commands)
    return Step(name, took, await _seconds(bare), await _seconds(tuned), of_lvm, len(commands) - of_lvm)


async def _seconds(work: Callable[[], object]) -> float:
    async def worked() -> None:
        work()

    return await seconds(worked())


if __name__ == "__main__":
    mountspace.enter_private()
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(json.dumps(inside()))
    else:
        main()
