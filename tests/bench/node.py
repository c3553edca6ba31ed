"""The other half of `make bench-scale`: one node with 125, 500 and 2,000 volumes.

What LVM reports is asked of real LVM with that many volumes in its metadata (tests/node/lvmmetadata.py), so the kernel
needs no device-mapper. Mounts are of images on loop devices, of which all but those that are mounted are empty.
"""

import asyncio
import ctypes
import json
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from daemon.backends.loop import LoopBackend
from host import blockdevice, loopdevice, mounting, superblock
from host.superblock import Fit
from lvm import configuration, report
from tests.bench import figures
from tests.bench.commandcount import counted, seconds
from tests.node.lvmmetadata import Metadata, remove, restored
from tests.node.volume_node import MIB, Node, lvm_backend
from tests.sandbox import mountspace

SIZES = (125, 500, 2_000)
_GROUP = "benchmark"
_LOOKS, _MOUNTS, _ROUNDS = 7, 15, 4
_SIZE = 32 * MIB
_OTHER_MOUNTS = 300
"""Of a node with some fifty pods: overlays, projected volumes, network namespaces."""
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Measured:
    """Seconds, the best of several runs, because others may use the machine. Each `bare` is the yardstick of what
    stands before it, measured in turn with it."""

    volumes: int
    look: float
    bare_look: float
    bare_look_with_aio: float
    commands_for_look: float
    create: float
    """What LVM takes for a volume that is made: lvcreate, and the lvchange by which its record says that it is ready.
    In the metadata alone, without the device."""
    bare_create: float
    """The one lvcreate of a person, with LVM's own defaults."""
    memory: int
    """Bytes by which this process grew with its first look, at all volumes."""
    mount: float
    bare_mount: float
    bare_whole: float
    """What somebody who wants the same has to do: `bare_mount`, before it the look whether the filesystem is clean, and
    after it the bind into the folder of a pod."""
    bind: float
    """Of a volume that is mounted for another pod."""
    bare_bind: float
    commands_for_mount: float


async def main() -> None:
    results = []
    for number in SIZES:
        with tempfile.TemporaryDirectory(prefix="elastic-") as folder:
            looks = await _looks(Path(folder), number)
        with tempfile.TemporaryDirectory(prefix="elastic-") as folder:
            mounts = await _mounts(Path(folder), number)
        results.append(Measured(number, *looks, *mounts))
        _print(results[-1])
        figures.MEASURED.mkdir(parents=True, exist_ok=True)
        (figures.MEASURED / "node.json").write_text(json.dumps([asdict(each) for each in results], indent=1))


def _print(found: Measured) -> None:
    print(f"{found.volumes} volumes on a node")
    print(
        f"  one look at LVM {1000 * found.look:.0f} ms, {found.commands_for_look:.0f} command; the bare report"
        f" {1000 * found.bare_look:.0f} ms, as LVM is configured by default {1000 * found.bare_look_with_aio:.0f} ms;"
        f" {found.memory / MIB:.1f} MiB more memory; lvcreate and lvchange {1000 * found.create:.0f} ms, a person's"
        f" lvcreate {1000 * found.bare_create:.0f} ms"
    )
    print(
        f"  mount {1000 * found.mount:.1f} ms, {found.commands_for_mount:.1f} commands; losetup and mount(2)"
        f" {1000 * found.bare_mount:.1f} ms, with look and bind {1000 * found.bare_whole:.1f} ms; for one more"
        f" pod {1000 * found.bind:.2f} ms, mount(2) {1000 * found.bare_bind:.2f} ms",
        flush=True,
    )


async def _looks(folder: Path, number: int) -> tuple[float, float, float, float, float, float, int]:
    disk = folder / "disk"
    with disk.open("wb") as file:
        file.truncate(48 << 30)
    (folder / "lvm").mkdir()
    metadata = Metadata(folder / "lvm")
    with loopdevice.attached(disk) as device:
        metadata.show(str(device))
        metadata.run("vgcreate", "--metadatasize=64m", _GROUP, str(device))
        assert restored(metadata, _GROUP, folder, number)
        try:
            backend = lvm_backend(metadata.tools, _GROUP, thin=False)
            aio = folder / "aio"
            shutil.copytree(folder / "lvm", aio)
            (aio / "lvm.conf").write_text((aio / "lvm.conf").read_text().replace("use_aio = 0", "use_aio = 1"))
            defaults = folder / "defaults"
            metadata.write(defaults, configuration.text(udev=False).removeprefix(configuration.text(udev=True)))
            ours, bare, with_aio, made, made_by_hand, commands = [], [], [], [], [], 0
            before = _resident()
            kept = await backend.inspect()
            memory = _resident() - before
            assert len(kept.volumes) == number
            for run in range(_LOOKS):
                begin = time.perf_counter()
                with counted() as seen:
                    assert len((await backend.inspect()).volumes) == number
                ours.append(time.perf_counter() - begin)
                commands += len(seen)
                bare.append(_lvm(folder / "lvm", *report.FULL_REPORT))
                with_aio.append(_lvm(aio, *report.FULL_REPORT))
                metadata_alone = ("--activate=n", "--zero=n", "--wipesignatures=n", "--yes", f"--size={_SIZE}b", _GROUP)
                create = _lvm(folder / "lvm", "lvcreate", f"--name=ours-{run}", "--addtag=making", *metadata_alone)
                note = ("lvchange", "--deltag=making", "--addtag=ready", f"{_GROUP}/ours-{run}")
                made.append(create + _lvm(folder / "lvm", *note))
                made_by_hand.append(_lvm(defaults, "lvcreate", f"--name=by-hand-{run}", *metadata_alone))
                for name in (f"ours-{run}", f"by-hand-{run}"):
                    metadata.run("lvremove", "--yes", f"{_GROUP}/{name}")
        finally:
            remove(metadata, _GROUP, folder)
    return min(ours), min(bare), min(with_aio), commands / _LOOKS, min(made), min(made_by_hand), memory


