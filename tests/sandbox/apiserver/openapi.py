"""The little of OpenAPI that kubectl insists on before it creates anything.

It asks whether PATCH of a kind takes the parameter fieldValidation; told so, it leaves checking to the server. The
second version of the document is asked for as protobuf by older clients, so an empty one is written by hand.
"""

from tests.sandbox.apiserver.resources import Json, Serves, groups, served_by

PROTOBUF = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
_INFO: Json = {"title": "Kubernetes", "version": "v1.36.0"}


def second() -> Json:
    return {"swagger": "2.0", "info": _INFO, "paths": {}, "definitions": {}}


def second_as_protobuf() -> bytes:
    """gnostic's openapi.v2.Document: field 1 swagger, field 2 info (1 title, 2 version)."""
    info = _text(1, _INFO["title"].encode()) + _text(2, _INFO["version"].encode())
    return _text(1, b"2.0") + _text(2, info)


def _text(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field of fewer than 128 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content


def third(serves: Serves) -> Json:
    """The index of the third version: one document for each group and version."""
    named = groups(serves).items()
    paths = ["api/v1"] + [f"apis/{group}/{version}" for group, versions in named for version in versions]
    return {"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}?hash=1"} for path in paths}}


def third_of(group: str, version: str, serves: Serves) -> Json | None:
    served = served_by(group, version, serves)
    if not served:
        return None
    root = f"/apis/{group}/{version}" if group else f"/api/{version}"
    parameters = [
        {"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": True}}
        for name in ("dryRun", "fieldManager", "fieldValidation")
    ]
    paths: Json = {}
    for each in served:
        scope = f"{root}/namespaces/{{namespace}}" if each.namespaced else root
        kind = {"group": each.group, "version": each.version, "kind": each.kind}
        paths[f"{scope}/{each.plural}/{{name}}"] = {
            "patch": {
                "parameters": parameters,
                "responses": {"200": {"description": "OK"}},
                "x-kubernetes-action": "patch",
                "x-kubernetes-group-version-kind": kind,
            }
        }
    return {"openapi": "3.0.0", "info": _INFO, "paths": paths, "components": {"schemas": {}}}
