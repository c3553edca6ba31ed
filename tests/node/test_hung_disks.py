"""A disk that gives no answer: an ext4 that is frozen keeps whoever writes to it in an uninterruptible system call."""

import asyncio
import contextlib
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from contract.volume import NodeAssignment
from daemon.backends.deviceclassbackend import DeviceClassBackend, backend_of_classes
from daemon.errors import BackendFailed
from daemon.node import Daemon
from daemon.settings import Settings
from daemon.storage import disks
from daemon.storage.deviceclasses import LOOP, DeviceClass
from daemon.storage.volumes import Volumes
from host import command, freezing, mounting
from host.command import CommandHung, CommandTimedOut, run
from kube.client import Cluster
from kube.resources import EVENTS
from tests.agreeing import Agreeing
from tests.node.volume_node import Node
from tests.ports import reserved_port
from tests.unit.daemon.nodecluster import HOSTNAME, NODE, create_pv, read_pv, serving
from tests.waiting import until

MIB = 2**20


@pytest.fixture
def hung(tmp_path: Path) -> Iterator[Path]:
    disk, path = tmp_path / "disk.img", tmp_path / "disk"
    path.mkdir()
    with disk.open("wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, path], check=True)
    freezing.freeze(path)
    try:
        yield path
    finally:
        freezing.thaw(path)
        mounting.unmount(path, detach=True)


async def test_a_command_that_can_not_be_killed_is_started_once(hung: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_REAP_SECONDS", 0.5)
    before = reaping()
    touch = ("touch", str(hung / "file"))
    with pytest.raises(CommandTimedOut):
        await run(*touch, deadline=1)
    with pytest.raises(CommandHung, match=r"touch .*/file \(process \d+\) was killed .* and still waits for a disk"):
        await run(*touch, deadline=1)
    freezing.thaw(hung)
    async with asyncio.timeout(20):
        while True:
            try:
                await run(*touch, deadline=10)
            except CommandHung:
                await asyncio.sleep(0.05)
            else:
                break
    # A command that is dead is not reaped yet: the event loop has to hear of it before it ends.
    await until(lambda: reaping() <= before)


def reaping() -> set[threading.Thread]:
    """Threads of asyncio, each of which waits for the end of one command."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("asyncio-waitpid")}


def hanging() -> int:
    """Threads that wait for the disk that hangs, by their volumes."""
    return sum(thread.name.startswith("look at volume dead-") for thread in threading.enumerate())


@pytest.fixture
def classes(hung: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, DeviceClass]:
    """Two disks of a node, one of which hangs as soon as it is frozen."""
    freezing.thaw(hung)
    monkeypatch.setattr(disks, "CALL_SECONDS", 3.0)
    return {
        name: DeviceClass(name, LOOP, folder=folder, own_folder=True, capacity=1024 * MIB)
        for name, folder in (("dead", hung / "data"), ("alive", tmp_path / "alive"))
    }


@pytest.fixture
def backend(classes: dict[str, DeviceClass], tmp_path: Path) -> DeviceClassBackend:
    return backend_of_classes(classes, tmp_path)


@pytest.fixture
def node(backend: DeviceClassBackend, tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path, lambda: backend)
    yield node
    for mount in reversed(node.mounts()):
        if mount.path != str(tmp_path / "disk"):
            mounting.unmount(Path(mount.path), detach=True)


async def test_one_disk_that_hangs_holds_a_few_threads_and_no_other_disk(hung: Path, node: Node) -> None:
    volumes = Volumes(node.make_backend(), node.staging, Agreeing())
    await volumes.start()
    freezing.freeze(hung)
    before = hanging()

    async def fails(number: int) -> None:
        with pytest.raises(BackendFailed, match="gives no answer, its disk hangs: see the kernel"):
            await volumes.prepare(node.spec(pv=f"dead-{number}", device_class="dead"))

    async def other_disk() -> None:
        """While all that the first one may have under way is under way."""
        folder = node.folder("alive")
        await volumes.mount(node.spec(pv="alive", device_class="alive"), folder, read_only=False)
        (folder.path / "data").write_text("written")
        await volumes.unmount(folder)

    count = 40
    trying = asyncio.gather(*(fails(number) for number in range(count)))
    async with asyncio.timeout(60):
        while hanging() == before:
            await asyncio.sleep(0.01)
        await other_disk()
        assert not trying.done()
        await trying
        for _ in range(10):
            await asyncio.gather(*(fails(number) for number in range(count)))
            assert hanging() <= before + 32
    assert len(volumes.unresponsive()) >= 32, "from there on the whole pool is told to give no answer"
    freezing.thaw(hung)
    async with asyncio.timeout(60):
        while volumes.unresponsive():
            await asyncio.sleep(0.05)
        await volumes.prepare(node.spec(pv="dead-0", device_class="dead"))
        await until(lambda: hanging() == before)


async def test_a_source_thaws_in_time_though_its_disk_hangs(hung: Path, node: Node, tmp_path: Path) -> None:
    """The thread that freezes it comes back late, when nobody waits for it."""
    volumes = Volumes(node.make_backend(), node.staging, Agreeing())
    await volumes.start()
    source = node.spec(pv="source", device_class="dead")
    folder = node.folder("source")
    await volumes.mount(source, folder, read_only=False)
    (folder.path / "data").write_text("first")  # what is to be flushed before it can be frozen
    freezing.freeze(hung)
    release = threading.Event()
    freezes = threading.Thread(target=freezing.hold, args=(folder.path, 0.2, lambda: None, release), daemon=True)
    freezes.start()
    freezes.join(1)
    assert freezes.is_alive(), "it waits for the disk"
    freezing.thaw(hung)
    await asyncio.to_thread(freezes.join, 30)
    assert not freezes.is_alive()
    assert not freezing.thaw(folder.path), "it was left frozen"
    await volumes.unmount(folder)


@contextlib.asynccontextmanager
async def daemon(
    cluster: Cluster, tmp_path: Path, classes: dict[str, DeviceClass], backend: DeviceClassBackend, port: int
) -> AsyncIterator[None]:
    chosen = Settings(
        NODE,
        socket=tmp_path / "socket",
        staging_dir=tmp_path / "staging",
        kubelet_root=tmp_path / "kubelet",
        plugin_dirs=(tmp_path / "plugins",),
        data_dir=tmp_path,
        device_classes=classes,
        refresh_period=0.2,
        listen_host="127.0.0.1",
        listen_port=port,
    )
    running = asyncio.create_task(Daemon(chosen, cluster, backend).run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait({running})


async def test_a_disk_that_hangs_is_reported_with_its_remedy_and_others_are_served(
    hung: Path, classes: dict[str, DeviceClass], backend: DeviceClassBackend, tmp_path: Path
) -> None:
    with reserved_port() as port:
        async with serving(tmp_path / "api") as (cluster, _), daemon(cluster, tmp_path, classes, backend, port):

            async def ready() -> tuple[int, str]:
                async with aiohttp.ClientSession() as session:
                    try:
                        async with session.get(f"http://127.0.0.1:{port}/readyz") as answer:
                            return answer.status, await answer.text()
                    except aiohttp.ClientError:
                        return 0, ""

            async def event_message(name: str, reason: str) -> str:
                events = [e for e in await cluster.list(EVENTS) if e["involvedObject"]["name"] == name]
                return next((event["message"] for event in events if event["reason"] == reason), "")

            async def made(name: str) -> bool:
                pv = await read_pv(cluster, name)
                return bool(pv and pv.made)

            async def create(name: str, disk: str) -> None:
                options: Any = {"device-class": disk}
                await create_pv(cluster, name, assignment=NodeAssignment(NODE, HOSTNAME, f"loop:{disk}"), **options)

            await create("first", "dead")
            await until(lambda: made("first"), seconds=30)
            freezing.freeze(hung)
            for number in range(20):
                await create(f"dead-{number}", "dead")
            await create("alive", "alive")
            await until(lambda: made("alive"), seconds=30)
            await until(lambda: event_message("dead-0", "VolumeUnhealthy"), seconds=30)
            assert "volume dead-0 gives no answer, its disk hangs: see the kernel's log" in await event_message(
                "dead-0", "VolumePreparationFailed"
            )
            message = await event_message("dead-0", "VolumeUnhealthy")
            assert "unresponsive: its disk gives no answer" in message
            assert "restart the node" in message
            _, words = await ready()
            assert "gives no answer, its disk hangs" in words
            assert not await made("dead-0")
            freezing.thaw(hung)
            await until(lambda: event_message("dead-0", "VolumeHealthy"), seconds=60)
            await until(lambda: made("dead-0"), seconds=60)
