"""The admission policies of deploy/: expressions that Kubernetes can read, of fields that there are, and what they say
to each write that a daemon makes, and to what the thief of its token could try."""

import copy
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kubernetes_validate.utils import schema_contents

from command.adoption import adoption_patch
from contract import capacity, names, snapshot, volume
from contract.capacity import Capacity
from contract.volume import NodeAssignment
from daemon.cluster.nodevolumes import assignment_patch
from daemon.static import cleanupjob
from daemon.static import volume as static_volume
from daemon.static.cleanupprocess import CleanupTarget
from daemon.static.configuration import BLOCK, ClassConfiguration, Configuration
from daemon.static.reclaim import ReleasedVolume
from daemon.static.volume import DiscoveredVolume, provisioner_name
from kube import taints
from kube.records import Node, read_storage_class
from tests.sandbox import snapshots
from tests.sandbox.apiserver import patches, users
from tests.sandbox.apiserver.journal import NoJournal
from tests.sandbox.apiserver.policies import CREATE, DELETE, UPDATE, Denied, Policies, Request, check_policy
from tests.sandbox.apiserver.resources import BY_KIND, BY_PATH, Resource
from tests.sandbox.apiserver.store import Store
from tests.sandbox.apiserver.users import ADMINISTRATOR, User
from tests.unit.deploy.rendered import (
    ADDING,
    BASE,
    OVERLAYS,
    WITHOUT_POLICIES,
    kustomize,
    of_kind,
    with_components,
)

Json = dict[str, Any]

LONG = "worker-with-a-name-that-no-label-can-hold.racks.of.the.example.organisation.internal"
NODES = {"one": "one", "two": "ip-10-0-0-2.internal", "three": "three", LONG: "long"}
"""Name and hostname label."""
UID = "11111111-2222-3333-4444-555555555555"
NOW = datetime(2026, 3, 4, tzinfo=UTC)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> tuple[Json, ...]:
    return with_components(tmp_path_factory.mktemp("all"))


@pytest.fixture(scope="module")
def policies(objects: tuple[Json, ...]) -> Policies:
    store = Store(NoJournal(), 100)
    for name, hostname in NODES.items():
        labels = {names.HOSTNAME_LABEL: hostname}
        store.write(BY_KIND["v1", "Node"], {"metadata": {"name": name, "uid": UID, "labels": labels}, "spec": {}})
    fill(store, objects)
    return Policies(store)


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


@pytest.fixture(params=["one", "two", LONG], ids=["plain", "other hostname", "long name"])
def node(request: pytest.FixtureRequest) -> Node:
    return a_node(request.param)


def a_node(name: str) -> Node:
    return called(name, NODES[name])


def called(name: str, hostname: str) -> Node:
    return Node(name, UID, hostname, {names.HOSTNAME_LABEL: hostname}, deleting=False)


