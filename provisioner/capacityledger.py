"""What is promised of each node's pools: the sum that a decision subtracts from what the node published.

A volume is charged from the moment that its creation is decided until its object, or at least our finalizer on it, is
gone. The watch of PersistentVolumes alone can't tell: it lags behind our own creations, and says nothing of a request
whose answer was lost. So each name has entries for what the watch showed (observed), what we asked for (booked) and
what it is about to be granted (growing) or asked for (reserved), and counts with the largest one. A booking ends in one
of two ways only: the watch shows that very object, by uid, or somebody has made sure that there is none
(reservations.py). Everything here is synchronous: a decision and its booking have no `await` between them, so any
number of claims may be worked on at the same time.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

from contract import capacity, names, parameters
from contract.parameters import VolumeParameters
from contract.volume import DELETE, FAILED, RELEASED, PersistentVolume


@dataclass(frozen=True)
class Account:
    """What a volume is charged to: a pool of a node, or, while no node is chosen, its class (`unplaced`)."""

    node: str
    """Value of names.NODE_LABEL."""
    pool: str


def unplaced(storage_class: str) -> Account:
    """The account of the class's volumes that wait for their first pod."""
    return Account("", storage_class)


@dataclass(frozen=True)
class Charge:
    """What a volume weighs: its size in bytes, and the layout that makes it more."""

    account: Account
    size: int
    parameters: VolumeParameters


@dataclass(frozen=True)
class Booking:
    """A volume that was asked for and not yet seen."""

    charge: Charge
    since: float
    """Monotonic seconds."""
    uid: str = ""
    """Of the object: empty while the creation's outcome is not known."""


@dataclass(frozen=True)
class _Growth:
    """What a volume is about to be granted, by a write that only this version of its PersistentVolume takes."""

    charge: Charge
    resource_version: str


@dataclass(frozen=True)
class _Observed:
    uid: str
    claim_uid: str
    policy: str
    charge: Charge | None


def charge_of(volume: PersistentVolume) -> Charge | None:
    """What an existing PersistentVolume takes, None when it takes nothing any more."""
    if volume.node_label:
        if volume.deleting and names.FINALIZER not in volume.finalizers:
            return None
        account = Account(volume.node_label, volume.pool)
    elif volume.deleting or volume.phase in (RELEASED, FAILED):
        return None
    else:
        account = unplaced(volume.storage_class)
    return Charge(account, volume.charged, layout_of(volume))


def layout_of(volume: PersistentVolume) -> VolumeParameters:
    """One whose options can't be read was written by hand: the node will refuse to make it, but until it goes it counts
    plainly."""
    try:
        return volume.parameters()
    except parameters.ParameterError:
        return VolumeParameters()


