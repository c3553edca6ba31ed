"""Settings of the provisioner, read once from the environment and checked before anything is done."""

import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from contract import names
from service import logs
from service.environment import LOG_FORMATS, LOG_LEVELS, Environment, address, one_of, span


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
    node_loss_delay: float | None = 60.0
    """Seconds that a deleted Node may take to come back before the finalizers of its volumes are removed. None: for
    ever."""
    node_cleanup_classes: frozenset[str] = frozenset()
    """StorageClasses whose claims and volumes are deleted with their node."""
    log_format: str = logs.TEXT
    log_level: str = "INFO"


def read(environment: Mapping[str, str]) -> Settings:
    """The settings of an environment; what is absent or empty takes its default. Raises SettingsError."""
    default = Settings(identity="")
    set_to = Environment(environment)
    host, port = set_to.value("LISTEN_ADDRESS", address, (default.listen_host, default.listen_port))
    return Settings(
        # A pod keeps its name when its container restarts, and a lease must not pass to a process that has not seen
        # what its predecessor did. In a container all have one process id: hence some chance.
        identity=f"{set_to.text('POD_NAME') or socket.gethostname()}_{secrets.token_hex(4)}",
        namespace=set_to.text("NAMESPACE") or default.namespace,
        listen_host=host,
        listen_port=port,
        kubeconfig=set_to.text("KUBECONFIG") or None,
        node_loss_delay=set_to.value("NODE_LOSS_DELAY", span, default.node_loss_delay),
        node_cleanup_classes=frozenset(set_to.text("NODE_CLEANUP_CLASSES").replace(",", " ").split()),
        log_format=set_to.value("LOG_FORMAT", one_of(LOG_FORMATS), default.log_format),
        log_level=set_to.value("LOG_LEVEL", one_of(LOG_LEVELS), default.log_level),
    )
