"""Generic ephemeral volumes: makes the claim that a pod brings along, owned by the pod, with which it goes
(pkg/controller/volume/ephemeral)."""

from typing import Any

from kube.client import CLAIMS, Cluster
from kube.events import Recorder
from kube.workqueue import Backoff, WorkQueue
from tests.sandbox.controlplane.caches import Caches, deleting, made_for, phase, reference

Json = dict[str, Any]


class EphemeralController:
    def __init__(self, cluster: Cluster, caches: Caches, recorder: Recorder) -> None:
        self._cluster = cluster
        self._caches = caches
        self._recorder = recorder
        self._pods = WorkQueue(self._sync, parallelism=4, backoff=Backoff(first=0.1, factor=2, limit=10))

    async def run(self) -> None:
        """For ever; the caches must be synced."""
        self._caches.pods.subscribe(lambda key, _old, new: self._pods.add(key) if new else None)
        await self._pods.run()

    async def _sync(self, key: str) -> None:
        pod = self._caches.pods.get(key)
        if pod is None or deleting(pod) or phase(pod) in ("Succeeded", "Failed"):
            return
        for volume in pod["spec"].get("volumes") or []:
            if "ephemeral" in volume:
                await self._make(pod, volume)

    async def _make(self, pod: Json, volume: Json) -> None:
        owner, template = pod["metadata"], volume["ephemeral"]["volumeClaimTemplate"]
        name = f"{owner['name']}-{volume['name']}"
        present = self._caches.claims.get(f"{owner['namespace']}/{name}")
        if present is None:
            body = {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {**(template.get("metadata") or {}), "name": name, "ownerReferences": [_owned_by(pod)]},
                "spec": template["spec"],
            }
            await self._cluster.create(CLAIMS, body, owner["namespace"])
        elif not made_for(pod, present):
            words = f'PVC "{owner["namespace"]}/{name}" was not created for the pod'
            self._recorder.warning(reference("Pod", pod), "FailedPersistentVolumeClaimCreation", words)


def _owned_by(pod: Json) -> Json:
    metadata = pod["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
