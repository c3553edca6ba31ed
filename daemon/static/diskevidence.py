"""Reads from the kernel which disk a device or a mounted folder is (diskrecord.py).

From sysfs and the superblock, and not from udev's database or the links in /dev: these may lag behind, and a container
has none. All functions block and may read from the disk. They raise OSError where the disk does not answer: what can't
be read is not absent.

Source: Documentation/ABI/{stable/sysfs-block,testing/sysfs-block-dm} of the kernel; drivers/scsi/scsi_lib.c
(scsi_vpd_lun_id), drivers/nvme/host/sysfs.c, drivers/block/virtio_blk.c; SPC-4 7.8.15 (unit serial number page).
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from daemon.static.diskrecord import (
    DEVICE_KEYS,
    DEVICE_MAPPER,
    FILESYSTEM,
    FOLDER,
    INSTANCE,
    LOOP,
    MD,
    PARTITION,
    SERIAL,
    SIZE,
    SOURCE,
    WWID,
    DiskRecord,
)
from host import blockdevice, foldertree, loopdevice, mounttable, presence, superblock
from host.mounttable import Mount

_SYSFS = Path("/sys/dev/block")
_BTRFS = Path("/sys/fs/btrfs")
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.ENXIO, errno.ENODATA, errno.EOPNOTSUPP})
"""How the kernel says that a device has no such attribute."""
_SECTOR = 512
_LONGEST = 128
"""Characters of one value: a device, or who emulates it, says what it likes."""
_CRYPT = re.compile(r"^(CRYPT-[A-Z0-9]+-[0-9a-f]{32})-.*$")
"""The UUID of an encrypted device ends with the name that it has at the moment."""
_TEXTS = ("wwid", "device/wwid", "serial", "device/serial", "nsid", "device/cid", "dm/uuid", "md/uuid")
"""Attributes of a disk that are the same after a boot, and can be compared by a shell."""


def of_open(descriptor: int) -> DiskRecord:
    """Of an open block device, or an open folder: of the mount that it is seen through."""
    status = os.fstat(descriptor)
    if stat.S_ISBLK(status.st_mode):
        return of_device(status.st_rdev)
    shown = foldertree.mount_id(descriptor)
    for mount in mounttable.read():
        if mount.id == shown:
            return of_mount(mount, status.st_ino)
    raise OSError(errno.EINVAL, "its mount is not in the mount table")


def of_device(number: int) -> DiskRecord:
    """`number`: st_rdev."""
    folder = _folder(number)
    disk = _disk(folder)
    values = _device(disk)
    if disk != folder:
        values[PARTITION] = _text(folder / "start")
    values[SIZE] = str(int(_text(folder / "size")) * _SECTOR)
    values[INSTANCE] = f"{_text(_BOOT)} {_text(disk / 'diskseq') or _text(disk / 'dev')}"
    return DiskRecord(values)


def of_mount(mount: Mount, inode: int) -> DiskRecord:
    """`inode`: of the folder that the mount shows."""
    number = _number_of(mount)
    if number is None:
        values = {SOURCE: f"{mount.filesystem} {_clean(mount.source)}"}
    else:
        values = dict(of_device(number).values)
        identifier = _filesystem(number, bool(values.keys() & DEVICE_KEYS))
        if mount.filesystem == "btrfs" and _devices_of_btrfs(identifier) > 1:
            # Which of its devices is named as its source changes from mount to mount.
            values = {}
        if identifier:
            values[FILESYSTEM] = identifier
    if mount.root != "/":
        # The inode of what has no device may be another one after each mount.
        values[FOLDER] = _clean(mount.root) + (f" inode {inode}" if SOURCE not in values else "")
    return DiskRecord(values)


def proof(number: int) -> Iterator[str]:
    """By what a program without Python knows the device again: lines of a file, relative to its folder in sysfs, `=`,
    and the content. Where nothing survives a boot it is only the same device while the node runs."""
    folder = _folder(number)
    disk = _disk(folder)
    above = "../" if disk != folder else ""
    texts = {name: _bytes(disk / name).decode(errors="replace").rstrip("\n") for name in _TEXTS}
    lasting = {name: text for name, text in texts.items() if text.strip() and text.isascii() and text.isprintable()}
    if above:
        yield f"start={_text(folder / 'start')}"
    for name, text in lasting.items():
        yield f"{above}{name}={text}"
    if not lasting:
        name = "diskseq" if _text(disk / "diskseq") else "dev"
        yield f"{_BOOT}={_text(_BOOT)}"
        yield f"{above}{name}={_text(disk / name)}"


def _folder(number: int) -> Path:
    return (_SYSFS / f"{os.major(number)}:{os.minor(number)}").resolve(strict=True)


def _disk(folder: Path) -> Path:
    """Of a partition, that of the disk it is on."""
    return folder.parent if presence.exists(folder / "partition") else folder


def _device(disk: Path) -> dict[str, str]:
    if presence.is_folder(disk / "loop"):
        return _loop(disk)
    mapped = _CRYPT.sub(r"\1", _text(disk / "dm/uuid"))
    found = {
        WWID: _text(disk / "wwid") or _text(disk / "device/wwid"),
        SERIAL: _serial(disk),
        DEVICE_MAPPER: mapped,
        MD: _text(disk / "md/uuid"),
    }
    return {key: _clean(value) for key, value in found.items() if value}


def _serial(disk: Path) -> str:
    if namespace := _text(disk / "nsid"):
        serial = _text(disk / "device/serial")
        return f"{serial} namespace {namespace}" if serial else ""
    if page := _bytes(disk / "device/vpd_pg80"):
        return page[4:].split(b"\0")[0].decode(errors="replace").strip()
    return _text(disk / "serial") or _text(disk / "device/cid")


def _loop(disk: Path) -> dict[str, str]:
    backing = loopdevice.backing(Path("/dev", disk.name))
    if backing is None:
        return {}
    if backing.block_device:
        below = of_device(backing.block_device).values
        return {key: below[key] for key in below if key not in (SIZE, INSTANCE)} | {LOOP: f"offset {backing.offset}"}
    return {LOOP: f"inode {backing.inode} offset {backing.offset}"}


def _number_of(mount: Mount) -> int | None:
    """Of the device that is mounted. None: there is none."""
    major, _, minor = mount.device.partition(":")
    if presence.exists(_SYSFS / mount.device):
        return os.makedev(int(major), int(minor))
    if mount.filesystem == "btrfs":  # it has an anonymous device number, and one of its devices as the source
        return Path(mount.source).stat().st_rdev
    return None


def _filesystem(number: int, identified: bool) -> str:
    """`identified`: the device itself says which one it is. Then a disk that is broken is no unknown one."""
    device = blockdevice.find(number)
    if device is None:
        return ""
    try:
        return _uuid_on(device, number)
    except FileNotFoundError:
        return ""  # a container without the devices of its node
    except OSError:
        if identified:
            return ""
        raise


def _uuid_on(device: Path, number: int) -> str:
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return superblock.filesystem_uuid(descriptor) if os.fstat(descriptor).st_rdev == number else ""
    finally:
        os.close(descriptor)


def _devices_of_btrfs(identifier: str) -> int:
    """Of one that is mounted."""
    return sum(1 for _ in (_BTRFS / identifier / "devices").iterdir())


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        if error.errno in _ABSENT:
            return b""
        raise


def _text(file: Path) -> str:
    return _bytes(file).decode(errors="replace").strip()


def _clean(text: str) -> str:
    """As it comes back from the API server, with single blanks: kernels differ in them."""
    return " ".join(text.encode(errors="surrogateescape").decode(errors="backslashreplace").split())[:_LONGEST]
