"""The ledger never reserves more than a node has, however requests, answers and the watch come one after another."""

from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from contract import capacity, names
from contract.parameters import VolumeParameters
from contract.volume import BOUND, DELETE, RELEASED, RETAIN, ClaimReference, PersistentVolume
from provisioner.capacityledger import Account, CapacityLedger, Charge, charge_of, unplaced
from tests.unit.provisioner.objects import CLASS, EXTENT

PLAIN = VolumeParameters()
MIRROR = VolumeParameters(raid="raid1")
POOL = Account("n1", "vg")


def made(name: str = "pvc-a", *, uid: str = "u1", size: int = EXTENT, policy: str = DELETE) -> PersistentVolume:
    return PersistentVolume(
        name=name,
        uid=uid,
        resource_version="1",
        size=size,
        access_modes=("ReadWriteOnce",),
        options={},
        filesystem="ext4",
        reclaim_policy=policy,
        storage_class=CLASS,
        provisioned_by=names.PROVISIONER,
        claim=ClaimReference("default", "data", name.removeprefix("pvc-")),
        node_label="n1",
        hostnames=("host-n1",),
        pool="vg",
        phase=BOUND,
        finalizers=(names.FINALIZER,),
        deleting=False,
    )


def test_a_volume_weighs_until_its_finalizer_is_gone() -> None:
    volume = made()
    going = replace(volume, deleting=True, phase=RELEASED)
    assert charge_of(going) == Charge(POOL, EXTENT, PLAIN)
    assert charge_of(replace(going, finalizers=("somebody/else",))) is None


def test_a_volume_without_a_node_is_charged_to_its_class_while_usable() -> None:
    volume = replace(made(), node_label="", hostnames=(), finalizers=())
    assert charge_of(volume) == Charge(unplaced(CLASS), EXTENT, PLAIN)
    assert charge_of(replace(volume, phase=RELEASED)) is None


def test_options_that_nobody_can_read_still_weigh() -> None:
    assert charge_of(replace(made(), options={"colour": "red"})) == Charge(POOL, EXTENT, PLAIN)


def test_a_sum_follows_the_granularity_it_is_asked_for() -> None:
    ledger = CapacityLedger()
    ledger.observe(made(size=EXTENT + 1))
    ledger.observe(made("pvc-b", size=1))
    assert ledger.reserved(POOL, EXTENT) == 3 * EXTENT
    assert ledger.reserved(POOL, 1) == EXTENT + 2
    assert ledger.reserved(POOL, EXTENT, excluding={"pvc-b"}) == 2 * EXTENT


def test_a_volume_that_was_pinned_moves_from_its_class_to_its_node() -> None:
    ledger = CapacityLedger()
    ledger.observe(replace(made(), node_label="", hostnames=(), pool=""))
    assert (ledger.reserved(unplaced(CLASS), EXTENT), ledger.reserved(POOL, EXTENT)) == (EXTENT, 0)
    ledger.observe(made())
    assert (ledger.reserved(unplaced(CLASS), EXTENT), ledger.reserved(POOL, EXTENT)) == (0, EXTENT)


def test_a_late_deletion_event_does_not_end_a_namesakes_reservation() -> None:
    ledger = CapacityLedger()
    ledger.observe(made(uid="old"))
    ledger.reserve("pvc-a", Charge(POOL, EXTENT, PLAIN), 0)
    ledger.confirm("pvc-a", "new")
    ledger.observe_deleted("pvc-a")
    assert ledger.reserved(POOL, EXTENT) == EXTENT


def test_a_retained_volume_that_came_back_counts_twice_until_published() -> None:
    ledger = CapacityLedger()
    ledger.observe(made(uid="old", policy=RETAIN))
    assert ledger.observe_deleted("pvc-a")
    ledger.observe(made(uid="new", policy=RETAIN))
    assert ledger.reserved(POOL, EXTENT) == 2 * EXTENT
    ledger.release_retained("old")
    assert ledger.reserved(POOL, EXTENT) == EXTENT


@dataclass
class _Request:
    """A creation that we sent."""

    volume: PersistentVolume
    sent: float
    first: bool
    """No try before it whose answer was lost."""
    answered: bool = False
    alive: bool = True
    """It may still be carried out."""


@dataclass
class _Server:
    """The truth: what exists, what the node publishes, and what the watches have told of it."""

    allocatable: int
    volumes: dict[str, PersistentVolume] = field(default_factory=dict)
    watch: list[tuple[str, PersistentVolume | None]] = field(default_factory=list)
    figures: list[int] = field(default_factory=list)


LIFETIME = 90.0
NAMES = [f"pvc-{letter}" for letter in "abc"]


