"""Daemons, and LVM commands, that are killed while a volume is copied from a snapshot."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.backends.lvmsnapshots import LvmSnapshots
from daemon.storage.record import VolumeState
from host import devicecopy
from lvm import Lvm, names
from tests.node.conftest import ByHand, MakeDisks
from tests.node.snapshot_node import SECRET, SIZE, no_snapshots, secrets, small_node, used, write
from tests.node.test_cloning import clone_of
from tests.node.volume_node import MIB, Node, started

pytestmark = pytest.mark.device_mapper


@pytest.fixture
async def node(lvm: Lvm, make_disks: MakeDisks, by_hand: ByHand, tmp_path: Path) -> AsyncIterator[Node]:
    async with small_node(lvm, make_disks, by_hand, tmp_path) as node:
        yield node


@pytest.mark.parametrize("when", ["prepared", "suspended", "committed"])
async def test_an_lvcreate_that_was_killed_stops_nobody_and_leaves_nothing(
    lvm: Lvm, node: Node, by_hand: ByHand, when: str
) -> None:
    """As it dies with its container: before LVM suspends the source, before it commits, and before it resumes."""
    volumes = await started(node)
    source = node.spec(SIZE)
    folder = await used(node, volumes, source)
    original = volumes.inventory.volume(source.pv)
    assert original
    record = original.record.of_snapshot()
    origin, store = (names.mapped(node.pool, name) for name in (source.pv, record.pv))
    if when == "committed":
        await lvm.create_thick_snapshot(node.pool, source.pv, record.pv, 20 * MIB, record.to_tags())
    else:
        await lvm.create_volume(node.pool, record.pv, 20 * MIB, record.to_tags())
        tables = {name: dmsetup("table", name) for name in (origin, store)}
        uuids = {name: dmsetup("info", "-c", "--noheadings", "-o", "uuid", name) for name in (origin, store)}
        by_hand("lvchange", "--activate=n", f"{node.pool}/{record.pv}")
        dmsetup("create", f"{origin}-real", "--uuid", f"{uuids[origin]}-real", "--notable")
        dmsetup("load", f"{origin}-real", "--table", tables[origin])
        dmsetup("create", f"{store}-cow", "--uuid", f"{uuids[store]}-cow", "--table", tables[store])
        dmsetup("create", store, "--uuid", uuids[store], "--notable")
        real, cow = (
            dmsetup("info", "-c", "--noheadings", "-o", "major,minor", "--separator", ":", name)
            for name in (f"{origin}-real", f"{store}-cow")
        )
        dmsetup("load", store, "--table", f"0 {SIZE // 512} snapshot {real} {cow} P 32")
        dmsetup("load", origin, "--table", f"0 {SIZE // 512} snapshot-origin {real}")
    if when != "prepared":
        dmsetup("suspend", origin)

    restarted = await started(node)
    await no_snapshots(restarted)
    await asyncio.to_thread(write, folder.path / "file", SECRET * 4096)
    assert dmsetup("table", origin).split()[2] == "linear"
    devices = [line.split()[0] for line in dmsetup("ls").splitlines()]
    assert [name for name in devices if name.startswith(names.mapped(node.pool, ""))] == [origin]
    assert (await restarted.expand(replace(source, size=2 * SIZE))).size == 2 * SIZE
    assert dmsetup("table", origin).split()[1] == str(2 * SIZE // 512)
    clone = clone_of(source, 2 * SIZE)
    await restarted.prepare(clone)
    await no_snapshots(restarted)


def dmsetup(*arguments: str) -> str:
    return subprocess.run(["dmsetup", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def killed(work: Callable[[], Awaitable[object]], owner: Any, name: str, when: str) -> None:
    """Runs in a process of its own, which dies by a SIGKILL before or after that step."""
    step = getattr(owner, name)

    async def armed(*arguments: Any, **keywords: Any) -> Any:
        if when == "after":
            await step(*arguments, **keywords)
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            setattr(owner, name, armed)
            asyncio.run(work())  # type: ignore[arg-type]
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the step was never reached"


@pytest.mark.parametrize(
    ("owner", "name", "when"),
    [
        (LvmSnapshots, "make", "after"),
        (Lvm, "create_volume", "after"),
        (devicecopy, "copy", "before"),
        (devicecopy, "copy", "after"),
        (Lvm, "split_snapshot", "before"),
        (Lvm, "split_snapshot", "after"),
        (LvmSnapshots, "remove", "before"),
        (LvmSnapshots, "remove", "after"),
    ],
)
async def test_a_crash_at_any_moment_leaves_nothing(node: Node, owner: Any, name: str, when: str) -> None:
    volumes = await started(node)
    source = node.spec(SIZE)
    folder = await used(node, volumes, source)
    clone = clone_of(source)

    async def copied() -> None:
        begun = await started(node)
        await begun.prepare(clone)
        await no_snapshots(begun)

    await asyncio.to_thread(killed, copied, owner, name, when)

    seen = await node.make_backend().inspect()
    assert not [*seen.foreign, *seen.damaged]
    original = seen.volume(source.pv)
    assert original
    assert (original.size, original.health) == (volumes.inventory.volume(source.pv).size, original.health)  # type: ignore[union-attr]
    taken = sum(each.size for each in (*seen.volumes, *seen.snapshots))
    (pool,) = seen.pools
    assert (pool.free, pool.ours) == (pool.size - taken, taken)
    assert len(seen.snapshots) == (0 if (name, when) == ("remove", "after") else 1)

    restarted = await started(node)
    await no_snapshots(restarted)
    write(folder.path / "file", bytes(len(SECRET) * 4096))
    ready = restarted.inventory.volume(clone.pv)
    late = ready is not None and ready.record.state is VolumeState.READY
    await restarted.prepare(clone)
    await no_snapshots(restarted)
    shown = node.folder(clone.pv)
    await restarted.mount(clone, shown, read_only=False)
    assert (shown.path / "file").read_bytes() == (SECRET if late else bytes(len(SECRET))) * 4096
    if not late:
        assert secrets(node) == 0
