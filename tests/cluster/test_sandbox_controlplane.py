"""The sandbox's scheduler and volume controllers do what the real ones do, seen by a provisioner: the test plays it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from kube.errors import Invalid
from kube.resources import CAPACITIES, CLAIMS, CLASSES, DRIVERS, NODES, PODS, VOLUMES, Resource
from tests.sandbox.controlplane import filters, growth, resizing
from tests.sandbox.controlplane.binding import PodClaims, place
from tests.sandbox.controlplane.caches import version
from tests.sandbox.controlplane.filters import misfit
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until

Json = dict[str, Any]

SELECTED_NODE = "volume.kubernetes.io/selected-node"
ASKED = "volume.kubernetes.io/storage-provisioner"


class Storage:
    """A class, a driver object and capacities of a provisioner that only the test plays. All are named like the
    namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self.name = namespace.name
        self._made: list[tuple[Resource, str]] = []

    async def make_class(self, mode: str, **more: Any) -> None:
        body = {"provisioner": self.name, "volumeBindingMode": mode, "reclaimPolicy": "Delete", **more}
        await self._create(CLASSES, "storage.k8s.io/v1", "StorageClass", self.name, body)

    async def keep_count(self) -> None:
        spec = {"storageCapacity": True, "attachRequired": False}
        await self._create(DRIVERS, "storage.k8s.io/v1", "CSIDriver", self.name, {"spec": spec})

    async def offer(self, hostname: str, size: str) -> None:
        """Publish, or change, what a node has for the class."""
        api, name = self.namespace.sandbox.api, f"{self.name}-{hostname}"
        if (CAPACITIES, name) in self._made:
            await api.patch(CAPACITIES, name, {"capacity": size}, self.name)
            return
        self._made.append((CAPACITIES, name))
        body = {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "CSIStorageCapacity",
            "metadata": {"name": name},
            "storageClassName": self.name,
            "nodeTopology": {"matchLabels": {"kubernetes.io/hostname": hostname}},
            "capacity": size,
        }
        await api.create(CAPACITIES, body, self.name)

    async def make_volume(self, name: str, size: str, wanted: Json | None, **more: Any) -> Json:
        """A PersistentVolume of the class, for a claim if one is given."""
        spec = {
            "capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": self.name,
            "flexVolume": {"driver": "example.com/nobody"},
        }
        if wanted is not None:
            metadata = wanted["metadata"]
            reference = {key: metadata[key] for key in ("namespace", "name", "uid", "resourceVersion")}
            spec["claimRef"] = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **reference}
        return await self._create(VOLUMES, "v1", "PersistentVolume", f"{self.name}-{name}", {"spec": spec | more})

    async def remove(self) -> None:
        api = self.namespace.sandbox.api
        for name in [item["metadata"]["name"] for item in await api.list(PODS, self.name)]:
            await self.namespace.delete(PODS, name)
        for name in [item["metadata"]["name"] for item in await api.list(CLAIMS, self.name)]:
            await self.namespace.delete(CLAIMS, name)
            await self.namespace.until_gone(CLAIMS, name)
        for resource, name in self._made:
            await self.namespace.delete(resource, name)

    async def _create(self, resource: Resource, version: str, kind: str, name: str, body: Json) -> Json:
        whole = {"apiVersion": version, "kind": kind, "metadata": {"name": name}, **body}
        if resource is VOLUMES and "claimRef" in body["spec"]:
            whole["metadata"]["annotations"] = {"pv.kubernetes.io/provisioned-by": self.name}
        made = await self.namespace.sandbox.api.create(resource, whole)
        self._made.append((resource, name))
        return made


@pytest_asyncio.fixture(loop_scope="session")
async def storage(namespace: Namespace) -> AsyncIterator[Storage]:
    made = Storage(namespace)
    yield made
    await made.remove()


def selected(body: Json) -> str | None:
    node: str | None = (body["metadata"].get("annotations") or {}).get(SELECTED_NODE)
    return node


