"""Looks at a disk that hangs: given up in time, one thread each, and taken up again when the disk comes back."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from host import diskthreads
from host.diskthreads import DiskThreads, Hung, unresponsive
from tests.unit.daemon.static.shortdeadline import ShortDeadline
from tests.waiting import eventually, until

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
    for _ in range(20):
        with pytest.raises(Hung, match=r'path "/mnt/disks/dead" gives no answer, its disk hangs: see the kernel'):
            await disk_threads.at(DISK, disk.look)
        assert await disk_threads.at(DISK.with_name("alive"), lambda: "there") == "there"
    assert disk.scanned == 1
    assert len(there()) == 1


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
    (hanging,) = there()
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
    disk.let_go.set()

    async def back() -> bool:
        with contextlib.suppress(Hung):
            return await threads.at("volume 9", lambda: "there", disk="dead") == "there"
        return False

    await until(back)


async def test_who_finds_all_threads_of_a_disk_busy_waits_for_one(disk: Disk) -> None:
    threads = DiskThreads(deadline=30, most=1)
    first = asyncio.create_task(threads.at("volume 1", disk.look, disk="busy"))
    await until(lambda: disk.scanned == 1)
    waiting = asyncio.create_task(threads.at("volume 2", lambda: "there", disk="busy"))
    await asyncio.wait({waiting}, timeout=0.05)
    disk.let_go.set()
    assert (await first, await waiting) == ("there", "there")


async def test_a_thread_whose_caller_went_away_is_waited_for_all_the_same(disk: Disk) -> None:
    threads = DiskThreads(deadline=30, most=1)
    first = asyncio.create_task(threads.at("volume 1", disk.look, disk="busy"))
    await until(lambda: disk.scanned == 1)
    waiting = asyncio.create_task(threads.at("volume 2", lambda: "there", disk="busy"))
    await asyncio.wait({waiting}, timeout=0.05)
    first.cancel()
    await asyncio.wait({waiting}, timeout=0.05)
    assert (first.cancelled(), waiting.done()) == (True, False)
    disk.let_go.set()
    async with asyncio.timeout(10):
        assert await waiting == "there"


def there() -> list[threading.Thread]:
    """The threads that are at the disk."""
    return [thread for thread in threading.enumerate() if thread.name == f"look at {DISK}"]


async def test_threads_are_used_again_and_end_when_nothing_calls_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diskthreads, "_IDLE_SECONDS", 0.5)
    threads = DiskThreads()
    used = {await threads.at(f"volume {number}", threading.current_thread) for number in range(20)}
    assert all(each.daemon for each in used)
    assert len(used) < 20
    both = threading.Barrier(2, timeout=30)
    await asyncio.gather(*(threads.at(f"volume {number}", both.wait) for number in range(2)))
    await until(lambda: not any(each.is_alive() for each in used))


async def test_each_of_two_threads_that_hang_at_one_place_has_to_come_back(disk: Disk) -> None:
    threads, other = DiskThreads(deadline=0.1), threading.Event()
    looks = (threads.at(DISK, disk.look), threads.at(DISK, lambda: other.wait(60)))
    assert [type(each) for each in await asyncio.gather(*looks, return_exceptions=True)] == [Hung, Hung]
    assert len(there()) == 2
    disk.let_go.set()
    await until(lambda: len(there()) == 1)
    with pytest.raises(Hung) as caught:
        threads.refuse(DISK)
    assert caught.value.lasts()
    other.set()
    await until(lambda: not caught.value.lasts())
    threads.refuse(DISK)


async def test_a_disk_whose_threads_are_all_taken_hangs_until_one_is_free(disk: Disk) -> None:
    threads = DiskThreads(deadline=0.1, most=1)
    with pytest.raises(Hung):
        await threads.at("volume a", disk.look, disk="dead")
    with pytest.raises(Hung) as caught:
        async with asyncio.timeout(10):
            await threads.at("volume b", lambda: "there", disk="dead", deadline=60)  # at once
    assert caught.value.lasts()
    disk.let_go.set()
    await until(lambda: not caught.value.lasts())


async def test_what_comes_too_late_is_given_back_by_its_thread(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    opened: list[int] = []

    def take() -> int:
        disk.look()
        opened.append(os.open(tmp_path / "file", os.O_RDONLY))
        return opened[0]

    threads = DiskThreads(deadline=0.1)
    with pytest.raises(Hung):
        async with threads.holding(DISK, take, os.close):
            pytest.fail("it was not there")
    disk.let_go.set()
    await until(lambda: bool(opened) and not Path(f"/proc/self/fd/{opened[0]}").exists())


async def test_what_came_in_the_moment_of_a_cancellation_is_given_back() -> None:
    disk_threads, came, given_back = DiskThreads(), threading.Event(), threading.Event()
    caller = asyncio.create_task(disk_threads.at(DISK, came.set, late=lambda _: given_back.set()))
    await asyncio.sleep(0)
    eventually(lambda: came.is_set() and not there(), what="the thread is back, and the loop has not heard of it")
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert given_back.is_set(), "who comes next must not find it at work"


async def test_who_is_cancelled_at_the_deadline_gives_up_once(disk: Disk) -> None:
    disk_threads, loop = DiskThreads(), asyncio.get_running_loop()
    caller = asyncio.create_task(disk_threads.at(DISK, disk.look, deadline=0.01))
    await asyncio.sleep(0)
    deadline = loop.call_later(0.02, caller.cancel).when()
    eventually(lambda: loop.time() > deadline, what="both are due at once")
    with pytest.raises(asyncio.CancelledError):
        await caller
    with pytest.raises(Hung):
        disk_threads.refuse(DISK)
    disk.let_go.set()

    def taken_up_again() -> bool:
        try:
            disk_threads.refuse(DISK)
        except Hung:
            return False
        return True

    await until(taken_up_again)


async def test_a_file_that_is_given_back_on_a_disk_that_hangs_holds_nobody_up(disk: Disk) -> None:
    threads = DiskThreads(deadline=0.1)
    async with threads.holding(DISK, lambda: "held", lambda held: disk.look()):  # type: ignore[arg-type]
        pass
    with pytest.raises(Hung):
        await threads.at(DISK, lambda: "there")


async def test_a_thread_that_was_given_up_never_works_on_another_file(disk: Disk, tmp_path: Path) -> None:
    """The number of a file that is closed is given to the next one that is opened."""
    first, second = tmp_path / "first", tmp_path / "second"
    done = threading.Event()

    def write(descriptor: int) -> None:
        disk.look()
        os.write(descriptor, b"late")
        done.set()

    threads = DiskThreads(deadline=0.1)
    descriptor = os.open(first, os.O_WRONLY | os.O_CREAT)
    with pytest.raises(Hung):
        await threads.at_file(DISK, descriptor, write)
    os.close(descriptor)
    reused = os.open(second, os.O_WRONLY | os.O_CREAT)
    assert reused == descriptor
    disk.let_go.set()
    await asyncio.to_thread(done.wait, 30)
    os.close(reused)
    assert (first.read_bytes(), second.read_bytes()) == (b"late", b"")


def test_a_thread_that_comes_back_after_its_loop_is_remembered_by_nobody(disk: Disk) -> None:
    threads = DiskThreads(deadline=0.1)

    async def daemon() -> None:
        with pytest.raises(Hung):
            await threads.at(DISK, disk.look)

    asyncio.run(daemon())
    (hanging,) = there()
    disk.let_go.set()
    hanging.join(30)
    assert asyncio.run(threads.at(DISK, lambda: "there")) == "there"


def test_an_error_knows_the_disk_that_it_comes_from() -> None:
    hung = Hung(DISK)
    error = OSError("it can't be told")
    error.__cause__ = ValueError("nor can this")
    error.__cause__.__cause__ = hung
    assert unresponsive(error) is hung
    assert unresponsive(OSError("of another kind")) is None
