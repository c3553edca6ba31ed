"""A daemon that is killed, by a real SIGKILL, before and after each step, and the one that goes on after it."""

import asyncio
import functools
import inspect
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract.volume import Original
from daemon.backends.loop import LoopBackend
from daemon.backends.recordfiles import RecordFiles
from daemon.storage.record import VolumeState
from daemon.storage.staging import Staging
from daemon.storage.volumes import Volumes
from host import devicecopy, filesystem, freezing, loopdevice, mounting
from tests.node.volume_node import MIB, Node

Step = tuple[Any, str]
Work = Callable[[Volumes], Awaitable[object]]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path, lambda: LoopBackend(tmp_path / "data"))
    yield node
    node.unmount_all()


def at(*steps: Step) -> Callable[[Any], Any]:
    """Runs the test for each step, killed before and killed after it."""

    def name(step: Step) -> str:
        return f"{step[0].__name__.rpartition('.')[2]}.{step[1]}"

    points = [pytest.param(step, when, id=f"{when} {name(step)}") for step in steps for when in ("before", "after")]
    return pytest.mark.parametrize(("step", "when"), points)


def run(node: Node, work: Work) -> None:
    """What a daemon does from its start on."""

    async def daemon() -> None:
        volumes = node.volumes()
        await volumes.start()
        await work(volumes)

    asyncio.run(daemon())


def run_and_kill(node: Node, work: Work, step: Step, when: str) -> None:
    """The same in a process of its own that is killed at the step."""
    child = os.fork()
    if child == 0:
        try:
            _arm(*step, when)
            run(node, work)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the step was never reached"
    assert os.WTERMSIG(status) == signal.SIGKILL


def _arm(owner: Any, name: str, when: str) -> None:
    step = getattr(owner, name)

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(step)
    def armed(*arguments: Any, **keywords: Any) -> Any:
        if when == "before":
            kill()
        result = step(*arguments, **keywords)
        kill()
        return result

    @functools.wraps(step)
    async def armed_coroutine(*arguments: Any, **keywords: Any) -> Any:
        if when == "before":
            kill()
        result = await step(*arguments, **keywords)
        kill()
        return result

    setattr(owner, name, armed_coroutine if inspect.iscoroutinefunction(step) else armed)


STEPS_OF_A_MOUNT = at(
    (LoopBackend, "create"),
    (LoopBackend, "_grow_image"),
    (filesystem, "make"),
    (LoopBackend, "rewrite"),
    (Staging, "make_folder"),
    (filesystem, "mount_sound"),
    (mounting, "bind"),
    (Staging, "bind"),
)


@STEPS_OF_A_MOUNT
def test_mounting_goes_on(node: Node, step: Step, when: str) -> None:
    folder = node.folder()

    async def mount(volumes: Volumes) -> None:
        await volumes.mount(node.spec(), folder, read_only=False)

    async def go_on(volumes: Volumes) -> None:
        for _ in range(2):
            await mount(volumes)
            assert [mount.path for mount in node.mounts()] == [str(node.staging / node.pv), str(folder.path)]
        (folder.path / "data").write_text("precious")
        await volumes.unmount(folder)
        await mount(volumes)
        assert (folder.path / "data").read_text() == "precious"

    run_and_kill(node, mount, step, when)
    run(node, go_on)


@STEPS_OF_A_MOUNT
def test_nothing_is_left_when_the_pod_goes_instead(node: Node, step: Step, when: str) -> None:
    """The kubelet does not unmount what it thinks was never mounted: only a mounted folder is unmounted."""
    folder = node.folder()

    async def mount(volumes: Volumes) -> None:
        await volumes.mount(node.spec(), folder, read_only=False)

    async def give_back(volumes: Volumes) -> None:
        if node.mounted_on(folder):
            await volumes.unmount(folder)
        await volumes.reclaim(node.pv, "uid", node.pool)

    run_and_kill(node, mount, step, when)
    run(node, give_back)
    assert node.mounts() == []
    assert list((node.root / "data").iterdir()) == []
    folder.path.rmdir()


@at((Staging, "unbind"), (mounting, "unmount"), (Staging, "release"))
def test_unmounting_goes_on(node: Node, step: Step, when: str) -> None:
    folder = node.folder()

    async def mount(volumes: Volumes) -> None:
        await volumes.mount(node.spec(), folder, read_only=False)

    async def unmount(volumes: Volumes) -> None:
        await volumes.unmount(folder)

    run(node, mount)
    run_and_kill(node, unmount, step, when)
    run(node, unmount)
    assert node.mounts() == []
    assert list(node.staging.iterdir()) == []


@at(
    (Staging, "release"),
    (LoopBackend, "remove"),
    (RecordFiles, "void"),
    (Path, "unlink"),
    (RecordFiles, "forget"),
)
def test_reclaiming_goes_on(node: Node, step: Step, when: str) -> None:
    async def prepare(volumes: Volumes) -> None:
        await volumes.prepare(node.spec())

    async def reclaim(volumes: Volumes) -> None:
        await volumes.reclaim(node.pv, "uid", node.pool)
        assert not list(volumes.inventory.volumes)

    run(node, prepare)
    run_and_kill(node, reclaim, step, when)
    run(node, reclaim)
    assert list((node.root / "data").iterdir()) == []


