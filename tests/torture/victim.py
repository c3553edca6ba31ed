"""The process that is killed: a daemon's volumes, started, told what to do, and telling what it is about to do and what
is done. With all that it starts it is a process namespace of its own, as in its container: they die together."""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from contract import names
from contract.volume import DELETE, RETAIN, Original
from daemon.errors import InUse, NotAuthorized, VolumeError
from daemon.kubelet.poddevice import PodDevice
from daemon.kubelet.podfolder import PodFolder
from daemon.storage.deletionguard import Owner, RemovalReason
from daemon.storage.encryption import mapping_name
from daemon.storage.record import VolumeSpec
from daemon.storage.volumes import Volumes
from host import command, mounting
from host.command import Completed
from host.luks import Passphrase
from tests.agreeing import CLUSTER
from tests.node.volume_node import Node
from tests.sandbox import mountspace
from tests.torture.model import Chain, Operation, Seen, content, files_on, kind_of, place_of, uid_of

_CLONE_NEWPID = 0x20000000
_libc = ctypes.CDLL(None, use_errno=True)

Tell = Callable[[dict[str, Any]], None]
"""Writes one event, at once: what was told stays told when the process is killed."""

_KEY = Passphrase(b"of all encrypted volumes", "the campaign")
"""What the kubelet has from the Secret."""
_STEPS = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "fcntl.ioctl", "subprocess.Popen"})


@dataclass(frozen=True)
class Arms:
    """When it dies. 0: not by this."""

    step: int = 0
    """Before this change of disk, mounts or devices, or start or end of a command."""
    kill_command: int = 0
    """The command of this number is killed, and the daemon lives."""
    command_seconds: float = 0


class Cluster:
    """The API server as the model has it: see daemon.storage.deletionguard.OwnerLookup."""

    cluster = CLUSTER

    def __init__(self, chains: list[Chain]) -> None:
        self._removed: set[str] = set()
        self._policies: dict[str, str] = {}
        self._absent: set[str] = set()
        self.remove(chains)

    def remove(self, chains: list[Chain]) -> None:
        """From now on the PersistentVolumes are deleted of which the chains remove the volumes."""
        self._removed |= {each.pv for chain in chains for each in chain if each.kind == "reclaim"}

    def note(self, operation: Operation) -> None:
        """What is about to be done, in the one state of the PersistentVolume in which that comes about."""
        policy = DELETE if operation.kind == "reclaim" else operation.policy
        self._policies[operation.pv] = RETAIN if operation.kind == "retain" else policy
        (self._absent.add if operation.kind == "orphaned" else self._absent.discard)(operation.pv)

    async def owner(self, pv: str, content: str = "") -> Owner | None:
        if pv in self._absent:
            return None
        return Owner(uid_of(pv), self._policies.get(pv, DELETE), reclaimable=pv in self._removed)


def spawn(work: Callable[[Tell], None]) -> tuple[int, int, int]:
    """Runs the work in a process that is the first of a process namespace. Returns its pid, that of the process to wait
    for, and a descriptor with its events, one JSON object a line."""
    reading, writing = os.pipe()
    pid_reading, pid_writing = os.pipe()
    outer = os.fork()
    if outer == 0:
        try:
            if _libc.unshare(_CLONE_NEWPID):
                raise OSError(ctypes.get_errno(), "no process namespace")
            inner = os.fork()
            if inner == 0:
                _run(work, writing)
            os.write(pid_writing, b"%d\n" % inner)
            os.close(writing)
            os.waitpid(inner, 0)
        finally:
            os._exit(0)
    os.close(writing)
    os.close(pid_writing)
    with os.fdopen(pid_reading) as pid_pipe:
        inner = int(pid_pipe.readline())
    return inner, outer, reading


def _run(work: Callable[[Tell], None], writing: int) -> None:
    def tell(event: dict[str, Any]) -> None:
        os.write(writing, json.dumps(event).encode() + b"\n")

    code = 1
    try:
        work(tell)
        code = 0
    except BaseException:
        tell({"event": "crashed", "why": traceback.format_exc()[-3000:]})
    finally:
        os._exit(code)


def perform(node: Node, chains: list[Chain], arms: Arms, tell: Tell) -> None:
    """All of a daemon's life: its start, and the chains side by side."""
    _arm(arms, tell)

    async def live() -> None:
        volumes = _volumes(node, chains)
        try:
            await volumes.start()
        except VolumeError as error:
            # As when its command was killed: a daemon logs that and looks again.
            tell({"event": "not started", "why": str(error)[-500:]})
            return
        tell({"event": "started"})
        await asyncio.gather(*(follow(volumes, node, chain, tell) for chain in chains))
        await volumes.close()

    asyncio.run(live())
    tell({"event": "ended"})


