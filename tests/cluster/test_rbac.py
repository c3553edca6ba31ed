"""The rights that deploy/ gives our programs. That they suffice, every sandbox asserts at its end, for all tests of
this floor run with them. Here: each of them is used, no other stands in for it, and what happens without one is told
to whom it concerns."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from contract import names
from contract.volume import FLEX_VOLUME, NodeAssignment, node_assignment_patch
from kube.resources import (
    CAPACITIES,
    CLAIMS,
    CLASSES,
    EVENTS,
    JOBS,
    NODES,
    PODS,
    SNAPSHOT_CONTENTS,
    SNAPSHOTS,
    VOLUMES,
    Resource,
)
from tests.cluster.conftest import MakeSandbox
from tests.sandbox import snapshots
from tests.sandbox.apiserver import users
from tests.sandbox.apiserver.guard import Request
from tests.sandbox.apiserver.rbac import Attributes, Rule
from tests.sandbox.nodes import Node, NodeSpec
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, pod, storage_class
from tests.unit.deploy.rendered import BASE, kustomize, of_kind, one, with_components
from tests.waiting import NeverHappened, until

Json = dict[str, Any]

_CLUSTER_ROLES = Resource("rbac.authorization.k8s.io", "v1", "clusterroles", namespaced=False)
_ROLES = Resource("rbac.authorization.k8s.io", "v1", "roles", namespaced=True)
_REVIEWS = Resource("authorization.k8s.io", "v1", "subjectaccessreviews", namespaced=False)


@dataclass(frozen=True)
class Right:
    """One verb for one resource: the smallest thing that a rule could give less of."""

    account: str
    namespace: str
    """Empty: everywhere."""
    rule: Rule
    role: tuple[str, str]
    """Kind and name of what has the rule."""

    def __str__(self) -> str:
        (verb,), (resource,) = self.rule.verbs, self.rule.resources
        named = "".join(f" {name}" for name in sorted(self.rule.names))
        return f"{self.account}: {verb} {resource}{named} in {self.namespace or 'all places'}"

    def used_by(self, request: Request) -> bool:
        """A right everywhere has to be used where one in our own namespace would not do."""
        asked = request.asked
        in_place = asked.namespace == self.namespace if self.namespace else asked.namespace != names.NAMESPACE
        return request.user == users.username(names.NAMESPACE, self.account) and in_place and self.rule.allows(asked)


def given(objects: tuple[Json, ...]) -> Iterator[Right]:
    for binding in (*of_kind(objects, "RoleBinding"), *of_kind(objects, "ClusterRoleBinding")):
        role = one(objects, binding["roleRef"]["kind"], binding["roleRef"]["name"])
        for subject in binding["subjects"]:
            for rule in map(Rule.read, role["rules"]):
                for verb in rule.verbs:
                    for resource in rule.resources:
                        small = Rule(frozenset({verb}), rule.groups, frozenset({resource}), rule.names)
                        reference = binding["roleRef"]["kind"], binding["roleRef"]["name"]
                        yield Right(subject["name"], binding["metadata"].get("namespace", ""), small, reference)


async def test_every_right_is_used_and_missed_when_it_is_taken_away(
    short_folders: Callable[[], Path], tmp_path: Path
) -> None:
    """Of base and of all components. What our programs asked for in a busy cluster they may no longer ask for when the
    one right is gone. To live through it all once for each right would take ten minutes, so the programs are stopped
    by then, and the API server is asked about what they had asked."""
    objects = with_components(tmp_path)
    nodes = [NodeSpec("stays", capacity="256Mi", static=True), NodeSpec("goes", capacity="256Mi")]
    sandbox = Sandbox(short_folders(), nodes, manifests=tmp_path, snapshots=True)
    (provisioner,) = sandbox.provisioners
    provisioner.environment = {
        **provisioner.environment,
        "NODE_LOSS_DELAY": "1s",
        "NODE_CLEANUP_CLASSES": "fleeting",
    }

    cleaner = sandbox.nodes["stays"].daemon
    cleaner.environment = {**cleaner.environment, "JOB_CONTAINER_IMAGE": "elastic-local", "DISCOVERY_PERIOD": "1s"}

    def unused() -> list[str]:
        asked = set(sandbox.requests())
        return sorted(str(right) for right in given(objects) if not any(right.used_by(request) for request in asked))

    async with sandbox:
        await _a_busy_cluster(sandbox)
        try:
            await until(lambda: not unused(), seconds=20)
        except NeverHappened:
            raise AssertionError(f"nobody uses these rights: {unused()}") from None
        await asyncio.gather(*(program.stop() for program in (*sandbox.provisioners, cleaner)))
        used = list(sandbox.requests())
        for right in given(objects):
            asked = {request.asked for request in used if right.used_by(request)}
            async with deprived(sandbox, right):
                allowed = [str(each) for each in asked if await _may(sandbox, right.account, each)]
            assert not allowed, f"without {right} this is allowed still: {allowed}"


async def _may(sandbox: Sandbox, account: str, asked: Attributes) -> bool:
    """Asked of the API server."""
    spec = {"user": users.username(names.NAMESPACE, account), "resourceAttributes": asdict(asked)}
    review = await sandbox.api.create(_REVIEWS, {"metadata": {}, "spec": spec})
    return bool(review["status"]["allowed"])


async def _a_busy_cluster(sandbox: Sandbox) -> None:
    stays, goes = sandbox.nodes["stays"], sandbox.nodes["goes"]
    async with Namespace(sandbox, "work") as namespace:
        await asyncio.gather(
            _a_class_comes_and_goes(sandbox),
            _a_volume_can_not_be_made(sandbox, stays),
            _a_claim_is_lowered_again(namespace),
            _a_node_is_full(namespace),
            _the_name_of_a_volume_is_taken(namespace),
            _a_pod_is_not_known(stays),
            _a_disk_is_offered_and_cleaned(namespace, stays),
            _a_snapshot_is_made_and_restored(namespace, stays),
        )
        await _a_node_goes(namespace, goes)


async def _a_class_comes_and_goes(sandbox: Sandbox) -> None:
    """The daemons publish room for it, and take that away again."""

    async def published() -> bool:
        bodies = await sandbox.api.list(CAPACITIES, names.NAMESPACE)
        return any(each["storageClassName"] == "passing" for each in bodies)

    await sandbox.api.create(CLASSES, storage_class("passing"))
    await until(published, what="there is room for the class")
    await sandbox.api.delete(CLASSES, "passing")


async def _a_volume_can_not_be_made(sandbox: Sandbox, node: Node) -> None:
    """The daemon tells it, again and again: events are created and patched."""
    assignment = node_assignment_patch(NodeAssignment(node.name, node.hostname, "loop"))
    body = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "broken", **assignment["metadata"]},
        "spec": {
            "capacity": {"storage": "16Mi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "by-hand",
            "flexVolume": {"driver": names.DRIVER, "options": {"size": "16777216", "mkfsOptions": "--nonsense"}},
            **assignment["spec"],
        },
    }
    await sandbox.api.create(VOLUMES, body)
    await until(lambda: _told_again(sandbox, "default", "broken"), what="the event is counted")
    await sandbox.api.delete(VOLUMES, "broken")


async def _told_again(sandbox: Sandbox, namespace: str, name: str) -> bool:
    events = await sandbox.api.list(EVENTS, namespace, field_selector=f"involvedObject.name={name}")
    return any(event.get("count", 1) > 1 for event in events)


async def _a_claim_is_lowered_again(namespace: Namespace) -> None:
    """The provisioner corrects what the kubelet is to grow a FlexVolume to."""
    body = storage_class("flex", parameters={"volumeSource": "flexVolume"}, allowVolumeExpansion=True)
    await namespace.api.create(CLASSES, body)
    await namespace.create(CLAIMS, claim("grows", "16Mi", "flex"))
    await namespace.create(PODS, pod("grows", {"/data": "grows"}))
    await namespace.until_running("grows")
    for size in ("50Gi", "20Mi"):
        patch = {"spec": {"resources": {"requests": {"storage": size}}}}
        await namespace.api.patch(CLAIMS, "grows", patch, namespace.name)
        await until(partial(_is_to_grow_to, namespace, size), what=f"the claim is to grow to {size}")


async def _is_to_grow_to(namespace: Namespace, size: str) -> bool:
    status = (await namespace.get(CLAIMS, "grows"))["status"]
    return bool(status.get("allocatedResources") == {"storage": size})


async def _a_node_is_full(namespace: Namespace) -> None:
    """Either claim fits, both don't: the provisioner sends one back to the scheduler."""
    for name in ("half", "other-half"):
        await namespace.create(CLAIMS, claim(name, "200Mi"))
    await namespace.create(PODS, pod("greedy", {"/half": "half", "/other-half": "other-half"}))


