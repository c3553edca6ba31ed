"""The scheduling of pods: one pod after the other finds its node, many wait for their volumes at a time.

As kube-scheduler 1.36 does it for pods with local volumes: filter, take the node with the fewest pods, write
selected-node into the claims that are to be provisioned, wait for them, bind. A pod that fits nowhere is parked until
something changes that may help it. A pod whose claim was sent back (selected-node removed) comes again after a
back-off.
"""

import asyncio
import copy
import logging
from collections import Counter, defaultdict
from typing import Any

from kube.backoff import Backoff
from kube.client import STRATEGIC, Cluster
from kube.errors import ApiError, Conflict, NotFound
from kube.events import Recorder
from kube.resources import CLAIMS, PODS, VOLUMES
from tests.sandbox.controlplane import binding, filters
from tests.sandbox.controlplane.binding import Placement, Unschedulable
from tests.sandbox.controlplane.caches import (
    BIND_COMPLETED,
    SELECTED_NODE,
    Caches,
    annotations,
    claim_keys,
    deleting,
    key_of,
    phase,
    reference,
    version,
)
from tests.sandbox.controlplane.selectors import node_selector_matches

Json = dict[str, Any]

_log = logging.getLogger(__name__)
_BACKOFF = Backoff(first=1, factor=2, limit=10, jitter=0)
_LOOK_SECONDS = 1.0
"""How often the real one looks whether a claim is bound; here it is also told, so that tests need not wait."""
_BIND_SECONDS = 600.0
_GATHER_SECONDS = 0.01
"""Changes come in swarms: one round of the parked pods for all of them."""


class BindingFailed(Exception):
    """The pod's volumes were not bound; it is scheduled again after a while."""


