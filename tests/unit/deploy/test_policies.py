"""What the admission policies of deploy/ say to each write that a daemon makes, and to what the thief of its token
could try. Of PersistentVolumes: test_volume_policies.py."""

import copy
from pathlib import Path
from typing import Any

import pytest

from command.adoption import adoption_patch
from contract import names, snapshot, volume
from contract.volume import NodeAssignment
from daemon.cluster.nodevolumes import assignment_patch
from daemon.static import volume as static_volume
from kube import taints
from kube.records import Node
from tests.sandbox.apiserver import users
from tests.sandbox.apiserver.journal import NoJournal
from tests.sandbox.apiserver.policies import Policies
from tests.sandbox.apiserver.store import Store
from tests.sandbox.apiserver.users import ADMINISTRATOR, User
from tests.unit.deploy.daemonwrites import (
    OTHERS,
    UID,
    Asker,
    Json,
    a_node,
    content,
    daemon_of,
    dynamic,
    event,
    fill,
    job,
    room,
    static,
    tainted,
)
from tests.unit.deploy.rendered import with_components


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
        current = {**offered, "metadata": {**offered["metadata"], "uid": UID, "resourceVersion": "1"}}
        assert asker.patch(current, static_volume.disk_patch(current, '{"serial":"a"}')) == ""
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
