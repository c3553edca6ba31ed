"""Volume expansion: what a claim requests beyond what it has is granted only when its pool has the capacity.

A FlexVolume. Kubernetes raises spec.capacity as soon as a claim asks for more, because it has no driver of ours to ask
first, and the kubelet starts no pod whose volume does not become as large as spec.capacity says. So the request is
granted in steps, each of which can be seen on the objects, and none of which keeps a pod from starting:

1. The pool has the capacity: it is reserved, and recorded as granted (names.GRANTED_ANNOTATION). Otherwise an event on
   the claim says so, spec.capacity goes back to what the claim has, and it is tried again when capacity is freed.
2. The node extends the volume to what was granted, and records its size (names.SIZE_ANNOTATION).
3. spec.capacity is set to what the claim requests. The kubelet has the filesystem grow, for which the volume is large
   enough by now, and writes the new size into the claim's status.

A claim may be lowered again. What the kubelet is to grow to is in the claim's status, and stays there when a claim
is lowered (the recovery of Kubernetes 1.34), so it is corrected before spec.capacity is raised. A claim may also be
deleted meanwhile. Kubernetes tells the next claim of its volume, if that is retained, that it has what spec.capacity
says, so there that goes back to what the volume has.

A CSI volume. Kubernetes leaves it to its driver (ExternalExpanding), and nobody but us raises spec.capacity. The steps
are the same, and the claim's status says how far they are, as the external-resizer of Kubernetes writes it (KEP 1790,
pkg/controller/expand_and_recover.go), but for one thing: there is room before anything is begun.

| the claim requests more than it has, and | status.allocatedResourceStatuses | condition | spec.capacity |
|---|---|---|---|
| its node is at it (it is at least allocatedResources) | of the kubelet, left alone | left alone | stays |
| there is no room | ControllerResizeInfeasible | ControllerResizeError, with the figures | stays |
| there is, and its node has not given it yet | ControllerResizeInProgress, allocatedResources | Resizing | stays |
| the volume has it | NodeResizePending, allocatedResources | FileSystemResizePending | what is requested |

In the last step the status comes first: what the kubelet finds there when spec.capacity is raised is what it grows to.
It calls NodeExpandVolume, for a block volume too, and writes status.capacity. When it gives up (NodeResizeInfeasible)
the volume is handed to it again, later. A claim that was lowered goes through the same table, and so recovers from any
of them. An API server before 1.32 drops allocatedResources and its statuses, so no step depends on finding them there.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from contract import quantity
from contract import volume as contract_volume
from contract.capacity import footprint
from contract.volume import AVAILABLE, BOUND, CSI, DELETE, RELEASED, PersistentVolume
from kube.claims import live_claim
from kube.client import STRATEGIC, Cluster
from kube.errors import ApiError, Conflict, Invalid, Json, NotFound, Unreachable
from kube.events import Recorder
from kube.records import (
    CONTROLLER_RESIZE_ERROR,
    NODE_RESIZE_ERROR,
    RESIZE_PENDING,
    RESIZING,
    Claim,
)
from kube.resources import CLAIMS, VOLUMES
from kube.workqueue import WorkQueue
from provisioner.capacityledger import Account, account_of, layout_of, unplaced
from provisioner.clusterstate import ClusterCache, Published, is_current
from provisioner.decision import AvailableCapacity, Refuse, on_any_node, request_text, required_bytes
from provisioner.index import Index
from service import logs

_log = logging.getLogger(__name__)

RESIZE_FAILED, RESIZE_REQUIRED = "VolumeResizeFailed", "FileSystemResizeRequired"
NODE_GRACE = 5.0
"""Seconds that a node gets to extend a volume before spec.capacity goes back: mostly it takes less than one."""
RECHECK_SECONDS = 120.0
"""Seconds after which an expansion is tried again, though nothing has changed that we know of."""

CONTROLLER_IN_PROGRESS, CONTROLLER_INFEASIBLE = "ControllerResizeInProgress", "ControllerResizeInfeasible"
NODE_PENDING, NODE_IN_PROGRESS, NODE_INFEASIBLE = "NodeResizePending", "NodeResizeInProgress", "NodeResizeInfeasible"
"""Of status.allocatedResourceStatuses."""
_UNDER_WAY = (CONTROLLER_IN_PROGRESS, NODE_PENDING, NODE_IN_PROGRESS)
"""The kubelet lets the volume grow, or will do so soon."""
_PENDING_MESSAGE = "Waiting for user to (re-)start a pod to finish file system resize of volume on node."
"""The words of Kubernetes, which some programs look for. A pod that runs need not be started again."""


@dataclass(frozen=True)
class ExpansionPlan:
    """How PersistentVolume and claim should be. Sizes in bytes."""

    granted: int
    capacity: int
    allocated: int = 0
    """What the claim's status is to have the kubelet grow to. 0: it is right as it is."""
    step: str | None = None
    """What the claim's status is to say how far it is. Empty: nothing; None: it is right as it is."""
    pre_resize: int = 0
    """See names.PRE_RESIZE_ANNOTATION, for CSI volumes."""
    waits: bool = False
    """It was granted, and its node has not given it yet."""
    refused: str = ""
    """Why it is not granted."""


