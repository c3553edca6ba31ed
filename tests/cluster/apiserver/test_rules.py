"""Defaults, admission, validation and immutability of the objects that local volumes are about."""

import pytest

from tests.cluster.apiserver.samples import CLAIM_SPEC, POD_SPEC, affinity, claim, config, maps, pod, pods, volume
from tests.sandbox.apiserver.client import Answer, Client
from tests.sandbox.apiserver.patches import MERGE_PATCH
from tests.sandbox.apiserver.resources import Json

VOLUMES = "/api/v1/persistentvolumes"
CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
CSI_NODES = "/apis/storage.k8s.io/v1/csinodes"


def claims(namespace: str, name: str = "") -> str:
    return f"/api/v1/namespaces/{namespace}/persistentvolumeclaims" + (f"/{name}" if name else "")


def causes(answer: Answer) -> list[tuple[str, str]]:
    assert (answer.code, answer.body["reason"]) == (422, "Invalid"), answer.body
    return [(each["field"], each["reason"]) for each in answer.body["details"]["causes"]]


def try_patch(api: Client, path: str, patch: Json) -> Answer:
    return api.request("PATCH", path, patch, content_type=MERGE_PATCH)


def storage_class(name: str, **fields: object) -> Json:
    return {"metadata": {"name": name}, "provisioner": "example.com/p"} | fields


