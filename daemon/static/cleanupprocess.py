"""Cleanup of one released volume in this process: the last check before anything is destroyed, then the cleaner.

A PersistentVolume is an object that others can write. Its path is accepted only if it names a direct child of its
class's folder, and what is there is judged by what it is, not by what the object says. A folder must have a filesystem
mounted on it: an unmounted volume leaves an empty folder, which would count as clean at once, and the old data would
come back with the next mount. Nothing is cleaned that another volume shows too, or that somebody on the node still has
mounted or open: a container that outlived its pod would write into the next user's volume.

Nor is a disk cleaned that is not the one that the PersistentVolume was made of. Since a path may lead elsewhere at any
time, that is asked of what is open, and it stays open while the cleaner runs: no other disk can get the name of one
that somebody has open.

Folders too are cleaned by a program (cleaners/folder.py), for the same reason as devices: a program that hangs on a
broken disk can be killed, and takes nothing of the daemon with it.
"""

import errno
import fcntl
import logging
import os
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from daemon.static import cleaners, diskevidence, diskrecord
from daemon.static.configuration import BLOCK, FILESYSTEM, ClassConfiguration
from daemon.static.diskidentity import DiskIdentity, device_identity, mount_identity
from daemon.static.diskrecord import DiskRecord, Match
from daemon.static.plan import is_unclaimed
from daemon.static.volume import StaticVolume
from host import blockdevice, mounttable, presence, usage
from host.command import CommandError, CommandFailed, CommandTimedOut, run
from host.diskthreads import Hung, threads
from host.mounttable import Mount

log = logging.getLogger(__name__)


class CleanupRefused(Exception):
    """The volume must not be cleaned now: says why and what to do. `mode` is empty if it is unknown."""

    def __init__(self, message: str, mode: str = "") -> None:
        super().__init__(message)
        self.mode = mode


class CleanupFailed(Exception):
    """The volume is not clean: says why."""


@dataclass(frozen=True)
class CleanupTarget:
    path: Path
    """In this container: mountDir and the entry."""
    real_path: Path
    """What was checked and is to be cleaned: the device itself if the path is a link to it, so that a link that is
    changed meanwhile has no effect."""
    mode: str
    """Of what is there. A PersistentVolume of mode Filesystem may have a raw device, which the kubelet formats."""
    disk: str = ""
    """Which disk it is to be, by the PersistentVolume (names.DISK_ANNOTATION). Empty: it does not say."""
    judged: DiskRecord | None = None
    """The one that was looked at. None: it can't be identified."""
    proof: tuple[str, ...] = ()
    """By what a Job knows it again: diskevidence.proof."""


def container_path(class_config: ClassConfiguration, path: str) -> Path:
    """The path of a PersistentVolume in this container. Raises CleanupRefused unless it is literally a direct child of
    the class's folder: a comparison of prefixes would take /mnt/disks2 for /mnt/disks."""
    folder, _, entry = path.rpartition("/")
    if folder != class_config.host_dir or entry in ("", ".", "..") or "\0" in entry:
        raise CleanupRefused(
            f"path {path} is not directly in {class_config.host_dir}, the folder of class {class_config.name}: "
            "nothing was touched; see who made this PersistentVolume, and delete it by hand"
        )
    return class_config.mount_dir / entry


@dataclass(frozen=True)
class Neighbour:
    """Another PersistentVolume of this node."""

    volume: str
    path: Path | None
    """In this container. None: its class is not configured, or its path is invalid."""
    disk: str
    """Which disk it has data on: names.DISK_ANNOTATION. Empty: it does not say, or it was never used."""


def neighbours(volumes: Iterable[StaticVolume], classes: Mapping[str, ClassConfiguration]) -> list[Neighbour]:
    found = []
    for volume in volumes:
        path = None
        if class_config := classes.get(volume.storage_class):
            with suppress(CleanupRefused):
                path = container_path(class_config, volume.path)
        found.append(Neighbour(volume.name, path, "" if is_unclaimed(volume) else volume.disk))
    return found


