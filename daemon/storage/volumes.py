"""The life of one node's volumes: made, formatted, mounted, grown, removed. No Kubernetes in here.

Three rules keep data safe. A volume is formatted only while its own record says that it never held anything; whatever
is found on a ready one, it is mounted or refused, never formatted. A volume is touched only when its record names the
very PersistentVolume, uid and all, that is asked for. And nothing is removed that is mounted anywhere.

Each operation may be cut off at any point and asked for again: the record is rewritten only when the step before it
is done, and what is mounted is asked of the kernel. What is asked for runs in a task of its own
(daemon.storage.keyedqueue), so a caller that gives up breaks nothing off.
"""

import contextlib
import logging
import time
from asyncio import CancelledError, Task, create_task, to_thread
from collections.abc import Callable, Coroutine, Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from contract.filesystems import RAW
from daemon.errors import BackendFailed, Damaged, Foreign, VolumeError, VolumeNotFound
from daemon.storage.backend import Backend
from daemon.storage.blockdevices import BlockDevices
from daemon.storage.cloning import VolumeCloner
from daemon.storage.creation import VolumeCreator
from daemon.storage.deletion import VolumeDeleter
from daemon.storage.deletionguard import DeletionGuard, OwnerLookup, RemovalReason
from daemon.storage.disks import Disks
from daemon.storage.encryption import EncryptedDevices, mapping_name
from daemon.storage.erasing import Eraser, Listener, Silent, Throttle
from daemon.storage.filesystems import Filesystems
from daemon.storage.freespace import FreeSpace, Reservation
from daemon.storage.inventory import Inventory, Volume
from daemon.storage.inventorycache import InventoryCache
from daemon.storage.keyedqueue import KeyedQueue
from daemon.storage.mounting import MountResult, VolumeMounter
from daemon.storage.record import DamagedRecord, Record, VolumeSpec, VolumeState
from daemon.storage.staging import Staging, TargetPath
from daemon.storage.temporarysnapshots import TemporarySnapshots
from daemon.storage.thinpools import PoolExtension
from host import filesystem, luks
from host.command import CommandError
from host.diskthreads import DiskThreads, Hung, Unresponsive, threads, unresponsive
from host.luks import Passphrase
from host.statvfs import FilesystemUsage

log = logging.getLogger(__name__)

T = TypeVar("T")

Observer = Callable[[str, str, float], None]
"""Called for each operation that ended: its kind, "success" or the name of its error, and the seconds it took."""


