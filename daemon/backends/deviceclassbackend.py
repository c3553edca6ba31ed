"""All storage of one node: the backends of its device classes, behind the protocol that each of them speaks.

LVM is one backend however many groups there are, so a look at them costs one report. Each folder of files or folders is
one of its own. A volume is made where its parameters say, and found again by its pool, which no two of them share.

Nodes differ, and disks go. One backend that can't be looked at shows no pool, and the inventory says which ones were
not seen and why; the others serve on. Of volumes in a pool that was not seen nobody says that they are gone.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from contract.parameters import VolumeParameters
from daemon.backends.folder import FolderBackend
from daemon.backends.loop import LoopBackend, volume_devices
from daemon.backends.lvm import LvmBackend
from daemon.backends.volumegroups import GroupMaker
from daemon.errors import PoolMissing, VolumeError
from daemon.storage.backend import Backend, SnapshotStorage, StaleData
from daemon.storage.deviceclasses import LOOP, LVM, DeviceClass, reserve_of
from daemon.storage.inventory import DamagedVolume, Inventory, Pool, SharedFilesystem, UnavailablePool, Volume
from daemon.storage.record import Record, VolumeSpec
from daemon.storage.thinpools import PoolExtension
from host.diskthreads import unresponsive
from lvm import Lvm

log = logging.getLogger(__name__)

T = TypeVar("T")


def backend_of_classes(classes: Mapping[str, DeviceClass], data_dir: Path) -> "DeviceClassBackend":
    """The storage of a node that is configured so. LVM keeps its backups of metadata in `data_dir`."""
    of_lvm = {name: device_class for name, device_class in classes.items() if device_class.kind == LVM}
    tools = Lvm(data_dir / "lvm", foreign=volume_devices) if of_lvm else None
    with_lvm = LvmBackend(tools, of_lvm, GroupMaker(tools, data_dir)) if tools else None
    files = {device_class: _files(device_class) for device_class in classes.values() if device_class.kind != LVM}
    members = {
        name: with_lvm if device_class.kind == LVM else files[device_class] for name, device_class in classes.items()
    }
    return DeviceClassBackend({name: member for name, member in members.items() if member}, classes)


def _files(device_class: DeviceClass) -> Backend:
    kind = LoopBackend if device_class.kind == LOOP else FolderBackend
    return kind(device_class.folder, device_class.capacity, pool=device_class.pool, own_folder=device_class.own_folder)


class DeviceClassBackend:
    """See daemon.storage.backend.Backend. `members` has the backend of each of `classes`."""

    def __init__(self, members: Mapping[str, Backend], classes: Mapping[str, DeviceClass]) -> None:
        self._members = members
        self._classes = classes
        self._by_pool = {classes[name].pool: member for name, member in members.items()}
        self._shown: set[str] = set()
        """The pools that were there at the last look."""
        self._distinct = list({id(member): member for member in members.values()}.values())
        self._lvm = next((member for member in self._distinct if isinstance(member, LvmBackend)), None)

    def on_device(self, pool: str) -> bool:
        return self._holder(pool).on_device(pool)

    def pool_of(self, parameters: VolumeParameters) -> str:
        member = self._members.get(parameters.device_class)
        return member.pool_of(parameters) if member else f"device class {parameters.device_class}"

    async def establish(self) -> None:
        absent = {id(member): member for pool, member in self._by_pool.items() if pool not in self._shown}
        _each(await asyncio.gather(*(member.establish() for member in absent.values()), return_exceptions=True))

    async def inspect(self) -> Inventory:
        outcomes = await asyncio.gather(*(self._look(member) for member in self._distinct), return_exceptions=True)
        inventories, unavailable = [], []
        for member, outcome in zip(self._distinct, _each(outcomes), strict=True):
            if isinstance(outcome, Inventory):
                inventories.append(outcome)
            else:
                unavailable += [UnavailablePool(pool, str(outcome)) for pool in self._pools_of(member)]
        merged = self._merged(inventories, unavailable)
        self._shown = {pool.name for pool in merged.pools}
        return merged

    async def _look(self, member: Backend) -> Inventory:
        try:
            return await member.inspect()
        except VolumeError as error:
            if not unresponsive(error):
                raise
            reason = str(error)
            return Inventory(
                unavailable=[UnavailablePool(pool, reason, unresponsive=True) for pool in self._pools_of(member)]
            )

    async def back_up(self) -> None:
        for member in self._distinct:
            await member.back_up()

    async def create(self, spec: VolumeSpec) -> Volume:
        return await self._maker(spec).create(spec)

    async def clone_sharing_blocks(self, spec: VolumeSpec, source: Volume) -> Volume | None:
        """Folders say themselves that they can't be copied, also when the copy would be on a device."""
        maker, holder = self._maker(spec), self._holder(source.pool)
        return await (maker if holder.on_device(source.pool) else holder).clone_sharing_blocks(spec, source)

    def snapshot_storage(self, pool: str) -> SnapshotStorage | None:
        return self._holder(pool).snapshot_storage(pool)

    async def reread(self, volume: Volume) -> Volume:
        return await self._holder(volume.pool).reread(volume)

    async def rewrite(self, volume: Volume, record: Record) -> Volume:
        return await self._holder(volume.pool).rewrite(volume, record)

    def device(self, volume: Volume) -> AbstractAsyncContextManager[Path]:
        return self._holder(volume.pool).device(volume)

    def opened(self, volume: Volume, likely: int = 0) -> AbstractContextManager[Path]:
        return self._holder(volume.pool).opened(volume, likely)

    async def extend(self, volume: Volume, size: int) -> Volume:
        return await self._holder(volume.pool).extend(volume, size)

    async def stale_data(self, volume: Volume) -> StaleData:
        return await self._holder(volume.pool).stale_data(volume)

    async def extend_pool(self, pool: Pool, more: PoolExtension) -> None:
        await self._holder(pool.name).extend_pool(pool, more)

    async def remove(self, volume: Volume) -> None:
        await self._holder(volume.pool).remove(volume)

    def _maker(self, spec: VolumeSpec) -> Backend:
        if member := self._members.get(spec.parameters.device_class):
            return member
        raise PoolMissing(
            f"volume {spec.pv} needs device class {spec.parameters.device_class}, which is not configured on "
            f"this node, where there are {' '.join(sorted(self._classes))}: ask its administrator to add it to "
            "DEVICE_CLASSES_FILE"
        )

    def _holder(self, pool: str) -> Backend:
        """Of the groups and thin pools that StorageClasses name themselves, only LVM knows."""
        if member := self._by_pool.get(pool, self._lvm):
            return member
        raise PoolMissing(f"{pool} is none of this node's pools (any more): see its DEVICE_CLASSES_FILE")

    def _pools_of(self, member: Backend) -> list[str]:
        return [pool for pool, each in self._by_pool.items() if each is member]

    def _merged(self, inventories: list[Inventory], unavailable: list[UnavailablePool]) -> Inventory:
        volumes = [volume for each in inventories for volume in each.volumes]
        count = Counter(volume.pv for volume in volumes)
        damaged = [
            DamagedVolume(volume.pv, volume.pool, "another device class has a volume with the same record")
            for volume in volumes
            if count[volume.pv] > 1
        ]
        return Inventory(
            [volume for volume in volumes if count[volume.pv] == 1],
            joined(
                [replace(pool, reserve=reserve_of(self._classes, pool.name)) for e in inventories for pool in e.pools]
            ),
            [foreign for each in inventories for foreign in each.foreign],
            [*(one for each in inventories for one in each.damaged), *damaged],
            [snapshot for each in inventories for snapshot in each.snapshots],
            [*unavailable, *(one for each in inventories for one in each.unavailable)],
        )


