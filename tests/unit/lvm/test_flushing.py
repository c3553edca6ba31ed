"""LVM leaves its metadata in the caches of the disks: what was changed, or is reported, is flushed from there."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from host import blockdevice
from lvm import Lvm, LvmError, report
from lvm.records import Report, VolumeGroup

GIB = 2**30
GROUP = VolumeGroup("vg", "uuid", 4 * GIB, 4 * GIB, 4 << 20, frozenset(), 0, False)
DISKS = [Path("/dev/a"), Path("/dev/b")]


class Disks:
    """What was done, in order: the verbs of LVM's commands, and the disks that were flushed."""

    def __init__(self, commands: Path) -> None:
        self._commands = commands
        self.failing: set[Path] = set()

    def flush(self, device: Path) -> None:
        if device in self.failing:
            raise OSError(5, "Input/output error", str(device))
        with self._commands.open("a") as file:
            file.write(f"{device}\n")

    @property
    def done(self) -> list[str]:
        """The disks of one group are flushed side by side."""
        text = self._commands.read_text() if self._commands.exists() else ""
        verbs = [line for line in text.split() if not line.startswith("/")]
        return [*verbs, *sorted(line for line in text.split() if line.startswith("/"))]

    def forget(self) -> None:
        self._commands.unlink()


@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disks:
    program = tmp_path / "bin" / "lvm"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$1" >>{tmp_path}/commands\necho changed, successfully removed\n[ "$1" != lvextend ]\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    disks = Disks(tmp_path / "commands")
    monkeypatch.setattr(blockdevice, "flush", disks.flush)
    monkeypatch.setattr(report, "state", lambda done: Report((GROUP,), (), ()))
    return disks


@pytest.fixture
def lvm(tmp_path: Path, disks: Disks, monkeypatch: pytest.MonkeyPatch) -> Lvm:
    made = Lvm(tmp_path / "lvm")
    monkeypatch.setattr(made.unresponsive, "members", lambda group: DISKS)
    return made


@pytest.mark.parametrize(
    ("change", "verb"),
    [
        (lambda lvm: lvm.create_group("vg", list(map(str, DISKS))), "vgcreate"),
        (lambda lvm: lvm.extend_group("vg", list(map(str, DISKS))), "vgextend"),
        (lambda lvm: lvm.remove_group("vg"), "vgremove"),
        (lambda lvm: lvm.create_volume("vg", "one", GIB), "lvcreate"),
        (lambda lvm: lvm.create_pool("vg", "pool", GIB), "lvcreate"),
        (lambda lvm: lvm.create_thin_volume("vg", "pool", "one", GIB), "lvcreate"),
        (lambda lvm: lvm.create_thin_snapshot("vg", "one", "two"), "lvcreate"),
        (lambda lvm: lvm.create_thick_snapshot("vg", "one", "two", GIB), "lvcreate"),
        (lambda lvm: lvm.split_snapshot("vg", "two"), "lvconvert"),
        (lambda lvm: lvm.retag("vg", {"one": {"other"}, "two": ()}, add={"tag"}), "lvchange"),
        (lambda lvm: lvm.remove("vg", "one", having={"tag"}), "lvremove"),
    ],
)
async def test_a_change_is_on_the_disks(
    lvm: Lvm, disks: Disks, change: Callable[[Lvm], Awaitable[None]], verb: str
) -> None:
    await change(lvm)
    assert disks.done == [verb, "/dev/a", "/dev/b"]


async def test_activating_changes_nothing(lvm: Lvm, disks: Disks) -> None:
    await lvm.activate("vg", "one")
    assert disks.done == ["lvchange"]


async def test_what_is_reported_is_on_the_disks_once(lvm: Lvm, disks: Disks) -> None:
    """The daemon before may have been killed between its command and the flush."""
    await lvm.report()
    await lvm.report()
    assert disks.done == ["fullreport", "fullreport", "/dev/a", "/dev/b"]


async def test_a_command_that_failed_may_have_changed_something(lvm: Lvm, disks: Disks) -> None:
    await lvm.report()
    disks.forget()
    with pytest.raises(LvmError):
        await lvm.extend_metadata("vg", "pool", GIB)
    assert disks.done == ["lvextend"]
    await lvm.report()
    assert disks.done == ["lvextend", "fullreport", "/dev/a", "/dev/b"]


async def test_one_disk_that_has_the_metadata_is_enough(lvm: Lvm, disks: Disks) -> None:
    disks.failing = {DISKS[0]}
    await lvm.remove("vg", "one")
    assert disks.done == ["lvremove", "/dev/b"]


async def test_a_change_that_may_be_lost_is_an_error(lvm: Lvm, disks: Disks) -> None:
    disks.failing = set(DISKS)
    with pytest.raises(LvmError, match=r"the metadata of group vg may not be on /dev/a yet: .*Input/output error"):
        await lvm.remove("vg", "one")
    await lvm.report()  # which says nothing false of what can be seen
    disks.failing = set()
    await lvm.report()
    assert disks.done[-2:] == ["/dev/a", "/dev/b"]


async def test_a_new_group_is_known_by_each_of_its_disks(lvm: Lvm, disks: Disks) -> None:
    disks.failing = {DISKS[1]}
    with pytest.raises(LvmError, match="group vg may not be on /dev/b yet"):
        await lvm.create_group("vg", list(map(str, DISKS)))
