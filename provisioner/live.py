"""Questions to the API server itself, where a cache that lags would lose data or make a volume for nobody."""

from contract import names
from contract.volume import PENDING, ClaimReference
from kube import records
from kube.client import CLAIMS, NODES, PODS, Cluster, NotFound
from kube.records import Claim, Node, Pod


async def claim(cluster: Cluster, reference: ClaimReference) -> Claim | None:
    """The claim as it is now, None when it, and not only its name, is gone. Raises ApiError: no answer is not a no."""
    try:
        found = records.read_claim(await cluster.get(CLAIMS, reference.name, reference.namespace))
    except NotFound:
        return None
    return found if found.uid == reference.uid else None


async def waiting_pods(cluster: Cluster, claim: Claim) -> list[Pod]:
    """The pods not running yet that name the claim. Raises ApiError."""
    found = await cluster.list(PODS, claim.namespace, field_selector=f"status.phase={PENDING}")
    return [pod for pod in map(records.read_pod, found) if claim.key in pod.claims]


async def nodes_of(cluster: Cluster, hostname: str) -> list[Node]:
    """The nodes with this hostname label. Raises ApiError."""
    found = await cluster.list(NODES, label_selector=f"{names.HOSTNAME_LABEL}={hostname}")
    return [records.read_node(body) for body in found]


async def node(cluster: Cluster, name: str) -> Node | None:
    """Raises ApiError."""
    try:
        return records.read_node(await cluster.get(NODES, name))
    except NotFound:
        return None


async def source_claim(cluster: Cluster, claim: Claim) -> Claim | None:
    """The claim that this one is to be a copy of, None when there is none. Raises ApiError."""
    try:
        return records.read_claim(await cluster.get(CLAIMS, claim.data_source_name, claim.namespace))
    except NotFound:
        return None
