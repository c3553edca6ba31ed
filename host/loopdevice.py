"""A file as a block device.

Attached with LOOP_CONFIGURE, one call in place of the older three, and for volumes with AUTOCLEAR: the kernel detaches
the file when the last mount or open descriptor goes. So there is nothing to detach, and a killed process leaves no
device behind. What is a disk of the node, whether somebody uses it or not, is attached without.

Source: loop(4), include/uapi/linux/loop.h. Needs Linux 5.8.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from host import blockdevice, presence
from host.openfile import Closing

_CONTROL = "/dev/loop-control"
_DEVICES = "/sys/devices/virtual/block"
"""Where the links of /sys/block lead for devices that are no hardware: twice as fast as through them."""
_NAME = "loop"
_LOOP_CLR_FD = 0x4C01
_LOOP_SET_STATUS64 = 0x4C04
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_SET_CAPACITY = 0x4C07
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82
_BLKROSET = 0x125D
_READ_ONLY = 1
_AUTOCLEAR = 4
_DIRECT_IO = 16
_SECTOR = 512
"""Bytes, of every device, whatever its file lies on. The kernel's own choice follows the disk and the file: since 6.14
or so it is 4096 on a disk with such sectors, and for a file on xfs as soon as it shares blocks with a copy, as `cp`
makes them. What was made on smaller ones (xfs, ext4 with blocks of 1 KiB, partition tables) could not be used then. The
price is direct I/O: where the disk does not take such sectors, the kernel goes by the page cache."""

_LONGEST_ATTRIBUTE = 4096
"""Bytes: a file of sysfs has a page, and is read at once."""
_TRIES = 64
"""Others take loop devices too: between asking for a free one and taking it, somebody may have been faster."""


class _Info(ctypes.Structure):
    _fields_ = (
        ("lo_device", ctypes.c_uint64),
        ("lo_inode", ctypes.c_uint64),
        ("lo_rdevice", ctypes.c_uint64),
        ("lo_offset", ctypes.c_uint64),
        ("lo_sizelimit", ctypes.c_uint64),
        ("lo_number", ctypes.c_uint32),
        ("lo_encrypt_type", ctypes.c_uint32),
        ("lo_encrypt_key_size", ctypes.c_uint32),
        ("lo_flags", ctypes.c_uint32),
        ("lo_file_name", ctypes.c_char * 64),
        ("lo_crypt_name", ctypes.c_char * 64),
        ("lo_encrypt_key", ctypes.c_char * 32),
        ("lo_init", ctypes.c_uint64 * 2),
    )


class _Config(ctypes.Structure):
    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", _Info),
        ("reserved", ctypes.c_uint64 * 8),
    )


@dataclass(frozen=True)
class Backing:
    """What a loop device shows."""

    device: int
    """Of the filesystem that its file is in, and the file there."""
    inode: int
    block_device: int
    """st_rdev where it shows a block device, else 0."""
    offset: int
    limit: int
    """Bytes; 0: to the end."""

    def overlaps(self, other: "Backing") -> bool:
        if (self.device, self.inode) != (other.device, other.inode):
            return False
        first, second = sorted((self, other), key=lambda each: each.offset)
        return not first.limit or first.offset + first.limit > second.offset


def backing(device: Path) -> Backing | None:
    """None for a loop device that nothing is attached to. Raises OSError."""
    with _opened(device, os.O_RDONLY) as descriptor:
        info = _Info()
        try:
            fcntl.ioctl(descriptor, _LOOP_GET_STATUS64, info)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return None
    return Backing(info.lo_device, info.lo_inode, info.lo_rdevice, info.lo_offset, info.lo_sizelimit)


def hold(file: Path, likely: int = 0) -> tuple[int, Path]:
    """The loop device of `file`, opened: the one it is attached to already, else a new one. One that shows only a part
    of the file, or does not let it be written, is not taken: somebody looks into it by hand. It is held until that is
    closed, and beyond for as long as it is mounted. Past the page cache (direct I/O) where the file's disk can,
    so that data is not cached twice. `likely`: number (st_rdev) of the device that is looked at first, if it is one.
    Raises OSError."""
    return _open_attached(file, whole=True, likely=likely) or _attach(file, _AUTOCLEAR | _DIRECT_IO)


@contextlib.contextmanager
def attached(file: Path) -> Iterator[Path]:
    """The same for a context."""
    descriptor, device = hold(file)
    try:
        yield device
    finally:
        os.close(descriptor)


def attach(file: Path) -> Path:
    """The loop device of `file`, which stays when nobody uses it: until `losetup --detach`, or the node's next start.
    Raises OSError."""
    descriptor, device = _open_attached(file, whole=True) or _attach(file, _DIRECT_IO)
    os.close(descriptor)
    return device


def keep(device: Path) -> None:
    """The device stays when nobody uses it, until `let_go`. Raises OSError."""
    _set_autoclear(device, False)


def let_go(device: Path) -> None:
    """The device goes with its last user, at once if there is none. Raises OSError."""
    _set_autoclear(device, True)


def _set_autoclear(device: Path, automatic: bool) -> None:
    with _opened(device, os.O_RDONLY) as descriptor:
        info = _Info()
        fcntl.ioctl(descriptor, _LOOP_GET_STATUS64, info)
        info.lo_flags = info.lo_flags | _AUTOCLEAR if automatic else info.lo_flags & ~_AUTOCLEAR
        fcntl.ioctl(descriptor, _LOOP_SET_STATUS64, info)


def is_loop(device: Path) -> bool:
    """Whether it is a loop device that something is attached to."""
    number = device.stat().st_rdev
    return presence.exists(Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/loop"))


def detach(device: Path) -> None:
    """Takes the file away from a device that `attach` made, as soon as nobody has it open. Raises OSError."""
    with _opened(device, os.O_RDONLY) as descriptor:
        fcntl.ioctl(descriptor, _LOOP_CLR_FD)


def find(file: Path, *, whole: bool = False) -> Path | None:
    """The device that `file` is attached to, or None. `whole`: as `hold` would take it."""
    attached = _open_attached(file, whole=whole)
    if attached is None:
        return None
    descriptor, device = attached
    os.close(descriptor)
    return device


def set_capacity(device: Path) -> None:
    """Lets the device have the size that its file has now. Raises OSError."""
    with _opened(device, os.O_RDONLY) as descriptor:
        fcntl.ioctl(descriptor, _LOOP_SET_CAPACITY)


def _open_attached(file: Path, *, whole: bool, likely: int = 0) -> tuple[int, Path] | None:
    """The open device of `file`. Compared by inode: names of files differ between mount namespaces."""
    status = file.lstat()
    is_link = stat.S_ISLNK(status.st_mode)
    if is_link:
        status = file.stat()
    device = blockdevice.find(likely) if likely else None
    if device and device.name.startswith(_NAME) and (found := _open_if_shows(device, status, whole=whole)):
        return found
    name = file.resolve().name if is_link else file.name
    devices = (device for device, backing in backing_files().items() if backing.name == name)
    return next(filter(None, (_open_if_shows(device, status, whole=whole) for device in devices)), None)


def _open_if_shows(device: Path, file: os.stat_result, *, whole: bool) -> tuple[int, Path] | None:
    with contextlib.suppress(OSError):  # it was detached a moment ago
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        if _shows(descriptor, file, whole=whole):
            return descriptor, device
        os.close(descriptor)
    return None


def backing_files() -> dict[Path, Path]:
    """Of all loop devices of the machine, by the name that this mount namespace has for each, if it has any."""
    # Each mount looks here, and nodes have many devices that nothing is attached to. Not by /proc/partitions, where all
    # are in one file: it leaves one out when another one goes while it is read.
    with _opened(_DEVICES, os.O_RDONLY | os.O_DIRECTORY) as devices, os.scandir(devices) as found:
        return {
            Path("/dev", each.name): file
            for each in found
            if each.name.startswith(_NAME)
            and os.access(f"{each.name}/loop", os.F_OK, dir_fd=devices)  # else nothing is attached to it
            and (file := _backing_file(devices, each.name))
        }


def _backing_file(devices: int, name: str) -> Path | None:
    try:
        descriptor = os.open(f"{name}/loop/backing_file", os.O_RDONLY | os.O_CLOEXEC, dir_fd=devices)
    except OSError:  # it was detached a moment ago
        return None
    try:
        return Path(os.fsdecode(os.read(descriptor, _LONGEST_ATTRIBUTE)).rstrip("\n"))
    except OSError:  # the same
        return None
    finally:
        os.close(descriptor)


def _shows(descriptor: int, file: os.stat_result, *, whole: bool) -> bool:
    info = _Info()
    try:
        fcntl.ioctl(descriptor, _LOOP_GET_STATUS64, info)
    except OSError:  # nothing is attached to it any more
        return False
    if whole and (info.lo_offset or info.lo_sizelimit or info.lo_flags & _READ_ONLY):
        return False
    return (info.lo_device, info.lo_inode) == (file.st_dev, file.st_ino)


def _attach(file: Path, flags: int) -> tuple[int, Path]:
    with _opened(file, os.O_RDWR) as backing, _opened(_CONTROL, os.O_RDWR) as control:
        for _ in range(_TRIES):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            device = Path(f"/dev/loop{number}")
            try:
                descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise OSError(
                    errno.ENOENT, "no such device, the container must share the node's /dev", str(device)
                ) from error
            config = _Config(fd=backing, block_size=_SECTOR, info=_Info(lo_flags=flags))
            config.info.lo_file_name = os.fsencode(file)[-63:]
            try:
                fcntl.ioctl(descriptor, _LOOP_CONFIGURE, config)
                # `blockdev --setro` of who had the device before outlives what was attached then.
                fcntl.ioctl(descriptor, _BLKROSET, struct.pack("i", 0))
            except OSError as error:
                os.close(descriptor)
                if error.errno != errno.EBUSY:
                    raise OSError(error.errno, f"can't attach {file} ({error.strerror})", str(device)) from error
            else:
                return descriptor, device
    raise OSError(errno.EBUSY, f"no loop device stayed free long enough to attach {file}, try again", _CONTROL)


def _opened(path: Path | str, flags: int) -> Closing:
    return Closing(os.open(path, flags | os.O_CLOEXEC))
