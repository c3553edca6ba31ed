"""What a kind of storage has to do for the volumes in it: the protocol that each module of daemon.backends speaks.

A backend keeps a volume and its record together and knows nothing of mounts, filesystems or Kubernetes; the life of
a volume, which is the same on all of them, stands in daemon.storage. Each step of a backend leaves, when it is cut off
at any point, a state that the next `inspect` reads correctly and that the same call, made again, goes on from.

The caller sees to it that no two calls for one volume run at the same time.
"""

import enum
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import Protocol

from contract.parameters import VolumeParameters
from daemon.errors import BackendFailed
from daemon.storage.inventory import Inventory, Pool, Volume
from daemon.storage.record import Record, VolumeSpec
from daemon.storage.thinpools import PoolExtension


class StaleData(enum.Enum):
    """What the next volume would read where a removed one was: how storage hands out again what a volume gave back."""

    CLEAN = "clean"
    """It reads as zeroes: a new sparse file, a new folder, a thin pool that zeroes new blocks."""
    RAW = "raw"
    """As it was left."""
    THIN_RAW = "thin-raw"
    """As it was left, and only what was written takes space: zeroes written all over would fill the pool."""


class NeedsProgram(Exception):
    """What is asked for takes a program, so it can't be had in a thread: nothing was done."""


class Backend(Protocol):
    """One kind of storage of one node. Errors are those of daemon.errors; a tool that fails in a way nobody foresaw,
    or runs out of its time, is BackendFailed."""

    def on_device(self, pool: str) -> bool:
        """True: volumes of that pool are block devices, to be formatted and mounted. False: they are folders, to be
        bound, and nothing limits their size."""
        ...

    def pool_of(self, parameters: VolumeParameters) -> str:
        """The name of the pool from which a volume with these parameters is made on this node."""
        ...

    async def establish(self) -> None:
        """Makes what the configuration wants and the node lacks (the data folder, the thin pool) and clears away
        what a crash left half written. To be called at start, and again when a pool is missing; without a volume
        group it does nothing."""
        ...

    async def inspect(self) -> Inventory:
        """What is there now. A missing volume group is no error: its pool is absent, and
        of its volumes nothing is known."""
        ...

    async def back_up(self) -> None:
        """Where storage has metadata that a failing disk may take along, a copy of them is kept on the node's own disk,
        as they were at the last look. That it can't be is logged."""
        ...

    async def create(self, spec: VolumeSpec) -> Volume:
        """The volume in state FORMATTING (READY where there is nothing to format). Goes on with a volume of the same
        name and uid in state FORMATTING; anything else of that name raises Foreign. Raises NoSpace, PoolMissing."""
        ...

    async def clone_sharing_blocks(self, spec: VolumeSpec, source: Volume) -> Volume | None:
        """Like `create`, but the volume holds what the source holds at one moment, which takes no longer for much than
        for little. It is as a power cut would leave it, or better. None where volumes can't share blocks, or where
        others could read its blocks once it is removed: then it is to be created and filled. Raises NotCloned where
        neither can be."""
        ...

    def snapshot_storage(self, pool: str) -> "SnapshotStorage | None":
        """What makes snapshots, to be copied from, of volumes in that pool. None where there are none."""
        ...

    async def reread(self, volume: Volume) -> Volume:
        """What bears the name of the volume, or snapshot, in its pool, as its disk shows it now: whoever is about to
        destroy it compares its record, all of which is of one moment. Raises VolumeNotFound, PoolMissing, Damaged, and
        InUse when it has a snapshot of somebody else, which would overflow or go with it."""
        ...

    async def rewrite(self, volume: Volume, record: Record) -> Volume:
        """The same volume with another record, replaced as a whole and on disk when this returns."""
        ...

    def device(self, volume: Volume) -> AbstractAsyncContextManager[Path]:
        """The block device or folder of a volume, ready to be mounted. It stays valid after the context for as long
        as it is mounted, and is given back when neither holds it. Raises VolumeNotFound."""
        ...

    def opened(self, volume: Volume, likely: int = 0) -> AbstractContextManager[Path]:
        """The same, to be called in a thread: it blocks, also on the volume's disk. `likely`: number (st_rdev) of the
        device that it may be, where it has to be looked for. Raises NeedsProgram where a program makes it ready
        first."""
        ...

    async def extend(self, volume: Volume, size: int) -> Volume:
        """The volume with at least `size` bytes, the device grown at once even when it is mounted. Does nothing to
        one that is large enough: volumes never shrink. Raises NoSpace."""
        ...

    async def stale_data(self, volume: Volume) -> StaleData:
        """What others would find where the volume's data was, were it removed as it is now."""
        ...

    async def extend_pool(self, pool: Pool, more: PoolExtension) -> None:
        """Lets a thin pool have so much more, from what is free beside it. Raises NoSpace; BackendFailed where there
        are no thin pools."""
        ...

    async def remove(self, volume: Volume) -> None:
        """The volume, which `reread` has just shown, is gone and its space is free, if its record still has the uid,
        policy, state and cluster of the one given: asked for as late as the storage allows. One that is gone already is
        no error. Raises NotAuthorized when its record is another by now, InUse."""
        ...


class SnapshotStorage(Protocol):
    """Storage that can show what a volume holds at one moment while the volume is written to. A snapshot is a Volume
    whose record says of what it is; `Backend.device`, `rewrite` and `stale_data` know it too."""

    def pool_for(self, source: Volume) -> str:
        """The pool from which a snapshot of that volume takes its space."""
        ...

    def max_size(self, source: Volume) -> int:
        """Bytes with which a snapshot of that volume can't overflow."""
        ...

    async def make(self, source: Volume, record: Record, size: int) -> Volume:
        """A snapshot with about `size` bytes for what is overwritten in its source from now on; a mounted filesystem is
        held still for that moment. While it is there, its source can neither grow nor be removed. Raises NoSnapshot."""
        ...

    async def readable(self, snapshot: Volume) -> bool:
        """Whether its bytes were enough until now. If not, it shows nothing any more, and what was read from it last
        may be wrong."""
        ...

    async def split(self, snapshot: Volume) -> None:
        """Its source is free of it; the snapshot's device shows all that it kept, to be erased. One that is split
        already is no error. Raises InUse while somebody reads from it."""
        ...

    async def remove(self, snapshot: Volume) -> None:
        """It is gone and its space is free. One that is gone already is no error. Raises InUse before it is split."""
        ...


def no_thin_pools(pool: Pool) -> BackendFailed:
    """For storage that has none."""
    return BackendFailed(f"{pool.name} is no thin pool: nothing can be added to it from here")
