"""The API over HTTP: decodes requests, asks the registry, encodes answers."""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import web

from tests.sandbox.apiserver import codec, documents, errors, patches, reviews, selectors, strategic, tables
from tests.sandbox.apiserver.apply import apply
from tests.sandbox.apiserver.binding import bind
from tests.sandbox.apiserver.faults import Faults
from tests.sandbox.apiserver.guard import Guard
from tests.sandbox.apiserver.reading import select
from tests.sandbox.apiserver.registry import Admit, Registry, admit_all
from tests.sandbox.apiserver.resources import Json
from tests.sandbox.apiserver.routing import Target, target, verb
from tests.sandbox.apiserver.store import encode
from tests.sandbox.apiserver.users import User
from tests.sandbox.apiserver.watching import Watch

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_TARGET = web.RequestKey("target", Target)
_VERB = web.RequestKey("verb", str)
_USER = web.RequestKey("user", User)
_GUARD = web.AppKey("guard", Guard)

_BODY_LIMIT = 3 * 1024 * 1024
_LONG_WATCH = 3600.0
"""Seconds of a watch that names no timeout."""


def application(registry: Registry, bookmark_seconds: float, guard: Guard | None = None) -> web.Application:
    """Without a guard everybody may do everything."""
    app = web.Application(middlewares=[Faults().middleware, _errors, _authorise], client_max_size=_BODY_LIMIT)
    if guard:
        app[_GUARD] = guard
        reviews.add_routes(app, guard)
    api = Api(registry, bookmark_seconds)
    documents.add_routes(app, registry)
    app.router.add_route("*", "/{path:.*}", api.handle)
    return app


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except errors.ApiError as error:
        return codec.answer(error.status(), error.code)
    except web.HTTPRequestEntityTooLarge:
        refusal = errors.ApiError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {_BODY_LIMIT}")
        return codec.answer(refusal.status(), refusal.code)


