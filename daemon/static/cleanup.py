"""Cleanup of one released volume in this process: the last check before anything is destroyed, then the cleaner.

A PersistentVolume is an object that others can write. Its path is accepted only if it names a direct child of its
class's folder, and what is there is judged by what it is, not by what the object says. A folder must have a filesystem
mounted on it: an unmounted volume leaves an empty folder, which would count as clean at once, and the old data would
come back with the next mount. Nothing is cleaned that another volume shows too, or that somebody on the node still has
mounted or open: a container that outlived its pod would write into the next user's volume.

Folders too are cleaned by a program (cleaners/folder.py), for the same reason as devices: a program that hangs on a
broken disk can be killed, and takes nothing of the daemon with it.
"""

import asyncio
import errno
import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from daemon.static import cleaners
from daemon.static.configuration import BLOCK, FILESYSTEM, ClassConfiguration
from daemon.static.diskidentity import overlap, same_disk
from daemon.static.volume import StaticVolume
from host import mounttable, usage
from host.command import CommandError, CommandFailed, CommandTimedOut, run

log = logging.getLogger(__name__)


class PlaceError(Exception):
    """The volume can't be cleaned where its path says: says why and what to do. `mode` is empty if it is not known."""

    def __init__(self, message: str, mode: str = "") -> None:
        super().__init__(message)
        self.mode = mode


@dataclass(frozen=True)
class Place:
    path: Path
    """As we see it: mountDir and the entry."""
    target: Path
    """What was looked at and is to be cleaned: the device itself when the path is a link to it, so that a link that is
    changed meanwhile changes nothing."""
    mode: str
    """By what stands there. A PersistentVolume of mode Filesystem may have a raw device, which the kubelet formats."""


def container_path(settings: ClassConfiguration, path: str) -> Path:
    """The path of a PersistentVolume as we see it. Raises PlaceError for what is not written as a direct child of the
    class's folder, to the letter: a comparison of prefixes would take /mnt/disks2 for /mnt/disks."""
    folder, _, entry = path.rpartition("/")
    if folder != settings.host_dir or entry in ("", ".", "..") or "\0" in entry:
        raise PlaceError(
            f"path {path} is not directly in {settings.host_dir}, the folder of class {settings.name}: "
            "nothing was touched; see who made this PersistentVolume, and delete it by hand"
        )
    return settings.mount_dir / entry


def locate(volume: StaticVolume, settings: ClassConfiguration, neighbours: Mapping[str, Path]) -> Place:
    """The place of a volume that may be cleaned now. `neighbours`: the paths, as we see them, of the other
    PersistentVolumes of this node, by name. Blocking. Raises PlaceError."""
    path = container_path(settings, volume.path)
    mode = _mode(path, volume)
    if mode == FILESYSTEM:
        _check_mount(path, neighbours)
        return Place(path, path, mode)
    device = Path(os.path.realpath(path))
    _check_device(device, neighbours)
    return Place(path, device, mode)


def _mode(path: Path, volume: StaticVolume) -> str:
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        raise PlaceError(
            f"path {path} is gone: bring the disk or link back, or delete the PersistentVolume if it is gone for good"
        ) from None
    except OSError as error:
        raise PlaceError(f"path {path} can't be looked at: {error.strerror}") from None
    if stat.S_ISBLK(kind):
        return BLOCK
    if not stat.S_ISDIR(kind):
        raise PlaceError(f"path {path} is neither a folder nor a block device: put back what was there")
    if path.is_symlink():
        raise PlaceError(f"path {path} is a link to a folder, and links are not followed: mount the volume there")
    if volume.mode == BLOCK:
        raise PlaceError(f"path {path} is a folder, and the volume is a block device: bring the device back")
    return FILESYSTEM


def _check_device(device: Path, neighbours: Mapping[str, Path]) -> None:
    status = device.stat()
    if not stat.S_ISBLK(status.st_mode):
        raise PlaceError(f"{device} was a block device a moment ago: see who changes the link to it")
    for name, path in neighbours.items():
        try:
            found = path.stat()
        except OSError:
            continue  # what is not there shows nothing
        if stat.S_ISBLK(found.st_mode) and same_disk(_sysfs(found.st_rdev), _sysfs(status.st_rdev)):
            words = f"shares its bytes with PersistentVolume {name}, at {path}: take one of the two entries away"
            raise PlaceError(f"device {device} {words}", BLOCK)
    try:
        # With O_EXCL the kernel refuses a device that a filesystem, device-mapper, LVM or md has claimed.
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            words = "is in use: unmount it and end what is built on it (lsblk shows both), it is cleaned then"
            raise PlaceError(f"device {device} {words}", BLOCK) from None
        raise PlaceError(f"device {device} can't be opened: {error.strerror}", BLOCK) from None


def _sysfs(number: int) -> Path:
    return Path(os.path.realpath(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"))


def _check_mount(path: Path, neighbours: Mapping[str, Path]) -> None:
    # The kernel's table has no links in it, and mountDir may be reached through one.
    table = {mount.path: mount for mount in mounttable.read()}
    mount = table.get(os.path.realpath(path))
    if mount is None:
        raise PlaceError(f"path {path} is not a mount point: mount the volume, it is cleaned then", FILESYSTEM)
    for name, neighbour in neighbours.items():
        shown = table.get(os.path.realpath(neighbour))
        if shown and overlap(mount, shown):
            words = f"shows files of PersistentVolume {name}, at {neighbour}: unmount one of the two"
            raise PlaceError(f"path {path} {words}", FILESYSTEM)
    try:
        user = next(usage.folder_users(mount), None)
    except OSError as error:
        raise PlaceError(f"path {path} may be in use, and by whom can't be seen: {error}", FILESYSTEM) from None
    if user:
        raise PlaceError(f"path {path} is in use, {user}: end that, it is cleaned then", FILESYSTEM)


class CleaningFailed(Exception):
    """The volume is not clean: says why."""


def command(mode: str, settings: ClassConfiguration) -> tuple[str, ...]:
    """As configured, or what cleans when nothing is."""
    return settings.block_cleaner if mode == BLOCK else settings.filesystem_cleaner or cleaners.FOLDER_CLEAN


async def clean(volume: str, place: Place, settings: ClassConfiguration, deadline: float) -> None:
    """At most `deadline` seconds. Raises CleaningFailed."""
    argv = cleaners.bundled(command(place.mode, settings))
    variable = cleaners.BLOCK_DEVICE if place.mode == BLOCK else cleaners.FOLDER
    try:
        if place.mode == BLOCK:
            # Held open, so that the kernel can't give the name of a disk that goes to one that comes.
            held = await asyncio.to_thread(os.open, place.target, os.O_RDONLY | os.O_CLOEXEC)
            try:
                await _run(volume, argv, {variable: str(place.target)}, deadline)
            finally:
                os.close(held)
        else:
            await _run(volume, argv, {variable: str(place.target)}, deadline)
    except CommandTimedOut as error:
        raise CleaningFailed(f"{error}: raise cleaningTimeout if it needs longer") from None
    except CommandFailed as error:
        done = error.completed
        raise CleaningFailed(f"{done.command_line} failed with exit code {done.exit_code}: {done.words}") from None
    except (CommandError, OSError) as error:
        raise CleaningFailed(f"{argv[0]} can't be run: {error}") from None


async def _run(volume: str, argv: tuple[str, ...], environment: Mapping[str, str], deadline: float) -> None:
    completed = await run(*argv, deadline=deadline, env=environment)
    for line in (completed.stdout + completed.stderr).splitlines():
        log.info("cleaning %s: %s", volume, line)
