"""Filesystems on a block device: make, check, mount, grow. What differs between them stands in one table.

Checking before a mount. ext4 wants it: its journal repairs what a crash left, but the error flag that the kernel sets
when it finds damage is acted on only by e2fsck, and the check of a clean filesystem takes milliseconds. xfs and btrfs
don't: they replay their log when they are mounted and verify each block by its checksum when it is read, while
xfs_repair refuses a filesystem with a log to replay and both checkers read all metadata, minutes for nothing.

Features newer than the kernel. The tools come from the container image and the kernel from the node, and what mkfs
turns on must be known to the kernel. Debian 12's tools, which the image has, turn on nothing newer than Linux 5.10 by
default, and host.mounting needs 5.12 in any case. A newer image has to think again: mkfs.xfs 6.5 turns on nrext64
(Linux 5.19), e2fsprogs 1.47 as upstream ships it orphan_file (5.15).

Sources: e2fsck(8), mke2fs(8), resize2fs(8), mkfs.xfs(8), xfs_repair(8), xfs_growfs(8), mkfs.btrfs(8), btrfs-check(8).
"""

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from host import blockdevice
from host.command import CommandFailed, run


@dataclass(frozen=True)
class Facts:
    """What differs between filesystems. Words of commands, to which device or mount point are added at the end."""

    make: tuple[str, ...]
    """Forced: whether a device may be formatted is decided by our record of it, never by what is found on it."""
    repair: tuple[str, ...]
    """What a person is told to run on a damaged one."""
    grow: tuple[str, ...]
    grows_by_path: bool
    """Growing takes the mount point; otherwise the device."""
    signatures: frozenset[str]
    """What blkid may call it."""
    check: tuple[str, ...] = ()
    sound: frozenset[int] = frozenset()
    """Exit codes of `check` after which it may be mounted."""


FACTS: Mapping[str, Facts] = {
    "ext4": Facts(
        # A share for root alone (-m) serves a system disk; here it would only take 5 % from the pod.
        make=("mkfs.ext4", "-q", "-F", "-m", "0"),
        repair=("e2fsck", "-f"),
        grow=("resize2fs",),
        grows_by_path=False,
        signatures=frozenset({"ext4", "ext3", "ext2"}),  # with enough features turned off it looks like its elders
        check=("e2fsck", "-p"),
        sound=frozenset({0, 1, 2}),  # clean; repaired; repaired, and a root filesystem would need a reboot
    ),
    "xfs": Facts(
        make=("mkfs.xfs", "-q", "-f"),
        repair=("xfs_repair",),
        grow=("xfs_growfs", "-d"),
        grows_by_path=True,
        signatures=frozenset({"xfs"}),
    ),
    "btrfs": Facts(
        make=("mkfs.btrfs", "-q", "-f"),
        repair=("btrfs", "check"),
        grow=("btrfs", "filesystem", "resize", "max"),
        grows_by_path=True,
        signatures=frozenset({"btrfs"}),
    ),
}


class Unsound(Exception):
    """A device that does not show the filesystem it should, or not in a state to be mounted. It may hold data, so the
    message tells a person what to run; nothing here repairs more than is safe."""

    def __init__(self, kind: str, device: Path, what: str) -> None:
        super().__init__(
            f"{device} has no sound {kind} filesystem: {what}; its data was not touched, "
            f"on the node run `{' '.join((*FACTS[kind].repair, str(device)))}`"
        )


async def make(kind: str, device: Path, options: Sequence[str] = (), *, deadline: float = 600) -> None:
    """A new filesystem of `kind`, on disk when this returns. Whatever the device held is lost. `options` are words of
    mkfs and come after our own, so they win. Raises CommandError."""
    await run(*FACTS[kind].make, *options, str(device), deadline=deadline)


async def check(kind: str, device: Path, *, deadline: float = 3600) -> None:
    """Makes sure that an existing filesystem, not mounted, may be mounted: repairs what is safe to repair. Raises
    Unsound, and CommandError when that can't be found out."""
    found = await blockdevice.signature(device)
    facts = FACTS[kind]
    if found not in facts.signatures:
        raise Unsound(kind, device, f"found {found}" if found else "found nothing that is known")
    if not facts.check:
        return
    checked = await run(*facts.check, str(device), deadline=deadline, check=False)
    if checked.exit_code not in facts.sound:
        raise Unsound(kind, device, f"{checked.command_line} ended with {checked.exit_code}: {checked.words}")


_MOUNT_FAILED = 32
_REFUSED_BY_KERNEL = ("Structure needs cleaning", "can't read superblock", "wrong fs type, bad option, bad superblock")
"""mount(8)'s words for EUCLEAN, EIO and EINVAL."""


async def mount(kind: str, device: Path, path: Path, options: Sequence[str] = (), *, deadline: float = 100) -> None:
    """Mounts `device` on the folder `path`, through mount(8) for the sake of its options. Raises Unsound when the
    kernel refuses the filesystem, CommandError for all else."""
    words = ("-o", ",".join(options)) if options else ()
    try:
        await run("mount", "-t", kind, *words, str(device), str(path), deadline=deadline)
    except CommandFailed as error:
        said = error.completed.words
        if error.completed.exit_code != _MOUNT_FAILED or not any(sign in said for sign in _REFUSED_BY_KERNEL):
            raise
        asked = f"mount options {','.join(options)}" if options else "no mount options"
        raise Unsound(kind, device, f"{said} ({asked}; dmesg on the node says why)") from error


async def grow(kind: str, device: Path, path: Path, *, deadline: float = 600) -> None:
    """Lets a filesystem, mounted on `path`, fill its device. Nothing to do is no error. Raises CommandError, and
    PermissionError when the kernel does not let us."""
    facts = FACTS[kind]
    try:
        await run(*facts.grow, str(path if facts.grows_by_path else device), deadline=deadline)
    except CommandFailed as error:
        if "Permission denied" not in error.completed.words:
            raise
        raise PermissionError(
            errno.EPERM,
            f"the kernel does not let us grow {kind} (a mounted ext4 takes CAP_SYS_RESOURCE): "
            "run the daemon in a privileged container",
            str(path),
        ) from error
