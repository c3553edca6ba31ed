"""This node, asked as its daemon would ask it: the same settings from the same environment, the same backend. Nothing
of a volume is made or changed, so it may be asked while the daemon works."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from command import volumerows
from command.volumerows import Row
from contract import names
from daemon import settings
from daemon.backends.deviceclassbackend import backend_of_classes
from daemon.settings import Settings
from daemon.storage.backend import Backend
from host import mounttable
from host.mounttable import Mount


def chosen() -> Settings:
    """The daemon's settings; without NODE_NAME, which a person's shell does not have, the host's name stands for it.
    Raises SettingsError."""
    return settings.read({"NODE_NAME": socket.gethostname(), **os.environ})


def backend(of: Settings) -> Backend:
    return backend_of_classes(of.classes, of.data_dir)


async def rows(of: Settings) -> list[Row]:
    """Raises VolumeError."""
    inventory = await backend(of).inspect()
    mounts = mounttable.read()
    return volumerows.of_node(inventory, of.node_name, _used(mounts, of.staging_dir), users(mounts, of.kubelet_root))


def _used(mounts: list[Mount], staging: Path) -> Mapping[str, int]:
    """Bytes in use on what is mounted. A folder shows its whole filesystem, which says nothing about it."""
    used = {}
    for mount in mounts:
        path = Path(mount.path)
        if path.parent == staging and mount.root == "/":
            figures = os.statvfs(path)
            used[path.name] = (figures.f_blocks - figures.f_bfree) * figures.f_frsize
    return used


def users(mounts: list[Mount], kubelet_root: Path) -> Mapping[str, tuple[str, ...]]:
    """Uids of the pods in whose folder a volume is mounted."""
    users: dict[str, set[str]] = {}
    for mount in mounts:
        path = Path(mount.path)
        if not path.is_relative_to(kubelet_root):
            continue
        match path.relative_to(kubelet_root).parts:
            case ("pods", uid, "volumes", names.DRIVER_FOLDER, volume):
                users.setdefault(volume, set()).add(uid)
            case ("pods", uid, "volumes", names.CSI_FOLDER, volume, names.CSI_MOUNT):
                users.setdefault(volume, set()).add(uid)
            # A device node, which the kubelet links into the pod's folder (pkg/volume/csi/csi_block.go).
            case ("plugins", "kubernetes.io", "csi", "volumeDevices", "publish", volume, uid):
                users.setdefault(volume, set()).add(uid)
    return {volume: tuple(sorted(uids)) for volume, uids in users.items()}
