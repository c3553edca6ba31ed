"""One node for the tests of daemon.storage: a backend, a staging folder, and the folders that a kubelet makes for pods.

A daemon that is killed and started again is a new `Volumes` over the same folders, so tests make as many as they like.
"""

import asyncio
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from contract import names
from contract.parameters import DEFAULT_DEVICE_CLASS, VolumeParameters
from contract.volume import DELETE
from daemon.backends.lvm import LvmBackend
from daemon.kubelet.podfolder import PodFolder
from daemon.storage.backend import Backend
from daemon.storage.deviceclasses import LVM, DeviceClass
from daemon.storage.freespace import Reservation
from daemon.storage.record import VolumeSpec
from daemon.storage.volumes import Volumes
from host import mounting, mounttable
from host.mounttable import Mount
from lvm import Lvm
from tests.agreeing import Agreeing

MIB = 2**20


def lvm_backend(tools: Lvm, group: str, *, thin: bool) -> LvmBackend:
    """Of a node with one group, and a thin pool in it if it is thin."""
    here = DeviceClass(DEFAULT_DEVICE_CLASS, LVM, group=group, thin=thin, thin_pool="pool")
    return LvmBackend(tools, {DEFAULT_DEVICE_CLASS: here})


@dataclass
class Node:
    """`root` holds everything: what is mounted below it at the end was left behind by the test."""

    root: Path
    make_backend: Callable[[], Backend]
    pv: str = field(default_factory=lambda: f"pvc-{uuid.uuid4()}")
    """Every node has volumes of other names, so that a test that fails with mounts left behind fails alone."""

    def volumes(self, reservations: Iterable[Reservation] = ()) -> Volumes:
        """A daemon that starts."""
        return Volumes(self.make_backend(), self.staging, Agreeing(), reservations=lambda: reservations)

    async def reclaim(self, volumes: Volumes, pv: str = "") -> None:
        """Asks for the volume's removal until it is gone."""
        async with asyncio.timeout(60):
            while not await volumes.reclaim(pv or self.pv, "uid", self.pool):
                await asyncio.sleep(0.02)

    @property
    def pool(self) -> str:
        """Where a volume without parameters is made."""
        return self.make_backend().pool_of(VolumeParameters())

    def free(self, volumes: Volumes) -> int:
        """Bytes of that pool that nobody has."""
        pool = volumes.inventory.pool(self.pool)
        assert pool
        return pool.free

    @property
    def staging(self) -> Path:
        return self.root / "staging"

    def folder(self, pv: str = "", pod: str = "") -> PodFolder:
        """The folder of a new pod, as the kubelet makes it before it calls."""
        pod = pod or str(uuid.uuid4())
        kubelet = self.root / "kubelet"
        path = kubelet / "pods" / pod / "volumes" / names.DRIVER_FOLDER / (pv or self.pv)
        path.mkdir(mode=0o750, parents=True, exist_ok=True)
        return PodFolder.parse(str(path), kubelet)

    def spec(
        self, size: int = 32 * MIB, *, pv: str = "", uid: str = "uid", policy: str = DELETE, **parameters: object
    ) -> VolumeSpec:
        return VolumeSpec(pv or self.pv, uid, size, policy, VolumeParameters(**parameters))  # type: ignore[arg-type]

    def mounts(self) -> list[Mount]:
        """All that is mounted below the node's folder, the staging mounts first."""
        return sorted(
            (mount for mount in mounttable.read() if mount.path.startswith(f"{self.root}/")),
            key=lambda mount: (not mount.path.startswith(str(self.staging)), mount.path),
        )

    def mounted_on(self, folder: PodFolder) -> list[Mount]:
        return [mount for mount in self.mounts() if mount.path == str(folder.path)]

    def unmount_all(self) -> None:
        for mount in reversed(self.mounts()):
            mounting.unmount(Path(mount.path), detach=True)


def on(*nodes: str) -> pytest.MarkDecorator:
    """Runs the test on these kinds of node in place of loop and folder. Those with LVM take seconds each."""
    params = [pytest.param(node, marks=[pytest.mark.device_mapper] if node.startswith("lvm") else []) for node in nodes]
    return pytest.mark.parametrize("node", params, indirect=True)


async def started(node: Node) -> Volumes:
    """A daemon that has started."""
    volumes = node.volumes()
    await volumes.start()
    return volumes


def image(node: Node) -> Path:
    """Where a node with images has that of its volume."""
    return node.root / "data" / f"{node.pv}.img"
