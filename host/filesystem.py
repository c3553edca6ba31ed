"""Filesystems on a block device: make, check, mount, grow, give a new UUID. What differs stands in FACTS, at the end.

Checking before a mount. ext4 wants it: its journal repairs what a crash left, but the error flag that the kernel sets
when it finds damage is acted on only by e2fsck, and the check of a clean filesystem takes milliseconds. xfs and btrfs
don't: they replay their log when they are mounted and verify each block by its checksum when it is read, while
xfs_repair refuses a filesystem with a log to replay and both checkers read all metadata, minutes for nothing.

Most filesystems were unmounted cleanly and fill their device. Their superblock says so, which is what the programs
would read to do nothing: `mount_sound` mounts those by two or three reads and one system call, and leaves all others,
and what the kernel then refuses, to blkid, e2fsck, mount(8) and the program that grows it.

Growing. xfs and btrfs grow mounted, and so does ext4 where the kernel lets us (CAP_SYS_RESOURCE): through its journal,
so no crash can hurt. Elsewhere ext4 grows before it is mounted; resize2fs then wants all metadata checked, which takes
minutes on a large one, so it is asked only when there is something to grow.

resize2fs has no journal: killed half way, it leaves what `e2fsck -p` refuses, and what `e2fsck -y` mends without loss,
as long as no block with data had to move and there was a second superblock to go by (it writes the first one in pieces
of a few bytes). So only such a filesystem is grown unmounted, and our caller has to remember that it is, until it is
done (`mend_growth`). Its undo file (resize2fs -z) was no way: e2fsprogs does not flush it before what it is to undo.
This was tried with resize2fs 1.47 cut off before each of its writes, and with any part of those since its last fsync
missing, as after a power cut: docs/reliability.md.

Features newer than the kernel. The tools come from the container image and the kernel from the node, and what mkfs
turns on must be known to the kernel. Debian 12's tools, which the image has, turn on nothing newer than Linux 5.10 by
default, and host.mounting needs 5.12 in any case. A newer image has to think again: mkfs.xfs 6.5 turns on nrext64
(Linux 5.19), e2fsprogs 1.47 as upstream ships it orphan_file (5.15).

Sources: e2fsck(8), mke2fs(8), resize2fs(8), mkfs.xfs(8), xfs_repair(8), xfs_growfs(8), mkfs.btrfs(8), btrfs-check(8),
tune2fs(8), xfs_admin(8), xfs(5), ext4(5), capabilities(7).
"""

import asyncio
import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from host import blockdevice, command, ext4, kernellog, mounting, superblock
from host.command import CommandFailed, run
from host.diskthreads import threads
from host.superblock import Fit


@dataclass(frozen=True)
class Facts:
    """What differs between filesystems. Words of commands, to which device or mount point are added at the end."""

    make: tuple[str, ...]
    """Forced: whether a device may be formatted is decided by our record of it, never by what is found on it."""
    repair: tuple[str, ...]
    """What an administrator is asked to run on a damaged one."""
    grow: tuple[str, ...]
    grows_by_path: bool
    """Growing takes the mount point; otherwise the device."""
    signatures: frozenset[str]
    """What blkid may call it."""
    fit: Callable[[int], Fit | None]
    """What its superblock says while it is not mounted, of an open device: host.superblock."""
    size: Callable[[Path], int]
    """Bytes that its superblock says it has; 0: there is none."""
    unit: Callable[[Path], int]
    """Bytes of the smallest piece that it reads or writes, by its superblock; 0: there is none. A device with larger
    sectors can't do that."""
    programs: Mapping[str, str]
    """All that are run for it, and Debian's package of each."""
    check: tuple[str, ...] = ()
    clean_exit_codes: frozenset[int] = frozenset()
    """Exit codes of `check` after which it may be mounted."""
    check_all: tuple[str, ...] = ()
    """A check of all metadata, which must come before `grow` when it is not mounted."""
    mend_growth: tuple[str, ...] = ()
    """Completes or takes back a `grow`, not mounted, that was cut off."""
    grow_capability: int | None = None
    """Without it the kernel does not let us grow a mounted one: number of a capability."""
    can_grow: Callable[[Path], bool] | None = None
    """Whether one that is not mounted is smaller than its device. Needed where it may have to grow before a mount.
    Raises PermissionError when a crash meanwhile could cost data."""
    renew_uuid: Callable[[Path, Path, float], Awaitable[None]] | None = None
    """How a copy gets a UUID of its own: `renew_uuid` below. None: there can't be copies."""
    twin_options: tuple[str, ...] = ()
    """Mount options without which the kernel does not mount a second one of the same UUID."""


