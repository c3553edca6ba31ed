"""Makes the PersistentVolume of a claim: reserves its capacity, requests it, reports it to the claim's owner, and finds
out what came of it.

Three outcomes. Created: the reservation is confirmed. Refused by the API server: no
volume, the reservation is released. No answer: there may be a volume or not, or there may be one in a second; the
reservation stays, and the next try finds out, because the name follows from the claim.

A claim may be deleted while its volume is made. With policy Delete the volume is found Released then, and reclaimed.
With Retain it would stay for ever, empty, so we give it policy Delete and delete it: each such claim is read once more
right after its volume exists. Later it is too late: a volume whose claim is gone by then may have been bound, written
and released without a trace, and so its policy decides.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from contract import names, parameters, quantity, volume
from contract.volume import DELETE, RETAIN, ClaimReference, NodeAssignment
from kube.backoff import Backoff
from kube.claims import live_claim
from kube.client import Cluster
from kube.errors import AlreadyExists, ApiError, Conflict, Json, NotFound, Unreachable
from kube.events import Recorder
from kube.records import Claim, StorageClass
from kube.resources import VOLUMES
from kube.workqueue import WorkQueue
from provisioner.capacityledger import Account, CapacityLedger, Charge, unplaced
from provisioner.decision import Create
from provisioner.reservations import ReservationVerifier

_log = logging.getLogger(__name__)
_UNUSED = 1.0
"""Seconds after which a volume may have been bound, mounted, written and left by a pod that ended."""
_GOING = 0.5
"""Seconds between two looks at a claim that is being deleted. No new pod may use it, so it stays as unused as it is."""


_CHANGING = 0.1
"""Seconds after which one that changed while it was to be deleted is looked at again."""


def volume_name(claim_uid: str) -> str:
    """The name follows from the claim, so that two who provision the same claim collide instead of making two."""
    return f"pvc-{claim_uid}"


def persistent_volume(claim: Claim, storage_class: StorageClass, create: Create) -> Json:
    """The manifest. A volume with a target gets its node assignment here, others with their first mount."""
    body: Json = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": volume_name(claim.uid),
            "annotations": {
                names.PROVISIONED_BY: storage_class.provisioner,
                names.GRANTED_ANNOTATION: str(create.size),
            },
        },
        "spec": {
            "capacity": {"storage": quantity.render(create.size)},
            "accessModes": list(claim.access_modes),
            "volumeMode": claim.volume_mode,
            "persistentVolumeReclaimPolicy": storage_class.reclaim_policy,
            "storageClassName": storage_class.name,
            **({"volumeAttributesClassName": create.attributes_class} if create.attributes_class else {}),
            "claimRef": {
                "kind": "PersistentVolumeClaim",
                "apiVersion": "v1",
                "namespace": claim.namespace,
                "name": claim.name,
                "uid": claim.uid,
                "resourceVersion": claim.resource_version,
            },
            **_volume_source(volume_name(claim.uid), create),
        },
    }
    if create.target is not None:
        target = create.target
        assignment = volume.node_assignment_patch(NodeAssignment(target.node, target.hostname, target.pool))
        body["metadata"]["annotations"] |= assignment["metadata"].pop("annotations")
        body["metadata"] |= assignment["metadata"]
        body["spec"] |= assignment["spec"]
    return body


def _volume_source(name: str, create: Create) -> Json:
    options = {
        **parameters.to_options(create.parameters, create.size),
        **(create.original.to_options() if create.original else {}),
    }
    return volume.source_spec(create.source, name, create.parameters.filesystem, options, create.secrets)


@dataclass(frozen=True)
class _Created:
    claim: ClaimReference
    uid: str
    unused: float
    """Monotonic seconds at which nobody had used it for certain."""
    gone: bool = False
    """The claim went in time: all that is left is to delete the volume."""


class DeletedClaimCheck:
    """Checks of volumes that were just made, each repeated until the API server answered."""

    def __init__(self, cluster: Cluster, *, parallelism: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster = cluster
        self._clock = clock
        self._created: dict[str, _Created] = {}
        backoff = Backoff(first=0.2, factor=2, limit=30)
        self.queue = WorkQueue(self._check, parallelism=parallelism, backoff=backoff, of="volume")

    def check(self, name: str, uid: str, claim: ClaimReference, since: float) -> None:
        """To be called once the volume is known to exist. `since`: monotonic seconds at which the
        claim was still unbound."""
        self._created[name] = _Created(claim, uid, since)
        self.queue.add(name)

    async def _check(self, name: str) -> None:
        made = self._created.get(name)
        if made is None:
            return
        if not made.gone:
            claim = await live_claim(self._cluster, made.claim)
            if self._created.get(name) is not made:
                return  # made anew meanwhile, and queued again
            if claim is not None and claim.deleting and not claim.volume_name:
                self._created[name] = replace(made, unused=self._clock())
                self.queue.add_after(name, _GOING)
                return
            if claim is not None or self._clock() - made.unused > _UNUSED:
                del self._created[name]
                return
            self._created[name] = made = replace(made, gone=True)
            named = {"volume": name, "claim": str(made.claim)}
            _log.info("the claim went while its volume was made: deleting the volume", extra=named)
        try:
            await self._delete(name, made)
        except NotFound:
            _log.info("somebody else deleted it", extra={"volume": name})
        except Conflict:
            self.queue.add_after(name, _CHANGING)
            return
        if self._created.get(name) is made:
            del self._created[name]

    async def _delete(self, name: str, made: _Created) -> None:
        """As it is now, and only while it is for that claim: it may take many tries, and somebody may have given it to
        another one meanwhile. With policy Delete, or its node, which may have made it by now, would keep it for ever.
        Raises ApiError."""
        body = await self._cluster.get(VOLUMES, name)
        present = volume.read_any(body)
        if present.uid != made.uid or present.claim is None or present.claim.uid != made.claim.uid:
            _log.info("somebody has another use for it", extra={"volume": name})
            return
        if present.reclaim_policy != DELETE:
            policy = {"persistentVolumeReclaimPolicy": DELETE}
            change = {"metadata": {"resourceVersion": present.resource_version}, "spec": policy}
            body = await self._cluster.patch(VOLUMES, name, change)
        await self._cluster.delete(VOLUMES, name, uid=made.uid, resource_version=body["metadata"]["resourceVersion"])


class ProvisioningFailed(Exception):
    """The volume could not be created, with a message for the claim's owner. It is tried again."""


