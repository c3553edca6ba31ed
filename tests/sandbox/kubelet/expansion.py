"""Growing a mounted volume.

When a PersistentVolume is larger than its claim's status says, the kubelet has the driver grow the filesystem (and,
with a driver that attaches nothing, the volume itself), and then writes the new size into the claim's status. A CSI
driver's error says more than that of others: that the size can't be had at all, or not while the volume is in use.

Source: pkg/volume/util/operationexecutor/{operation_generator,node_expander}.go of Kubernetes 1.36.2. The size is the
claim's `allocatedResources`, not the volume's capacity. A claim that asks for another size by now, because its owner
lowered it after a failure, gets one more try; when that fails, too, the growth is infeasible: the volume stays as it
is, pods start with it, and this kubelet calls the driver no more until the controller hands it over again.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from contract import quantity
from kube.client import Cluster
from kube.events import Recorder
from kube.informer import Informer
from kube.resources import CLAIMS, VOLUMES
from tests.sandbox.controlplane import binding, resizing
from tests.sandbox.controlplane.caches import reference
from tests.sandbox.kubelet.driver import CallFailed, NotSupported
from tests.sandbox.kubelet.sources import Csi, Flex

Json = dict[str, Any]
Grow = Callable[[int, int], Awaitable[None]]
"""Has the driver make the volume so many bytes large; the second figure is what it has."""

_log = logging.getLogger(__name__)


class Teller(Protocol):
    """The pod, as its events go."""

    def tell(self, reason: str, message: str, *, normal: bool = False) -> None: ...


class Expansion:
    def __init__(
        self, cluster: Cluster, recorder: Recorder, node: str, claims: Informer[Json], volumes: Informer[Json]
    ) -> None:
        self._cluster = cluster
        self._recorder = recorder
        self._node = node
        self._claims = claims
        self._volumes = volumes
        self._failed: set[str] = set()
        """Volumes that the driver once failed to grow. As in the real one, a success does not take them out."""
        self._in_use: set[str] = set()
        """Volumes that their driver expands only while no pod has them: nobody asks it before a pod mounts them."""
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def grow_if_due(self, grow: Grow, source: Flex | Csi, pod: Teller, *, mounting: bool) -> None:
        """Raises CallFailed, after the claim's status says so too, and ApiError."""
        if mounting:
            self._in_use.discard(source.name)
        elif source.name in self._in_use:
            return
        claim, volume = self._claims.get(source.claim), self._volumes.get(source.name)
        if claim is None or volume is None or not _is_larger(volume, claim):
            return
        # Two pods of this node may share the claim: one call is enough.
        async with self._locks[source.claim]:
            namespace, _, name = source.claim.partition("/")
            claim = await self._cluster.get(CLAIMS, name, namespace)
            volume = await self._cluster.get(VOLUMES, source.name)
            if not _is_larger(volume, claim):
                return
            if source.read_only:
                # One that is mounted already is not even looked at.
                if mounting:
                    self._tell(pod, claim, _words(source, "failed", "requested read-only file system"), failed=True)
                return
            await self._grow(claim, volume, grow, source, pod)

    async def _grow(self, claim: Json, volume: Json, grow: Grow, source: Flex | Csi, pod: Teller) -> None:
        step, allocated = resizing.step_of(claim), resizing.allocated(claim)
        # Without both the controller is an older one, or somebody raised the volume's capacity by hand.
        recovers = bool(step or allocated)
        size = str(allocated or "0") if recovers else str(volume["spec"]["capacity"]["storage"])
        before, after = resizing.granted(claim), quantity.parse(size)
        infeasible_if_it_fails = False
        if recovers:
            if step not in (resizing.NODE_PENDING, resizing.NODE_IN_PROGRESS):
                _log.info("%s is not to be expanded now: %s", source.name, step or "already done")
                return
            infeasible_if_it_fails = binding.requested(claim) != after and source.name in self._failed
            claim = await self._write(claim, resizing.begun_on_node(claim))
        try:
            await grow(after, before)
        except NotSupported:
            # The kubelet then resizes the device by itself, finds none, and calls that a success.
            pass
        except CallFailed as error:
            if recovers and error.finished:
                self._failed.add(source.name)
                infeasible = infeasible_if_it_fails or error.infeasible
                await self._write(claim, resizing.failed_on_node(claim, str(error), infeasible=infeasible))
            if error.in_use:
                self._in_use.add(source.name)
                _log.error("%s", _words(source, "failed", str(error)))
                return
            raise
        self._tell(pod, claim, _words(source, "succeeded", self._node), failed=False)
        await self._write(claim, resizing.finished(claim, size))
        _log.info("%s grew", source.name)

    def _tell(self, pod: Teller, claim: Json, expected: str, *, failed: bool) -> None:
        about = reference("PersistentVolumeClaim", claim)
        if failed:
            pod.tell("FileSystemResizeFailed", expected)
            self._recorder.warning(about, "FileSystemResizeFailed", expected)
        else:
            pod.tell("FileSystemResizeSuccessful", expected, normal=True)
            self._recorder.normal(about, "FileSystemResizeSuccessful", expected)

    async def _write(self, claim: Json, patch: Json) -> Json:
        metadata = claim["metadata"]
        return await self._cluster.patch(CLAIMS, metadata["name"], patch, metadata["namespace"], "status")


def _is_larger(volume: Json, claim: Json) -> bool:
    bound = (claim.get("status") or {}).get("phase") == "Bound"
    named = claim["spec"].get("volumeName") == volume["metadata"]["name"]
    return bound and named and binding.capacity_of(volume) > resizing.granted(claim) > 0


def _words(source: Flex | Csi, outcome: str, rest: str) -> str:
    return f'MountVolume.NodeExpandVolume {outcome} for volume "{source.name}" {rest}'
