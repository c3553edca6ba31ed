"""Disks under volume groups and under a thin pool fail, lie, are slow, and are sound again, at random moments while
volumes are made, mounted, written, grown, copied, retained, erased and removed; then all that was asked for must come
about, and what was there before must be.

Three device classes: thick volumes on two disks with faults, thin ones in a pool on a third, and thick ones on a disk
that never fails, which must be served all the time.
"""

import asyncio
import contextlib
import json
import logging
import os
import random
import re
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from contract.parameters import DEFAULT_DEVICE_CLASS
from daemon.backends.lvm import LvmBackend
from daemon.errors import VolumeError
from daemon.storage import disks, erasing
from daemon.storage.deviceclasses import LVM, DeviceClass
from daemon.storage.volumes import Volumes
from host import loopdevice
from lvm import Lvm
from tests.node.volume_node import MIB, Node
from tests.torture import faultydisk, victim
from tests.torture.faultydisk import KINDS, LIE, FaultyDisk
from tests.torture.figures import Figures
from tests.torture.guestlife import replayed
from tests.torture.model import SETTLED_POD, Chain, Expected, Model, Operation, plan, settlement, traces

log = logging.getLogger(__name__)

THICK, THIN, SOUND = DEFAULT_DEVICE_CLASS, "thin", "sound"
_DISK_BYTES = 300 * MIB
_LVM_SECONDS = 15.0
"""The deadline of one command: that of a daemon is a minute."""
_HUNG_SECONDS = 240.0
_SETTLE_EVERY = 3
"""Rounds."""
_RESTART = 0.3
"""How often a daemon is started anew before all must be well, where it could do without."""
_LONGEST_FAULT = 5.0
_PIECE = 16 * MIB
_OF_DAMAGE = re.compile(r"on the node run `(e2fsck -f /dev/\S+)`")
_MENDED = (0, 1)
"""Exit codes of e2fsck(8)."""
_REMEDY = re.compile(r"was away and is back: `(vgextend --restoremissing \S+ \S+)`")