class Scheduler:
    def __init__(self, cluster: Cluster, caches: Caches, recorder: Recorder) -> None:
        self._cluster = cluster
        self._caches = caches
        self._recorder = recorder
        self._active: dict[str, None] = {}
        self._parked: set[str] = set()
        self._binding: dict[str, tuple[str, str]] = {}
        """Pods on their way to a node: key to UID and node, until the cache has the node or the pod is gone."""
        self._assumed: dict[str, Json] = {}
        """Claims as we wrote them, until the cache has that version."""
        self._failures: Counter[str] = Counter()
        self._said: dict[str, str] = {}
        self._wake = asyncio.Event()
        self._claims_moved = asyncio.Event()
        """Set once, and then replaced: everybody who waited looks again."""

    async def run(self) -> None:
        """For ever; the caches must be synced."""
        caches = self._caches
        caches.pods.subscribe(self._pod_changed)
        caches.claims.subscribe(self._claim_changed)
        others = (caches.nodes, caches.volumes, caches.classes, caches.capacities, caches.drivers, caches.csi_nodes)
        for informer in others:
            informer.subscribe(lambda *_: self._activate(self._parked))
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._wake.wait()
                await asyncio.sleep(_GATHER_SECONDS)
                self._wake.clear()
                while self._active:
                    key = next(iter(self._active))
                    del self._active[key]
                    try:
                        await self._schedule(key, tasks)
                    except ApiError as error:
                        _log.warning("pod %s: %s", key, error)
                        self._later(key)

    def _activate(self, keys: "set[str] | list[str]") -> None:
        for key in list(keys):
            self._parked.discard(key)
            self._active[key] = None
        if self._active:
            self._wake.set()

    def _later(self, key: str) -> None:
        self._failures[key] += 1
        delay = _BACKOFF.delay(self._failures[key])
        asyncio.get_running_loop().call_later(delay, self._activate, [key])

    def _pod_changed(self, key: str, old: Json | None, new: Json | None) -> None:
        uid, _ = self._binding.get(key, ("", ""))
        if uid and (new is None or new["metadata"]["uid"] != uid or not _unscheduled(new)):
            del self._binding[key]
            self._claims_moved.set()
            self._claims_moved = asyncio.Event()
        if new is None:
            self._parked.discard(key)
            self._failures.pop(key, None)
            self._said.pop(key, None)
            self._activate(self._parked)
        elif _unscheduled(new) and (old is None or old["metadata"]["uid"] != new["metadata"]["uid"]):
            self._activate([key])

    def _claim_changed(self, key: str, _old: Json | None, new: Json | None) -> None:
        assumed = self._assumed.get(key)
        if assumed and (new is None or version(new) > version(assumed)):
            del self._assumed[key]
        users = [pod for pod in self._parked if key in claim_keys(self._caches.pods.get(pod) or _NO_POD)]
        self._activate(users)
        self._claims_moved.set()
        self._claims_moved = asyncio.Event()

    def _claims(self) -> dict[str, Json]:
        return {key_of(claim): claim for claim in self._caches.claims.values()} | self._assumed

    async def _schedule(self, key: str, tasks: asyncio.TaskGroup) -> None:
        pod = self._caches.pods.get(key)
        if pod is None or not _unscheduled(pod) or self._is_binding(pod):
            return
        try:
            node, placement = self._decide(pod)
        except Unschedulable as error:
            self._parked.add(key)
            await self._say_failed(pod, "Unschedulable", str(error))
            return
        name = node["metadata"]["name"]
        self._binding[key] = (pod["metadata"]["uid"], name)
        for claim in placement.provision:
            self._assume(claim, name)
        tasks.create_task(self._bind(pod, name, placement))

    def _is_binding(self, pod: Json) -> bool:
        uid, _ = self._binding.get(key_of(pod), ("", ""))
        return uid == str(pod["metadata"]["uid"])

    def _decide(self, pod: Json) -> tuple[Json, Placement]:
        """The node for the pod. Raises Unschedulable."""
        caches = self._caches
        nodes = sorted(caches.nodes.values(), key=key_of)
        classes = {key_of(item): item for item in caches.classes.values()}
        volumes = {key_of(item): item for item in caches.volumes.values()}
        drivers = {key_of(item): item for item in caches.drivers.values()}
        if not nodes:
            raise Unschedulable("no nodes available to schedule pods")
        try:
            known = self._claims()
            claims = binding.claims_of(pod, known, volumes, classes)
        except Unschedulable as error:
            raise Unschedulable(filters.nothing_may_fit(len(nodes), str(error))) from error
        reasons: list[str] = []
        scheduled = self._scheduled()
        conflict = filters.conflicts(pod, known, (other for pods in scheduled.values() for other in pods))
        fitting: list[tuple[Json, Placement]] = []
        for node in nodes:
            reason = filters.misfit(pod, node)
            here = scheduled[node["metadata"]["name"]]
            if reason is None and conflict:
                reason = filters.POD_CONFLICT
            csi_node = caches.csi_nodes.get(node["metadata"]["name"])
            if reason is None and filters.has_too_many(pod, here, csi_node, known, volumes, classes):
                reason = filters.TOO_MANY_VOLUMES
            if reason is None:
                placement = binding.place(node, claims, volumes.values(), classes, drivers, caches.capacities.values())
                if isinstance(placement, Placement):
                    fitting.append((node, placement))
                else:
                    reasons.extend(placement)
            else:
                reasons.append(reason)
        if not fitting:
            raise Unschedulable(filters.nothing_fits(len(nodes), reasons))
        load = self._load()
        return min(fitting, key=lambda candidate: load[candidate[0]["metadata"]["name"]])

    def _scheduled(self) -> defaultdict[str, list[Json]]:
        """The pods of each node that have not ended, with those on their way to it."""
        found: defaultdict[str, list[Json]] = defaultdict(list)
        for pod in self._caches.pods.values():
            node = pod["spec"].get("nodeName") or (self._binding[key_of(pod)][1] if self._is_binding(pod) else "")
            if node and phase(pod) not in ("Succeeded", "Failed"):
                found[node].append(pod)
        return found

    def _load(self) -> Counter[str]:
        load = Counter(node for _, node in self._binding.values())
        for pod in self._caches.pods.values():
            if node := pod["spec"].get("nodeName"):
                load[node] += not self._is_binding(pod)
        return load

    def _assume(self, claim: Json, node: str) -> Json:
        changed = copy.deepcopy(claim)
        changed["metadata"].setdefault("annotations", {})[SELECTED_NODE] = node
        self._assumed[key_of(claim)] = changed
        return changed

    async def _bind(self, pod: Json, node: str, placement: Placement) -> None:
        key = key_of(pod)
        try:
            await self._bind_volumes(pod, node, placement)
            metadata = pod["metadata"]
            body = {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"]},
                "target": {"apiVersion": "v1", "kind": "Node", "name": node},
            }
            await self._cluster.create(PODS, body, metadata["namespace"], "binding")
        except (BindingFailed, ApiError) as error:
            for claim in placement.provision:
                self._assumed.pop(key_of(claim), None)
            if not self._is_binding(pod):
                return
            del self._binding[key]
            text = f'running PreBind plugin "VolumeBinding": {error}'
            _log.info("pod %s: %s", key, text)
            self._later(key)
            try:
                await self._say_failed(pod, "SchedulerError", text)
            except ApiError as silent:
                # An API server that is away fails the binding and this, too; it must not end the scheduler.
                _log.warning("pod %s: %s", key, silent)
                self._said.pop(key, None)
            return
        message = f"Successfully assigned {key} to {node}"
        self._recorder.normal(reference("Pod", pod), "Scheduled", message)

    async def _bind_volumes(self, pod: Json, node: str, placement: Placement) -> None:
        """Ask for the volumes and wait for them. Raises BindingFailed and ApiError."""
        for claim, volume in placement.bind:
            await self._prebind(claim, volume)
        for claim in placement.provision:
            metadata = claim["metadata"]
            if annotations(claim).get(SELECTED_NODE) == node:
                continue
            wanted = copy.deepcopy(claim)
            wanted["metadata"].setdefault("annotations", {})[SELECTED_NODE] = node
            written = await self._cluster.replace(CLAIMS, metadata["name"], wanted, metadata["namespace"])
            cached = self._caches.claims.get(key_of(claim))
            if cached and version(cached) < version(written):
                self._assumed[key_of(claim)] = written
            else:
                self._assumed.pop(key_of(claim), None)
        waiting = [key_of(claim) for claim, _ in placement.bind] + [key_of(claim) for claim in placement.provision]
        provisioned = {key_of(claim) for claim in placement.provision}
        deadline = asyncio.get_running_loop().time() + _BIND_SECONDS
        while True:
            waiting = [key for key in waiting if not self._is_bound(key, node, key in provisioned)]
            if not waiting:
                return
            if not self._is_binding(pod):
                name = pod["metadata"]["name"]
                raise BindingFailed(f'binding volumes: pod does not exist any more: pod "{name}" not found')
            if asyncio.get_running_loop().time() > deadline:
                raise BindingFailed("binding volumes: context deadline exceeded")
            await self._change_or_a_second()

    async def _change_or_a_second(self) -> None:
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                await self._claims_moved.wait()
        except TimeoutError:
            return

    def _is_bound(self, key: str, node: str, provisioned: bool) -> bool:
        """Raises BindingFailed when the claim won't be bound for this node."""
        claim = self._assumed.get(key) or self._caches.claims.get(key)
        name = key.partition("/")[2]
        if claim is None:
            where = "failed to check provisioning pvc" if provisioned else "failed to check binding"
            raise BindingFailed(f'binding volumes: {where}: could not find v1.PersistentVolumeClaim "{key}"')
        if provisioned and not annotations(claim):
            raise BindingFailed(f'binding volumes: selectedNode annotation reset for PVC "{name}"')
        if provisioned and annotations(claim).get(SELECTED_NODE) != node:
            raise BindingFailed(f'binding volumes: provisioning failed for PVC "{name}"')
        volume = self._caches.volumes.get(claim["spec"].get("volumeName") or "")
        if volume is None:
            return False
        affinity = (volume["spec"].get("nodeAffinity") or {}).get("required")
        labels = ((self._caches.nodes.get(node) or {}).get("metadata") or {}).get("labels") or {}
        if affinity and not node_selector_matches(affinity, labels, node):
            raise BindingFailed(
                f'binding volumes: pv "{volume["metadata"]["name"]}" node affinity doesn\'t match node "{node}": '
                "no matching NodeSelectorTerms"
            )
        return BIND_COMPLETED in annotations(claim)

    async def _prebind(self, claim: Json, volume: Json) -> None:
        """Promise an existing volume to the claim; the volume controller does the rest."""
        await self._cluster.replace(VOLUMES, volume["metadata"]["name"], binding.promised(volume, claim))

    async def _say_failed(self, pod: Json, reason: str, message: str) -> None:
        """An event each time, the condition when it changes; without the pod neither."""
        key = key_of(pod)
        if self._caches.pods.get(key) is None:
            return
        self._recorder.warning(reference("Pod", pod), "FailedScheduling", message)
        if self._said.get(key) == message:
            return
        self._said[key] = message
        condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
        metadata = pod["metadata"]
        body = {"metadata": {"uid": metadata["uid"]}, "status": {"conditions": [condition]}}
        try:
            await self._cluster.patch(
                PODS, metadata["name"], body, metadata["namespace"], "status", content_type=STRATEGIC
            )
        except (NotFound, Conflict):
            _log.info("pod %s is gone", key)


_NO_POD: Json = {"metadata": {"namespace": "", "name": ""}, "spec": {}}


def _unscheduled(pod: Json) -> bool:
    return (
        not pod["spec"].get("nodeName")
        and not deleting(pod)
        and (pod["spec"].get("schedulerName") or "default-scheduler") == "default-scheduler"
    )
