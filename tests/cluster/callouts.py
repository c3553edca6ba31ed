"""The drivers, called as the kubelet calls them: the executable of FlexVolume, and the socket of CSI."""

import json
import os
from pathlib import Path
from typing import Protocol

from contract import callout, names
from contract.volume import CSI
from daemon.csi.server import driver_socket
from tests.sandbox.kubelet.csiclient import CsiClient, Use
from tests.sandbox.kubelet.driver import Driver
from tests.sandbox.nodes import Node
from tests.sandbox.workloads import Json


def driver_of(node: Node) -> Driver:
    return Driver(node.driver, os.environ | {names.SOCKET_VARIABLE: str(node.socket)})


def options_for(pod: Json, **more: str) -> str:
    """What the kubelet says of the pod that it mounts for. `more` is what a user can add, or write over it."""
    return json.dumps(
        {
            callout.READ_WRITE_OPTION: "rw",
            callout.POD_NAME_OPTION: pod["metadata"]["name"],
            callout.POD_NAMESPACE_OPTION: pod["metadata"]["namespace"],
            **more,
        }
    )


class MountCaller(Protocol):
    """Has a driver mount a volume for a pod, or unmount it. Raises CallFailed."""

    async def mount(self, folder: Path, volume: str, pod: Json | None, **lies: str) -> None:
        """`pod` is the one that the request names, if it names any; `lies` are written over what it says of it, under
        the FlexVolume's keys."""
        ...

    async def unmount(self, folder: Path, volume: str) -> None: ...


class _FlexVolume:
    def __init__(self, node: Node) -> None:
        self._driver = driver_of(node)

    async def mount(self, folder: Path, volume: str, pod: Json | None, **lies: str) -> None:
        await self._driver.mount(folder, options_for(pod, **lies) if pod else "{}")

    async def unmount(self, folder: Path, volume: str) -> None:
        await self._driver.unmount(folder)


class _Csi:
    def __init__(self, node: Node) -> None:
        self._client = CsiClient(driver_socket(node.kubelet_root))
        self._staged = node.kubelet_root / "plugins" / "staged"

    async def mount(self, folder: Path, volume: str, pod: Json | None, **lies: str) -> None:
        told = {} if pod is None else json.loads(options_for(pod, **lies))
        context = {key.replace("kubernetes.io/", "csi.storage.k8s.io/"): value for key, value in told.items()}
        use = Use("ReadWriteOnce", "ext4")
        await self._client.publish(volume, self._staged, folder, use, context, None, {}, read_only=False)

    async def unmount(self, folder: Path, volume: str) -> None:
        await self._client.unpublish(volume, folder)


def caller_of(node: Node, source: str) -> MountCaller:
    """The driver of that volume source."""
    return _Csi(node) if source == CSI else _FlexVolume(node)