def find_target(volume: StaticVolume, class_config: ClassConfiguration, others: Collection[Neighbour]) -> CleanupTarget:
    """The target of a volume that may be cleaned now. `others`: all other PersistentVolumes of this node. Blocking.
    Raises CleanupRefused."""
    path = container_path(class_config, volume.path)
    mode = _mode(path, volume)
    real_path = Path(os.path.realpath(path)) if mode == BLOCK else path
    descriptor = _open(real_path, mode)
    try:
        judged = _check_disk(volume.name, volume.disk, descriptor, path, mode)
        number = os.fstat(descriptor).st_rdev
    finally:
        os.close(descriptor)  # who has it open is asked next
    # The mount table has no symbolic links in its paths, mountDir may have.
    table = {mount.path: mount for mount in mounttable.read()}
    if mode == FILESYSTEM:
        mount = table.get(os.path.realpath(path))
        if mount is None:
            raise CleanupRefused(f"path {path} is not a mount point: mount the volume, it is cleaned then", FILESYSTEM)
        identity = _identity(path, partial(mount_identity, mount), mode)
        _check_others(f"path {path}", mode, identity, judged, others, table)
        _check_mount(path, mount)
        return CleanupTarget(path, real_path, mode, volume.disk, judged)
    identity = _identity(real_path, partial(device_identity, number), mode)
    _check_others(f"device {real_path}", mode, identity, judged, others, table)
    _check_device(real_path, number)
    return CleanupTarget(path, real_path, mode, volume.disk, judged, _proof(number, real_path))


def _identity(path: Path, of: Callable[[], DiskIdentity], mode: str) -> DiskIdentity:
    try:
        return of()
    except OSError as error:
        raise CleanupRefused(f"{path} can't be identified: {error.strerror}", mode) from None


def _proof(number: int, device: Path) -> tuple[str, ...]:
    try:
        return tuple(diskevidence.proof(number))
    except OSError as error:
        raise CleanupRefused(f"device {device} can't be identified: {error.strerror}", BLOCK) from None


def check_entry(volume: StaticVolume, path: Path) -> None:
    """Whether the entry of a volume that is clean, and is to be offered anew, still leads to its disk, or to nothing.
    Blocking. Raises CleanupRefused."""
    try:
        if not volume.disk or not presence.is_there(path):
            return
    except OSError as error:
        raise CleanupRefused(f"path {path} can't be examined: {error.strerror}") from None
    mode = _mode(path, volume)
    descriptor = _open(path, mode)
    try:
        _check_disk(volume.name, volume.disk, descriptor, path, mode)
    finally:
        os.close(descriptor)