def refusal(volume: PersistentVolume, claim: Claim, available: AvailableCapacity) -> str:
    """Why what the claim asks for can't be granted, empty when it can. `available`: those of
    ClusterCache.available_for_growth."""
    layout = layout_of(volume)
    if not volume.node_label:
        decision = on_any_node(claim, layout, available)
        return decision.why if isinstance(decision, Refuse) else ""
    remedy = (
        f"it keeps the {quantity.humane(claim.capacity)} that it has and grows by itself when there is space; free up "
        f"space on that node, or lower the claim again, to anything above {quantity.humane(claim.capacity)}"
    )
    if not available.nodes:
        return (
            f"node {volume.node_label} publishes no capacity of pool {volume.pool} (is its elastic-local daemon "
            f"ready?): {remedy}"
        )
    (on_node,) = available.nodes
    has = footprint(volume.charged_size, layout, on_node.published.granularity)
    more = required_bytes(claim, layout, on_node) - has
    if more <= max(on_node.free, 0):
        return ""
    return (
        f"{request_text(claim, layout, on_node)}, {quantity.humane(more)} more than it has, and node "
        f"{volume.node_label} has {quantity.humane(max(on_node.free, 0))} left in pool {volume.pool}: {remedy}"
    )


def plan(volume: PersistentVolume, claim: Claim, refused: str, *, in_grace: bool) -> ExpansionPlan:
    """`refused`: what `refusal` says. `in_grace`: its node may still be about to extend it."""
    requested = claim.requested
    has = max(claim.capacity, volume.created_size)
    # Where nobody wrote down a grant, what the kubelet saw was granted: the status is nobody's but its own to write.
    granted = max(volume.created_size, min(has, volume.size)) if volume.granted is None else volume.granted
    if requested <= granted:
        granted = max(requested, has, min(volume.actual, granted))
        refused = ""
    elif not refused:
        granted = requested
    if volume.source == CSI:
        return _plan_csi(volume, claim, granted, has, refused)
    if requested <= has:
        return ExpansionPlan(granted, min(volume.size, has))
    actual = volume.actual or (volume.created_size if volume.made else 0)
    if refused or (volume.node_label and actual < requested):
        keeps = in_grace and not refused and volume.size <= requested
        return ExpansionPlan(
            granted, volume.size if keeps else min(volume.size, has), waits=not refused, refused=refused
        )
    if not claim.allocated or (claim.allocated == requested and claim.resize_status in _UNDER_WAY):
        return ExpansionPlan(granted, requested)
    return ExpansionPlan(granted, requested, requested, NODE_PENDING)


def plan_without_claim(volume: PersistentVolume) -> ExpansionPlan | None:
    """None for one that is right as it is, or goes."""
    goes = volume.deleting or (volume.released and volume.reclaim_policy == DELETE)
    has = max(volume.actual, volume.target_size)  # its node may have made it as large, and not said so yet
    if goes or not volume.created_size or volume.size <= has:
        return None
    return ExpansionPlan(max(volume.created_size, has) if volume.granted is None else volume.granted, has)


