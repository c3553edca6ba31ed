"""Commands that check a thin pool for longer than others may take: nobody waits for them, nor for their group."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from host import blockdevice, command
from host.command import Completed, LongWork
from lvm import BeingChecked, Lvm, report
from lvm.records import Report
from tests.waiting import until

GIB = 2**30


class Node:
    """What is activated is checked until it is let go. `commands` were run, without their program."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, ...]] = []
        self.let_go: dict[str, asyncio.Event] = {}

    async def run(self, *argv: str, long_work: LongWork, **_: Any) -> Completed:
        self.commands.append(argv[1:])
        if "--activate=y" in argv:
            long_work.begun()
            await self.let_go.setdefault(argv[-1], asyncio.Event()).wait()
        return Completed(argv, 0, "", "", 0)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    made = Node()
    monkeypatch.setattr(command, "run", made.run)
    monkeypatch.setattr(report, "state", lambda done: Report((), (), ()))
    return made


@pytest.fixture
def lvm(tmp_path: Path, node: Node) -> Lvm:
    return Lvm(tmp_path, configured=True)


async def is_checked(lvm: Lvm, group: str) -> bool:
    try:
        await lvm.create_volume(group, "volume", GIB)
    except BeingChecked:
        return True
    return False


async def ended(check: asyncio.Event) -> None:
    """Each command has a task."""
    before = len(asyncio.all_tasks())
    check.set()
    await until(lambda: len(asyncio.all_tasks()) < before)


async def test_a_group_is_let_alone_until_its_check_is_done(lvm: Lvm, node: Node) -> None:
    with pytest.raises(BeingChecked, match=r"thin pool of group vg for 0 s \(thin_check\)"):
        await lvm.activate("vg", "pool")
    assert await is_checked(lvm, "vg")
    assert not await is_checked(lvm, "other")
    await lvm.report()
    assert node.commands[-1][:2] == ("fullreport", "--nolocking")
    await ended(node.let_go["vg/pool"])
    assert not await is_checked(lvm, "vg")
    await lvm.report()
    assert "--nolocking" not in node.commands[-1]


@pytest.mark.parametrize(
    "change",
    [
        lambda lvm, group: lvm.create_group(group, ["/dev/sdx"]),
        lambda lvm, group: lvm.extend_group(group, ["/dev/sdx"]),
        lambda lvm, group: lvm.remove_group(group),
        lambda lvm, group: lvm.create_volume(group, "one", GIB),
        lambda lvm, group: lvm.create_pool(group, "pool", GIB),
        lambda lvm, group: lvm.create_thin_volume(group, "pool", "one", GIB),
        lambda lvm, group: lvm.create_thin_snapshot(group, "one", "two"),
        lambda lvm, group: lvm.create_thick_snapshot(group, "one", "two", GIB),
        lambda lvm, group: lvm.split_snapshot(group, "two"),
        lambda lvm, group: lvm.extend_metadata(group, "pool", GIB),
        lambda lvm, group: lvm.retag(group, {"one": (), "two": ()}, add={"tag"}),
        lambda lvm, group: lvm.remove(group, "one"),
        lambda lvm, group: lvm.deactivate(group, "one"),
        lambda lvm, group: lvm.refresh(group, "one"),
        lambda lvm, group: lvm.check_pool(group, "pool", ["one"]),
    ],
)
async def test_no_command_on_the_group_is_started_whatever_it_ends_with(
    lvm: Lvm, node: Node, change: Callable[[Lvm, str], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockdevice, "flush", lambda device: None)
    with pytest.raises(BeingChecked):
        await lvm.activate("vg", "pool")
    with pytest.raises(BeingChecked):
        await change(lvm, "vg")
    assert [verb for verb, *_ in node.commands] == ["lvchange"]
    with contextlib.suppress(BeingChecked):  # of its own
        await change(lvm, "other")
    assert len(node.commands) > 1
    await ended(node.let_go["vg/pool"])


async def test_a_group_of_which_two_pools_are_checked_is_let_alone_until_both_are_done(lvm: Lvm, node: Node) -> None:
    """They began before either was noticed."""
    answers = await asyncio.gather(lvm.activate("vg", "one"), lvm.activate("vg", "two"), return_exceptions=True)
    assert [type(answer) for answer in answers] == [BeingChecked, BeingChecked]
    await ended(node.let_go["vg/one"])
    assert await is_checked(lvm, "vg")
    await ended(node.let_go["vg/two"])
    assert not await is_checked(lvm, "vg")
