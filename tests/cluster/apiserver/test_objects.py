"""Creating, changing and deleting: revisions, preconditions, finalizers, graceful deletion, owners, namespaces."""

from typing import Any

from tests.cluster.apiserver.samples import config, maps, pod, pods, volume
from tests.sandbox.apiserver.client import Client
from tests.sandbox.apiserver.patches import JSON_PATCH
from tests.sandbox.apiserver.resources import Json
from tests.waiting import eventually


def test_a_new_object_gets_its_identity_and_every_change_a_higher_revision(api: Client, namespace: str) -> None:
    first = api.post(maps(namespace), config("a"))
    second = api.post(maps(namespace), config("b"))
    assert first["metadata"]["uid"] != second["metadata"]["uid"]
    assert first["metadata"]["creationTimestamp"].endswith("Z")
    assert (first["kind"], first["apiVersion"]) == ("ConfigMap", "v1")
    changed = api.patch(maps(namespace, "a"), {"data": {"key": "other"}})
    revisions = [int(each["metadata"]["resourceVersion"]) for each in (first, second, changed)]
    assert revisions == sorted(set(revisions))


def test_a_change_that_changes_nothing_is_no_new_revision(api: Client, namespace: str) -> None:
    made = api.post(maps(namespace), config("a"))
    assert api.put(maps(namespace, "a"), made) == made
    assert api.patch(maps(namespace, "a"), {"metadata": {"labels": {}, "annotations": None}}) == made


def test_generate_name_adds_a_suffix(api: Client, namespace: str) -> None:
    made = api.post(maps(namespace), {"metadata": {"generateName": "some-"}})
    assert len(made["metadata"]["name"]) == len("some-") + 5


def test_errors_are_worded_as_kubernetes_words_them(api: Client, namespace: str, unique: str) -> None:
    api.post(maps(namespace), config("a"))
    again = api.request("POST", maps(namespace), config("a"))
    assert (again.code, again.body["reason"]) == (409, "AlreadyExists")
    assert again.body["message"] == 'configmaps "a" already exists'
    assert again.body["details"] == {"name": "a", "kind": "configmaps"}
    missing = api.request("GET", f"/apis/storage.k8s.io/v1/storageclasses/{unique}")
    assert (missing.code, missing.body["reason"]) == (404, "NotFound")
    assert missing.body["message"] == f'storageclasses.storage.k8s.io "{unique}" not found'
    nowhere = api.request("POST", maps("no-such-namespace"), config("a"))
    assert (nowhere.code, nowhere.body["message"]) == (404, 'namespaces "no-such-namespace" not found')
    assert api.request("POST", maps(namespace), b"{").code == 400
    assert api.request("POST", maps(namespace), {"kind": "Pod", "apiVersion": "v1"}).code == 400
    assert api.request("POST", maps(namespace), config("b", namespace="other")).code == 400
    assert api.request("POST", maps(namespace), config("b"), content_type="text/csv").code == 415
    assert api.request("PUT", maps(namespace), config("b")).code == 405


def test_a_stale_revision_conflicts(api: Client, namespace: str) -> None:
    old = api.post(maps(namespace), config("a"))
    api.patch(maps(namespace, "a"), {"data": {"key": "new"}})
    put = api.request("PUT", maps(namespace, "a"), old)
    assert (put.code, put.body["reason"]) == (409, "Conflict")
    assert put.body["message"] == (
        'Operation cannot be fulfilled on configmaps "a": the object has been modified; please apply your changes'
        " to the latest version and try again"
    )
    patch = {"metadata": {"resourceVersion": old["metadata"]["resourceVersion"]}, "data": {"key": "newer"}}
    kind = "application/merge-patch+json"
    assert api.request("PATCH", maps(namespace, "a"), patch, content_type=kind).code == 409
    assert api.get(maps(namespace, "a"))["data"] == {"key": "new"}


def test_another_uid_conflicts(api: Client, namespace: str) -> None:
    old = api.post(maps(namespace), config("a"))
    api.delete(maps(namespace, "a"))
    api.post(maps(namespace), config("a"))
    del old["metadata"]["resourceVersion"]
    assert api.request("PUT", maps(namespace, "a"), old).code == 409


def test_leases_are_only_replaced_with_a_revision_and_are_created_by_put(api: Client, namespace: str) -> None:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/lock"
    lease: Json = {"metadata": {"name": "lock"}, "spec": {"holderIdentity": "me"}}
    assert api.request("PUT", path, lease).code == 201
    refused = api.request("PUT", path, lease)
    assert refused.code == 422
    assert refused.body["details"]["causes"][0]["field"] == "metadata.resourceVersion"
    held = api.get(path)
    api.delete(path)
    again = api.request("PUT", path, held)
    assert (again.code, again.body["reason"]) == (409, "Conflict")
    assert again.body["message"].endswith(f"UID in precondition: {held['metadata']['uid']}, UID in object meta: ")