async def test_a_pod_waits_for_room_and_wakes_at_once(namespace: Namespace, storage: Storage) -> None:
    await storage.make_class("WaitForFirstConsumer")
    await storage.keep_count()
    await storage.offer("node-a", "1Gi")
    await namespace.create(CLAIMS, claim("data", "2Gi", storage.name))
    await namespace.create(PODS, pod("user", {"/data": "data"}))
    message = await namespace.until_event("user", "FailedScheduling", "free storage")
    assert message == (
        "0/3 nodes are available: 3 node(s) did not have enough free storage. no new claims to deallocate, preemption: "
        "0/3 nodes are available: 3 Preemption is not helpful for scheduling."
    )
    pending = await namespace.get(PODS, "user")
    assert ["PodScheduled", "False"] in [[item["type"], item["status"]] for item in pending["status"]["conditions"]]

    await storage.offer("ip-10-0-0-2.internal", "2Gi")
    chosen = await namespace.until(CLAIMS, "data", selected, what="has a node", seconds=1)
    assert selected(chosen) == "node-b"
    asked = await namespace.until(
        CLAIMS, "data", lambda body: ASKED in body["metadata"]["annotations"], what="is asked for"
    )
    assert asked["metadata"]["annotations"][ASKED] == storage.name


async def test_a_claim_that_is_sent_back_gets_another_node(namespace: Namespace, storage: Storage) -> None:
    await storage.make_class("WaitForFirstConsumer")
    await storage.keep_count()
    await storage.offer("node-a", "2Gi")
    await namespace.create(CLAIMS, claim("data", "2Gi", storage.name))
    await namespace.create(PODS, pod("user", {"/data": "data"}))
    # Without the second annotation the scheduler finds none when the first is gone, and says so in other words.
    await namespace.until(
        CLAIMS,
        "data",
        lambda body: selected(body) == "node-a" and ASKED in body["metadata"]["annotations"],
        what="has node-a",
    )
    await storage.offer("node-a", "1Gi")
    await storage.offer("node-c", "2Gi")
    patch = {"metadata": {"annotations": {SELECTED_NODE: None}}}
    await namespace.sandbox.api.patch(CLAIMS, "data", patch, namespace.name)
    message = await namespace.until_event("user", "FailedScheduling", "PreBind")
    assert message == 'running PreBind plugin "VolumeBinding": binding volumes: provisioning failed for PVC "data"'
    failed = await namespace.get(PODS, "user")
    assert "SchedulerError" in [item.get("reason") for item in failed["status"]["conditions"]]
    chosen = await namespace.until(CLAIMS, "data", lambda body: selected(body) == "node-c", what="has node-c")

    affinity = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-c"]}]}
    await storage.make_volume("made", "2Gi", chosen, nodeAffinity={"required": {"nodeSelectorTerms": [affinity]}})
    bound = await namespace.until(PODS, "user", lambda body: body["spec"].get("nodeName"), what="has a node")
    assert bound["spec"]["nodeName"] == "node-c"


async def test_an_immediate_claim_is_asked_for_at_once_and_bound_when_made(
    namespace: Namespace, storage: Storage
) -> None:
    await storage.make_class("Immediate")
    await namespace.create(CLAIMS, claim("data", "1Gi", storage.name))
    await namespace.create(PODS, pod("user", {"/data": "data"}))
    message = await namespace.until_event("user", "FailedScheduling")
    assert message == "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found"
    asked = await namespace.until(
        CLAIMS, "data", lambda body: ASKED in (body["metadata"].get("annotations") or {}), what="is asked for"
    )
    await namespace.until_event("data", "ExternalProvisioning")
    # Larger than asked for: the claim's capacity is the volume's.
    await storage.make_volume("made", "2Gi", asked)
    volume = await namespace.until_bound("data")
    assert (await namespace.get(CLAIMS, "data"))["status"]["capacity"]["storage"] == "2Gi"
    assert volume["status"]["phase"] == "Bound"
    await namespace.until(PODS, "user", lambda body: body["spec"].get("nodeName"), what="has a node")