class DamagedFilesystem(Exception):
    """A device that does not show the filesystem it should, or not in a state to be mounted. It may hold data, so the
    message says what to run; nothing here repairs more than is safe."""

    def __init__(self, kind: str, device: Path, what: str) -> None:
        super().__init__(
            f"{device} has no sound {kind} filesystem: {what}; its data was not touched, "
            f"on the node run `{' '.join((*FACTS[kind].repair, str(device)))}`"
        )
        self.what = what


class FailingDisk(OSError):
    """A device can't be read or written, which says nothing of the filesystem on it."""

    def __init__(self, device: Path, said: str) -> None:
        super().__init__(
            f"the disk under {device} gives errors, its filesystem was not touched: see the kernel's log on the node, "
            f"and bring the disk back or replace it ({said})"
        )


class OptionsRefused(Exception):
    """The kernel does not mount a filesystem with these options. It is sound: without them it is mounted."""

    def __init__(self, kind: str, options: Sequence[str], output: str) -> None:
        super().__init__(f"the kernel refuses mount options {','.join(options)} for this {kind} filesystem: {output}")


class SectorsTooLarge(Exception):
    """A filesystem is sound, and its device has larger sectors than that it was made on."""


async def make(kind: str, device: Path, options: Sequence[str] = (), *, deadline: float = 600) -> None:
    """A new filesystem of `kind`, on disk when this returns. Whatever the device held is lost. `options` are passed to
    mkfs and come after our own, so they win. Raises CommandError."""
    await blockdevice.run_on(device, *FACTS[kind].make, *options, deadline=deadline)


async def check(kind: str, device: Path, *, deadline: float = 3600) -> None:
    """Makes sure that an existing filesystem, not mounted, may be mounted: repairs what is safe to repair. Raises
    DamagedFilesystem, and FailingDisk or CommandError when that can't be found out."""
    signature = await blockdevice.signature(device)
    facts = FACTS[kind]
    if signature not in facts.signatures:
        raise DamagedFilesystem(kind, device, f"found {signature}" if signature else "found nothing that is known")
    if facts.check:
        await _checked(kind, facts.check, device, deadline)


async def _checked(kind: str, command: Sequence[str], device: Path, deadline: float) -> None:
    checked = await blockdevice.run_on(device, *command, deadline=deadline, check=False)
    if checked.exit_code < 0:
        raise CommandFailed(checked)  # somebody killed it, which says nothing of the filesystem
    if checked.exit_code not in FACTS[kind].clean_exit_codes:
        if os.strerror(errno.EIO) in checked.output:
            raise FailingDisk(device, f"{checked.command_line}: {checked.output}")
        raise DamagedFilesystem(
            kind, device, f"{checked.command_line} ended with {checked.exit_code}: {checked.output}"
        )


_LOOK_SECONDS = 30.0
"""How long a device may take to be opened, and to show its first block."""
_MOUNT_FAILED = 32
_EIO_OF_MOUNT = "can't read superblock"
_REFUSED_BY_KERNEL = (
    *("Structure needs cleaning", _EIO_OF_MOUNT, "wrong fs type, bad option, bad superblock"),
    "probably corrupted filesystem",
)
"""mount(8)'s words for EUCLEAN, EIO, EINVAL and EBADMSG."""
_MOUNT_2 = {"LIBMOUNT_FORCE_MOUNT2": "always"}
"""Lets mount(8) have mount(2) mount it, as `host.mounting` does. With fsconfig(2), which it uses from 2.39 on, it says
what the kernel says of an option in place of these words."""
_DAMAGE = re.compile(
    r"verify failed|corrupted|corrupt (leaf|node|[1-9])|corruption|crc error|bad tree block", re.IGNORECASE
)
"""What the kernel logs where blocks could be read and are wrong: btrfs answers EIO then, too."""
_LONGEST_OUTPUT = 300
"""Characters: an event of Kubernetes holds 1024."""