class Interleavings(RuleBasedStateMachine):
    """One node, some claims that are provisioned, fail, vanish and come back; requests that are carried out late;
    two watches that lag, each in its own order."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = CapacityLedger()
        self.server = _Server(4 * EXTENT)
        self.known_allocatable = self.server.allocatable
        self.now = 0.0
        self.uids = 0
        self.requests: list[_Request] = []

    @rule(
        name=st.sampled_from(NAMES),
        extents=st.integers(1, 3),
        layout=st.sampled_from([PLAIN, MIRROR]),
        policy=st.sampled_from([DELETE, RETAIN]),
    )
    def provision(self, name: str, extents: int, layout: VolumeParameters, policy: str) -> None:
        if self.ledger.exists(name, name.removeprefix("pvc-")) or any(
            request.volume.name == name and not request.answered for request in self.requests
        ):
            return
        charge = Charge(POOL, extents * EXTENT, layout)
        needed = capacity.footprint(charge.size, layout, EXTENT)
        if needed > self.known_allocatable - self.ledger.reserved(POOL, EXTENT, excluding={name}):
            return
        before = self.ledger.reservation(name)
        if before is not None and before.charge != charge:
            return  # a class does not change: the second try asks for the same
        self.ledger.reserve(name, charge, self.now)
        self.uids += 1
        options = {"raid": "raid1"} if layout == MIRROR else {}
        volume = replace(made(name, uid=f"u{self.uids}", size=charge.size, policy=policy), options=options)
        self.requests.append(_Request(volume, self.now, before is None))

    def _carry_out(self, request: _Request) -> bool:
        request.alive = False
        if request.volume.name in self.server.volumes:
            return False
        self.server.volumes[request.volume.name] = request.volume
        self.server.watch.append((request.volume.name, request.volume))
        return True

    @precondition(lambda self: any(not request.answered for request in self.requests))
    @rule(data=st.data(), outcome=st.sampled_from(["made", "refused", "lost", "lost and made", "late", "made"]))
    def answer(self, data: st.DataObject, outcome: str) -> None:
        request = data.draw(st.sampled_from([request for request in self.requests if not request.answered]))
        request.answered = True
        name = request.volume.name
        if outcome == "made":
            if self._carry_out(request):
                self.ledger.confirm(name, request.volume.uid)
            else:
                self.ledger.confirm(name, self.server.volumes[name].uid)
        elif outcome == "refused":
            request.alive = False
            if request.first:
                self.ledger.release(name)
        elif outcome == "lost":
            request.alive = False
        elif outcome == "lost and made":
            self._carry_out(request)

    @precondition(lambda self: any(request.alive and request.answered for request in self.requests))
    @rule(data=st.data())
    def late(self, data: st.DataObject) -> None:
        """A request whose answer was lost arrives."""
        request = data.draw(st.sampled_from([r for r in self.requests if r.alive and r.answered]))
        if self.now - request.sent < LIFETIME:
            self._carry_out(request)

    def _deletable(self) -> list[str]:
        """Nobody deletes a retained volume in the very second in which it is asked for once more, its first answer
        being lost: the two tries are taken for one volume, as they are one but for that."""
        return [
            name
            for name, volume in sorted(self.server.volumes.items())
            if volume.reclaim_policy == DELETE or self.ledger.reservation(name) is None
        ]

    @precondition(lambda self: self._deletable())
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """The node is done with a volume. What is retained makes the node smaller, published first."""
        name = data.draw(st.sampled_from(self._deletable()))
        volume = self.server.volumes.pop(name)
        if volume.reclaim_policy == RETAIN:
            self.server.allocatable -= self._weight(volume)
            self.server.figures.append(self.server.allocatable)
        self.server.watch.append((name, None))

    @precondition(lambda self: self.server.watch)
    @rule(everything=st.booleans())
    def hear_of_volumes(self, everything: bool) -> None:
        for _ in range(len(self.server.watch) if everything else 1):
            name, volume = self.server.watch.pop(0)
            if volume is None:
                self.ledger.observe_deleted(name)
            else:
                self.ledger.observe(volume)

    @precondition(lambda self: self.server.figures)
    @rule()
    def hear_of_figures(self) -> None:
        self.known_allocatable = self.server.figures.pop(0)

    @precondition(lambda self: not self.server.figures and any(map(self.ledger.retained, self._all_uids())))
    @rule()
    def make_sure_of_what_is_held(self) -> None:
        for uid in self._all_uids():
            self.ledger.release_retained(uid)

    def _all_uids(self) -> list[str]:
        return [f"u{number + 1}" for number in range(self.uids)]

    @precondition(lambda self: any(map(self.ledger.reservation, NAMES)))
    @rule(seconds=st.sampled_from([1.0, LIFETIME]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for request in self.requests:
            if self.now - request.sent >= LIFETIME:
                request.alive = False
        self.requests = [request for request in self.requests if request.alive or not request.answered]

    @precondition(lambda self: any(map(self.ledger.reservation, NAMES)))
    @rule(name=st.sampled_from(NAMES))
    def make_sure_of_a_booking(self, name: str) -> None:
        reservation = self.ledger.reservation(name)
        pending = any(request.volume.name == name and not request.answered for request in self.requests)
        if reservation is None or pending or self.now - reservation.since < LIFETIME:
            return
        if name in self.server.volumes:
            self.ledger.confirm(name, self.server.volumes[name].uid)
        else:
            self.ledger.release(name)

    def _weight(self, volume: PersistentVolume) -> int:
        return capacity.footprint(volume.size, volume.parameters(), EXTENT)

    @invariant()
    def never_beyond_what_the_node_has(self) -> None:
        assert sum(map(self._weight, self.server.volumes.values())) <= self.server.allocatable

    def teardown(self) -> None:
        """When all is said and done the ledger holds what exists, to the byte: no capacity is lost for ever."""
        for request in self.requests:
            request.alive, request.answered = False, True
        self.now += LIFETIME
        for name in NAMES:
            self.make_sure_of_a_booking(name)
        if self.server.watch:
            self.hear_of_volumes(everything=True)
        self.server.figures.clear()
        self.make_sure_of_what_is_held()
        exist = sum(map(self._weight, self.server.volumes.values()))
        assert self.ledger.reserved(POOL, EXTENT) == exist
        assert all(self.ledger.reservation(name) is None for name in NAMES)


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
