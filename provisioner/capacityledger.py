"""The capacity reserved in each pool of each node: the sum that a decision subtracts from what the node published.

A volume is charged from the moment that its creation is decided until its object, or at least our finalizer on it, is
gone. A watch of PersistentVolumes is not enough: it lags behind our own creations, and shows nothing of a request
whose answer was lost. So each name has an entry for what the watch showed, for our own request (a reservation), for an
expansion that is about to be granted and for a volume of a pod that is decided with another one. The largest counts.
A reservation ends in one of two ways only: the watch shows that very object, by uid, or it is verified that there is
none (reservations.py). Everything here is synchronous: a decision and its reservation have no `await` between them, so
any number of claims may be worked on at the same time.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from contract import capacity, names, parameters
from contract.parameters import VolumeParameters
from contract.volume import DELETE, FAILED, RELEASED, PersistentVolume


@dataclass(frozen=True, slots=True)
class Account:
    """What a volume is charged to: a pool of a node, or, while no node is chosen, its class (`unplaced`)."""

    node: str
    """Value of names.NODE_LABEL."""
    pool: str


def unplaced(storage_class: str) -> Account:
    """The account of the class's volumes that wait for their first pod."""
    return Account("", storage_class)


@dataclass(frozen=True, slots=True)
class Charge:
    """What a volume takes: its size in bytes, and the layout that makes it more."""

    account: Account
    size: int
    parameters: VolumeParameters


@dataclass(frozen=True)
class Reservation:
    """A volume that was requested and is not yet seen in the watch."""

    charge: Charge
    since: float
    """Monotonic seconds."""
    uid: str = ""
    """Of the object: empty while the creation's outcome is not known."""


@dataclass(frozen=True)
class _PendingGrowth:
    """What a volume is about to be granted, by a write that only this version of its PersistentVolume takes."""

    charge: Charge
    resource_version: str


@dataclass(frozen=True, slots=True)
class _Observed:
    uid: str
    claim_uid: str
    policy: str
    charge: Charge | None


def charge_of(volume: PersistentVolume) -> Charge | None:
    """What an existing PersistentVolume takes, None when it takes nothing any more."""
    if volume.node_label:
        gone = volume.deleting and names.FINALIZER not in volume.finalizers
    else:
        gone = volume.deleting or volume.phase in (RELEASED, FAILED)
    return None if gone else Charge(account_of(volume), volume.charged_size, layout_of(volume))


def account_of(volume: PersistentVolume) -> Account:
    """The account that the volume is charged to: its node's pool, or, without a node, that of its class."""
    return Account(volume.node_label, volume.pool) if volume.node_label else unplaced(volume.storage_class)


def layout_of(volume: PersistentVolume) -> VolumeParameters:
    """One whose options can't be read was written by hand: the node will refuse to make it, but until it goes it counts
    plainly."""
    try:
        return volume.parameters()
    except parameters.ParameterError:
        return VolumeParameters()


