"""Where the API server is and who we are: the library's configuration, found in the order that people expect.

The library reads kubeconfig files (certificates, tokens, exec plugins, OIDC) and a pod's service account. Two things
are ours. Its own retries stay off, because the informer, the work queue and the events have theirs. And its
connections get TCP keepalive: a watch is silent for minutes, and a server that lost power says nothing at all.
"""

import os
import socket
from pathlib import Path

import aiohttp
import yaml
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

_CONNECTIONS = 256
_KEEPALIVE_IDLE, _KEEPALIVE_INTERVAL, _KEEPALIVE_PROBES = 15, 5, 3


class ConfigurationError(Exception):
    """There is no usable way to an API server: says what was looked at and what to set."""


async def load(kubeconfig: str | None) -> Configuration:
    """The configuration of `kubeconfig`, else $KUBECONFIG, else the pod's service account, else ~/.kube/config.

    Raises ConfigurationError."""
    configuration = Configuration()
    configuration.connection_pool_maxsize = _CONNECTIONS
    home = Path.home() / ".kube" / "config"
    path = kubeconfig or os.environ.get("KUBECONFIG")
    try:
        if not path and "KUBERNETES_SERVICE_HOST" in os.environ:
            load_incluster_config(configuration)
            return configuration
        if not path and not home.exists():
            raise ConfigurationError(
                f"no API server is configured: set KUBECONFIG, or create {home}, or run in a pod with a service account"
            )
        await load_kube_config(path or str(home), client_configuration=configuration, persist_config=False)
    except (ConfigException, OSError, yaml.YAMLError, TypeError) as error:
        source = f"kubeconfig {path or home}" if path or home.exists() else "the pod's service account"
        raise ConfigurationError(f"{source} can't be used: {error}") from error
    return configuration


def open_transport(configuration: Configuration) -> tuple[ApiClient, aiohttp.TCPConnector]:
    """The library's client on connections of ours, which the caller closes both."""
    api = ApiClient(configuration)
    connector = aiohttp.TCPConnector(
        limit=configuration.connection_pool_maxsize, ssl=api.rest_client.ssl_context, socket_factory=_socket
    )
    configuration.client_session_kwargs = {"connector": connector}
    return api, connector


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