@pytest.fixture(params=[volume.FLEX_VOLUME, volume.CSI])
def source(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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


def test_a_daemon_may_do_what_it_does_on_its_own_node(policies: Policies, node: Node, source: str) -> None:
    asker = Asker(policies, daemon_of(node.name))
    nowhere, ours = dynamic(None, source), dynamic(node, source)
    read = volume.read(nowhere)
    assert read
    assignment = NodeAssignment(node.name, node.hostname, "pool")
    assert asker.patch(nowhere, assignment_patch(read, assignment)) == ""
    assert asker.patch(nowhere, adoption_patch(read, assignment) or {}) == ""
    by_hand = dynamic(node, source, labels={}, finalizers=["kubernetes.io/pv-protection"])
    read = volume.read(by_hand)
    assert read
    assert asker.patch(by_hand, assignment_patch(read, assignment)) == ""
    for annotation in (names.MADE_ANNOTATION, names.SIZE_ANNOTATION, names.POOL_ANNOTATION):
        assert asker.patch(ours, {"metadata": {"annotations": {annotation: "true"}}}) == ""
    deleted = dynamic(node, source, deletionTimestamp="now", finalizers=["example.org/other", names.FINALIZER])
    read = volume.read(deleted)
    assert read
    assert asker.patch(deleted, volume.finalizer_removal_patch(read)) == ""

    for offered in (static(node), static(node, node_name_only=True)):
        assert asker.create(offered) == ""
        assert asker.delete(offered) == ""
        of_the_original = copy.deepcopy(offered)
        del of_the_original["metadata"]["labels"], of_the_original["metadata"]["finalizers"]
        of_the_original["metadata"] |= {"uid": UID, "resourceVersion": "1"}
        label = {names.NODE_LABEL: names.node_label_value(node.name)}
        adopting = static_volume.adoption_patch(of_the_original, label)
        assert adopting
        assert adopting["metadata"]["finalizers"] == [names.STATIC_FINALIZER]
        assert asker.patch(of_the_original, adopting) == ""
        let_go = {"metadata": {"finalizers": None}}
        assert "of its finalizers" in asker.patch(offered, let_go)
        deleted = {**offered, "metadata": {**offered["metadata"], "deletionTimestamp": "now"}}
        assert asker.patch(deleted, let_go) == ""

    assert asker.create(room(node)) == ""
    assert asker.patch(room(node), {"capacity": "1Gi", "metadata": {"annotations": {"any": "figure"}}}) == ""
    assert asker.delete(room(node)) == ""
    assert asker.create(job(node)) == ""
    assert asker.delete(job(node)) == ""
    assert asker.create(event(node)) == ""
    assert asker.patch(event(node), {"count": 2}) == ""
    assert asker.patch(tainted(node), taints.without_taint(tainted(node), "not-ready") or {}) == ""


OTHERS = "labelled for node"


@pytest.mark.parametrize(
    "patch",
    [
        {"metadata": {"labels": {names.NODE_LABEL: "three"}}},
        {"metadata": {"labels": None}},
        {"metadata": {"finalizers": None}},
        {"metadata": {"finalizers": [names.FINALIZER, "elastic-local.volumes.k8s.elastic.co/more"]}},
        {"metadata": {"annotations": {names.MADE_ANNOTATION: None}}},
        {"metadata": {"annotations": {names.POOL_ANNOTATION: "mine"}}},
        {"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "three", "uid": UID}]}},
        {"spec": {"persistentVolumeReclaimPolicy": "Delete"}},
        {"spec": {"claimRef": {"namespace": "attacker", "name": "loot", "uid": "other"}}},
        {"spec": {"claimRef": None}},
        {"spec": {"capacity": {"storage": "8Ei"}}},
        {"spec": {"flexVolume": {"options": {"size": "1"}}}},
        {"spec": {"flexVolume": None, "hostPath": {"path": "/"}}},
        {"spec": {"nodeAffinity": None}},
        {"spec": {"storageClassName": "other"}},
        {"spec": {"mountOptions": ["suid"]}},
        {"spec": {"csi": {"volumeHandle": "pvc-2"}}},
        {},
    ],
    ids=lambda patch: json.dumps(patch)[:60],
)
def test_nothing_of_a_volume_of_another_node_changes(policies: Policies, node: Node, source: str, patch: Json) -> None:
    thief = Asker(policies, daemon_of("three"))
    assert OTHERS in thief.patch(dynamic(node, source), patch)
    assert OTHERS in thief.patch(dynamic(node, source, deletionTimestamp="now"), patch)
    assert OTHERS in thief.patch(static(node), patch)
    assert OTHERS in thief.delete(dynamic(node, source))
    assert OTHERS in thief.delete(static(node))


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ({"metadata": {"labels": {names.NODE_LABEL: "three"}}}, OTHERS),
        ({"metadata": {"labels": {names.NODE_LABEL: None}}}, "has to bear the label"),
        ({"metadata": {"labels": {"app": "x"}}}, "of its labels only"),
        ({"metadata": {"finalizers": None}}, "of its finalizers only"),
        ({"metadata": {"finalizers": [names.FINALIZER, "example.org/mine"]}}, "of its finalizers only"),
        ({"metadata": {"annotations": {names.PROVISIONED_BY: "me"}}}, "of its annotations only"),
        ({"metadata": {"annotations": {"pv.kubernetes.io/bound-by-controller": "yes"}}}, "of its annotations only"),
        ({"metadata": {"annotations": {names.GRANTED_ANNOTATION: "1"}}}, "of its annotations only"),
        ({"metadata": {"ownerReferences": [{"kind": "Node", "name": "x"}]}}, "its owners"),
        ({"spec": {"persistentVolumeReclaimPolicy": "Delete"}}, "nothing of its spec"),
        ({"spec": {"claimRef": {"uid": "other"}}}, "nothing of its spec"),
        ({"spec": {"claimRef": None}}, "nothing of its spec"),
        ({"spec": {"capacity": {"storage": "8Ei"}}}, "nothing of its spec"),
        ({"spec": {"flexVolume": {"options": {"size": "1"}}}}, "nothing of its spec"),
        ({"spec": {"nodeAffinity": None}}, "nothing of its spec"),
        ({"spec": {"mountOptions": ["suid"]}}, "nothing of its spec"),
        ({"spec": {"csi": {"volumeHandle": "pvc-2"}}}, "nothing of its spec"),
        ({"spec": {"csi": {"volumeAttributes": {"size": "1"}}}}, "nothing of its spec"),
    ],
)
def test_of_its_own_volumes_a_daemon_changes_what_is_its_own(
    policies: Policies, node: Node, source: str, patch: Json, expected: str
) -> None:
    asker = Asker(policies, daemon_of(node.name))
    assert expected in asker.patch(dynamic(node, source), patch)
    status = asker.patch(dynamic(node, source), {"status": {"phase": "Available"}}, "status")
    assert "its status is for Kubernetes to write" in status
    assert "only local volumes" in asker.delete(dynamic(node, source))


