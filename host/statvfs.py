"""How full a mounted filesystem is: statvfs(3)."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class FilesystemUsage:
    """Sizes in bytes."""

    size: int
    used: int = 0
    available: int = 0
    """To a user who is not root."""
    inodes: int = 0
    """0: the filesystem has no fixed number of them (btrfs)."""
    inodes_used: int = 0


def usage(descriptor: int) -> FilesystemUsage:
    """Of the filesystem of an open file or folder. Blocks. Raises OSError."""
    figures = os.fstatvfs(descriptor)
    return FilesystemUsage(
        size=figures.f_blocks * figures.f_frsize,
        used=(figures.f_blocks - figures.f_bfree) * figures.f_frsize,
        available=figures.f_bavail * figures.f_frsize,
        inodes=figures.f_files,
        inodes_used=figures.f_files - figures.f_ffree,
    )