async def test_released_volumes_are_left_to_their_provisioner_or_fail(namespace: Namespace, storage: Storage) -> None:
    await storage.make_class("Immediate")
    await storage.make_volume("by-hand", "1Gi", None)
    await namespace.create(CLAIMS, claim("first", "1Gi", storage.name))
    by_hand = await namespace.until_bound("first")
    assert by_hand["metadata"]["name"] == f"{storage.name}-by-hand"
    second = await namespace.create(CLAIMS, claim("second", "1Gi", storage.name))
    await storage.make_volume("made", "1Gi", second)
    await namespace.until_bound("second")
    for name in ("first", "second"):
        await namespace.delete(CLAIMS, name)

    def in_phase(phase: str) -> Any:
        return lambda body: body["status"]["phase"] == phase

    failed = await namespace.until(VOLUMES, f"{storage.name}-by-hand", in_phase("Failed"), what="has failed")
    assert failed["status"]["message"] == (
        f'error getting deleter volume plugin for volume "{storage.name}-by-hand": no volume plugin matched'
    )
    await namespace.until(VOLUMES, f"{storage.name}-made", in_phase("Released"), what="is released")


@pytest.mark.parametrize(
    ("volume", "claimed", "why"),
    [
        ({"capacity": {"storage": "512Mi"}}, {}, "requested PV is too small"),
        ({"storageClassName": "other"}, {}, "storageClassName does not match"),
        ({}, {"volumeMode": "Block"}, "incompatible volumeMode"),
        ({}, {"accessModes": ["ReadOnlyMany"]}, "incompatible accessMode"),
    ],
)
async def test_a_claim_that_can_not_have_the_volume_it_names_gets_an_event(
    namespace: Namespace, storage: Storage, volume: Json, claimed: Json, why: str
) -> None:
    await storage.make_class("Immediate")
    name = (await storage.make_volume("named", "1Gi", None, **volume))["metadata"]["name"]
    await namespace.create(CLAIMS, claim("data", "1Gi", storage.name, volumeName=name, **claimed))
    message = await namespace.until_event("data", "VolumeMismatch")
    assert message == f'Cannot bind to requested volume "{name}": {why}'


async def test_a_volume_of_another_claim_is_not_to_be_had(namespace: Namespace, storage: Storage) -> None:
    await storage.make_class("Immediate")
    first = await namespace.create(CLAIMS, claim("first", "1Gi", storage.name))
    name = (await storage.make_volume("made", "1Gi", first))["metadata"]["name"]
    await namespace.until_bound("first")
    await namespace.create(CLAIMS, claim("second", "1Gi", storage.name, volumeName=name))
    message = await namespace.until_event("second", "FailedBinding")
    assert message == f'volume "{name}" already bound to a different claim.'


async def test_a_volume_that_was_promised_in_vain_is_free_again(namespace: Namespace, storage: Storage) -> None:
    await storage.make_class("Immediate")
    first = await namespace.create(CLAIMS, claim("data", "1Gi", storage.name))
    await storage.make_volume("made", "1Gi", first)
    await namespace.until_bound("data")
    late = await storage.make_volume("late", "1Gi", first, persistentVolumeReclaimPolicy="Retain")
    free = await namespace.until(
        VOLUMES, late["metadata"]["name"], lambda body: body["status"].get("phase") == "Available", what="is free"
    )
    assert "uid" not in free["spec"]["claimRef"], "it was not the controller that had promised it"


async def test_a_claim_that_lost_its_volume_says_so_and_so_does_its_pod(namespace: Namespace, storage: Storage) -> None:
    await storage.make_class("Immediate")
    asked = await namespace.create(CLAIMS, claim("data", "1Gi", storage.name))
    name = (await storage.make_volume("made", "1Gi", asked))["metadata"]["name"]
    await namespace.until_bound("data")
    await namespace.sandbox.api.patch(VOLUMES, name, {"metadata": {"finalizers": None}})
    await namespace.delete(VOLUMES, name)
    lost = await namespace.until(CLAIMS, "data", lambda body: body["status"]["phase"] == "Lost", what="is Lost")
    assert "capacity" not in lost["status"]
    await namespace.until_event("data", "ClaimLost", "Data on the volume is lost!")
    await namespace.create(PODS, pod("user", {"/data": "data"}))
    message = await namespace.until_event("user", "FailedScheduling")
    assert message == (
        f'0/3 nodes are available: persistentvolumeclaim "data" bound to non-existent persistentvolume "{name}". '
        "not found"
    )