def test_a_volume_without_a_node_gets_the_affinity_to_one_hostname(policies: Policies) -> None:
    asker = Asker(policies, daemon_of("one"))
    one, nowhere = a_node("one"), dynamic(None)
    right = volume.node_assignment_patch(NodeAssignment("one", "one", "pool"))
    assert asker.patch(nowhere, right) == ""
    assert OTHERS in asker.patch(nowhere, volume.node_assignment_patch(NodeAssignment("three", "three", "pool")))
    wrong_terms: tuple[list[Json], ...] = (
        [],
        [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}],
        [{"matchExpressions": [{"key": names.HOSTNAME_LABEL, "operator": "NotIn", "values": ["one"]}]}],
        [{"matchExpressions": [{"key": names.HOSTNAME_LABEL, "operator": "In", "values": ["one", "three"]}]}],
        [{"matchExpressions": []}],
        right["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"] * 2,
    )
    for terms in wrong_terms:
        wrong = {**right, "spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}}}
        assert "nothing of its spec" in asker.patch(nowhere, wrong), terms
    stolen = {**right, "spec": {**right["spec"], "persistentVolumeReclaimPolicy": "Delete"}}
    assert "nothing of its spec" in asker.patch(nowhere, stolen)
    assert asker.patch(dynamic(None, volume.CSI), right) == ""
    for source in (
        {"driver": "other", "volumeHandle": "pvc-1"},
        {"driver": names.CSI_DRIVER, "volumeHandle": "pvc-2"},
        {"driver": names.CSI_DRIVER},
    ):
        foreign = dynamic(None)
        foreign["spec"]["csi"] = source
        del foreign["spec"]["flexVolume"]
        assert "neither of one of our drivers" in asker.patch(foreign, right)
        label = {"metadata": {"labels": right["metadata"]["labels"]}}
        assert "neither of one of our drivers" in asker.patch(foreign, label)
    assert asker.patch(dynamic(one, finalizers=[]), {"metadata": {"finalizers": [names.FINALIZER]}}) == ""


def test_what_is_created_is_local_and_of_the_own_node(policies: Policies, node: Node) -> None:
    asker = Asker(policies, daemon_of(node.name))

    def changed(**spec: Any) -> Json:
        body = static(node)
        body["spec"] = {key: value for key, value in {**body["spec"], **spec}.items() if value is not None}
        return body

    flex = {"driver": names.DRIVER, "options": {"size": "1"}}
    for source in ({"hostPath": {"path": "/"}}, {"csi": {"driver": "x", "volumeHandle": "y"}}, {"flexVolume": flex}):
        assert "only local volumes" in asker.create(changed(local=None, **source))
        assert "is for no claim" in asker.create(changed(**source))
    assert "is for no claim" in asker.create(changed(claimRef={"namespace": "victim", "name": "data"}))
    elsewhere = static(a_node("three"))
    assert OTHERS in asker.create(elsewhere)
    affinity = elsewhere["spec"]["nodeAffinity"]
    assert "admit this node alone" in asker.create(changed(nodeAffinity=affinity))
    own = static(node)["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
    both = {"required": {"nodeSelectorTerms": own + affinity["required"]["nodeSelectorTerms"]}}
    assert "admit this node alone" in asker.create(changed(nodeAffinity=both))
    named = static(node)
    named["metadata"]["name"] = "pvc-1"
    assert "local-pv-" in asker.create(named)
    for key in ("elastic-local.volumes.k8s.elastic.co/ours", "example.org/theirs"):
        held = static(node)
        held["metadata"]["finalizers"] = [key]
        assert bool(asker.create(held)) == key.startswith("example.org")
    owned = static(node)
    owned["metadata"]["ownerReferences"][0]["name"] = "three"
    assert "owned by its Node only" in asker.create(owned)


@pytest.mark.parametrize("other", ["three", "one-two", f"one-{UID}-two", "one-11111111"])
def test_the_provisioner_of_a_local_volume_is_known_by_its_whole_name(policies: Policies, other: str) -> None:
    asker = Asker(policies, daemon_of("one"))
    theirs = static(called(other, "one"))
    theirs["metadata"]["labels"] = {names.NODE_LABEL: "one"}
    assert "only local volumes that say they are provisioned by local-volume-provisioner-one" in asker.create(theirs)
    assert "only local volumes" in asker.delete(theirs)
    assert "neither of one of our drivers" in asker.patch(theirs, {"metadata": {"labels": {names.NODE_LABEL: "one"}}})


def test_the_hostname_of_another_node_is_not_offered(policies: Policies) -> None:
    """By a daemon that says its Node is called so: all Nodes are asked. The kubelet of a node may change the label of
    its own Node, so that one has it proves nothing as long as another has it too."""
    thief = Asker(policies, daemon_of("one"))
    for hostname, owner in (("ip-10-0-0-2.internal", "two"), ("three", "three")):
        for body in (static(called("one", hostname)), room(called("one", hostname))):
            assert f"which is the label of node {owner}" in thief.create(body)
            del body["metadata"]["labels"][names.OTHER_HOSTNAME_LABEL]
            assert thief.create(body) != ""
    assert thief.create(room(called("one", "nobodys"))) == ""


def test_room_is_published_for_the_own_node(policies: Policies, node: Node) -> None:
    thief = Asker(policies, daemon_of("three"))
    theirs = room(node)
    mine = {"metadata": {"labels": {names.NODE_LABEL: "three"}}}
    for said in (thief.create(theirs), thief.delete(theirs), thief.patch(theirs, {"capacity": "8Ei"})):
        assert OTHERS in said
    assert OTHERS in thief.patch(theirs, mine)
    assert OTHERS in thief.patch(room(a_node("three")), {"metadata": {"labels": theirs["metadata"]["labels"]}})
    unlabelled = room(a_node("three"))
    del unlabelled["metadata"]["labels"]
    assert OTHERS in thief.create(unlabelled)
    for name in (theirs["metadata"]["name"], "elastic-local.three.x", f"elastic-local.three.four.{'0' * 32}"):
        squatter = room(a_node("three"))
        squatter["metadata"]["name"] = name
        assert "its name has to be elastic-local.<this node>" in thief.create(squatter)
    wrong: tuple[Json, ...] = (
        {"matchLabels": {}},
        {"matchLabels": {names.HOSTNAME_LABEL: "three", "zone": "a"}},
        {"matchExpressions": [{"key": names.HOSTNAME_LABEL, "operator": "Exists"}]},
        {},
    )
    for topology in wrong:
        assert "its topology has to be" in thief.create({**room(a_node("three")), "nodeTopology": topology})


def _with_pod(node: Node, **fields: Any) -> Json:
    body = job(node)
    body["spec"]["template"]["spec"] |= fields
    return body


def test_a_job_runs_on_the_own_node_as_nobody(policies: Policies, node: Node) -> None:
    asker, thief = Asker(policies, daemon_of(node.name)), Asker(policies, daemon_of("three"))
    assert "admit this node alone" in thief.create(job(node))
    assert "admit this node alone" in thief.delete(job(node))
    (container,) = job(node)["spec"]["template"]["spec"]["containers"]
    for expected, fields in (
        ("admit this node alone", {"affinity": None}),
        ("admit this node alone", {"affinity": {"nodeAffinity": {}}}),
        ("its only image", {"containers": [{**container, "image": "evil"}]}),
        ("its only image", {"containers": [container, container]}),
        ("no account", {"serviceAccountName": "provisioner"}),
        ("no account", {"serviceAccount": "provisioner"}),
        ("no account", {"nodeName": "three"}),
        ("no account", {"initContainers": [container]}),
        ("no account", {"imagePullSecrets": [{"name": "registry"}]}),
        ("no account", {"volumes": [{"name": "x", "secret": {"secretName": "x"}}]}),
        ("no account", {"volumes": [{"name": "x", "projected": {"sources": []}}]}),
        ("no account", {"containers": [{**container, "envFrom": [{"secretRef": {"name": "x"}}]}]}),
        ("no account", {"containers": [{**container, "env": [{"name": "X", "valueFrom": {"secretKeyRef": {}}}]}]}),
    ):
        assert expected in asker.create(_with_pod(node, **{key: value for key, value in fields.items() if value})) or (
            fields == {"affinity": None}
        )
    by_label = job(node)
    del by_label["spec"]["template"]["spec"]["affinity"]
    assert "admit this node alone" in asker.create(by_label)
    assert asker.delete(by_label) == "", "of a version before the affinity"
    claimed = job(node)
    claimed["spec"]["manualSelector"] = True
    assert "no account" in asker.create(claimed)
    named = job(node)
    named["metadata"]["name"] = "anything"
    assert "cleanup-" in asker.create(named)
    assert "changes none" in asker.patch(job(node), {"spec": {"suspend": True}})


def test_a_job_may_have_the_image_that_the_administrator_named(policies: Policies, objects: tuple[Json, ...]) -> None:
    """That of the DaemonSet in the Job's namespace, whatever that is called."""
    body = job(a_node("one"))
    assert Asker(policies, daemon_of("one")).create(body) == ""
    body["metadata"]["namespace"] = "elsewhere"
    assert Asker(policies, daemon_of("one")).create(body) == "", "no DaemonSet of ours is there, and RBAC says no"


def test_a_node_loses_taints_and_nothing_else(policies: Policies, node: Node) -> None:
    asker, thief = Asker(policies, daemon_of(node.name)), Asker(policies, daemon_of("three"))
    assert f"may not update Node {node.name}" in thief.patch(tainted(node), {"spec": {"taints": None}})
    assert asker.patch(tainted(node), {"spec": {"taints": None}}) == ""
    for patch in (
        {"spec": {"taints": [{"key": "new", "effect": "NoExecute"}]}},
        {"spec": {"unschedulable": True}},
        {"spec": {"podCIDR": None}},
        {"metadata": {"labels": {names.HOSTNAME_LABEL: "three"}}},
        {"metadata": {"annotations": {"any": "thing"}}},
        {"metadata": {"finalizers": ["example.org/mine"]}},
    ):
        assert "may take taints off its Node, and nothing else" in asker.patch(tainted(node), patch)


def content(node: Node, **metadata: Any) -> Json:
    """Of a snapshot on the node."""
    body = snapshots.content("snapcontent-1", "default", "before", volumeHandle="pvc-1")
    label = names.node_label_value(node.name)
    body["metadata"] |= {"uid": "uid-1", "resourceVersion": "1", "labels": {names.NODE_LABEL: label, "team": "a"}}
    body["metadata"] |= {"finalizers": [snapshot.FINALIZER, "example.org/backup"], "annotations": {"any": "thing"}}
    body["metadata"] |= metadata
    return body


def test_a_daemon_makes_reports_and_removes_the_snapshots_of_its_node(policies: Policies, node: Node) -> None:
    asker = Asker(policies, daemon_of(node.name))
    ours, gone = content(node), content(node, deletionTimestamp="2026-01-01T00:00:00Z")
    read, deleted = snapshot.read(ours), snapshot.read(gone)
    assert read
    assert deleted
    assert asker.patch(ours, snapshot.being_created_patch(read, "pool", "ext4")) == ""
    handle = snapshot.Handle(node.name, "snap_uid-1")
    assert asker.patch(ours, snapshot.ready_status(read, handle, 1 << 30, 1), "status") == ""
    assert asker.patch(ours, snapshot.error_status(read, "no space", "2026-01-01T00:00:00Z"), "status") == ""
    making = content(node, annotations={snapshot.BEING_CREATED: "yes", "any": "thing"})
    assert asker.patch(making, snapshot.created_patch(read)) == ""
    assert asker.patch(gone, snapshot.finalizer_removal_patch(deleted)) == ""


def test_of_a_snapshot_of_another_node_nothing_changes(policies: Policies, node: Node) -> None:
    thief, theirs = Asker(policies, daemon_of("three")), content(node)
    read = snapshot.read(theirs)
    assert read
    label = names.node_label_value(node.name)
    refused = f'may not update VolumeSnapshotContent snapcontent-1: it is labelled for node "{label}"'
    handle = snapshot.Handle("three", "snap_uid-1")
    assert refused in thief.patch(theirs, snapshot.ready_status(read, handle, 1 << 30, 1), "status")
    assert refused in thief.patch(theirs, snapshot.being_created_patch(read, "pool", "ext4"))
    assert "labelled for node" in thief.patch(theirs, snapshot.assignment_patch(read, "three", "host-three"))
    nobodys = content(node, labels={})
    assert "labelled for node" in thief.patch(nobodys, snapshot.assignment_patch(read, "three", "host-three"))


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ({"spec": {"deletionPolicy": "Retain"}}, "spec, labels and owners"),
        ({"spec": {"volumeSnapshotRef": {"namespace": "thief"}}}, "spec, labels and owners"),
        ({"metadata": {"labels": {"team": None}}}, "spec, labels and owners"),
        ({"metadata": {"ownerReferences": [{"kind": "Node", "name": "one", "uid": UID}]}}, "spec, labels and owners"),
        ({"metadata": {"finalizers": ["example.org/backup"]}}, "only once it is deleted"),
        ({"metadata": {"finalizers": None}}, "only once it is deleted"),
        ({"metadata": {"annotations": {"any": "other"}}}, "of the annotations only these are its own"),
        (
            {"metadata": {"annotations": {snapshot.HOSTNAME_ANNOTATION: "x"}}},
            "of the annotations only these are its own",
        ),
        ({"metadata": {"annotations": {snapshot.BEING_DELETED: "yes"}}}, "of the annotations only these are its own"),
        ({"status": {"snapshotHandle": "three/snap_1"}}, "its snapshotHandle has to name this node"),
    ],
)
def test_of_its_own_snapshots_a_daemon_changes_what_is_its_own(policies: Policies, patch: Json, said: str) -> None:
    asker, ours = Asker(policies, daemon_of("one")), content(a_node("one"))
    assert said in asker.patch(ours, patch)
    assert said in asker.patch(ours, patch, "status")


