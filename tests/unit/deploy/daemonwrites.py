"""What a daemon writes, as bodies of each kind, and who asks the admission policies whether it may."""

import copy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contract import capacity, names, snapshot, volume
from contract.capacity import Capacity
from contract.volume import NodeAssignment
from daemon.static import cleanupjob
from daemon.static import volume as static_volume
from daemon.static.cleanupprocess import CleanupTarget
from daemon.static.configuration import BLOCK, ClassConfiguration, Configuration
from daemon.static.reclaim import ReleasedVolume
from daemon.static.volume import DiscoveredVolume, provisioner_name
from kube.records import Node, read_storage_class
from tests.sandbox import snapshots
from tests.sandbox.apiserver import patches, users
from tests.sandbox.apiserver.policies import CREATE, DELETE, UPDATE, Denied, Policies, Request
from tests.sandbox.apiserver.resources import BY_KIND, BY_PATH, Resource
from tests.sandbox.apiserver.store import Store
from tests.sandbox.apiserver.users import User

Json = dict[str, Any]

LONG = "worker-with-a-name-that-no-label-can-hold.racks.of.the.example.organisation.internal"
NODES = {"one": "one", "two": "ip-10-0-0-2.internal", "three": "three", LONG: "long"}
"""Name and hostname label."""
UID = "11111111-2222-3333-4444-555555555555"
NOW = datetime(2026, 3, 4, tzinfo=UTC)
OTHERS = "labelled for node"


def fill(store: Store, objects: tuple[Json, ...]) -> None:
    for body in objects:
        resource, stored = BY_KIND[body["apiVersion"], body["kind"]], copy.deepcopy(body)
        if not resource.namespaced:
            # kustomize does not know of every kind that it has none; the API server drops it.
            stored["metadata"].pop("namespace", None)
        store.write(resource, stored)


def daemon_of(node: str, account: str = "daemon") -> User:
    return User(users.username(names.NAMESPACE, account), frozenset(), node)


class Asker:
    """Asks the policies for one user."""

    def __init__(self, policies: Policies, user: User) -> None:
        self._policies = policies
        self._user = user

    def refusal(self, kind: str, after: Json | None, before: Json | None, subresource: str = "") -> str:
        """Empty: it may."""
        resource = _RESOURCES[kind]
        operation = DELETE if after is None else CREATE if before is None else UPDATE
        metadata = (after or before or {})["metadata"]
        place, name = metadata.get("namespace", ""), metadata.get("name", "")
        asked = Request(self._user, operation, resource, subresource, place, name, after, before)
        try:
            self._policies.check(asked)
        except Denied as denied:
            # What can't be evaluated is refused too, with code 422 and nobody's words.
            return denied.message.partition(" denied request: ")[2] if denied.code == 403 else f"fault: {denied}"
        return ""

    def create(self, body: Json) -> str:
        return self.refusal(body["kind"], body, None)

    def delete(self, body: Json) -> str:
        return self.refusal(body["kind"], None, body)

    def patch(self, body: Json, patch: Json, subresource: str = "") -> str:
        merged = patches.merge(copy.deepcopy(body), patch)
        assert isinstance(merged, dict)
        return self.refusal(body["kind"], merged, body, subresource)


_RESOURCES: dict[str, Resource] = {
    each.kind: each for each in BY_PATH.values() if (each.group, each.plural) != ("events.k8s.io", "events")
}


def a_node(name: str) -> Node:
    return called(name, NODES[name])


def called(name: str, hostname: str) -> Node:
    return Node(name, UID, hostname, {names.HOSTNAME_LABEL: hostname}, deleting=False)


def dynamic(node: Node | None, source: str = volume.FLEX_VOLUME, **metadata: Any) -> Json:
    """A PersistentVolume as the provisioner makes it, for a node or for any."""
    assignment = (
        volume.node_assignment_patch(NodeAssignment(node.name, node.hostname, "pool"))
        if node
        else {"metadata": {}, "spec": {}}
    )
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": "pvc-1",
            "uid": "uid-1",
            "resourceVersion": "1",
            **assignment["metadata"],
            "annotations": {names.PROVISIONED_BY: names.PROVISIONER, **assignment["metadata"].get("annotations", {})},
            **metadata,
        },
        "spec": {
            "capacity": {"storage": "16Mi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "elastic-local",
            "claimRef": {"namespace": "victim", "name": "data", "uid": "claim-uid"},
            **volume.source_spec(source, "pvc-1", "ext4", {"size": "16777216"}),
            **assignment["spec"],
        },
        "status": {"phase": "Bound"},
    }


def static(node: Node, node_name_only: bool = False) -> Json:
    """As discovery makes it."""
    return static_volume.manifest(
        DiscoveredVolume("local-pv-1234abcd", "/mnt/disks/one", BLOCK, 1 << 30),
        Configuration(set_owner=True),
        ClassConfiguration("disks", "/mnt/disks", Path("/mnt/disks")),
        read_storage_class(
            {
                "metadata": {"name": "disks"},
                "provisioner": "kubernetes.io/no-provisioner",
                "reclaimPolicy": "Delete",
            }
        ),
        node,
        provisioner_name(node.name, node.uid, node_name_only),
    )


def room(node: Node) -> Json:
    owner = {"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}
    label = names.node_label_value(node.name)
    return capacity.manifest(Capacity(label, node.hostname, "elastic-local", "pool", 9, 9, 1), names.NAMESPACE, owner)


def job(node: Node) -> Json:
    return cleanupjob.job_manifest(
        ReleasedVolume("local-pv-1234abcd", "uid-1", "claim-1"),
        CleanupTarget(Path("/mnt/disks/one"), Path("/dev/sdb"), BLOCK),
        ClassConfiguration("disks", "/mnt/disks", Path("/mnt/disks"), block_cleaner=("/scripts/shred.sh", "2")),
        Configuration(cleaning_timeout=7200),
        node=node.name,
        hostname=node.hostname,
        namespace=names.NAMESPACE,
        image="elastic-local",
        now=NOW,
    )


def event(node: Node) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "e", "namespace": "default"},
        "involvedObject": {"kind": "Node", "name": node.name},
        "source": {"component": "elastic-local-daemon", "host": node.name},
        "count": 1,
    }


def tainted(node: Node) -> Json:
    present = [{"key": "not-ready", "effect": "NoSchedule"}, {"key": "other", "effect": "NoSchedule"}]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "resourceVersion": "1", "labels": {names.HOSTNAME_LABEL: node.hostname}},
        "spec": {"podCIDR": "10.0.0.0/24", "taints": present},
    }


def content(node: Node, **metadata: Any) -> Json:
    """Of a snapshot on the node."""
    body = snapshots.content("snapcontent-1", "default", "before", volumeHandle="pvc-1")
    label = names.node_label_value(node.name)
    body["metadata"] |= {"uid": "uid-1", "resourceVersion": "1", "labels": {names.NODE_LABEL: label, "team": "a"}}
    body["metadata"] |= {"finalizers": [snapshot.FINALIZER, "example.org/backup"], "annotations": {"any": "thing"}}
    body["metadata"] |= metadata
    return body
