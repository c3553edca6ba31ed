"""One HTTP request to the API server: credentials, connections, and the answer or a typed error.

aiohttp has the session and TLS, kubeconfig.py what to say there. There are no retries here, because the informer, the
work queue and the events have theirs. Credentials are read again when the server refuses them: tokens and certificates
in files rotate, and a program that must run for months can't wait for its next start. And connections get TCP
keepalive: a watch is silent for minutes, and a server that lost power says nothing.

Who may only write while a condition holds has it checked here, as late as a process can: after the wait for a
connection, after new credentials, at each try, right before the bytes go to the kernel. What the kernel has is sent
even if the process is stopped then; for that there are the preconditions of the API.
"""

import asyncio
import json
import logging
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode
from urllib.request import getproxies_environment

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

from kube import kubeconfig
from kube.errors import ApiError, Json, Unauthorized, from_status
from kube.kubeconfig import ConfigurationError, Connection

_log = logging.getLogger(__name__)
_CONNECTIONS = 256
_CONNECT_SECONDS = 10.0
_IDLE_SECONDS = 60.0
"""For which a connection is kept that nobody uses: a new one costs a TLS handshake, and the API server keeps it for 90
(IdleTimeout in k8s.io/apiserver/pkg/server/secure_serving.go)."""
_RENEWAL_INTERVAL = 5.0
_TOKEN_READ_INTERVAL = 60.0
"""Seconds: the kubelet replaces a pod's token at 80 % of its life, which is ten minutes or more."""
_KEEPALIVE_IDLE, _KEEPALIVE_INTERVAL, _KEEPALIVE_PROBES = 15, 5, 3


class _Body(aiohttp.BytesPayload):
    """Content that is not sent when `before_bytes` raises. The headers wait for it, and all requests that write have a
    body."""

    def __init__(self, content: bytes, before_bytes: Callable[[], None]) -> None:
        super().__init__(content)
        self._before_bytes = before_bytes

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        self._before_bytes()
        await super().write_with_length(writer, content_length)


class _Response(aiohttp.ClientResponse):
    """What is closed before it was read to its end, by whomever, leaves no connection behind. That of aiohttp waits for
    the server's part in the end of TLS, for 30 s, and one that went silent takes none."""

    def close(self) -> None:
        if self.connection is not None and self.connection.transport is not None:
            self.connection.transport.abort()
        super().close()


