"""Claims as they are now, asked of the API server, where a cache that lags would lose data or make a volume for nobody.

What a PersistentVolume's status says of its claim is a cache, too: the control plane writes the phase after it has seen
what claim and volume say of each other. An administrator who gives a Released volume away by naming the next claim's
uid has it Released for a moment still, and so has who restored a control plane. So what can't be undone asks for the
claim.
"""

from contract.volume import ClaimReference
from kube.client import Cluster
from kube.errors import NotFound
from kube.records import Claim, read_claim
from kube.resources import CLAIMS


async def live_claim(cluster: Cluster, reference: ClaimReference) -> Claim | None:
    """The claim as it is now, None when it, and not only its name, is gone. Raises ApiError: no answer is not a no."""
    try:
        live = read_claim(await cluster.get(CLAIMS, reference.name, reference.namespace))
    except NotFound:
        return None
    return live if live.uid == reference.uid else None


async def holding_claim(cluster: Cluster, reference: ClaimReference | None, volume: str, phase: str) -> Claim | None:
    """The claim that has the PersistentVolume of this name now, with this claimRef, whatever its phase says. None: no
    claim has it. Raises ApiError."""
    claim = await live_claim(cluster, reference) if reference and reference.uid else None
    return claim if claim and claim.holds(volume, phase) else None
