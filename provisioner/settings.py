"""What can be set of the provisioner."""

from dataclasses import dataclass

from contract import names


@dataclass(frozen=True)
class Settings:
    """Made by the command from its options and the environment."""

    identity: str
    """Tells this replica from the others: the pod's name."""
    namespace: str = names.NAMESPACE
    """Where the Lease is, and where the nodes publish their capacity."""
    listen_address: str = ":8080"
    """For /metrics, /healthz and /readyz: host:port, without a host on all addresses."""
    kubeconfig: str | None = None
    """None: KUBECONFIG, else the pod's service account."""
    workers: int = 64
    """Claims worked on at the same time. Each waits for the API server nearly all of its time."""
    lease: str = "elastic-local-provisioner"
