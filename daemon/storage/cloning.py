"""Volumes that begin as a copy of another one.

The copy is in state FORMATTING or COPYING until all of it is done, so what a crash cuts off is never mounted, and made
anew from the beginning. What is copied must not change meanwhile. So, in this order:

1. In a thin pool, where volumes can share blocks, a copy takes a moment, and its source may be in use.
2. Where there are snapshots, and room for one, each block is copied from one. Pods may use the source, which is the
   copy's turn only for the moment in which the snapshot is made.
3. Without, each block is copied while nobody may change the source, in its turn: it is not mounted, or its filesystem
   is frozen, which is done to small ones only, because the pods that write to it wait.
4. What is large and in use has to wait until its pods are stopped, or room is made.

What a killed daemon left frozen, the next one thaws when it starts; what it left of snapshots, it lets go.
"""

import asyncio
import contextlib
import functools
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

from contract import quantity
from contract.filesystems import CLONABLE, RAW, is_clonable
from daemon.errors import NoSnapshot, NotCloned
from daemon.storage.backend import Backend
from daemon.storage.blockdevices import BlockDevices
from daemon.storage.disks import Disks, disk_of, place_of
from daemon.storage.filesystems import Filesystems
from daemon.storage.freespace import FreeSpace
from daemon.storage.inventory import Volume
from daemon.storage.inventorycache import InventoryCache
from daemon.storage.keyedqueue import VolumeQueue
from daemon.storage.record import VolumeSpec, VolumeState
from daemon.storage.staging import Staging
from daemon.storage.temporarysnapshots import TemporarySnapshots
from host import blockdevice, devicecopy, filesystem, freezing
from host.diskthreads import Hung
from host.mounttable import Mount

log = logging.getLogger(__name__)

FROZEN_SIZE = 1 << 30
"""Bytes of the largest volume that is copied while pods use it: some seconds on any disk."""
_FROZEN_SECONDS = 20.0
"""No pod waits longer, however slow the disks are."""
_SLOWEST = 10 << 20
"""Bytes a second. Where it takes longer, the disk does not work."""
_FREEZING_SECONDS = 5.0
"""What freezing and thawing may take beyond that before the disk counts as hung."""


