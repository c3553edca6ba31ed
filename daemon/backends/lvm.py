"""Volumes as logical volumes: thick ones of a volume group, or thin ones of a thin pool in it.

A logical volume is named like its PersistentVolume and carries its record as tags. It is made with them in one
lvcreate, so at no moment there is a volume of ours without our mark. Pools are called "<group>" and
"<group>/<thin pool>".
"""

import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import lvm
from contract.capacity import footprint
from contract.parameters import RAID1, VolumeParameters
from daemon.backends import lvmgroups
from daemon.backends.lvmerrors import errors_of, volume_errors
from daemon.backends.lvminventory import (
    POOL_MARK,
    inventory,
    pools_to_check,
    renamed_pools,
    suspended,
    with_renamed_pools,
    without_unresponsive,
)
from daemon.backends.lvmrecords import LvmRecords
from daemon.backends.lvmsnapshots import LvmSnapshots
from daemon.backends.volumegroups import GroupMaker
from daemon.errors import (
    BackendFailed,
    Damaged,
    Foreign,
    InUse,
    NoSpace,
    PoolBlocked,
    PoolMissing,
    VolumeError,
    VolumeNotFound,
)
from daemon.storage.backend import NeedsProgram, StaleData, no_thin_pools
from daemon.storage.deviceclasses import DeviceClass
from daemon.storage.inventory import Inventory, Pool, PoolName, Volume
from daemon.storage.record import Record, VolumeSpec, VolumeState
from daemon.storage.thinpools import PoolExtension
from host import presence
from lvm import Lvm

log = logging.getLogger(__name__)

_POOL_SHARE_PERCENT = 90
"""Of a group's free extents, for the data of a thin pool that we make. The rest holds its metadata and the spare of it,
and lets an administrator enlarge metadata that fills up, or have it repaired: a pool without that room is lost."""