def test_a_dry_run_answers_and_changes_nothing(api: Client, namespace: str) -> None:
    assert api.post(maps(namespace), config("a"), dryRun="All")["metadata"]["uid"]
    assert api.request("GET", maps(namespace, "a")).code == 404
    api.post(maps(namespace), config("a"))
    api.delete(maps(namespace, "a"), dryRun="All")
    assert api.patch(maps(namespace, "a"), {"data": {"key": "x"}}, dryRun="All")["data"] == {"key": "x"}
    assert api.get(maps(namespace, "a"))["data"] == {"key": "value"}


def test_the_spec_and_the_status_are_changed_apart(api: Client, unique: str) -> None:
    path = f"/api/v1/persistentvolumes/{unique}"
    made = api.post("/api/v1/persistentvolumes", volume(unique) | {"status": {"phase": "Bound"}})
    assert made["status"]["phase"] == "Pending"
    both = {"spec": {"storageClassName": "x"}, "status": {"phase": "Available"}}
    main = api.patch(path, both)
    assert (main["spec"]["storageClassName"], main["status"]["phase"]) == ("x", "Pending")
    status = api.patch(f"{path}/status", {"spec": {"storageClassName": "y"}, "status": {"phase": "Available"}})
    assert (status["spec"]["storageClassName"], status["status"]["phase"]) == ("x", "Available")
    assert api.request("PATCH", maps("default", "kube") + "/status", {}).code == 404


def test_a_spec_change_is_a_generation_and_a_status_change_is_none(api: Client, namespace: str) -> None:
    template = {"metadata": {"labels": {"app": "a"}}, "spec": pod("x")["spec"]}
    body = {"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"app": "a"}}, "template": template}}
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    assert api.post(path, body)["metadata"]["generation"] == 1
    assert api.patch(f"{path}/d", {"metadata": {"labels": {"a": "b"}}})["metadata"]["generation"] == 1
    assert api.patch(f"{path}/d/status", {"status": {"replicas": 1}})["metadata"]["generation"] == 1
    assert api.patch(f"{path}/d", {"spec": {"replicas": 3}})["metadata"]["generation"] == 2


def test_finalizers_hold_a_deleted_object(api: Client, namespace: str) -> None:
    path = maps(namespace, "a")
    made = api.post(maps(namespace), config("a", finalizers=["example.com/hold"]))
    deleting = api.delete(path)
    assert deleting["metadata"]["deletionGracePeriodSeconds"] == 0
    assert deleting["metadata"]["uid"] == made["metadata"]["uid"]
    assert api.delete(path) == deleting
    more = api.request(
        "PATCH",
        path,
        {"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}},
        content_type="application/merge-patch+json",
    )
    assert more.code == 422
    assert more.body["message"] == (
        'ConfigMap "a" is invalid: metadata.finalizers: Forbidden: no new finalizers can be added if the object is'
        ' being deleted, found new finalizers []string{"example.com/more"}'
    )
    api.patch(path, [{"op": "remove", "path": "/metadata/finalizers"}], JSON_PATCH)
    assert api.request("GET", path).code == 404


def test_deletion_preconditions(api: Client, namespace: str) -> None:
    made = api.post(maps(namespace), config("a"))
    metadata = made["metadata"]
    for wrong in ({"uid": "other"}, {"resourceVersion": "1"}):
        answer = api.request("DELETE", maps(namespace, "a"), {"preconditions": wrong})
        assert (answer.code, answer.body["reason"]) == (409, "Conflict")
    right = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
    gone = api.delete(maps(namespace, "a"), {"preconditions": right})
    assert (gone["status"], gone["details"]) == (
        "Success",
        {"name": "a", "kind": "configmaps", "uid": metadata["uid"]},
    )


def test_a_running_pod_is_deleted_by_its_kubelet(api: Client, namespace: str) -> None:
    api.post(pods(namespace), pod("waiting"))
    api.delete(pods(namespace, "waiting"))
    assert api.request("GET", pods(namespace, "waiting")).code == 404

    api.post(pods(namespace), pod("running"))
    target = {"target": {"kind": "Node", "name": "n1"}}
    api.post(pods(namespace, "running") + "/binding", target)
    first = api.delete(pods(namespace, "running"))["metadata"]
    assert first["deletionGracePeriodSeconds"] == 30
    shorter = api.delete(pods(namespace, "running"), {"gracePeriodSeconds": 2})["metadata"]
    assert shorter["deletionGracePeriodSeconds"] == 2
    assert shorter["deletionTimestamp"] <= first["deletionTimestamp"]
    assert api.delete(pods(namespace, "running"))["metadata"] == shorter
    api.delete(pods(namespace, "running"), {"gracePeriodSeconds": 0})
    assert api.request("GET", pods(namespace, "running")).code == 404


def test_a_pod_is_bound_once(api: Client, namespace: str) -> None:
    api.post(pods(namespace), pod("p"))
    path = pods(namespace, "p")
    assert api.request("POST", f"{path}/binding", {"target": {"kind": "Node", "name": "n1"}}).code == 201
    bound = api.get(path)
    assert bound["spec"]["nodeName"] == "n1"
    assert [each["type"] for each in bound["status"]["conditions"]] == ["PodScheduled"]
    again = api.request("POST", f"{path}/binding", {"target": {"kind": "Node", "name": "n2"}})
    assert (again.code, again.body["reason"]) == (409, "Conflict")
    assert 'pod p is already assigned to node "n1"' in again.body["message"]


def test_an_evicted_pod_is_deleted(api: Client, namespace: str) -> None:
    api.post(pods(namespace), pod("p"))
    api.post(pods(namespace, "p") + "/eviction", {"metadata": {"name": "p"}})
    assert api.request("GET", pods(namespace, "p")).code == 404


def test_a_collection_is_deleted_by_selector(api: Client, namespace: str) -> None:
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "red")):
        api.post(maps(namespace), config(name, labels={"colour": colour}))
    api.delete(maps(namespace), labelSelector="colour=red")
    assert [each["metadata"]["name"] for each in api.get(maps(namespace))["items"]] == ["b"]