def test_volumes_and_claims_are_protected_and_filled_in(api: Client, namespace: str, unique: str) -> None:
    made = api.post(VOLUMES, volume(unique))
    assert made["metadata"]["finalizers"] == ["kubernetes.io/pv-protection"]
    assert made["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
    assert (made["spec"]["volumeMode"], made["status"]["phase"]) == ("Filesystem", "Pending")
    asked = api.post(claims(namespace), claim("c", storageClassName="x"))
    assert asked["metadata"]["finalizers"] == ["kubernetes.io/pvc-protection"]
    assert (asked["spec"]["volumeMode"], asked["status"]) == ("Filesystem", {"phase": "Pending"})
    assert api.post(CLASSES, storage_class(unique))["volumeBindingMode"] == "Immediate"


def test_sizes_are_shown_in_canonical_form(api: Client, namespace: str) -> None:
    made = api.post(claims(namespace), claim("c", resources={"requests": {"storage": "2048Mi"}}))
    assert made["spec"]["resources"]["requests"]["storage"] == "2Gi"
    again = try_patch(api, claims(namespace, "c"), {"spec": {"resources": {"requests": {"storage": "2048Mi"}}}})
    assert (again.code, again.body) == (200, made)


def test_a_claim_without_a_class_gets_the_default_one(api: Client, namespace: str, unique: str) -> None:
    assert "storageClassName" not in api.post(claims(namespace), claim("early"))["spec"]
    marked = storage_class(unique)
    marked["metadata"]["annotations"] = {"storageclass.kubernetes.io/is-default-class": "true"}
    api.post(CLASSES, marked)
    assert api.post(claims(namespace), claim("late"))["spec"]["storageClassName"] == unique
    assert api.post(claims(namespace), claim("none", storageClassName=""))["spec"]["storageClassName"] == ""
    api.delete(f"{CLASSES}/{unique}")


@pytest.mark.parametrize(
    ("spec", "cause"),
    [
        ({"capacity": None}, ("spec.capacity", "FieldValueRequired")),
        ({"capacity": {"storage": "1X"}}, ("spec.capacity[storage]", "FieldValueInvalid")),
        ({"capacity": {"storage": "0"}}, ("spec.capacity[storage]", "FieldValueInvalid")),
        ({"accessModes": ["ReadTwice"]}, ("spec.accessModes", "FieldValueNotSupported")),
        ({"accessModes": []}, ("spec.accessModes", "FieldValueRequired")),
        ({"flexVolume": None}, ("spec", "FieldValueRequired")),
        ({"flexVolume": {}}, ("spec.flexVolume.driver", "FieldValueRequired")),
        ({"flexVolume": None, "csi": {"driver": "a.b"}}, ("spec.csi.volumeHandle", "FieldValueRequired")),
        ({"flexVolume": None, "csi": {"volumeHandle": "v"}}, ("spec.csi.driver", "FieldValueRequired")),
        ({"flexVolume": None, "csi": {"driver": "a/b", "volumeHandle": "v"}}, ("spec.csi.driver", "FieldValueInvalid")),
        ({"hostPath": {"path": "/x"}}, ("spec.hostPath", "FieldValueForbidden")),
        ({"flexVolume": None, "local": {"path": "/x"}}, ("spec.nodeAffinity", "FieldValueRequired")),
        ({"nodeAffinity": {}}, ("spec.nodeAffinity.required", "FieldValueRequired")),
        ({"volumeMode": "Tape"}, ("spec.volumeMode", "FieldValueNotSupported")),
        ({"persistentVolumeReclaimPolicy": "Keep"}, ("spec.persistentVolumeReclaimPolicy", "FieldValueNotSupported")),
        ({"storageClassName": "A_B"}, ("spec.storageClassName", "FieldValueInvalid")),
    ],
)
def test_a_volume_must_make_sense(api: Client, unique: str, spec: Json, cause: tuple[str, str]) -> None:
    assert causes(api.request("POST", VOLUMES, volume(unique, **spec))) == [cause]


def test_the_source_of_a_volume_is_immutable(api: Client, unique: str) -> None:
    api.post(VOLUMES, volume(unique))
    changed = try_patch(api, f"{VOLUMES}/{unique}", {"spec": {"flexVolume": {"options": {"size": "2"}}}})
    assert causes(changed) == [("spec.persistentvolumesource", "FieldValueForbidden")]
    grown = try_patch(api, f"{VOLUMES}/{unique}", {"spec": {"capacity": {"storage": "2Gi"}}})
    assert grown.code == 200
    of_csi = {"flexVolume": None, "csi": {"driver": "a.b", "volumeHandle": "v"}, "mountOptions": ["noatime"]}
    api.post(VOLUMES, volume(f"{unique}-csi", **of_csi))
    moved = try_patch(api, f"{VOLUMES}/{unique}-csi", {"spec": {"csi": {"volumeHandle": "other"}}})
    assert causes(moved) == [("spec.persistentvolumesource", "FieldValueForbidden")]


def test_the_node_affinity_of_a_volume_is_set_once(api: Client, unique: str) -> None:
    path = f"{VOLUMES}/{unique}"
    api.post(VOLUMES, volume(unique))
    assert try_patch(api, path, {"spec": {"nodeAffinity": affinity("n1")}}).code == 200
    assert try_patch(api, path, {"spec": {"nodeAffinity": affinity("n1")}}).code == 200
    for other in (affinity("n2"), None):
        moved = try_patch(api, path, {"spec": {"nodeAffinity": other}})
        assert causes(moved) == [("nodeAffinity", "FieldValueInvalid")]


def test_a_claim_takes_one_volume(api: Client, namespace: str) -> None:
    api.post(claims(namespace), claim("c"))
    assert try_patch(api, claims(namespace, "c"), {"spec": {"volumeName": "one"}}).code == 200
    other = try_patch(api, claims(namespace, "c"), {"spec": {"volumeName": "two"}})
    assert causes(other) == [("spec", "FieldValueForbidden")]
    modes = try_patch(api, claims(namespace, "c"), {"spec": {"accessModes": ["ReadWriteMany"]}})
    assert causes(modes) == [("spec", "FieldValueForbidden")]


def test_a_claim_grows_when_its_class_allows_it(api: Client, namespace: str, unique: str) -> None:
    api.post(CLASSES, storage_class(unique))
    api.post(claims(namespace), claim("c", storageClassName=unique))
    path, more = claims(namespace, "c"), {"spec": {"resources": {"requests": {"storage": "2Gi"}}}}
    unbound = try_patch(api, path, more)
    assert unbound.code == 403
    assert "Only bound persistent volume claims can be expanded" in unbound.body["message"]
    api.patch(f"{path}/status", {"status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}})
    refused = try_patch(api, path, more)
    assert (refused.code, refused.body["reason"]) == (403, "Forbidden")
    assert "the storageclass that provisions the pvc must support resize" in refused.body["message"]
    api.patch(f"{CLASSES}/{unique}", {"allowVolumeExpansion": True})
    assert api.patch(path, more)["spec"]["resources"]["requests"]["storage"] == "2Gi"
    less = try_patch(api, path, {"spec": {"resources": {"requests": {"storage": "1Gi"}}}})
    assert causes(less) == [("spec.resources.requests.storage", "FieldValueForbidden")]
    assert "field can not be less than status.capacity" in less.body["message"]
    # Recovery from a growth that failed: any request above what the claim has.
    lowered = {"spec": {"resources": {"requests": {"storage": "1025Mi"}}}}
    assert api.patch(path, lowered)["spec"]["resources"]["requests"]["storage"] == "1025Mi"
    api.patch(f"{CLASSES}/{unique}", {"allowVolumeExpansion": False})
    assert api.patch(path, {"metadata": {"labels": {"a": "b"}}})["metadata"]["labels"] == {"a": "b"}
    assert try_patch(api, path, more).code == 403


def test_both_fields_of_a_claims_source_say_the_same(api: Client, namespace: str) -> None:
    source = {"kind": "PersistentVolumeClaim", "name": "s"}
    other = {"apiGroup": "example.com", "kind": "Tape", "name": "t"}
    for name, field, given in (
        ("a", "dataSource", source),
        ("b", "dataSourceRef", source),
        ("c", "dataSourceRef", other),
    ):
        spec = api.post(claims(namespace), claim(name, **{field: given}))["spec"]
        assert (spec["dataSource"], spec["dataSourceRef"]) == (given, given)
    far = source | {"namespace": "elsewhere"}
    for name, field, given in (("d", "dataSource", other), ("e", "dataSourceRef", far)):
        ignored = api.post(claims(namespace), claim(name, **{field: given}))["spec"]
        assert not {"dataSource", "dataSourceRef"} & ignored.keys()


def test_how_far_a_claim_has_grown_is_one_of_five_words_and_of_storage(api: Client, namespace: str) -> None:
    api.post(claims(namespace), claim("c"))
    path = f"{claims(namespace, 'c')}/status"
    steps = {"status": {"allocatedResourceStatuses": {"storage": "NodeResizePending"}}}
    assert api.patch(path, steps)["status"]["allocatedResourceStatuses"] == {"storage": "NodeResizePending"}
    wrong = try_patch(api, path, {"status": {"allocatedResourceStatuses": {"storage": "Soon"}}})
    assert causes(wrong) == [("status.allocatedResourceStatuses", "FieldValueNotSupported")]
    other = try_patch(api, path, {"status": {"allocatedResources": {"cpu": "1"}}})
    assert causes(other) == [("status.allocatedResources", "FieldValueNotSupported")]


def test_a_bound_claim_may_name_another_attributes_class_and_none_before_it_had_one(
    api: Client, namespace: str
) -> None:
    path = claims(namespace, "c")
    api.post(claims(namespace), claim("c", volumeAttributesClassName="a"))
    other, none = ({"spec": {"volumeAttributesClassName": name}} for name in ("b", None))
    unbound = try_patch(api, path, other)
    assert causes(unbound) == [("spec", "FieldValueForbidden")]
    api.patch(f"{path}/status", {"status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}})
    assert api.patch(path, other)["spec"]["volumeAttributesClassName"] == "b"
    assert "volumeAttributesClassName" not in api.patch(path, none)["spec"]
    api.patch(path, other)
    api.patch(f"{path}/status", {"status": {"currentVolumeAttributesClassName": "b"}})
    for emptied, word in ((none, "nil"), ({"spec": {"volumeAttributesClassName": ""}}, "empty string")):
        refused = try_patch(api, path, emptied)
        assert causes(refused) == [("spec.volumeAttributesClassName", "FieldValueForbidden")]
        assert f"update to {word} is forbidden when status.currentVolumeAttributesClassName" in refused.body["message"]


def test_only_a_csi_volume_has_an_attributes_class_and_keeps_one(api: Client, unique: str) -> None:
    named = {"spec": {"volumeAttributesClassName": "a"}}
    api.post(VOLUMES, volume(unique))
    refused = try_patch(api, f"{VOLUMES}/{unique}", named)
    assert causes(refused) == [("spec.csi", "FieldValueRequired")]
    body = volume(f"{unique}-csi", csi={"driver": "a.b", "volumeHandle": "h"})
    del body["spec"]["flexVolume"]
    path = f"{VOLUMES}/{api.post(VOLUMES, body)['metadata']['name']}"
    assert api.patch(path, named)["spec"]["volumeAttributesClassName"] == "a"
    refused = try_patch(api, path, {"spec": {"volumeAttributesClassName": None}})
    assert causes(refused) == [("spec.volumeAttributesClassName", "FieldValueForbidden")]


@pytest.mark.parametrize(
    ("change", "field"), [({"parameters": {"a": "c"}}, "parameters"), ({"driverName": "c.d"}, "driverName")]
)
def test_an_attributes_class_keeps_its_meaning(api: Client, unique: str, change: Json, field: str) -> None:
    path = "/apis/storage.k8s.io/v1/volumeattributesclasses"
    api.post(path, {"metadata": {"name": unique}, "driverName": "a.b", "parameters": {"a": "b"}})
    assert causes(try_patch(api, f"{path}/{unique}", change)) == [(field, "FieldValueForbidden")]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"parameters": {"a": "b"}}, "parameters"),
        ({"provisioner": "example.com/q"}, "provisioner"),
        ({"reclaimPolicy": "Retain"}, "reclaimPolicy"),
        ({"volumeBindingMode": "WaitForFirstConsumer"}, "volumeBindingMode"),
    ],
)
def test_a_class_keeps_its_meaning(api: Client, unique: str, change: Json, field: str) -> None:
    api.post(CLASSES, storage_class(unique))
    assert [each for each, _ in causes(try_patch(api, f"{CLASSES}/{unique}", change))] == [field]


def test_a_capacity_keeps_its_place(api: Client, namespace: str) -> None:
    path = f"/apis/storage.k8s.io/v1/namespaces/{namespace}/csistoragecapacities"
    topology = {"matchLabels": {"kubernetes.io/hostname": "h1"}}
    made = api.post(path, {"metadata": {"name": "x"}, "storageClassName": "c", "nodeTopology": topology})
    assert api.put(f"{path}/x", made | {"capacity": "5Gi"})["capacity"] == "5Gi"
    moved = try_patch(api, f"{path}/x", {"nodeTopology": {"matchLabels": {"kubernetes.io/hostname": "h2"}}})
    assert causes(moved) == [("nodeTopology", "FieldValueInvalid")]


_DEVICE = "spec.containers[0].volumeDevices[0]."
_CLAIMED = {"name": "v", "persistentVolumeClaim": {"claimName": "c"}}


def _with_device(**more: str) -> Json:
    return {"name": "a", "image": "b", "volumeDevices": [{"name": "v", "devicePath": "/dev/v"} | more]}


def test_what_a_node_says_of_csi_must_make_sense(api: Client, unique: str) -> None:
    driver: Json = {"name": "a.b", "nodeID": "n", "topologyKeys": ["kubernetes.io/hostname"]}
    for drivers, field in (
        ([driver | {"nodeID": ""}], "spec.drivers[0].nodeID"),
        ([driver, driver], "spec.drivers[1].name"),
        ([driver | {"allocatable": {"count": -1}}], "spec.drivers[0].allocatable.count"),
    ):
        refused = api.request("POST", CSI_NODES, {"metadata": {"name": unique}, "spec": {"drivers": drivers}})
        assert [each for each, _ in causes(refused)] == [field]
    api.post(CSI_NODES, {"metadata": {"name": unique}, "spec": {"drivers": [driver]}})


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"containers": []}, "spec.containers"),
        ({"containers": [{"name": "a"}]}, "spec.containers[0].image"),
        ({"volumes": [{"name": "v"}]}, "spec.volumes[0]"),
        ({"restartPolicy": "Sometimes"}, "spec.restartPolicy"),
        (
            {"containers": [{"name": "a", "image": "b", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]},
            "spec.containers[0].volumeMounts[0].name",
        ),
        ({"containers": [_with_device()]}, "spec.containers[0].volumeDevices[0].name"),
        ({"containers": [_with_device()], "volumes": [{"name": "v", "emptyDir": {}}]}, _DEVICE + "name"),
        ({"containers": [_with_device(devicePath="")], "volumes": [_CLAIMED]}, _DEVICE + "devicePath"),
        ({"containers": [_with_device(devicePath="/a/../b")], "volumes": [_CLAIMED]}, _DEVICE + "devicePath"),
        ({"volumes": [{"name": "v", "csi": {}}]}, "spec.volumes[0].csi.driver"),
    ],
)
def test_a_pod_must_make_sense(api: Client, namespace: str, spec: Json, field: str) -> None:
    body = {"metadata": {"name": "p"}, "spec": POD_SPEC | spec}
    assert [each for each, _ in causes(api.request("POST", pods(namespace), body))] == [field]