class CapacityLedger:
    """The charges of all volumes, by account. Not thread-safe: it lives on one event loop."""

    def __init__(self) -> None:
        self._observed: dict[str, _Observed] = {}
        self._reservations: dict[str, Reservation] = {}
        self._growths: dict[str, _PendingGrowth] = {}
        self._pod_reservations: dict[str, Charge] = {}
        self._retained: dict[str, Charge] = {}
        self._totals: dict[Account, _AccountTotal] = {}
        self._on_change: Callable[[Account], None] = lambda account: None

    def on_change(self, callback: Callable[[Account], None]) -> None:
        """Calls it with each account whose charges change, from now on."""
        self._on_change = callback

    def accounts(self, name: str) -> set[Account]:
        """What the volume of that name is charged to."""
        return {charge.account for charge in self._charges(name)}

    def reserved(self, account: Account, granularity: int, *, excluding: Collection[str] = ()) -> int:
        """Bytes reserved in an account, in whole extents of `granularity` bytes, without the volumes `excluding`."""
        total = self._totals.get(account)
        return total.bytes(granularity, excluding) if total else 0

    def exists(self, name: str, claim_uid: str) -> bool:
        """Whether the volume of a claim is known to exist, be it from the watch or from the answer to our request.
        Not while an answer is missing: the next try finds out, and does what comes after."""
        reservation, observed = self._reservations.get(name), self._observed.get(name)
        if reservation is not None:
            return reservation.uid != ""
        return observed is not None and observed.claim_uid == claim_uid

    def reservation(self, name: str) -> Reservation | None:
        """The reservation of a name that is still open."""
        return self._reservations.get(name)

    def retained(self, uid: str) -> Charge | None:
        """What a retained volume that is gone still takes (see `observe_deleted`)."""
        return self._retained.get(uid)

    def reserve(self, name: str, charge: Charge, now: float) -> None:
        """Reserve capacity for a volume that is about to be requested, or requested again.

        Raises ValueError when a lost request may still make the volume in another account.
        """
        before = self._reservations.get(name)
        if before is not None and before.charge.account != charge.account:
            raise ValueError(f"{name} may still appear in {before.charge.account}")
        self._set_reservation(name, Reservation(charge, now))

    def confirm(self, name: str, uid: str) -> None:
        """The volume exists under this uid: the reservation stays until the watch shows it."""
        reservation, seen = self._reservations.get(name), self._observed.get(name)
        if reservation is not None:
            shown = seen is not None and seen.uid == uid
            self._set_reservation(name, None if shown else replace(reservation, uid=uid))

    def release(self, name: str) -> None:
        """There is no such volume, for certain, and none will come of what we asked."""
        self._set_reservation(name, None)

    def reserve_for_pod(self, name: str, charge: Charge) -> None:
        """Reserve capacity for a volume that is requested in a moment, because another one of its pod was decided."""
        before = self._charges(name)
        self._pod_reservations[name] = charge
        self._update(name, before, self._charges(name))

    def release_for_pod(self, name: str) -> None:
        before = self._charges(name)
        self._pod_reservations.pop(name, None)
        self._update(name, before, self._charges(name))

    def reserve_growth(self, volume: PersistentVolume, size: int) -> None:
        """Reserve more for a volume that exists, before that is written to its PersistentVolume. Once the watch shows
        another version than this one, either it has the grant or no write of ours can bring it any more."""
        before = charge_of(volume)
        if before is not None:
            self._set_growth(volume.name, _PendingGrowth(replace(before, size=size), volume.resource_version))

    def release_growth(self, name: str) -> None:
        """The API server certainly refused the grant."""
        self._set_growth(name, None)

    def observe(self, volume: PersistentVolume) -> bool:
        """What the watch shows of a volume. True when its charge went and is held (see `observe_deleted`)."""
        before = self._observed.get(volume.name)
        charge = charge_of(volume)
        if before is not None and before.charge == charge:
            charge = before.charge  # most changes of a volume change nothing here
        held = before is not None and (charge is None or before.uid != volume.uid) and self._retain(before)
        claim_uid = volume.claim.uid if volume.claim else ""
        observed = _Observed(volume.uid, claim_uid, volume.reclaim_policy, charge)
        if observed != before:
            self._set_observed(volume.name, observed)
        reservation = self._reservations.get(volume.name)
        if reservation is not None and reservation.uid == volume.uid:
            self._set_reservation(volume.name, None)
        growth = self._growths.get(volume.name)
        if growth is not None and growth.resource_version != volume.resource_version:
            self._set_growth(volume.name, None)
        return held

    def observe_deleted(self, name: str) -> bool:
        """The watch shows that a volume is gone. True when its charge is held under its uid.

        With policy Delete the space came back before the object went. With Retain the space stays taken, and the
        node published a smaller figure before. That one comes to us on another watch, which may be the later one, so
        the charge is held until somebody has made sure that we know the figure.
        """
        before = self._observed.get(name)
        held = before is not None and self._retain(before)
        self._set_observed(name, None)
        self._set_growth(name, None)
        return held

    def release_retained(self, uid: str) -> None:
        """The figure that a retained volume left behind is known: what was held is part of it."""
        charge = self._retained.pop(uid, None)
        if charge is not None:
            self._update(uid, (charge,), ())

    def _retain(self, before: _Observed) -> bool:
        charge = before.charge
        if charge is None or not charge.account.node or before.policy == DELETE:
            return False
        self._retained[before.uid] = charge
        self._update(before.uid, (), (charge,))
        return True

    def _set_reservation(self, name: str, reservation: Reservation | None) -> None:
        before = self._charges(name)
        if reservation is None:
            self._reservations.pop(name, None)
        else:
            self._reservations[name] = reservation
        self._update(name, before, self._charges(name))

    def _set_growth(self, name: str, growth: _PendingGrowth | None) -> None:
        before = self._charges(name)
        if growth is None:
            self._growths.pop(name, None)
        else:
            self._growths[name] = growth
        self._update(name, before, self._charges(name))

    def _set_observed(self, name: str, observed: _Observed | None) -> None:
        before = self._charges(name)
        if observed is None:
            self._observed.pop(name, None)
        else:
            self._observed[name] = observed
        self._update(name, before, self._charges(name))

    def _charges(self, name: str) -> tuple[Charge, ...]:
        found = [
            entry.charge
            for entries in (self._observed, self._reservations, self._growths)
            if (entry := entries.get(name)) is not None and entry.charge is not None
        ]
        if (of_pod := self._pod_reservations.get(name)) is not None:
            found.append(of_pod)
        return tuple(found)

    def _update(self, key: str, before: tuple[Charge, ...], after: tuple[Charge, ...]) -> None:
        if before == after:
            return
        for account in {charge.account for charge in (*before, *after)}:
            total = self._totals.get(account)
            if total is None:
                total = self._totals[account] = _AccountTotal()
            total.set(key, tuple(charge for charge in after if charge.account == account))
            if total.empty:
                del self._totals[account]
            self._on_change(account)


class _AccountTotal:
    """One account. The sum is kept up to date as volumes come and go: a burst asks for it once per claim."""

    def __init__(self) -> None:
        self._charges: dict[str, tuple[Charge, ...]] = {}
        self._granularity = 1
        self._sum = 0

    @property
    def empty(self) -> bool:
        return not self._charges

    def set(self, name: str, charges: tuple[Charge, ...]) -> None:
        self._sum += self._footprint(charges) - self._footprint(self._charges.get(name, ()))
        if charges:
            self._charges[name] = charges
        else:
            self._charges.pop(name, None)

    def bytes(self, granularity: int, excluding: Collection[str]) -> int:
        if granularity != self._granularity:
            self._granularity = granularity
            self._sum = sum(map(self._footprint, self._charges.values()))
        return self._sum - sum(self._footprint(self._charges.get(name, ())) for name in set(excluding))

    def _footprint(self, charges: tuple[Charge, ...]) -> int:
        sizes = [capacity.footprint(charge.size, charge.parameters, self._granularity) for charge in charges]
        return max(sizes, default=0)