MOUNT_SECONDS = 100.0
"""How long a mount may take: a log may be long."""


def mount_sound(
    kind: str, device: Path, path: Path, options: Sequence[str] = (), *, twin: bool = False, smaller: bool = True
) -> Fit | None:
    """What `check` and `mount` do together, for a filesystem whose superblock says that there is nothing to check, and
    of which no mount is known to the kernel. Unless `smaller` it has to fill its device, too. None: nothing was
    mounted, they have to be called. Blocks."""
    words = _words(kind, options, twin)
    if not mounting.is_mountable(words):
        return None
    with contextlib.suppress(OSError):  # whoever is called then finds the same, and says what it means
        claimed = blockdevice.claim(device)
        if claimed is None:
            return None
        with claimed as descriptor:
            fit = FACTS[kind].fit(descriptor)
        if fit is Fit.FILLS or (fit is Fit.SMALLER and smaller):
            mounting.mount(kind, device, path, words)
            return fit
    return None


def missing(kind: str, device: Path) -> int:
    """Bytes of the filesystem that lie beyond the end of its device: somebody made that smaller. Blocks. Raises
    OSError."""
    return max(FACTS[kind].size(device) - blockdevice.size(device), 0)


def check_sectors(kind: str, device: Path, sector_size: int) -> None:
    """Raises SectorsTooLarge when the filesystem on `device` can't be used on one with such sectors. Blocks. Raises
    OSError."""
    unit = FACTS[kind].unit(device)
    if 0 < unit < sector_size:
        raise SectorsTooLarge(f"the {kind} has pieces of {unit} bytes, and the disk sectors of {sector_size}")


def _words(kind: str, options: Sequence[str], twin: bool) -> tuple[str, ...]:
    return ("nosuid", "nodev", *(FACTS[kind].twin_options if twin else ()), *options)


async def mount(
    kind: str,
    device: Path,
    path: Path,
    options: Sequence[str] = (),
    *,
    twin: bool = False,
    deadline: float = MOUNT_SECONDS,
) -> None:
    """Mounts `device` on the folder `path`, and always nosuid and nodev: whoever shows it to others says there what
    they may (host.mounting.bind). It was checked before, if that is ever done for its kind. `twin`: it is a copy that
    has the UUID of its source, which may be mounted too. Where the system call fails, mount(8) is asked, which knows
    more ways and says what is wrong. Raises OptionsRefused, SectorsTooLarge, DamagedFilesystem when the kernel refuses
    the filesystem itself, FailingDisk, CommandError for all else, and host.diskthreads.Hung."""
    words = _words(kind, options, twin)
    if mounting.is_mountable(words):
        with contextlib.suppress(OSError):
            await threads.at(device, partial(mounting.mount, kind, device, path, words), deadline=deadline)
            return
    heard = await asyncio.to_thread(kernellog.begin)
    try:
        await run("mount", "-t", kind, "-o", ",".join(words), str(device), str(path), deadline=deadline, env=_MOUNT_2)
    except CommandFailed as error:
        output = error.completed.output
        with contextlib.suppress(OSError):  # what can't be read has no answer, and is refused below
            # Each filesystem has another error for that.
            await threads.at(device, partial(_check_own_sectors, kind, device), deadline=_LOOK_SECONDS)
        if error.completed.exit_code != _MOUNT_FAILED or not any(sign in output for sign in _REFUSED_BY_KERNEL):
            raise
        unreadable = _EIO_OF_MOUNT in output
        said = "; ".join(await asyncio.to_thread(heard.about, device))
        output = said[-_LONGEST_OUTPUT:] or f"{output} (dmesg on the node says why)"
        if unreadable and (FACTS[kind].check or not _DAMAGE.search(said)):  # what was checked is sound
            raise FailingDisk(device, output) from error
        own = FACTS[kind].twin_options if twin else ()
        if options and await _mounts_without_options(kind, device, own, deadline):
            raise OptionsRefused(kind, options, output) from error
        asked = f"mount options {','.join(options)}" if options else "no mount options"
        what = f"{output} ({asked}), so it is damaged, or was made with what this kernel does not know"
        raise DamagedFilesystem(kind, device, what) from error
    finally:
        heard.close()


