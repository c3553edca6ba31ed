"""The persistent volume controller: claims and volumes find each other, and released volumes are reclaimed.

Source: pkg/controller/volume/persistentvolume of Kubernetes 1.36, without in-tree provisioners: whoever makes and
deletes volumes is external. Each write has the resourceVersion it was decided on; a conflict is only another try.
"""

import asyncio
import copy
import logging
from typing import Any

from contract import quantity
from kube.client import CLAIMS, VOLUMES, Cluster, NotFound
from kube.events import Recorder
from kube.workqueue import Backoff, WorkQueue
from tests.sandbox.controlplane import binding, resizing
from tests.sandbox.controlplane.caches import (
    BIND_COMPLETED,
    BOUND_BY_CONTROLLER,
    NO_PROVISIONER,
    PROVISIONED_BY,
    SELECTED_NODE,
    STORAGE_PROVISIONER,
    STORAGE_PROVISIONER_BETA,
    Caches,
    annotations,
    class_name,
    deleting,
    key_of,
    phase,
    reference,
)

Json = dict[str, Any]

_log = logging.getLogger(__name__)
_BACKOFF = Backoff(first=0.05, factor=2, limit=5)
_RESYNC_SECONDS = 1.0
"""The real one looks at everything again every 15 s. Nothing else tells it that a claim went which was not bound yet,
and whose volume therefore is to be released."""
_WAITING_FOR_PROVISIONER = (
    "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system "
    "administrator. If volume creation is delayed, please verify that the provisioner is running and correctly "
    "registered."
)


