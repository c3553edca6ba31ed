"""The four kinds of patch."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cluster.apiserver.samples import config, maps, pod, pods
from tests.sandbox.apiserver import patches, strategic
from tests.sandbox.apiserver.client import Client
from tests.sandbox.apiserver.errors import ApiError
from tests.sandbox.apiserver.patches import APPLY_PATCH, JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH
from tests.sandbox.apiserver.resources import Json

_VALUES = st.recursive(
    st.integers() | st.text(max_size=3), lambda inner: st.dictionaries(st.text(max_size=2), inner, max_size=3)
)


@given(_VALUES, st.dictionaries(st.text(max_size=2), _VALUES | st.none(), max_size=3))
def test_a_merge_patch_applied_twice_is_applied_once(target: Any, patch: Json) -> None:
    once = patches.merge(target, patch)
    assert patches.merge(once, patch) == once


def test_a_merge_patch_replaces_lists_and_removes_nulls() -> None:
    target = {"a": {"x": 1, "y": [1, 2]}, "b": 1}
    assert patches.merge(target, {"a": {"x": None, "y": [3]}, "c": {"z": None}}) == {"a": {"y": [3]}, "b": 1, "c": {}}


@pytest.mark.parametrize(
    ("operation", "result"),
    [
        ({"op": "add", "path": "/list/1", "value": 9}, {"list": [1, 9, 2], "a/b": 1}),
        ({"op": "add", "path": "/list/-", "value": 9}, {"list": [1, 2, 9], "a/b": 1}),
        ({"op": "replace", "path": "/a~1b", "value": 9}, {"list": [1, 2], "a/b": 9}),
        ({"op": "remove", "path": "/list/0"}, {"list": [2], "a/b": 1}),
        ({"op": "move", "from": "/a~1b", "path": "/c"}, {"list": [1, 2], "c": 1}),
        ({"op": "copy", "from": "/list", "path": "/c"}, {"list": [1, 2], "a/b": 1, "c": [1, 2]}),
        ({"op": "test", "path": "/list", "value": [1, 2]}, {"list": [1, 2], "a/b": 1}),
    ],
)
def test_json_patch_operations(operation: Json, result: Json) -> None:
    assert patches.json_patch({"list": [1, 2], "a/b": 1}, [operation]) == result


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "remove", "path": "/missing"},
        {"op": "replace", "path": "/missing", "value": 1},
        {"op": "test", "path": "/list/0", "value": 2},
        {"op": "add", "path": "/list/5", "value": 2},
        {"op": "add", "path": "list", "value": 2},
        {"op": "spin", "path": "/list"},
    ],
)
def test_a_json_patch_that_does_not_fit_is_refused(operation: Json) -> None:
    with pytest.raises(ApiError) as refused:
        patches.json_patch({"list": [1]}, [operation])
    assert refused.value.code == 422


def merged(original: Json, patch: Json) -> Json:
    """As the spec of a pod."""
    return strategic.merge({"spec": original}, {"spec": patch}, strategic.shape_of("Pod"))["spec"]  # type: ignore[no-any-return]


def test_strategic_merge_merges_lists_by_their_keys() -> None:
    before = {"containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]}
    patch = {"containers": [{"name": "a", "env": [{"name": "Y", "value": "2"}]}, {"name": "c"}]}
    assert merged(before, patch) == {
        "containers": [
            {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]},
            {"name": "b"},
            {"name": "c"},
        ]
    }


def test_strategic_merge_replaces_lists_without_a_key() -> None:
    assert merged({"tolerations": [{"key": "a"}]}, {"tolerations": [{"key": "b"}]}) == {"tolerations": [{"key": "b"}]}


def test_strategic_merge_directives() -> None:
    volumes = [{"name": "a"}, {"name": "b"}, {"name": "c"}]
    deleted = merged({"volumes": volumes}, {"volumes": [{"name": "b", "$patch": "delete"}]})
    assert deleted == {"volumes": [{"name": "a"}, {"name": "c"}]}
    replaced = merged({"volumes": volumes}, {"volumes": [{"$patch": "replace"}, {"name": "z"}]})
    assert replaced == {"volumes": [{"name": "z"}]}
    whole = merged({"volumes": volumes, "x": 1}, {"$patch": "replace", "y": 2})
    assert whole == {"y": 2}
    retained = merged({"securityContext": {"a": 1, "b": 2}}, {"securityContext": {"$retainKeys": ["b", "c"], "c": 3}})
    assert retained == {"securityContext": {"b": 2, "c": 3}}


def test_strategic_merge_orders_elements_and_keeps_the_servers_in_place() -> None:
    before = {"containers": [{"name": "a"}, {"name": "server"}, {"name": "b"}]}
    patch = {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "a", "image": "1"}]}
    assert [each["name"] for each in merged(before, patch)["containers"]] == ["b", "a", "server"]


def test_strategic_merge_of_plain_values_is_a_union() -> None:
    shape = strategic.shape_of("ConfigMap")
    before = {"metadata": {"finalizers": ["a", "b"]}}
    patch = {"metadata": {"finalizers": ["c"], "$deleteFromPrimitiveList/finalizers": ["a"]}}
    assert strategic.merge(before, patch, shape) == {"metadata": {"finalizers": ["b", "c"]}}


def test_the_content_type_decides(api: Client, namespace: str) -> None:
    api.post(pods(namespace), pod("p"))
    condition = {"type": "Ready", "status": "True"}
    status = pods(namespace, "p") + "/status"
    api.patch(status, {"status": {"conditions": [{"type": "PodScheduled", "status": "True"}]}}, MERGE_PATCH)
    both = api.patch(status, {"status": {"conditions": [condition]}}, STRATEGIC_PATCH)
    assert [each["type"] for each in both["status"]["conditions"]] == ["PodScheduled", "Ready"]
    assert api.patch(status, {"status": {"conditions": [condition]}}, MERGE_PATCH)["status"]["conditions"] == [
        condition
    ]
    operations = [{"op": "replace", "path": "/status/phase", "value": "Running"}]
    assert api.patch(status, operations, JSON_PATCH)["status"]["phase"] == "Running"
    assert api.request("PATCH", status, {}, content_type="application/json").code == 415


def test_applied_fields_go_when_they_are_no_longer_applied(api: Client, namespace: str) -> None:
    path = maps(namespace, "a")
    body: Json = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"labels": {"mine": ""}}, "data": {"x": "1"}}
    first = api.patch(path, body, APPLY_PATCH, fieldManager="me")
    api.patch(path, {"data": {"foreign": "2"}})
    api.patch(path, body, APPLY_PATCH, fieldManager="me")
    del body["data"]["x"]
    body["data"]["y"] = "3"
    second = api.patch(path, body, APPLY_PATCH, fieldManager="me")
    assert second["data"] == {"foreign": "2", "y": "3"}
    assert second["metadata"]["uid"] == first["metadata"]["uid"]
    assert api.patch(path, body, APPLY_PATCH, fieldManager="me") == second
    assert api.request("PATCH", path, body, content_type=APPLY_PATCH).code == 400


def test_two_appliers_of_one_field_conflict_until_one_forces(api: Client, namespace: str) -> None:
    path = maps(namespace, "a")
    body: Json = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"x": "1"}}
    api.patch(path, body, APPLY_PATCH, fieldManager="one")
    other = body | {"data": {"x": "2"}}
    refused = api.request("PATCH", path, other, content_type=APPLY_PATCH, fieldManager="two")
    assert (refused.code, refused.body["reason"]) == (409, "Conflict")
    assert refused.body["message"] == 'Apply failed with 1 conflict: conflict with "one": .data.x'
    assert api.patch(path, other, APPLY_PATCH, fieldManager="two", force="true")["data"] == {"x": "2"}
    assert api.request("PATCH", path, body, content_type=APPLY_PATCH, fieldManager="one").code == 409


def test_a_patch_of_what_is_not_there(api: Client, namespace: str) -> None:
    answer = api.request("PATCH", maps(namespace, "a"), config("a"), content_type=MERGE_PATCH)
    assert answer.code == 404
