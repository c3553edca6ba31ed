"""The shared caches of the control plane, and the few names that its parts have in common."""

import asyncio
from typing import Any

from contract.volume import ObjectReference
from kube.client import Cluster
from kube.informer import Informer
from kube.resources import CAPACITIES, CLAIMS, CLASSES, DRIVERS, NODES, PODS, VOLUMES, Resource

Json = dict[str, Any]

CSI_NODES = Resource("storage.k8s.io", "v1", "csinodes", namespaced=False)
SELECTED_NODE = "volume.kubernetes.io/selected-node"
STORAGE_PROVISIONER = "volume.kubernetes.io/storage-provisioner"
STORAGE_PROVISIONER_BETA = "volume.beta.kubernetes.io/storage-provisioner"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
BIND_COMPLETED = "pv.kubernetes.io/bind-completed"
BOUND_BY_CONTROLLER = "pv.kubernetes.io/bound-by-controller"
NO_PROVISIONER = "kubernetes.io/no-provisioner"
WAIT_FOR_FIRST_CONSUMER = "WaitForFirstConsumer"


def _whole(body: Json) -> Json:
    return body


class Caches:
    def __init__(self, cluster: Cluster) -> None:
        self.pods: Informer[Json] = Informer(cluster, PODS, _whole)
        self.nodes: Informer[Json] = Informer(cluster, NODES, _whole)
        self.claims: Informer[Json] = Informer(cluster, CLAIMS, _whole)
        self.volumes: Informer[Json] = Informer(cluster, VOLUMES, _whole)
        self.classes: Informer[Json] = Informer(cluster, CLASSES, _whole)
        self.capacities: Informer[Json] = Informer(cluster, CAPACITIES, _whole)
        self.drivers: Informer[Json] = Informer(cluster, DRIVERS, _whole)
        self.csi_nodes: Informer[Json] = Informer(cluster, CSI_NODES, _whole)

    @property
    def all(self) -> list[Informer[Json]]:
        return [
            self.pods,
            self.nodes,
            self.claims,
            self.volumes,
            self.classes,
            self.capacities,
            self.drivers,
            self.csi_nodes,
        ]

    async def wait_synced(self) -> None:
        await asyncio.gather(*(informer.wait_synced() for informer in self.all))


def key_of(body: Json) -> str:
    metadata = body["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}" if metadata.get("namespace") else str(metadata["name"])


def annotations(body: Json) -> dict[str, str]:
    return body["metadata"].get("annotations") or {}


def version(body: Json) -> int:
    """Only a control plane may compare resourceVersions."""
    return int(body["metadata"]["resourceVersion"])


def deleting(body: Json) -> bool:
    return "deletionTimestamp" in body["metadata"]


def phase(body: Json) -> str:
    return (body.get("status") or {}).get("phase") or "Pending"


def class_name(claim: Json) -> str:
    return claim["spec"].get("storageClassName") or ""


def claim_key(pod: Json, volume: Json) -> str:
    """Key of the claim that one of a pod's volumes uses, as a generic ephemeral one does too; "" if it uses none."""
    namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
    if "persistentVolumeClaim" in volume:
        return f"{namespace}/{volume['persistentVolumeClaim']['claimName']}"
    return f"{namespace}/{name}-{volume['name']}" if "ephemeral" in volume else ""


def claim_keys(pod: Json) -> list[str]:
    """Keys of the claims that a pod uses."""
    return [key for volume in pod["spec"].get("volumes") or [] if (key := claim_key(pod, volume))]


def made_for(pod: Json, claim: Json) -> bool:
    """Whether the claim is the pod's own, and not one that somebody gave its name (VolumeIsForPod of
    k8s.io/component-helpers/storage/ephemeral)."""
    owners = claim["metadata"].get("ownerReferences") or []
    return any(owner.get("controller") and owner["uid"] == pod["metadata"]["uid"] for owner in owners)


def not_made_for(pod: Json, claim: Json) -> str:
    """What all who ask made_for say when it is not."""
    return f"PVC {key_of(claim)} was not created for pod {key_of(pod)} (pod is not owner)"


def reference(kind: str, body: Json) -> ObjectReference:
    metadata = body["metadata"]
    return ObjectReference(
        kind,
        body.get("apiVersion") or "v1",
        metadata.get("namespace") or "",
        metadata["name"],
        metadata["uid"],
        metadata["resourceVersion"],
    )
