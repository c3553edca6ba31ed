"""LVM2 as a small typed library. It knows nothing of Kubernetes.

    lvm = Lvm(Path("/var/lib/example/lvm"))
    await lvm.create_volume("vg", "data", 10 * 2**30, {"owner=example"})
    state = await lvm.report()

Every operation is one LVM command: nearly all of a command's time is its start and the scan of devices.
"""

from lvm.errors import (
    AlreadyExists,
    BadName,
    BeingChecked,
    GroupNotFound,
    Hung,
    Interrupted,
    InUse,
    LvmError,
    LvmNotFound,
    NoSpace,
    PartsActive,
    TagsDiffer,
    TimedOut,
    Unsupported,
)
from lvm.lvm import Lvm, largest_snapshot
from lvm.records import HealthStatus, LogicalVolume, PhysicalVolume, Report, VolumeGroup

__all__ = [
    "AlreadyExists",
    "BadName",
    "BeingChecked",
    "GroupNotFound",
    "HealthStatus",
    "Hung",
    "InUse",
    "Interrupted",
    "LogicalVolume",
    "Lvm",
    "LvmError",
    "LvmNotFound",
    "NoSpace",
    "PartsActive",
    "PhysicalVolume",
    "Report",
    "TagsDiffer",
    "TimedOut",
    "Unsupported",
    "VolumeGroup",
    "largest_snapshot",
]