def _open(path: Path, mode: str) -> int:
    """What is there, for as long as it is looked at or cleaned. Raises CleanupRefused."""
    try:
        # Without waiting: a FIFO may be there by now.
        flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_NONBLOCK if mode == BLOCK else os.O_DIRECTORY | os.O_NOFOLLOW)
        descriptor = os.open(path, flags)
    except OSError as error:
        what = "device" if mode == BLOCK else "path"
        raise CleanupRefused(f"{what} {path} can't be opened: {error.strerror}", mode) from None
    if mode == BLOCK and not stat.S_ISBLK(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CleanupRefused(f"{path} was a block device a moment ago: see who changes the link to it")
    return descriptor


def _check_disk(volume: str, disk: str, descriptor: int, path: Path, mode: str) -> DiskRecord | None:
    """The disk that is open. Raises CleanupRefused unless it is the one that the PersistentVolume was made of."""
    try:
        seen = diskevidence.of_open(descriptor)
    except OSError:
        seen = None
    if diskrecord.match(disk, seen) is not Match.SAME:
        raise CleanupRefused(f"path {path} {diskrecord.difference(volume, disk, seen)}", mode)
    return seen


def _mode(path: Path, volume: StaticVolume) -> str:
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        raise CleanupRefused(
            f"path {path} is gone: restore the disk or link, or delete the PersistentVolume if it is gone for good"
        ) from None
    except OSError as error:
        raise CleanupRefused(f"path {path} can't be examined: {error.strerror}") from None
    if stat.S_ISBLK(kind):
        return BLOCK
    if not stat.S_ISDIR(kind):
        raise CleanupRefused(f"path {path} is neither a folder nor a block device: put back what was there")
    if presence.is_link(path):
        raise CleanupRefused(f"path {path} is a link to a folder, and links are not followed: mount the volume there")
    if volume.mode == BLOCK:
        raise CleanupRefused(f"path {path} is a folder, and the volume is a block device: restore the device")
    return FILESYSTEM


def _check_others(
    what: str,
    mode: str,
    identity: DiskIdentity,
    judged: DiskRecord | None,
    others: Iterable[Neighbour],
    table: Mapping[str, Mount],
) -> None:
    """Raises CleanupRefused where another PersistentVolume has that disk now, or has data on it that nobody can see at
    its own path: that leads elsewhere, so that this one leads here."""
    for other in others:
        theirs = _identity_at(other.path, table) if other.path else None
        if theirs and theirs.overlaps(identity):
            same, remedy = "is the same disk as", "remove one of the two entries"
            if theirs.mount and identity.mount:
                same, remedy = "has the same files as", "unmount one of the two"
            raise CleanupRefused(f"{what} {same} PersistentVolume {other.volume}, at {other.path}: {remedy}", mode)
        # Only then is its disk itself asked: one that hangs must not hold up the others.
        if judged and diskrecord.overlaps(other.disk, judged) and not _is_at_place(other):
            remedy = "have its path lead there again"
            raise CleanupRefused(f"{what} is the disk that PersistentVolume {other.volume} was made of: {remedy}", mode)


def _identity_at(path: Path, table: Mapping[str, Mount]) -> DiskIdentity | None:
    """Of what is there now, without asking it. None: nothing, or what is broken."""
    with suppress(OSError):
        if mount := table.get(os.path.realpath(path)):
            return mount_identity(mount)
        status = path.stat()
        if stat.S_ISBLK(status.st_mode):
            return device_identity(status.st_rdev)
    return None


def _is_at_place(other: Neighbour) -> bool:
    """Whether its path leads to the disk it was made of: two disks that are there at once are two, also when they have
    the same serial number."""
    if other.path is None:
        return False
    with suppress(OSError):
        kind = other.path.stat().st_mode
        if not stat.S_ISBLK(kind) and not stat.S_ISDIR(kind):
            return False
        descriptor = os.open(other.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return diskrecord.match(other.disk, diskevidence.of_open(descriptor)) is Match.SAME
        finally:
            os.close(descriptor)
    return False


def _check_device(device: Path, number: int) -> None:
    """`number`: st_rdev of what is open."""
    if blockdevice.is_write_protected(device):
        remedy = f"`blockdev --setrw {device}`, or see the disk and its switch; it is cleaned then"
        raise CleanupRefused(f"device {device} is write-protected: {remedy}", BLOCK)
    try:
        # With O_EXCL the kernel refuses a device that a filesystem, device-mapper, LVM or md has claimed.
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            reason = "is in use: unmount it and remove what is built on it (lsblk shows both), it is cleaned then"
            raise CleanupRefused(f"device {device} {reason}", BLOCK) from None
        raise CleanupRefused(f"device {device} can't be opened: {error.strerror}", BLOCK) from None
    # Who writes to a raw disk need not have claimed it: a container that outlived its pod, the cleaner of a daemon that
    # was killed. What it writes later would be in the next user's volume.
    try:
        user = next(chain(usage.device_loops(number), usage.device_users(number)), None)
    except OSError as error:
        reason = f"may be in use, its users can't be determined: {error}"
        raise CleanupRefused(f"device {device} {reason}", BLOCK) from None
    if user:
        raise CleanupRefused(f"device {device} is in use, {user}: end that use, it is cleaned then", BLOCK)


def _check_mount(path: Path, mount: Mount) -> None:
    try:
        user = next(usage.folder_users(mount), None)
    except OSError as error:
        raise CleanupRefused(f"path {path} may be in use, its users can't be determined: {error}", FILESYSTEM) from None
    if user:
        raise CleanupRefused(f"path {path} is in use, {user}: end that use, it is cleaned then", FILESYSTEM)


def command(mode: str, class_config: ClassConfiguration) -> tuple[str, ...]:
    """As configured, or the default."""
    return class_config.block_cleaner if mode == BLOCK else class_config.filesystem_cleaner or cleaners.FOLDER_CLEAN


async def clean(volume: str, target: CleanupTarget, class_config: ClassConfiguration, deadline: float) -> None:
    """At most `deadline` seconds. Raises CleanupFailed."""
    configured = command(target.mode, class_config)
    argv = cleaners.bundled(configured)
    variable = cleaners.BLOCK_DEVICE if target.mode == BLOCK else cleaners.FOLDER
    environment = {variable: str(target.real_path)}
    take = partial(_take, volume, target)
    try:
        if target.mode == BLOCK:
            async with threads.holding(target.real_path, take, os.close) as device:
                await _run(volume, argv, environment, deadline, [device])
        elif configured == cleaners.FOLDER_CLEAN:
            # It empties the very folder that was looked at, whatever is mounted there by then.
            async with threads.holding(target.real_path, take, os.close) as folder:
                await _run(volume, argv, {**environment, cleaners.OPEN_FOLDER: str(folder)}, deadline, [folder])
        else:
            # Not kept open: such a command may unmount the filesystem, to make it anew.
            async with threads.holding(target.real_path, take, os.close):
                pass
            await _run(volume, argv, environment, deadline)
    except CleanupRefused as error:
        raise CleanupFailed(str(error)) from None
    except CommandTimedOut as error:
        raise CleanupFailed(f"{error}: raise cleaningTimeout if it needs longer") from None
    except CommandFailed as error:
        failed = error.completed
        raise CleanupFailed(
            f"{failed.command_line} failed with exit code {failed.exit_code}: {failed.output}"
        ) from None
    except (CommandError, OSError, Hung) as error:
        raise CleanupFailed(f"{argv[0]} can't be run: {error}") from None


def _take(volume: str, target: CleanupTarget) -> int:
    """Opens what was judged, and locks it against another daemon: the cleaner has it open too, so a lock ends with the
    last of both. Raises CleanupRefused when it is locked, or not there any more.

    udev does not look at a device meanwhile (https://systemd.io/BLOCK_DEVICE_LOCKING)."""
    descriptor = _open(target.real_path, target.mode)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CleanupRefused(
                f"path {target.path} is in use, another program has locked it: it is tried again"
            ) from None
        except OSError as error:
            log.debug("%s can't be locked: %s", target.path, error)  # NFS does not, for a folder
        seen = _check_disk(volume, target.disk, descriptor, target.path, target.mode)
        if target.judged and not (seen and target.judged.is_now(seen) is Match.SAME):
            raise CleanupRefused(f"path {target.path} leads to another disk than a moment ago: see who changes that")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


async def _run(
    volume: str,
    argv: tuple[str, ...],
    environment: Mapping[str, str],
    deadline: float,
    open_files: Collection[int] = (),
) -> None:
    completed = await run(*argv, deadline=deadline, env=environment, pass_fds=open_files)
    for line in (completed.stdout + completed.stderr).splitlines():
        log.info("cleaning %s: %s", volume, line)