class VolumeController:
    def __init__(self, cluster: Cluster, caches: Caches, recorder: Recorder) -> None:
        self._cluster = cluster
        self._caches = caches
        self._recorder = recorder
        self._claims = WorkQueue(self._sync_claim, parallelism=8, backoff=_BACKOFF)
        self._volumes = WorkQueue(self._sync_volume, parallelism=8, backoff=_BACKOFF)

    async def run(self) -> None:
        """For ever; the caches must be synced."""
        self._caches.claims.subscribe(self._claim_changed)
        self._caches.volumes.subscribe(self._volume_changed)
        self._caches.classes.subscribe(lambda *_: self._all_pending())
        await asyncio.gather(self._claims.run(), self._volumes.run(), self._resync())

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(_RESYNC_SECONDS)
            for volume in self._caches.volumes.values():
                self._volumes.add(key_of(volume))

    def _claim_changed(self, key: str, old: Json | None, new: Json | None) -> None:
        if new:
            self._claims.add(key)
        if volume := (new or old or {}).get("spec", {}).get("volumeName"):
            self._volumes.add(volume)

    def _volume_changed(self, key: str, old: Json | None, new: Json | None) -> None:
        if new:
            self._volumes.add(key)
        if claim := (new or old or {})["spec"].get("claimRef"):
            self._claims.add(f"{claim['namespace']}/{claim['name']}")
        elif new and phase(new) == "Available":
            self._all_pending()

    def _all_pending(self) -> None:
        for claim in self._caches.claims.values():
            if not claim["spec"].get("volumeName"):
                self._claims.add(key_of(claim))

    async def _sync_claim(self, key: str) -> None:
        claim = self._caches.claims.get(key)
        if claim is None:
            return
        if BIND_COMPLETED in annotations(claim):
            await self._sync_bound_claim(claim)
        elif volume_name := claim["spec"].get("volumeName"):
            volume = self._caches.volumes.get(volume_name)
            if volume and (_is_for(volume, claim) or not volume["spec"].get("claimRef")):
                await self._bind(volume, claim)
            else:
                await self._pend(claim)
        else:
            await self._sync_unbound_claim(claim)

    async def _sync_unbound_claim(self, claim: Json) -> None:
        storage_class = self._caches.classes.get(class_name(claim))
        delayed = binding.waits_for_consumer(storage_class)
        volume = next((volume for volume in self._caches.volumes.values() if _is_for(volume, claim)), None)
        if volume is None and not delayed:
            volume = binding.best_volume(claim, self._caches.volumes.values())
        if volume is not None:
            if binding.capacity_of(volume) < binding.requested(claim):
                self._warn(claim, "VolumeMismatch", "Cannot bind to requested volume: requested PV is too small")
                await self._pend(claim)
                return
            await self._bind(volume, claim)
            return
        await self._pend(claim)
        if delayed and SELECTED_NODE not in annotations(claim):
            self._tell(claim, "WaitForFirstConsumer", "waiting for first consumer to be created before binding")
        elif not class_name(claim):
            message = "no persistent volumes available for this claim and no storage class is set"
            self._tell(claim, "FailedBinding", message)
        elif storage_class is None:
            message = f'storageclass.storage.k8s.io "{class_name(claim)}" not found'
            self._warn(claim, "ProvisioningFailed", message)
        elif storage_class["provisioner"] != NO_PROVISIONER:
            await self._hand_to_provisioner(claim, storage_class["provisioner"])

    async def _hand_to_provisioner(self, claim: Json, provisioner: str) -> None:
        if annotations(claim).get(STORAGE_PROVISIONER) != provisioner:
            changed = copy.deepcopy(claim)
            notes = changed["metadata"].setdefault("annotations", {})
            notes[STORAGE_PROVISIONER] = notes[STORAGE_PROVISIONER_BETA] = provisioner
            metadata = claim["metadata"]
            await self._cluster.replace(CLAIMS, metadata["name"], changed, metadata["namespace"])
            self._tell(claim, "ExternalProvisioning", _WAITING_FOR_PROVISIONER.format(provisioner))

    async def _sync_bound_claim(self, claim: Json) -> None:
        volume = self._caches.volumes.get(claim["spec"].get("volumeName") or "")
        if volume is None:
            if phase(claim) != "Lost":
                self._warn(claim, "ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
                await self._set_claim_status(claim, {"phase": "Lost"})
        elif _is_for(volume, claim) and phase(claim) != "Bound":
            await self._set_claim_status(claim, _bound_status(volume))

    async def _bind(self, volume: Json, claim: Json) -> None:
        """In the real one's order: the volume's promise, its phase, the claim's volume, the claim's status."""
        name, metadata = volume["metadata"]["name"], claim["metadata"]
        if (volume["spec"].get("claimRef") or {}).get("uid") != metadata["uid"]:
            volume = copy.deepcopy(volume)
            if not volume["spec"].get("claimRef"):
                volume["metadata"].setdefault("annotations", {})[BOUND_BY_CONTROLLER] = "yes"
            volume["spec"]["claimRef"] = {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            }
            volume = await self._cluster.replace(VOLUMES, name, volume)
        await self._set_volume_phase(volume, "Bound")
        claim = copy.deepcopy(claim)
        notes = claim["metadata"].setdefault("annotations", {})
        notes[BIND_COMPLETED] = "yes"
        if not claim["spec"].get("volumeName"):
            claim["spec"]["volumeName"] = name
            notes[BOUND_BY_CONTROLLER] = "yes"
        claim = await self._cluster.replace(CLAIMS, metadata["name"], claim, metadata["namespace"])
        await self._set_claim_status(claim, _bound_status(volume))

    async def _sync_volume(self, key: str) -> None:
        volume = self._caches.volumes.get(key)
        if volume is None:
            return
        promised = volume["spec"].get("claimRef")
        if not promised or not promised.get("uid"):
            await self._set_volume_phase(volume, "Available")
            return
        claim = self._caches.claims.get(f"{promised['namespace']}/{promised['name']}")
        if claim is None or claim["metadata"]["uid"] != promised["uid"]:
            claim = await self._live_claim(promised)
        if claim is None:
            await self._release(volume)
        elif claim["spec"].get("volumeName") == key:
            await self._set_volume_phase(volume, "Bound")
        elif not claim["spec"].get("volumeName"):
            self._claims.add(key_of(claim))
        elif PROVISIONED_BY in annotations(volume) and _policy(volume) == "Delete":
            # Made for a claim that was bound to another volume meanwhile.
            await self._release(volume)

    async def _live_claim(self, promised: Json) -> Json | None:
        """The claim as the server has it: a cache that is behind must not cost anybody their data."""
        try:
            claim = await self._cluster.get(CLAIMS, promised["name"], promised["namespace"])
        except NotFound:
            return None
        return claim if claim["metadata"]["uid"] == promised["uid"] else None

    async def _release(self, volume: Json) -> None:
        if phase(volume) == "Failed":
            return
        volume = await self._set_volume_phase(volume, "Released")
        if _policy(volume) == "Delete" and PROVISIONED_BY not in annotations(volume) and not deleting(volume):
            message = "error getting deleter volume plugin: no deletable volume plugin matched"
            self._recorder.warning(reference("PersistentVolume", volume), "VolumeFailedDelete", message)
            await self._set_volume_phase(volume, "Failed", message)

    async def _set_volume_phase(self, volume: Json, wanted: str, message: str = "") -> Json:
        if phase(volume) == wanted:
            return volume
        metadata = volume["metadata"]
        body = {
            "metadata": {"resourceVersion": metadata["resourceVersion"]},
            "status": {"phase": wanted, "message": message or None},
        }
        return await self._cluster.patch(VOLUMES, metadata["name"], body, subresource="status")

    async def _pend(self, claim: Json) -> None:
        if (claim.get("status") or {}).get("phase") != "Pending":
            await self._set_claim_status(claim, {"phase": "Pending"})

    async def _set_claim_status(self, claim: Json, status: Json) -> None:
        metadata = claim["metadata"]
        body = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": status}
        await self._cluster.patch(CLAIMS, metadata["name"], body, metadata["namespace"], "status")

    def _tell(self, claim: Json, reason: str, message: str) -> None:
        self._recorder.normal(reference("PersistentVolumeClaim", claim), reason, message)

    def _warn(self, claim: Json, reason: str, message: str) -> None:
        self._recorder.warning(reference("PersistentVolumeClaim", claim), reason, message)


def _bound_status(volume: Json) -> Json:
    # Before a growth that its node has yet to do: a volume that changed its claim meanwhile.
    before = annotations(volume).get(resizing.PRE_RESIZE_CAPACITY)
    capacity = before or quantity.render(binding.capacity_of(volume))
    return {"phase": "Bound", "accessModes": volume["spec"].get("accessModes"), "capacity": {"storage": capacity}}


def _is_for(volume: Json, claim: Json) -> bool:
    promised = volume["spec"].get("claimRef") or {}
    metadata = claim["metadata"]
    return (
        promised.get("name") == metadata["name"]
        and promised.get("namespace") == metadata["namespace"]
        and promised.get("uid") in (None, "", metadata["uid"])
    )


def _policy(volume: Json) -> str:
    return volume["spec"].get("persistentVolumeReclaimPolicy") or "Retain"
