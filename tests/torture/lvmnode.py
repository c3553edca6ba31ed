"""A node with real LVM for the campaigns: its group, on disks of the guest or on files."""

import os
from collections.abc import Sequence
from pathlib import Path

from lvm import Lvm
from tests.node.volume_node import MIB, Node, lvm_backend

GROUP = "torture"
DISK_BYTES = 300 * MIB


def has_device_mapper() -> bool:
    """The file alone says nothing: it may be there without the driver."""
    try:
        os.close(os.open("/dev/mapper/control", os.O_RDWR))
    except OSError:
        return False
    return True


async def lvm_node(root: Path, disks: Sequence[str]) -> Node:
    """The group is made on `disks` where it is not there yet."""
    tools = Lvm(root / "lvm")
    if (await tools.report()).group(GROUP) is None:
        await tools.create_group(GROUP, disks)
    return Node(root, lambda: lvm_backend(tools, GROUP, thin=False))