def test_other_finalizers_of_a_snapshot_stay(policies: Policies) -> None:
    asker, gone = Asker(policies, daemon_of("one")), content(a_node("one"), deletionTimestamp="2026-01-01T00:00:00Z")
    assert "may take off" in asker.patch(gone, {"metadata": {"finalizers": None}})
    assert "others make and delete them" in asker.delete(gone)
    assert "others make and delete them" in asker.create(content(a_node("one")))


def test_events_are_of_the_own_node(policies: Policies, node: Node) -> None:
    thief = Asker(policies, daemon_of("three"))
    others = {**event(node), "source": {"component": "kubelet", "host": node.name}}
    mine = {**event(node), "source": {"component": "elastic-local-daemon", "host": "three"}}
    assert thief.create(mine) == ""
    assert "events of its own" in thief.create(event(node))
    assert "events of its own" in thief.create({**mine, "source": {"component": "kubelet", "host": "three"}})
    assert "events of its own" in thief.create({key: value for key, value in mine.items() if key != "source"})
    assert "events of its own" in thief.patch(others, {"source": mine["source"]})
    assert "events of its own" in thief.patch(event(node), {"message": "all is lost", "source": mine["source"]})
    assert "events of its own" in thief.delete(others)


def test_a_token_without_a_node_writes_nothing(policies: Policies) -> None:
    """One of `kubectl create token`, of a Secret, or of a Kubernetes before 1.30."""
    asker, one = Asker(policies, daemon_of("")), a_node("one")
    for said in (
        asker.patch(dynamic(None), volume.node_assignment_patch(NodeAssignment("one", "one", "pool"))),
        asker.create(static(one)),
        asker.create(room(one)),
        asker.create(job(one)),
        asker.create(event(one)),
        asker.patch(tainted(one), {"spec": {"taints": []}}),
        asker.patch(content(one), {"status": {"readyToUse": True}}, "status"),
    ):
        assert "names no node: Kubernetes 1.30 or later" in said