def _check_own_sectors(kind: str, device: Path) -> None:
    check_sectors(kind, device, blockdevice.sector_size(device))


async def _mounts_without_options(kind: str, device: Path, own: Sequence[str], deadline: float) -> bool:
    """Whether the fault lies in the options alone. Nothing is written but what the journal has to."""
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="elastic-local-"))
    try:
        # One that hangs is known by its device: the folder is another each time.
        alone = ("mount", "-t", kind, "-o", ",".join(("ro", *own)), str(device))
        await run(*alone, str(folder), deadline=deadline, env=_MOUNT_2, kind=alone)
        await run("umount", str(folder), deadline=deadline)
    except CommandFailed:
        return False
    else:
        return True
    finally:
        await asyncio.to_thread(folder.rmdir)


async def grow(kind: str, device: Path, path: Path, *, deadline: float = 600) -> None:
    """Lets a filesystem, mounted on `path`, fill its device. Nothing to do is no error. Raises CommandError, and
    PermissionError when the kernel does not let us."""
    facts = FACTS[kind]
    try:
        await run(*facts.grow, str(path if facts.grows_by_path else device), deadline=deadline)
    except CommandFailed as error:
        if "Permission denied" not in error.completed.output:
            raise
        raise PermissionError(
            errno.EPERM,
            f"the kernel does not let us grow a mounted {kind} (it takes CAP_SYS_RESOURCE): run the daemon in a "
            "privileged container, or let the volume be unmounted, and it grows with its next mount",
            str(path),
        ) from error


def grows_mounted(kind: str) -> bool:
    """Whether the kernel lets us grow a mounted one."""
    capability = FACTS[kind].grow_capability
    return capability is None or bool(_capabilities() >> capability & 1)


async def can_grow_unmounted(kind: str, device: Path, *, deadline: float = 3600) -> bool:
    """Whether a filesystem, not mounted, is smaller than its device. All of it is checked then. For kinds that may not
    grow mounted. Raises DamagedFilesystem, CommandError, and PermissionError when a crash while it grows could cost
    data."""
    facts = FACTS[kind]
    assert facts.can_grow, f"{kind} grows mounted"
    if not await threads.at(device, partial(facts.can_grow, device), deadline=_LOOK_SECONDS):
        return False
    await _checked(kind, facts.check_all, device, deadline)
    return True


async def grow_unmounted(kind: str, device: Path, *, deadline: float = 3600) -> None:
    """Lets a filesystem that `can_grow_unmounted` fill its device. Whatever cuts that off, `mend_growth` comes before
    anything else. Raises CommandError."""
    await blockdevice.run_on(device, *FACTS[kind].grow, deadline=deadline)


async def mend_growth(kind: str, device: Path, *, deadline: float = 3600) -> None:
    """A filesystem that was sound until `grow_unmounted` was begun, and of which nobody knows how far that came, is
    sound again, and has its old size or the new one. May be cut off and begun anew. Raises DamagedFilesystem and
    CommandError."""
    signature = await blockdevice.signature(device)
    facts = FACTS[kind]
    # Without a signature it may be a superblock half written, which has a wrong checksum.
    if signature and signature not in facts.signatures:
        raise DamagedFilesystem(kind, device, f"found {signature}")
    if facts.mend_growth:
        await _checked(kind, facts.mend_growth, device, deadline)


async def renew_uuid(kind: str, device: Path, folder: Path, *, deadline: float = 3600) -> None:
    """Gives the filesystem on `device`, not mounted, a UUID of its own: a copy, block by block, has that of its source,
    so xfs does not let both be mounted, and tools that look for a UUID find either. `folder` is empty and there to
    mount it for a moment. A process that is killed meanwhile may leave it mounted there, or of no use. Raises
    DamagedFilesystem, CommandError, OSError, and ValueError for a kind of which there can't be copies."""
    renew = FACTS[kind].renew_uuid
    if renew is None:
        raise ValueError(f"two copies of one {kind} can't be used on one node")
    await renew(device, folder, deadline)


