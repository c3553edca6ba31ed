"""What triggers a discovery pass before its period is over: events of block devices, folders and mounts, debounced.

There are three sources, because none reports everything: the kernel's uevents of block devices, inotify on the
discovery folders (a link or a folder was created there), and the mount table, which signals changes with POLLPRI
(proc_pid_mounts(5)). They only trigger a pass, which looks for itself, so a lost or meaningless event does no harm. A
source that the node refuses is reported once and done without.

One disk that is plugged in makes a dozen events, a booting node makes thousands, and one on which pods come and go
never falls silent. So the delay from event to pass grows while events keep coming, but not beyond what people who have
just mounted a disk would wait for. Where a pass is slow the delay is longer, so that discovery stays a small part of
the node's work.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import select
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from pyroute2.netlink.uevent import MONITOR_GROUP_KERNEL, AsyncUeventSocket

from host.diskthreads import DiskThreads, Hung
from kube.backoff import Backoff

log = logging.getLogger(__name__)


FIRST, LIMIT, QUIET = 0.1, 0.5, 1.0
"""Seconds: from an event to its pass when all was quiet before, when events keep coming, and what counts as quiet."""
_SHARE = 5
"""A pause is at least so many times as long as the pass before it."""


class Pace:
    def __init__(self) -> None:
        self._woken = asyncio.Event()
        self._pause = FIRST
        self._began: float | None = None
        """When the pass that runs now began, by the clock of the event loop."""

    def wake(self) -> None:
        """Something happened that a pass should look at."""
        self._woken.set()

    async def wait(self, period: float) -> None:
        """Returns when the next pass is due, at the latest `period` seconds from now."""
        clock = asyncio.get_running_loop().time
        begin = clock()
        taken = begin - self._began if self._began is not None else 0.0
        try:
            async with asyncio.timeout(period):
                await self._woken.wait()
                waited = clock() - begin
                self._pause = FIRST if waited >= QUIET else min(self._pause * 2, LIMIT)
                await asyncio.sleep(max(self._pause, taken * _SHARE - waited))
        except TimeoutError:
            self._pause = FIRST
        # What happens from here on, while the pass looks, is for the next one.
        self._woken.clear()
        self._began = clock()


Wake = Callable[[], None]

# include/uapi/linux/inotify.h
_IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x40, 0x80, 0x100, 0x200
_IN_DELETE_SELF, _IN_MOVE_SELF, _IN_ONLYDIR = 0x400, 0x800, 0x01000000
_MASK = (
    _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE | _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_ONLYDIR
)  # fmt: skip
_READ_BYTES = 65536

_libc = ctypes.CDLL(None, use_errno=True)


async def uevents(wake: Wake) -> None:
    """Wakes at each event of a block device, for ever."""
    failures, backoff = 0, Backoff(first=1, factor=4, limit=300)
    while True:
        socket = AsyncUeventSocket()
        try:
            await socket.bind(MONITOR_GROUP_KERNEL)
            while True:
                async for event in socket.get():
                    failures = 0
                    if event.get("SUBSYSTEM") == "block":
                        wake()
        except Exception as error:
            failures += 1
            log.log(
                logging.WARNING if failures == 1 else logging.DEBUG,
                "the kernel's events of devices can't be heard, new disks may wait for the next period: %s",
                error,
            )
        finally:
            socket.close()
        await asyncio.sleep(backoff.delay(failures))


@contextlib.contextmanager
def mount_table(wake: Wake) -> Iterator[None]:
    """Wakes whenever something is mounted or unmounted in our namespace."""
    loop = asyncio.get_running_loop()
    # An epoll of its own: the loop asks whether a file can be read, and this one always can.
    with Path("/proc/self/mountinfo").open("rb") as table, select.epoll() as changes:
        changes.register(table, select.EPOLLPRI | select.EPOLLERR)

        def changed() -> None:
            changes.poll(0)
            wake()

        loop.add_reader(changes.fileno(), changed)
        try:
            yield
        finally:
            loop.remove_reader(changes.fileno())


class Folders:
    """Wakes whenever an entry of a watched folder comes, goes or is renamed."""

    def __init__(self, wake: Wake) -> None:
        self._wake = wake
        self._looks = DiskThreads()
        self._watches: dict[Path, int] = {}
        self._refused: dict[Path, str] = {}
        self._descriptor = -1

    def __enter__(self) -> "Folders":
        self._descriptor = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        asyncio.get_running_loop().add_reader(self._descriptor, self._changed)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1

    async def watch(self, folders: Iterable[Path]) -> None:
        """Watches these folders and no others. To be called again and again, for a path may show another folder by
        now. What can't be watched is told once."""
        if self._descriptor < 0:
            return
        wanted = list(dict.fromkeys(folders))
        # At once: if all disks of a controller hang, one deadline is waited for.
        answers = dict(zip(wanted, await asyncio.gather(*map(self._add, wanted)), strict=True))
        refused = {folder: str(answer) for folder, answer in answers.items() if not isinstance(answer, int)}
        for folder, why in refused.items():
            if self._refused.get(folder) != why:
                log.warning("new entries of %s wait for the next period: %s", folder, why)
        watches = {folder: answer for folder, answer in answers.items() if isinstance(answer, int)}
        hung = {folder for folder, answer in answers.items() if isinstance(answer, Hung)}
        watches |= {folder: watch for folder, watch in self._watches.items() if folder in hung}
        for watch in {*self._watches.values()} - {*watches.values()}:
            _libc.inotify_rm_watch(self._descriptor, watch)  # fails for a folder that is gone, and its watch with it
        self._watches, self._refused = watches, refused

    async def _add(self, folder: Path) -> int | OSError | Hung:
        """The number of its watch, which stays the same while it is the same folder, or why there is none. The kernel
        finds the folder by its path, and may have to ask the disk on the way."""
        try:
            return await self._looks.at(folder, partial(_add_watch, self._descriptor, folder))
        except (OSError, Hung) as error:
            return error

    def _changed(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._descriptor, _READ_BYTES)
        self._wake()


def _add_watch(descriptor: int, folder: Path) -> int:
    return _checked(_libc.inotify_add_watch(descriptor, os.fsencode(folder), _MASK))


def _checked(answer: int) -> int:
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return answer
