"""What a pod's claims mean for where it may run. Pure.

Source: pkg/scheduler/framework/plugins/volumebinding and k8s.io/component-helpers/storage/volume of Kubernetes 1.36.2.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contract import quantity
from tests.sandbox.controlplane.caches import (
    BIND_COMPLETED,
    BOUND_BY_CONTROLLER,
    NO_PROVISIONER,
    SELECTED_NODE,
    WAIT_FOR_FIRST_CONSUMER,
    annotations,
    claim_key,
    class_name,
    deleting,
    made_for,
    not_made_for,
    phase,
)
from tests.sandbox.controlplane.selectors import label_selector_matches, node_selector_matches, topology_matches

Json = dict[str, Any]

NODE_AFFINITY_CONFLICT = "node(s) didn't match PersistentVolume's node affinity"
BIND_CONFLICT = "node(s) didn't find available persistent volumes to bind"
NOT_ENOUGH_SPACE = "node(s) did not have enough free storage"
NO_SUCH_VOLUME = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"


class Unschedulable(Exception):
    """No node can take the pod, whichever; the text is the scheduler's."""


@dataclass(frozen=True)
class PodClaims:
    bound: Sequence[Json | None]
    """PersistentVolumes of the claims that have one; None for one that does not exist."""
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
    claims_of_pod = [
        _claim(pod, volume, claims) for volume in pod["spec"].get("volumes") or [] if claim_key(pod, volume)
    ]
    bound: list[Json | None] = []
    delayed = []
    for claim in claims_of_pod:
        volume_name = claim["spec"].get("volumeName") or ""
        if volume_name and BIND_COMPLETED in annotations(claim):
            bound.append(volumes.get(volume_name))
        elif not volume_name and waits_for_consumer(classes.get(class_name(claim))):
            delayed.append(claim)
        else:
            raise Unschedulable("pod has unbound immediate PersistentVolumeClaims")
    return PodClaims(bound, delayed)


def _claim(pod: Json, volume: Json, claims: Mapping[str, Json]) -> Json:
    """What podHasPVCs asks of a claim. Raises Unschedulable."""
    key = claim_key(pod, volume)
    claim, name = claims.get(key), key.partition("/")[2]
    if claim is None:
        if "ephemeral" in volume:
            raise Unschedulable(f'waiting for ephemeral volume controller to create the persistentvolumeclaim "{name}"')
        raise Unschedulable(f'persistentvolumeclaim "{name}" not found')
    if phase(claim) == "Lost":
        lost = claim["spec"].get("volumeName") or ""
        raise Unschedulable(f'persistentvolumeclaim "{name}" bound to non-existent persistentvolume "{lost}"')
    if deleting(claim):
        raise Unschedulable(f'persistentvolumeclaim "{name}" is being deleted')
    if "ephemeral" in volume and not made_for(pod, claim):
        raise Unschedulable(not_made_for(pod, claim))
    return claim


def waits_for_consumer(storage_class: Json | None) -> bool:
    return bool(storage_class) and (storage_class or {}).get("volumeBindingMode") == WAIT_FOR_FIRST_CONSUMER


def place(
    node: Json,
    claims: PodClaims,
    available: Iterable[Json],
    classes: Mapping[str, Json],
    drivers: Mapping[str, Json],
    capacities: Iterable[Json],
) -> Placement | tuple[str, ...]:
    """What the claims need on this node, or why they can't be had there (FindPodVolumes)."""
    name, labels = node["metadata"]["name"], node["metadata"].get("labels") or {}
    bound = _bound_reasons(claims.bound, labels, name)
    selected = {id(claim): annotations(claim).get(SELECTED_NODE) for claim in claims.delayed}
    if any(node_name and node_name != name for node_name in selected.values()):
        return _in_order({*bound, BIND_CONFLICT})
    bind: list[tuple[Json, Json]] = []
    provision = [claim for claim in claims.delayed if selected[id(claim)]]
    free = list(available)
    # The smallest first, so that none takes what only a larger one needs.
    for claim in sorted((claim for claim in claims.delayed if not selected[id(claim)]), key=requested):
        existing = best_volume(claim, free, labels, name)
        if existing is None:
            provision.append(claim)
        else:
            free.remove(existing)
            bind.append((claim, existing))
    for claim in provision:
        storage_class = classes[class_name(claim)]
        if storage_class["provisioner"] == NO_PROVISIONER or not topology_matches(
            storage_class.get("allowedTopologies") or [], labels
        ):
            return _in_order({*bound, BIND_CONFLICT})
        driver = drivers.get(storage_class["provisioner"])
        if driver and not _has_room(driver, claim, labels, capacities):
            return _in_order({*bound, NOT_ENOUGH_SPACE})
    return _in_order(bound) if bound else Placement(tuple(bind), tuple(provision))


