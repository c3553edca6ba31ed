"""The admission policies of deploy/ are there, bound, and written in expressions that Kubernetes can read, of
fields that there are."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes_validate.utils import schema_contents

from tests.sandbox.apiserver.policies import check_policy
from tests.sandbox.apiserver.resources import BY_KIND
from tests.unit.deploy.daemonwrites import Json
from tests.unit.deploy.rendered import ADDING, BASE, OVERLAYS, WITHOUT_POLICIES, kustomize, of_kind, with_components

_CHAIN = re.compile(r"\b(object|oldObject|params|variables)((?:\.\??\w+\b(?!\()|\[\??[^\[\]]+\])+)")
_STEP = re.compile(r"\.\??(\w+)|(\[)[^\[\]]*\]")
_END = re.compile(r"(\.orValue\(.*\))?")
_CHOICE = re.compile(r".+ \? .+ : (object|oldObject)")
_KINDS = {each.plural: each for each in BY_KIND.values()}

_CONTENT_SCHEMA: Json = {
    "properties": {
        "metadata": {"$ref": "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"},
        "spec": {"properties": {}},
        "status": {"properties": {"snapshotHandle": {"type": "string"}}},
    }
}
"""What is named of a VolumeSnapshotContent, which is no kind of Kubernetes' own."""


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
