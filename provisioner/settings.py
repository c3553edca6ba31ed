"""What the provisioner is told, read once from the environment and checked before anything is done."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from contract import names
from kube import logs

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class SettingsError(ValueError):
    """A setting that can't be used: names the variable, what it holds and what it may hold."""


@dataclass(frozen=True)
class Settings:
    """See the table in the README."""

    identity: str
    """This process's name on the Lease, and no other's."""
    namespace: str = names.NAMESPACE
    """Where the Lease is, and where the nodes publish their capacity."""
    lease: str = "elastic-local-provisioner"
    listen_host: str = ""
    """Address of metrics and health. Empty: all of the host's."""
    listen_port: int = 8080
    kubeconfig: str | None = None
    """None: the service account of the pod, or kubectl's default places."""
    parallelism: int = 64
    """Claims worked on at once. Each waits for the API server nearly all of its time."""
    log_format: str = logs.TEXT
    log_level: str = "INFO"


def read(environment: Mapping[str, str]) -> Settings:
    """The settings of an environment; what is absent or empty takes its default. Raises SettingsError."""
    default = Settings(identity="")
    host, port = default.listen_host, default.listen_port
    if address := environment.get("LISTEN_ADDRESS", "").strip():
        host, port = _address(address)
    return Settings(
        # A pod keeps its name when its container restarts, and a lease must not pass to a process that has not seen
        # what its predecessor did: hence the process id.
        identity=f"{environment.get('POD_NAME', '').strip() or socket.gethostname()}_{os.getpid()}",
        namespace=environment.get("NAMESPACE", "").strip() or default.namespace,
        listen_host=host,
        listen_port=port,
        kubeconfig=environment.get("KUBECONFIG", "").strip() or None,
        log_format=_one_of(environment, "LOG_FORMAT", (logs.TEXT, logs.JSON), default.log_format),
        log_level=_one_of(environment, "LOG_LEVEL", LOG_LEVELS, default.log_level),
    )


def _one_of(environment: Mapping[str, str], name: str, allowed: tuple[str, ...], otherwise: str) -> str:
    text = environment.get(name, "").strip()
    for choice in allowed:
        if text.lower() == choice.lower():
            return choice
    if text:
        raise SettingsError(f"{name} is {text!r}: allowed is {', '.join(allowed)}")
    return otherwise


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise SettingsError(f"LISTEN_ADDRESS is {text!r}: allowed is HOST:PORT or :PORT, such as :8080 or [::1]:8080")
    return host.removeprefix("[").removesuffix("]"), int(port)