class Books:
    """The charges of all volumes, by account. Not thread-safe: it lives on one event loop."""

    def __init__(self) -> None:
        self._observed: dict[str, _Observed] = {}
        self._bookings: dict[str, Booking] = {}
        self._growths: dict[str, _Growth] = {}
        self._reservations: dict[str, Charge] = {}
        self._held: dict[str, Charge] = {}
        self._pages: dict[Account, _Page] = {}

    def taken(self, account: Account, granularity: int, *, besides: Collection[str] = ()) -> int:
        """Bytes promised in an account, in whole extents of `granularity` bytes, leaving out the volumes `besides`."""
        page = self._pages.get(account)
        return page.total(granularity, besides) if page else 0

    def exists(self, name: str, claim_uid: str) -> bool:
        """Whether the volume of a claim is known to exist, be it from the watch or from the answer to our request.
        Not while an answer is missing: the next try finds out, and does what comes after."""
        booking, observed = self._bookings.get(name), self._observed.get(name)
        if booking is not None:
            return booking.uid != ""
        return observed is not None and observed.claim_uid == claim_uid

    def booking(self, name: str) -> Booking | None:
        """The booking of a name that is still open."""
        return self._bookings.get(name)

    def held(self, uid: str) -> Charge | None:
        """What a retained volume that is gone still weighs (see `depart`)."""
        return self._held.get(uid)

    def book(self, name: str, charge: Charge, now: float) -> None:
        """Promise room to a volume that is about to be asked for, or asked for again.

        Raises ValueError when a lost request may still make the volume in another account.
        """
        before = self._bookings.get(name)
        if before is not None and before.charge.account != charge.account:
            raise ValueError(f"{name} may still appear in {before.charge.account}")
        self._enter(name, Booking(charge, now))

    def settle(self, name: str, uid: str) -> None:
        """The volume exists under this uid: the booking stays until the watch shows it."""
        booking, seen = self._bookings.get(name), self._observed.get(name)
        if booking is not None:
            shown = seen is not None and seen.uid == uid
            self._enter(name, None if shown else replace(booking, uid=uid))

    def release(self, name: str) -> None:
        """There is no such volume, for certain, and none will come of what we asked."""
        self._enter(name, None)

    def reserve(self, name: str, charge: Charge) -> None:
        """Keep room for a volume that is to be asked for in a moment, beside another one that was decided with it."""
        before = self._charges(name)
        self._reservations[name] = charge
        self._write(name, before, self._charges(name))

    def unreserve(self, name: str) -> None:
        before = self._charges(name)
        self._reservations.pop(name, None)
        self._write(name, before, self._charges(name))

    def grow(self, volume: PersistentVolume, size: int) -> None:
        """Promise a volume that exists more room, before that is written to its PersistentVolume. Once the watch shows
        another version than this one, either it has the grant or no write of ours can bring it any more."""
        before = charge_of(volume)
        if before is not None:
            self._growing(volume.name, _Growth(replace(before, size=size), volume.resource_version))

    def shrink(self, name: str) -> None:
        """The grant that was booked was refused for certain."""
        self._growing(name, None)

    def observe(self, volume: PersistentVolume) -> bool:
        """What the watch shows of a volume. True when its charge went and is held (see `depart`)."""
        before = self._observed.get(volume.name)
        charge = charge_of(volume)
        held = before is not None and (charge is None or before.uid != volume.uid) and self._hold(before)
        claim_uid = volume.claim.uid if volume.claim else ""
        self._show(volume.name, _Observed(volume.uid, claim_uid, volume.reclaim_policy, charge))
        booking = self._bookings.get(volume.name)
        if booking is not None and booking.uid == volume.uid:
            self._enter(volume.name, None)
        growth = self._growths.get(volume.name)
        if growth is not None and growth.resource_version != volume.resource_version:
            self._growing(volume.name, None)
        return held

    def depart(self, name: str) -> bool:
        """The watch shows that a volume is gone. True when its charge is held under its uid.

        With policy Delete the space came back before the object went. With Retain the space stays taken, and the
        node published a smaller figure before. That one comes to us on another watch, which may be the later one, so
        the charge is held until somebody has made sure that we know the figure.
        """
        before = self._observed.get(name)
        held = before is not None and self._hold(before)
        self._show(name, None)
        self._growing(name, None)
        return held

    def let_go(self, uid: str) -> None:
        """The figure that a retained volume left behind is known: what was held is part of it."""
        charge = self._held.pop(uid, None)
        if charge is not None:
            self._write(uid, (charge,), ())

    def _hold(self, before: _Observed) -> bool:
        charge = before.charge
        if charge is None or not charge.account.node or before.policy == DELETE:
            return False
        self._held[before.uid] = charge
        self._write(before.uid, (), (charge,))
        return True

    def _enter(self, name: str, booking: Booking | None) -> None:
        before = self._charges(name)
        if booking is None:
            self._bookings.pop(name, None)
        else:
            self._bookings[name] = booking
        self._write(name, before, self._charges(name))

    def _growing(self, name: str, growth: _Growth | None) -> None:
        before = self._charges(name)
        if growth is None:
            self._growths.pop(name, None)
        else:
            self._growths[name] = growth
        self._write(name, before, self._charges(name))

    def _show(self, name: str, observed: _Observed | None) -> None:
        before = self._charges(name)
        if observed is None:
            self._observed.pop(name, None)
        else:
            self._observed[name] = observed
        self._write(name, before, self._charges(name))

    def _charges(self, name: str) -> tuple[Charge, ...]:
        booking, observed, growth = self._bookings.get(name), self._observed.get(name), self._growths.get(name)
        charges = [entry.charge for entry in (booking, observed, growth) if entry is not None]
        return tuple(charge for charge in (*charges, self._reservations.get(name)) if charge is not None)

    def _write(self, key: str, before: tuple[Charge, ...], after: tuple[Charge, ...]) -> None:
        for account in {charge.account for charge in (*before, *after)}:
            page = self._pages.setdefault(account, _Page())
            page.write(key, tuple(charge for charge in after if charge.account == account))
            if page.blank:
                del self._pages[account]


class _Page:
    """One account. The sum is kept up to date as volumes come and go: a burst asks for it once per claim."""

    def __init__(self) -> None:
        self._charges: dict[str, tuple[Charge, ...]] = {}
        self._granularity = 1
        self._sum = 0

    @property
    def blank(self) -> bool:
        return not self._charges

    def write(self, name: str, charges: tuple[Charge, ...]) -> None:
        self._sum += self._weight(charges) - self._weight(self._charges.get(name, ()))
        if charges:
            self._charges[name] = charges
        else:
            self._charges.pop(name, None)

    def total(self, granularity: int, besides: Collection[str]) -> int:
        if granularity != self._granularity:
            self._granularity = granularity
            self._sum = sum(map(self._weight, self._charges.values()))
        return self._sum - sum(self._weight(self._charges.get(name, ())) for name in set(besides))

    def _weight(self, charges: tuple[Charge, ...]) -> int:
        return max(
            (capacity.footprint(charge.size, charge.parameters, self._granularity) for charge in charges), default=0
        )