def _plan_csi(volume: PersistentVolume, claim: Claim, granted: int, has: int, refused: str) -> ExpansionPlan:
    """See the table above. `granted`, `has`: of `plan`."""
    requested, step = claim.requested, claim.resize_status
    if requested <= has:
        begun = step in (CONTROLLER_IN_PROGRESS, CONTROLLER_INFEASIBLE)
        return ExpansionPlan(granted, min(volume.size, has), step="" if begun else None)
    capacity = min(volume.size, max(has, granted))
    pre_resize = has if capacity > has else 0
    waits = bool(volume.node_label) and (volume.actual or (volume.created_size if volume.made else 0)) < requested
    if step in (NODE_PENDING, NODE_IN_PROGRESS) and capacity >= claim.allocated > has:
        return ExpansionPlan(granted, capacity, pre_resize=pre_resize, waits=waits and not refused, refused=refused)
    if refused:
        return ExpansionPlan(granted, capacity, step=CONTROLLER_INFEASIBLE, pre_resize=pre_resize, refused=refused)
    if waits:
        return ExpansionPlan(granted, capacity, requested, CONTROLLER_IN_PROGRESS, pre_resize, waits=True)
    return ExpansionPlan(granted, requested, requested, NODE_PENDING, has)


def wanted_conditions(step: str, refused: str) -> dict[str, str | None]:
    """Of the claim of a CSI volume, type to message; None: there is to be none."""
    if step == CONTROLLER_IN_PROGRESS:
        return {RESIZING: "", **dict.fromkeys((RESIZE_PENDING, CONTROLLER_RESIZE_ERROR, NODE_RESIZE_ERROR))}
    if step == CONTROLLER_INFEASIBLE:
        return {CONTROLLER_RESIZE_ERROR: refused, RESIZING: None}
    if step == NODE_PENDING:
        return {RESIZE_PENDING: _PENDING_MESSAGE, CONTROLLER_RESIZE_ERROR: None}
    return {RESIZING: None, CONTROLLER_RESIZE_ERROR: None}


def status_patch(volume: PersistentVolume, claim: Claim, planned: ExpansionPlan, now: str) -> Json:
    """The strategic merge patch of this very version of a claim, empty when its status is as it should be. `now`: the
    time as the API writes it."""
    status: Json = {}
    if planned.allocated not in (0, claim.allocated):
        status["allocatedResources"] = {"storage": quantity.render(planned.allocated)}
    if planned.step not in (None, claim.resize_status):
        status["allocatedResourceStatuses"] = {"storage": planned.step or None}
    if planned.step is not None and volume.source == CSI:
        present = dict(claim.resize_conditions)
        conditions = [
            {"type": kind, "$patch": "delete"}
            if message is None
            else {"type": kind, "status": "True", "message": message, "lastTransitionTime": now}
            for kind, message in wanted_conditions(planned.step, planned.refused).items()
            if (kind in present if message is None else present.get(kind) != message)
        ]
        if conditions:
            status["conditions"] = conditions
    if not status:
        return {}
    return {"metadata": {"uid": claim.uid, "resourceVersion": claim.resource_version}, "status": status}


def settled(volume: PersistentVolume) -> bool:
    """Whether it says of itself that it has what it was granted, and nobody raised its spec.capacity."""
    return volume.size == volume.target_size and not (volume.source == CSI and volume.pre_resize)


