"""Makes the volume of a claim: booked before it is asked for, told to the claim's owner, and its outcome found out.

Three outcomes. Made: the booking is settled, and Orphans looks whether the claim is still there. Refused by the API
server: no volume, the booking goes. No answer: there may be a volume or not, or there may be one in a second; the
booking stays, and the next try finds out, because the name follows from the claim.
"""

import logging
import time
from collections.abc import Callable

from contract import volume
from contract.volume import ClaimReference
from kube.client import VOLUMES, AlreadyExists, ApiError, Cluster, Json, Unreachable
from kube.events import Recorder
from kube.records import Claim, StorageClass
from provisioner import manifest
from provisioner.books import Account, Books, Charge, unplaced
from provisioner.decision import Create
from provisioner.doubts import Doubts
from provisioner.orphans import Orphans

_log = logging.getLogger(__name__)


class NotMade(Exception):
    """The volume could not be made, in words for the claim's owner. It is tried again."""


class Creation:
    """One attempt per call of `make`; the attempts of one claim never overlap."""

    def __init__(
        self,
        cluster: Cluster,
        books: Books,
        doubts: Doubts,
        orphans: Orphans,
        recorder: Recorder,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._books = books
        self._doubts = doubts
        self._orphans = orphans
        self._recorder = recorder
        self._clock = clock

    async def make(self, claim: Claim, storage_class: StorageClass, create: Create) -> str:
        """The name of the volume, which exists. Raises NotMade. Up to the first request nothing awaits, so that the
        room that the decision saw is the room that is booked."""
        name = manifest.volume_name(claim.uid)
        charge = Charge(_account(storage_class, create), create.size, create.parameters)
        before = self._books.booking(name)
        if before is not None and before.charge.account != charge.account:
            self._doubts.bookings.add(name)
            raise NotMade("it was asked for elsewhere already, and the answer was lost: waiting until that is clear")
        now = self._clock()
        self._books.book(name, charge, now)
        self._doubts.booked(name)
        self._recorder.normal(
            claim.reference,
            "Provisioning",
            f'External provisioner is provisioning volume for claim "{claim.key}"',
        )
        try:
            uid = await self._create(name, manifest.persistent_volume(claim, storage_class, create), claim)
        except Unreachable as error:
            raise NotMade(f"no answer from the API server: {error}") from error
        except (ApiError, NotMade) as error:
            # This try made nothing. One before it, whose answer was lost, still may.
            if before is None:
                self._books.release(name)
            if isinstance(error, NotMade):
                raise
            raise NotMade(f"the API server refuses the volume: {error}") from error
        self._books.settle(name, uid)
        self._orphans.check(name, uid, ClaimReference(claim.namespace, claim.name, claim.uid), now)
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
        found = await self._cluster.get(VOLUMES, name)
        metadata, reference = found["metadata"], found["spec"].get("claimRef") or {}
        if reference.get("uid") != claim.uid or volume.read(found) is None:
            raise NotMade(f"there is a PersistentVolume {name} already, and not for this claim: delete or rename it")
        if "deletionTimestamp" in metadata:
            raise NotMade(f"the claim's PersistentVolume {name} is being deleted: waiting until it is gone")
        _log.info("volume %s exists already, from a try whose answer was lost", name)
        uid: str = metadata["uid"]
        return uid


def _account(storage_class: StorageClass, create: Create) -> Account:
    if create.place is None:
        return unplaced(storage_class.name)
    return Account(create.place.node, create.place.pool)
