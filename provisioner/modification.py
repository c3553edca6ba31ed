"""Volume modification: a claim that names another VolumeAttributesClass gets the I/O limits of that.

This is the external-resizer's part (pkg/modifycontroller; KEP 3751), and the claim's status says how far it is as that
writes it. The deed itself is one patch of the PersistentVolume, which has class and limits from then on or neither;
its node reads them there (daemon/kubelet/iolimits.py). So nothing is ever uncertain, and a claim that names yet another
class meanwhile is served at once.

| the claim names | status.modifyVolumeStatus | conditions |
|---|---|---|
| a class that is not there | Pending; currentVolumeAttributesClassName is what its volume has | left alone |
| one that its volume can't have | Infeasible; likewise | ModifyingVolume; ModifyVolumeError says why |
| one that it can have | InProgress | ModifyingVolume |
| the one that its volume has | none; currentVolumeAttributesClassName | neither |
| none any more (only until it had one) | as it is; one in progress is finished | no ModifyingVolume |
"""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime

from contract import volume as contract_volume
from contract.capacity import Capacity
from contract.parameters import ParameterError, VolumeParameters
from contract.volume import BOUND, CSI, PersistentVolume
from kube import records
from kube.client import STRATEGIC, Cluster
from kube.errors import Conflict, Json, NotFound
from kube.events import Recorder
from kube.records import LONGEST_MESSAGE, MODIFY_VOLUME_ERROR, MODIFYING_VOLUME, Claim, VolumeAttributesClass
from kube.resources import CLAIMS, VOLUMES
from kube.workqueue import WorkQueue
from provisioner.clusterstate import ClusterCache, is_current
from provisioner.decision import ClassMissing, limited
from service import logs

_log = logging.getLogger(__name__)

MODIFY, MODIFY_SUCCESSFUL, MODIFY_FAILED = "VolumeModify", "VolumeModifySuccessful", "VolumeModifyFailed"
MODIFY_CANCELED = "VolumeModifyCanceled"
PENDING, IN_PROGRESS, INFEASIBLE = "Pending", "InProgress", "Infeasible"
"""Of status.modifyVolumeStatus."""
RECHECK_SECONDS = 120.0
"""Seconds after which a change that can't be made is tried again, though nothing has changed that we know of."""
_READING = 0.5
"""Seconds between two looks while the classes are being read."""


@dataclass(frozen=True)
class Settled:
    """Nothing to do."""


@dataclass(frozen=True)
class Wait:
    """Nothing to say yet: look again soon."""


@dataclass(frozen=True)
class RolledBack:
    """The claim names no class any more, and its volume never had one."""


@dataclass(frozen=True)
class Pend:
    """The class is not there, and why."""

    target: str
    why: str


@dataclass(frozen=True)
class Refuse:
    """The volume can't have the class as things are, and why."""

    target: str
    why: str


@dataclass(frozen=True)
class Modify:
    """The PersistentVolume is to get the class, and these limits."""

    target: str
    parameters: VolumeParameters


@dataclass(frozen=True)
class Complete:
    """The PersistentVolume has the class: the claim's status is to say so."""

    target: str


Plan = Settled | Wait | RolledBack | Pend | Refuse | Modify | Complete


def target_of(claim: Claim) -> str:
    """The class that its volume is to have. Empty: none, or the one that it has."""
    if claim.attributes_class:
        return claim.attributes_class
    return claim.modify_target if claim.modify_status == IN_PROGRESS else ""


def plan(
    volume: PersistentVolume,
    claim: Claim,
    attributes: VolumeAttributesClass | ClassMissing | None,
    published: Capacity | None,
) -> Plan:
    """`attributes`: of target_of(claim). `published`: what the volume's node publishes for its StorageClass."""
    target = target_of(claim)
    if not target or attributes is None:
        return RolledBack() if MODIFYING_VOLUME in dict(claim.modify_conditions) else Settled()
    if target == claim.current_attributes_class and not claim.modify_status and not claim.modify_conditions:
        return Settled()
    if volume.attributes_class == target:
        return Complete(target)
    if isinstance(attributes, ClassMissing):
        return Wait() if attributes.unread else Pend(target, attributes.why)
    named = f"VolumeAttributesClass {target}"
    if volume.source != CSI:
        return Refuse(
            target,
            f"{named}: volume {volume.name} is a FlexVolume, whose limits can't be changed: move its claim to CSI "
            "first (elastic-local migrate)",
        )
    try:
        changed = limited(volume.parameters(), attributes)
    except ParameterError as error:
        return Refuse(
            target, f"{named}: {error}. It can't be changed: make another one, and name that"[:LONGEST_MESSAGE]
        )
    if changed.limits_io and published is not None and not published.block:
        return Refuse(
            target,
            f"{named}: volume {volume.name} is a folder of node {volume.node_label} (BINDMOUNT), and I/O is limited by "
            "device: it can have no limits",
        )
    return Modify(target, changed)


