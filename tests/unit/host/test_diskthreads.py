"""Looks at a disk that hangs: given up in time, one thread each, and taken up again when the disk comes back."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from host.diskthreads import DiskThreads, Hung
from tests.unit.daemon.static.shortdeadline import ShortDeadline
from tests.waiting import until

DISK = Path("/mnt/disks/dead")


class Disk:
    """Hangs until it is let go. `looked`: how often somebody looked at it."""

    def __init__(self) -> None:
        self.scanned = 0
        self.let_go = threading.Event()

    def look(self) -> str:
        self.scanned += 1
        self.let_go.wait()
        return "there"

    def hangs(self, place: Path) -> bool:
        return place == DISK and not self.let_go.is_set()


@pytest.fixture
def disk() -> Iterator[Disk]:
    made = Disk()
    yield made
    made.let_go.set()


async def test_an_answer_or_an_error_is_passed_on() -> None:
    disk_threads = DiskThreads()
    assert await disk_threads.at(DISK, lambda: "there") == "there"
    with pytest.raises(FileNotFoundError):
        await disk_threads.at(DISK, Path("/nowhere").stat)


async def test_a_disk_that_hangs_holds_one_thread_and_no_other_disk(disk: Disk) -> None:
    disk_threads = ShortDeadline(disk.hangs)
    threads = threading.active_count()
    for _ in range(20):
        with pytest.raises(Hung, match=r'path "/mnt/disks/dead" gives no answer, its disk hangs: see the kernel'):
            await disk_threads.at(DISK, disk.look)
        assert await disk_threads.at(DISK.with_name("alive"), lambda: "there") == "there"
    assert disk.scanned == 1
    await until(lambda: threading.active_count() == threads + 1)


async def test_a_disk_that_comes_back_is_looked_at_again(disk: Disk) -> None:
    disk_threads = ShortDeadline(disk.hangs)
    with pytest.raises(Hung):
        await disk_threads.at(DISK, disk.look)
    disk.let_go.set()

    async def back() -> bool:
        try:
            return await disk_threads.at(DISK, disk.look) == "there"
        except Hung:
            return False

    await until(back)
    assert disk.scanned == 2


async def test_a_late_error_is_nobodys(disk: Disk) -> None:
    def failing() -> None:
        disk.look()
        raise OSError("I/O error")

    disk_threads = ShortDeadline(disk.hangs)
    with pytest.raises(Hung):
        await disk_threads.at(DISK, failing)
    disk.let_go.set()

    async def back() -> bool:
        try:
            await disk_threads.at(DISK, lambda: None)
        except Hung:
            return False
        return True

    await until(back)


def test_a_daemon_ends_though_a_disk_hangs(disk: Disk) -> None:
    async def daemon() -> None:
        with pytest.raises(Hung):
            await ShortDeadline(disk.hangs).at(DISK, disk.look)

    asyncio.run(daemon())
    (hanging,) = (thread for thread in threading.enumerate() if thread.name == f"look at {DISK}")
    assert hanging.daemon, "the interpreter would wait for it"
    disk.let_go.set()
    hanging.join(5)
    assert not hanging.is_alive()


async def test_a_disk_with_many_places_holds_few_threads_and_no_other_disk(disk: Disk) -> None:
    threads = DiskThreads(deadline=0.1, most=3)
    for number in range(10):
        with pytest.raises(Hung, match=f"volume {number} gives no answer"):
            await threads.at(f"volume {number}", disk.look, disk="dead")
        assert await threads.at(f"volume on another {number}", lambda: "there", disk="alive", deadline=30) == "there"
    assert disk.scanned == 3
    waiting = asyncio.create_task(threads.at("volume 9", lambda: "there", disk="dead", deadline=30))
    disk.let_go.set()
    assert await waiting == "there"