class LvmBackend:
    """See daemon.storage.backend.Backend. `classes` are the device classes that are kept in volume groups: what they
    say holds for StorageClasses that say nothing else. The thin pool of a thin one is made if it is missing, with
    nearly all that is free in its group, and the group of one that selects disks by `groups`."""

    def __init__(self, tools: Lvm, classes: Mapping[str, DeviceClass], groups: GroupMaker | None = None) -> None:
        self._lvm = tools
        self._group_maker = groups
        self._snapshots = LvmSnapshots(tools)
        self._records = LvmRecords(tools)
        self._classes = classes
        self._groups = {device_class.group for device_class in classes.values()}
        self._thin_pools = {PoolName.of(each.own_thin_pool) for each in classes.values() if each.thin}
        self._extent_sizes: dict[str, int] = {}
        """By group, as last reported: with them the size of a new volume is known without asking for it."""
        self._growth_refusals: dict[str, str] = {}
        """Likewise. Growth onto other sectors can be taken back (pvmove), so it is not asked for anew each time."""
        self._seqnos: dict[str, int] = {}
        """Of the groups in which ours are, as last seen. With them one knows whose metadata have changed."""
        self._backed_up: dict[str, int] = {}

    def on_device(self, pool: str) -> bool:
        return True

    def pool_of(self, parameters: VolumeParameters) -> str:
        return str(self._pool_name(parameters))

    def _pool_name(self, parameters: VolumeParameters) -> PoolName:
        here = self._classes[parameters.device_class]
        group = parameters.volume_group or here.group
        thin = parameters.thin
        if thin is None:
            thin = here.thin or bool(parameters.thin_pool)
        if not thin or parameters.needs_thick:
            return PoolName(group)
        return PoolName(group, parameters.thin_pool or here.thin_pool)

    async def establish(self) -> None:
        if self._group_maker:
            await self._group_maker.attach_files()
        await self._mend()
        if self._group_maker:
            present = {group.name for group in (await self._report()).groups}
            await self._group_maker.ensure(dict.fromkeys(self._classes.values()), present)
        for device_class in dict.fromkeys(self._classes.values()):
            if device_class.thin:
                with volume_errors(f"thin pool {device_class.thin_pool}", device_class.group):
                    await self._establish_pool(device_class.group, device_class.thin_pool)

    async def _mend(self) -> None:
        """Takes back what LVM commands left that were killed, as they are with their container: what they suspended is
        still so, and who writes to it waits for ever. And has pools checked whose disk has failed."""
        for snapshot in self._seen(await self._report()).snapshots:
            if snapshot.record.state is VolumeState.COPYING:
                await self._snapshots.mend(snapshot)
        await self._resume()
        state = await self._report()
        for pool, members in pools_to_check(state, inventory(state, self._groups)):
            try:
                await self._lvm.check_pool(pool.group, pool.name, members)
                log.warning("thin pool %s/%s had failed, was checked and is sound", pool.group, pool.name)
            except lvm.LvmError as error:
                # No reason to stop: what is published of it says so, and what to do.
                log.warning("thin pool %s/%s has failed, and is not checked: %s", pool.group, pool.name, error)

    async def _resume(self) -> None:
        state = await self._report()
        for volume in suspended(state, inventory(state, self._groups)):
            log.warning(
                "%s/%s was left suspended by a command that was killed: it is resumed", volume.group, volume.name
            )
            with volume_errors(f"volume {volume.name}", volume.group):
                await self._lvm.resume(volume)

    @contextlib.asynccontextmanager
    async def _resuming(self) -> AsyncIterator[None]:
        """Around commands that suspend: what one leaves so that is killed, at its deadline or by a kernel that is short
        of memory, goes on at once. Who writes to it would wait for the next start of the daemon."""
        try:
            yield
        except lvm.Interrupted:
            try:
                await self._resume()
            except VolumeError as error:
                log.warning("what a command left suspended that was killed may still be: %s", error)
            raise

    async def _establish_pool(self, group_name: str, pool: str) -> None:
        state = await self._report()
        group = state.group(group_name)
        present = state.volume(group_name, pool)
        if group is None or (present and present.is_thin_pool):
            return
        if (
            lvmgroups.unusable(group)
            or lvmgroups.refusal(state, group)
            or PoolName(group_name, pool) in renamed_pools(state, self._thin_pools)
        ):
            return  # what is published says why
        if present and POOL_MARK in present.tags:
            await self._lvm.remove(group_name, pool, having={POOL_MARK})
            group, present = (await self._report()).group(group_name) or group, None
        extents = lvmgroups.usable_free(state, group) // group.extent_size * _POOL_SHARE_PERCENT // 100
        if present or not extents:
            # No reason to stop: the node serves the volumes it has, and thick ones.
            why = "another volume has its name" if present else "nothing is free"
            log.warning("thin pool %s/%s can't be made: %s", group_name, pool, why)
            return
        await self._lvm.create_pool(group_name, pool, extents * group.extent_size, {POOL_MARK})

    async def inspect(self) -> Inventory:
        """Nothing is mended by it, which might be what a running command is about to do."""
        return self._seen(await self._report(even_unlocked=True))

    def _seen(self, state: lvm.Report) -> Inventory:
        seen = with_renamed_pools(inventory(state, self._groups), renamed_pools(state, self._thin_pools))
        seen = without_unresponsive(seen, self._lvm.unresponsive.of_groups(self._groups))
        ours = {PoolName.of(pool.name).group for pool in seen.pools}
        self._seqnos = {
            group.name: group.seqno for group in state.groups if group.name in ours and not group.missing_devices
        }
        return seen

    async def back_up(self) -> None:
        for group, seqno in self._seqnos.items():
            if self._backed_up.get(group) == seqno:
                continue
            try:
                await self._lvm.back_up(group)
            except lvm.LvmError as error:
                log.warning("there is no backup of the metadata of group %s as they are now: %s", group, error)
            else:
                self._backed_up[group] = seqno

    async def _report(self, *, even_unlocked: bool = False) -> lvm.Report:
        with volume_errors("the node", " ".join(sorted(self._groups))):
            state = await self._lvm.report(even_unlocked=even_unlocked)
        self._extent_sizes = {group.name: group.extent_size for group in state.groups}
        self._growth_refusals = {group.name: lvmgroups.growth_refusal(state, group) for group in state.groups}
        return state

    async def create(self, spec: VolumeSpec) -> Volume:
        pool_name = self._pool_name(spec.parameters)
        with volume_errors(f"volume {spec.pv}", str(pool_name)):
            record = spec.record(VolumeState.FORMATTING)
            try:
                async with self._resuming():
                    try:
                        await self._create(pool_name, spec, record)
                    except lvm.AlreadyExists:
                        await self._clear_away(pool_name, spec)
                        await self._create(pool_name, spec, record)
            except lvm.NoSpace as error:
                raise await self._no_space(spec.pv, str(pool_name), spec.size, _legs(spec.parameters)) from error
            except lvm.LvmNotFound as error:
                if why := renamed_pools(await self._report(), self._thin_pools).get(pool_name):
                    raise PoolMissing(f"volume {spec.pv} can't be made: {why}") from error
                raise
        extent = self._extent_sizes.get(pool_name.group)
        if extent is None:
            return await self._existing(spec.pv, spec.uid)
        # As lvcreate rounds: whole extents, and as many of them on each stripe.
        chunk, header = extent * spec.parameters.stripes, spec.parameters.header_size
        size = -(-(spec.size + header) // chunk) * chunk - header
        return Volume(record, size, str(pool_name), overhead=footprint(size, spec.parameters, extent) - size)

    async def clone_sharing_blocks(self, spec: VolumeSpec, source: Volume) -> Volume | None:
        pool_name = self._pool_name(spec.parameters)
        if not pool_name.thin_pool or source.pool != str(pool_name):
            return None
        if await self.stale_data(source) is not StaleData.CLEAN:
            return None
        tags = spec.record(VolumeState.FORMATTING).to_tags()
        with volume_errors(f"volume {spec.pv}", str(pool_name)):
            async with self._resuming():
                try:
                    await self._lvm.create_thin_snapshot(pool_name.group, source.pv, spec.pv, tags)
                except lvm.AlreadyExists:
                    await self._clear_away(pool_name, spec)
                    await self._lvm.create_thin_snapshot(pool_name.group, source.pv, spec.pv, tags)
        return await self.extend(await self._existing(spec.pv, spec.uid), spec.size)

    def snapshot_storage(self, pool: str) -> LvmSnapshots:
        return self._snapshots

    async def _create(self, pool_name: PoolName, spec: VolumeSpec, record: Record) -> None:
        tags, size = record.to_tags(), spec.size + spec.parameters.header_size
        if pool_name.thin_pool:
            await self._lvm.create_thin_volume(pool_name.group, pool_name.thin_pool, spec.pv, size, tags)
        else:
            await self._lvm.create_volume(
                pool_name.group,
                spec.pv,
                size,
                tags,
                stripes=spec.parameters.stripes,
                raid=spec.parameters.raid,
            )

    async def _clear_away(self, pool_name: PoolName, spec: VolumeSpec) -> None:
        """Removes a volume whose making was cut off: an lvcreate that was killed may leave one that can't be used, a
        thin volume that its pool does not know or a mirror of which one leg is missing. Raises Foreign, Damaged."""
        seen = await self.inspect()
        _refuse_damaged(seen, spec.pv)
        volume = seen.volume(spec.pv)
        if volume is None or volume.record.uid != spec.uid or volume.record.state is not VolumeState.FORMATTING:
            raise Foreign(
                f"the volume group {pool_name.group} of this node has another volume named {spec.pv}: "
                "ask the node's administrator whether it may go"
            )
        group = PoolName.of(volume.pool).group
        await self._lvm.remove(group, volume.pv, having=volume.record.deciding_tags())

    async def reread(self, volume: Volume) -> Volume:
        state = await self._report()
        seen = inventory(state, self._groups)
        _refuse_damaged(seen, volume.pv)
        if seen.pool(volume.pool) is None:
            raise PoolMissing(
                f"{volume.pool}, where volume {volume.pv} is, can't be seen on this node "
                f"({seen.why_unavailable(volume.pool)}), or if it is lost for good, take the finalizer off the "
                "PersistentVolume"
            )
        present = seen.volume(volume.pv) or seen.snapshot(volume.pv)
        if present is None or present.pool != volume.pool:
            raise VolumeNotFound(f"volume {volume.pv} is not on this node (any more)")
        _refuse_snapshots(state, present)
        return present

    async def rewrite(self, volume: Volume, record: Record) -> Volume:
        return await self._records.rewrite(volume, record)

    @contextlib.asynccontextmanager
    async def device(self, volume: Volume) -> AsyncIterator[Path]:
        group, path = PoolName.of(volume.pool).group, _path(volume)
        if not _is_there(path):  # after a reboot, unless the node activates its groups itself
            with errors_of(volume):
                await self._lvm.activate(group, volume.pv)
            if not _is_there(path):
                raise BackendFailed(
                    f"volume {volume.pv} has no device {path}: the daemon's container must share the node's /dev, and "
                    "`vgmknodes` there makes links that are missing"
                )
        yield path

    @contextlib.contextmanager
    def opened(self, volume: Volume, likely: int = 0) -> Iterator[Path]:
        path = _path(volume)
        if not _is_there(path):
            raise NeedsProgram
        yield path

    async def extend(self, volume: Volume, size: int) -> Volume:
        if size <= volume.size:
            return volume
        if not PoolName.of(volume.pool).thin_pool:
            self._check_growth(PoolName.of(volume.pool).group)
        with errors_of(volume):
            try:
                async with self._resuming():
                    await self._lvm.extend(PoolName.of(volume.pool).group, volume.pv, size + volume.record.header_size)
            except lvm.NoSpace as error:
                raise await self._no_space(volume.pv, volume.pool, size - volume.size) from error
        return await self._existing(volume.pv, volume.record.uid)

    async def stale_data(self, volume: Volume) -> StaleData:
        """A thin pool is asked each time: whether it zeroes new blocks can be switched (lvchange --zero)."""
        pool_name = PoolName.of(volume.pool)
        if not pool_name.thin_pool:
            return StaleData.RAW
        pool = (await self._report()).volume(pool_name.group, pool_name.thin_pool)
        return StaleData.CLEAN if pool is not None and pool.zeroes_new_blocks else StaleData.THIN_RAW

    async def extend_pool(self, pool: Pool, more: PoolExtension) -> None:
        pool_name = PoolName.of(pool.name)
        if not pool_name.thin_pool:
            raise no_thin_pools(pool)
        self._check_growth(pool_name.group)
        with volume_errors(f"thin pool {pool.name}", pool_name.group):
            async with self._resuming():
                if more.metadata:
                    await self._lvm.extend_metadata(pool_name.group, pool_name.thin_pool, more.metadata)
                if more.data:
                    await self._lvm.extend(pool_name.group, pool_name.thin_pool, pool.size + more.data)

    def _check_growth(self, group: str) -> None:
        """Raises PoolBlocked where what grows could not be mounted any more."""
        if why := self._growth_refusals.get(group):
            raise PoolBlocked(why)

    async def remove(self, volume: Volume) -> None:
        # LVM compares the tags under the lock of the group: what goes is ours at that moment.
        group = PoolName.of(volume.pool).group
        with contextlib.suppress(VolumeNotFound), errors_of(volume):
            async with self._resuming():
                await self._lvm.remove(group, volume.pv, having=volume.record.deciding_tags())

    async def _no_space(self, pv: str, name: str, needed: int, legs: int = 1) -> NoSpace:
        pool = (await self.inspect()).pool(name)
        where = f"{name} (on {legs} of its devices alike)" if legs > 1 else name
        return NoSpace(pv, where, needed, pool.free if pool else 0)

    async def _existing(self, pv: str, uid: str) -> Volume:
        seen = await self.inspect()
        _refuse_damaged(seen, pv)
        volume = seen.volume(pv)
        if volume is None or volume.record.uid != uid:
            raise VolumeNotFound(f"volume {pv} is not on this node (any more)")
        return volume


def _legs(parameters: VolumeParameters) -> int:
    """Devices that must each have a share of the room: the group as a whole may have plenty, and none there."""
    return 2 if parameters.raid == RAID1 else parameters.stripes


def _refuse_damaged(seen: Inventory, pv: str) -> None:
    for damaged in seen.damaged:
        if damaged.name == pv:
            raise Damaged(
                f"the record of volume {pv} on this node is damaged: {damaged.reason}; "
                f"ask the node's administrator to look at it in {damaged.pool}"
            )


def _refuse_snapshots(state: lvm.Report, volume: Volume) -> None:
    """What an administrator keeps of it would overflow when it is erased, and go when it is removed."""
    group = PoolName.of(volume.pool).group
    for snapshot in state.thick_snapshots(group, volume.pv):
        raise InUse(
            f"volume {volume.pv} has a snapshot {snapshot.name}, which would go with it: have the node's "
            f"administrator remove that first (lvremove {group}/{snapshot.name})"
        )


def _path(volume: Volume) -> Path:
    return Path("/dev", PoolName.of(volume.pool).group, volume.pv)


def _is_there(device: Path) -> bool:
    return presence.exists(device)
