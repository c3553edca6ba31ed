"""Volumes that begin as a copy of another one.

The copy is in state FORMATTING or COPYING until all of it is done, so what a crash cuts off is never mounted, and made
anew from the beginning. In a thin pool, where volumes can share blocks, a copy takes a moment and its source may be in
use. Elsewhere each block is copied while nobody may change the source: it is not mounted, or its filesystem is frozen,
which is done to small ones only, because the pods that write to it wait. What a killed daemon left frozen, the next one
thaws when it starts.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from contract import quantity
from daemon.backends import Backend
from daemon.errors import NotCloned
from daemon.storage.record import State, Volume, Wanted
from daemon.storage.staging import Staging
from daemon.storage.stock import Stock
from host import blockdevice, devicecopy, freezing, identity

log = logging.getLogger(__name__)

FROZEN_SIZE = 1 << 30
"""Bytes of the largest volume that is copied while pods use it: some seconds on any disk."""
_FROZEN_SECONDS = 20.0
"""No pod waits longer, however slow the disk is."""
_SLOWEST = 10 << 20
"""Bytes a second. Where it takes longer, the disk does not work."""


class Cloning:
    """`related` tells whether the PersistentVolume of the first name may be a copy of the second one. Methods raise
    VolumeError, host.filesystem.Unsound, CommandError and OSError."""

    def __init__(self, backend: Backend, stock: Stock, staging: Staging, related: Callable[[str, str], bool]) -> None:
        self._backend = backend
        self._stock = stock
        self._staging = staging
        self._related = related

    def thaw(self) -> None:
        """No volume is frozen any more. Blocks. Only copying freezes them, and no copying outlives its daemon."""
        for path in self._staging.folders():
            try:
                thawed = freezing.thaw(path)
            except OSError as error:
                log.warning("can't see whether %s is frozen: %s", path, error, extra={"volume": path.name})
                continue
            if thawed:
                log.warning("%s was frozen and is thawed", path, extra={"volume": path.name})

    def source(self, wanted: Wanted) -> Volume:
        """The volume to be copied. Raises NotCloned."""
        assert wanted.original
        name = wanted.original.pv
        if name == wanted.pv or not self._related(wanted.pv, name):
            raise NotCloned(
                f"volume {wanted.pv} is to be a copy of {name}, which is not (any more) on this node for a claim of "
                "the same namespace: delete the claim and make it anew, from a source that is there"
            )
        found = self._stock.inventory.volume(name)
        if found is None or found.record.uid != wanted.original.uid or found.record.state is not State.READY:
            raise NotCloned(
                f"volume {name}, which {wanted.pv} is to be a copy of, is not on this node (any more): bring it back, "
                "or delete the claim and make it anew from another source"
            )
        if found.record.filesystem != wanted.parameters.filesystem or found.record.filesystem not in identity.KINDS:
            raise NotCloned(
                f"volume {wanted.pv} with {wanted.parameters.filesystem} can't be a copy of {name} with "
                f"{found.record.filesystem}: copies are made of {' and '.join(sorted(identity.KINDS))}, and have the "
                "same"
            )
        return found

    async def copy(self, wanted: Wanted, begun: Volume | None) -> Volume:
        """A volume, not ready yet, that holds all that its source holds, to be called in the source's turn. `begun`:
        what an attempt that was cut off has left. If that is data, it is overwritten where it is: given back as it is,
        its space would show it to others."""
        source = self.source(wanted)
        staged = await asyncio.to_thread(self._staging.mounted, source.pv)
        copying = begun is not None and begun.record.state is State.COPYING
        shared = None if copying else await self._backend.snapshot(wanted, source)
        if shared is not None:
            return shared
        if staged and source.size > FROZEN_SIZE:
            raise NotCloned(
                f"volume {source.pv} is in use, and with {quantity.humane(source.size)} too large to be held still "
                f"while it is copied: stop the pods that use it until volume {wanted.pv} is made"
            )
        if begun is not None and copying:
            volume = await self._backend.extend(begun, wanted.size)
        else:
            volume = await self._backend.create(wanted)
            volume = await self._backend.rewrite(volume, wanted.record(State.COPYING))
        async with self._backend.device(source) as origin, self._backend.device(volume) as target:
            if staged:
                async with _frozen(Path(staged.path), source):
                    await devicecopy.copy(origin, target, deadline=_FROZEN_SECONDS)
            elif await asyncio.to_thread(blockdevice.is_claimed, origin):
                raise NotCloned(f"volume {source.pv} is in use by something that is no pod of this node: stop that")
            else:
                await devicecopy.copy(origin, target, deadline=60 + source.size / _SLOWEST)
        return volume

    async def identify(self, volume: Volume) -> None:
        """The copy's filesystem is no longer the same as its source's to those who look for its UUID. It is small
        enough for the volume, and grows with its first mount."""
        folder = await asyncio.to_thread(self._staging.make_folder, volume.pv)
        async with self._backend.device(volume) as device:
            await identity.renew(volume.record.filesystem, device, folder)


@contextlib.asynccontextmanager
async def _frozen(path: Path, source: Volume) -> AsyncIterator[None]:
    """Raises NotCloned when what is done inside takes too long."""
    await asyncio.to_thread(freezing.freeze, path)
    try:
        yield
    except TimeoutError as error:
        raise NotCloned(
            f"volume {source.pv} is in use, and the disk is too slow to hold it still while it is copied ({error}): "
            "stop the pods that use it until its copy is made"
        ) from error
    finally:
        await asyncio.to_thread(freezing.thaw, path)