def _each(outcomes: Iterable[T | BaseException]) -> list[T | VolumeError]:
    """What each member answers, or why it fails. Raises only what no member can do."""
    answers: list[T | VolumeError] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, VolumeError):
            raise outcome
        answers.append(outcome)
    failures = [answer for answer in answers if isinstance(answer, VolumeError)]
    for failure in failures:
        if len(failures) == len(answers):
            raise failure
        log.warning("a part of this node's storage can't be used: %s", failure)
    return answers


def joined(pools: Collection[Pool]) -> list[Pool]:
    """Pools of files and folders know of the others on their filesystem, whose free space is there once.

    What is written in images is their own room. What is written in folders can't be distinguished from what others
    write, so beside images it counts twice, as written and as promised: rather too little is offered than what is not
    there."""
    together: dict[str, list[Pool]] = {}
    for pool in pools:
        if pool.filesystem:
            together.setdefault(pool.filesystem.identity, []).append(pool)
    shared = {identity: _whole(there) for identity, there in together.items() if len(there) > 1}
    return [
        replace(pool, filesystem=shared.get(pool.filesystem.identity)) if pool.filesystem else pool for pool in pools
    ]


def _whole(pools: Collection[Pool]) -> SharedFilesystem:
    parts = [pool.filesystem for pool in pools if pool.filesystem]
    images = [part for part in parts if part.written is not None]
    written = sum(part.written or 0 for part in images)
    unwritten = min((part.allocatable - (part.written or 0) for part in images), default=None)
    return SharedFilesystem(
        parts[0].identity,
        tuple(sorted(pool.name for pool in pools)),
        allocatable=min(part.allocatable for part in parts) if unwritten is None else unwritten + written,
        ours=sum(part.ours for part in parts),
        reserve=sum(pool.reserve for pool in pools),
        written=written if images else None,
    )
