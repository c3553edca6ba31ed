"""A namespace for one acceptance test. What a test wants to know of a volume, a pod finds out from inside, and says so
by its exit code: that is all that can be seen of a volume in a cluster whose nodes nobody opens.

Scripts are POSIX sh with the tools of busybox.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from kube.client import Cluster
from kube.errors import AlreadyExists, NotFound
from kube.resources import CLAIMS, PODS, VOLUMES, Resource
from tests.sandbox.workloads import NAMESPACES, Json, Workspace, pod
from tests.waiting import NeverHappened, until

LIMIT = 60.0
"""Seconds that a test may take in all, on any cluster that is not emulated."""
_ACCOUNTS = Resource("", "v1", "serviceaccounts", namespaced=True)


class Trial(Workspace):
    """Leaving it leaves nothing in the cluster: volumes with policy Retain go, too.

    All that is waited for in it together has a limit: where something never comes, nobody sits there for minutes, and
    is told what was seen last. Cleaning has a limit of its own."""

    def __init__(self, api: Cluster, image: str, limit: float = LIMIT) -> None:
        """`image` is that of all containers, `limit` the seconds that the test may take."""
        super().__init__(api, f"acceptance-{secrets.token_hex(4)}")
        self._image = image
        self._limit = limit
        self._ends = 0.0

    async def __aenter__(self) -> Self:
        self._ends = asyncio.get_running_loop().time() + self._limit
        # Clusters may allow less unless a namespace asks for this.
        labels = {"pod-security.kubernetes.io/enforce": "baseline"}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name, "labels": labels}}
        await self.api.create(NAMESPACES, body)
        # The cluster makes it by itself, but only a moment later, and refuses pods until then.
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
        with contextlib.suppress(AlreadyExists):
            await self.api.create(_ACCOUNTS, account, self.name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._limit = max(self._limit, LIMIT)
        self._ends = asyncio.get_running_loop().time() + self._limit
        for volume in await self.volumes():
            with contextlib.suppress(NotFound):
                await self.set_policy(volume["metadata"]["name"], "Delete")
        await super().__aexit__(kind, error, trace)
        await self.wait(self._is_gone, what=f"namespace {self.name} and all its volumes are gone")

    async def wait(self, condition: Callable[[], Any], *, what: str, seconds: float = 30) -> Any:
        left = max(self._ends - asyncio.get_running_loop().time(), 0)
        try:
            return await until(condition, what=what, seconds=seconds, at_most=left)
        except NeverHappened as error:
            if asyncio.get_running_loop().time() < self._ends:
                raise
            raise NeverHappened(f"{error}, and with that the {self._limit:g} s of all waiting are over") from None

    async def create(self, resource: Resource, body: Json) -> Json:
        """Pods run our image, end when their script does, and on failure show the end of their log."""
        if resource is PODS:
            spec = {"restartPolicy": "Never", **body["spec"]}
            ours = {
                "image": self._image,
                "imagePullPolicy": "IfNotPresent",
                "terminationMessagePolicy": "FallbackToLogsOnError",
            }
            spec["containers"] = [{**container, **ours} for container in spec["containers"]]
            body = {**body, "spec": spec}
        return await super().create(resource, body)

    async def until_succeeded(self, name: str) -> Json:
        """The pod, once its script has ended well. Fails with the end of the script's output when it has not."""
        ended = await self.until(
            PODS, name, lambda body: body["status"].get("phase") in ("Succeeded", "Failed"), what="has ended"
        )
        states = [status["state"] for status in ended["status"]["containerStatuses"]]
        assert ended["status"]["phase"] == "Succeeded", f"the script of pod {name} failed: {states}"
        return ended

    async def run(self, name: str, script: str, claims: dict[str, str] | None = None) -> str:
        """A pod runs the script to its good end and is deleted: the name of its node. `claims`: mount path to claim,
        /data to `data` unless told."""
        await self.create(PODS, pod(name, {"/data": "data"} if claims is None else claims, script=script))
        ended = await self.until_succeeded(name)
        await self.end(name)
        return str(ended["spec"]["nodeName"])

    async def start(self, name: str, script: str, claims: dict[str, str] | None = None) -> None:
        """As `run`, of a pod that goes on until `end`."""
        await self.create(PODS, pod(name, {"/data": "data"} if claims is None else claims, script=script))
        await self.until_running(name)

    async def end(self, name: str) -> None:
        """Delete the pod and wait until its node has let go of it."""
        await self.delete(PODS, name)
        await self.until_gone(PODS, name)

    async def ask(self, name: str, size: str) -> None:
        """The claim asks for so much from now on."""
        await self.api.patch(CLAIMS, name, {"spec": {"resources": {"requests": {"storage": size}}}}, self.name)

    async def nudge(self, name: str) -> None:
        """Have the kubelet look at the pod's volumes now. By itself it does so when it syncs the pod, once a minute or
        so (syncFrequency); a changed annotation is a reason to sync it."""
        await self.api.patch(PODS, name, {"metadata": {"annotations": {"nudged": secrets.token_hex(4)}}}, self.name)

    async def set_policy(self, volume: str, policy: str) -> None:
        """The reclaim policy of a PersistentVolume."""
        await self.api.patch(VOLUMES, volume, {"spec": {"persistentVolumeReclaimPolicy": policy}})

    async def _is_gone(self) -> bool:
        try:
            await self.api.get(NAMESPACES, self.name)
        except NotFound:
            return not await self.volumes()
        return False
