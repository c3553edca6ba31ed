"""A disk that gives no answer: an ext4 that is frozen keeps whoever writes to it in an uninterruptible system call."""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from host import command, freezing, mounting
from host.command import CommandHung, CommandTimedOut, run

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
