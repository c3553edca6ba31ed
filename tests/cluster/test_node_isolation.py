"""One node in other hands: with its daemon's token nothing of another node is read, changed or destroyed.

The thief has the token of node-b, the right to create claims and pods in a namespace of his own, and all components are
deployed, so that the daemons' rights are as many as they can be. What refuses him are the admission policies of
deploy/, as far as RBAC does not. What they say to each field stands in tests/unit/deploy."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from contract import capacity, names
from contract import volume as contract_volume
from contract.volume import NodeAssignment, PersistentVolume
from daemon.cluster.nodevolumes import assignment_patch
from kube.client import Cluster
from kube.errors import ApiError, Forbidden
from kube.resources import CAPACITIES, CLAIMS, CLASSES, EVENTS, JOBS, LEASES, NODES, PODS, VOLUMES, Resource
from tests.cluster.staticnode import Offered, configure, folder, mount, served, unmount
from tests.sandbox.apiserver import kubeconfig, users
from tests.sandbox.apiserver.patches import APPLY_PATCH, JSON_PATCH
from tests.sandbox.nodes import Node, NodeSpec
from tests.sandbox.sandbox import DAEMON_ACCOUNT, Sandbox
from tests.sandbox.workloads import Namespace, claim, pod, storage_class
from tests.unit.deploy.rendered import with_components
from tests.waiting import until

Json = dict[str, Any]

SECRETS = Resource("", "v1", "secrets", namespaced=True)
BINDINGS = Resource("admissionregistration.k8s.io", "v1", "validatingadmissionpolicybindings", namespaced=False)
ROLES = Resource("rbac.authorization.k8s.io", "v1", "clusterroles", namespaced=False)
POLICY = "ValidatingAdmissionPolicy"


@dataclass(frozen=True)
class IsolationCase:
    sandbox: Sandbox
    victim: Namespace
    attacker: Namespace
    volume: str
    """The victim's, on node-a, under policy Retain."""
    offered: str
    """A static one of node-a."""
    token: Cluster
    """What node-b's daemon may do."""

    @property
    def home(self) -> Node:
        return self.sandbox.nodes["node-a"]

    async def body(self, name: str) -> Json:
        return await self.sandbox.api.get(VOLUMES, name)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def case(short_folders: Callable[[], Path]) -> AsyncIterator[IsolationCase]:
    manifests = short_folders()
    with_components(manifests)
    nodes = (NodeSpec("node-a", hostname="ip-10-0-0-1", static=True), NodeSpec("node-b", static=True))
    async with AsyncExitStack() as stack:
        sandbox = await stack.enter_async_context(Sandbox(short_folders(), nodes, manifests=manifests, snapshots=True))
        victim = await stack.enter_async_context(Namespace(sandbox, "victim"))
        attacker = await stack.enter_async_context(Namespace(sandbox, "attacker"))
        node = sandbox.nodes["node-a"]
        await victim.create(CLAIMS, claim("data", "16Mi"))
        script = "echo TOPSECRET > /data/secret; exec sleep infinity"
        selector = {names.HOSTNAME_LABEL: node.hostname}
        await victim.create(PODS, pod("user", {"/data": "data"}, script=script, nodeSelector=selector))
        await victim.until_running("user")
        volume = (await victim.until_bound("data"))["metadata"]["name"]
        keep = {"spec": {"persistentVolumeReclaimPolicy": contract_volume.RETAIN}}
        await sandbox.api.patch(VOLUMES, volume, keep)
        await sandbox.api.create(CLASSES, storage_class("disks", provisioner="kubernetes.io/no-provisioner"))
        place = mount(folder(node, "disks") / "one")
        stack.callback(unmount, place)
        configure(node, "storageClassMap", {"disks": served(node.disks / "disks")})
        offered = Offered(sandbox, node, "one", "disks")
        await offered.until("Available")
        refused = [str(request) for request in sandbox.requests() if not request.allowed]
        assert not refused, "what the daemons do by themselves is theirs to do"
        sandbox.refusals_expected = True
        token = await Cluster.connect(str(sandbox.kubeconfig_of(DAEMON_ACCOUNT, "node-b")))
        await stack.enter_async_context(token)
        yield IsolationCase(sandbox, victim, attacker, volume, offered.name, token)
        node.static_config.joinpath("storageClassMap").unlink()


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def unharmed(case: IsolationCase) -> AsyncIterator[None]:
    """Whatever is tried."""
    before = await _theirs(case)
    yield
    assert await _theirs(case) == before
    assert (await case.body(case.volume))["spec"]["claimRef"]["namespace"] == case.victim.name
    assert list(case.home.data.rglob(f"{case.volume}*"))


