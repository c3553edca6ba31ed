"""What a pod's claims mean for where it may run. Pure.

Source: pkg/scheduler/framework/plugins/volumebinding of Kubernetes 1.36.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contract import quantity
from tests.sandbox.controlplane.caches import (
    BIND_COMPLETED,
    NO_PROVISIONER,
    SELECTED_NODE,
    WAIT_FOR_FIRST_CONSUMER,
    annotations,
    claim_keys,
    class_name,
    deleting,
    phase,
)
from tests.sandbox.controlplane.selectors import label_selector_matches, node_selector_matches, topology_matches

Json = dict[str, Any]

NODE_AFFINITY_CONFLICT = "node(s) didn't match PersistentVolume's node affinity"
BIND_CONFLICT = "node(s) didn't find available persistent volumes to bind"
NOT_ENOUGH_SPACE = "node(s) did not have enough free storage"


class Unschedulable(Exception):
    """No node can take the pod, whichever; the text is the scheduler's."""


@dataclass(frozen=True)
class PodClaims:
    bound: Sequence[Json]
    """PersistentVolumes of the claims that have one."""
    delayed: Sequence[Json]
    """Claims that wait for their first consumer."""


@dataclass(frozen=True)
class Placement:
    """What is to happen to a pod's claims if it goes to a node."""

    bind: tuple[tuple[Json, Json], ...] = ()
    """Claims and the volumes that are there for them."""
    provision: tuple[Json, ...] = ()


def claims_of(
    pod: Json, claims: Mapping[str, Json], volumes: Mapping[str, Json], classes: Mapping[str, Json]
) -> PodClaims:
    """Raises Unschedulable."""
    bound, delayed, immediate = [], [], False
    for key in claim_keys(pod):
        claim = claims.get(key)
        name = key.partition("/")[2]
        if claim is None:
            raise Unschedulable(f'persistentvolumeclaim "{name}" not found')
        if deleting(claim):
            raise Unschedulable(f'persistentvolumeclaim "{name}" is being deleted')
        volume_name = claim["spec"].get("volumeName") or ""
        if phase(claim) == "Lost":
            raise Unschedulable(
                f'persistentvolumeclaim "{name}" bound to non-existent persistentvolume "{volume_name}"'
            )
        if volume_name and BIND_COMPLETED in annotations(claim):
            volume = volumes.get(volume_name)
            if volume is None:
                raise Unschedulable(f'could not find v1.PersistentVolume "{volume_name}"')
            bound.append(volume)
        elif not volume_name and waits_for_consumer(classes.get(class_name(claim))):
            delayed.append(claim)
        else:
            immediate = True
    if immediate:
        raise Unschedulable("pod has unbound immediate PersistentVolumeClaims")
    return PodClaims(bound, delayed)


def waits_for_consumer(storage_class: Json | None) -> bool:
    return bool(storage_class) and (storage_class or {}).get("volumeBindingMode") == WAIT_FOR_FIRST_CONSUMER


def place(
    node: Json,
    claims: PodClaims,
    available: Iterable[Json],
    classes: Mapping[str, Json],
    drivers: Mapping[str, Json],
    capacities: Iterable[Json],
) -> Placement | str:
    """What the claims need on this node, or why they can't be had there."""
    name, labels = node["metadata"]["name"], node["metadata"].get("labels") or {}
    for volume in claims.bound:
        affinity = (volume["spec"].get("nodeAffinity") or {}).get("required")
        if affinity and not node_selector_matches(affinity, labels, name):
            return NODE_AFFINITY_CONFLICT
    bind: list[tuple[Json, Json]] = []
    provision: list[Json] = []
    free = list(available)
    for claim in claims.delayed:
        selected = annotations(claim).get(SELECTED_NODE)
        if selected and selected != name:
            return BIND_CONFLICT
        existing = None if selected else best_volume(claim, free, labels, name)
        if existing is not None:
            free.remove(existing)
            bind.append((claim, existing))
            continue
        storage_class = classes[class_name(claim)]
        if storage_class["provisioner"] == NO_PROVISIONER or not topology_matches(
            storage_class.get("allowedTopologies") or [], labels
        ):
            return BIND_CONFLICT
        driver = drivers.get(storage_class["provisioner"])
        if driver and not _has_room(driver, claim, labels, capacities):
            return NOT_ENOUGH_SPACE
        provision.append(claim)
    return Placement(tuple(bind), tuple(provision))


def best_volume(
    claim: Json, volumes: Iterable[Json], labels: Mapping[str, str] | None = None, node: str = ""
) -> Json | None:
    """The smallest Available volume that serves the claim, on a node with these labels if given."""
    fitting = [volume for volume in volumes if serves(volume, claim)]
    if labels is not None:
        fitting = [volume for volume in fitting if _reachable(volume, labels, node)]
    return min(fitting, key=lambda volume: (capacity_of(volume), volume["metadata"]["name"]), default=None)


def serves(volume: Json, claim: Json) -> bool:
    spec, wanted = volume["spec"], claim["spec"]
    selector = wanted.get("selector")
    return (
        phase(volume) == "Available"
        and not spec.get("claimRef")
        and not deleting(volume)
        and (spec.get("storageClassName") or "") == class_name(claim)
        and (spec.get("volumeMode") or "Filesystem") == (wanted.get("volumeMode") or "Filesystem")
        and set(wanted.get("accessModes") or []) <= set(spec.get("accessModes") or [])
        and capacity_of(volume) >= requested(claim)
        and (selector is None or label_selector_matches(selector, volume["metadata"].get("labels") or {}))
    )


def requested(claim: Json) -> int:
    """Bytes."""
    return quantity.parse(str(claim["spec"]["resources"]["requests"]["storage"]))


def capacity_of(volume: Json) -> int:
    """Bytes."""
    return quantity.parse(str(volume["spec"]["capacity"]["storage"]))


def _reachable(volume: Json, labels: Mapping[str, str], node: str) -> bool:
    affinity = (volume["spec"].get("nodeAffinity") or {}).get("required")
    return not affinity or node_selector_matches(affinity, labels, node)


def _has_room(driver: Json, claim: Json, labels: Mapping[str, str], capacities: Iterable[Json]) -> bool:
    """Some CSIStorageCapacity of the claim's class and for this node is large enough, or nobody keeps count."""
    if not driver["spec"].get("storageCapacity"):
        return True
    for capacity in capacities:
        limit = capacity.get("maximumVolumeSize") or capacity.get("capacity")
        if (
            capacity["storageClassName"] == class_name(claim)
            and label_selector_matches(capacity.get("nodeTopology"), labels)
            and limit is not None
            and quantity.parse(str(limit)) >= requested(claim)
        ):
            return True
    return False
