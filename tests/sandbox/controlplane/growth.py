"""The expand controller, for FlexVolume: it has no driver beside it, so it raises the volume's capacity and leaves all
the work to the kubelet (pkg/controller/volume/expand, a spec that is "kubelet expandable")."""

from typing import Any

from kube.client import CLAIMS, VOLUMES, Cluster
from kube.workqueue import Backoff, WorkQueue
from tests.sandbox.controlplane import binding
from tests.sandbox.controlplane.caches import BIND_COMPLETED, Caches, annotations, class_name

Json = dict[str, Any]

_PENDING = "FileSystemResizePending"
_MESSAGE = "Waiting for user to (re-)start a pod to finish file system resize of volume on node."


class GrowthController:
    def __init__(self, cluster: Cluster, caches: Caches) -> None:
        self._cluster = cluster
        self._caches = caches
        self._claims = WorkQueue(self._sync, parallelism=4, backoff=Backoff(first=0.1, factor=2, limit=10))

    async def run(self) -> None:
        """For ever; the caches must be synced."""
        self._caches.claims.subscribe(lambda key, _old, new: self._claims.add(key) if new else None)
        await self._claims.run()

    async def _sync(self, key: str) -> None:
        claim = self._caches.claims.get(key)
        if claim is None or BIND_COMPLETED not in annotations(claim):
            return
        volume = self._caches.volumes.get(claim["spec"]["volumeName"])
        storage_class = self._caches.classes.get(class_name(claim))
        if volume is None or not (storage_class or {}).get("allowVolumeExpansion"):
            return
        if binding.requested(claim) <= binding.capacity_of(volume):
            return
        size = claim["spec"]["resources"]["requests"]["storage"]
        await self._cluster.patch(
            VOLUMES,
            volume["metadata"]["name"],
            {
                "metadata": {"resourceVersion": volume["metadata"]["resourceVersion"]},
                "spec": {"capacity": {"storage": size}},
            },
        )
        condition = {"type": _PENDING, "status": "True", "message": _MESSAGE}
        metadata = claim["metadata"]
        await self._cluster.patch(
            CLAIMS, metadata["name"], {"status": {"conditions": [condition]}}, metadata["namespace"], "status"
        )