async def _theirs(case: IsolationCase) -> list[Json]:
    """What others than the thief may write as well does not count."""
    bodies = [await case.body(name) for name in (case.volume, case.offered)]
    return [
        {"spec": each["spec"], "metadata": {key: each["metadata"][key] for key in ("uid", "labels", "finalizers")}}
        for each in bodies
    ]


async def _refused(attempt: Any, by: str = POLICY) -> str:
    with pytest.raises(Forbidden) as refused:
        await attempt
    assert by in refused.value.message, refused.value.message
    return refused.value.message


CHANGES: dict[str, Json] = {
    "claimRef": {
        "spec": {"claimRef": {"namespace": "attacker", "name": "loot", "uid": "any", "resourceVersion": None}}
    },
    "no claimRef": {"spec": {"claimRef": None}},
    "reclaim policy": {"spec": {"persistentVolumeReclaimPolicy": "Delete"}},
    "capacity": {"spec": {"capacity": {"storage": "1Gi"}}},
    "mount options": {"spec": {"mountOptions": ["suid"]}},
    "label": {"metadata": {"labels": {names.NODE_LABEL: "node-b"}}},
    "other label": {"metadata": {"labels": {"app": "mine"}}},
    "no labels": {"metadata": {"labels": None}},
    "annotation": {"metadata": {"annotations": {names.MADE_ANNOTATION: None}}},
    "I/O limits": {"metadata": {"annotations": {names.IO_LIMITS_ANNOTATION: "readIOPS=max"}}},
    "other annotation": {"metadata": {"annotations": {"pv.kubernetes.io/provisioned-by": "me"}}},
    "no finalizers": {"metadata": {"finalizers": None}},
    "owner": {"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "node-b", "uid": "any"}]}},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("whose", ["volume", "offered"])
async def test_no_field_of_a_volume_of_another_node_is_changed(case: IsolationCase, whose: str, change: str) -> None:
    """However the change is written down."""
    name, body = getattr(case, whose), CHANGES[change]
    assert "may not update" in await _refused(case.token.patch(VOLUMES, name, body))
    steps = [
        {"op": "add" if value is not None else "remove", "path": f"/{part}/{field}", "value": value}
        for part, fields in body.items()
        for field, value in fields.items()
        if value is not None or field in (await case.body(name))[part]
    ]
    path = f"{case.sandbox.address}{VOLUMES.path(None, name)}"
    assert POLICY in await _sent(case, "PATCH", path, steps, JSON_PATCH)
    applied = {"apiVersion": "v1", "kind": "PersistentVolume", **body}
    assert POLICY in await _sent(case, "PATCH", f"{path}?fieldManager=thief&force=true", applied)


async def _sent(
    case: IsolationCase, method: str, path: str, body: Json | list[Json], content_type: str = APPLY_PATCH
) -> str:
    """The message that answers a request which our client does not make."""
    token = users.token(names.NAMESPACE, DAEMON_ACCOUNT, "node-b")
    headers = {"Authorization": f"Bearer {token}", "Content-Type": content_type}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.request(method, path, data=json.dumps(body)) as answer,
    ):
        assert answer.status == 403, await answer.text()
        return str((await answer.json())["message"])


async def test_the_data_of_a_volume_is_not_read_by_giving_it_another_claim(case: IsolationCase) -> None:
    loot = await case.attacker.create(CLAIMS, claim("loot", "16Mi", volumeName=case.volume))
    reference = {"namespace": case.attacker.name, "name": "loot", "uid": loot["metadata"]["uid"]}
    for given in ({**reference, "resourceVersion": None}, None):
        await _refused(case.token.patch(VOLUMES, case.volume, {"spec": {"claimRef": given}}))
    thief = pod("thief", {"/data": "loot"}, script="cat /data/secret; exec sleep infinity", nodeName="node-a")
    created = await case.attacker.create(PODS, thief)
    await case.attacker.until_event("thief", "FailedMount")
    log = case.home.container_log(created["metadata"]["uid"], "main")
    assert not log.exists() or "TOPSECRET" not in log.read_text()
    await case.attacker.delete(PODS, "thief")
    await case.attacker.delete(CLAIMS, "loot")
    await case.attacker.until_gone(CLAIMS, "loot")


async def test_the_data_of_a_volume_is_not_destroyed(case: IsolationCase) -> None:
    """By policy, by its claim, by deleting it, or by letting another think so."""
    delete = {"persistentVolumeReclaimPolicy": "Delete", "claimRef": {"uid": "other", "name": "nosuch"}}
    await _refused(case.token.patch(VOLUMES, case.volume, {"spec": delete}))
    for name in (case.volume, case.offered):
        assert "may not delete" in await _refused(case.token.delete(VOLUMES, name))
    status = {"status": {"phase": "Released"}}
    await _refused(case.token.patch(VOLUMES, case.volume, status, subresource="status"), "cannot patch")
    for attempt in (
        case.token.delete(CLAIMS, "data", case.victim.name),
        case.token.delete(PODS, "user", case.victim.name),
        case.token.delete(NODES, "node-a"),
    ):
        await _refused(attempt, "cannot delete")


def _local(name: str, hostname: str, **labels: str) -> Json:
    term = {"matchExpressions": [{"key": names.HOSTNAME_LABEL, "operator": "In", "values": [hostname]}]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": name,
            "labels": {names.NODE_LABEL: "node-b", **labels},
            "annotations": {names.PROVISIONED_BY: "local-volume-provisioner-node-b"},
        },
        "spec": {
            "capacity": {"storage": "16Mi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "disks",
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": "/"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}},
        },
    }


async def test_no_volume_shows_what_is_on_another_node(case: IsolationCase) -> None:
    """A local volume is a folder of the node that its affinity names, and a pod that mounts it reads the whole node."""
    right = _local("local-pv-thief", "node-b")
    for node in ("node-a", "ip-10-0-0-1"):
        await _refused(case.token.create(VOLUMES, _local("local-pv-thief", node)))
        labelled = _local("local-pv-thief", node, **{names.OTHER_HOSTNAME_LABEL: node})
        if node == case.home.hostname:
            assert "which is the label of node node-a" in await _refused(case.token.create(VOLUMES, labelled))
    sources: dict[str, Json] = {
        "hostPath": {"path": "/"},
        "csi": {"driver": "other.example.org", "volumeHandle": "theirs"},
        "flexVolume": {"driver": names.DRIVER, "options": {"size": "1"}},
        "nfs": {"server": "storage", "path": "/"},
    }
    for source, value in sources.items():
        spec = {**{key: each for key, each in right["spec"].items() if key != "local"}, source: value}
        assert "only local volumes" in await _refused(case.token.create(VOLUMES, {**right, "spec": spec}))
    claimed = {**right["spec"], "claimRef": {"namespace": case.victim.name, "name": "next"}}
    assert "is for no claim" in await _refused(case.token.create(VOLUMES, {**right, "spec": claimed}))
    await case.token.create(VOLUMES, right)
    await case.token.delete(VOLUMES, "local-pv-thief")


async def test_the_room_of_another_node_is_not_published(case: IsolationCase) -> None:
    api, place = case.sandbox.api, names.NAMESPACE
    theirs = [
        each for each in await api.list(CAPACITIES, place) if each["metadata"]["labels"][names.NODE_LABEL] == "node-a"
    ]
    assert theirs
    name = theirs[0]["metadata"]["name"]
    await _refused(case.token.patch(CAPACITIES, name, {"capacity": "1Ei"}, place))
    await _refused(case.token.patch(CAPACITIES, name, {"metadata": {"labels": {names.NODE_LABEL: "node-b"}}}, place))
    await _refused(case.token.delete(CAPACITIES, name, place))
    for label, hostname in (("node-a", "node-a"), ("ghost", "ghost"), ("node-b", "ip-10-0-0-1"), ("node-b", "ghost")):
        room = capacity.Capacity(label, hostname, "any", "pool", 1 << 60, 1 << 60, 0)
        body = capacity.manifest(room, place, None)
        body["metadata"]["labels"].pop(names.OTHER_HOSTNAME_LABEL, None)
        await _refused(case.token.create(CAPACITIES, body, place))


async def test_no_job_runs_elsewhere_or_as_somebody_else(case: IsolationCase) -> None:
    def job(**fields: Any) -> Json:
        container = {"name": "c", "image": "elastic-local", "securityContext": {"privileged": True}}
        spec = {"restartPolicy": "Never", "containers": [container], **fields}
        metadata = {"name": "cleanup-any", "namespace": names.NAMESPACE}
        return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": {"spec": spec}}}

    def on(node: str) -> Json:
        term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
        return {"affinity": {"nodeAffinity": required}}

    root = {"volumes": [{"name": "root", "hostPath": {"path": "/"}}]}
    for fields in (
        {},
        {"nodeName": "node-a"},
        {"nodeSelector": {names.HOSTNAME_LABEL: "ip-10-0-0-1"}, **root},
        on("node-a"),
        {**on("node-b"), "serviceAccountName": "provisioner"},
        {**on("node-b"), "volumes": [{"name": "secret", "secret": {"secretName": "any"}}]},
        {**on("node-b"), "containers": [{"name": "c", "image": "evil"}]},
    ):
        await _refused(case.token.create(JOBS, job(**fields)))
    await case.token.create(JOBS, job(**on("node-b"), **root))
    await case.token.delete(JOBS, "cleanup-any", names.NAMESPACE)


async def test_nothing_else_of_the_cluster_is_changed(case: IsolationCase) -> None:
    token = case.token
    await _refused(token.patch(NODES, "node-a", {"spec": {"taints": [{"key": "x", "effect": "NoExecute"}]}}))
    await _refused(token.patch(NODES, "node-a", {"metadata": {"labels": {names.HOSTNAME_LABEL: "node-b"}}}))
    await _refused(token.patch(NODES, "node-b", {"metadata": {"labels": {names.HOSTNAME_LABEL: "ip-10-0-0-1"}}}))
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "lie", "namespace": "default"},
        "involvedObject": {"kind": "Node", "name": "node-a"},
        "source": {"component": "elastic-local-daemon", "host": "node-a"},
    }
    await _refused(token.create(EVENTS, event, "default"))
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "elastic-local-provisioner"}}
    await _refused(token.create(LEASES, lease, names.NAMESPACE), "cannot create")
    await _refused(token.list(SECRETS, names.NAMESPACE), "cannot list")
    await _refused(token.delete(BINDINGS, "elastic-local-daemon-volumes"), "cannot delete")
    await _refused(token.patch(ROLES, "elastic-local-daemon", {"rules": []}), "cannot patch")


