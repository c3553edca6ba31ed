"""Whether a volume's data may go: what the API server and the volume's own record say at this very moment.

Caches lag, policies change, people restore backups, and data does not come back. So whoever is about to destroy any
asks the API server for the PersistentVolume by its name, and then the volume's disk for its record, all of it in one
look; `refusal` decides. One that can't be asked has not agreed: nothing is destroyed, and it is tried again.
"""

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from contract.snapshot import CONTENT_KIND
from contract.volume import DELETE
from daemon.errors import NotAuthorized
from daemon.storage.backend import Backend
from daemon.storage.inventory import Volume
from daemon.storage.record import Record, VolumeSpec, VolumeState, differences


@dataclass(frozen=True)
class Owner:
    """The object that a volume is of now: the PersistentVolume of its name, or of a snapshot the
    VolumeSnapshotContent that its record names."""

    uid: str
    policy: str
    reclaimable: bool
    """Deleted, and nobody can be using it any more."""
    holder: str = ""
    """The claim, or the VolumeSnapshot, that has it still, whatever it says itself. Empty: none, or nobody asked."""


class OwnerLookup(Protocol):
    """The cluster of this node, and who owns a volume there: asked each time, never remembered."""

    @property
    def cluster(self) -> str:
        """Its identity, the uid of its namespace kube-system. Empty: it could not be read yet."""
        ...

    async def owner(self, pv: str, content: str = "") -> Owner | None:
        """Of the volume of that name, or of the snapshot that this VolumeSnapshotContent owns. None: the API server
        says that there is none. Raises ApiUnavailable when it can't be asked."""
        ...


class RemovalReason(enum.Enum):
    RECLAIM = "removed with its PersistentVolume"
    ORPHANED = "removed without a PersistentVolume"


Precondition = Callable[[Volume], Awaitable[Volume]]
"""The volume as its disk shows it now, whose data may go. Raises NotAuthorized, and what asking raises."""


def refusal(removal: RemovalReason, expected: Record, actual: Record, owner: Owner | None, cluster: str) -> str:
    """Why the data must not go, empty if it may. `expected` is the record for which it was asked, `actual` what the
    disk shows now."""
    if changed := differences(expected, actual):
        return f"its record changed meanwhile ({changed})"
    if actual.policy != DELETE:
        return f"its record says {actual.policy}"
    if actual.cluster and actual.cluster != cluster:
        return f"it belongs to cluster {actual.cluster}, and this one is {cluster or 'not known yet'}"
    if removal is RemovalReason.ORPHANED:
        if owner is not None:
            return f"there is a {_kind(actual.content)} of its name (uid {owner.uid})"
        if not actual.cluster:
            return "its record does not say of which cluster it is"
        return ""
    if owner is None or owner.uid != actual.uid:
        return f"the API server has no {_kind(actual.content)} of its uid {actual.uid} any more"
    if owner.policy != DELETE:
        policy = "deletion" if actual.content else "reclaim"
        return f"its {_kind(actual.content)} has the {policy} policy {owner.policy}"
    if owner.holder:
        return f"{owner.holder} has it: if its data is to go, delete that"
    return "" if owner.reclaimable else f"its {_kind(actual.content)} is not deleted, or may be in use still"


def _kind(content: str) -> str:
    return CONTENT_KIND if content else "PersistentVolume"


class DeletionGuard:
    """What is checked before data goes."""

    def __init__(self, backend: Backend, owner_lookup: OwnerLookup) -> None:
        self._backend = backend
        self._owner_lookup = owner_lookup

    @property
    def cluster(self) -> str:
        return self._owner_lookup.cluster

    def before_removal(self, removal: RemovalReason) -> Precondition:
        async def checked(volume: Volume) -> Volume:
            owner = await self._owner_lookup.owner(volume.pv, volume.record.content)
            present = await self._backend.reread(volume)
            if why := refusal(removal, volume.record, present.record, owner, self._owner_lookup.cluster):
                raise NotAuthorized(f"volume {volume.pv} is not {removal.value}: {why}")
            return present

        return checked

    async def before_snapshot_removal(self, snapshot: Volume) -> Volume:
        """Of a snapshot there is nobody to ask but itself: it holds nothing that its source does not hold."""
        present = await self._backend.reread(snapshot)
        if changed := differences(snapshot.record, present.record):
            raise NotAuthorized(f"snapshot {snapshot.pv} is not removed: its record changed meanwhile ({changed})")
        return present

    async def check_format(self, spec: VolumeSpec, partial: Volume | None) -> None:
        """Raises NotAuthorized unless the volume may be formatted. What an attempt that was cut off has left goes when
        the volume is made, if its PersistentVolume is still the one that is to have it. The backend compares the record
        that it finds."""
        owner = await self._owner_lookup.owner(spec.pv, spec.content)
        if owner is None or owner.uid != spec.uid:
            raise NotAuthorized(
                f"volume {spec.pv} is not made: the API server has no {_kind(spec.content)} of its uid {spec.uid} now"
            )
        if partial is not None and partial.record.state not in (VolumeState.FORMATTING, VolumeState.COPYING):
            raise NotAuthorized(f"volume {spec.pv} is not formatted: it is {partial.record.state.value}")

    async def wants_removal(self, volume: Volume) -> bool:
        """Whether its PersistentVolume says now that it is to be removed."""
        owner = await self._owner_lookup.owner(volume.pv, volume.record.content)
        return bool(owner and owner.uid == volume.record.uid and owner.policy == DELETE and owner.reclaimable)
