"""The expand controller. It has no FlexVolume driver beside it, so it raises the volume's capacity at once and leaves
all the work to the kubelet: a spec that is "kubelet expandable".

Source: pkg/controller/volume/expand/expand_controller.go and expandAndRecoverFunction in
pkg/volume/util/operationexecutor/operation_generator.go of Kubernetes 1.36.2.

What follows from it for a claim that was lowered again: nobody looks at it. The controller is woken by a larger
request and by a larger status, never by a smaller request, so `allocatedResources` and the volume's capacity keep
the size that was asked for first. A request that is raised while another growth waits for its node is granted after
that one.
"""

from dataclasses import dataclass
from typing import Any

from kube.backoff import Backoff
from kube.client import Cluster
from kube.errors import ApiError
from kube.events import Recorder
from kube.resources import CLAIMS, VOLUMES
from kube.workqueue import WorkQueue
from tests.sandbox.controlplane import binding, resizing
from tests.sandbox.controlplane.caches import Caches, annotations, key_of, phase, reference

Json = dict[str, Any]


class NotBound(Exception):
    """The claim's volume is not bound to it, as far as can be seen now."""


@dataclass(frozen=True)
class Raise:
    """The volume is to have this size."""

    size: str


@dataclass(frozen=True)
class HandToNode:
    """The volume has its size; the node is to try again."""


def decide(claim: Json, volume: Json) -> Raise | HandToNode | None:
    """What the controller does for a claim that has less than it asks for (expandAndRecoverFunction)."""
    step, allocated = resizing.step_of(claim), resizing.allocated(claim)
    wanted = str(claim["spec"]["resources"]["requests"]["storage"])
    on_its_way = (
        resizing.CONTROLLER_IN_PROGRESS,
        resizing.NODE_PENDING,
        resizing.NODE_IN_PROGRESS,
        resizing.NODE_INFEASIBLE,
    )
    if binding.capacity_of(volume) < binding.requested(claim):
        return Raise(allocated if allocated and step in on_its_way else wanted)
    if step in (resizing.NODE_PENDING, resizing.NODE_IN_PROGRESS):
        return None
    if step == resizing.NODE_INFEASIBLE:
        return HandToNode()
    return Raise(allocated or wanted)


class GrowthController:
    def __init__(self, cluster: Cluster, caches: Caches, recorder: Recorder) -> None:
        self._cluster = cluster
        self._caches = caches
        self._recorder = recorder
        self._claims = WorkQueue(
            self._sync,
            parallelism=4,
            backoff=Backoff(first=0.02, factor=2, limit=10),
            expected=(ApiError, NotBound),
        )

    async def run(self) -> None:
        """For ever; the caches must be synced."""
        self._caches.claims.subscribe(self._changed)
        await self._claims.run()

    def _changed(self, key: str, old: Json | None, new: Json | None) -> None:
        if new is None or phase(new) != "Bound":
            return
        if (
            old is None
            or binding.requested(new) > binding.requested(old)
            or resizing.granted(new) > resizing.granted(old)
        ):
            self._claims.add(key)

    async def _sync(self, key: str) -> None:
        claim = self._caches.claims.get(key)
        if claim is None:
            return
        metadata = claim["metadata"]
        volume = await self._cluster.get(VOLUMES, claim["spec"]["volumeName"])
        promised = volume["spec"].get("claimRef") or {}
        if (promised.get("namespace"), promised.get("uid")) != (metadata["namespace"], metadata["uid"]):
            raise NotBound(f"persistent Volume is not bound to PVC being updated : {key}")
        waited = resizing.PRE_RESIZE_CAPACITY in annotations(volume)
        if binding.requested(claim) <= resizing.granted(claim) and not waited:
            return
        if "flexVolume" not in volume["spec"]:
            message = "waiting for an external controller to expand this PVC"
            self._recorder.normal(reference("PersistentVolumeClaim", claim), "ExternalExpanding", message)
            return
        has = resizing.granted(claim)
        if waited and has >= binding.requested(claim) and has >= binding.capacity_of(volume):
            await self._annotate(volume, None)
            return
        try:
            await self._expand(claim, volume)
        except ApiError as error:
            message = f"error expanding pvc {key}: {error}"
            self._recorder.warning(reference("PersistentVolumeClaim", claim), "VolumeResizeFailed", message)
            raise

    async def _expand(self, claim: Json, volume: Json) -> None:
        step = decide(claim, volume)
        if step is None:
            return
        if isinstance(step, Raise):
            claim = await self._write(
                claim, resizing.taken_up(claim, volume["spec"]["flexVolume"]["driver"], step.size)
            )
            capacity = {"spec": {"capacity": {"storage": step.size}}}
            volume = await self._cluster.patch(VOLUMES, volume["metadata"]["name"], capacity)
            if (volume["spec"].get("volumeMode") or "Filesystem") != "Filesystem":
                await self._write(claim, resizing.finished(claim, step.size))
                message = f"ExpandVolume succeeded for volume {key_of(claim)}"
                self._recorder.normal(reference("PersistentVolumeClaim", claim), "VolumeResizeSuccessful", message)
                return
        claim = await self._write(claim, resizing.handed_to_node(claim))
        if resizing.PRE_RESIZE_CAPACITY not in annotations(volume):
            await self._annotate(volume, claim["status"]["capacity"]["storage"])

    async def _annotate(self, volume: Json, capacity: str | None) -> None:
        patch = {"metadata": {"annotations": {resizing.PRE_RESIZE_CAPACITY: capacity}}}
        await self._cluster.patch(VOLUMES, volume["metadata"]["name"], patch)

    async def _write(self, claim: Json, patch: Json) -> Json:
        metadata = claim["metadata"]
        return await self._cluster.patch(CLAIMS, metadata["name"], patch, metadata["namespace"], "status")
