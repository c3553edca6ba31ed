"""ValidatingAdmissionPolicies: when they are asked, what they see, and the words and codes of a refusal."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.apiserver.samples import config, maps
from tests.sandbox.apiserver import patches
from tests.sandbox.apiserver.client import Answer, Client
from tests.sandbox.apiserver.resources import Json

_API = "/apis/admissionregistration.k8s.io/v1"
_MAPS = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["*"]}


def policy(name: str, namespace: str, *validations: Json, **spec: Any) -> Json:
    """On the ConfigMaps of one namespace."""
    place = {"name": "there", "expression": f"request.namespace == '{namespace}'"}
    constraints = {"resourceRules": [_MAPS]}
    body = {"matchConstraints": constraints, "matchConditions": [place], "validations": list(validations), **spec}
    return {"metadata": {"name": name}, "spec": body}


def binding(name: str, **spec: Any) -> Json:
    return {"metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"], **spec}}


class Bound:
    """One policy and its binding."""

    def __init__(self, api: Client, name: str) -> None:
        self._api = api
        self._name = name
        self.made = False

    def __call__(self, body: Json, **spec: Any) -> None:
        self._api.post(f"{_API}/validatingadmissionpolicies", body)
        self._api.post(f"{_API}/validatingadmissionpolicybindings", binding(self._name, **spec))
        self.made = True


@pytest.fixture
def bound(api: Client, unique: str) -> Iterator[Bound]:
    policy = Bound(api, unique)
    yield policy
    if policy.made:
        for plural in ("validatingadmissionpolicybindings", "validatingadmissionpolicies"):
            api.delete(f"{_API}/{plural}/{unique}")


def put(api: Client, namespace: str, name: str = "one", **metadata: Any) -> Answer:
    return api.request("POST", maps(namespace), config(name, **metadata))


def test_what_is_refused_is_reported_with_policy_binding_and_message(
    api: Client, bound: Bound, namespace: str, unique: str
) -> None:
    bound(policy(unique, namespace, {"expression": "object.metadata.name != 'one'", "message": "not this one"}))
    answer = put(api, namespace)
    assert (answer.code, answer.body["reason"]) == (422, "Invalid")
    assert answer.body["message"] == (
        f"configmaps \"one\" is forbidden: ValidatingAdmissionPolicy '{unique}' with binding '{unique}' denied "
        "request: not this one"
    )
    assert put(api, namespace, "other").code == 201
    assert put(api, "default", "one").code == 201, "of another namespace"
    api.delete(maps("default", "one"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"messageExpression": "'no ' + object.metadata.name", "message": "else"}, "no one"),
        ({"messageExpression": "'' + object.metadata.nothing", "message": "else"}, "else"),
        ({"messageExpression": "' '", "message": "else"}, "else"),
        ({}, "failed expression: false"),
    ],
)
def test_the_words_are_those_of_the_first_way_that_has_any(
    api: Client, bound: Bound, namespace: str, unique: str, more: Json, message: str
) -> None:
    bound(policy(unique, namespace, {"expression": "false", "reason": "Forbidden", **more}))
    answer = put(api, namespace)
    assert (answer.code, answer.body["reason"]) == (403, "Forbidden")
    assert answer.body["message"].endswith(f"denied request: {message}")


def test_every_way_to_write_is_asked(api: Client, bound: Bound, namespace: str, unique: str) -> None:
    api.post(maps(namespace), config("one"))
    kept = {"expression": "request.operation == 'CREATE' || false", "message": "kept"}
    fresh = {"expression": "request.operation != 'CREATE' || false", "message": "kept"}
    bound(policy(unique, namespace, kept, fresh))
    one = maps(namespace, "one")
    merge, apply = patches.MERGE_PATCH, patches.APPLY_PATCH
    change = {"data": {"key": "other"}}
    applied = {"apiVersion": "v1", "kind": "ConfigMap", **change}
    for answer in (
        api.request("PUT", one, {**config("one"), **change}),
        api.request("PATCH", one, change, content_type=merge),
        api.request("PATCH", one, {}, content_type=merge),
        api.request("PATCH", one, change, content_type=merge, dryRun="All"),
        api.request("PATCH", one, applied, content_type=apply, fieldManager="me", force="true"),
        api.request("PATCH", maps(namespace, "new"), applied, content_type=apply, fieldManager="me"),
        api.request("DELETE", one),
        api.request("DELETE", maps(namespace)),
        put(api, namespace, "another"),
    ):
        assert answer.code == 422, answer.body
    assert api.get(one)["data"] == {"key": "value"}


def test_an_evaluation_error_is_a_refusal_unless_the_policy_ignores_it(
    api: Client, bound: Bound, namespace: str, unique: str
) -> None:
    bound(policy(unique, namespace, {"expression": "object.spec.nothing == 1"}))
    assert put(api, namespace).code == 422
    path = f"{_API}/validatingadmissionpolicies/{unique}"
    api.patch(path, {"spec": {"failurePolicy": "Ignore"}})
    assert put(api, namespace).code == 201


def test_variables_are_evaluated_when_they_are_needed(api: Client, bound: Bound, namespace: str, unique: str) -> None:
    variables = [
        {"name": "broken", "expression": "object.spec.nothing"},
        {"name": "labelled", "expression": "object.metadata.?labels[?'a'].orValue('') == 'b'"},
    ]
    wanted = {"expression": "variables.labelled || variables.broken == 1", "message": "no label"}
    bound(policy(unique, namespace, wanted, variables=variables))
    assert put(api, namespace, labels={"a": "b"}).code == 201
    assert put(api, namespace, "two").code == 422


def test_objects_are_chosen_by_their_labels_and_by_rules(
    api: Client, bound: Bound, namespace: str, unique: str
) -> None:
    selector = {"matchExpressions": [{"key": "held", "operator": "Exists"}]}
    constraints = {"resourceRules": [{**_MAPS, "operations": ["CREATE"]}], "objectSelector": selector}
    bound(policy(unique, namespace, {"expression": "false"}, matchConstraints=constraints))
    assert put(api, namespace).code == 201
    assert put(api, namespace, "two", labels={"held": "yes"}).code == 422
    api.patch(maps(namespace, "one"), {"metadata": {"labels": {"held": "yes"}}})
    api.delete(maps(namespace, "one"))


def test_a_parameter_is_an_object_by_name_or_all_that_a_selector_admits(
    api: Client, bound: Bound, namespace: str, unique: str
) -> None:
    """Of the namespace of the request, when none is named."""
    kind = {"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}}
    named = {"expression": "object.metadata.name in [params.metadata.name, params.data.key]", "message": "not named"}
    reference: Json = {"name": "allowed", "parameterNotFoundAction": "Allow"}
    bound(policy(unique, namespace, named, **kind), paramRef=reference)
    assert put(api, namespace).code == 201, "there is no parameter"
    assert put(api, namespace, "allowed").code == 201
    assert put(api, namespace, "value").code == 201
    assert put(api, namespace, "other").code == 422
    path = f"{_API}/validatingadmissionpolicybindings/{unique}"
    api.patch(path, {"spec": {"paramRef": {"name": None, "selector": {}}}})
    assert put(api, namespace, "allowed-again").code == 422, "each parameter has its say"
    api.patch(path, {"spec": {"paramRef": {"selector": {"matchLabels": {"a": "b"}}}}})
    assert put(api, namespace, "free").code == 201
    api.patch(path, {"spec": {"paramRef": {"parameterNotFoundAction": "Deny"}}})
    assert put(api, namespace, "bound").code == 422


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ({"expression": "request.subresource == ''"}, "undefined field 'subresource'"),
        ({"expression": "variables.name + 1 == 2"}, "found no matching overload"),
        ({"expression": "variables.name"}, "must evaluate to bool"),
        ({"expression": "true", "messageExpression": "[variables.name]"}, "must evaluate to string"),
    ],
)
def test_an_expression_of_a_wrong_type_is_refused_when_it_is_written(
    api: Client, namespace: str, unique: str, validation: dict[str, str], message: str
) -> None:
    body = policy(unique, namespace, validation)
    body["spec"]["variables"] = [{"name": "name", "expression": "request.name"}]
    answer = api.request("POST", f"{_API}/validatingadmissionpolicies", body)
    assert answer.code == 422
    assert message in answer.body["message"]


@pytest.mark.parametrize("field", ["matchConditions", "variables", "validations"])
def test_an_expression_that_is_none_is_refused_when_it_is_written(
    api: Client, namespace: str, unique: str, field: str
) -> None:
    body = policy(unique, namespace, {"expression": "true"})
    body["spec"][field] = [{"name": "x", "expression": "object.a ||"}]
    answer = api.request("POST", f"{_API}/validatingadmissionpolicies", body)
    assert answer.code == 422
    assert f"spec.{field}[0].expression" in answer.body["message"]
    assert "compilation failed" in answer.body["message"]