async def test_a_claim_says_which_pods_it_waits_for(namespace: Namespace, storage: Storage) -> None:
    await storage.make_class("WaitForFirstConsumer", provisioner="kubernetes.io/no-provisioner")
    await namespace.create(PODS, pod("user", {"/data": "data"}))
    message = await namespace.until_event("user", "FailedScheduling")
    assert message == '0/3 nodes are available: persistentvolumeclaim "data" not found. not found'
    await namespace.create(CLAIMS, claim("data", "1Gi", storage.name))
    assert await namespace.until_event("data", "WaitForPodScheduled") == "waiting for pod user to be scheduled"
    message = await namespace.until_event("user", "FailedScheduling", "didn't find")
    assert message.startswith("0/3 nodes are available: 3 node(s) didn't find available persistent volumes to bind. ")


async def test_of_the_volumes_there_are_the_smallest_that_fits_is_bound(namespace: Namespace, storage: Storage) -> None:
    await storage.make_class("WaitForFirstConsumer", provisioner="kubernetes.io/no-provisioner")
    for size in ("8Gi", "1Gi", "4Gi"):
        await storage.make_volume(size.lower(), size, None)
    await until(lambda: _phases(namespace.sandbox, storage.name, {"Available"}), what="the volumes are available")
    await namespace.create(CLAIMS, claim("data", "3Gi", storage.name))
    await namespace.until_event("data", "WaitForFirstConsumer")
    await namespace.create(PODS, pod("user", {"/data": "data"}))
    volume = await namespace.until_bound("data")
    assert volume["spec"]["capacity"]["storage"] == "4Gi"


async def test_a_claim_in_use_stays_until_its_pod_is_gone(namespace: Namespace, storage: Storage) -> None:
    await storage.make_class("Immediate")
    asked = await namespace.create(CLAIMS, claim("data", "1Gi", storage.name))
    await storage.make_volume("made", "1Gi", asked)
    await namespace.create(PODS, pod("user", {"/data": "data"}))
    await namespace.until(PODS, "user", lambda body: body["spec"].get("nodeName"), what="has a node")
    await namespace.delete(CLAIMS, "data")
    assert "deletionTimestamp" in (await namespace.get(CLAIMS, "data"))["metadata"]
    await namespace.delete(PODS, "user")
    await namespace.until_gone(CLAIMS, "data")


async def test_an_expanded_claim_raises_its_volumes_capacity_first(namespace: Namespace, storage: Storage) -> None:
    await storage.make_class("Immediate", allowVolumeExpansion=True)
    asked = await namespace.create(CLAIMS, claim("data", "1Gi", storage.name))
    made = await storage.make_volume("made", "1Gi", asked)
    await namespace.until_bound("data")
    await ask(namespace, "3Gi")
    name = made["metadata"]["name"]
    await namespace.until(VOLUMES, name, lambda body: body["spec"]["capacity"]["storage"] == "3Gi", what="is larger")
    waiting = await until_the_node_has_to_grow(namespace)
    assert [(each["type"], each["status"]) for each in waiting["status"]["conditions"]] == [
        ("Resizing", "True"),
        ("FileSystemResizePending", "True"),
    ]
    assert waiting["status"]["capacity"]["storage"] == "1Gi"
    assert waiting["status"]["allocatedResources"]["storage"] == "3Gi"
    assert waiting["metadata"]["annotations"]["volume.kubernetes.io/storage-resizer"] == "example.com/nobody"
    noted = "volume.alpha.kubernetes.io/pre-resize-capacity"
    await namespace.until(
        VOLUMES, name, lambda body: body["metadata"]["annotations"].get(noted) == "1Gi", what="notes what it had"
    )

    # As the kubelet does when the driver has grown it.
    grown_on_node = {"capacity": {"storage": "3Gi"}, "allocatedResourceStatuses": {"storage": None}, "conditions": []}
    await namespace.sandbox.api.patch(CLAIMS, "data", {"status": grown_on_node}, namespace.name, "status")
    await namespace.until(VOLUMES, name, lambda body: noted not in body["metadata"]["annotations"], what="forgets it")


