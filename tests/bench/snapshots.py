"""What a snapshot of a thick volume costs, kept as a COW snapshot or copied: the two ways that there are.

A COW snapshot is made at once, and then each first write to a chunk of its source reads the old one and writes it
aside, for as long as the snapshot lives. A copy takes its time once, while such a snapshot is there, and nothing after
that. The yardstick of writing is the same volume without a snapshot. On LVM, in User-mode Linux where the kernel has no
device-mapper, on a disk in memory: what is measured is the work, not a disk.
"""

import asyncio
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from host import devicecopy, loopdevice
from lvm import Lvm
from tests.bench import report
from tests.torture.lvmnode import has_device_mapper
from tests.uml.guest import PROJECT, Guest

_MIB = 2**20
_SIZE = 128 * _MIB
_BLOCK = 4096
_WRITES = 1500
_RUNS = 3


async def main() -> None:
    if not has_device_mapper():
        _in_guest()
        return
    with tempfile.TemporaryDirectory() as folder:
        tools, group = Lvm(Path(folder) / "lvm"), f"bench-{uuid.uuid4().hex[:8]}"
        disk = Path(folder) / "disk"
        with disk.open("wb") as file:
            file.truncate(6 * _SIZE)
        with loopdevice.attached(disk) as device:
            await tools.create_group(group, [str(device)])
            try:
                await _measure(tools, group)
            finally:
                await tools.remove_group(group)


async def _measure(tools: Lvm, group: str) -> None:
    for name in ("source", "copy"):
        await tools.create_volume(group, name, _SIZE, frozenset())
    source, copy, snapshot = (Path("/dev", group, name) for name in ("source", "copy", "cow"))
    _fill(source)
    _fill(copy)
    alone, beside, made, copied = [], [], [], []
    for run in range(_RUNS):
        alone.append(_written(source, run))
        begin = time.perf_counter()
        await tools.create_thick_snapshot(group, "source", "cow", _SIZE, frozenset())
        made.append(time.perf_counter() - begin)
        beside.append(_written(source, run))
        begin = time.perf_counter()
        await devicecopy.copy(snapshot, copy, deadline=600, place="bench", disk="bench")
        copied.append(time.perf_counter() - begin)
        await tools.remove(group, "cow")
    for name in ("source", "copy"):
        await tools.remove(group, name)
    report.line("thick snapshot: made, as COW", made)
    report.line(f"{_WRITES} writes of 4 KiB to a thick volume", alone)
    report.line("the same with a COW snapshot of it, each write the first", beside, alone)
    report.line(f"{_SIZE // _MIB} MiB copied from it, once", copied)


def _written(device: Path, seed: int) -> float:
    """Seconds for writes that each are on the disk before the next one."""
    offsets = random.Random(seed).sample(range(_SIZE // _BLOCK), _WRITES)
    descriptor = os.open(device, os.O_WRONLY | os.O_DSYNC | os.O_CLOEXEC)
    try:
        begin = time.perf_counter()
        for offset in offsets:
            os.pwrite(descriptor, bytes(_BLOCK), offset * _BLOCK)
        return time.perf_counter() - begin
    finally:
        os.close(descriptor)


def _fill(device: Path) -> None:
    content = os.urandom(_MIB)
    with device.open("r+b") as file:
        for _ in range(_SIZE // _MIB):
            file.write(content)


def _in_guest() -> None:
    with tempfile.TemporaryDirectory(prefix="uml-") as folder:
        output = Path(folder) / "output"
        command = shlex.join([sys.executable, "-m", "tests.bench.snapshots"])
        environment = {"PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"}
        guest = Guest(Path(folder), ["sh", "-c", f"{command} >{output} 2>&1"], cwd=PROJECT, environment=environment)
        try:
            code = guest.wait(600)
        finally:
            guest.kill()
        print(output.read_text() if output.exists() else guest.console(), end="", flush=True)
        if code != 0:
            raise subprocess.CalledProcessError(code or -1, command)


if __name__ == "__main__":
    asyncio.run(main())