@pytest.mark.parametrize(
    "user", [ADMINISTRATOR, daemon_of("three", "provisioner"), User("system:serviceaccount:other:daemon", frozenset())]
)
def test_nobody_else_is_held(policies: Policies, user: User) -> None:
    asker, one = Asker(policies, user), a_node("one")
    assert asker.patch(dynamic(one), {"spec": {"persistentVolumeReclaimPolicy": "Delete"}}) == ""
    assert asker.delete(dynamic(one)) == ""
    assert asker.create(static(one)) == ""
    assert asker.create(_with_pod(one, serviceAccountName="any")) == ""
    assert asker.create({**event(one), "source": {}}) == ""
    assert asker.patch(tainted(one), {"spec": {"unschedulable": True}}) == ""
    assert asker.patch(content(one), {"metadata": {"labels": {names.NODE_LABEL: "three"}}}) == ""
    assert asker.delete(content(one)) == ""


def test_whoever_has_the_rights_of_daemons_is_held_in_any_namespace(tmp_path: Path) -> None:
    """An overlay may give our objects another namespace."""
    objects = with_components(tmp_path, namespace="storage")
    store = Store(NoJournal(), 100)
    fill(store, objects)
    renamed = Asker(Policies(store), User(users.username("storage", "daemon"), frozenset(), "three"))
    one = a_node("one")
    body = job(one)
    body["metadata"]["namespace"] = "storage"
    for said in (renamed.patch(dynamic(one), {}), renamed.create(room(one)), renamed.create(body)):
        assert "node three" in said


