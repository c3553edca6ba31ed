"""The documents of the API that are about the API: health, version, discovery, OpenAPI."""

from collections.abc import Awaitable, Callable

from aiohttp import web

from tests.sandbox.apiserver import codec, discovery, errors, openapi
from tests.sandbox.apiserver.registry import Registry
from tests.sandbox.apiserver.resources import Json

_REGISTRY = web.AppKey("registry", Registry)


def add_routes(app: web.Application, registry: Registry) -> None:
    app[_REGISTRY] = registry
    for path in ("/healthz", "/livez", "/readyz"):
        app.router.add_get(path, _healthy)
    app.router.add_get("/version", _constant(discovery.VERSION))
    app.router.add_get("/api", _core_versions)
    app.router.add_get("/api/{version}", _resources)
    app.router.add_get("/apis", _groups)
    app.router.add_get("/apis/{group}", _group)
    app.router.add_get("/apis/{group}/{version}", _resources)
    app.router.add_get("/openapi/v2", _second)
    app.router.add_get("/openapi/v3", _thirds)
    app.router.add_get("/openapi/v3/api/{version}", _third)
    app.router.add_get("/openapi/v3/apis/{group}/{version}", _third)


def _constant(document: Json) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(_: web.Request) -> web.Response:
        return codec.answer(document)

    return handler


async def _healthy(_: web.Request) -> web.Response:
    return web.Response(text="ok")


async def _core_versions(request: web.Request) -> web.Response:
    return codec.answer(discovery.core_versions(request.host))


async def _groups(request: web.Request) -> web.Response:
    return codec.answer(discovery.group_list(request.app[_REGISTRY].serves))


async def _group(request: web.Request) -> web.Response:
    return _found(discovery.group(request.match_info["group"], request.app[_REGISTRY].serves))


async def _resources(request: web.Request) -> web.Response:
    group, version = request.match_info.get("group", ""), request.match_info["version"]
    return _found(discovery.resource_list(group, version, request.app[_REGISTRY].serves))


async def _second(request: web.Request) -> web.Response:
    if "protobuf" in request.headers.get("Accept", ""):
        return web.Response(body=openapi.second_as_protobuf(), content_type=openapi.PROTOBUF)
    return codec.answer(openapi.second())


async def _thirds(request: web.Request) -> web.Response:
    return codec.answer(openapi.third(request.app[_REGISTRY].serves))


async def _third(request: web.Request) -> web.Response:
    group, version = request.match_info.get("group", ""), request.match_info["version"]
    return _found(openapi.third_of(group, version, request.app[_REGISTRY].serves))


def _found(document: Json | None) -> web.Response:
    if document is None:
        raise errors.no_such_path()
    return codec.answer(document)
