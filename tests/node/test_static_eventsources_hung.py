"""A folder whose disk hangs, where new entries are waited for."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.static import eventsources
from daemon.static.eventsources import FolderWatch
from tests.unit.daemon.static.shortdeadline import ShortDeadline
from tests.waiting import until

STUCK = 5.0
"""Seconds after which even the test that found an error goes on."""


class Disk:
    """What the kernel does with a watch of its folder, which hangs until the disk answers again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked = 0
        self.answers = threading.Event()
        self._add = eventsources._add_watch

    def hangs(self, place: Path) -> bool:
        return place == self.folder and not self.answers.is_set()

    def add_watch(self, descriptor: int, folder: Path) -> int:
        if folder == self.folder:
            self.asked += 1
            self.answers.wait(STUCK)
        return self._add(descriptor, folder)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    folder = tmp_path / "hung"
    folder.mkdir()
    disk = Disk(folder)
    monkeypatch.setattr(eventsources, "_add_watch", disk.add_watch)
    yield disk
    disk.answers.set()


async def test_a_hung_disk_holds_one_thread_and_nothing_else(
    disk: Disk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fine = tmp_path / "fine"
    fine.mkdir()
    triggered = asyncio.Event()
    with FolderWatch(triggered.set) as folders:
        folders._disk_threads = ShortDeadline(disk.hangs)
        watching = asyncio.create_task(folders.watch([disk.folder, fine]))
        await until(lambda: disk.asked)
        assert not watching.done(), "the event loop went on meanwhile"
        await watching
        for _ in range(3):
            await folders.watch([disk.folder, fine])
        assert disk.asked == 1
        assert caplog.text.count(f"new entries of {disk.folder} are only found once per period") == 1
        assert "its disk hangs" in caplog.text
        (fine / "entry").touch()
        async with asyncio.timeout(STUCK):
            await triggered.wait()

        disk.answers.set()

        async def monitored() -> bool:
            await folders.watch([disk.folder, fine])
            return disk.folder not in folders._errors

        await until(monitored)
        triggered.clear()
        (disk.folder / "entry").touch()
        async with asyncio.timeout(STUCK):
            await triggered.wait()


async def test_a_watch_outlives_a_disk_that_hangs_for_a_while(disk: Disk) -> None:
    triggered = asyncio.Event()
    disk.answers.set()
    with FolderWatch(triggered.set) as folders:
        folders._disk_threads = ShortDeadline(disk.hangs)
        await folders.watch([disk.folder])
        disk.answers.clear()
        await folders.watch([disk.folder])
        (disk.folder / "entry").touch()
        async with asyncio.timeout(STUCK):
            await triggered.wait()
