"""What the objects of rbac.authorization.k8s.io allow.

Source: k8s.io/kubernetes/pkg/registry/rbac/validation/rule.go and pkg/apis/rbac/v1/evaluation_helpers.go. Left out is
what nothing here uses: aggregated ClusterRoles, rules about other URLs, and the check that nobody grants more than he
has, for only administrators write these objects here.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.sandbox.apiserver.resources import BY_KIND, Json, Resource
from tests.sandbox.apiserver.store import Change, Store
from tests.sandbox.apiserver.users import MASTERS, User

_API = "rbac.authorization.k8s.io/v1"
ROLES, CLUSTER_ROLES = BY_KIND[_API, "Role"], BY_KIND[_API, "ClusterRole"]
BINDINGS, CLUSTER_BINDINGS = BY_KIND[_API, "RoleBinding"], BY_KIND[_API, "ClusterRoleBinding"]
_ALL = "*"


@dataclass(frozen=True)
class Attributes:
    """What a request asks for. `name` is empty for a collection, and for a create, whose name is in the body."""

    verb: str
    group: str
    resource: str
    subresource: str
    namespace: str
    name: str

    @property
    def path(self) -> str:
        """As rules name it: `pods`, `pods/status`."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource

    def __str__(self) -> str:
        place = f'in the namespace "{self.namespace}"' if self.namespace else "at the cluster scope"
        return f'{self.verb} resource "{self.path}" in API group "{self.group}" {place}'


@dataclass(frozen=True)
class Rule:
    verbs: frozenset[str]
    groups: frozenset[str]
    resources: frozenset[str]
    names: frozenset[str]
    """Empty: any."""

    @classmethod
    def read(cls, body: Json) -> "Rule":
        fields = ("verbs", "apiGroups", "resources", "resourceNames")
        return cls(*(frozenset(body.get(field) or ()) for field in fields))

    def allows(self, asked: Attributes) -> bool:
        resources = {_ALL, asked.path} | ({f"*/{asked.subresource}"} if asked.subresource else set())
        return bool(
            self.verbs & {_ALL, asked.verb}
            and self.groups & {_ALL, asked.group}
            and self.resources & resources
            and (not self.names or asked.name in self.names)
        )


Authorization = tuple[str, Rule]
"""The namespace in which a rule holds, empty for everywhere; and the rule."""


class Rights:
    """The grants of each user, read from the store once and again after a change."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[User, list[Authorization]] = {}
        for resource in (ROLES, CLUSTER_ROLES, BINDINGS, CLUSTER_BINDINGS):
            store.follow(resource, self._changed)

    def allow(self, user: User, asked: Attributes) -> bool:
        if MASTERS in user.groups:
            return True
        if user not in self._known:
            self._known[user] = list(self._grants(user))
        return any(place in ("", asked.namespace) and rule.allows(asked) for place, rule in self._known[user])

    def _changed(self, _: Change) -> None:
        self._known.clear()

    def _grants(self, user: User) -> Iterator[Authorization]:
        for resource in (BINDINGS, CLUSTER_BINDINGS):
            for binding in self._store.all(resource):
                if any(_means(subject, user, binding.namespace) for subject in binding.object.get("subjects") or ()):
                    for rule in self._rules(binding.object["roleRef"], binding.namespace):
                        yield binding.namespace, rule

    def _rules(self, reference: Json, namespace: str) -> Iterator[Rule]:
        resource: Resource = BY_KIND[_API, reference["kind"]]
        role = self._store.get(resource, namespace if resource.namespaced else "", reference["name"])
        yield from map(Rule.read, (role.object.get("rules") or ()) if role else ())


def _means(subject: Json, user: User, namespace: str) -> bool:
    match subject["kind"]:
        case "ServiceAccount":
            return user.name == f"system:serviceaccount:{subject.get('namespace') or namespace}:{subject['name']}"
        case "Group":
            return subject["name"] in user.groups
        case _:
            return bool(subject["name"] == user.name)
