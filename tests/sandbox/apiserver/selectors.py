"""Label and field selectors, the whole grammar. Source: k8s.io/apimachinery/pkg/labels and pkg/fields."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tests.sandbox.apiserver import errors
from tests.sandbox.apiserver.resources import Json, Resource

_TOKEN = re.compile(r"\s*(==|!=|=|!|\(|\)|,|[^\s=!(),<>]+|[<>])")


@dataclass(frozen=True)
class Requirement:
    """`key operator values` on a label or field. Operators: in, notin, exists, absent, >, <."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def admits(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        match self.operator:
            case "in":
                return value is not None and value in self.values
            case "notin":
                return value is None or value not in self.values
            case "exists":
                return value is not None
            case "absent":
                return value is None
        (limit,) = self.values
        try:
            number = int(value) if value is not None else None
        except ValueError:
            return False
        return number is not None and (number > int(limit) if self.operator == ">" else number < int(limit))


@dataclass(frozen=True)
class Selector:
    """What a request selects. Empty selects everything."""

    resource: Resource
    labels: tuple[Requirement, ...] = ()
    fields: tuple[Requirement, ...] = ()

    @property
    def name(self) -> str:
        """The one name that it admits, empty when there may be others."""
        named = (each.values for each in self.fields if (each.key, each.operator) == ("metadata.name", "in"))
        return next(iter(next(named, ())), "")

    def admits(self, body: Json) -> bool:
        if self.labels:
            labels = body["metadata"].get("labels") or {}
            if not all(each.admits(labels) for each in self.labels):
                return False
        if self.fields:
            values = fields_of(self.resource, body)
            return all(each.admits(values) for each in self.fields)
        return True


def parse(resource: Resource, labels: str, fields: str) -> Selector:
    """Raises BadRequest for what can't be parsed and for fields that the resource does not index."""
    return Selector(resource, _labels(labels), _fields(resource, labels, fields))


def _labels(text: str) -> tuple[Requirement, ...]:
    tokens = _Tokens(text)
    requirements = []
    while tokens.peek():
        requirements.append(_requirement(tokens))
        if tokens.peek():
            tokens.expect(",")
            if not tokens.peek():
                raise tokens.wrong("an identifier after ','")
    return tuple(requirements)


def _requirement(tokens: "_Tokens") -> Requirement:
    if tokens.peek() == "!":
        tokens.next()
        return Requirement(tokens.word(), "absent")
    key = tokens.word()
    match tokens.peek():
        case "" | ",":
            return Requirement(key, "exists")
        case "=" | "==" | "!=":
            operator = "notin" if tokens.next() == "!=" else "in"
            value = tokens.word() if tokens.peek() not in ("", ",") else ""
            return Requirement(key, operator, frozenset([value]))
        case "in" | "notin" as operator:
            tokens.next()
            return Requirement(key, operator, tokens.values())
        case ">" | "<" as operator:
            tokens.next()
            return Requirement(key, operator, frozenset([tokens.number()]))
    raise tokens.wrong("one of '=', '!=', '==', 'in', 'notin', '<', '>'")


class _Tokens:
    """The tokens of a label selector, one after the other. The empty one is the end."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _TOKEN.findall(text)
        if "".join(self._tokens) != re.sub(r"\s", "", text):
            raise self.wrong("a selector")

    def peek(self) -> str:
        return self._tokens[0] if self._tokens else ""

    def next(self) -> str:
        return self._tokens.pop(0) if self._tokens else ""

    def expect(self, token: str) -> None:
        if self.next() != token:
            raise self.wrong(repr(token))

    def word(self) -> str:
        token = self.next()
        if not token or token in "(),=!<>" or token in ("==", "!="):
            raise self.wrong("an identifier")
        return token

    def number(self) -> str:
        token = self.word()
        if not token.lstrip("-").isdigit():
            raise self.wrong("an integer for '<' and '>'")
        return token

    def values(self) -> frozenset[str]:
        self.expect("(")
        alternatives = set()
        while True:
            alternatives.add(self.word() if self.peek() not in (",", ")") else "")
            token = self.next()
            if token == ")":
                return frozenset(alternatives)
            if token != ",":
                raise self.wrong("',' or ')'")

    def wrong(self, expected: str) -> errors.ApiError:
        return errors.bad_request(f"unable to parse requirement: found {self._text!r}, expected: {expected}")


_FIELD = re.compile(r"([^=!]+?)(==|!=|=)(.*)")


def _fields(resource: Resource, labels: str, text: str) -> tuple[Requirement, ...]:
    requirements = []
    for term in filter(None, re.split(r"(?<!\\),", text)):
        match = _FIELD.fullmatch(term)
        if match is None:
            raise errors.bad_request(f"invalid selector: {text!r}; can't understand {term!r}")
        key, operator, value = match.groups()
        if key not in _FIELDS_OF_ALL and key not in _INDEXED.get(resource.kind, {}):
            raise errors.bad_request(
                f'Unable to find "{resource.group}/{resource.version}, Resource={resource.plural}" that match label'
                f' selector "{labels}", field selector "{text}": field label not supported: {key}'
            )
        value = re.sub(r"\\([\\,=])", r"\1", value)
        requirements.append(Requirement(key, "notin" if operator == "!=" else "in", frozenset([value])))
    return tuple(requirements)


_FIELDS_OF_ALL = ("metadata.name", "metadata.namespace")

# Source: the *ToSelectableFields functions of pkg/registry; an empty one means that a missing field reads as "".
_INDEXED: dict[str, dict[str, str]] = {
    "Pod": {
        "spec.nodeName": "",
        "spec.restartPolicy": "",
        "spec.schedulerName": "",
        "spec.serviceAccountName": "",
        "spec.hostNetwork": "false",
        "status.phase": "",
        "status.podIP": "",
        "status.nominatedNodeName": "",
    },
    "Event": {
        "involvedObject.kind": "",
        "involvedObject.namespace": "",
        "involvedObject.name": "",
        "involvedObject.uid": "",
        "involvedObject.apiVersion": "",
        "involvedObject.resourceVersion": "",
        "involvedObject.fieldPath": "",
        "reason": "",
        "reportingComponent": "",
        "source": "",
        "type": "",
    },
    "Node": {"spec.unschedulable": "false"},
    "Namespace": {"status.phase": ""},
    "Secret": {"type": ""},
    "Service": {"spec.clusterIP": "", "spec.type": ""},
    "Job": {"status.successful": "0"},
    "ReplicaSet": {"status.replicas": "0"},
}


def fields_of(resource: Resource, body: Json) -> dict[str, str]:
    """The values of the fields that a selector on this resource may name."""
    metadata = body["metadata"]
    fields = {"metadata.name": metadata["name"], "metadata.namespace": metadata.get("namespace", "")}
    for path, default in _INDEXED.get(resource.kind, {}).items():
        fields[path] = _value(body, path, default)
    return fields


def _value(body: Json, path: str, default: str) -> str:
    if path == "source":
        return str((body.get("source") or {}).get("component") or body.get("reportingComponent") or "")
    if path == "status.successful":
        path = "status.succeeded"
    value: object = body
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        return default
    return str(value).lower() if isinstance(value, bool) else str(value)