class Unforeseen(logging.Handler):
    """What a daemon logs with a traceback: an error that nobody thought of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self.found.append(
                f"{record.getMessage()}: {''.join(traceback.format_exception(record.exc_info[1]))[-3000:]}"
            )


class Campaign:
    """On one node, from one seed."""

    def __init__(
        self, node: Node, system_folder: Path, faulty: dict[str, list[FaultyDisk]], seed: int, figures: Figures
    ) -> None:
        self._node = node
        self._system_folder = system_folder
        self._faulty = faulty
        self._chance = random.Random(seed)
        self._figures = figures
        self._model = Model(classes=(THICK, THICK, THIN, THIN, SOUND), retains=True)
        self._cluster = victim.Cluster([])
        self._trace: list[str] = []
        self._unforeseen = Unforeseen()
        self._hit: set[str] = set()
        """Classes that had a fault since all was well."""
        self._damaged: set[str] = set()
        """What is to be run for volumes that are damaged."""
        self._lying = False
        self._unchecked: set[str] = set()
        """Files that a disk which lied may have kept."""

    async def run(self, enough: Callable[[], bool]) -> None:
        """Until `enough`, or the first complaint."""
        logging.getLogger().addHandler(self._unforeseen)
        threads = _threads()
        try:
            volumes = await self._started()
            while not self._figures.complaints:
                ended = enough()
                if not ended:
                    await self._round(volumes)
                    self._figures.counts["rounds"] += 1
                if ended or self._figures.counts["rounds"] % _SETTLE_EVERY == 0:
                    volumes = await self._settle(volumes)
                if ended:
                    break
            if not self._figures.complaints:
                await self._empty(volumes, threads)
        finally:
            logging.getLogger().removeHandler(self._unforeseen)

    async def _started(self) -> Volumes:
        volumes = Volumes(self._node.make_backend(), self._node.staging, self._cluster)
        await volumes.start()
        return volumes

    async def _round(self, volumes: Volumes) -> None:
        """Something is done until one disk had a fault, and is sound again."""
        fault = asyncio.create_task(self._fault())
        while not fault.done() and not self._figures.complaints:
            chains, self._model = plan(self._model, self._chance)
            await self._perform(volumes, chains)
            await asyncio.sleep(0.1)
        await fault

    async def _fault(self) -> None:
        device_class = self._chance.choice(sorted(self._faulty))
        disk = self._chance.choice(self._faulty[device_class])
        # In a pool that lies its own metadata are lost as well.
        kind = self._chance.choice([*KINDS, LIE] if device_class == THICK else KINDS)
        fault = faultydisk.fault(kind, disk.sectors, self._chance)
        wait, seconds = self._chance.uniform(0, 2), self._chance.uniform(0.3, _LONGEST_FAULT)
        await asyncio.sleep(wait)
        log.warning("disk %s: %s", disk.name, fault)
        self._note({"event": "fault", "disk": disk.name, "kind": kind, "table": [str(each) for each in fault.segments]})
        self._hit.add(device_class)
        self._lying = kind == LIE
        if self._lying:
            self._doubt(each.pv for each in self._model.volumes.values() if each.pods or each.perhaps or each.pending)
            self._unchecked |= self._files()
        await asyncio.to_thread(disk.have, fault)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(disk.mend)
        self._lying = False
        log.warning("disk %s is mended", disk.name)
        self._note({"event": "mended"})
        self._figures.counts[f"fault: {kind}"] += 1

    def _doubt(self, volumes: Any) -> None:
        self._model = self._model.doubt(
            [pv for pv in volumes if THICK in (self._model.volumes[pv].device_class, self._source_class(pv))]
        )

    def _source_class(self, pv: str) -> str:
        source = self._model.volumes.get(self._model.volumes[pv].original)
        return source.device_class if source else ""

    def _files(self) -> set[str]:
        return {file for each in self._model.volumes.values() for file in each.begun}

    async def _perform(self, volumes: Volumes, chains: list[Chain]) -> bool:
        """Whether all of it succeeded."""
        failed = 0

        def tell(event: dict[str, Any]) -> None:
            nonlocal failed
            failed += event["event"] == "failed"
            self._note(event)

        self._cluster.remove(chains)
        begin = time.monotonic()
        try:
            async with asyncio.timeout(_HUNG_SECONDS):
                await asyncio.gather(*(victim.follow(volumes, self._node, chain, tell) for chain in chains))
        except TimeoutError:
            stacks = [str(task) for task in asyncio.all_tasks()]
            self._complain([f"it hangs for {time.monotonic() - begin:.0f} s: {victim.running()}", *stacks])
        except Exception:
            self._complain([f"an error that nobody foresaw: {traceback.format_exc()[-3000:]}"])
        return not failed

    def _note(self, event: dict[str, Any]) -> None:
        self._trace = [*self._trace[-20_000:], json.dumps({"at": round(time.monotonic(), 2), **event})]
        self._model = replayed(self._model, event)
        if "operation" not in event:
            return
        operation = Operation(**event["operation"])
        if event["event"] == "begin":
            self._cluster.note(operation)
            if self._lying:
                self._doubt([operation.pv])
                self._unchecked |= self._files()
        elif event["event"] == "done":
            self._figures.counts[f"{operation.kind} done"] += 1
        elif event["event"] == "failed":
            self._figures.counts[f"failed: {event['why'].partition(':')[0]}"] += 1
            if said := _OF_DAMAGE.search(event["why"]):
                self._damaged.add(said[1])
            if operation.device_class == SOUND and not operation.original:
                self._complain([f"{operation.pv} lies on a sound disk, and {operation.kind} failed: {event['why']}"])

    async def _settle(self, volumes: Volumes) -> Volumes:
        """All disks are sound. With a restart at most all comes about that was asked for, and nothing is left over."""
        if self._figures.complaints:
            return volumes
        self._note({"event": "settling"})
        restarts = 0
        if self._chance.random() < _RESTART:
            volumes = await self._restarted(volumes)
        hit = {
            each.pv
            for each in self._model.volumes.values()
            if {each.device_class, self._source_class(each.pv)} & self._hit
        }
        await self._administer(volumes)
        self._damaged.clear()  # what was said while a disk failed
        while True:
            hit &= self._model.volumes.keys()
            if await self._perform(volumes, settlement(self._model, hit)):
                break
            if restarts or self._figures.complaints:
                self._complain(["what was asked for does not come about when the disks are sound again"])
                return volumes
            await asyncio.sleep(erasing.RETRY_SECONDS)
            stopped = [each for each in self._model.volumes.values() if each.pv in hit]
            await self._perform(volumes, [self._unmounts(each) for each in stopped])
            volumes = await self._restarted(volumes)
            await self._administer(volumes)
            await self._repair()
            restarts += 1
        self._figures.counts["settled after a restart" if restarts else "settled"] += 1
        self._hit.clear()
        late = await victim.without_snapshots(volumes)
        seen = replace(await victim.look(self._node, start=False), late=late)
        self._complain(self._model.complaints(seen, settled=True))
        self._complain(await asyncio.to_thread(self._left_over))
        shown = [each for each in self._model.volumes.values() if SETTLED_POD in each.pods]
        await self._perform(volumes, [(each.operation("unmount", pod=SETTLED_POD),) for each in shown])
        self._complain(self._unforeseen.found)
        return volumes

    async def _administer(self, volumes: Volumes) -> None:
        """What LVM leaves to a person is done as the daemon says it to a person."""
        with contextlib.suppress(VolumeError):
            await volumes.refresh()
        for pool in volumes.inventory.pools:
            if said := _REMEDY.search(pool.blocked):
                self._note({"event": "remedy", "words": said[1]})
                await asyncio.to_thread(_by_hand, self._system_folder, *said[1].split())
                self._figures.counts[f"remedy: {' '.join(said[1].split()[:2])}"] += 1
        with contextlib.suppress(VolumeError):
            await volumes.refresh()

    async def _repair(self) -> None:
        """As a person does who is told that a filesystem is damaged."""
        for remedy in sorted(self._damaged):
            program, *arguments = remedy.split()
            done = await asyncio.to_thread(
                subprocess.run, [program, "-y", *arguments], capture_output=True, text=True, check=False
            )
            self._note({"event": "remedy", "words": remedy, "said": done.stdout})
            if done.returncode not in _MENDED:
                self._complain([f"{remedy} ended with {done.returncode}: {done.stdout} {done.stderr}"])
            self._figures.counts[f"remedy: {program}"] += 1
        self._damaged.clear()

    def _unmounts(self, volume: Expected) -> Chain:
        return tuple(volume.operation("unmount", pod=pod) for pod in sorted(volume.pods | volume.perhaps))

    async def _restarted(self, volumes: Volumes) -> Volumes:
        """A daemon ends as it does on SIGTERM, and another one starts."""
        self._note({"event": "restart"})
        await volumes.close()
        self._figures.counts["restarts"] += 1
        return await self._started()

    def _left_over(self) -> Collection[str]:
        found = faultydisk.lost_devices(faultydisk.known_volumes(self._system_folder))
        os.sync()
        allowed = self._files() | self._unchecked
        for each in self._faulty[THICK]:
            if strange := _traces_on(each.below) - allowed:
                found.append(f"{each.name} still holds what was erased: {sorted(strange)}")
        for volume in self._model.volumes.values():
            device = _device(volume.device_class, volume.pv)
            if (
                device.exists()
                and not volume.doubtful
                and (strange := _traces_on(device) - volume.begun - self._unchecked)
            ):
                found.append(f"{volume.pv} shows bytes of others: {sorted(strange)}")
        return found

    async def _empty(self, volumes: Volumes, threads: set[str]) -> None:
        """All volumes go, and nothing is left of them."""
        everything: list[Chain] = []
        for each in self._model.volumes.values():
            everything.append((*self._unmounts(each), each.operation("reclaim")))
        await self._perform(volumes, everything)
        seen = await victim.look(self._node, start=False)
        self._complain(self._model.complaints(seen, settled=True))
        self._complain(await asyncio.to_thread(self._left_over))
        await volumes.close()
        deadline = time.monotonic() + 20
        while (more := _threads() - threads) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        self._complain([f"the thread {name} is left" for name in sorted(more)])
        tasks = asyncio.all_tasks() - {task for task in (asyncio.current_task(),) if task}
        self._complain([f"the task {task} is left" for task in tasks])

    def _complain(self, complaints: Collection[str]) -> None:
        """With all that ever was done to the volumes that are complained about, and all faults."""
        if complaints:
            named = {pv for message in complaints for pv in re.findall(r"pvc-\d+", message)}
            told = [line for line in self._trace if "operation" not in line or any(f'"{pv}"' in line for pv in named)]
            self._figures.complaints += [
                *complaints,
                *(f"    {line}" for line in (told if named else self._trace[-80:])),
            ]


def _threads() -> set[str]:
    """But for those that asyncio keeps for its next work."""
    return {each.name for each in threading.enumerate() if not each.name.startswith("asyncio_")}


def _device(device_class: str, pv: str) -> Path:
    return Path("/dev", _group(device_class), pv)


def _group(device_class: str) -> str:
    return f"torture-{device_class}"


def _traces_on(path: Path) -> set[str]:
    found: set[str] = set()
    with path.open("rb") as disk:
        os.posix_fadvise(disk.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # what was read here before may be old
        while piece := disk.read(_PIECE):
            found |= traces(piece)
    return found


def _removed(device: FaultyDisk, figures: Figures) -> None:
    try:
        device.remove()
    except OSError as error:
        figures.complaints.append(f"{device.name} is still in use: {str(error)[-200:]}")


def _by_hand(system_folder: Path, *arguments: str) -> None:
    environment = {**os.environ, "LVM_SYSTEM_DIR": str(system_folder), "LVM_SUPPRESS_FD_WARNINGS": "1"}
    done = subprocess.run(["lvm", *arguments], check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise OSError(f"lvm {' '.join(arguments)}: {done.stdout} {done.stderr}")


@contextlib.contextmanager
def _disks(root: Path, figures: Figures) -> Iterator[tuple[dict[str, list[FaultyDisk]], Path]]:
    """By class, and the sound one. They lie on files."""
    with contextlib.ExitStack() as stack:
        below = []
        for number in range(4):
            image = root / f"disk-{number}"
            with image.open("wb") as file:
                file.truncate(_DISK_BYTES)
            below.append(Path(loopdevice.attach(image)))
            stack.callback(loopdevice.detach, below[-1])
        faulty: dict[str, list[FaultyDisk]] = {THICK: [], THIN: []}
        for device_class, disk in zip((THICK, THICK, THIN), below, strict=False):
            device = FaultyDisk(f"faulty-{len(faulty[THICK]) + len(faulty[THIN])}-{os.getpid()}", disk)
            stack.callback(_removed, device, figures)
            faulty[device_class].append(device)
        yield faulty, below[-1]


def run(root: Path, seed: int, figures: Figures, enough: Callable[[], bool]) -> None:
    """On groups of its own, which go in the end. Needs device-mapper."""
    system_folder = root / "lvm"
    tools = Lvm(system_folder, deadline=_LVM_SECONDS)
    classes = {
        name: DeviceClass(name, LVM, group=_group(name), thin=name == THIN, thin_pool="pool")
        for name in (THICK, THIN, SOUND)
    }
    node = Node(root, lambda: LvmBackend(tools, classes))
    with _shortened(), _disks(root, figures) as (faulty, sound):
        members = {**{name: [str(each.path) for each in disks] for name, disks in faulty.items()}, SOUND: [str(sound)]}
        for name, paths in members.items():
            asyncio.run(tools.create_group(_group(name), paths))
        try:
            asyncio.run(Campaign(node, system_folder, faulty, seed, figures).run(enough))
        finally:
            node.unmount_all()
            try:
                _by_hand(system_folder, "vgremove", "--force", "--yes", *map(_group, members))
            except OSError as error:
                figures.complaints.append(f"the groups can't be removed: {error}")


@contextlib.contextmanager
def _shortened() -> Iterator[None]:
    """What a daemon waits for is waited for in seconds, not in minutes."""
    before = disks.CALL_SECONDS, erasing.RETRY_SECONDS, erasing.REMEMBER_SECONDS
    disks.CALL_SECONDS, erasing.RETRY_SECONDS, erasing.REMEMBER_SECONDS = 20.0, 1.0, 0.2
    try:
        yield
    finally:
        disks.CALL_SECONDS, erasing.RETRY_SECONDS, erasing.REMEMBER_SECONDS = before