def _volumes(node: Node, chains: list[Chain]) -> Volumes:
    return Volumes(node.make_backend(), node.staging, Cluster(chains))


async def follow(volumes: Volumes, node: Node, chain: Chain, tell: Tell) -> None:
    """One operation after the other, until one fails."""
    for operation in chain:
        tell({"event": "begin", "operation": operation.to_fields()})
        try:
            size = await _do(volumes, node, operation)
        except (VolumeError, OSError) as error:
            words = f"{type(error).__name__}: {error}"
            tell({"event": "failed", "operation": operation.to_fields(), "why": words[:1000]})
            return
        tell({"event": "done", "operation": operation.to_fields(), "size": size})


async def _do(volumes: Volumes, node: Node, operation: Operation) -> int:
    """The size that the volume was said to have, 0 when nothing was said."""
    pv = operation.pv
    pool = node.make_backend().pool_of(wanted_of(node, operation).parameters)
    if operation.kind == "reclaim":
        async with asyncio.timeout(120):
            while not await volumes.reclaim(pv, uid_of(pv), pool):
                await asyncio.sleep(0.01)
        return 0
    if operation.kind == "retain":
        await volumes.retain(pv, uid_of(pv), pool, made=True)
        return 0
    if operation.kind == "orphaned":
        with contextlib.suppress(NotAuthorized):
            await volumes.reclaim(pv, uid_of(pv), pool, RemovalReason.ORPHANED)
            raise AssertionError(f"{pv} was retained, and is removed as an orphan")
        return 0
    target = _target(node, operation)
    if operation.kind == "unmount":
        await volumes.unmount(target)
        if isinstance(target, PodDevice):
            target.remove()
        else:
            target.path.rmdir()
        with contextlib.suppress(InUse):  # the kubelet unstages after the last pod
            await volumes.release(pv)
        return 0
    if operation.kind == "write":
        await asyncio.to_thread(_write, target, operation.file)
        return 0
    spec = wanted_of(node, operation)
    if spec.parameters.encryption and not (operation.kind == "expand" and operation.made):
        size = (await volumes.unlock(spec, _KEY)).size  # the kubelet stages it
        if operation.kind == "prepare":
            return size
    if operation.kind == "prepare":
        return (await volumes.prepare(spec)).size
    if operation.kind == "expand":
        return (await volumes.expand(spec)).size
    await volumes.mount(spec, target, read_only=False)
    return 0


def wanted_of(node: Node, operation: Operation) -> VolumeSpec:
    original = Original(operation.original, uid_of(operation.original)) if operation.original else None
    spec = node.spec(
        operation.size,
        pv=operation.pv,
        uid=uid_of(operation.pv),
        policy=operation.policy,
        device_class=operation.device_class,
        filesystem=kind_of(operation.device_class).filesystem,
        encryption=kind_of(operation.device_class).encryption,
        raid=kind_of(operation.device_class).raid,
        stripes=kind_of(operation.device_class).stripes,
    )
    return replace(spec, made=operation.made, original=original)


def _target(node: Node, operation: Operation) -> PodFolder:
    """Where a pod has it, as the kubelet and the CSI driver make it."""
    if not kind_of(operation.device_class).block or not operation.pod:
        return node.folder(operation.pv, operation.pod)
    kubelet = node.root / "kubelet"
    device = PodDevice.parse(str(kubelet / names.CSI_DEVICES / operation.pv / operation.pod), kubelet)
    device.path.parent.mkdir(parents=True, exist_ok=True)
    device.make()
    return device


def _write(target: PodFolder, file: str) -> None:
    if isinstance(target, PodDevice):
        with target.path.open("r+b", buffering=0) as device:
            device.seek(place_of(file))
            device.write(content(file))
            os.fsync(device.fileno())
        return
    folder = target.path
    with (folder / file).open("wb") as opened:
        opened.write(content(file))
        opened.flush()
        os.fsync(opened.fileno())
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)


def _arm(arms: Arms, tell: Tell) -> None:
    left = arms.step

    def step(name: str) -> None:
        nonlocal left
        if left:
            left -= 1
            if not left:
                tell({"event": "step", "name": name})
                time.sleep(3600)  # until the SIGKILL comes, which the first process of a namespace can't give itself

    if arms.step:

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event in _STEPS or (event == "open" and _writes(arguments)):
                step(event)

        def ended(completed: Completed) -> None:
            step(f"end of {completed.argv[0]}")

        command.observers.append(ended)
        for name in ("bind", "unmount"):
            _wrap(mounting, name, step)
        sys.addaudithook(hook)
    if arms.kill_command:
        _kill_command(arms, tell)


