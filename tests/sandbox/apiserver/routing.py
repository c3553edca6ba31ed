"""What a request is about: its path and method, told apart once, for authorisation and for the handlers alike."""

from dataclasses import dataclass

from tests.sandbox.apiserver.resources import BY_PATH, Resource

_NAMESPACE_SUBRESOURCES = frozenset({"status", "finalize"})
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}


@dataclass(frozen=True)
class Target:
    """The resource, and where there are any, namespace, name and subresource."""

    resource: Resource
    namespace: str
    name: str
    subresource: str


def target(path: str) -> Target | None:
    """None for a path that is not one of a resource that is served."""
    parts = path.strip("/").split("/")
    if parts[:2] == ["api", "v1"]:
        group, version, rest = "", "v1", parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = ""
    if len(rest) > 2 and rest[0] == "namespaces" and not (len(rest) == 3 and rest[2] in _NAMESPACE_SUBRESOURCES):
        namespace, rest = rest[1], rest[2:]
    if not 1 <= len(rest) <= 3:
        return None
    plural, name, subresource = (*rest, "", "")[:3]
    resource = BY_PATH.get((group, version, plural))
    if resource is None or (namespace and not resource.namespaced):
        return None
    if name and resource.namespaced and not namespace:
        return None
    if subresource and subresource not in resource.subresources:
        return None
    return Target(resource, namespace, name, subresource)


def verb(method: str, aim: Target, *, watch: bool) -> str:
    """As RBAC names it: get, list, watch, create, update, patch, delete, deletecollection."""
    if method == "GET":
        return "watch" if watch else "get" if aim.name else "list"
    if method == "DELETE":
        return "delete" if aim.name else "deletecollection"
    return _VERBS.get(method, method.lower())
