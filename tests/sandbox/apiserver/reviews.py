"""Questions about rights: who am I, may I, may somebody else. Answered and not stored.

Source: k8s.io/kubernetes/pkg/registry/authorization and .../authentication/selfsubjectreview.
"""

from collections.abc import Awaitable, Callable

from aiohttp import web

from tests.sandbox.apiserver import codec, errors
from tests.sandbox.apiserver.guard import Guard
from tests.sandbox.apiserver.rbac import Attributes
from tests.sandbox.apiserver.resources import Json
from tests.sandbox.apiserver.users import MASTERS, User

_AUTHORIZATION = "/apis/authorization.k8s.io/v1"
_AUTHENTICATION = "/apis/authentication.k8s.io/v1"


def add_routes(app: web.Application, guard: Guard) -> None:
    def asking(request: web.Request) -> User:
        return guard.user(request.headers.get("Authorization", ""))

    async def who(request: web.Request) -> web.Response:
        user = asking(request)
        body = await codec.body_of(request)
        info = {"username": user.name, "groups": sorted(user.groups)} | ({"extra": user.extra} if user.extra else {})
        return codec.answer(body | {"status": {"userInfo": info}}, 201)

    async def may_i(request: web.Request) -> web.Response:
        return await _answer(request, lambda spec: asking(request), guard)

    async def may_he(request: web.Request) -> web.Response:
        if MASTERS not in asking(request).groups:
            raise errors.ApiError(403, "Forbidden", "subjectaccessreviews.authorization.k8s.io is forbidden")
        return await _answer(request, _subject, guard)

    routes: dict[str, Callable[[web.Request], Awaitable[web.Response]]] = {
        f"{_AUTHENTICATION}/selfsubjectreviews": who,
        f"{_AUTHORIZATION}/selfsubjectaccessreviews": may_i,
        f"{_AUTHORIZATION}/subjectaccessreviews": may_he,
    }
    for path, handler in routes.items():
        app.router.add_post(path, handler)


async def _answer(request: web.Request, user: Callable[[Json], User], guard: Guard) -> web.Response:
    body = await codec.body_of(request)
    spec = body["spec"]
    asked = spec["resourceAttributes"]
    fields = ("verb", "group", "resource", "subresource", "namespace", "name")
    allowed = guard.allows(user(spec), Attributes(*(asked.get(field, "") for field in fields)))
    return codec.answer(body | {"status": {"allowed": allowed}}, 201)


def _subject(spec: Json) -> User:
    return User(spec.get("user", ""), frozenset(spec.get("groups") or ()))
