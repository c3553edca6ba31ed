"""What VolumeAttributesClasses must have come to once a cluster is quiet."""

from collections.abc import Iterator

from tests.torture.cluster.seen import SeenClaim, SeenPod, SeenVolume

_KEYS = {"readBandwidth": "rbps", "writeBandwidth": "wbps", "readIOPS": "riops", "writeIOPS": "wiops"}
"""Of a class, and what the kernel calls each."""
LIMITS = {
    "gold": {"readBandwidth": 8 << 20, "writeBandwidth": 4 << 20, "readIOPS": 2000, "writeIOPS": 0},
    "silver": {"readBandwidth": 1 << 20, "writeBandwidth": 0, "readIOPS": 0, "writeIOPS": 500},
    "plain": dict.fromkeys(_KEYS, 0),
}
"""By class. Each names all, for what one does not name stays as it was. 0: no limit."""
MISSING = "missing"
"""Name of a class that is not there."""


def parameters_of(name: str) -> dict[str, str]:
    """The parameters of a class."""
    return {key: str(limit or "max") for key, limit in LIMITS[name].items()}


def complaints(
    wanted: str, able: bool, folder: bool, claim: SeenClaim, volume: SeenVolume, pod: SeenPod | None, device: str
) -> Iterator[str]:
    """`wanted`: the class that the claim names. `able`: the driver can change limits. `folder`: the volume has no
    device to be limited on. `device`: the number of the volume's."""
    if volume.attributes != claim.attributes:
        yield f"its PersistentVolume has class {volume.attributes!r}, and its status says {claim.attributes!r}"
    if volume.attributes and volume.limits != " ".join(f"{k}={v}" for k, v in parameters_of(volume.attributes).items()):
        yield f"its PersistentVolume has class {volume.attributes} and limits {volume.limits!r}"
    if not wanted:
        step = ""
    elif wanted == MISSING:
        step = "Pending"
    else:
        step = "" if able and not (folder and any(LIMITS[wanted].values())) else "Infeasible++"
    # What the step before said of why it failed is left as it was while there is no such class.
    if claim.step.rstrip("+") != step.rstrip("+") or (step != "Pending" and claim.step != step):
        yield f"its change to class {wanted!r} is {claim.step!r} and not {step!r}"
    elif wanted and not step and claim.attributes != wanted:
        yield f"it has class {claim.attributes!r} and not {wanted!r}"
    if pod and pod.ready and device and volume.limits:
        limits = LIMITS.get(volume.attributes) or {}
        told = f"{device} " + " ".join(f"{_KEYS[key]}={limit or 'max'}" for key, limit in limits.items())
        if pod.limits != told:
            yield f"its pod is held to {pod.limits!r} and not {told!r}"
