"""Questions to the API server itself, where a cache that lags would lose data or make a volume for nobody."""

from contract.volume import ClaimReference
from kube import records
from kube.client import CLAIMS, Cluster, NotFound
from kube.records import Claim


async def claim(cluster: Cluster, reference: ClaimReference) -> Claim | None:
    """The claim as it is now, None when it, and not only its name, is gone. Raises ApiError: no answer is not a no."""
    try:
        found = records.read_claim(await cluster.get(CLAIMS, reference.name, reference.namespace))
    except NotFound:
        return None
    return found if found.uid == reference.uid else None


async def source_claim(cluster: Cluster, claim: Claim) -> Claim | None:
    """The claim that this one is to be a copy of, None when there is none. Raises ApiError."""
    try:
        return records.read_claim(await cluster.get(CLAIMS, claim.data_source_name, claim.namespace))
    except NotFound:
        return None