def test_a_pod_is_filled_in_and_mostly_immutable(api: Client, namespace: str) -> None:
    made = api.post(pods(namespace), pod("p"))
    assert made["spec"]["restartPolicy"] == "Always"
    assert (made["spec"]["serviceAccountName"], made["spec"]["schedulerName"]) == ("default", "default-scheduler")
    assert (made["status"]["phase"], made["status"]["qosClass"]) == ("Pending", "BestEffort")
    made["spec"]["containers"][0]["image"] = "busybox:2"
    assert api.put(pods(namespace, "p"), made)["metadata"]["generation"] == 2
    for change in ({"nodeName": "n1"}, {"volumes": [{"name": "v", "emptyDir": {}}]}):
        assert causes(try_patch(api, pods(namespace, "p"), {"spec": change})) == [("spec", "FieldValueForbidden")]


@pytest.mark.parametrize("name", ["Upper", "under_score", "-dash", "a..b", "x" * 254])
def test_names_are_dns_names(api: Client, namespace: str, name: str) -> None:
    assert ("metadata.name", "FieldValueInvalid") in causes(api.request("POST", maps(namespace), config(name)))


@pytest.mark.parametrize(
    "metadata",
    [
        {"labels": {"a": "with space"}},
        {"labels": {"a": "x" * 64}},
        {"labels": {"a/b/c": ""}},
        {"labels": {"/a": ""}},
        {"annotations": {"with space": ""}},
        {"finalizers": ["plain"]},
        {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": ""}]},
    ],
)
def test_metadata_is_checked(api: Client, namespace: str, metadata: Json) -> None:
    assert causes(api.request("POST", maps(namespace), config("a", **metadata)))


def test_an_event_lives_beside_what_it_is_about(api: Client, namespace: str, unique: str) -> None:
    about = {"kind": "Pod", "namespace": "default", "name": "p"}
    event = {"metadata": {"name": unique}, "involvedObject": about, "reason": "R", "type": "Normal"}
    path = f"/api/v1/namespaces/{namespace}/events"
    assert causes(api.request("POST", path, event)) == [("involvedObject.namespace", "FieldValueInvalid")]
    node = event | {"involvedObject": {"kind": "Node", "name": "n"}}
    assert causes(api.request("POST", path, node)) == [("involvedObject.namespace", "FieldValueInvalid")]
    assert api.request("POST", "/api/v1/namespaces/default/events", node).code == 201


def test_several_faults_are_reported_together(api: Client, namespace: str) -> None:
    spec = CLAIM_SPEC | {"accessModes": ["Never"], "volumeMode": "Tape"}
    answer = api.request("POST", claims(namespace), {"metadata": {"name": "c"}, "spec": spec})
    assert [field for field, _ in causes(answer)] == ["spec.accessModes", "spec.volumeMode"]
    assert answer.body["message"].startswith(
        'PersistentVolumeClaim "c" is invalid: [spec.accessModes: Unsupported value'
    )