async def test_an_unassigned_volume_can_be_taken_but_not_assigned_elsewhere(
    case: IsolationCase,
) -> None:
    """What is left: the node that mounts such a volume first has it, so a node can claim it, an empty one, for itself.
    It can't say that it is another's: whatever the affinity says, the label is its own, and the other node refuses."""
    await case.sandbox.api.create(CLASSES, storage_class("immediate", "Immediate"))
    await case.victim.create(CLAIMS, claim("early", "16Mi", "immediate"))
    name = (await case.victim.until_bound("early"))["metadata"]["name"]
    stolen = {"spec": {"persistentVolumeReclaimPolicy": "Retain"}}
    await _refused(case.token.patch(VOLUMES, name, stolen))
    assignment = NodeAssignment("node-b", case.home.hostname, "loop")
    forged = dataclasses.replace(assignment, node="node-a")
    await _refused(case.token.patch(VOLUMES, name, assignment_patch(await _read(case, name), forged)))
    await case.token.patch(VOLUMES, name, assignment_patch(await _read(case, name), assignment))
    await case.victim.create(PODS, pod("early", {"/data": "early"}, nodeName="node-a"))
    await case.victim.until_event("early", "FailedMount", "lives on node")
    assert not list(case.home.data.rglob(f"{name}*"))
    await case.victim.delete(PODS, "early")
    await case.victim.until_gone(PODS, "early")
    # Nobody's data is there: who took it lets it go again.
    await case.victim.delete(CLAIMS, "early")
    await until(lambda: _lets_go(case, name), what="its node alone holds it")
    await case.token.patch(VOLUMES, name, contract_volume.finalizer_removal_patch(await _read(case, name)))
    await case.victim.until_gone(VOLUMES, name)
    await case.sandbox.api.delete(CLASSES, "immediate")


async def _read(case: IsolationCase, name: str) -> PersistentVolume:
    pv = contract_volume.read(await case.body(name))
    assert pv
    return pv


async def _lets_go(case: IsolationCase, name: str) -> bool:
    return (await _read(case, name)).reclaimable


async def test_a_token_without_a_node_writes_nothing(case: IsolationCase) -> None:
    """Of a Kubernetes before 1.30, or of `kubectl create token`: the daemon says what is missing."""
    path = case.sandbox.folder / "unbound"
    kubeconfig.write(path, case.sandbox.address, users.token(names.NAMESPACE, DAEMON_ACCOUNT))
    async with await Cluster.connect(str(path)) as unbound:
        with pytest.raises(ApiError, match="names no node: "):
            await unbound.patch(VOLUMES, case.volume, {"metadata": {"annotations": {names.MADE_ANNOTATION: "x"}}})
    assert await asyncio.wait_for(case.token.list(PODS), 10), "reading is not held: docs/security.md"