def _writes(arguments: tuple[Any, ...]) -> bool:
    return isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))


def _wrap(owner: Any, name: str, step: Callable[[str], None]) -> None:
    inner = getattr(owner, name)

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        step(f"before {name}")
        result = inner(*arguments, **keywords)
        step(f"after {name}")
        return result

    setattr(owner, name, wrapped)


def _kill_command(arms: Arms, tell: Tell) -> None:
    """As the kernel does that is short of memory: the command dies with what it started, the daemon does not."""
    start = asyncio.create_subprocess_exec
    left = arms.kill_command

    async def started(*arguments: Any, **keywords: Any) -> Any:
        nonlocal left
        process = await start(*arguments, **keywords)
        left -= 1

        def kill() -> None:
            if process.returncode is None:
                tell({"event": "command killed", "command": " ".join(map(str, arguments[:3]))})
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

        if left == 0:
            asyncio.get_running_loop().call_later(arms.command_seconds, kill)
        return process

    asyncio.create_subprocess_exec = started


async def close_all(node: Node) -> None:
    """No encrypted volume is open that nobody has mounted."""
    volumes = _volumes(node, [])
    await volumes.start()
    await volumes.lock_unstaged(lambda _: False)
    await volumes.close()


async def look(node: Node, *, start: bool) -> Seen:
    """What the node shows. `start`: a daemon is started for it, which mends what an LVM command left that was killed,
    so that LVM can be asked at all, and ends what is left over."""
    late = ""
    if start:
        volumes = _volumes(node, [])
        await volumes.start()
        late = await without_snapshots(volumes)
        await volumes.close()
    seen = await node.make_backend().inspect()
    mounts = node.mounts()
    pods = [Path(each.path) for each in mounts if not Path(each.path).is_relative_to(node.staging)]
    files: dict[str, dict[str, str]] = {}
    unreadable: dict[str, str] = {}
    for path in pods:
        _, pv = _shown(path)
        if pv not in files:
            try:
                files[pv] = dict(_digests(path))
            except OSError as error:
                unreadable[pv] = str(error)
    return Seen(
        inventory=seen,
        mounts=frozenset(map(_shown, pods)),
        staged=frozenset(Path(each.path).name for each in mounts if Path(each.path).parent == node.staging),
        files=files,
        unreadable=unreadable,
        paths=_names(node.root / "data"),
        loop_devices=_loop_devices(node),
        staging_folders=_names(node.staging),
        late=late,
        mappings=frozenset(path.name for path in Path("/dev/mapper").glob(f"{mapping_name('pvc-')}[0-9]*")),
    )


async def without_snapshots(volumes: Volumes, seconds: float = 120) -> str:
    """Waits until what was copied from is gone. What keeps it, if it takes longer."""
    begin = time.monotonic()
    while left := [each.pv for each in volumes.inventory.snapshots]:
        if (waited := time.monotonic() - begin) > seconds:
            return f"snapshots are there after {waited:.0f} s: {left}. {running()}"
        await asyncio.sleep(0.05)
    return ""


def running() -> str:
    """What this machine, or namespace of processes, is busy with: when something takes too long, was it the load?"""
    told = []
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command_line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            begun = int(fields[19]) / os.sysconf("SC_CLK_TCK")
            if command_line:  # a thread of the kernel has none
                told.append(f"{process.name} {fields[0]} {uptime - begun:.0f} s {command_line[:200]}")
    load = Path("/proc/loadavg").read_text().split()
    return f"Load {' '.join(load[:3])}; processes, their states and ages:\n" + "\n".join(told)


def _names(folder: Path) -> frozenset[str]:
    return frozenset(each.name for each in folder.iterdir()) if folder.is_dir() else frozenset()


def _shown(path: Path) -> tuple[str, str]:
    """Whose folder or file it is, and of which volume."""
    if path.is_relative_to(path.parents[6] / names.CSI_DEVICES):
        return path.name, path.parent.name
    return path.parents[2].name, path.name


def _digests(folder: Path) -> Iterator[tuple[str, str]]:
    if folder.is_block_device():
        with folder.open("rb") as device:
            yield from ((name, sha256(data).hexdigest()) for name, data in files_on(device))
        return
    for path in folder.iterdir():
        if path.is_file():
            yield path.name, sha256(path.read_bytes()).hexdigest()


def _loop_devices(node: Node) -> int:
    """Of files with volumes. -1: the node has its volumes elsewhere."""
    data = node.root / "data"
    if not list(data.glob("*.img")) and node.pool != "loop":
        return -1
    return len(list(mountspace.loop_devices(data)))
