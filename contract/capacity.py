"""How much room a node has: what its daemon publishes, and the arithmetic that daemon and provisioner share.

A daemon publishes one CSIStorageCapacity per class. The stock scheduler reads its `capacity`, the room that is left
now. That figure always lags behind a burst, so the same object carries a second one that does not change when volumes
are made: `allocatable`, all that volumes with a PersistentVolume may take together. The provisioner subtracts the
PersistentVolumes it knows of, those it created a millisecond ago included, and so can't over-commit a node however
stale the object is. A PersistentVolume counts until its finalizer goes, which is after its space came back.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from contract import names, quantity
from contract.parameters import VolumeParameters

Json = dict[str, Any]

_MIRROR_LEGS = 2


@dataclass(frozen=True)
class Capacity:
    """What one node offers to one class. Sizes in bytes."""

    node: str
    """Value of names.NODE_LABEL for the node."""
    hostname: str
    storage_class: str
    pool: str
    allocatable: int
    available: int
    granularity: int


def footprint(size: int, parameters: VolumeParameters, granularity: int) -> int:
    """Bytes that a volume of `size` bytes takes from its pool: whole extents, a whole number of them on each stripe,
    twice and with an extent of metadata a leg for a mirror (lvmraid(7))."""
    extents = -(-size // granularity)
    extents = -(-extents // parameters.stripes) * parameters.stripes
    if parameters.raid == "raid1":
        extents = _MIRROR_LEGS * (extents + 1)
    return extents * granularity


def object_name(node: str, storage_class: str) -> str:
    """The name of the object of a node and a class: one object each, so publishing is idempotent."""
    digest = hashlib.sha256(f"{node}\0{storage_class}".encode()).hexdigest()[:32]
    return f"{names.DRIVER_NAME}-{digest}"


def manifest(capacity: Capacity, namespace: str, owner: Json | None) -> Json:
    """The CSIStorageCapacity. `owner` is the reference to the Node, with which the object goes."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSIStorageCapacity",
        "metadata": {
            "name": object_name(capacity.node, capacity.storage_class),
            "namespace": namespace,
            "labels": {names.NODE_LABEL: capacity.node},
            "annotations": {
                names.POOL_ANNOTATION: capacity.pool,
                names.ALLOCATABLE_ANNOTATION: str(capacity.allocatable),
                names.GRANULARITY_ANNOTATION: str(capacity.granularity),
            },
            **({"ownerReferences": [owner]} if owner else {}),
        },
        "storageClassName": capacity.storage_class,
        "nodeTopology": {"matchLabels": {names.HOSTNAME_LABEL: capacity.hostname}},
        "capacity": quantity.render(max(capacity.available, 0)),
        "maximumVolumeSize": quantity.render(max(capacity.available, 0)),
    }


def read(body: Json) -> Capacity | None:
    """The record of a CSIStorageCapacity, or None when no daemon of ours wrote it."""
    metadata = body["metadata"]
    annotations = metadata.get("annotations") or {}
    node = (metadata.get("labels") or {}).get(names.NODE_LABEL)
    topology = ((body.get("nodeTopology") or {}).get("matchLabels") or {}).get(names.HOSTNAME_LABEL)
    if not node or not topology or names.ALLOCATABLE_ANNOTATION not in annotations:
        return None
    return Capacity(
        node=node,
        hostname=topology,
        storage_class=body["storageClassName"],
        pool=annotations.get(names.POOL_ANNOTATION, ""),
        allocatable=int(annotations[names.ALLOCATABLE_ANNOTATION]),
        available=quantity.parse(str(body.get("capacity") or "0")),
        granularity=int(annotations.get(names.GRANULARITY_ANNOTATION) or 1),
    )