async def _the_name_of_a_volume_is_taken(namespace: Namespace) -> None:
    """The provisioner looks whose it is, and tells the claim's owner until it is free."""
    created = await namespace.create(CLAIMS, claim("taken", "16Mi"))
    name = f"pvc-{created['metadata']['uid']}"
    body = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "16Mi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "by-hand",
            "hostPath": {"path": "/nowhere"},
        },
    }
    await namespace.sandbox.api.create(VOLUMES, body)
    await namespace.create(PODS, pod("taken", {"/data": "taken"}))
    await namespace.until_event("taken", "ProvisioningFailed", f"there is a PersistentVolume {name} already")
    await until(lambda: _told_again(namespace.sandbox, namespace.name, "taken"), what="the event is counted")
    await namespace.sandbox.api.delete(VOLUMES, name)


async def _a_pod_is_not_known(node: Node) -> None:
    """The kubelet may know of a pod before the daemon's watch does: it is asked for by name."""
    folder = node.volume_folder("00000000-0000-0000-0000-000000000000", "pvc-any", FLEX_VOLUME)
    folder.mkdir(parents=True)
    options = {"kubernetes.io/pod.name": "early", "kubernetes.io/pod.namespace": "default"}
    process = await asyncio.create_subprocess_exec(
        node.driver, "mount", folder, json.dumps(options),
        stdout=asyncio.subprocess.PIPE, env=os.environ | {names.SOCKET_VARIABLE: str(node.socket)},
    )  # fmt: skip
    answer, _ = await process.communicate()
    assert json.loads(answer)["status"] == "Failure"


