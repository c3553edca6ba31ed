"""Disks as a vgcreate or vgextend leaves them that is killed, after each of its writes: they hold nothing, and are
given back. What is in a group, or was, holds something."""

import asyncio
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from daemon.backends.volumegroups import GroupMaker, give_back, is_unfinished, seen_file
from daemon.storage.deviceclasses import LVM, DeviceClass, DeviceSelector
from host import disks
from lvm import label
from tests.node.conftest import MakeDisks
from tests.node.lvmmetadata import Metadata
from tests.torture import writelog
from tests.torture.writelog import Write

MIB = 2**20
GROUP = "by-itself"


@pytest.fixture
def node_disks(make_disks: MakeDisks, metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    paths = make_disks(2, 32 * MIB)
    metadata.show(*paths)
    monkeypatch.setattr(disks, "whole_disks", lambda: [Path(path) for path in paths])
    return paths


def writes(metadata: Metadata, folder: Path, *arguments: str) -> list[tuple[int, Write]]:
    """Those of one command of LVM, each with the inode of its disk, in order."""
    log = folder / "writes"
    log.unlink(missing_ok=True)
    environment = {"LVM_SYSTEM_DIR": str(folder / "lvm"), "LD_PRELOAD": str(writelog.library(folder))}
    subprocess.run(
        ["lvm", *arguments], env={**os.environ, **environment, "WRITE_LOG": str(log)}, check=True, capture_output=True
    )
    return [(inode, write) for inode, write in writelog.parsed(log.read_bytes()) if write]


def show(paths: Sequence[str], before: Sequence[bytes], written: Sequence[tuple[int, Write]]) -> None:
    """On the disks stands what stood there before, and these writes."""
    for path, content in zip(paths, before, strict=True):
        with Path(path).open("r+b") as disk:
            disk.write(content)
            for inode, write in written:
                if inode == Path(path).stat().st_ino:
                    disk.seek(write.offset)
                    disk.write(write.data)


def start(path: str) -> bytes:
    with Path(path).open("rb") as disk:
        return disk.read(MIB)


async def test_a_group_whose_making_was_killed_anywhere_is_made_at_the_next_start(
    node_disks: list[str], metadata: Metadata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_class = DeviceClass("hdd", LVM, group=GROUP, devices=DeviceSelector(paths=("/dev/loop*",)))
    empty = [bytes(32 * MIB)] * 2
    all_writes = writes(metadata, tmp_path, "vgcreate", GROUP, *node_disks)
    metadata.run("vgremove", GROUP)
    assert len(all_writes) > 10
    for count in range(len(all_writes)):
        show(node_disks, empty, [])

        async def die(*_: Any, done: int = count, **__: Any) -> None:
            show(node_disks, empty, all_writes[:done])
            raise asyncio.CancelledError

        with monkeypatch.context() as killed:
            killed.setattr(metadata.tools, "create_group", die)
            with pytest.raises(asyncio.CancelledError):
                await GroupMaker(metadata.tools, tmp_path).ensure([of_class], present=())
        present = {group.name for group in (await metadata.state()).groups}
        await GroupMaker(metadata.tools, tmp_path).ensure([of_class], present=present)
        there = sorted(device.path for device in (await metadata.state()).devices_of(GROUP))
        assert there == sorted(node_disks), f"after {count} writes"
        assert seen_file(tmp_path, GROUP).read_text() == ""
        metadata.run("vgremove", GROUP)
        seen_file(tmp_path, GROUP).unlink()


async def test_a_disk_that_a_group_was_to_get_is_given_back(
    node_disks: list[str], metadata: Metadata, tmp_path: Path
) -> None:
    first, second = node_disks
    metadata.run("vgcreate", GROUP, first)
    metadata.run("lvcreate", "--name=data", "--extents=1", "--activate=n", "--zero=n", "--yes", GROUP)
    before = [Path(path).read_bytes() for path in node_disks]
    all_writes = writes(metadata, tmp_path, "vgextend", GROUP, second)
    for count in range(len(all_writes) + 1):
        show(node_disks, before, all_writes[:count])
        if second in {device.path for device in (await metadata.state()).devices_of(GROUP)}:
            break  # then LVM has it
        assert await is_unfinished(await disks.look(Path(second)), GROUP)
        assert await give_back(await disks.look(Path(second)), GROUP)
        assert not any(start(second))
    assert count > 5
    show(node_disks, before, all_writes)
    assert not await is_unfinished(await disks.look(Path(second)), GROUP)
    assert not await is_unfinished(await disks.look(Path(first)), GROUP)
    metadata.run("vgremove", "--force", "--yes", GROUP)


@pytest.mark.parametrize(
    ("options", "first_keeps_metadata"),
    [([], True), (["--pvmetadatacopies=0"], False), (["--metadataignore=y"], False)],
)
async def test_a_disk_of_a_group_is_not_empty_also_where_only_another_one_says_so(
    node_disks: list[str], metadata: Metadata, options: list[str], first_keeps_metadata: bool
) -> None:
    metadata.run("pvcreate", *options, node_disks[0])
    metadata.run("vgcreate", GROUP, *node_disks)
    for path in node_disks:
        disk = await disks.look(Path(path))
        content = start(path)
        assert (f"{GROUP} {{".encode() in content) == (first_keeps_metadata or path != node_disks[0])
        assert not await is_unfinished(disk, GROUP)
        assert not await give_back(disk, GROUP)
        assert start(path) == content
    metadata.run("vgremove", GROUP)


@pytest.mark.parametrize("at", [0, 1024, 4200, 5000, MIB - 1, 32 * MIB - 1])
async def test_what_holds_anything_else_is_not_given_back(node_disks: list[str], metadata: Metadata, at: int) -> None:
    path = node_disks[0]
    metadata.run("pvcreate", path)
    assert await is_unfinished(await disks.look(Path(path)), GROUP)
    with Path(path).open("r+b") as disk:
        disk.seek(at)
        disk.write(b"x")
    assert not await is_unfinished(await disks.look(Path(path)), GROUP)
    assert not await give_back(await disks.look(Path(path)), GROUP)


async def test_a_disk_of_another_group_that_was_begun_is_not_given_back(
    node_disks: list[str], metadata: Metadata, tmp_path: Path
) -> None:
    all_writes = writes(metadata, tmp_path, "vgcreate", "another", *node_disks)
    metadata.run("vgremove", "another")
    show(node_disks, [bytes(32 * MIB)] * 2, all_writes[:-4])
    assert [label.unfinished(start(path)) for path in node_disks] == ["another"] * 2
    assert not await is_unfinished(await disks.look(Path(node_disks[0])), GROUP)


async def test_a_disk_that_somebody_uses_by_now_is_not_given_back(node_disks: list[str], metadata: Metadata) -> None:
    path = node_disks[0]
    metadata.run("pvcreate", path)
    disk = await disks.look(Path(path))
    user = os.open(path, os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(disks.NotADisk, match="busy"):
            await give_back(disk, GROUP)
    finally:
        os.close(user)
    assert any(start(path))
