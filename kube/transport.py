"""One HTTP request to the API server: credentials, connections, and the answer or a typed error.

The library (kubernetes.aio) has the session, TLS and the authentication. Its own retries stay off, because the
informer, the work queue and the events have theirs. Two things are ours. Credentials are read again when the server
refuses them: tokens and certificates in files rotate, and a program that must run for months can't wait for its next
start. And connections get TCP keepalive: a watch is silent for minutes, and a server that lost power says nothing.

Who may only write while a condition holds has it checked here, as late as a process can: after the wait for a
connection, after new credentials, at each try, right before the bytes go to the kernel. What the kernel has is sent
even if the process is stopped then; for that there are the preconditions of the API.

Where the API server is and who we are comes from the library's configuration: kubeconfig files (certificates, tokens,
exec plugins, OIDC) and a pod's service account. Ours is the order in which they are looked for, and an error that says
what to set.
"""

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import getproxies_environment

import aiohttp
import yaml
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from kube.errors import ApiError, Json, Unauthorized, from_status


class ConfigurationError(Exception):
    """No API server can be reached with what is configured: says where it was looked for and what to set."""


async def load_configuration(kubeconfig: str | None, context: str | None = None) -> Configuration:
    """The configuration of `kubeconfig`, else $KUBECONFIG, else the pod's service account, else ~/.kube/config.
    `context`: of that file, None: its current one.

    Raises ConfigurationError."""
    configuration = Configuration()
    home = Path.home() / ".kube" / "config"
    path = kubeconfig or os.environ.get("KUBECONFIG")
    try:
        if not path and not context and "KUBERNETES_SERVICE_HOST" in os.environ:
            load_incluster_config(configuration)
            return configuration
        if not path and not home.exists():
            raise ConfigurationError(
                f"no API server is configured: set KUBECONFIG, or create {home}, or run in a pod with a service account"
            )
        await load_kube_config(
            path or str(home), context=context, client_configuration=configuration, persist_config=False
        )
    except (ConfigException, OSError, yaml.YAMLError, TypeError) as error:
        source = f"kubeconfig {path or home}" if path or home.exists() else "the pod's service account"
        raise ConfigurationError(f"{source} can't be used: {error}") from error
    return configuration


_log = logging.getLogger(__name__)
_CONNECTIONS = 256
_CONNECT_SECONDS = 10.0
_RENEWAL_INTERVAL = 5.0
_KEEPALIVE_IDLE, _KEEPALIVE_INTERVAL, _KEEPALIVE_PROBES = 15, 5, 3

_before_bytes: ContextVar[Callable[[], None]] = ContextVar("_before_bytes")
"""Of the request that is being sent: the session is shared, its hooks don't know whose request they see."""


class Transport:
    """To be made inside the event loop that uses it."""

    def __init__(
        self, configuration: Configuration, kubeconfig: str | None, program: str, context: str | None = None
    ) -> None:
        """`kubeconfig` and `context`: where the configuration came from, to read it again."""
        self._kubeconfig = kubeconfig
        self._context = context
        self._api = ApiClient(configuration)
        self._api.user_agent = program
        self._connector = aiohttp.TCPConnector(
            limit=_CONNECTIONS, ssl=self._api.rest_client.ssl_context, socket_factory=_socket
        )
        # The name is misleading: it is called with a piece of the body that is about to be written. The headers wait
        # for the first one, and all requests that write have a body.
        sending = aiohttp.TraceConfig()
        sending.on_request_chunk_sent.append(_check)
        configuration.client_session_kwargs = {
            "connector": self._connector,
            "trace_configs": [sending],
            "cookie_jar": aiohttp.DummyCookieJar(),
            # It asks the environment, and a file of passwords, in a thread for each request.
            "trust_env": bool(getproxies_environment()),
        }
        self._renewing = asyncio.Lock()
        self._renewed = -_RENEWAL_INTERVAL

    async def close(self) -> None:
        await self._api.close()
        await self._connector.close()

    async def open(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        silence: float | None = None,
        before_bytes: Callable[[], None] = lambda: None,
    ) -> aiohttp.ClientResponse:
        """An answer of status 2xx whose body is still to be read: fails when nothing comes for `silence` seconds.
        A request with a body is not sent when `before_bytes` raises an ApiError.

        Raises that, errors.ApiError for other answers, and what aiohttp raises for none. The whole has no deadline
        here."""

        async def send() -> aiohttp.ClientResponse:
            headers = {"Accept": "application/json", "Content-Type": content_type, **self._api.default_headers}
            try:
                await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
            except ConfigException as error:
                raise Unauthorized(0, "", f"the service account's token can't be read: {error}") from error
            _before_bytes.set(before_bytes)
            try:
                answer = await self._api.call_api(method, url, headers, body, _request_timeout=timeout)
            except aiohttp.ClientConnectionError as error:
                if isinstance(error.__cause__, ApiError):
                    raise error.__cause__ from None
                raise
            response: aiohttp.ClientResponse = answer.response
            return response

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=silence)
        given = {key: value for key, value in (query or {}).items() if value}
        url = self._api.configuration.host + path + (f"?{urlencode(given)}" if given else "")
        response = await send()
        if response.status == 401 and await self._renew_credentials():
            response.close()
            response = await send()
        if response.status < 300:
            return response
        async with response:
            text = await response.text(errors="replace")
        raise from_status(_status_body(text), response.status, _seconds(response.headers.get("Retry-After")))

    async def _renew_credentials(self) -> bool:
        """Reads the configuration again, because tokens and certificates in files rotate and exec plugins hand out
        short-lived ones. True: worth another try. Those who fail together share one renewal."""
        async with self._renewing:
            if time.monotonic() - self._renewed < _RENEWAL_INTERVAL:
                return True
            self._renewed = time.monotonic()
            try:
                fresh = await load_configuration(self._kubeconfig, self._context)
                if fresh.cert_file:
                    self._api.rest_client.ssl_context.load_cert_chain(fresh.cert_file, fresh.key_file)
            except (ConfigurationError, OSError) as error:
                _log.warning("the API server refuses our credentials, and there are no new ones: %s", error)
                return False
            self._api.configuration.api_key = fresh.api_key
            self._api.configuration.refresh_api_key_hook = fresh.refresh_api_key_hook
            return True


async def _check(*_: object) -> None:
    _before_bytes.get()()


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
