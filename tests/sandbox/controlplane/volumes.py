"""The persistent volume controller: claims and volumes find each other, and released volumes are reclaimed.

Source: pkg/controller/volume/persistentvolume of Kubernetes 1.36, without in-tree provisioners: whoever makes and
deletes volumes is external. Each write has the resourceVersion it was decided on; a conflict is only another try.
"""

import asyncio
import copy
import logging
from typing import Any

from contract import quantity
from kube.backoff import Backoff
from kube.client import Cluster
from kube.errors import NotFound
from kube.events import Recorder
from kube.resources import CLAIMS, VOLUMES
from kube.workqueue import WorkQueue
from tests.sandbox.controlplane import binding, resizing
from tests.sandbox.controlplane.caches import (
    BIND_COMPLETED,
    BOUND_BY_CONTROLLER,
    PROVISIONED_BY,
    SELECTED_NODE,
    STORAGE_PROVISIONER,
    STORAGE_PROVISIONER_BETA,
    Caches,
    annotations,
    claim_keys,
    class_name,
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
        elif claim["spec"].get("volumeName"):
            await self._sync_claim_of_volume(claim)
        else:
            await self._sync_unbound_claim(claim)

    async def _sync_claim_of_volume(self, claim: Json) -> None:
        """One that names its volume."""
        name = claim["spec"]["volumeName"]
        volume = self._caches.volumes.get(name)
        if volume is None:
            await self._pend(claim)
        elif not volume["spec"].get("claimRef"):
            if why := binding.mismatch(volume, claim):
                self._warn(claim, "VolumeMismatch", f'Cannot bind to requested volume "{name}": {why}')
                await self._pend(claim)
            else:
                await self._bind(volume, claim)
        elif binding.is_for(volume, claim):
            await self._bind(volume, claim)
        else:
            self._warn(claim, "FailedBinding", f'volume "{name}" already bound to a different claim.')
            await self._pend(claim)

    async def _sync_unbound_claim(self, claim: Json) -> None:
        storage_class = self._caches.classes.get(class_name(claim))
        delayed = binding.waits_for_consumer(storage_class)
        volume = binding.promised_volume(claim, self._caches.volumes.values())
        if volume is None and not delayed:
            volume = binding.best_volume(claim, self._caches.volumes.values())
        if volume is not None:
            await self._bind(volume, claim)
        elif delayed and SELECTED_NODE not in annotations(claim):
            self._say_what_is_waited_for(claim)
            await self._pend(claim)
        elif not class_name(claim):
            message = "no persistent volumes available for this claim and no storage class is set"
            self._tell(claim, "FailedBinding", message)
            await self._pend(claim)
        elif storage_class is None:
            message = f'storageclass.storage.k8s.io "{class_name(claim)}" not found'
            self._warn(claim, "ProvisioningFailed", message)
        elif storage_class["provisioner"].startswith("kubernetes.io/"):
            message = f"no volume plugin matched name: {storage_class['provisioner']}"
            self._warn(claim, "ProvisioningFailed", message)
        else:
            await self._hand_to_provisioner(claim, storage_class["provisioner"])

    def _say_what_is_waited_for(self, claim: Json) -> None:
        waiting = [
            pod["metadata"]["name"]
            for pod in self._caches.pods.values()
            if key_of(claim) in claim_keys(pod)
            and not pod["spec"].get("nodeName")
            and phase(pod) not in ("Succeeded", "Failed")
        ]
        if len(waiting) > 1:
            self._tell(claim, "WaitForPodScheduled", f"waiting for pods {','.join(waiting)} to be scheduled")
        elif waiting:
            self._tell(claim, "WaitForPodScheduled", f"waiting for pod {waiting[0]} to be scheduled")
        else:
            self._tell(claim, "WaitForFirstConsumer", "waiting for first consumer to be created before binding")

    async def _hand_to_provisioner(self, claim: Json, provisioner: str) -> None:
        if annotations(claim).get(STORAGE_PROVISIONER) != provisioner:
            changed = copy.deepcopy(claim)
            notes = changed["metadata"].setdefault("annotations", {})
            notes[STORAGE_PROVISIONER] = notes[STORAGE_PROVISIONER_BETA] = provisioner
            metadata = claim["metadata"]
            claim = await self._cluster.replace(CLAIMS, metadata["name"], changed, metadata["namespace"])
        self._tell(claim, "ExternalProvisioning", _WAITING_FOR_PROVISIONER.format(provisioner))

    async def _sync_bound_claim(self, claim: Json) -> None:
        volume = self._caches.volumes.get(claim["spec"].get("volumeName") or "")
        if volume is None:
            what = "its PersistentVolume" if claim["spec"].get("volumeName") else "reference to PersistentVolume"
            message = f"Bound claim has lost {what}. Data on the volume is lost!"
            await self._lose(claim, "ClaimLost", message)
        elif not volume["spec"].get("claimRef") or binding.is_bound_to(volume, claim):
            await self._bind(volume, claim)
        else:
            message = "Two claims are bound to the same volume, this one is bound incorrectly"
            await self._lose(claim, "ClaimMisbound", message)

    async def _lose(self, claim: Json, reason: str, message: str) -> None:
        if phase(claim) != "Lost":
            await self._set_claim_status(claim, {"phase": "Lost", "accessModes": None, "capacity": None})
            self._warn(claim, reason, message)

    async def _bind(self, volume: Json, claim: Json) -> None:
        """In the real one's order: the volume's promise, its phase, the claim's volume, the claim's status. What is so
        already is not written again."""
        name, metadata = volume["metadata"]["name"], claim["metadata"]
        if not binding.is_bound_to(volume, claim):
            volume = await self._cluster.replace(VOLUMES, name, binding.promised(volume, claim))
        volume = await self._set_volume_phase(volume, "Bound")
        if claim["spec"].get("volumeName") != name or BIND_COMPLETED not in annotations(claim):
            claim = copy.deepcopy(claim)
            notes = claim["metadata"].setdefault("annotations", {})
            notes[BIND_COMPLETED] = "yes"
            if not claim["spec"].get("volumeName"):
                claim["spec"]["volumeName"] = name
                notes[BOUND_BY_CONTROLLER] = "yes"
            claim = await self._cluster.replace(CLAIMS, metadata["name"], claim, metadata["namespace"])
        if phase(claim) != "Bound":
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
            if binding.mode_of(volume) != binding.mode_of(claim):
                self._tell_of_modes(volume, claim)
            else:
                self._claims.add(key_of(claim))
        elif PROVISIONED_BY in annotations(volume) and _policy(volume) == "Delete":
            # Made for a claim that was bound to another volume meanwhile.
            await self._release(volume)
        else:
            await self._unbind(volume)

    def _tell_of_modes(self, volume: Json, claim: Json) -> None:
        of_claim = (
            f'Cannot bind PersistentVolume to requested PersistentVolumeClaim "{claim["metadata"]["name"]}" due to '
            "incompatible volumeMode."
        )
        self._recorder.warning(reference("PersistentVolume", volume), "VolumeMismatch", of_claim)
        of_volume = (
            f'Cannot bind PersistentVolume "{volume["metadata"]["name"]}" to requested PersistentVolumeClaim due to '
            "incompatible volumeMode."
        )
        self._warn(claim, "VolumeMismatch", of_volume)

    async def _unbind(self, volume: Json) -> None:
        """Take back a promise to a claim that has another volume."""
        free = copy.deepcopy(volume)
        if annotations(free).pop(BOUND_BY_CONTROLLER, None):
            del free["spec"]["claimRef"]
        else:
            del free["spec"]["claimRef"]["uid"]
        free = await self._cluster.replace(VOLUMES, volume["metadata"]["name"], free)
        await self._set_volume_phase(free, "Available")

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
        if _policy(volume) != "Delete" or annotations(volume).get(PROVISIONED_BY) or "csi" in volume["spec"]:
            return
        name = volume["metadata"]["name"]
        message = f'error getting deleter volume plugin for volume "{name}": no volume plugin matched'
        volume = await self._set_volume_phase(volume, "Failed", message)
        self._recorder.warning(reference("PersistentVolume", volume), "VolumeFailedDelete", message)

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
    attributes = volume["spec"].get("volumeAttributesClassName")
    return {
        "phase": "Bound",
        "accessModes": volume["spec"].get("accessModes"),
        "capacity": {"storage": capacity},
        **({"currentVolumeAttributesClassName": attributes} if attributes else {}),
    }


def _policy(volume: Json) -> str:
    return volume["spec"].get("persistentVolumeReclaimPolicy") or "Retain"
