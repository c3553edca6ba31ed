"""The capacity of a node: what its daemon publishes, and the arithmetic that daemon and provisioner share.

A daemon publishes one CSIStorageCapacity per class. The stock scheduler reads its `capacity`, what is free
now. That figure always lags behind a burst, so the same object carries a second one that does not change when volumes
are made: `allocatable`, all that volumes with a PersistentVolume may take together. The provisioner subtracts the
PersistentVolumes it knows of, those it created a millisecond ago included, and so can't over-commit a node however
stale the object is. A PersistentVolume counts until its finalizer goes, which is after its space came back.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from contract import names, quantity
from contract.parameters import LUKS2, VolumeParameters
from contract.volume import BLOCK, FILESYSTEM

Json = dict[str, Any]

_MIRROR_LEGS = 2


@dataclass(frozen=True)
class Capacity:
    """What one node publishes for one class. Sizes in bytes."""

    node: str
    """Value of names.NODE_LABEL for the node."""
    hostname: str
    storage_class: str
    pool: str
    allocatable: int
    available: int
    granularity: int
    weight: int = 1
    """How many bytes a byte that was reserved since may cost the class: volumes with several legs need free space on
    several devices, and another volume may take it where it lowers the figure most."""
    reserved: int = 0
    """What the node knew to be reserved in the pool. Read only where `weight` is more than 1."""
    shared_with: tuple[str, ...] = ()
    """Files and folders: the node's other pools on the same filesystem."""
    shared: int = 0
    """What volumes of these pools and this one together may take."""
    block: bool = False
    """Whether its volumes are devices, which can be raw (volumeMode Block) and have I/O limits: folders can't."""
    encryption: bool = False
    """Whether its volumes can be encrypted (LUKS2): folders can't, nor can a node without cryptsetup."""

    def serves(self, parameters: VolumeParameters) -> bool:
        """Whether the node can have volumes of that kind at all, however much is free."""
        return (self.block or not parameters.needs_device) and (self.encryption or not parameters.encryption)

    def free(self, reserved: Callable[[str], int]) -> int:
        """Bytes that are not reserved, by what is known to be `reserved` in each of the node's pools. Can be
        negative."""
        known = reserved(self.pool)
        if self.weight == 1:
            free = self.allocatable - known
        else:
            free = self.allocatable - self.reserved - self.weight * max(known - self.reserved, 0)
        if self.shared_with:
            free = min(free, self.shared - known - sum(map(reserved, self.shared_with)))
        return free