async def test_a_claim_raised_again_during_an_expansion_gets_the_first_size_first(
    namespace: Namespace, storage: Storage
) -> None:
    await storage.make_class("Immediate", allowVolumeExpansion=True)
    asked = await namespace.create(CLAIMS, claim("data", "1Gi", storage.name))
    name = (await storage.make_volume("made", "1Gi", asked))["metadata"]["name"]
    await namespace.until_bound("data")
    await ask(namespace, "3Gi")
    await until_the_node_has_to_grow(namespace)
    asked = await ask(namespace, "5Gi")
    # It takes it up again, at the old size, and hands it over again.
    waiting = await namespace.until(
        CLAIMS,
        "data",
        lambda body: resizing.step_of(body) == resizing.NODE_PENDING and version(body) > version(asked),
        what="is handed over again",
    )
    assert (await namespace.sandbox.api.get(VOLUMES, name))["spec"]["capacity"]["storage"] == "3Gi"
    assert waiting["status"]["allocatedResources"]["storage"] == "3Gi"
    grown_on_node = {"capacity": {"storage": "3Gi"}, "allocatedResourceStatuses": {"storage": None}, "conditions": []}
    await namespace.sandbox.api.patch(CLAIMS, "data", {"status": grown_on_node}, namespace.name, "status")
    await namespace.until(VOLUMES, name, lambda body: body["spec"]["capacity"]["storage"] == "5Gi", what="is larger")


async def test_a_claim_may_be_lowered_to_more_than_it_has_and_nobody_looks_at_it(
    namespace: Namespace, storage: Storage
) -> None:
    await storage.make_class("Immediate", allowVolumeExpansion=True)
    asked = await namespace.create(CLAIMS, claim("data", "1Gi", storage.name))
    name = (await storage.make_volume("made", "1Gi", asked))["metadata"]["name"]
    await namespace.until_bound("data")
    await ask(namespace, "50Gi")
    before = await until_the_node_has_to_grow(namespace)
    with pytest.raises(Invalid, match=r"field can not be less than status\.capacity"):
        await ask(namespace, "1Gi")
    await ask(namespace, "2Gi")
    # The controller takes its claims in turn: when it has taken up this one, it would have taken up the other.
    other = await namespace.create(CLAIMS, claim("other", "1Gi", storage.name))
    await storage.make_volume("another", "1Gi", other)
    await namespace.until_bound("other")
    await ask(namespace, "2Gi", "other")
    await until_the_node_has_to_grow(namespace, "other")
    lowered = await namespace.get(CLAIMS, "data")
    assert lowered["spec"]["resources"]["requests"]["storage"] == "2Gi"
    assert lowered["status"] == before["status"]
    assert (await namespace.sandbox.api.get(VOLUMES, name))["spec"]["capacity"]["storage"] == "50Gi"


async def ask(namespace: Namespace, size: str, name: str = "data") -> Json:
    more = {"spec": {"resources": {"requests": {"storage": size}}}}
    return await namespace.sandbox.api.patch(CLAIMS, name, more, namespace.name)


async def until_the_node_has_to_grow(namespace: Namespace, name: str = "data") -> Json:
    return await namespace.until(
        CLAIMS, name, lambda body: resizing.step_of(body) == resizing.NODE_PENDING, what="waits for its node"
    )