class ExpansionController:
    """The controller: looks at one volume at a time, by name."""

    def __init__(
        self,
        cluster: Cluster,
        cache: ClusterCache,
        recorder: Recorder,
        *,
        parallelism: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._cache = cache
        self._recorder = recorder
        self._clock = clock
        self._refused = Index[Account]()
        """Volumes whose expansion waits for capacity, by where it may come from: their node, or the class."""
        self._waiting: dict[str, float] = {}
        """Since when a volume's node has not given it what it was granted."""
        self._handed_over: dict[str, tuple[int, float]] = {}
        """Volumes that a kubelet gave up to grow: to how many bytes it was asked to try again, and when."""
        self.queue = WorkQueue(self._handle, parallelism=parallelism, of="volume")
        cache.claims.subscribe(self._claim_changed)
        cache.volumes.subscribe(self._volume_changed)
        cache.capacities.subscribe(self._capacity_changed)

    def _claim_changed(self, key: str, old: Claim | None, new: Claim | None) -> None:
        claim = new or old
        if claim is not None and claim.volume_name:
            self.queue.add(claim.volume_name)

    def _volume_changed(self, name: str, old: PersistentVolume | None, new: PersistentVolume | None) -> None:
        if old is not None and (new is None or new.charged_size < old.charged_size):
            self.capacity_freed(account_of(old))
        if new is not None and (not settled(new) or name in self._waiting or self._was_left(old, new)):
            self.queue.add(name)

    def _was_left(self, old: PersistentVolume | None, new: PersistentVolume) -> bool:
        """Whether its claim, which grows, may have been looked at and left: the cache of claims was ahead of this one,
        in which the volume was not, or not Bound yet."""
        if old is not None and old.phase == new.phase:
            return False
        claim = self._cache.claims.get(str(new.claim))
        return claim is not None and claim.grows

    def _capacity_changed(self, key: str, old: Published | None, new: Published | None) -> None:
        # Each new volume moves `available`, on which nothing is decided here.
        if new and (not old or replace(new.capacity, available=0) != replace(old.capacity, available=0)):
            self.capacity_freed(Account(new.capacity.node, new.capacity.pool))

    def capacity_freed(self, account: Account) -> None:
        """Look again at those that wait for it."""
        of_classes = map(unplaced, self._cache.classes_of(account))
        for place in (*of_classes, _any_pool(account.node)):
            for name in self._refused.get(place):
                self.queue.add(name)

    async def _handle(self, name: str) -> None:
        volume = self._cache.volumes.get(name)
        if volume is not None and volume.phase in (AVAILABLE, RELEASED) and (planned := plan_without_claim(volume)):
            with logs.about(volume=name):
                await self._reset(volume, planned)
        if volume is None or volume.claim is None or volume.deleting or volume.phase != BOUND:
            self._forget(name)
            return
        with logs.about(volume=name, claim=str(volume.claim)):
            await self._reconcile(volume)

    async def _reconcile(self, volume: PersistentVolume) -> None:
        """Decided first on the cached claim, which costs nothing: many expansions may wait for a long time. What the
        kubelet says in the claim's status follows from what we wrote to its volume, so with an older one than that its
        status would go back a step while it is at it. So the volume is asked for, too, and after the claim."""
        assert volume.claim
        claim = self._cache.claims.get(str(volume.claim))
        if claim is None and settled(volume) and volume.name not in self._waiting:
            self._forget(volume.name)
            return
        if claim is None or claim.uid != volume.claim.uid or _differs(volume, claim, self._plan(volume, claim)):
            claim = await live_claim(self._cluster, volume.claim)
            if claim is None or claim.volume_name != volume.name or not claim.capacity:
                self._forget(volume.name)
                return
            if not await is_current(self._cluster, volume):
                self.queue.catch_up(volume.name)
                return
        planned = self._plan(volume, claim)
        self._track(volume, claim, planned)
        if not _differs(volume, claim, planned) or self._retries_later(volume, claim, planned):
            return
        if planned.granted > volume.charged_size:
            self._cache.ledger.reserve_growth(volume, planned.granted)
            _log.info("granted %d bytes", planned.granted)
        try:
            await self._write(volume, claim, planned)
        except Conflict:
            self.queue.catch_up(volume.name)
        except NotFound:
            self._cache.ledger.release_growth(volume.name)
        except Unreachable:
            raise
        except ApiError:
            self._cache.ledger.release_growth(volume.name)
            raise

    async def _reset(self, volume: PersistentVolume, planned: ExpansionPlan) -> None:
        """Of this very version: it may be bound by now, or gone, and either is shown by the watch."""
        body = contract_volume.grant_patch(volume, planned.granted, planned.capacity, volume.pre_resize)
        with contextlib.suppress(Conflict, NotFound):
            await self._cluster.patch(VOLUMES, volume.name, body)
            _log.info("spec.capacity is %d bytes again: that is what it has", planned.capacity)

    def _plan(self, volume: PersistentVolume, claim: Claim) -> ExpansionPlan:
        in_grace = self._clock() - self._waiting.get(volume.name, self._clock()) < NODE_GRACE
        return plan(volume, claim, refusal(volume, claim, self._cache.available_for_growth(volume)), in_grace=in_grace)

    def _track(self, volume: PersistentVolume, claim: Claim, planned: ExpansionPlan) -> None:
        if planned.refused:
            if volume.name not in self._refused:
                _log.info("not granted: %s", planned.refused)
            account = _any_pool(volume.node_label) if volume.node_label else unplaced(volume.storage_class)
            self._refused.put(volume.name, (account,))
            self._recorder.warning(claim.reference, RESIZE_FAILED, planned.refused)
            self.queue.add_after(volume.name, RECHECK_SECONDS)
        else:
            self._refused.discard(volume.name)
        if planned.waits:
            self._waiting.setdefault(volume.name, self._clock())
            self.queue.add_after(volume.name, NODE_GRACE if planned.capacity == claim.requested else RECHECK_SECONDS)
        else:
            self._waiting.pop(volume.name, None)

    async def _write(self, volume: PersistentVolume, claim: Claim, planned: ExpansionPlan) -> None:
        """The claim's status first: what the kubelet finds there is what it writes down as grown."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if body := status_patch(volume, claim, planned, now):
            try:
                await self._cluster.patch(CLAIMS, claim.name, body, claim.namespace, "status", content_type=STRATEGIC)
            except Invalid as error:
                # Before 1.31 there was another word, behind a feature gate. It only reports.
                if planned.step != CONTROLLER_INFEASIBLE:
                    raise
                _log.info("the API server does not know the status of a claim that can't grow: %s", error)
        if _volume_differs(volume, planned):
            body = contract_volume.grant_patch(volume, planned.granted, planned.capacity, planned.pre_resize)
            await self._cluster.patch(VOLUMES, volume.name, body)
            if planned.step == NODE_PENDING and volume.source == CSI:
                self._recorder.normal(claim.reference, RESIZE_REQUIRED, "Require file system resize of volume on node")
        if claim.resize_status == NODE_INFEASIBLE:
            self._handed_over[volume.name] = planned.allocated, self._clock()

    def _retries_later(self, volume: PersistentVolume, claim: Claim, planned: ExpansionPlan) -> bool:
        """Whether the kubelet, which just gave up, is to be left alone for a while."""
        if volume.source != CSI or claim.resize_status != NODE_INFEASIBLE or planned.step != NODE_PENDING:
            return False
        size, since = self._handed_over.get(volume.name, (0, 0.0))
        rest = since + RECHECK_SECONDS - self._clock()
        if size != planned.allocated or rest <= 0:
            return False
        self.queue.add_after(volume.name, rest)
        return True

    def _forget(self, name: str) -> None:
        self._refused.discard(name)
        self._waiting.pop(name, None)
        self._handed_over.pop(name, None)


def _any_pool(node: str) -> Account:
    """Pools of a node may share a filesystem."""
    return Account(node, "")


def _differs(volume: PersistentVolume, claim: Claim, planned: ExpansionPlan) -> bool:
    return bool(status_patch(volume, claim, planned, "")) or _volume_differs(volume, planned)


def _volume_differs(volume: PersistentVolume, planned: ExpansionPlan) -> bool:
    """What a FlexVolume's PersistentVolume says of a claim that grows, Kubernetes writes."""
    if volume.source == CSI and volume.pre_resize != planned.pre_resize:
        return True
    return (volume.granted, volume.size) != (planned.granted, planned.capacity)
