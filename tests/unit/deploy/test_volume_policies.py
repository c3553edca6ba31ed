"""What the admission policies let a daemon write of PersistentVolumes: those of its own node, and of these
what is its own."""

import json
from typing import Any

import pytest

from contract import names, volume
from contract.volume import NodeAssignment
from kube.records import Node
from tests.sandbox.apiserver.policies import Policies
from tests.unit.deploy.daemonwrites import OTHERS, UID, Asker, Json, a_node, called, daemon_of, dynamic, room, static


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