async def _a_disk_is_offered_and_cleaned(namespace: Namespace, node: Node) -> None:
    """By a Job. Once it is found, the node's taint goes."""
    api = namespace.sandbox.api
    disks = str(node.disks)
    taint = {"key": "example.org/disks-not-ready", "effect": "PreferNoSchedule"}
    await api.patch(NODES, node.name, {"spec": {"taints": [taint]}})
    await api.create(CLASSES, storage_class("disks", "Immediate", provisioner="kubernetes.io/no-provisioner"))
    with attached(node.folder / "disk") as device:
        (node.disks / "one").symlink_to(device)
        for key, value in {
            "useJobForCleaning": True,
            "provisionerNotReadyNodeTaintKey": taint["key"],
            "removeNodeNotReadyTaint": True,
            # Last, so that nothing is found before the rest is known.
            "storageClassMap": {"disks": {"hostDir": disks, "mountDir": disks, "volumeMode": "Block"}},
        }.items():
            (node.static_config / key).write_text(json.dumps(value))
        await namespace.create(CLAIMS, claim("disk", "1Mi", "disks", volumeMode="Block"))
        volume = await namespace.until_bound("disk")
        await namespace.delete(CLAIMS, "disk")

        async def cleaning() -> Json | None:
            return next(iter(await api.list(JOBS, names.NAMESPACE)), None)

        job = await until(cleaning, what="a Job cleans the disk")
        await api.patch(JOBS, job["metadata"]["name"], {"status": {"succeeded": 1}}, names.NAMESPACE, "status")

        async def offered_anew() -> bool:
            bodies = [each for each in await api.list(VOLUMES) if each["spec"].get("storageClassName") == "disks"]
            return any(each["metadata"]["uid"] != volume["metadata"]["uid"] for each in bodies)

        await until(offered_anew, what="the clean disk is offered anew")
        await until(lambda: _untainted(namespace.sandbox, node), what="the taint is gone")
        (node.disks / "one").unlink()


async def _a_snapshot_is_made_and_restored(namespace: Namespace, node: Node) -> None:
    """And one can't be made, because its volume is nobody's."""
    api = namespace.sandbox.api
    await api.create(CLASSES, storage_class("csi", parameters={"volumeSource": "csi"}))
    await namespace.create(CLAIMS, claim("source", "16Mi", "csi"))
    selector = {names.HOSTNAME_LABEL: node.hostname}
    await namespace.create(PODS, pod("source", {"/data": "source"}, nodeSelector=selector))
    await namespace.until_running("source")
    await namespace.create(SNAPSHOTS, snapshots.snapshot("before", "source"))
    restored = storage_class("restored", "Immediate", parameters={"volumeSource": "csi"})
    await api.create(CLASSES, restored)
    await namespace.create(CLAIMS, claim("restored", "16Mi", "restored", **snapshots.from_snapshot("before")))
    await namespace.until_bound("restored")
    await namespace.delete(SNAPSHOTS, "before")
    await namespace.until_gone(SNAPSHOTS, "before")
    await api.create(SNAPSHOT_CONTENTS, snapshots.content("nobodys", namespace.name, "any", volumeHandle="nobodys"))

    async def refused() -> bool:
        return bool((await api.get(SNAPSHOT_CONTENTS, "nobodys")).get("status"))

    await until(refused, what="its status says so")
    await api.delete(SNAPSHOT_CONTENTS, "nobodys")


