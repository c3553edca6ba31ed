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
import socket
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from host.diskthreads import DiskThreads, Hung
from kube.backoff import Backoff

log = logging.getLogger(__name__)

Trigger = Callable[[], None]

MIN_DELAY, MAX_DELAY, QUIET_PERIOD = 0.1, 0.5, 1.0
"""Seconds: the delay from event to pass after a quiet period and while events keep coming; the length of a quiet
period."""
_PASS_FACTOR = 5
"""The delay is at least this multiple of the duration of the last pass."""


class Debouncer:
    def __init__(self) -> None:
        self._triggered = asyncio.Event()
        self._delay = MIN_DELAY
        self._pass_started: float | None = None
        """By the clock of the event loop."""

    def trigger(self) -> None:
        """Requests a pass."""
        self._triggered.set()

    async def wait(self, period: float) -> None:
        """Returns when the next pass is due, at the latest `period` seconds from now."""
        clock = asyncio.get_running_loop().time
        begin = clock()
        duration = begin - self._pass_started if self._pass_started is not None else 0.0
        try:
            async with asyncio.timeout(period):
                await self._triggered.wait()
                waited = clock() - begin
                self._delay = MIN_DELAY if waited >= QUIET_PERIOD else min(self._delay * 2, MAX_DELAY)
                await asyncio.sleep(max(self._delay, duration * _PASS_FACTOR - waited))
        except TimeoutError:
            self._delay = MIN_DELAY
        # Events during the pass trigger the next one.
        self._triggered.clear()
        self._pass_started = clock()


# include/uapi/linux/netlink.h; the group is that of lib/kobject_uevent.c
_NETLINK_KOBJECT_UEVENT, _FROM_KERNEL = 15, 1
_UEVENT_BYTES = 8192
"""More than the kernel's UEVENT_BUFFER_SIZE, and a line of what it was about before that."""
_BLOCK_DEVICE = b"SUBSYSTEM=block"
# include/uapi/linux/inotify.h
_IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x40, 0x80, 0x100, 0x200
_IN_DELETE_SELF, _IN_MOVE_SELF, _IN_ONLYDIR = 0x400, 0x800, 0x01000000
_MASK = (
    _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE | _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_ONLYDIR
)  # fmt: skip
_READ_BYTES = 65536

_libc = ctypes.CDLL(None, use_errno=True)


async def watch_uevents(trigger: Trigger) -> None:
    """Triggers at each uevent of a block device, for ever."""
    loop = asyncio.get_running_loop()
    failures, backoff = 0, Backoff(first=1, factor=4, limit=300)
    while True:
        try:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_KOBJECT_UEVENT) as events:
                events.setblocking(False)
                events.bind((0, _FROM_KERNEL))
                trigger()  # what happened while nobody listened
                while True:
                    event = await loop.sock_recv(events, _UEVENT_BYTES)
                    failures = 0
                    if _BLOCK_DEVICE in event.split(b"\0"):
                        trigger()
        except OSError as error:
            failures += 1
            log.log(
                logging.WARNING if failures == 1 else logging.DEBUG,
                "uevents can't be received, new disks may only be found once per period: %s",
                error,
            )
        await asyncio.sleep(backoff.delay(failures))


@contextlib.contextmanager
def watch_mount_table(trigger: Trigger) -> Iterator[None]:
    """Triggers when something is mounted or unmounted in this mount namespace."""
    loop = asyncio.get_running_loop()
    # A separate epoll instance, because the event loop waits for EPOLLIN, and the mount table is always readable.
    with Path("/proc/self/mountinfo").open("rb") as table, select.epoll() as changes:
        changes.register(table, select.EPOLLPRI | select.EPOLLERR)

        def changed() -> None:
            changes.poll(0)
            trigger()

        loop.add_reader(changes.fileno(), changed)
        try:
            yield
        finally:
            loop.remove_reader(changes.fileno())


class FolderWatch:
    """Triggers when an entry of a watched folder is created, removed or renamed."""

    def __init__(self, trigger: Trigger) -> None:
        self._trigger = trigger
        self._disk_threads = DiskThreads()
        self._watches: dict[Path, int] = {}
        self._errors: dict[Path, str] = {}
        self._descriptor = -1

    def __enter__(self) -> "FolderWatch":
        self._descriptor = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        asyncio.get_running_loop().add_reader(self._descriptor, self._changed)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1

    async def watch(self, folders: Iterable[Path]) -> None:
        """Watches these folders and no others. To be called in each pass, because a path may lead to another folder by
        then. A folder that can't be watched is reported once."""
        if self._descriptor < 0:
            return
        unique = list(dict.fromkeys(folders))
        # In parallel: if all disks of a controller hang, that takes one deadline.
        results = dict(zip(unique, await asyncio.gather(*map(self._add, unique)), strict=True))
        errors = {folder: str(result) for folder, result in results.items() if not isinstance(result, int)}
        for folder, error in errors.items():
            if self._errors.get(folder) != error:
                log.warning("new entries of %s are only found once per period: %s", folder, error)
        watches = {folder: result for folder, result in results.items() if isinstance(result, int)}
        hung = {folder for folder, result in results.items() if isinstance(result, Hung)}
        watches |= {folder: watch for folder, watch in self._watches.items() if folder in hung}
        for watch in {*self._watches.values()} - {*watches.values()}:
            _libc.inotify_rm_watch(self._descriptor, watch)  # fails if the folder was deleted, and its watch with it
        self._watches, self._errors = watches, errors

    async def _add(self, folder: Path) -> int | OSError | Hung:
        """The watch descriptor, which is the same for the same folder, or the error. In a thread, because path lookup
        may read from the disk."""
        try:
            return await self._disk_threads.at(folder, partial(_add_watch, self._descriptor, folder))
        except (OSError, Hung) as error:
            return error

    def _changed(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._descriptor, _READ_BYTES)
        self._trigger()


def _add_watch(descriptor: int, folder: Path) -> int:
    return _checked(_libc.inotify_add_watch(descriptor, os.fsencode(folder), _MASK))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
