"""The verbs of the API server: plain JSON objects in and out, typed errors, and an end to every request.

There are no generated models, because building them costs more than the request itself. Each request
has a total deadline, from the first byte sent to the last one read, so a server that hangs is only one that fails.
There is no client-side rate limit: the server has its own, and answers 429 with a time, which comes out as
Unreachable.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, closing
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import aiohttp

from kube import kubeconfig as configuration
from kube.errors import Json, Unreachable, from_status
from kube.resources import Resource
from kube.transport import Transport

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"

Objects = list[Json]
ReadJson = Callable[[bytes | bytearray], Any]
"""Raises ValueError for what is no JSON, as json.loads."""

_WATCH_GRACE = 15.0
"""Seconds after which a server that should have ended a watch has forgotten it."""
_PAGE = 500
_PAGE_BYTES = 8 << 20
"""What a page may have in JSON: whoever may create objects chooses how large they are, and all of it is in memory
several times while it is read."""
_EVENT_BYTES = 16 << 20
"""More than any object has in JSON: etcd takes 1.5 MiB, which escapes make up to six times as long."""


@dataclass(frozen=True)
class Page:
    """Part of a collection. `resource_version` is that of the whole list: a watch from it misses nothing."""

    items: Objects
    resource_version: str


class Cluster:
    """A connection to one API server. Methods raise the family of errors.ApiError."""

    def __init__(
        self,
        transport: Transport,
        deadline: float,
        before_write: Callable[[], None] = lambda: None,
        read_json: ReadJson = json.loads,
    ) -> None:
        self._transport = transport
        self._deadline = deadline
        self._before_write = before_write
        self._read_json = read_json

    @classmethod
    async def connect(
        cls,
        kubeconfig: str | None = None,
        context: str | None = None,
        *,
        program: str = "elastic-local",
        deadline: float = 30.0,
        read_json: ReadJson = json.loads,
    ) -> "Cluster":
        """Reads the configuration (kubeconfig.load) and opens no connection yet. `deadline`: seconds for
        each request. `program` names us in the server's audit log. `read_json`: who reads a lot has a faster one, which
        not every machine of a command has. Raises ConfigurationError."""
        connection = await configuration.load(kubeconfig, context)
        return cls(Transport(connection, kubeconfig, program, context), deadline, read_json=read_json)

    def guarded(self, before_write: Callable[[], None]) -> "Cluster":
        """This connection, over which nothing is written unless `before_write`, asked at the last moment, lets it pass:
        it raises the ApiError that the write raises then. Closed with the original."""
        return Cluster(self._transport, self._deadline, before_write, self._read_json)

    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> "Cluster":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> Json:
        return await self._request("GET", resource.path(namespace, name))

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
    ) -> Objects:
        """All objects, as `pages` has them."""
        items: Objects = []
        async for page in self.pages(resource, namespace, label_selector=label_selector, field_selector=field_selector):
            items += page.items
        return items

    async def pages(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        limit: int = _PAGE,
    ) -> AsyncGenerator[Page, None]:
        """The collection in pieces of at most `limit` objects, and fewer where they are large, so that a large one is
        never in memory at once. Raises Gone when the list became too old on the way: begin again."""
        query = {"labelSelector": label_selector, "fieldSelector": field_selector}
        number = limit
        while True:
            query["limit"] = str(number)
            try:
                body = await self._request(
                    "GET", resource.path(namespace), query=query, most=_PAGE_BYTES if number > 1 else None
                )
            except _TooLarge:
                number = max(number // 4, 1)
                continue
            metadata = body.get("metadata") or {}
            version = str(metadata.get("resourceVersion") or "")
            if not version:
                # All lists have one. An empty object of some proxy must not look like a cluster without any objects.
                raise _unreachable(f"list of {resource}", ValueError("this is no list"))
            yield Page(body.get("items") or [], version)
            if not metadata.get("continue"):
                return
            query["continue"] = metadata["continue"]
            number = min(number + max(number // 4, 1), limit)  # not faster: one that is too large was made for nothing

    async def create(
        self, resource: Resource, body: Json, namespace: str | None = None, subresource: str | None = None
    ) -> Json:
        """`namespace` defaults to the object's own. A subresource (a pod's binding) is that of the object named in
        the body."""
        metadata = body["metadata"]
        name = metadata["name"] if subresource else None
        return await self._request(
            "POST", resource.path(namespace or metadata.get("namespace"), name, subresource), body
        )

    async def replace(
        self,
        resource: Resource,
        name: str,
        body: Json,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> Json:
        """With metadata.resourceVersion in the body: only if the object is still that version, else Conflict."""
        return await self._request("PUT", resource.path(namespace, name, subresource), body)

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: Json,
        namespace: str | None = None,
        subresource: str | None = None,
        content_type: str = MERGE,
    ) -> Json:
        """A resourceVersion in the body is a precondition."""
        return await self._request(
            "PATCH", resource.path(namespace, name, subresource), body, content_type=content_type
        )

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        """Deletes only the object of that uid and version, if given: Conflict when it is another one by now."""
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        given = {key: value for key, value in preconditions.items() if value is not None}
        options: Json = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if given:
            options["preconditions"] = given
        if propagation:
            options["propagationPolicy"] = propagation
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        await self._request("DELETE", resource.path(namespace, name), options)

    async def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
        timeout_seconds: int = 300,
        gather: float = 0.0,
    ) -> AsyncGenerator[tuple[str, Json], None]:
        """What happens after `resource_version`: ("ADDED" | "MODIFIED" | "DELETED" | "BOOKMARK", object), until the
        server ends the watch, which it does after `timeout_seconds`. What happens within `gather` seconds after
        something did is read together.

        Raises Gone when the version is too old, Unreachable when the connection breaks or the server has not ended the
        watch in time, as one that is not there any more."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(timeout_seconds),
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
        }
        try:
            async with asyncio.timeout(self._deadline):
                response = await self._transport.open("GET", resource.path(namespace), query=query)
            # One timer for the whole: a deadline for what comes next is set anew with each change.
            end = asyncio.get_running_loop().call_later(timeout_seconds + _WATCH_GRACE, response.close)
            try:
                async with aclosing(_lines(response.content, gather)) as lines:
                    async for line in lines:
                        event = self._read_json(line)
                        if event["type"] == "ERROR":
                            raise from_status(event["object"])
                        yield event["type"], event["object"]
            finally:
                end.cancel()
                response.close()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise _unreachable(f"watch of {resource}", error) from error

    async def _request(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        query: dict[str, str] | None = None,
        content_type: str = "application/json",
        most: int | None = None,
    ) -> Json:
        """Raises _TooLarge for an answer of more than `most` bytes, having read no more of it."""
        try:
            async with asyncio.timeout(self._deadline):
                response = await self._transport.open(
                    method, path, body, query=query, content_type=content_type, before_bytes=self._before_write
                )
                with closing(response):
                    text = bytearray()
                    async for part in response.content.iter_any():
                        text += part
                        if most is not None and len(text) > most:
                            raise _TooLarge
                    answer: Json = self._read_json(text)
                    return answer
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise _unreachable(f"{method} {path}", error) from error


async def _lines(content: aiohttp.StreamReader, pause: float) -> AsyncGenerator[bytes, None]:
    """The lines that are not empty, read with a `pause` of so many seconds after each read. Raises ValueError for one
    that is longer than an event can be."""
    rest = bytearray()
    async for part in content.iter_any():
        rest += part
        if b"\n" in part:
            *lines, last = rest.split(b"\n")
            for line in lines:
                if line.strip():
                    yield bytes(line)
            rest = last
            if pause:
                await asyncio.sleep(pause)
        elif len(rest) > _EVENT_BYTES:
            raise ValueError(f"an event has more than {_EVENT_BYTES} bytes")


class _TooLarge(Exception):
    """The answer has more bytes than it may have."""


def _unreachable(what: str, error: Exception) -> Unreachable:
    message = str(error) or type(error).__name__
    return Unreachable(0, "", f"{what}: no good answer from the API server: {message}")
