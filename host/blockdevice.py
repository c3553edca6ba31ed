"""What a block device is and holds."""

import errno
import os
import stat
from functools import partial
from pathlib import Path

from host import presence
from host.command import CommandFailed, Completed, run
from host.diskthreads import threads
from host.openfile import Closing

_NOTHING_FOUND = 2
_SECTOR = 512
"""Bytes of the kernel's sectors, whatever the device's are."""
_AMBIGUOUS = 8
AMBIGUOUS = "more than one signature"
_LOOK_SECONDS = 30.0
"""How long a device may take to be opened."""
_SIGNATURES_END = 128 << 10
"""Bytes: ext4 has its signature at 1 KiB, xfs at 0, btrfs at 64 KiB."""


def is_block_device(path: Path) -> bool:
    """Whether `path`, links followed, is a block device. False for what does not exist."""
    try:
        return stat.S_ISBLK(path.stat().st_mode)
    except FileNotFoundError:
        return False


def find(number: int) -> Path | None:
    """The device of that number (st_rdev), by the kernel's name for it. None: there is none."""
    try:
        return Path("/dev", Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").readlink().name)
    except FileNotFoundError:
        return None


def opened(device: Path) -> Closing:
    """The device, to be read. Raises OSError."""
    return Closing(os.open(device, os.O_RDONLY | os.O_CLOEXEC))


def end(descriptor: int) -> int:
    """Bytes: where an open block device ends. Raises OSError."""
    return os.lseek(descriptor, 0, os.SEEK_END)


def size(device: Path) -> int:
    """Bytes: where a block device ends. Raises OSError."""
    with opened(device) as descriptor:
        return end(descriptor)


def sector_size(device: Path) -> int:
    """Bytes of the smallest piece that can be read or written: 512, or 4096 on a 4Kn disk and what lies on one. Raises
    OSError."""
    number = device.stat().st_rdev
    facts = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    disk = facts.parent if presence.exists(facts / "partition") else facts
    return int((disk / "queue/logical_block_size").read_text())


def is_suspended(device: Path) -> bool:
    """Whether a device of device-mapper lets everybody wait. False for one that is not there."""
    try:
        number = device.stat().st_rdev
        facts = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
        return (facts / "dm/suspended").read_text().strip() == "1"
    except FileNotFoundError:
        return False


def capacity(device: Path) -> int:
    """Bytes, as the kernel has them: without opening the device, which keeps others from removing it. 0: there is no
    such device."""
    try:
        number = device.stat().st_rdev
        return int(Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/size").read_text()) * _SECTOR
    except (FileNotFoundError, NotADirectoryError):
        return 0


def is_write_protected(device: Path) -> bool:
    """Whether the kernel refuses all writes to it: a logical volume of permission r, a disk with a switch. Raises
    OSError."""
    number = device.stat().st_rdev
    return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/ro").read_text().strip() == "1"


def flush(device: Path) -> None:
    """What was written to the device is on the disk. Blocks. Raises OSError."""
    with opened(device) as descriptor:
        os.fsync(descriptor)


def claim(device: Path) -> Closing | None:
    """The device for ourselves alone, to be read. None: somebody else has it so: it is mounted, in whatever mount
    namespace, is part of another device, or a tool works on it. Raises OSError. Source: O_EXCL in open(2)."""
    try:
        return Closing(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return None


def is_claimed(device: Path) -> bool:
    """Whether somebody has the device for himself. Raises OSError."""
    claimed = claim(device)
    if claimed is None:
        return True
    with claimed:
        return False


async def run_on(
    device: Path,
    *command: str,
    last: tuple[str, ...] = (),
    deadline: float,
    check: bool = True,
    secret: bytes = b"",
) -> Completed:
    """Runs a program that writes to `device`, which is named behind its other words but for the `last`, and has it hold
    the device open from its first moment. When we are killed the program goes on; a loop device that nobody held would
    be freed by then and its number given to another volume, and the program would open that one. `secret`: see
    host.command.run. Raises CommandError, OSError and host.diskthreads.Hung."""
    take = partial(os.open, device, os.O_RDONLY | os.O_CLOEXEC)
    async with threads.holding(device, take, os.close, deadline=_LOOK_SECONDS) as held:
        return await run(*command, str(device), *last, deadline=deadline, check=check, pass_fds=[held], secret=secret)


def _read_signatures(device: Path) -> None:
    """Raises OSError where the places can't be read at which something may have its signature: blkid gives up at the
    first, and begins with those at the end."""
    with device.open("rb", buffering=0) as disk:
        end = disk.seek(0, os.SEEK_END)
        for begin, stop in ((0, min(_SIGNATURES_END, end)), (max(end - _SIGNATURES_END, 0), end)):
            disk.seek(begin)
            while disk.tell() < stop and disk.read(stop - disk.tell()):
                pass


async def signature(device: Path, *, deadline: float = 30) -> str:
    """What the device itself, no cache, says that it holds: a filesystem ("ext4", "xfs", ...) or something else that
    blkid knows ("LVM2_member"), AMBIGUOUS, or nothing (""). Raises CommandError, OSError, and
    host.diskthreads.Hung."""
    answer = await run(
        "blkid", "--probe", "--match-tag", "TYPE", "--output", "value", str(device), deadline=deadline, check=False
    )
    if answer.exit_code == _NOTHING_FOUND:
        # Also the exit code for a device that can't be read: that is no answer.
        await threads.at(device, partial(_read_signatures, device), deadline=deadline)
        return ""
    if answer.exit_code == _AMBIGUOUS:
        return AMBIGUOUS
    if answer.exit_code != 0:
        raise CommandFailed(answer)
    return answer.stdout.strip()