def status_patch(claim: Claim, planned: Plan, now: str, *, has: str) -> Json:
    """The strategic merge patch of this very version of a claim, empty when its status is as it should be. `now`: the
    time as the API writes it. `has`: the class that its volume has."""
    status: Json = {}
    conditions: dict[str, tuple[str, str] | None] = {}
    """By type, reason and message. None: there is to be none."""
    step, target, current = "", "", claim.current_attributes_class
    match planned:
        case Settled() | Wait():
            return {}
        case RolledBack():
            conditions = {MODIFYING_VOLUME: None}
            step, target = claim.modify_status, claim.modify_target
        case Pend(target, _):
            step, current = PENDING, has
        case Modify(target, _):
            step = IN_PROGRESS
            conditions = {
                MODIFYING_VOLUME: ("", f'Modifying volume to "{target}" is in progress.'),
                MODIFY_VOLUME_ERROR: None,
            }
        case Refuse(target, why):
            step, current = INFEASIBLE, has
            conditions = {
                MODIFYING_VOLUME: ("", f'Modifying volume to "{target}" failed. Waiting for retry.'),
                MODIFY_VOLUME_ERROR: ("InvalidArgument", why),
            }
        case Complete(target):
            conditions = dict.fromkeys((MODIFYING_VOLUME, MODIFY_VOLUME_ERROR))
            current, target = target, ""
    if current != claim.current_attributes_class:
        status["currentVolumeAttributesClassName"] = current
    if (step, target) != (claim.modify_status, claim.modify_target):
        status["modifyVolumeStatus"] = {"status": step, "targetVolumeAttributesClassName": target} if step else None
    present = dict(claim.modify_conditions)
    changed = [
        {"type": kind, "$patch": "delete"}
        if told is None
        else {
            "type": kind,
            "status": "True",
            **({"reason": told[0]} if told[0] else {}),
            "message": told[1],
            "lastTransitionTime": now,
        }
        for kind, told in conditions.items()
        if (kind in present if told is None else present.get(kind) != told[1])
    ]
    if changed:
        status["conditions"] = changed
    if not status:
        return {}
    return {"metadata": {"uid": claim.uid, "resourceVersion": claim.resource_version}, "status": status}


class ModificationController:
    """The controller: looks at one claim at a time, by key."""

    def __init__(self, cluster: Cluster, cache: ClusterCache, recorder: Recorder, *, parallelism: int) -> None:
        self._cluster = cluster
        self._cache = cache
        self._recorder = recorder
        self.queue = WorkQueue(self._handle, parallelism=parallelism, of="claim")
        cache.claims.subscribe(self._claim_changed)
        cache.volumes.subscribe(self._volume_changed)
        cache.attributes_classes.subscribe(self._class_changed)

    def _claim_changed(self, key: str, old: Claim | None, new: Claim | None) -> None:
        if new is not None and new.modifies:
            self.queue.add(key)

    def _volume_changed(self, name: str, old: PersistentVolume | None, new: PersistentVolume | None) -> None:
        claim = self._cache.claims.get(str(new.claim)) if new else None
        if claim is not None and claim.modifies:
            self.queue.add(claim.key)

    def _class_changed(self, name: str, old: VolumeAttributesClass | None, new: VolumeAttributesClass | None) -> None:
        for claim in self._cache.claims.values():
            if claim.modifies and target_of(claim) == name:
                self.queue.add(claim.key)

    async def _handle(self, key: str) -> None:
        claim = self._cache.claims.get(key)
        volume = self._cache.volumes.get(claim.volume_name) if claim is not None and claim.modifies else None
        if claim is None or volume is None or volume.deleting or volume.phase != BOUND:
            return
        if volume.claim is None or volume.claim.uid != claim.uid:
            return
        with logs.about(volume=volume.name, claim=key):
            try:
                await self._reconcile(volume, claim)
            except Conflict:
                self.queue.catch_up(key)
            except NotFound:
                _log.info("the claim or its volume is gone, the cache will know in a moment")

    async def _reconcile(self, volume: PersistentVolume, claim: Claim) -> None:
        published = self._cache.published_by(volume.node_label, volume.storage_class)
        planned = plan(volume, claim, self._cache.attributes_class(target_of(claim)), published)
        # It may have got a class that its claim does not name any more, by a change whose answer was lost.
        untold = isinstance(planned, Pend | Refuse) and volume.attributes_class != claim.current_attributes_class
        if (isinstance(planned, Complete) or untold) and not await is_current(self._cluster, volume):
            # It may have another class by now, which we gave it. A claim that says it is done is not looked at again.
            self.queue.catch_up(claim.key)
            return
        claim = await self._write_status(claim, planned, volume.attributes_class)
        match planned:
            case Wait():
                self.queue.add_after(claim.key, _READING)
            case Pend(_, why) | Refuse(_, why):
                _log.info("not modified: %s", why)
                self._recorder.warning(claim.reference, MODIFY_FAILED, why)
                self.queue.add_after(claim.key, RECHECK_SECONDS)
            case RolledBack():
                self._recorder.normal(claim.reference, MODIFY_CANCELED, "Cancelled modify.")
            case Modify(target, changed):
                what = f"volume {volume.name} with VolumeAttributesClass {target}"
                self._recorder.normal(claim.reference, MODIFY, f"modifying {what}")
                body = contract_volume.modification_patch(volume, target, changed)
                await self._cluster.patch(VOLUMES, volume.name, body)
                await self._complete(claim, target)
            case Complete(target):
                await self._complete(claim, target)

    async def _complete(self, claim: Claim, target: str) -> None:
        await self._write_status(claim, Complete(target), target)
        _log.info("modified to VolumeAttributesClass %s", target)
        self._recorder.normal(
            claim.reference,
            MODIFY_SUCCESSFUL,
            f"modified volume {claim.volume_name} with VolumeAttributesClass {target} successfully",
        )

    async def _write_status(self, claim: Claim, planned: Plan, has: str) -> Claim:
        """The claim as it is then."""
        body = status_patch(claim, planned, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), has=has)
        if not body:
            return claim
        written = await self._cluster.patch(CLAIMS, claim.name, body, claim.namespace, "status", content_type=STRATEGIC)
        return records.read_claim(written)
