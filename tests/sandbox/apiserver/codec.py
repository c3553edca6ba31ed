"""Between HTTP and the registry: bodies, options and the forms of an answer."""

import json
from collections.abc import Mapping
from typing import Any

import yaml
from aiohttp import web

from tests.sandbox.apiserver import errors, protobuf, tables
from tests.sandbox.apiserver.reading import Page
from tests.sandbox.apiserver.registry import DeleteOptions
from tests.sandbox.apiserver.resources import Json
from tests.sandbox.apiserver.routing import Target
from tests.sandbox.apiserver.store import Stored, encode

_BODY_TYPES = ("application/json", "application/yaml", protobuf.CONTENT_TYPE)
_YAML_TYPES = ("application/yaml", "application/apply-patch+yaml")


def answer(body: object, code: int = 200) -> web.Response:
    return encoded(encode(body) + b"\n", code)


def encoded(body: bytes, code: int = 200) -> web.Response:
    return web.Response(body=body, status=code, content_type="application/json")


def one(request: web.Request, stored: Stored, code: int = 200) -> web.Response:
    """One object, in the form that the client accepts."""
    form = tables.wanted(request.headers.get("Accept", ""))
    if form.name == "Table":
        metadata = {"resourceVersion": str(stored.revision)}
        return answer(tables.table(stored.resource, [stored], metadata, form, embedding(request)), code)
    if form.name == "PartialObjectMetadata":
        return answer(tables.metadata_only(stored, form), code)
    return encoded(stored.encoded + b"\n", code)


def list_bytes(aim: Target, metadata: Json, page: Page) -> bytes:
    head = {"kind": f"{aim.resource.kind}List", "apiVersion": aim.resource.api_version, "metadata": metadata}
    return encode(head)[:-1] + b',"items":[' + b",".join(each.item for each in page.items) + b"]}\n"


def embedding(request: web.Request) -> str:
    """What of each object stands in the rows of a table: Metadata, Object or None."""
    return request.query.get("includeObject", "Metadata")


def success() -> Json:
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}


async def decoded(request: web.Request) -> Any:
    """The body, whatever it is. Raises BadRequest for what is neither JSON nor YAML."""
    content = await request.read()
    try:
        return yaml.safe_load(content) if request.content_type in _YAML_TYPES else json.loads(content)
    except (ValueError, yaml.YAMLError) as error:
        raise errors.bad_request(f"the object provided is unrecognized (must be of type object): {error}") from error


async def body_of(request: web.Request, *, optional: bool = False) -> Json:
    """The body, which must be an object. Raises BadRequest and UnsupportedMediaType."""
    if not request.body_exists:
        if optional:
            return {}
        raise errors.bad_request("the request has no body")
    if request.content_type == protobuf.CONTENT_TYPE:
        return protobuf.decode(await request.read())
    if "Content-Type" in request.headers and request.content_type not in _BODY_TYPES:
        raise errors.unsupported_media_type(request.content_type, _BODY_TYPES)
    body = await decoded(request)
    if not isinstance(body, dict):
        raise errors.bad_request("the body of the request must be an object")
    return body


def check_kind(aim: Target, body: Json) -> None:
    """Fills in kind and apiVersion, or refuses those of something else."""
    resource = aim.resource
    given = (body.setdefault("apiVersion", resource.api_version), body.setdefault("kind", resource.kind))
    if given != (resource.api_version, resource.kind):
        raise errors.bad_request(
            f"{given[1]} in version {given[0]!r} cannot be handled as a {resource.kind}: expected"
            f" {resource.api_version} {resource.kind}"
        )


def flag(query: Mapping[str, str], name: str) -> bool:
    return query.get(name, "").lower() in ("1", "true", "t")


def dry_run(request: web.Request, body: Json) -> bool:
    wanted = request.query.getall("dryRun", []) + list(body.get("dryRun") or [])
    for each in wanted:
        if each != "All":
            raise errors.bad_request(f'dryRun: Unsupported value: "{each}": supported values: "All"')
    return bool(wanted)


def delete_options(body: Json, query: Mapping[str, str]) -> DeleteOptions:
    preconditions = body.get("preconditions") or {}
    grace = body.get("gracePeriodSeconds", query.get("gracePeriodSeconds"))
    propagation = body.get("propagationPolicy") or query.get("propagationPolicy", "")
    if body.get("orphanDependents") or query.get("orphanDependents") == "true":
        propagation = "Orphan"
    return DeleteOptions(
        grace_seconds=None if grace is None else int(grace),
        uid=preconditions.get("uid") or "",
        revision=preconditions.get("resourceVersion") or "",
        propagation=propagation,
    )