def _bound_reasons(volumes: Iterable[Json | None], labels: Mapping[str, str], node: str) -> set[str]:
    """Of the first volume that is not to be had on the node."""
    for volume in volumes:
        if volume is None:
            return {NO_SUCH_VOLUME}
        if not _reachable(volume, labels, node):
            return {NODE_AFFINITY_CONFLICT}
    return set()


def _in_order(reasons: set[str]) -> tuple[str, ...]:
    known = (NODE_AFFINITY_CONFLICT, BIND_CONFLICT, NOT_ENOUGH_SPACE, NO_SUCH_VOLUME)
    return tuple(reason for reason in known if reason in reasons)


def best_volume(
    claim: Json, volumes: Iterable[Json], labels: Mapping[str, str] | None = None, node: str = ""
) -> Json | None:
    """The smallest Available volume that serves the claim, on a node with these labels if given."""
    fitting = [volume for volume in volumes if serves(volume, claim)]
    if labels is not None:
        fitting = [volume for volume in fitting if _reachable(volume, labels, node)]
    return min(fitting, key=lambda volume: (capacity_of(volume), volume["metadata"]["name"]), default=None)


def promised_volume(claim: Json, volumes: Iterable[Json]) -> Json | None:
    """One that was made or reserved for this claim: its class does not matter, its size does."""
    return next((volume for volume in volumes if is_for(volume, claim) and _could_serve(volume, claim)), None)


def serves(volume: Json, claim: Json) -> bool:
    """Of FindMatchingVolume, for a volume that nobody was promised."""
    spec, selector = volume["spec"], claim["spec"].get("selector")
    return (
        phase(volume) == "Available"
        and not spec.get("claimRef")
        and _could_serve(volume, claim)
        and (spec.get("storageClassName") or "") == class_name(claim)
        and (selector is None or label_selector_matches(selector, volume["metadata"].get("labels") or {}))
    )


def _could_serve(volume: Json, claim: Json) -> bool:
    return (
        not deleting(volume)
        and mode_of(volume) == mode_of(claim)
        and _attributes_class(volume) == _attributes_class(claim)
        and _has_access_modes(volume, claim)
        and capacity_of(volume) >= requested(claim)
    )


def mismatch(volume: Json, claim: Json) -> str:
    """Why a claim that names this free volume can't have it (checkVolumeSatisfyClaim); "" when it can."""
    if deleting(volume):
        return f'the volume is marked for deletion "{volume["metadata"]["name"]}"'
    if capacity_of(volume) < requested(claim):
        return "requested PV is too small"
    if (volume["spec"].get("storageClassName") or "") != class_name(claim):
        return "storageClassName does not match"
    if _attributes_class(volume) != _attributes_class(claim):
        return "volumeAttributesClassName does not match"
    if mode_of(volume) != mode_of(claim):
        return "incompatible volumeMode"
    return "" if _has_access_modes(volume, claim) else "incompatible accessMode"


def is_for(volume: Json, claim: Json) -> bool:
    """Whether the volume was promised to this claim, by name at least (IsVolumeBoundToClaim)."""
    promised = volume["spec"].get("claimRef") or {}
    metadata = claim["metadata"]
    return (
        promised.get("name") == metadata["name"]
        and promised.get("namespace") == metadata["namespace"]
        and promised.get("uid") in (None, "", metadata["uid"])
    )


def is_bound_to(volume: Json, claim: Json) -> bool:
    return bool((volume["spec"].get("claimRef") or {}).get("uid") == claim["metadata"]["uid"])


def promised(volume: Json, claim: Json) -> Json:
    """The volume with a promise to the claim, marked as ours unless somebody else had promised it
    (GetBindVolumeToClaim)."""
    changed, metadata = copy.deepcopy(volume), claim["metadata"]
    if not is_for(volume, claim):
        changed["metadata"].setdefault("annotations", {})[BOUND_BY_CONTROLLER] = "yes"
    changed["spec"]["claimRef"] = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        **{key: metadata[key] for key in ("namespace", "name", "uid", "resourceVersion")},
    }
    return changed


def mode_of(volume_or_claim: Json) -> str:
    return volume_or_claim["spec"].get("volumeMode") or "Filesystem"


def _attributes_class(volume_or_claim: Json) -> str:
    return volume_or_claim["spec"].get("volumeAttributesClassName") or ""


def _has_access_modes(volume: Json, claim: Json) -> bool:
    return set(claim["spec"].get("accessModes") or []) <= set(volume["spec"].get("accessModes") or [])


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