def test_every_way_to_install_has_them_but_the_one_without(tmp_path: Path) -> None:
    for path in (BASE, *OVERLAYS):
        policies = {each["metadata"]["name"] for each in of_kind(kustomize(path), "ValidatingAdmissionPolicy")}
        assert len(policies) == 4
    without = with_components(tmp_path, [*ADDING, WITHOUT_POLICIES])
    assert not [each for each in without if each["apiVersion"].startswith("admissionregistration")]


def test_all_are_bound_and_deny(objects: tuple[Json, ...]) -> None:
    bindings = {
        each["spec"]["policyName"]: each["spec"] for each in of_kind(objects, "ValidatingAdmissionPolicyBinding")
    }
    policies = of_kind(objects, "ValidatingAdmissionPolicy")
    assert {each["metadata"]["name"] for each in policies} == bindings.keys()
    for policy in policies:
        binding = bindings[policy["metadata"]["name"]]
        assert policy["spec"]["failurePolicy"] == "Fail"
        assert binding["validationActions"] == ["Deny"]
        # Who asks is found by the parameter: without it, everybody's writes would be refused.
        assert binding["paramRef"]["parameterNotFoundAction"] == ("Allow" if "name" in binding["paramRef"] else "Deny")
        for validation in policy["spec"]["validations"]:
            assert validation["message"]
            assert "\n" not in validation["message"]
            assert validation["reason"] == "Forbidden"