def owned_by(owner: Json, **more: Any) -> list[Json]:
    metadata = owner["metadata"]
    return [{"apiVersion": "v1", "kind": "ConfigMap", "name": metadata["name"], "uid": metadata["uid"], **more}]


def test_what_an_owner_leaves_behind_is_collected(api: Client, namespace: str) -> None:
    owner = api.post(maps(namespace), config("owner"))
    child = api.post(maps(namespace), config("child", ownerReferences=owned_by(owner)))
    api.post(maps(namespace), config("grandchild", ownerReferences=owned_by(child)))
    api.delete(maps(namespace, "owner"))
    eventually(lambda: api.get(maps(namespace))["items"] == [])


def test_an_object_with_an_owner_of_the_past_is_collected(api: Client, namespace: str) -> None:
    ghost: Json = {"metadata": {"name": "ghost", "uid": "11111111-1111-1111-1111-111111111111"}}
    api.post(maps(namespace), config("child", ownerReferences=owned_by(ghost)))
    eventually(lambda: api.request("GET", maps(namespace, "child")).code == 404)


def test_an_object_stays_while_one_of_its_owners_does(api: Client, namespace: str) -> None:
    first, second = api.post(maps(namespace), config("first")), api.post(maps(namespace), config("second"))
    api.post(maps(namespace), config("child", ownerReferences=owned_by(first) + owned_by(second)))
    canary = config("canary", ownerReferences=owned_by(first))
    api.post(maps(namespace), canary)
    api.delete(maps(namespace, "first"))
    eventually(lambda: api.request("GET", maps(namespace, "canary")).code == 404)
    assert api.request("GET", maps(namespace, "child")).code == 200
    eventually(lambda: api.get(maps(namespace, "child"))["metadata"]["ownerReferences"] == owned_by(second))


def test_orphans_lose_their_owner_and_stay(api: Client, namespace: str) -> None:
    owner = api.post(maps(namespace), config("owner"))
    api.post(maps(namespace), config("child", ownerReferences=owned_by(owner)))
    api.delete(maps(namespace, "owner"), {"propagationPolicy": "Orphan"})
    eventually(lambda: api.request("GET", maps(namespace, "owner")).code == 404)
    assert "ownerReferences" not in api.get(maps(namespace, "child"))["metadata"]


def test_deletion_in_the_foreground_waits_for_dependents(api: Client, namespace: str) -> None:
    owner = api.post(maps(namespace), config("owner"))
    other = api.post(maps(namespace), config("other"))
    blocking = owned_by(owner, blockOwnerDeletion=True)
    api.post(maps(namespace), config("child", ownerReferences=blocking, finalizers=["example.com/hold"]))
    api.post(maps(namespace), config("shared", ownerReferences=blocking + owned_by(other)))
    api.post(maps(namespace), config("unasked", ownerReferences=owned_by(owner)))
    api.delete(maps(namespace, "owner"), {"propagationPolicy": "Foreground"})
    eventually(lambda: "deletionTimestamp" in api.get(maps(namespace, "child"))["metadata"])
    assert api.get(maps(namespace, "owner"))["metadata"]["finalizers"] == ["foregroundDeletion"]
    eventually(lambda: api.get(maps(namespace, "shared"))["metadata"]["ownerReferences"] == owned_by(other))
    assert api.request("GET", maps(namespace, "unasked")).code == 200
    api.patch(maps(namespace, "child"), {"metadata": {"finalizers": None}})
    eventually(lambda: api.request("GET", maps(namespace, "owner")).code == 404)
    eventually(lambda: api.request("GET", maps(namespace, "unasked")).code == 404)


def test_a_namespace_goes_when_it_is_empty(api: Client, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}"
    assert api.get(f"{path}/serviceaccounts/default")
    api.post(maps(namespace), config("free"))
    api.post(maps(namespace), config("held", finalizers=["example.com/hold"]))
    assert api.delete(path)["status"]["phase"] == "Terminating"
    eventually(lambda: len(api.get(maps(namespace))["items"]) == 1)
    refused = api.request("POST", maps(namespace), config("late"))
    assert refused.code == 403
    assert refused.body["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    api.patch(maps(namespace, "held"), {"metadata": {"finalizers": None}})
    eventually(lambda: api.request("GET", path).code == 404)
    assert api.request("DELETE", "/api/v1/namespaces/default").code == 403