GROWS_MOUNTED = filesystem.grows_mounted("ext4")
GROWS_ITSELF = "grow" if GROWS_MOUNTED else "grow_unmounted"
IS_MOUNTED = "mount_sound" if GROWS_MOUNTED else "mount"


@at((LoopBackend, "extend"), (LoopBackend, "_grow_image"), (filesystem, GROWS_ITSELF), (filesystem, IS_MOUNTED))
def test_growing_with_the_next_mount_goes_on(node: Node, step: Step, when: str) -> None:
    folder = node.folder()

    async def fill(volumes: Volumes) -> None:
        await volumes.mount(node.spec(32 * MIB), folder, read_only=False)
        (folder.path / "data").write_bytes(b"precious" * MIB)
        await volumes.unmount(folder)

    async def mount(volumes: Volumes) -> None:
        assert (await volumes.mount(node.spec(64 * MIB), folder, read_only=False)).shortfall is None

    async def unmount(volumes: Volumes) -> None:
        await volumes.unmount(folder)

    run(node, fill)
    run_and_kill(node, mount, step, when)
    run(node, unmount)
    run(node, mount)
    figures = os.statvfs(folder.path)
    # Mounted before it was killed, it was unmounted before it was asked for again, so it has all its room.
    assert figures.f_blocks * figures.f_frsize > 50 * MIB
    assert (folder.path / "data").read_bytes() == b"precious" * MIB


def test_growing_that_was_cut_off_half_way_is_mended_before_anything_else(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the next mount, and before it is copied. resize2fs writes its superblock in pieces of a few bytes: with one of
    them alone, no checksum fits, and nobody knows it for an ext4 any more."""
    monkeypatch.setattr(filesystem, "grows_mounted", lambda kind: False)
    folder = node.folder()
    large = node.spec(64 * MIB)
    clone = replace(large, pv=f"{node.pv}-copy", original=Original(large.pv, large.uid))
    copied = node.folder(clone.pv)

    async def fill(volumes: Volumes) -> None:
        await volumes.mount(node.spec(32 * MIB), folder, read_only=False)
        (folder.path / "data").write_bytes(b"precious" * MIB)
        await volumes.unmount(folder)

    async def half_grown(kind: str, device: Path) -> None:
        blocks = 64 * MIB // 1024
        with device.open("r+b") as disk:
            disk.seek(1024 + 4)  # s_blocks_count_lo of its superblock: ext4(5)
            disk.write(blocks.to_bytes(4, "little"))

    async def mount(volumes: Volumes) -> None:
        assert (await volumes.mount(large, folder, read_only=False)).shortfall is None

    async def copy(volumes: Volumes) -> None:
        await volumes.mount(clone, copied, read_only=False)
        await mount(volumes)

    run(node, fill)
    for work, folders in ((mount, [folder]), (copy, [folder, copied])):
        if node.mounted_on(folder):
            run(node, lambda volumes: volumes.unmount(folder))
            large = replace(large, size=large.size + 16 * MIB)
        with monkeypatch.context() as patched:
            patched.setattr(filesystem, "grow_unmounted", half_grown)
            run_and_kill(node, mount, (filesystem, "grow_unmounted"), "after")
        run(node, work)
        for shown in folders:
            assert (shown.path / "data").read_bytes() == b"precious" * MIB
        figures = os.statvfs(folder.path)
        assert figures.f_blocks * figures.f_frsize > 0.8 * large.size


@at((LoopBackend, "extend"), (loopdevice, "set_capacity"), (filesystem, "grow"))
def test_growing_goes_on(node: Node, step: Step, when: str) -> None:
    folder = node.folder()
    small, large = (node.spec(mib * MIB, filesystem="xfs") for mib in (300, 400))

    def size() -> int:
        figures = os.statvfs(folder.path)
        return figures.f_blocks * figures.f_frsize

    async def mount(volumes: Volumes) -> None:
        await volumes.mount(small, folder, read_only=False)

    async def expand(volumes: Volumes) -> None:
        assert (await volumes.expand(large)).size == 400 * MIB

    run(node, mount)
    before = size()
    run_and_kill(node, expand, step, when)
    run(node, expand)
    assert size() - before > 90 * MIB


@at(
    (LoopBackend, "create"),
    (freezing, "freeze"),
    (devicecopy, "copy"),
    (filesystem, "renew_uuid"),
    (mounting, "unmount"),
    (LoopBackend, "rewrite"),
)
def test_copying_goes_on(node: Node, step: Step, when: str) -> None:
    """Nothing of an attempt that was killed is ever seen, and who writes to the source goes on."""
    source = node.spec(300 * MIB, filesystem="xfs")
    clone = replace(source, pv=f"{node.pv}-copy", original=Original(source.pv, source.uid))
    used, copied = node.folder(), node.folder(clone.pv)

    async def fill(volumes: Volumes) -> None:
        await volumes.mount(source, used, read_only=False)
        (used.path / "data").write_text("first")

    async def copy(volumes: Volumes) -> None:
        await volumes.mount(clone, copied, read_only=False)

    async def write_and_copy(volumes: Volumes) -> None:
        begun = volumes.inventory.volume(clone.pv)
        late = begun is not None and begun.record.state is VolumeState.READY
        (used.path / "data").write_text("second")
        await volumes.mount(clone, copied, read_only=False)
        assert (copied.path / "data").read_text() == ("first" if late else "second")

    run(node, fill)
    run_and_kill(node, copy, step, when)
    run(node, write_and_copy)