@web.middleware
async def _authorise(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tells apart what is asked for, target and RBAC verb, and refuses what the guard refuses. Documents about the API
    are for all who are known."""
    if guard := request.app.get(_GUARD):
        request[_USER] = guard.user(request.headers.get("Authorization", ""))
    aim = target(request.path)
    if aim is not None:
        request[_TARGET] = aim
        request[_VERB] = verb(request.method, aim, watch=codec.flag(request.query, "watch"))
        _require(request, request[_VERB])
    return await handler(request)


def _require(request: web.Request, wanted: str) -> None:
    """Raises Forbidden when the user may not do this with the target: a PUT or an apply may turn out to create."""
    if guard := request.app.get(_GUARD):
        guard.check(request[_USER], wanted, request[_TARGET], request.query, request.path_qs)


def _admit(request: web.Request) -> Admit:
    """What the policies say to the user who makes this request."""
    guard = request.app.get(_GUARD)
    return guard.admitting(request[_USER], request[_VERB], request[_TARGET], request.path_qs) if guard else admit_all


class Api:
    """The resources."""

    def __init__(self, registry: Registry, bookmark_seconds: float) -> None:
        self._registry = registry
        self._bookmark_seconds = bookmark_seconds

    async def handle(self, request: web.Request) -> web.StreamResponse:
        aim: Target | None = request.get(_TARGET)
        if aim is None or not self._registry.serves(aim.resource):
            raise errors.no_such_path()
        if request[_VERB] == "watch":
            return await self._watch(request, aim)
        match request.method:
            case "GET":
                return self._get(request, aim) if aim.name else self._list(request, aim)
            case "POST":
                return await self._post(request, aim)
            case "PUT" if aim.name:
                return await self._put(request, aim)
            case "PATCH" if aim.name:
                return await self._patch(request, aim)
            case "DELETE" if aim.name:
                return await self._delete(request, aim)
            case "DELETE":
                return await self._delete_collection(request, aim)
        raise errors.method_not_allowed()

    def _get(self, request: web.Request, aim: Target) -> web.Response:
        return codec.one(request, self._registry.get(aim.resource, aim.namespace, aim.name))

    def _list(self, request: web.Request, aim: Target) -> web.Response:
        page = select(self._registry.store, aim.resource, aim.namespace, request.query)
        metadata: Json = {"resourceVersion": str(page.revision)}
        if page.proceed:
            metadata["continue"] = page.proceed
        if page.remaining is not None:
            metadata["remainingItemCount"] = page.remaining
        form = tables.wanted(request.headers.get("Accept", ""))
        if form.name == "Table":
            return codec.answer(tables.table(aim.resource, page.items, metadata, form, codec.embedding(request)))
        if form.name == "PartialObjectMetadataList":
            items = [tables.metadata_only(each, form) for each in page.items]
            kind = {"kind": form.name, "apiVersion": form.api_version}
            return codec.answer(kind | {"metadata": metadata, "items": items})
        return codec.encoded(codec.list_bytes(aim, metadata, page))

    async def _post(self, request: web.Request, aim: Target) -> web.Response:
        body = await codec.body_of(request)
        if aim.subresource == "binding":
            bind(self._registry, aim.namespace, aim.name, body)
            return codec.answer(codec.success(), 201)
        if aim.subresource == "eviction":
            options = codec.delete_options(body.get("deleteOptions") or {}, request.query)
            self._registry.delete(aim.resource, aim.namespace, aim.name, options, admit=_admit(request))
            return codec.answer(codec.success(), 201)
        if aim.name or (aim.resource.namespaced and not aim.namespace):
            raise errors.method_not_allowed()
        codec.check_kind(aim, body)
        dry_run = codec.dry_run(request, body)
        stored = self._registry.create(aim.resource, aim.namespace, body, dry_run=dry_run, admit=_admit(request))
        return codec.one(request, stored, 201)

    async def _put(self, request: web.Request, aim: Target) -> web.Response:
        body = await codec.body_of(request)
        codec.check_kind(aim, body)
        dry_run = codec.dry_run(request, body)
        stored, created = self._registry.replace(
            aim.resource,
            aim.namespace,
            aim.name,
            body,
            subresource=aim.subresource,
            dry_run=dry_run,
            admit=_admit(request),
            before_create=lambda: _require(request, "create"),
        )
        return codec.one(request, stored, 201 if created else 200)

    async def _patch(self, request: web.Request, aim: Target) -> web.Response:
        patch = await codec.decoded(request)
        kind = request.content_type
        dry_run = codec.dry_run(request, {})
        if kind == patches.APPLY_PATCH:
            return self._apply(request, aim, patch, dry_run)
        change = patching(kind, patch, aim)
        stored = self._registry.update(
            aim.resource,
            aim.namespace,
            aim.name,
            change,
            subresource=aim.subresource,
            dry_run=dry_run,
            admit=_admit(request),
        )
        return codec.one(request, stored)

    def _apply(self, request: web.Request, aim: Target, wanted: Json, dry_run: bool) -> web.Response:
        codec.check_kind(aim, wanted)
        manager = request.query.get("fieldManager", "")
        if not manager:
            raise errors.bad_request(
                "PatchOptions.meta.k8s.io is invalid: fieldManager: Required value: is required for apply patch"
            )
        if self._registry.store.get(aim.resource, aim.namespace, aim.name) is None:
            _require(request, "create")
        force = codec.flag(request.query, "force")
        stored, created = apply(
            self._registry, aim, wanted, manager=manager, force=force, dry_run=dry_run, admit=_admit(request)
        )
        return codec.one(request, stored, 201 if created else 200)

    async def _delete(self, request: web.Request, aim: Target) -> web.Response:
        body = await codec.body_of(request, optional=True)
        stored, gone = self._registry.delete(
            aim.resource,
            aim.namespace,
            aim.name,
            codec.delete_options(body, request.query),
            dry_run=codec.dry_run(request, body),
            admit=_admit(request),
        )
        if not gone or aim.resource.returns_deleted:
            return codec.one(request, stored)
        details = {"name": stored.name, "kind": aim.resource.plural, "uid": stored.uid}
        if aim.resource.group:
            details["group"] = aim.resource.group
        return codec.answer(codec.success() | {"details": details})

    async def _delete_collection(self, request: web.Request, aim: Target) -> web.Response:
        body = await codec.body_of(request, optional=True)
        options = codec.delete_options(body, request.query)
        page = select(self._registry.store, aim.resource, aim.namespace, request.query)
        admit, dry_run = _admit(request), codec.dry_run(request, body)
        for each in page.items:
            self._registry.delete(aim.resource, each.namespace, each.name, options, dry_run=dry_run, admit=admit)
        return codec.encoded(codec.list_bytes(aim, {"resourceVersion": str(self._registry.store.revision)}, page))

    async def _watch(self, request: web.Request, aim: Target) -> web.StreamResponse:
        query = dict(request.query)
        if aim.name:
            query["fieldSelector"] = f"metadata.name={aim.name}"
        watch = Watch(
            self._registry.store,
            aim.resource,
            aim.namespace,
            selectors.parse(aim.resource, query.get("labelSelector", ""), query.get("fieldSelector", "")),
            bookmarks=codec.flag(query, "allowWatchBookmarks"),
            bookmark_seconds=self._bookmark_seconds,
            seconds=float(query.get("timeoutSeconds") or _LONG_WATCH),
        )
        lines = tables.WatchLines(
            aim.resource, tables.wanted(request.headers.get("Accept", "")), codec.embedding(request)
        )
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        refusal: bytes | None = None
        try:
            watch.begin(query)
        except errors.ApiError as error:
            if error.code != 410:
                raise
            refusal = encode({"type": "ERROR", "object": error.status()}) + b"\n"
        try:
            await response.prepare(request)
            if refusal:
                await response.write(refusal)
            else:
                with contextlib.suppress(ConnectionResetError):
                    async for batch in watch.batches():
                        await response.write(b"".join(lines.line(notice) for notice in batch))
        finally:
            watch.end()
        await response.write_eof()
        return response


def patching(kind: str, patch: Any, aim: Target) -> Callable[[Json], Json]:
    """What the patch makes of an object. A resourceVersion in it is a precondition, as in a PUT."""
    if kind == patches.JSON_PATCH:
        return lambda present: patches.json_patch(present, patch)
    if not isinstance(patch, dict):
        raise errors.bad_request("error decoding patch: a patch of this type is an object")
    if kind == patches.MERGE_PATCH:
        return lambda present: cast(Json, patches.merge(present, patch))
    if kind == patches.STRATEGIC_PATCH and not aim.resource.custom:
        shape = strategic.shape_of(aim.resource.kind)
        return lambda present: strategic.merge(present, patch, shape)
    taken = [each for each in patches.CONTENT_TYPES if each != patches.STRATEGIC_PATCH or not aim.resource.custom]
    raise errors.unsupported_media_type(kind, taken)
