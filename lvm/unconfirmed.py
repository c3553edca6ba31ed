"""Thin snapshots that a killed lvcreate made in their pool, and that LVM did not come to note.

LVM writes down that the pool is to make one, has the kernel make it, and confirms that with the next transaction of the
pool. Killed before that, it has it made again by the next command, and fails because it is there ("Manual intervention
may be required"): from then on nothing is made, extended or removed in that pool (seen with LVM 2.03.16; a thin volume
that is no snapshot it takes as it is).

The kernel knows in which transaction each thin device was made. One of the current transaction was never confirmed, so
LVM never showed it to anybody: it is removed, and made anew. Any other one may hold somebody's data, as after a
vgcfgrestore, and stays.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from host import command
from host.command import CommandError, CommandFailed

log = logging.getLogger(__name__)

_LOCKS = Path("/run/lock/lvm")
_LOCK_SECONDS = 10.0
_BELOW = "-tpool"
"""Ends the name of what the volumes of a pool lie on."""


async def remove(group: str, pool: str, device: str, *, deadline: float) -> bool:
    """Removes a thin device that was never confirmed. `pool` is the name that device-mapper has for it. False: it was,
    or that can't be said now."""
    try:
        async with _locked(group) as ours:
            if not ours or not await _is_unconfirmed(pool, device, deadline):
                return False
            await command.run("dmsetup", "message", pool, "0", f"delete {device}", deadline=deadline)
    except (CommandError, OSError) as error:
        log.warning("whether thin device %s of %s is left over can't be said: %s", device, pool, error)
        return False
    log.warning("thin device %s of %s was left by an lvcreate that was killed: it is removed", device, pool)
    return True


async def _is_unconfirmed(pool: str, device: str, deadline: float) -> bool:
    status = await command.run("dmsetup", "status", pool, deadline=deadline)
    transaction = status.stdout.split()[3]
    metadata = Path("/dev/mapper", f"{pool.removesuffix(_BELOW)}_tmeta")
    async with _snapshot_of_metadata(pool, deadline):
        columns = ("--no-headers", "--format", "DEV,TRANSACTION")
        devices = await command.run("thin_ls", "--metadata-snap", *columns, str(metadata), deadline=deadline)
    return [device, transaction] in (line.split() for line in devices.stdout.splitlines())


@contextlib.asynccontextmanager
async def _snapshot_of_metadata(pool: str, deadline: float) -> AsyncIterator[None]:
    """What can be read while the pool is in use. There is one at most: somebody's is read as it is, and is older."""
    try:
        await command.run("dmsetup", "message", pool, "0", "reserve_metadata_snap", deadline=deadline)
    except CommandFailed:
        yield
        return
    try:
        yield
    finally:
        await command.run("dmsetup", "message", pool, "0", "release_metadata_snap", deadline=deadline)


@contextlib.asynccontextmanager
async def _locked(group: str) -> AsyncIterator[bool]:
    """LVM's own lock of the group: no command of it makes or confirms anything meanwhile. LVM removes the file when it
    unlocks, so one that is gone by then locks nothing (lib/misc/lvm-flock.c). False: others have it."""
    path, end = _LOCKS / f"V_{group}", time.monotonic() + _LOCK_SECONDS
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if _has_lock(descriptor, path):
                yield True
                return
        finally:
            os.close(descriptor)
        if time.monotonic() > end:
            yield False
            return
        await asyncio.sleep(0.05)


def _has_lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except (BlockingIOError, FileNotFoundError):
        return False