def _capabilities() -> int:
    """Bits of this process's effective capabilities."""
    match = re.search(r"^CapEff:\t([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match
    return int(match[1], 16)


def _ext4_can_grow(device: Path) -> bool:
    geometry, size = ext4.Geometry.read(device), blockdevice.size(device)
    if not geometry.lacks(size):
        return False
    if why := geometry.unsafe_to_grow(size):
        raise PermissionError(
            errno.EPERM,
            "the kernel does not let us grow a mounted ext4 (it takes CAP_SYS_RESOURCE), and this one can't grow "
            f"unmounted, because a crash could not be repaired: {why}; run the daemon in a privileged container",
            str(device),
        )
    return True


async def _renew_uuid_of_ext4(device: Path, folder: Path, deadline: float) -> None:
    """tune2fs wants all of it checked, because it writes each checksum anew."""
    await _checked("ext4", ("e2fsck", "-f", "-p"), device, deadline)
    await run("tune2fs", "-U", "random", str(device), deadline=deadline)


async def _renew_uuid_of_xfs(device: Path, folder: Path, deadline: float) -> None:
    """Its log has to be replayed before that, which only a mount does."""
    await mount("xfs", device, folder, ["nouuid"], deadline=deadline)
    await threads.at(device, partial(mounting.unmount, folder), deadline=deadline)
    await run("xfs_admin", "-U", "generate", str(device), deadline=deadline)


FACTS: Mapping[str, Facts] = {
    "ext4": Facts(
        # A share for root alone (-m) serves a system disk; here it would only take 5 % from the pod.
        make=("mkfs.ext4", "-q", "-F", "-m", "0"),
        repair=("e2fsck", "-f"),
        grow=("resize2fs",),
        grows_by_path=False,
        signatures=frozenset({"ext4", "ext3", "ext2"}),  # with enough features turned off it looks like its elders
        fit=superblock.of_ext4,
        size=ext4.size,
        unit=ext4.unit,
        check=("e2fsck", "-p"),
        clean_exit_codes=frozenset({0, 1, 2}),  # clean; repaired; repaired, and a root filesystem would need a reboot
        check_all=("e2fsck", "-f", "-p"),
        mend_growth=("e2fsck", "-f", "-y"),
        grow_capability=24,  # CAP_SYS_RESOURCE
        can_grow=_ext4_can_grow,
        renew_uuid=_renew_uuid_of_ext4,
        programs=dict.fromkeys(("mkfs.ext4", "e2fsck", "resize2fs", "tune2fs"), "e2fsprogs"),
    ),
    "xfs": Facts(
        make=("mkfs.xfs", "-q", "-f"),
        repair=("xfs_repair",),
        grow=("xfs_growfs", "-d"),
        grows_by_path=True,
        signatures=frozenset({"xfs"}),
        fit=superblock.of_xfs,
        size=superblock.size_of_xfs,
        unit=superblock.unit_of_xfs,
        renew_uuid=_renew_uuid_of_xfs,
        twin_options=("nouuid",),
        programs=dict.fromkeys(("mkfs.xfs", "xfs_growfs", "xfs_repair", "xfs_admin"), "xfsprogs"),
    ),
    "btrfs": Facts(
        make=("mkfs.btrfs", "-q", "-f"),
        repair=("btrfs", "check"),
        grow=("btrfs", "filesystem", "resize", "max"),
        grows_by_path=True,
        signatures=frozenset({"btrfs"}),
        fit=superblock.of_btrfs,
        size=superblock.size_of_btrfs,
        unit=superblock.unit_of_btrfs,
        programs=dict.fromkeys(("mkfs.btrfs", "btrfs"), "btrfs-progs"),
    ),
}
"""What a new filesystem needs here: docs/development.md."""

for _facts in FACTS.values():
    command.PACKAGES.update(_facts.programs)
