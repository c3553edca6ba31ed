"""Claims, classes, capacities, volumes and nodes as tests need them: ordinary unless a test says otherwise."""

from typing import Any

from contract import capacity, names
from contract import volume as contract_volume
from contract.capacity import Capacity
from contract.volume import BOUND, RELEASED, NodeAssignment
from kube import records
from kube.errors import Json
from kube.records import SELECTED_NODE, WAIT_FOR_FIRST_CONSUMER, Claim, StorageClass

MIB, GIB = 1024**2, 1024**3
EXTENT = 4 * MIB
CLASS = "elastic-local"


def claim_body(name: str = "data", *, size: str = "1Gi", node: str = "n1", uid: str = "", **spec: Any) -> Json:
    annotations = {"volume.kubernetes.io/storage-provisioner": names.PROVISIONER}
    if node:
        annotations[SELECTED_NODE] = node
    return {
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": uid or f"uid-of-{name}",
            "resourceVersion": "1",
            "annotations": annotations,
        },
        "spec": {
            "storageClassName": CLASS,
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": size}},
            **spec,
        },
    }


def claim(name: str = "data", **arguments: Any) -> Claim:
    return records.read_claim(claim_body(name, **arguments))


def class_body(**fields: Any) -> Json:
    return {
        "metadata": {"name": CLASS},
        "provisioner": names.PROVISIONER,
        "volumeBindingMode": WAIT_FOR_FIRST_CONSUMER,
        **fields,
    }


def storage_class(**fields: Any) -> StorageClass:
    return records.read_storage_class(class_body(**fields))


def published(node: str = "n1", free: int = 10 * GIB) -> Capacity:
    return Capacity(
        node=node,
        hostname=f"host-{node}",
        storage_class=CLASS,
        pool="vg",
        allocatable=free,
        available=free,
        granularity=EXTENT,
        block=True,
        encryption=True,
    )


def capacity_body(node: str = "n1", free: int = 10 * GIB) -> Json:
    return capacity.manifest(published(node, free), names.NAMESPACE, None)


def node_body(name: str = "n1", hostname: str = "") -> Json:
    return {"metadata": {"name": name, "labels": {names.HOSTNAME_LABEL: hostname or f"host-{name}"}}}


def term(*hostnames: list[str], **others: str) -> Json:
    expressions: list[Any] = [{"key": names.HOSTNAME_LABEL, "operator": "In", "values": values} for values in hostnames]
    return {
        "matchExpressions": [*expressions, *({"key": k, "operator": "In", "values": [v]} for k, v in others.items())]
    }


def affinity(*terms: Json) -> Json:
    return {"nodeAffinity": {"required": {"nodeSelectorTerms": list(terms)}}}


def local_body(name: str = "local-pv-1", phase: str = BOUND, storage_class: str = "disks", **spec: Any) -> Json:
    return {
        "metadata": {"name": name, "uid": f"uid-of-{name}", "resourceVersion": "1"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": storage_class,
            "local": {"path": "/mnt/disks/1"},
            "persistentVolumeReclaimPolicy": "Delete",
            **affinity(term(["host-n1"])),
            **spec,
        },
        "status": {"phase": phase},
    }


def our_body(phase: str = RELEASED, finalizers: tuple[str, ...] = (names.FINALIZER,), **metadata: Any) -> Json:
    assigned = contract_volume.node_assignment_patch(NodeAssignment("n1", "host-n1", "vg"))
    return {
        "metadata": {
            "name": "pv",
            "uid": "uid",
            "resourceVersion": "1",
            **assigned["metadata"],
            "finalizers": list(finalizers),
            **metadata,
        },
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "flexVolume": {"driver": names.DRIVER},
            **assigned["spec"],
        },
        "status": {"phase": phase},
    }
