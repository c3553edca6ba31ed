"""A node with real LVM for the campaigns: its group, on disks of the guest or on files."""

import os
from collections.abc import Sequence
from pathlib import Path

from contract.parameters import DEFAULT_DEVICE_CLASS
from daemon.backends.lvm import LvmBackend
from daemon.storage.deviceclasses import LVM, DeviceClass
from lvm import Lvm
from tests.node.volume_node import MIB, Node
from tests.torture.model import kind_of

GROUP = "torture"
DISK_BYTES = 1200 * MIB
"""With room for some volumes of xfs."""
POOL, _POOL_BYTES = "pool", 400 * MIB


def has_device_mapper() -> bool:
    """The file alone says nothing: it may be there without the driver."""
    try:
        os.close(os.open("/dev/mapper/control", os.O_RDWR))
    except OSError:
        return False
    return True


def system_folder(root: Path) -> Path:
    """LVM's, of the node."""
    return root / "lvm"


async def lvm_node(root: Path, disks: Sequence[str], classes: Sequence[str] = (DEFAULT_DEVICE_CLASS,)) -> Node:
    """The group, and a thin pool for those of the device classes that want one, is made on `disks` where it is not
    there yet."""
    tools = Lvm(system_folder(root))
    here = {
        name: DeviceClass(name, LVM, group=GROUP, thin=kind_of(name).thin, thin_pool=POOL)
        for name in dict.fromkeys(classes)
    }
    if (await tools.report()).group(GROUP) is None:
        await tools.create_group(GROUP, disks)
        if any(each.thin for each in here.values()):
            await tools.create_pool(GROUP, POOL, _POOL_BYTES)
    return Node(root, lambda: LvmBackend(tools, here))
