"""The door: who asks, whether his rights and the admission policies allow it, and a line about it in the audit log.

The log has the form of audit.k8s.io/v1, level Metadata, and only what service accounts ask for: from it tests learn
that the rights of our programs suffice, and which of them are used.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.sandbox.apiserver import errors, policies, selectors, users
from tests.sandbox.apiserver.policies import Denied, Policies
from tests.sandbox.apiserver.rbac import Attributes, Rights
from tests.sandbox.apiserver.registry import Admit
from tests.sandbox.apiserver.resources import NAMESPACES, Json
from tests.sandbox.apiserver.routing import Target
from tests.sandbox.apiserver.store import Store
from tests.sandbox.apiserver.users import ADMINISTRATOR, User

_DECISION = "authorization.k8s.io/decision"


@dataclass(frozen=True)
class Request:
    """What stands in the audit log."""

    user: str
    asked: Attributes
    allowed: bool
    uri: str
    """Path and query."""

    def __str__(self) -> str:
        return f"{self.user} {'may' if self.allowed else 'may not'} {self.asked} (name {self.asked.name!r})"


class Guard:
    def __init__(self, store: Store, audit_log: Path | None = None) -> None:
        self._store = store
        self._rights = Rights(store)
        self._policies = Policies(store)
        self._log = audit_log.open("a", buffering=1) if audit_log else None

    def user(self, authorization: str) -> User:
        """Raises Unauthorized."""
        return users.authenticate(authorization, self._store)

    def check(self, user: User, verb: str, aim: Target, query: Mapping[str, str], uri: str) -> None:
        """Raises Forbidden."""
        asked = attributes(verb, aim, query)
        allowed = self.allows(user, asked)
        self._write(user, asked, uri, allowed)
        if not allowed:
            raise errors.forbidden(aim.resource, asked.name, f'User "{user.name}" cannot {asked}')

    def _write(self, user: User, asked: Attributes, uri: str, allowed: bool) -> None:
        if self._log and user != ADMINISTRATOR:
            self._log.write(_line(user, asked, uri, allowed) + "\n")

    def admitting(self, user: User, verb: str, aim: Target, uri: str) -> Admit:
        """What a write of this user is checked by."""

        def admit(operation: str, name: str, body: Json | None, old: Json | None) -> None:
            asked = policies.Request(user, operation, aim.resource, aim.subresource, aim.namespace, name, body, old)
            try:
                self._policies.check(asked)
            except Denied:
                self._write(user, attributes(verb, aim, {}), uri, False)
                raise

        return admit

    def allows(self, user: User, asked: Attributes) -> bool:
        return self._rights.allow(user, asked)

    def close(self) -> None:
        if self._log:
            self._log.close()


def attributes(verb: str, aim: Target, query: Mapping[str, str]) -> Attributes:
    """Source: k8s.io/apiserver/pkg/endpoints/request/requestinfo.go. A list of the one object that a field selector
    names counts as one of that name, and a namespace is in itself."""
    name = aim.name or selectors.parse(aim.resource, "", query.get("fieldSelector", "")).name
    namespace = aim.name if aim.resource is NAMESPACES else aim.namespace
    return Attributes(verb, aim.resource.group, aim.resource.plural, aim.subresource, namespace, name)


def _line(user: User, asked: Attributes, uri: str, allowed: bool) -> str:
    return json.dumps(
        {
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": "Metadata",
            "verb": asked.verb,
            "requestURI": uri,
            "user": {"username": user.name, "groups": sorted(user.groups)},
            "objectRef": {
                "apiGroup": asked.group,
                "resource": asked.resource,
                "subresource": asked.subresource,
                "namespace": asked.namespace,
                "name": asked.name,
            },
            "annotations": {_DECISION: "allow" if allowed else "forbid"},
        }
    )


def requests(audit_log: Path) -> Iterator[Request]:
    """What was asked so far; the last line may still be being written."""
    for line in audit_log.read_text().splitlines(keepends=True) if audit_log.exists() else ():
        if line.endswith("\n"):
            event = json.loads(line)
            at = event["objectRef"]
            asked = Attributes(
                event["verb"], at["apiGroup"], at["resource"], at["subresource"], at["namespace"], at["name"]
            )
            allowed = event["annotations"][_DECISION] == "allow"
            yield Request(event["user"]["username"], asked, allowed, event["requestURI"])