_CHAIN = re.compile(r"\b(object|oldObject|params|variables)((?:\.\??\w+\b(?!\()|\[\??[^\[\]]+\])+)")
_STEP = re.compile(r"\.\??(\w+)|(\[)[^\[\]]*\]")
_END = re.compile(r"(\.orValue\(.*\))?")
_CHOICE = re.compile(r".+ \? .+ : (object|oldObject)")
_KINDS = {each.plural: each for each in BY_KIND.values()}


def _expressions(policy: Json) -> Iterator[str]:
    for field in ("matchConditions", "variables", "validations"):
        for each in policy["spec"].get(field) or ():
            yield from (each[key] for key in ("expression", "messageExpression") if key in each)


def _chains(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Where each begins, and the fields and elements (`[`) that it goes through."""
    for chain in _CHAIN.finditer(text):
        yield chain[1], tuple(name or "[" for name, _ in _STEP.findall(chain[2]))


def _aliases(policy: Json) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The variables that stand for a part of an object, by name."""
    aliases: dict[str, tuple[str, tuple[str, ...]]] = {}
    for each in policy["spec"].get("variables") or ():
        text = each["expression"].strip()
        whole = _CHAIN.match(text)
        if _CHOICE.fullmatch(text):
            aliases[each["name"]] = "object", ()
        elif whole and _END.fullmatch(text[whole.end() :]):
            aliases[each["name"]] = next(_chains(text))
    return aliases


def _lacking(schema: Json, steps: tuple[str, ...], version: str) -> str:
    """The first step that the schema does not know."""
    for step in steps:
        while "$ref" in schema:
            definitions = schema_contents(f"kubernetes-json-schema/v{version}.0-local/_definitions.json", version)
            schema = definitions["$defs"][schema["$ref"].rpartition("/")[2]]
        fields = schema.get("properties", {})
        if step == "[" and fields:
            return ""  # any of the fields
        inner = schema.get("items") or schema.get("additionalProperties")
        schema = (inner if step == "[" else fields.get(step)) or {}
        if not schema:
            return step
    return ""


_CONTENT_SCHEMA: Json = {
    "properties": {
        "metadata": {"$ref": "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"},
        "spec": {"properties": {}},
        "status": {"properties": {"snapshotHandle": {"type": "string"}}},
    }
}
"""What is named of a VolumeSnapshotContent, which is no kind of Kubernetes' own."""


@pytest.mark.parametrize("version", ["1.30", "1.32", "1.36"])
def test_the_fields_that_are_named_exist(objects: tuple[Json, ...], version: str) -> None:
    """All but those of the variables of macros."""
    seen = 0
    for policy in of_kind(objects, "ValidatingAdmissionPolicy"):
        aliases = _aliases(policy)
        kinds = [_KINDS[rule["resources"][0]] for rule in policy["spec"]["matchConstraints"]["resourceRules"]]
        kind = policy["spec"]["paramKind"]
        parameter = BY_KIND[kind["apiVersion"], kind["kind"]]
        for text in _expressions(policy):
            for root, steps in _chains(text):
                while root == "variables" and steps[0] in aliases:
                    root, before = aliases[steps[0]]
                    steps = (*before, *steps[1:])
                for resource in [] if root == "variables" else [parameter] if root == "params" else kinds:
                    group = resource.group.partition(".")[0]
                    file = "-".join(filter(None, (resource.kind.lower(), group, resource.version)))
                    if resource.custom:
                        schema: Json = _CONTENT_SCHEMA
                    else:
                        schema = schema_contents(f"kubernetes-json-schema/v{version}.0-local/{file}.json", version)
                    assert not _lacking(schema, steps, version), (
                        f"{policy['metadata']['name']}: {root} {steps} in {text}"
                    )
                    seen += 1
    assert seen > 50


def test_all_expressions_are_read(objects: tuple[Json, ...]) -> None:
    """Kubernetes reads more strictly than the library here: the values of a map that is written down have to be of one
    type (cel.HomogeneousAggregateLiterals), so there is none."""
    for policy in of_kind(objects, "ValidatingAdmissionPolicy"):
        assert not list(check_policy(policy))
        for text in _expressions(policy):
            assert not re.search(r"""\{\s*['"].*:""", text)
