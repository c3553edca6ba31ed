"""Lists: selectors, pages that stay consistent, and what resourceVersion means for a list.

Source: the "Resource versions" and "Retrieving large results sets in chunks" parts of the Kubernetes API concepts.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from tests.sandbox.apiserver import errors, selectors
from tests.sandbox.apiserver.resources import Resource
from tests.sandbox.apiserver.store import Store, Stored

_TOO_OLD = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without"
    " the continue parameter, or use the continue token in this response to retrieve the remainder of the results."
    " Continuing with the provided token results in an inconsistent list - objects that were created, modified, or"
    " deleted between the time the first chunk was returned and now may show up in the list."
)


@dataclass(frozen=True)
class Page:
    """A part of a list, as of one revision."""

    items: list[Stored]
    revision: int
    proceed: str = ""
    """Token for the next page; empty on the last one."""
    remaining: int | None = None


def revision_of(query: Mapping[str, str]) -> int | None:
    """The parameter resourceVersion; None when it is not given. Raises BadRequest."""
    text = query.get("resourceVersion", "")
    if not text:
        return None
    if not text.isdecimal():
        raise errors.bad_request(
            f'resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing: invalid syntax'
        )
    return int(text)


def select(store: Store, resource: Resource, namespace: str, query: Mapping[str, str]) -> Page:
    """The page that a list request asks for. Raises BadRequest and Expired."""
    selector = selectors.parse(resource, query.get("labelSelector", ""), query.get("fieldSelector", ""))
    limit = int(query.get("limit") or 0)
    revision, start = _begin(store, resource, query)
    keys, stored = store.at(resource, namespace, revision, start)
    if not (selector.labels or selector.fields):
        chosen = [stored(key) for key in keys[: limit or None]]
        rest = keys[len(chosen) :]
        return Page(chosen, revision, _token(revision, rest[0]), len(rest)) if rest else Page(chosen, revision)
    matching = (each for each in map(stored, keys) if selector.admits(each.object))
    if not limit:
        return Page(list(matching), revision)
    chosen = list(islice(matching, limit))
    following = next(matching, None)
    return Page(chosen, revision, _token(revision, following.key)) if following else Page(chosen, revision)


def _begin(store: Store, resource: Resource, query: Mapping[str, str]) -> tuple[int, str]:
    """Revision to list at, and the key to begin with."""
    wanted = revision_of(query)
    if token := query.get("continue", ""):
        if wanted:
            raise errors.bad_request("specifying resource version is not allowed when using continue")
        revision, start = _read_token(token)
        try:
            store.since(resource, revision)
        except errors.ApiError as error:
            if error.code != 410:
                raise
            expired = errors.expired(_TOO_OLD)
            expired.metadata = {"continue": _token(store.revision, start)}
            raise expired from None
        return revision, start
    if query.get("resourceVersionMatch") == "Exact":
        if not wanted:
            raise errors.bad_request('resourceVersionMatch: Forbidden: "Exact" is forbidden for resourceVersion "0"')
        store.since(resource, wanted)
        return wanted, ""
    if wanted is not None and wanted > store.revision:
        raise errors.too_new(wanted, store.revision)
    return store.revision, ""


def _token(revision: int, start: str) -> str:
    text = json.dumps({"v": "meta.k8s.io/v1", "rv": revision, "start": start}, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read_token(token: str) -> tuple[int, str]:
    try:
        token_fields = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        return int(token_fields["rv"]), str(token_fields["start"])
    except (ValueError, KeyError, TypeError, binascii.Error):
        raise errors.bad_request("continue key is not valid: start a new list without it") from None
