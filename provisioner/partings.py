"""What is done to volumes and claims whose node will not come back. Each deed holds for the version of the object that
was judged, and for no other that has its name."""

import logging

from contract import volume
from contract.volume import PersistentVolume
from kube.client import CLAIMS, VOLUMES, ApiError, Cluster, Conflict, NotFound
from kube.events import ObjectReference, Recorder
from kube.informer import Informer
from provisioner import live
from provisioner.metrics import Metrics
from provisioner.nodeloss import Step, called
from provisioner.residents import Resident

_log = logging.getLogger(__name__)

VOLUME_REASON = "NodeDeleted"


class Partings:
    """`volumes` has the whole records of ours."""

    def __init__(
        self, cluster: Cluster, volumes: Informer[PersistentVolume], recorder: Recorder, metrics: Metrics
    ) -> None:
        self._cluster = cluster
        self._volumes = volumes
        self._recorder = recorder
        self._metrics = metrics

    async def perform(self, step: Step, resident: Resident) -> None:
        """Raises ApiError. What is gone already is no error."""
        try:
            match step:
                case Step.LET_GO:
                    await self._let_go(resident)
                case Step.DELETE:
                    await self._delete(resident)
                case Step.DELETE_CLAIM:
                    await self._delete_claim(resident)
        except NotFound:
            return

    async def _let_go(self, resident: Resident) -> None:
        if resident.ours:
            found = self._volumes.get(resident.name)
            if found is None or found.uid != resident.uid:
                return
            await self._cluster.patch(VOLUMES, found.name, volume.releasing(found))
        else:
            body = await self._cluster.get(VOLUMES, resident.name)
            if (body["metadata"]["uid"], body["metadata"]["resourceVersion"]) != (
                resident.uid,
                resident.resource_version,
            ):
                return  # the cache hears of it in a moment
            await self._cluster.patch(VOLUMES, resident.name, volume.releasing_static(body))
        words = (
            f"node {called(resident.nodes)} was deleted and did not come back: the volume was let go, and what the "
            "node's disks hold stays there"
        )
        self._recorder.warning(volume_reference(resident), VOLUME_REASON, words)
        if claim := claim_reference(resident):
            self._recorder.warning(claim, VOLUME_REASON, f"volume {resident.name}: {words}")
        self._metrics.let_go(resident.storage_class)
        _log.warning("let go: %s", words)

    async def _delete(self, resident: Resident) -> None:
        if resident.claim is not None and await live.claim(self._cluster, resident.claim) is not None:
            return  # whatever the volume's phase says, somebody counts on it
        try:
            await self._cluster.delete(
                VOLUMES, resident.name, uid=resident.uid, resource_version=resident.resource_version
            )
        except (NotFound, Conflict):
            raise
        except ApiError:
            self._metrics.lost_volume_delete_failed(resident.phase)
            raise
        self._metrics.lost_volume_deleted(resident.phase)
        _log.warning("deleted, because node %s is gone", called(resident.nodes))

    async def _delete_claim(self, resident: Resident) -> None:
        """Only while it is the very claim that the volume is for, and still points at it."""
        claim = await live.claim(self._cluster, resident.claim) if resident.claim else None
        if claim is None or claim.deleting or claim.volume_name != resident.name:
            return
        try:
            await self._cluster.delete(
                CLAIMS, claim.name, claim.namespace, uid=claim.uid, resource_version=claim.resource_version
            )
        except (NotFound, Conflict):
            raise
        except ApiError:
            self._metrics.lost_claim_delete_failed()
            raise
        self._metrics.lost_claim_deleted()
        _log.warning("claim deleted, because node %s is gone", called(resident.nodes))


def volume_reference(resident: Resident) -> ObjectReference:
    return ObjectReference("PersistentVolume", "v1", "", resident.name, resident.uid)


def claim_reference(resident: Resident) -> ObjectReference | None:
    claim = resident.claim
    if claim is None or not claim.uid:
        return None
    return ObjectReference("PersistentVolumeClaim", "v1", claim.namespace, claim.name, claim.uid)
