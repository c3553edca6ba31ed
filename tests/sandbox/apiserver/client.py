"""A client that hides nothing: the status code and the body of each answer, the lines of a watch."""

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from tests.sandbox.apiserver import patches
from tests.sandbox.apiserver.resources import Json

_SECONDS = 10.0


@dataclass(frozen=True)
class Answer:
    code: int
    body: Any
    headers: dict[str, str]


@dataclass(frozen=True)
class Client:
    """Talks to the server on `port` of this machine."""

    port: int
    token: str = ""
    """Of a service account (users.token). Empty: the administrator."""

    def request(
        self, method: str, path: str, body: object = None, *, content_type: str = "", accept: str = "", **query: Any
    ) -> Answer:
        connection = self._connection()
        try:
            self._send(connection, method, path, body, content_type, accept, query)
            response = connection.getresponse()
            content = response.read()
            parsed = (
                json.loads(content)
                if response.getheader("Content-Type", "").startswith("application/json")
                else content
            )
            return Answer(response.status, parsed, dict(response.getheaders()))
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=_SECONDS)

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: object,
        content_type: str,
        accept: str,
        query: dict[str, Any],
    ) -> None:
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {"Accept": accept or "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        if body is not None:
            headers["Content-Type"] = content_type or "application/json"
        connection.request(method, f"{path}?{urlencode(query)}" if query else path, content, headers)

    def get(self, path: str, **query: Any) -> Json:
        return self._well("GET", path, None, query)

    def post(self, path: str, body: Json, **query: Any) -> Json:
        return self._well("POST", path, body, query)

    def put(self, path: str, body: Json, **query: Any) -> Json:
        return self._well("PUT", path, body, query)

    def delete(self, path: str, options: Json | None = None, **query: Any) -> Json:
        return self._well("DELETE", path, options, query)

    def patch(self, path: str, patch: object, content_type: str = patches.MERGE_PATCH, **query: Any) -> Json:
        answer = self.request("PATCH", path, patch, content_type=content_type, **query)
        assert answer.code < 300, answer.body
        return answer.body  # type: ignore[no-any-return]

    def _well(self, method: str, path: str, body: Json | None, query: dict[str, Any]) -> Json:
        """The body of an answer that must be a good one."""
        answer = self.request(method, path, body, **query)
        assert answer.code < 300, answer.body
        return answer.body  # type: ignore[no-any-return]

    @contextmanager
    def watch(self, path: str, **query: Any) -> Iterator[Iterator[Json]]:
        """The events, as they come. Waiting longer than ten seconds for one raises TimeoutError."""
        connection = self._connection()
        try:
            self._send(connection, "GET", path, None, "", "", {"watch": "true", **query})
            response = connection.getresponse()
            assert response.status == 200, response.read()
            yield (json.loads(line) for line in response)
        finally:
            connection.close()