class Volumes:
    """All operations on the volumes of a node. They raise VolumeError, worded for the pod's owner. `owner_lookup` is
    asked before data is destroyed.

    `reservations` gives what the PersistentVolumes of this node have a right to, `may_clone` says whether a
    PersistentVolume may be a copy of another one, `parallelism` bounds the operations that load the disks of one pool,
    `erase_rate` the bytes a second that erasing takes (0: no bound), and `erasing` hears of it. System calls on disks
    are made in `threads`.
    """

    def __init__(
        self,
        backend: Backend,
        staging: Path,
        owner_lookup: OwnerLookup,
        *,
        reservations: Callable[[], Iterable[Reservation]] = tuple,
        may_clone: Callable[[str, str], bool] = lambda pv, original: True,
        parallelism: int = 8,
        erase_rate: int = 0,
        erasing: Listener = Silent(),  # noqa: B008 - it has no state
        observe: Observer = lambda kind, outcome, seconds: None,
        threads: DiskThreads = threads,
    ) -> None:
        self._backend = backend
        self._owner_lookup = owner_lookup
        self._cache = InventoryCache(backend, lambda: owner_lookup.cluster)
        guard = DeletionGuard(backend, owner_lookup)
        self._staging = Staging(staging)
        self._disks = Disks(threads, parallelism, lambda pv: self.inventory.volume(pv) or self.inventory.snapshot(pv))
        self._devices = EncryptedDevices(backend, self._disks)
        self._filesystems = Filesystems(backend, self._devices, self._cache, self._staging, self._disks)
        self._free_space = FreeSpace(backend, self._cache, reservations)
        self._observe = observe
        self._queue = KeyedQueue()
        self._hangs: dict[str, Unresponsive] = {}
        """Why the last operation on a volume got no answer."""
        self._releasing: dict[str, Task[None]] = {}
        throttle = Throttle(erase_rate)
        self._eraser = Eraser(backend, self._queue, self._cache.rewrite, throttle, erasing, self._disks)
        self._block_devices = BlockDevices(
            backend, self._devices, self._staging, self._disks, self._cache.rewrite, throttle
        )
        self._snapshots = TemporarySnapshots(
            backend, self._cache, self._free_space, self._eraser, guard, self._run_queued, self._cache.rewrite
        )
        self._cloner = VolumeCloner(
            backend,
            self._cache,
            self._staging,
            self._free_space,
            self._snapshots,
            self._filesystems,
            self._run_queued,
            may_clone,
            self._disks,
            self._block_devices,
        )
        self._creator = VolumeCreator(
            backend,
            self._cache,
            self._free_space,
            self._filesystems,
            self._cloner,
            guard,
            self._disks,
            self._block_devices,
            self._devices,
        )
        self._mounter = VolumeMounter(
            backend, self._devices, self._staging, self._filesystems, self._block_devices, self._disks
        )
        self._deleter = VolumeDeleter(
            backend,
            self._cache,
            self._staging,
            self._filesystems,
            self._snapshots,
            self._eraser,
            guard,
            self._disks,
            self._devices,
        )

    @property
    def inventory(self) -> Inventory:
        """What the node's pools hold, as of the last look and our own changes since."""
        return self._cache.inventory

    @property
    def cluster(self) -> str:
        """The one that this node belongs to. Empty: not known yet."""
        return self._owner_lookup.cluster

    async def start(self) -> None:
        """Makes what the backend needs and looks at what is there. A node without a volume group starts as well."""
        try:
            await self._backend.establish()  # before anything that may wait for a volume which a crash left suspended
        finally:
            await self._cloner.thaw()
        await self.refresh()

    async def refresh(self) -> None:
        """Looks again: people and other programs make and remove volumes too."""
        await self._cache.refresh()
        self._snapshots.collect_garbage()
        for pv in await to_thread(self._staging.idle):
            if pv not in self._releasing:
                # Not waited for: its turn may be a long one's.
                self._releasing[pv] = create_task(self._release(pv), name=f"release {pv}")

    async def back_up(self) -> None:
        """Keeps a copy of the storage's own metadata on the node's disk, if they have changed."""
        await self._backend.back_up()

    async def _release(self, pv: str) -> None:
        """Unmounts a volume that nobody uses any more: at its last user's unmount somebody was just reading it, or a
        daemon was killed between staging and the pod's folder. Who has it in hands goes first."""
        try:
            await self._queue.run(pv, ("release", None), partial(self._mounter.release_if_idle, pv))
        finally:
            del self._releasing[pv]

    async def read_only(self) -> frozenset[str]:
        """Names of the mounted volumes that can't be written any more."""
        return await to_thread(self._staging.read_only)

    def unresponsive(self) -> Mapping[str, str]:
        """The volumes whose disks gave no answer when they were last asked, and still give none: what was said."""
        self._hangs = {pv: hang for pv, hang in self._hangs.items() if hang.lasts()}
        return {pv: str(hang) for pv, hang in self._hangs.items()}

    async def close(self) -> None:
        """Waits for what was begun. Nothing is lost when nobody waits: the next daemon goes on with it."""
        await self._snapshots.close()
        await self._eraser.close()
        await self._queue.drain()

    async def prepare(self, spec: VolumeSpec) -> Volume:
        """The volume, made and formatted."""
        spec = self._for_this_cluster(spec)
        return await self._run_queued("prepare", spec.pv, spec, lambda: self._creator.ensure_created(spec))

    async def unlock(self, spec: VolumeSpec, passphrase: Passphrase) -> Volume:
        """The encrypted volume, made if need be, and open until it is released. Raises WrongKey, and Damaged where a
        volume that was made has no header any more."""
        spec = self._for_this_cluster(spec)
        return await self._run_queued("unlock", spec.pv, (spec, passphrase), lambda: self._unlock(spec, passphrase))

    async def mount(
        self, spec: VolumeSpec, target: TargetPath, read_only: bool, *, exclusive: bool = False
    ) -> MountResult:
        """The volume, made if need be, mounted in the folder that bears its name: returns only when it is, and after
        an error nothing of it is left there, unless it was there before. A folder that shows it already is a success.

        One that has not the wanted size is extended. If that can't be, it is mounted as it is, and the result says why:
        data that could be had is not withheld because there should be more room beside it.

        `exclusive`: for one pod at a time. Raises InUse while another has it."""
        spec = self._for_this_cluster(spec)
        request = (spec, target, read_only, exclusive)
        return await self._run_queued(
            "mount", spec.pv, request, lambda: self._mount(spec, target, read_only, exclusive)
        )

    async def unmount(self, target: TargetPath) -> None:
        """Nothing is mounted on the target, whatever lay there; after its last user the volume itself is unmounted.
        Needs neither record nor volume nor folder."""
        await self._run_queued("unmount", target.name, target, lambda: self._unmount(target))

    async def usage(self, pv: str, target: TargetPath) -> FilesystemUsage:
        """How full the filesystem of the volume is, which is mounted on the target. Raises VolumeNotFound when it is
        not."""
        with _volume_errors(pv):
            return await self._disks.at(pv, partial(self._staging.usage, pv, target))

    async def device_number(self, pv: str) -> int:
        """Of the block device of a volume that is mounted. Raises VolumeNotFound when it is not, or is a folder."""
        with _volume_errors(pv):
            return await to_thread(self._staging.device_number, pv)

    async def release(self, pv: str) -> None:
        """The volume is mounted nowhere on this node, and not open. Raises InUse, naming who uses it."""
        await self._run_queued("release", pv, None, lambda: self._release_and_lock(pv))

    async def lock_unstaged(self, is_staged: Callable[[str], bool]) -> None:
        """No encrypted volume is open that the kubelet has not staged, which `is_staged` asks of a name: who was set up
        anew unstages nothing, nor does one that was killed while it made a volume. Those in use stay so."""
        encrypted = [volume for volume in self.inventory.volumes if volume.record.encryption]
        for volume in encrypted:
            if luks.exists(mapping_name(volume.pv)):
                lock = partial(self._lock_unstaged, volume, is_staged)
                with contextlib.suppress(VolumeError):  # it is logged
                    await self._run_queued("release", volume.pv, ("unstaged", id(is_staged)), lock)

    async def extend(self, spec: VolumeSpec) -> Volume:
        """The volume with at least the wanted size, and its filesystem as it is. Raises NoSpace, and then nothing has
        changed."""
        return await self._run_queued("extend", spec.pv, spec, lambda: self._extend(spec))

    async def expand(self, spec: VolumeSpec) -> Volume:
        """The volume with at least the wanted size. Its filesystem fills it, at once or, when it is not mounted, with
        the next mount. Raises NoSpace, and then nothing has changed."""
        spec = self._for_this_cluster(spec)
        return await self._run_queued("expand", spec.pv, spec, lambda: self._expand(spec))

    async def enlarge(self, pool: str) -> PoolExtension:
        """Lets a thin pool that fills up grow from what its group has left, by as much as its volumes allow. Returns
        what it got: nothing when nothing is left."""
        return await self._run_queued("enlarge", pool, None, lambda: self._enlarge(pool))

    async def reclaim(self, pv: str, uid: str, pool: str, removal: RemovalReason = RemovalReason.RECLAIM) -> bool:
        """Whether the volume of this very PersistentVolume is gone with its data, its space free. False: its data is
        being erased, ask again when the listener has heard that this has ended. Raises InUse while it is mounted in a
        pod, and PoolMissing while `pool` can't be seen: a volume that is not found then may come back with its disk.
        Raises NotAuthorized when the API server or its own record do not say, asked right before, that it may go, and
        ApiUnavailable when that can't be asked. A volume of that name but another uid is not its own, and stays."""
        request = (uid, pool, removal)
        return await self._run_queued(
            "reclaim", pv, request, lambda: self._deleter.ensure_deleted(pv, uid, pool, removal)
        )

    async def transfer(self, name: str, uid: str, to: Record) -> Volume:
        """The snapshot, whose record says `uid`, belongs from now on to whom `to` names: uid, content and policy of it
        are taken. Raises VolumeNotFound, and Foreign when the record says another uid by now."""
        return await self._run_queued("transfer", name, (uid, to), lambda: self._transfer(name, uid, to))

    async def retain(self, pv: str, uid: str, pool: str, *, made: bool) -> None:
        """The volume says itself that it is to be kept, PersistentVolume or not. `made`: there is one. Raises
        PoolMissing when that, or what else `pool` may hold, can't be seen now, and Foreign when its name belongs to
        another: then nothing is noted."""
        request = (uid, pool, made)
        await self._run_queued("retain", pv, request, lambda: self._deleter.retain(pv, uid, pool, made=made))

    def _for_this_cluster(self, spec: VolumeSpec) -> VolumeSpec:
        cluster = self._owner_lookup.cluster
        return spec if spec.cluster == cluster else replace(spec, cluster=cluster)

    async def _run_queued(self, kind: str, pv: str, request: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async def observed() -> T:
            begin = time.monotonic()
            outcome = "success"
            try:
                with _volume_errors(pv):
                    self._disks.refuse(pv)
                    done = await work()
                self._hangs.pop(pv, None)
                return done
            except BaseException as error:
                outcome = type(error).__name__
                if hang := unresponsive(error):
                    self._hangs[pv] = hang.with_traceback(None)
                foreseen = isinstance(error, VolumeError | CancelledError)
                log.warning("%s of volume %s failed: %s", kind, pv, error, extra={"volume": pv}, exc_info=not foreseen)
                raise
            finally:
                self._observe(kind, outcome, time.monotonic() - begin)

        return await self._queue.run(pv, (kind, request), observed)

    async def _mount(self, spec: VolumeSpec, target: TargetPath, read_only: bool, exclusive: bool) -> MountResult:
        try:
            volume = await self._creator.ensure_created(spec)
            volume, shortfall = await self._large_enough(volume, spec)
        except BaseException:
            await self._mounter.release_if_idle(spec.pv)  # a copy is mounted while it is made
            raise
        done = await self._mounter.mount(volume, spec.parameters.mount_options, target, read_only, exclusive)
        return replace(done, shortfall=shortfall) if shortfall else done

    async def _large_enough(self, volume: Volume, spec: VolumeSpec) -> tuple[Volume, VolumeError | None]:
        """The volume as it is to be mounted, and why it is smaller than it should be."""
        if volume.record.filesystem == RAW:
            return await self._block_devices.ensure_clear(volume), None
        if volume.size >= spec.size or await self._mounter.is_staged(spec.pv):
            return volume, None
        try:
            return await self._ensure_size(volume, spec), None
        except VolumeError as error:
            log.warning("%s; it is mounted as it is", error, extra={"volume": spec.pv})
            return volume, error

    async def _unlock(self, spec: VolumeSpec, passphrase: Passphrase) -> Volume:
        volume = await self._creator.ensure_created(spec, passphrase)
        await self._devices.unlock(volume, passphrase)
        return volume

    async def _release_and_lock(self, pv: str) -> None:
        await self._disks.at(pv, partial(self._staging.release, pv))
        await self._devices.lock(pv)

    async def _lock_unstaged(self, volume: Volume, is_staged: Callable[[str], bool]) -> None:
        """In the volume's turn, because the kubelet may stage it at any moment."""
        if volume.record.state is not VolumeState.READY or not await to_thread(is_staged, volume.pv):
            await self._release_and_lock(volume.pv)

    async def _transfer(self, name: str, uid: str, to: Record) -> Volume:
        volume = await self._cache.volume(name)
        if volume is None or volume.record.state is not VolumeState.READY:
            raise VolumeNotFound(f"snapshot {name} is not on this node (any more)")
        if volume.record.uid != uid:
            raise Foreign(f"snapshot {name} belongs to the VolumeSnapshotContent {volume.record.content} by now")
        record = replace(volume.record, uid=to.uid, content=to.content, policy=to.policy)
        return await self._cache.rewrite(volume, record)

    async def _unmount(self, target: TargetPath) -> None:
        await self._disks.at(target.name, partial(self._staging.unbind, target))
        await self._mounter.release_if_idle(target.name)

    async def _expand(self, spec: VolumeSpec) -> Volume:
        # Neither step asks whether the one before it had something to do: a crash may have come between them.
        volume = await self._extend(spec)
        await self._filesystems.grow(volume)
        return volume

    async def _extend(self, spec: VolumeSpec) -> Volume:
        return await self._ensure_size(await self._creator.ensure_created(spec), spec)

    async def _ensure_size(self, volume: Volume, spec: VolumeSpec) -> Volume:
        if volume.size < spec.size:
            self._snapshots.raise_if_copied(spec.pv, "extended")
            await self._filesystems.raise_if_cut_off(volume)
        self._filesystems.changed(spec.pv)
        async with self._disks.load(volume.pool), self._free_space.reserve(spec, volume.size) as taken:
            if volume.size < spec.size:
                volume = await self._block_devices.begin_growth(volume)
            try:
                with self._cache.changing(spec.pv):
                    volume = await self._backend.extend(volume, spec.size)
                    self._cache.put(volume, taken)
            except VolumeError:
                with contextlib.suppress(VolumeError):
                    await self._end_growth(volume)
                raise
        return await self._block_devices.ensure_clear(volume)

    async def _end_growth(self, volume: Volume) -> None:
        """Where nothing was added, what is added from now on is not ours: an administrator does by hand what failed,
        and its pods write there before it is asked for again."""
        if volume.record.filesystem != RAW or not volume.record.growing:
            return
        present = await self._backend.reread(volume)
        if present.size == present.record.cleared:
            await self._block_devices.ensure_clear(present)

    async def _enlarge(self, name: str) -> PoolExtension:
        await self._cache.refresh()
        pool = self.inventory.pool(name)
        with self._free_space.reserve_pool_extension(name) as more:
            if pool and more.taken:
                with self._cache.changing(name):
                    await self._backend.extend_pool(pool, more)
                    self._cache.extend_pool(name, more)
        if more.taken:
            await self._cache.refresh()
        return more


@contextlib.contextmanager
def _volume_errors(pv: str) -> Iterator[None]:
    """Turns what the node's tools raise into errors for the pod's owner."""
    try:
        yield
    except filesystem.DamagedFilesystem as error:
        raise Damaged(f"volume {pv} can't be mounted: {error}") from error
    except DamagedRecord as error:
        raise BackendFailed(f"PersistentVolume {pv} can't be remembered: {error}") from error
    except Hung as error:
        raise BackendFailed(str(error)) from error
    except (CommandError, OSError) as error:
        raise BackendFailed(f"volume {pv}: {error}; the daemon's log on the node has more") from error