@pytest.mark.parametrize(
    ("capacity", "request_", "step", "allocated", "decided"),
    [
        ("1Gi", "3Gi", "", None, growth.Raise("3Gi")),
        ("1Gi", "3Gi", "ControllerResizeInProgress", "2Gi", growth.Raise("2Gi")),
        ("1Gi", "3Gi", "ControllerResizeInfeasible", "2Gi", growth.Raise("3Gi")),
        ("2Gi", "3Gi", "NodeResizePending", "2Gi", growth.Raise("2Gi")),
        ("2Gi", "3Gi", "NodeResizeInfeasible", "2Gi", growth.Raise("2Gi")),
        ("3Gi", "3Gi", "NodeResizePending", "3Gi", None),
        ("3Gi", "2Gi", "NodeResizeInProgress", "3Gi", None),
        ("3Gi", "2Gi", "NodeResizeInfeasible", "3Gi", growth.HandToNode()),
        ("3Gi", "3Gi", "ControllerResizeInProgress", "3Gi", growth.Raise("3Gi")),
        ("3Gi", "3Gi", "", None, growth.Raise("3Gi")),
    ],
)
async def test_what_the_expand_controller_does(
    capacity: str, request_: str, step: str, allocated: str | None, decided: object
) -> None:
    """The cases of expandAndRecoverFunction."""
    wanted = claim("data", request_)
    status = {"allocatedResourceStatuses": {"storage": step}, "allocatedResources": {"storage": allocated}}
    assert growth.decide(wanted | {"status": status}, {"spec": {"capacity": {"storage": capacity}}}) == decided


async def test_a_burst_of_pods_spreads(namespace: Namespace) -> None:
    for number in range(6):
        await namespace.create(PODS, pod(f"user-{number}"))
    for number in range(6):
        await namespace.until_running(f"user-{number}")
    pods = await namespace.sandbox.api.list(PODS, namespace.name)
    nodes = [body["spec"]["nodeName"] for body in pods]
    assert sorted(nodes.count(node) for node in set(nodes)) == [2, 2, 2]


async def test_the_node_has_the_hostname_label_it_was_given(sandbox: Sandbox) -> None:
    node = await sandbox.api.get(NODES, "node-b")
    assert node["metadata"]["labels"]["kubernetes.io/hostname"] == "ip-10-0-0-2.internal"


READY = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
ZONE_A = {"name": "n", "labels": {"zone": "a", "kubernetes.io/hostname": "h"}}


@pytest.mark.parametrize(
    ("pod_spec", "node_spec", "reason"),
    [
        ({}, {}, None),
        ({"nodeSelector": {"zone": "a"}}, {}, None),
        ({"nodeSelector": {"zone": "b"}}, {}, "node(s) didn't match Pod's node affinity/selector"),
        ({}, {"unschedulable": True}, "node(s) were unschedulable"),
        ({}, {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}, "node(s) had untolerated taint(s)"),
        ({}, {"taints": [{"key": "k", "value": "v", "effect": "PreferNoSchedule"}]}, None),
        (
            {"tolerations": [{"key": "k", "operator": "Exists"}]},
            {"taints": [{"key": "k", "value": "v", "effect": "NoExecute"}]},
            None,
        ),
    ],
)
async def test_nodes_that_a_pod_fits(pod_spec: Json, node_spec: Json, reason: str | None) -> None:
    assert misfit({"spec": pod_spec}, {"metadata": ZONE_A, "spec": node_spec, **READY}) == reason


