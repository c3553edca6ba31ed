"""Generic ephemeral volumes: makes the claim that a pod brings along, owned by the pod, with which it goes.

Source: pkg/controller/volume/ephemeral/controller.go of Kubernetes 1.36.2. It tries again while a claim of that name
is not the pod's, and says so each time."""

from typing import Any

from kube.backoff import Backoff
from kube.client import Cluster
from kube.errors import ApiError
from kube.events import Recorder
from kube.resources import CLAIMS
from kube.workqueue import WorkQueue
from tests.sandbox.controlplane.caches import Caches, claim_keys, deleting, key_of, made_for, not_made_for, reference

Json = dict[str, Any]


class NotOwner(Exception):
    """The claim of that name is not the pod's."""


class EphemeralController:
    def __init__(self, cluster: Cluster, caches: Caches, recorder: Recorder) -> None:
        self._cluster = cluster
        self._caches = caches
        self._recorder = recorder
        self._pods = WorkQueue(
            self._sync, parallelism=4, backoff=Backoff(first=0.1, factor=2, limit=1000), expected=(ApiError, NotOwner)
        )

    async def run(self) -> None:
        """For ever; the caches must be synced."""
        self._caches.pods.subscribe(self._pod_changed)
        self._caches.claims.subscribe(self._claim_changed)
        await self._pods.run()

    def _pod_changed(self, key: str, old: Json | None, new: Json | None) -> None:
        if new and (old is None or old["metadata"]["uid"] != new["metadata"]["uid"]):
            self._pods.add(key)

    def _claim_changed(self, key: str, _old: Json | None, new: Json | None) -> None:
        """A pod's claim that somebody deleted is made again."""
        if new is None:
            for pod in self._caches.pods.values():
                if key in claim_keys(pod):
                    self._pods.add(key_of(pod))

    async def _sync(self, key: str) -> None:
        pod = self._caches.pods.get(key)
        if pod is None or deleting(pod):
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
            try:
                await self._cluster.create(CLAIMS, body, owner["namespace"])
            except ApiError as error:
                self._tell(pod, volume, f"create PVC {name}: {error.message}")
                raise
        elif not made_for(pod, present):
            self._tell(pod, volume, not_made_for(pod, present))
            raise NotOwner(not_made_for(pod, present))

    def _tell(self, pod: Json, volume: Json, why: str) -> None:
        message = f"ephemeral volume {volume['name']}: {why}"
        self._recorder.warning(reference("Pod", pod), "FailedBinding", message)


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
