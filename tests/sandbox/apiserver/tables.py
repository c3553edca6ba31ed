"""The forms other than the object itself that a client may ask for: tables as kubectl prints them, and metadata only.

Source of the columns: pkg/printers/internalversion/printers.go.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.sandbox.apiserver import columns
from tests.sandbox.apiserver.resources import Json, Resource
from tests.sandbox.apiserver.store import Stored, encode, watch_line
from tests.sandbox.apiserver.watching import BOOKMARK, Notice


@dataclass(frozen=True)
class Form:
    """What Accept asks for. Name empty: the object."""

    name: str = ""
    version: str = "v1"

    @property
    def api_version(self) -> str:
        return f"meta.k8s.io/{self.version}"


_FORMS = ("Table", "PartialObjectMetadata", "PartialObjectMetadataList")


def wanted(accept: str) -> Form:
    """The first form of an Accept header that is served."""
    for entry in accept.split(","):
        parts = [part.strip() for part in entry.split(";")]
        parameters = dict(re.findall(r"(\w+)=([\w.]+)", ";".join(parts[1:])))
        if parts[0] not in ("application/json", "*/*", ""):
            continue
        if "as" not in parameters:
            return Form()
        if parameters["as"] in _FORMS and parameters.get("v") in ("v1", "v1beta1"):
            return Form(parameters["as"], parameters["v"])
    return Form()


def metadata_only(stored: Stored, form: Form) -> Json:
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": form.api_version,
        "metadata": stored.object["metadata"],
    }


def table(
    resource: Resource, items: Sequence[Stored], metadata: Json, form: Form, embed: str, *, head: bool = True
) -> Json:
    chosen = columns.of(resource)
    definitions = [
        {
            "name": column.name,
            "type": "string",
            "format": "name" if column.name == "Name" else "",
            "description": "",
            "priority": column.priority,
        }
        for column in chosen
    ]
    return {
        "kind": "Table",
        "apiVersion": form.api_version,
        "metadata": metadata,
        "columnDefinitions": definitions if head else None,
        "rows": [
            {"cells": [column.cell(each.object) for column in chosen], **_embedded(each, form, embed)} for each in items
        ],
    }


def _embedded(stored: Stored, form: Form, embed: str) -> Json:
    if embed == "None":
        return {}
    if embed == "Object":
        kind = {"kind": stored.resource.kind, "apiVersion": stored.resource.api_version}
        return {"object": kind | stored.object}
    return {"object": metadata_only(stored, form)}


class WatchLines:
    """The lines of a watch in the form that its client accepts. Of a table, only the first has the columns."""

    def __init__(self, resource: Resource, form: Form, embed: str) -> None:
        self._resource = resource
        self._form = form
        self._embed = embed
        self._head = True
        self._render: dict[str, Callable[[Stored], Json]] = {
            "Table": self._row,
            "PartialObjectMetadata": lambda stored: metadata_only(stored, form),
        }

    def line(self, notice: Notice) -> bytes:
        if notice.type == BOOKMARK or notice.stored is None:
            return encode({"type": BOOKMARK, "object": self._bookmark(notice)}) + b"\n"
        render = self._render.get(self._form.name)
        if render is not None:
            return encode({"type": notice.type, "object": render(notice.stored)}) + b"\n"
        return notice.change.line if notice.change else watch_line(notice.type, notice.stored)

    def _row(self, stored: Stored) -> Json:
        metadata = {"resourceVersion": str(stored.revision)}
        row = table(self._resource, [stored], metadata, self._form, self._embed, head=self._head)
        self._head = False
        return row

    def _bookmark(self, notice: Notice) -> Json:
        metadata: Json = {"resourceVersion": str(notice.revision), "creationTimestamp": None}
        if notice.initial_end:
            metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
        body = {"kind": self._resource.kind, "apiVersion": self._resource.api_version, "metadata": metadata}
        if self._form.name != "Table":
            return body
        row = {"cells": [], "object": body}
        return {"kind": "Table", "apiVersion": self._form.api_version, "metadata": metadata, "rows": [row]}