async def _untainted(sandbox: Sandbox, node: Node) -> bool:
    return not (await sandbox.api.get(NODES, node.name))["spec"].get("taints")


@contextmanager
def attached(file: Path) -> Iterator[str]:
    """A loop device of 16 MiB."""
    with file.open("wb") as opened:
        opened.truncate(16 << 20)
    device = subprocess.run(["losetup", "--find", "--show", file], check=True, capture_output=True, text=True)
    try:
        yield device.stdout.strip()
    finally:
        subprocess.run(["losetup", "--detach", device.stdout.strip()], check=True)


async def _a_node_goes(namespace: Namespace, node: Node) -> None:
    """For good. One volume is given up by its claim's owner, the other by its class."""
    await namespace.sandbox.api.create(CLASSES, storage_class("fleeting"))
    await namespace.create(CLAIMS, claim("lost", "16Mi"))
    await namespace.create(CLAIMS, claim("fleeting", "16Mi", "fleeting"))
    claims = {"/lost": "lost", "/fleeting": "fleeting"}
    await namespace.create(PODS, pod("lost", claims, nodeSelector={names.HOSTNAME_LABEL: node.hostname}))
    await namespace.until_running("lost")
    volume = (await namespace.until_bound("lost"))["metadata"]["name"]
    await node.kubelet.kill()
    await node.daemon.kill()
    await namespace.sandbox.api.delete(NODES, node.name)
    await namespace.sandbox.kubectl("delete", "pod", "lost", "-n", namespace.name, "--force", "--grace-period=0")
    await namespace.delete(CLAIMS, "lost")
    await namespace.until_gone(VOLUMES, volume)
    await namespace.until_gone(CLAIMS, "fleeting")


@asynccontextmanager
async def deprived(sandbox: Sandbox, right: Right) -> AsyncIterator[None]:
    """Without the right; then with it again."""
    kind, name = right.role
    roles = _ROLES if kind == "Role" else _CLUSTER_ROLES
    namespace = right.namespace if roles.namespaced else None
    body = await sandbox.api.get(roles, name, namespace)
    less = [part for rule in body["rules"] for part in _parts(rule) if Rule.read(part) != right.rule]
    await sandbox.api.patch(roles, name, {"rules": less}, namespace)
    yield
    await sandbox.api.patch(roles, name, {"rules": body["rules"]}, namespace)


def _parts(rule: Json) -> Iterator[Json]:
    """Rules of one verb and one resource each that give the same."""
    for verb in rule["verbs"]:
        for resource in rule["resources"]:
            yield {**rule, "verbs": [verb], "resources": [resource]}


async def test_a_missing_right_is_reported_and_all_goes_on_when_it_is_granted(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(NodeSpec("one"))
    sandbox.refusals_expected = True
    node = sandbox.nodes["one"]
    rights = {str(right): right for right in given(kustomize(BASE))}

    def without(right: str) -> AbstractAsyncContextManager[None]:
        return deprived(sandbox, rights[right])

    async with Namespace(sandbox, "work") as namespace:
        async with without("provisioner: create persistentvolumes in all places"):
            await namespace.create(CLAIMS, claim("data", "16Mi"))
            await namespace.create(PODS, pod("user", {"/data": "data"}))
            await namespace.until_event(
                "data",
                "ProvisioningFailed",
                'User "system:serviceaccount:elastic-local:provisioner" cannot create resource "persistentvolumes" in '
                'API group "" at the cluster scope',
            )
        async with without("daemon: get persistentvolumeclaims in all places"):
            await namespace.until_event(
                "user",
                "FailedMount",
                'User "system:serviceaccount:elastic-local:daemon" cannot get resource "persistentvolumeclaims" in API '
                'group "" in the namespace "work"',
            )
        await namespace.until_running("user")

        async with without("daemon: create csistoragecapacities in elastic-local"):
            await sandbox.api.create(CLASSES, storage_class("new"))
            await until(lambda: _says(node, 'cannot create resource "csistoragecapacities"'), what="readyz says so")
        await until(lambda: _says(node, "[+]capacity ok"), what="the daemon is ready again")

        volume = (await namespace.until_bound("data"))["metadata"]["name"]
        async with without("provisioner: delete persistentvolumes in all places"):
            await namespace.delete(PODS, "user")
            await namespace.delete(CLAIMS, "data")
            await Namespace(sandbox, "default").until_event(
                volume, "VolumeFailedDelete", 'cannot delete resource "persistentvolumes"'
            )
        await namespace.until_gone(VOLUMES, volume)


async def _says(node: Node, message: str) -> bool:
    async with aiohttp.ClientSession() as session, session.get(f"{node.url}/readyz?verbose") as response:
        return message in await response.text()