class VolumeCloner:
    """`may_clone` says whether the PersistentVolume of the first name may be a copy of the second one. Methods raise
    VolumeError, host.filesystem.DamagedFilesystem, CommandError, OSError and host.diskthreads.Hung."""

    def __init__(
        self,
        backend: Backend,
        cache: InventoryCache,
        staging: Staging,
        free_space: FreeSpace,
        snapshots: TemporarySnapshots,
        filesystems: Filesystems,
        queue: VolumeQueue,
        may_clone: Callable[[str, str], bool],
        disks: Disks,
        block_devices: BlockDevices,
    ) -> None:
        self._backend = backend
        self._cache = cache
        self._staging = staging
        self._free_space = free_space
        self._snapshots = snapshots
        self._filesystems = filesystems
        self._queue = queue
        self._may_clone = may_clone
        self._disks = disks
        self._block_devices = block_devices
        self._thawed = False

    async def thaw(self) -> None:
        """No volume is frozen any more. Only copying freezes them, and no copying outlives its daemon. Does it once:
        what is found frozen later, this daemon is copying. One whose disk hangs is thawed when it is back."""
        if self._thawed:
            return
        self._thawed = True
        await asyncio.gather(*map(self._thaw, await asyncio.to_thread(self._staging.folders)))

    async def _thaw(self, path: Path) -> None:
        try:
            thawed = await self._disks.at(path.name, functools.partial(freezing.thaw, path), deadline=_FREEZING_SECONDS)
        except (OSError, Hung) as error:
            log.warning("can't see whether %s is frozen: %s", path, error, extra={"volume": path.name})
            return
        if thawed:
            log.warning("%s was frozen and is thawed", path, extra={"volume": path.name})

    def source(self, spec: VolumeSpec) -> Volume:
        """The volume to be copied. Raises NotCloned."""
        assert spec.original
        name = spec.original.pv
        if name == spec.pv or not self._may_clone(spec.pv, name):
            raise NotCloned(
                f"volume {spec.pv} is to be a copy of {name}, which is not (any more) on this node for a claim of "
                "the same namespace: delete the claim and make it anew, from a source that is there"
            )
        volume = self._cache.inventory.volume(name)
        if volume is None or volume.record.uid != spec.original.uid or volume.record.state is not VolumeState.READY:
            raise NotCloned(
                f"volume {name}, which {spec.pv} is to be a copy of, is not on this node (any more): bring it back, "
                "or delete the claim and make it anew from another source"
            )
        if volume.record.filesystem != spec.parameters.filesystem or not is_clonable(volume.record.filesystem):
            raise NotCloned(
                f"volume {spec.pv} with {spec.parameters.filesystem} can't be a copy of {name} with "
                f"{volume.record.filesystem}: copies are made of {' and '.join(CLONABLE)} and have the same"
            )
        if volume.record.encryption != spec.parameters.encryption:
            raise NotCloned(
                f"volume {spec.pv} and {name}, which it is to be a copy of, must both be encrypted or neither: a "
                "copy has the header of its source, and its key"
            )
        return volume

    async def _sound_source(self, spec: VolumeSpec) -> Volume:
        """The same. The copy of one that is half grown would be so too, and not know it."""
        await self._filesystems.mend(self.source(spec))
        return self.source(spec)

    async def clone(self, spec: VolumeSpec, partial: Volume | None) -> Volume:
        """A volume, not ready yet, that holds all that its source holds. It waits for the turn of its source, without a
        share of the disks, for which the source may be waiting in its turn. No circle of copies can wait for each
        other: a source is ready, and what is ready waits for nobody.

        `partial`: what an attempt that was cut off has left. If that is data, it is overwritten where it is: given back
        as it is, its space would show it to others."""
        source = self.source(spec)
        # An attempt that was cut off may have mounted it.
        await self._disks.at(spec.pv, functools.partial(self._staging.release, spec.pv))
        if partial is None or partial.record.state is not VolumeState.COPYING:
            shared = await self._queue(
                "clone", source.pv, ("share", spec), lambda: self._clone_sharing_blocks(spec, partial)
            )
            if shared is not None:
                return shared
        async with self._disks.copy(partial.pool if partial else self._backend.pool_of(spec.parameters)):
            volume, snapshot = await self._queue("clone", source.pv, spec, lambda: self._start_copy(spec, partial))
            if snapshot is not None:
                await self._copy_from_snapshot(snapshot, volume)
        return volume

    async def _clone_sharing_blocks(self, spec: VolumeSpec, partial: Volume | None) -> Volume | None:
        """The volume, if it can share the blocks of its source. As all that begins a copy, in its source's turn."""
        source = await self._sound_source(spec)
        spec = _holding(source, spec)
        pool = self._backend.pool_of(spec.parameters)
        async with self._disks.load(pool), self._free_space.reserve(spec, partial.size if partial else 0) as taken:
            with self._cache.changing(spec.pv):
                volume = await self._backend.clone_sharing_blocks(spec, source)
                if volume is not None:
                    self._cache.put(volume, taken)
        return volume

    async def _start_copy(self, spec: VolumeSpec, partial: Volume | None) -> tuple[Volume, Volume | None]:
        """The volume, and the snapshot to be copied to it. Without one, it is copied."""
        source = await self._sound_source(spec)
        spec = _holding(source, spec)
        if partial is not None and partial.record.state is VolumeState.COPYING:
            await self._check_sectors(source, partial)
        staged = await asyncio.to_thread(self._staging.mounted, source.pv)
        if source.record.filesystem == RAW:
            await self._block_devices.flush(source)
        elif staged:
            await self._filesystems.check_staged(source)
            await self._disks.at(source.pv, functools.partial(freezing.flush, Path(staged.path)))
        async with self._free_space.reserve(spec, partial.size if partial else 0) as taken:
            try:
                if source.record.content:
                    raise NoSnapshot("it is one, to which nobody writes")
                snapshot = await self._snapshots.create(source)
            except NoSnapshot as why:
                if staged and (source.size > FROZEN_SIZE or source.record.filesystem == RAW):
                    made = "the snapshot" if spec.content else f"volume {spec.pv}"
                    raise NotCloned(
                        f"volume {source.pv} is in use, and {_not_frozen(source)} while it is copied; there can be no "
                        f"copy-on-write snapshot of it, because {why}: stop the pods that use it until {made} is made, "
                        "which begins as soon as they are gone"
                    ) from why
                volume = await self._target(spec, partial, taken)
                await self._check_sectors(source, volume)
            else:
                try:
                    volume = await self._target(spec, partial, taken)
                    await self._check_sectors(source, volume)
                    return volume, snapshot
                except BaseException:
                    self._snapshots.release(snapshot)
                    raise
        await self._copy_frozen(source, volume, staged)
        return volume, None

    async def _check_sectors(self, source: Volume, volume: Volume) -> None:
        """Raises NotCloned when the copy would be of no use, because its disk has other sectors. What a block device
        holds, and what is encrypted, can't be looked at."""
        async with self._backend.device(source) as origin, self._backend.device(volume) as target:
            before = await self._disks.at(source.pv, functools.partial(blockdevice.sector_size, origin))
            after = await self._disks.at(volume.pv, functools.partial(blockdevice.sector_size, target))
            if before == after:
                return
            kind, why = source.record.filesystem, ""
            if kind == RAW:
                why = "a partition table counts in sectors"
            elif source.record.encryption:
                why = "its filesystem may need smaller ones" if after > before else ""
            else:
                check = functools.partial(filesystem.check_sectors, kind, origin, after)
                try:
                    await self._disks.at(source.pv, check)
                except filesystem.SectorsTooLarge as error:
                    why = str(error)
        if why:
            raise NotCloned(
                f"volume {volume.pv} lies on a disk with sectors of {after} bytes and can't be a copy of {source.pv} "
                f"on one with {before}: {why}; delete the claim and make it anew with a class whose disks have sectors "
                f"of {before} bytes, or make an empty volume and copy its files"
            )

    async def _copy_frozen(self, source: Volume, volume: Volume, staged: Mount | None) -> None:
        async with self._backend.device(source) as origin, self._backend.device(volume) as target:
            if staged:
                async with self._frozen(Path(staged.path), source, _FROZEN_SECONDS):
                    await _copy(origin, target, volume, _FROZEN_SECONDS)
            elif await self._disks.at(source.pv, functools.partial(blockdevice.is_claimed, origin)):
                raise NotCloned(f"volume {source.pv} is in use by something that is no pod of this node: stop that")
            else:
                await _copy(origin, target, volume, _deadline(source.size))

    @contextlib.asynccontextmanager
    async def _frozen(self, path: Path, source: Volume, limit: float) -> AsyncIterator[None]:
        """For `limit` seconds at most, whatever is done inside and however long its disk hangs: the thread that froze
        it thaws it, and waits for nothing else. Raises NotCloned when that took too long."""
        frozen, release = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def report_frozen() -> None:
            loop.call_soon_threadsafe(frozen.set)

        hold = functools.partial(freezing.hold, path, limit, report_frozen, release)
        holding = asyncio.ensure_future(self._disks.at(source.pv, hold, deadline=max(limit, 0) + _FREEZING_SECONDS))
        waiting = asyncio.ensure_future(frozen.wait())
        late: Exception | None = None
        try:
            await asyncio.wait({holding, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if frozen.is_set():
                yield
            # What can't be frozen, or somebody else froze, raises what it did below.
        except (TimeoutError, Hung) as error:
            late = error
        finally:
            waiting.cancel()
            release.set()
            await asyncio.wait({holding})
        in_time = await holding
        if late or not in_time:
            raise NotCloned(
                f"volume {source.pv} is in use, and the disk is too slow to hold it still while it is copied "
                f"({late or f'it took longer than {limit:g} s'}): stop the pods that use it until its copy is made"
            ) from late

    async def _target(self, spec: VolumeSpec, partial: Volume | None, taken: int) -> Volume:
        """The volume in state COPYING, whatever was begun."""
        async with self._disks.load(partial.pool if partial else self._backend.pool_of(spec.parameters)):
            with self._cache.changing(spec.pv):
                if partial is not None and partial.record.state is VolumeState.COPYING:
                    volume = await self._backend.extend(partial, spec.size)
                else:
                    volume = await self._backend.create(spec)
                    volume = await self._backend.rewrite(volume, spec.record(VolumeState.COPYING))
                if spec.content:  # the snapshot that is copied was made a moment ago
                    volume = await self._backend.rewrite(volume, replace(volume.record, taken=int(time.time())))
                self._cache.put(volume, taken)
        return volume

    async def _copy_from_snapshot(self, snapshot: Volume, volume: Volume) -> None:
        """Raises NotCloned when the snapshot has overflowed. It is asked also when nothing failed: what was being read
        at that moment may be newer than the snapshot."""
        failure = None
        try:
            async with self._backend.device(snapshot) as origin, self._backend.device(volume) as target:
                try:
                    await _copy(origin, target, volume, _deadline(volume.size))
                except OSError as error:
                    failure = error
            if await self._snapshots.readable(snapshot):
                if failure:
                    raise failure
                return
            raise NotCloned(
                f"so much was written to volume {snapshot.record.snapshot_of} while it was copied to {volume.pv} that "
                f"the {quantity.humane(snapshot.size)} of {snapshot.pool} which were left on this node for a snapshot "
                "of it were not enough: this is tried again; stop the pods that write to it until its copy is made, or "
                f"ask the node's administrator for more space in {snapshot.pool}"
            ) from failure
        finally:
            self._snapshots.release(snapshot)

    async def renew_uuid(self, volume: Volume) -> None:
        """The copy's filesystem is no longer the same as its source's to those who look for its UUID. It is small
        enough for the volume, and grows with its first mount."""
        folder = await self._disks.at(volume.pv, functools.partial(self._staging.make_folder, volume.pv))
        async with self._backend.device(volume) as device:
            await filesystem.renew_uuid(volume.record.filesystem, device, folder)


def _holding(source: Volume, spec: VolumeSpec) -> VolumeSpec:
    """Of a copy that takes all of its source. Only in the turn of the source: before, it may still grow."""
    return replace(spec, size=max(spec.size, source.size))


def _not_frozen(volume: Volume) -> str:
    if volume.record.filesystem == RAW:
        return "a block device can't be held still"
    return f"with {quantity.humane(volume.size)} too large to be held still"


async def _copy(source: Path, target: Path, volume: Volume, deadline: float) -> None:
    await devicecopy.copy(source, target, deadline=deadline, place=place_of(volume.pv), disk=disk_of(volume.pool))


def _deadline(size: int) -> float:
    return 60 + size / _SLOWEST
