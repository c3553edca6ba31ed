"""The finalizers that keep a claim while a pod uses it and a volume while it is bound; and the pods of nodes that are
gone.

Source: pkg/controller/volume/pvcprotection, pkg/controller/volume/pvprotection and gcOrphaned of pkg/controller/podgc,
of Kubernetes 1.36.2."""

import asyncio
from typing import Any

from contract.volume import PV_PROTECTION
from kube.backoff import Backoff
from kube.client import STRATEGIC, Cluster
from kube.errors import NotFound
from kube.resources import CLAIMS, NODES, PODS, VOLUMES, Resource
from kube.workqueue import WorkQueue
from tests.sandbox.controlplane.caches import Caches, claim_key, claim_keys, deleting, key_of, made_for, phase

Json = dict[str, Any]

PVC_PROTECTION = "kubernetes.io/pvc-protection"
_QUARANTINE_SECONDS = 1.0
"""The real one gives a node 40 s to come back."""
_NODE_GONE: Json = {
    "type": "DisruptionTarget",
    "status": "True",
    "reason": "DeletionByPodGC",
    "message": "PodGC: node no longer exists",
}


class ProtectionController:
    def __init__(self, cluster: Cluster, caches: Caches) -> None:
        self._cluster = cluster
        self._caches = caches
        backoff = Backoff(first=0.05, factor=2, limit=5)
        self._claims = WorkQueue(self._sync_claim, parallelism=4, backoff=backoff)
        self._volumes = WorkQueue(self._sync_volume, parallelism=4, backoff=backoff)
        self._orphans = WorkQueue(self._sync_pod, parallelism=4, backoff=backoff)

    async def run(self) -> None:
        """For ever; the caches must be synced."""
        caches = self._caches
        caches.claims.subscribe(lambda key, _old, new: self._claims.add(key) if new else None)
        caches.volumes.subscribe(lambda key, _old, new: self._volumes.add(key) if new else None)
        caches.pods.subscribe(self._pod_changed)
        caches.nodes.subscribe(self._node_changed)
        await asyncio.gather(self._claims.run(), self._volumes.run(), self._orphans.run())

    def _pod_changed(self, key: str, old: Json | None, new: Json | None) -> None:
        for claim in claim_keys(new or old or {}):
            self._claims.add(claim)
        if new and self._is_orphan(new):
            self._orphans.add_after(key, _QUARANTINE_SECONDS)

    def _node_changed(self, name: str, _old: Json | None, new: Json | None) -> None:
        if new is None:
            for pod in self._caches.pods.values():
                if pod["spec"].get("nodeName") == name:
                    key = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
                    self._orphans.add_after(key, _QUARANTINE_SECONDS)

    def _is_orphan(self, pod: Json) -> bool:
        node = pod["spec"].get("nodeName")
        return bool(node) and self._caches.nodes.get(node) is None

    async def _sync_claim(self, key: str) -> None:
        claim = self._caches.claims.get(key)
        if claim is None or not deleting(claim):
            return
        if any(_uses(pod, claim) for pod in self._caches.pods.values()):
            return
        # The caches may be behind.
        if not any(_uses(pod, claim) for pod in await self._cluster.list(PODS, claim["metadata"]["namespace"])):
            await self._let_go(CLAIMS, claim, PVC_PROTECTION)

    async def _sync_volume(self, key: str) -> None:
        volume = self._caches.volumes.get(key)
        if volume and deleting(volume) and phase(volume) != "Bound":
            await self._let_go(VOLUMES, volume, PV_PROTECTION)

    async def _let_go(self, resource: Resource, body: Json, finalizer: str) -> None:
        metadata = body["metadata"]
        finalizers = metadata.get("finalizers") or []
        if finalizer not in finalizers:
            return
        rest = [item for item in finalizers if item != finalizer]
        patch = {"metadata": {"resourceVersion": metadata["resourceVersion"], "finalizers": rest}}
        try:
            await self._cluster.patch(resource, metadata["name"], patch, metadata.get("namespace"))
        except NotFound:
            return

    async def _sync_pod(self, key: str) -> None:
        pod = self._caches.pods.get(key)
        if pod is None or not self._is_orphan(pod):
            return
        metadata = pod["metadata"]
        try:
            await self._cluster.get(NODES, pod["spec"]["nodeName"])
        except NotFound:
            pass
        else:
            return
        status = {"conditions": [_NODE_GONE]}
        body = {"metadata": {"uid": metadata["uid"]}, "status": {"phase": "Failed"} | status}
        try:
            if phase(pod) not in ("Succeeded", "Failed"):
                await self._cluster.patch(
                    PODS, metadata["name"], body, metadata["namespace"], "status", content_type=STRATEGIC
                )
            await self._cluster.delete(
                PODS, metadata["name"], metadata["namespace"], uid=metadata["uid"], grace_seconds=0
            )
        except NotFound:
            return


def _uses(pod: Json, claim: Json) -> bool:
    """Whether the pod keeps the claim: one that has a node, and for an ephemeral volume its own pod until that is shut
    down."""
    if not pod["spec"].get("nodeName"):
        return False
    key = key_of(claim)
    shut_down = deleting(pod) and pod["metadata"].get("deletionGracePeriodSeconds") == 0
    return any(
        claim_key(pod, volume) == key and ("ephemeral" not in volume or (not shut_down and made_for(pod, claim)))
        for volume in pod["spec"].get("volumes") or []
    )