class VolumeCreator:
    """One attempt per call of `make`; the attempts of one claim never overlap."""

    def __init__(
        self,
        cluster: Cluster,
        ledger: CapacityLedger,
        verifier: ReservationVerifier,
        claim_check: DeletedClaimCheck,
        recorder: Recorder,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self._verifier = verifier
        self._claim_check = claim_check
        self._recorder = recorder
        self._clock = clock

    async def create(self, claim: Claim, storage_class: StorageClass, create: Create) -> str:
        """The name of the volume, which exists. Raises ProvisioningFailed. Up to the first request nothing awaits, so
        that the capacity that the decision saw is the capacity that is reserved."""
        name = volume_name(claim.uid)
        charge = Charge(_account(storage_class, create), create.size, create.parameters)
        before = self._ledger.reservation(name)
        if before is not None and before.charge.account != charge.account:
            self._verifier.reservations.add(name)
            raise ProvisioningFailed(
                "it was requested elsewhere already, and the answer was lost: waiting until that is clear"
            )
        now = self._clock()
        self._ledger.reserve(name, charge, now)
        self._verifier.verify_later(name)
        try:
            uid = await self._create(name, persistent_volume(claim, storage_class, create), claim)
        except Unreachable as error:
            raise ProvisioningFailed(f"no answer from the API server: {error}") from error
        except (ApiError, ProvisioningFailed) as error:
            # This try made nothing. One before it, whose answer was lost, still may.
            if before is None:
                self._ledger.release(name)
            if isinstance(error, ProvisioningFailed):
                raise
            raise ProvisioningFailed(f"the API server refuses the volume: {error}") from error
        self._ledger.confirm(name, uid)
        if storage_class.reclaim_policy == RETAIN:
            self._claim_check.check(name, uid, ClaimReference(claim.namespace, claim.name, claim.uid), now)
        self._recorder.normal(claim.reference, "ProvisioningSucceeded", f"Successfully provisioned volume {name}")
        return name

    async def _create(self, name: str, body: Json, claim: Claim) -> str:
        try:
            made = await self._cluster.create(VOLUMES, body)
        except AlreadyExists:
            return await self._existing(name, claim)
        uid: str = made["metadata"]["uid"]
        return uid

    async def _existing(self, name: str, claim: Claim) -> str:
        """A volume of this name is ours from a try whose answer was lost, or not ours at all."""
        existing = volume.read(await self._cluster.get(VOLUMES, name))
        if existing is None or existing.claim is None or existing.claim.uid != claim.uid:
            raise ProvisioningFailed(
                f"there is a PersistentVolume {name} already, and not for this claim: delete or rename it"
            )
        if existing.deleting:
            raise ProvisioningFailed(f"the claim's PersistentVolume {name} is being deleted: waiting until it is gone")
        _log.info("volume %s exists already, from a try whose answer was lost", name)
        return existing.uid


def _account(storage_class: StorageClass, create: Create) -> Account:
    if create.target is None:
        return unplaced(storage_class.name)
    return Account(create.target.node, create.target.pool)
