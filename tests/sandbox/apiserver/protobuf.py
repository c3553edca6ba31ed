"""The little protobuf that kubectl sends: its typed `create` commands and evictions use nothing else.

A body is b"k8s\\0" and a runtime.Unknown, which holds the kind and the encoded object. Numbers are those of the
generated.proto files of k8s.io/api and k8s.io/apimachinery. Answers are always JSON, which every client accepts.
"""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.sandbox.apiserver import errors
from tests.sandbox.apiserver.resources import Json

CONTENT_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"
_VARINT, _LENGTH = 0, 2


@dataclass(frozen=True)
class Field:
    """A field of a message: its JSON name and form."""

    name: str
    form: str = "text"
    """text, bytes, number, flag, message, or map of text to text or bytes (`map`, `bytes map`)."""
    message: Mapping[int, "Field"] = field(default_factory=dict)
    repeated: bool = False


_OWNER = {
    1: Field("kind"),
    3: Field("name"),
    4: Field("uid"),
    5: Field("apiVersion"),
    6: Field("controller", "flag"),
    7: Field("blockOwnerDeletion", "flag"),
}
_META = {
    1: Field("name"),
    2: Field("generateName"),
    3: Field("namespace"),
    5: Field("uid"),
    6: Field("resourceVersion"),
    11: Field("labels", "map"),
    12: Field("annotations", "map"),
    13: Field("ownerReferences", "message", _OWNER, repeated=True),
    14: Field("finalizers", repeated=True),
}
_METADATA = Field("metadata", "message", _META)
_RULE = {
    1: Field("verbs", repeated=True),
    2: Field("apiGroups", repeated=True),
    3: Field("resources", repeated=True),
    4: Field("resourceNames", repeated=True),
    5: Field("nonResourceURLs", repeated=True),
}
_SUBJECT = {1: Field("kind"), 2: Field("apiGroup"), 3: Field("name"), 4: Field("namespace")}
_ROLE_REFERENCE = {1: Field("apiGroup"), 2: Field("kind"), 3: Field("name")}
_ROLE = {1: _METADATA, 2: Field("rules", "message", _RULE, repeated=True)}
_BINDING = {
    1: _METADATA,
    2: Field("subjects", "message", _SUBJECT, repeated=True),
    3: Field("roleRef", "message", _ROLE_REFERENCE),
}
_DELETE_OPTIONS = {
    1: Field("gracePeriodSeconds", "number"),
    2: Field("preconditions", "message", {1: Field("uid"), 2: Field("resourceVersion")}),
    3: Field("orphanDependents", "flag"),
    4: Field("propagationPolicy"),
    5: Field("dryRun", repeated=True),
}

_MESSAGES: dict[str, Mapping[int, Field]] = {
    "Namespace": {1: _METADATA},
    "ServiceAccount": {1: _METADATA},
    "ConfigMap": {
        1: _METADATA,
        2: Field("data", "map"),
        3: Field("binaryData", "bytes map"),
        4: Field("immutable", "flag"),
    },
    "Secret": {
        1: _METADATA,
        2: Field("data", "bytes map"),
        3: Field("type"),
        4: Field("stringData", "map"),
        5: Field("immutable", "flag"),
    },
    "PriorityClass": {
        1: _METADATA,
        2: Field("value", "number"),
        3: Field("globalDefault", "flag"),
        4: Field("description"),
        5: Field("preemptionPolicy"),
    },
    "Role": _ROLE,
    "ClusterRole": _ROLE,
    "RoleBinding": _BINDING,
    "ClusterRoleBinding": _BINDING,
    "Eviction": {1: _METADATA, 2: Field("deleteOptions", "message", _DELETE_OPTIONS)},
    "DeleteOptions": _DELETE_OPTIONS,
}
_UNKNOWN = {1: Field("type", "message", {1: Field("apiVersion"), 2: Field("kind")}), 2: Field("raw", "raw")}


def decode(content: bytes) -> Json:
    """The object. Raises BadRequest for what is broken, UnsupportedMediaType for a kind that is not known here."""
    if not content.startswith(_MAGIC):
        raise errors.bad_request("the body is not Kubernetes protobuf: it does not begin with k8s")
    try:
        envelope = _message(content[len(_MAGIC) :], _UNKNOWN)
        kind = envelope["type"]["kind"]
        if kind not in _MESSAGES:
            accepted = ("application/json", "application/yaml")
            raise errors.unsupported_media_type(f"{CONTENT_TYPE} of a {kind}: send JSON", accepted)
        return {**envelope["type"], **_message(envelope.get("raw", b""), _MESSAGES[kind])}
    except (IndexError, KeyError, UnicodeDecodeError) as error:
        raise errors.bad_request(f"the body is not Kubernetes protobuf: {error!r}") from error


def _message(content: bytes, fields: Mapping[int, Field]) -> Json:
    message: Json = {}
    for number, value in _pairs(content):
        known = fields.get(number)
        if known is None:
            continue
        decoded = _value(known, value)
        if known.repeated:
            message.setdefault(known.name, []).append(decoded)
        elif known.form.endswith("map"):
            message.setdefault(known.name, {}).update(decoded)
        elif decoded != "":
            message[known.name] = decoded
    return message


def _value(known: Field, value: int | bytes) -> object:
    if isinstance(value, int):
        return bool(value) if known.form == "flag" else value
    match known.form:
        case "raw":
            return value
        case "message":
            return _message(value, known.message)
        case "map":
            entry = _message(value, {1: Field("key"), 2: Field("value")})
            return {entry.get("key", ""): entry.get("value", "")}
        case "bytes map":
            entry = _message(value, {1: Field("key"), 2: Field("value", "bytes")})
            return {entry.get("key", ""): entry.get("value", "")}
        case "bytes":
            return base64.b64encode(value).decode()
    return value.decode()


def _pairs(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values: numbers for varints, bytes for the rest. Signed numbers are two's complement."""
    place = 0
    while place < len(content):
        tag, place = _varint(content, place)
        if tag & 7 == _VARINT:
            number, place = _varint(content, place)
            yield tag >> 3, number - (1 << 64) if number >> 63 else number
        elif tag & 7 == _LENGTH:
            length, place = _varint(content, place)
            if place + length > len(content):
                raise IndexError(f"field {tag >> 3} is cut off")
            yield tag >> 3, content[place : place + length]
            place += length
        else:
            raise KeyError(f"wire type {tag & 7}")


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