@pytest.mark.parametrize(
    ("capacity", "fits"),
    [
        ({"capacity": "2Gi"}, True),
        ({"capacity": "1Gi"}, False),
        ({"capacity": "4Gi", "maximumVolumeSize": "1Gi"}, False),
        ({"capacity": "2Gi", "storageClassName": "other"}, False),
        ({"capacity": "2Gi", "nodeTopology": {"matchLabels": {"zone": "b"}}}, False),
        ({"capacity": "2Gi", "nodeTopology": None}, False),
        ({}, False),
    ],
)
async def test_capacity_counts_only_for_its_class_its_nodes_and_driver(capacity: Json, fits: bool) -> None:
    wanted = claim("data", "2Gi", "local")
    claims = PodClaims(bound=[], delayed=[wanted])
    classes: dict[str, Json] = {"local": {"provisioner": "p", "volumeBindingMode": "WaitForFirstConsumer"}}
    node: Json = {"metadata": ZONE_A, "spec": {}}
    offered = {"storageClassName": "local", "nodeTopology": {"matchLabels": {"zone": "a"}}, **capacity}
    counting = {"p": {"spec": {"storageCapacity": True}}}
    refusal = ("node(s) did not have enough free storage",)
    assert (place(node, claims, [], classes, counting, [offered]) != refusal) is fits
    assert place(node, claims, [], classes, {"other": counting["p"]}, []) != refusal


def _csi_pod(name: str, *claims: str) -> Json:
    volumes = [{"name": each, "persistentVolumeClaim": {"claimName": each}} for each in claims]
    return {"metadata": {"namespace": "ns", "name": name}, "spec": {"volumes": volumes}}


async def test_more_csi_volumes_than_a_node_can_have_keep_a_pod_away() -> None:
    """Each volume counts once, however many pods have it; one that is not made yet counts for its class's driver."""
    claims = {f"ns/{name}": {"spec": {"volumeName": name}} for name in ("one", "two", "old")}
    claims["ns/new"] = {"spec": {"storageClassName": "fast"}}
    sources = {name: {"spec": {"csi": {"driver": "a.b", "volumeHandle": name}}} for name in ("one", "two")}
    volumes = {**sources, "old": {"spec": {"flexVolume": {"driver": "v/d"}}}}
    classes = {"fast": {"provisioner": "a.b"}}
    running = [_csi_pod("r", "one"), _csi_pod("s", "one", "old")]

    def refused(wanted: Json, count: int | None) -> bool:
        allocatable = {} if count is None else {"allocatable": {"count": count}}
        csi_node = {"spec": {"drivers": [{"name": "a.b", **allocatable}]}}
        return filters.has_too_many(wanted, running, csi_node, claims, volumes, classes)

    assert not refused(_csi_pod("p", "two"), 2)
    assert refused(_csi_pod("p", "two"), 1)
    assert refused(_csi_pod("p", "two", "new"), 2)
    assert not refused(_csi_pod("p", "one", "old"), 1)
    assert not refused(_csi_pod("p", "two"), None)
    assert not filters.has_too_many(_csi_pod("p", "two"), running, None, claims, volumes, classes)


async def test_a_claim_for_one_pod_keeps_all_others_from_everywhere() -> None:
    claims: dict[str, Json] = {
        "ns/alone": {"spec": {"accessModes": ["ReadWriteOncePod"]}},
        "ns/shared": {"spec": {"accessModes": ["ReadWriteOnce"]}},
    }
    assert filters.conflicts(_csi_pod("p", "alone"), claims, [_csi_pod("other", "alone")])
    assert not filters.conflicts(_csi_pod("p", "alone"), claims, [_csi_pod("p", "alone")])
    assert not filters.conflicts(_csi_pod("p", "alone"), claims, [_csi_pod("other", "shared")])
    assert not filters.conflicts(_csi_pod("p", "shared"), claims, [_csi_pod("other", "shared")])
    assert filters.nothing_fits(3, [filters.POD_CONFLICT, filters.POD_CONFLICT, "node(s) were unschedulable"]) == (
        "0/3 nodes are available: 1 node(s) were unschedulable, 2 node has pod using PersistentVolumeClaim with the "
        "same name and ReadWriteOncePod access mode. no new claims to deallocate, preemption: 0/3 nodes are available: "
        "1 Preemption is not helpful for scheduling, 2 No preemption victims found for incoming pod."
    )


async def _phases(sandbox: Sandbox, storage_class: str, wanted: set[str]) -> bool:
    volumes = await sandbox.api.list(VOLUMES)
    return {
        volume["status"]["phase"] for volume in volumes if volume["spec"]["storageClassName"] == storage_class
    } == wanted