def _resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _lvm(folder: Path, *arguments: str) -> float:
    """Seconds that a command takes, with the lvm.conf in the folder."""
    environment = {**os.environ, "LVM_SYSTEM_DIR": str(folder), "LVM_SUPPRESS_FD_WARNINGS": "1"}
    begin = time.perf_counter()
    subprocess.run(["lvm", *arguments], env=environment, capture_output=True, check=True)
    return time.perf_counter() - begin


async def _mounts(folder: Path, number: int) -> tuple[float, float, float, float, float, float]:
    node = Node(folder, lambda: LoopBackend(folder / "data", number * _SIZE))
    try:
        await _make(node, number)
        _mount_others(node.root / "others")
        volumes = node.volumes()
        await volumes.start()
        ours, bare, whole, binds, bare_binds, commands = [], [], [], [], [], 0

        def by_hand(pv: str) -> None:
            took, look, took_bind = _by_hand(folder / "data" / f"{pv}.img", folder / "by-hand")
            bare.append(took)
            whole.append(took + look + took_bind)
            bare_binds.append(took_bind)

        for run in range(_ROUNDS * _MOUNTS):
            spec = node.spec(_SIZE, pv=_name(run % _MOUNTS))
            first, second = node.folder(spec.pv), node.folder(spec.pv)
            if run % 2:  # who comes first finds less of the image in memory
                by_hand(spec.pv)
            with counted() as seen:
                ours.append(await seconds(volumes.mount(spec, first, False)))
            commands += len(seen)
            binds.append(await seconds(volumes.mount(spec, second, False)))
            for target in (first, second):
                await volumes.unmount(target)
            if not run % 2:
                by_hand(spec.pv)
        await volumes.close()
    finally:
        node.unmount_all()
    return min(ours), min(bare), min(whole), min(binds), min(bare_binds), commands / len(ours)


def _mount_others(folder: Path) -> None:
    for number in range(_OTHER_MOUNTS):
        other = folder / f"pods/{uuid.uuid4()}/volumes/kubernetes.io~projected/kube-api-access-{number}"
        other.mkdir(parents=True)
        mounting.bind(other, other)


def _name(number: int) -> str:
    return f"pvc-{number:08d}"


async def _make(node: Node, number: int) -> None:
    """Volumes as a daemon before us left them."""
    volumes = node.volumes()
    await volumes.start()
    for run in range(_MOUNTS):
        target = node.folder(_name(run))
        await volumes.mount(node.spec(_SIZE, pv=_name(run)), target, False)
        await volumes.unmount(target)
    await volumes.close()
    data = node.root / "data"
    record = next(data.glob(f"{_name(0)}*.json")).read_text()
    for other in range(_MOUNTS, number):
        (data / f"{_name(other)}.json").write_text(record.replace(_name(0), _name(other)))
        with (data / f"{_name(other)}.img").open("wb") as image:
            image.truncate(_SIZE)


def _by_hand(image: Path, folder: Path) -> tuple[float, float, float]:
    """Seconds for what the mount of a volume is made of, for the look whether it may be mounted, and for a folder of
    it."""
    there, again = folder / "there", folder / "again"
    for each in (there, again):
        each.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    with loopdevice.attached(image) as device:
        attached = time.perf_counter()
        claimed = blockdevice.claim(device)
        assert claimed
        with claimed as descriptor:
            assert superblock.of_ext4(descriptor) is Fit.FILLS
        looked = time.perf_counter()
        if _libc.mount(os.fsencode(device), os.fsencode(there), b"ext4", 0, None) != 0:
            raise OSError(ctypes.get_errno(), "mount(2)")
        mounted = time.perf_counter()
        mounting.bind(there, again)
        bound = time.perf_counter()
        for each in (again, there):
            mounting.unmount(each)
    return attached - begin + mounted - looked, looked - attached, bound - mounted


if __name__ == "__main__":
    mountspace.enter_private()
    asyncio.run(main())
