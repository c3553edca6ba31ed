"""Merge patch (RFC 7386), JSON patch (RFC 6902), and which content type means which kind of patch."""

import copy
from typing import Any

from tests.sandbox.apiserver import errors
from tests.sandbox.apiserver.resources import Json

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
CONTENT_TYPES = (JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, APPLY_PATCH)


def merge(target: Any, patch: Any) -> Any:
    """A merge patch applied; neither argument is changed."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def json_patch(target: Json, operations: Any) -> Json:
    """A JSON patch applied to a copy. Raises BadRequest for a malformed one, Invalid when it doesn't fit the object."""
    if not isinstance(operations, list):
        raise errors.bad_request("error decoding patch: a JSON patch is a list of operations")
    document: Any = copy.deepcopy(target)
    for operation in operations:
        try:
            document = _operate(document, operation)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            message = f"the server rejected our request due to an error in our request: {operation!r}: {error}"
            raise errors.ApiError(422, "Invalid", message, {}) from error
    if not isinstance(document, dict):
        raise errors.bad_request("a JSON patch must leave an object")
    return document


def _operate(document: Any, operation: Json) -> Any:
    path = _pointer(operation["path"])
    match operation["op"]:
        case "add":
            return _put(document, path, copy.deepcopy(operation["value"]), replace=False)
        case "replace":
            _look_up(document, path)
            return _put(document, path, copy.deepcopy(operation["value"]), replace=True)
        case "remove":
            return _take(document, path)
        case "test":
            if _look_up(document, path) != operation["value"]:
                raise ValueError(f"testing path {operation['path']} value failed")
            return document
        case "copy":
            value = copy.deepcopy(_look_up(document, _pointer(operation["from"])))
            return _put(document, path, value, replace=False)
        case "move":
            value = _look_up(document, _pointer(operation["from"]))
            return _put(_take(document, _pointer(operation["from"])), path, value, replace=False)
    raise ValueError(f"unknown operation {operation['op']!r}")


def _pointer(text: str) -> list[str]:
    if text and not text.startswith("/"):
        raise ValueError(f"path {text!r} does not start with /")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _index(part: str, length: int) -> int:
    index = int(part)
    if not 0 <= index < length:
        raise IndexError(f"index {index} out of bounds")
    return index


def _look_up(document: Any, path: list[str]) -> Any:
    for part in path:
        document = document[_index(part, len(document))] if isinstance(document, list) else document[part]
    return document


def _put(document: Any, path: list[str], value: Any, *, replace: bool) -> Any:
    if not path:
        return value
    parent = _look_up(document, path[:-1])
    last = path[-1]
    if not isinstance(parent, list):
        parent[last] = value
    elif replace:
        parent[_index(last, len(parent))] = value
    elif last == "-":
        parent.append(value)
    else:
        parent.insert(_index(last, len(parent) + 1), value)
    return document


def _take(document: Any, path: list[str]) -> Any:
    parent = _look_up(document, path[:-1])
    if isinstance(parent, list):
        del parent[_index(path[-1], len(parent))]
    else:
        del parent[path[-1]]
    return document
