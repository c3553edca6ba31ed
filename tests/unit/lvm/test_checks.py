"""Commands that check a thin pool for longer than others may take: nobody waits for them, nor for their group."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from host import command
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


async def test_a_group_of_which_two_pools_are_checked_is_let_alone_until_both_are_done(lvm: Lvm, node: Node) -> None:
    """They began before either was noticed."""
    answers = await asyncio.gather(lvm.activate("vg", "one"), lvm.activate("vg", "two"), return_exceptions=True)
    assert [type(answer) for answer in answers] == [BeingChecked, BeingChecked]
    await ended(node.let_go["vg/one"])
    assert await is_checked(lvm, "vg")
    await ended(node.let_go["vg/two"])
    assert not await is_checked(lvm, "vg")
