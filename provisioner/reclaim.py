"""Deletes the PersistentVolumes that claims have left behind, where the policy says Delete.

Deleting the object is all that is done here: our finalizer keeps it until its node has removed the data.
"""

import logging
import time

from contract import names
from contract.volume import DELETE, PersistentVolume
from kube.claims import live_claim
from kube.client import Cluster
from kube.errors import ApiError, Conflict, NotFound
from kube.events import Recorder
from kube.informer import Informer
from kube.resources import VOLUMES
from kube.workqueue import WorkQueue
from provisioner.metrics import Metrics
from service import logs

_log = logging.getLogger(__name__)


class DeletionRefused(Exception):
    """The volume must not, or can't, be deleted as things are. It is tried again."""


def should_delete(volume: PersistentVolume) -> bool:
    """Whether a volume is ours to delete."""
    return (
        volume.released
        and volume.reclaim_policy == DELETE
        and volume.provisioned_by in names.PROVISIONERS
        and not volume.deleting
    )


class ReclaimController:
    """The controller of released volumes."""

    def __init__(
        self,
        cluster: Cluster,
        volumes: Informer[PersistentVolume],
        recorder: Recorder,
        metrics: Metrics,
        *,
        parallelism: int,
    ) -> None:
        self._cluster = cluster
        self._volumes = volumes
        self._recorder = recorder
        self._metrics = metrics
        self.queue = WorkQueue(self._handle, parallelism=parallelism, expected=(ApiError, DeletionRefused), of="volume")
        volumes.subscribe(self._changed)

    def _changed(self, name: str, old: PersistentVolume | None, new: PersistentVolume | None) -> None:
        if new is not None and should_delete(new):
            self.queue.add(name)

    async def _handle(self, name: str) -> None:
        volume = self._volumes.get(name)
        if volume is None or not should_delete(volume):
            return
        with logs.about(volume=name, claim=str(volume.claim or "")):
            started = time.monotonic()
            try:
                await self._delete(volume)
            except NotFound:
                return
            except Conflict:
                # It changed since the cache saw it, and may be wanted again: the next look decides anew.
                raise
            except (ApiError, DeletionRefused) as error:
                self._metrics.delete_failed(volume.storage_class)
                self._recorder.warning(volume.reference, "VolumeFailedDelete", str(error))
                raise
            self._metrics.deleted(volume.storage_class, time.monotonic() - started)
            _log.info("deleted: its node removes the data")

    async def _delete(self, volume: PersistentVolume) -> None:
        """Data does not come back, so nothing here is taken from a cache. The claim is asked for by uid: after a
        restore from a backup, or by a controller whose own cache lags, a volume may say Released while its claim is
        alive. And the deletion holds for the version that was judged only: its policy may be Retain by now."""
        node = volume.hostnames[0] if volume.pinned else volume.node_label
        if node and names.FINALIZER not in volume.finalizers:
            raise DeletionRefused(
                f"the volume has a node and not our finalizer, so its data would stay there unseen: add the finalizer "
                f"{names.FINALIZER} to have node {node} remove it, or delete the object yourself"
            )
        claim = await live_claim(self._cluster, volume.claim) if volume.claim else None
        if claim is not None and claim.volume_name not in ("", volume.name):
            raise DeletionRefused(
                f"the volume is Released, and its claim {volume.claim} is there and has volume {claim.volume_name}: "
                "if nothing on this one is needed, delete its PersistentVolume; if it is, set the policy to Retain"
            )
        if claim is not None:
            raise DeletionRefused(
                f"the volume is Released, yet its claim {volume.claim} exists with the same uid: delete the claim, or "
                "set the policy to Retain and repair the volume"
            )
        await self._cluster.delete(VOLUMES, volume.name, uid=volume.uid, resource_version=volume.resource_version)