class Transport:
    """To be made inside the event loop that uses it."""

    def __init__(
        self, connection: Connection, kubeconfig: str | None, program: str, context: str | None = None
    ) -> None:
        """`kubeconfig` and `context`: where the connection came from, to read it again. Raises ConfigurationError."""
        self._connection = connection
        self._kubeconfig = kubeconfig
        self._context = context
        self._token_read = time.monotonic()
        self._tls = _tls(connection)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=_CONNECTIONS, ssl=self._tls, socket_factory=_socket, keepalive_timeout=_IDLE_SECONDS
            ),
            headers={"Accept": "application/json", "User-Agent": program},
            response_class=_Response,
            cookie_jar=aiohttp.DummyCookieJar(),
            # It asks the environment, and a file of passwords, in a thread for each request.
            trust_env=bool(getproxies_environment()),
        )
        self._renewing = asyncio.Lock()
        self._renewed = -_RENEWAL_INTERVAL

    async def close(self) -> None:
        await self._session.close()

    async def open(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        before_bytes: Callable[[], None] = lambda: None,
    ) -> aiohttp.ClientResponse:
        """An answer of status 2xx whose body is still to be read, and which is to be closed then. A request with a body
        is not sent when `before_bytes` raises an ApiError.

        Raises that, errors.ApiError for other answers, and what aiohttp raises for none. Nothing has a deadline here,
        but the connection."""

        async def send() -> aiohttp.ClientResponse:
            headers = [*self._connection.impersonation, *self._credentials()]
            if content is not None:
                headers.append(("Content-Type", content_type))
            try:
                return await self._session.request(
                    method,
                    url,
                    headers=headers,
                    data=None if content is None else _Body(content, before_bytes),
                    timeout=timeout,
                    server_hostname=self._connection.server_name or None,
                    proxy=self._connection.proxy or None,
                )
            except aiohttp.ClientConnectionError as error:
                if isinstance(error.__cause__, ApiError):
                    raise error.__cause__ from None
                raise

        content = None if body is None else json.dumps(body).encode()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS)
        given = {key: value for key, value in (query or {}).items() if value}
        url = URL(self._connection.server + path + (f"?{urlencode(given)}" if given else ""), encoded=True)
        response = await send()
        if response.status == 401 and await self._renew_credentials():
            response.close()
            response = await send()
        if response.status < 300:
            return response
        async with response:
            text = await response.text(errors="replace")
        raise from_status(_status_body(text), response.status, _seconds(response.headers.get("Retry-After")))

    def _credentials(self) -> list[tuple[str, str]]:
        """Raises Unauthorized."""
        file = self._connection.token_file
        if file is not None and time.monotonic() - self._token_read > _TOKEN_READ_INTERVAL:
            try:
                self._connection = replace(self._connection, authorization=kubeconfig.read_token(file))
            except (OSError, ValueError) as error:
                raise Unauthorized(0, "", f"our token can't be read: {error}") from error
            self._token_read = time.monotonic()
        return [("Authorization", self._connection.authorization)] if self._connection.authorization else []

    async def _renew_credentials(self) -> bool:
        """Reads the configuration again, because tokens and certificates in files rotate and exec plugins hand out
        short-lived ones. True: worth another try. Those who fail together share one renewal."""
        async with self._renewing:
            if time.monotonic() - self._renewed < _RENEWAL_INTERVAL:
                return True
            self._renewed = time.monotonic()
            try:
                fresh = await kubeconfig.load(self._kubeconfig, self._context)
                _identify(self._tls, fresh)
            except ConfigurationError as error:
                _log.warning("the API server refuses our credentials, and there are no new ones: %s", error)
                return False
            # Not the server: the same requests must not go on elsewhere.
            self._connection = replace(self._connection, authorization=fresh.authorization, token_file=fresh.token_file)
            self._token_read = time.monotonic()
            return True


def _tls(connection: Connection) -> ssl.SSLContext:
    """Raises ConfigurationError."""
    try:
        context = ssl.create_default_context(cadata=connection.authority or None)
    except ssl.SSLError as error:
        raise ConfigurationError(f"the certificate authority of {connection.server} can't be used: {error}") from error
    if not connection.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    _identify(context, connection)
    return context


def _identify(context: ssl.SSLContext, connection: Connection) -> None:
    """Connections that begin from now on have the client's certificate. OpenSSL takes it from a file only: one that
    nobody else can read, and that is gone at once. Raises ConfigurationError."""
    if not connection.certificate:
        return
    with tempfile.NamedTemporaryFile("w") as pair:
        pair.write(f"{connection.certificate}\n{connection.key}")
        pair.flush()
        try:
            context.load_cert_chain(pair.name)
        except ssl.SSLError as error:
            raise ConfigurationError(f"the client's certificate or key can't be used: {error}") from error


def _status_body(text: str) -> Any:
    """A Status object, or one made of the answer of a proxy on the way."""
    try:
        body = json.loads(text)
    except ValueError:
        return {"message": text.strip()[:500]}
    return body if isinstance(body, dict) else {"message": text[:500]}


def _seconds(retry_after: str | None) -> float | None:
    return float(retry_after) if retry_after and retry_after.isdigit() else None


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket that notices within half a minute that nobody is there any more."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family=family, type=kind, proto=protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
    milliseconds = 1000 * (_KEEPALIVE_IDLE + _KEEPALIVE_INTERVAL * _KEEPALIVE_PROBES)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return made
