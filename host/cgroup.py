"""Control groups, version 2: how much a group may read from and write to a device.

Source: Documentation/admin-guide/cgroup-v2.rst of Linux, "IO". A limit holds for what the group hands to that very
device, a logical volume or a loop device included (block/blk-throttle.c), and for whole devices only, no partitions.
What is written through the page cache counts for the group that made it dirty, where the controllers io and memory are
both on and the filesystem takes part, as ext4, xfs and btrfs do.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from host import presence

ROOT = Path("/sys/fs/cgroup")


class NoIoController(Exception):
    """Nothing can be limited here. The message says why and what to do."""


class WrongVersion(NoIoController):
    """Nor will it be before the node is started anew."""


@dataclass(frozen=True)
class IoLimits:
    """Bytes a second, and operations a second. 0: no limit."""

    read_bandwidth: int = 0
    write_bandwidth: int = 0
    read_iops: int = 0
    write_iops: int = 0

    def __bool__(self) -> bool:
        return self != IoLimits()

    def line(self, device: int) -> str:
        """As `io.max` takes it, for a device's number. All four, so that none of earlier stays."""
        figures = {
            "rbps": self.read_bandwidth,
            "wbps": self.write_bandwidth,
            "riops": self.read_iops,
            "wiops": self.write_iops,
        }
        told = " ".join(f"{key}={figure or 'max'}" for key, figure in figures.items())
        return f"{os.major(device)}:{os.minor(device)} {told}"


def check_version(root: Path = ROOT) -> None:
    """Raises WrongVersion where the hierarchy is not that of version 2."""
    if not presence.exists(root / "cgroup.controllers"):
        raise WrongVersion(
            f"{root} is not of control groups version 2 (this node has version 1, or both, or the daemon's container "
            "does not have it): boot the node with systemd.unified_cgroup_hierarchy=1, and mount the host's "
            "/sys/fs/cgroup into the daemon's container"
        )


def limit_io(group: Path, device: int, limits: IoLimits) -> None:
    """Holds a group to the limits. Raises NoIoController, FileNotFoundError when the group is gone, and OSError."""
    try:
        descriptor = os.open(group / "io.max", os.O_WRONLY | os.O_CLOEXEC)  # no O_CREAT, which is EPERM there
    except FileNotFoundError:
        if not presence.is_folder(group):
            raise
        raise NoIoController(
            f"the controller io is off in {group}: container runtimes turn it on; with systemd, "
            "DefaultIOAccounting=yes in /etc/systemd/system.conf does so from the next boot"
        ) from None
    try:
        os.write(descriptor, f"{limits.line(device)}\n".encode())
    finally:
        os.close(descriptor)
