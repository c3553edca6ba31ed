"""Thick snapshots: what a volume held at one moment, for as long as a copy of it takes.

LVM keeps in them what is overwritten in their origin. When one has served, what it kept is still on the disk, where
the next volume could read it, and can't be reached as long as it is a snapshot. So it is split from its origin and is a
plain volume from then on, which can be erased like any other before it is removed.
"""

import lvm
from daemon.backends.lvmerrors import errors_of
from daemon.errors import InUse, NoSnapshot, VolumeNotFound
from daemon.storage.inventory import PoolName, Volume
from daemon.storage.record import Record, from_tags
from lvm import LogicalVolume, Lvm


class LvmSnapshots:
    """See daemon.storage.backend.SnapshotStorage."""

    def __init__(self, tools: Lvm) -> None:
        self._lvm = tools

    def pool_for(self, source: Volume) -> str:
        return PoolName.of(source.pool).group

    def max_size(self, source: Volume) -> int:
        return lvm.largest_snapshot(source.device_size)

    async def make(self, source: Volume, record: Record, size: int) -> Volume:
        group = self.pool_for(source)
        with errors_of(source):
            try:
                await self._lvm.create_thick_snapshot(group, source.pv, record.pv, size, record.to_tags())
            except lvm.Interrupted:
                await self._lvm.mend_origin(group, source.pv, record.pv)
                raise
            except lvm.Unsupported as error:
                raise NoSnapshot(
                    "the kernel of this node has none (its administrator loads the module dm_snapshot)"
                ) from error
            except lvm.NoSpace as error:
                raise NoSnapshot(f"{group} on this node has no room for it ({error.message})") from error
            made = (await self._lvm.report()).volume(group, record.pv)
        if made is None:
            raise VolumeNotFound(f"snapshot {record.pv} of volume {source.pv} is not on this node (any more)")
        return Volume(record, made.size, group)

    async def readable(self, snapshot: Volume) -> bool:
        present = await self._existing(snapshot)
        return present is not None and not present.overflowed

    async def mend(self, snapshot: Volume) -> None:
        """Takes back what an LVM command may have left that was killed while it made or split the snapshot: a source
        that is suspended, so that whoever writes to it waits, and devices that are not what LVM says."""
        with errors_of(snapshot):
            state = await self._lvm.report()
            volume = state.volume(snapshot.pool, snapshot.pv)
            source = state.volume(snapshot.pool, snapshot.record.snapshot_of)
            if volume and source and source.active and (source.suspended or not volume.origin):
                await self._lvm.mend_origin(snapshot.pool, source.name, snapshot.pv)

    async def split(self, snapshot: Volume) -> None:
        await self.mend(snapshot)
        present = await self._existing(snapshot)
        if present is not None:
            with errors_of(snapshot):
                if present.origin:
                    await self._lvm.split_snapshot(snapshot.pool, snapshot.pv)
                else:
                    await self._lvm.activate(snapshot.pool, snapshot.pv)

    async def remove(self, snapshot: Volume) -> None:
        present = await self._existing(snapshot)
        if present is None:
            return
        if present.origin:
            raise InUse(
                f"snapshot {snapshot.pv} still belongs to volume {present.origin}: what it kept can't be erased"
            )
        with errors_of(snapshot):
            await self._lvm.remove(snapshot.pool, snapshot.pv, having=snapshot.record.deciding_tags())

    async def _existing(self, snapshot: Volume) -> LogicalVolume | None:
        """What bears its name now, if it is ours."""
        with errors_of(snapshot):
            volume = (await self._lvm.report()).volume(snapshot.pool, snapshot.pv)
        record = from_tags(volume.tags) if volume else None
        return volume if record and record.owner_tags() == snapshot.record.owner_tags() else None