def footprint(size: int, parameters: VolumeParameters, granularity: int) -> int:
    """Bytes that a volume of `size` bytes takes from its pool: with the header of an encrypted one, in whole extents, a
    whole number of them on each stripe, twice and with an extent of metadata a leg for a mirror (lvmraid(7))."""
    extents = -(-(size + parameters.header_size) // granularity)
    extents = -(-extents // parameters.stripes) * parameters.stripes
    if parameters.raid == "raid1":
        extents = _MIRROR_LEGS * (extents + 1)
    return extents * granularity


def leg_count(parameters: VolumeParameters) -> int:
    """On how many devices such a volume lies side by side."""
    return _MIRROR_LEGS if parameters.raid == "raid1" else parameters.stripes


def object_name(node: str, storage_class: str) -> str:
    """The name of the object of a class on the node with that value of names.NODE_LABEL: one object each, so publishing
    is idempotent. It begins with the node, so that the admission policies (deploy/base) can hold each node to names of
    its own, and nobody takes another one's."""
    digest = hashlib.sha256(storage_class.encode()).hexdigest()[:32]
    return f"{names.DRIVER_NAME}.{node}.{digest}"


def manifest(capacity: Capacity, namespace: str, owner: Json | None) -> Json:
    """The CSIStorageCapacity. `owner` is the reference to the Node, with which the object goes."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSIStorageCapacity",
        "metadata": {
            "name": object_name(capacity.node, capacity.storage_class),
            "namespace": namespace,
            "labels": names.labels_of(capacity.node, capacity.hostname),
            "annotations": {
                names.POOL_ANNOTATION: capacity.pool,
                names.ALLOCATABLE_ANNOTATION: str(capacity.allocatable),
                names.GRANULARITY_ANNOTATION: str(capacity.granularity),
                # Also where they say nothing: a merge patch leaves what it does not name.
                names.LAYOUT_ANNOTATION: f"{capacity.weight} {capacity.reserved}",
                names.VOLUME_MODES_ANNOTATION: f"{FILESYSTEM} {BLOCK}" if capacity.block else FILESYSTEM,
                names.ENCRYPTION_ANNOTATION: LUKS2 if capacity.encryption else "",
                names.SHARED_ANNOTATION: " ".join((str(capacity.shared), *capacity.shared_with)),
            },
            **({"ownerReferences": [owner]} if owner else {}),
        },
        "storageClassName": capacity.storage_class,
        "nodeTopology": {"matchLabels": {names.HOSTNAME_LABEL: capacity.hostname}},
        "capacity": quantity.render(max(capacity.available, 0)),
        "maximumVolumeSize": quantity.render(max(capacity.available, 0)),
    }


def read(body: Json) -> Capacity | None:
    """The record of a CSIStorageCapacity, or None when no daemon of ours can have written it: then it is not believed,
    and the node has no capacity."""
    metadata = body["metadata"]
    annotations = metadata.get("annotations") or {}
    node = (metadata.get("labels") or {}).get(names.NODE_LABEL)
    topology = (body.get("nodeTopology") or {}).get("matchLabels") or {}
    hostname = topology.get(names.HOSTNAME_LABEL)
    storage_class = body["storageClassName"]
    if not node or not hostname or len(topology) != 1 or names.ALLOCATABLE_ANNOTATION not in annotations:
        return None
    if metadata["name"] != object_name(node, storage_class):
        return None  # the second one of its node and class: only one of them can be right
    try:
        weight, reserved = map(_number, annotations.get(names.LAYOUT_ANNOTATION, "1 0").split())
        shared, *shared_with = annotations.get(names.SHARED_ANNOTATION, "0").split()
        capacity = Capacity(
            node=node,
            hostname=hostname,
            storage_class=storage_class,
            pool=annotations.get(names.POOL_ANNOTATION, ""),
            allocatable=_number(annotations[names.ALLOCATABLE_ANNOTATION]),
            available=quantity.parse(str(body.get("capacity") or "0")),
            granularity=_number(annotations.get(names.GRANULARITY_ANNOTATION) or "1"),
            weight=weight,
            reserved=reserved,
            shared_with=tuple(shared_with),
            shared=_number(shared),
            block=BLOCK in annotations.get(names.VOLUME_MODES_ANNOTATION, "").split(),
            encryption=LUKS2 in annotations.get(names.ENCRYPTION_ANNOTATION, "").split(),
        )
    except ValueError:
        return None
    believable = (
        0 <= capacity.available <= _MOST
        and 1 <= capacity.granularity <= _LARGEST_GRANULE
        and 1 <= capacity.weight <= _MOST_LEGS
        and all(len(pool) <= _LONGEST_POOL for pool in (capacity.pool, *capacity.shared_with))
        and len(capacity.shared_with) <= _MOST_POOLS
    )
    return capacity if believable else None


_MOST = 1 << 63
"""Bytes: more has no node."""
_LARGEST_GRANULE = 1 << 40
"""Bytes. LVM's largest extents have 16 GiB on a group as it makes them."""
_MOST_LEGS = 128
"""As many stripes as a class may ask for."""
_LONGEST_POOL = 260
"""Characters: a group and a thin pool, of up to 127 each, and a slash."""
_MOST_POOLS = 256


def _number(text: str) -> int:
    """Raises ValueError."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 19) or (number := int(text)) > _MOST:
        raise ValueError(f"{text[:40]!r} is no number of bytes")
    return number
