"""What may be a name, a label or an annotation. Source: k8s.io/apimachinery/pkg/util/validation."""

import re
from collections.abc import Iterator

from tests.sandbox.apiserver.errors import FieldError, invalid_value, required, too_long
from tests.sandbox.apiserver.resources import Json, Resource

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_QUALIFIED = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"

_LABEL_WORDS = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end"
    f" with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{_LABEL}')"
)
_SUBDOMAIN_WORDS = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start"
    " and end with an alphanumeric character (e.g. 'example.com', regex used for validation is"
    f" '{_LABEL}(\\.{_LABEL})*')"
)
_VALUE_WORDS = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start"
    " and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation"
    r" is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_QUALIFIED_WORDS = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric"
    " character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is"
    f" '{_QUALIFIED}')"
)
_ANNOTATIONS_LIMIT = 256 * 1024

_DNS_LABEL_KINDS = frozenset({"Namespace", "Service"})
_PATH_SEGMENT_KINDS = frozenset({"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"})


def check_name(resource: Resource, name: str) -> Iterator[FieldError]:
    field = "metadata.name"
    if not name:
        yield required(field, "name or generateName is required")
    elif resource.kind in _PATH_SEGMENT_KINDS:
        if name in (".", "..") or "/" in name or "%" in name:
            yield invalid_value(field, name, "may not contain '/' or '%', and may not be '.' or '..'")
    elif resource.kind in _DNS_LABEL_KINDS:
        if len(name) > 63:
            yield invalid_value(field, name, "must be no more than 63 characters")
        if not re.fullmatch(_LABEL, name):
            yield invalid_value(field, name, _LABEL_WORDS)
    else:
        yield from subdomain(field, name)
        if resource.kind == "CSIDriver" and len(name) > 63:
            yield too_long(field, 63)


def subdomain(field: str, value: str) -> Iterator[FieldError]:
    if len(value) > 253:
        yield invalid_value(field, value, "must be no more than 253 characters")
    if not re.fullmatch(_SUBDOMAIN, value):
        yield invalid_value(field, value, _SUBDOMAIN_WORDS)


def qualified(field: str, key: str) -> Iterator[FieldError]:
    """A label key, annotation key or finalizer: an optional DNS prefix and a name."""
    prefix, slash, name = key.rpartition("/")
    if slash and (not prefix or "/" in prefix or not re.fullmatch(_SUBDOMAIN, prefix)):
        yield invalid_value(field, key, f"prefix part {_SUBDOMAIN_WORDS}")
    if not name:
        yield invalid_value(field, key, "name part must be non-empty")
    elif len(name) > 63:
        yield invalid_value(field, key, "name part must be no more than 63 characters")
    elif not re.fullmatch(_QUALIFIED, name):
        yield invalid_value(field, key, _QUALIFIED_WORDS)


def check_labels(field: str, labels: Json) -> Iterator[FieldError]:
    for key, value in labels.items():
        yield from qualified(field, key)
        if not isinstance(value, str):
            yield invalid_value(field, value, "must be a string")
        elif len(value) > 63:
            yield invalid_value(field, value, "must be no more than 63 characters")
        elif value and not re.fullmatch(_QUALIFIED, value):
            yield invalid_value(field, value, _VALUE_WORDS)


def check_annotations(annotations: Json) -> Iterator[FieldError]:
    field = "metadata.annotations"
    for key, value in annotations.items():
        yield from qualified(field, key.lower())
        if not isinstance(value, str):
            yield invalid_value(field, value, "must be a string")
    if sum(len(key) + len(str(value)) for key, value in annotations.items()) > _ANNOTATIONS_LIMIT:
        yield too_long(field, _ANNOTATIONS_LIMIT)


def check_metadata(resource: Resource, metadata: Json) -> Iterator[FieldError]:
    """What holds for the metadata of every object."""
    yield from check_name(resource, metadata.get("name") or "")
    yield from check_labels("metadata.labels", metadata.get("labels") or {})
    yield from check_annotations(metadata.get("annotations") or {})
    for finalizer in metadata.get("finalizers") or []:
        yield from qualified("metadata.finalizers", finalizer)
        if "/" not in finalizer and finalizer not in ("orphan", "foregroundDeletion", "kubernetes"):
            yield invalid_value(
                "metadata.finalizers", finalizer, "name is neither a standard finalizer name nor is it fully qualified"
            )
    for place, owner in enumerate(metadata.get("ownerReferences") or []):
        for key in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(key):
                yield invalid_value(f"metadata.ownerReferences[{place}].{key}", "", f"{key} must not be empty")
