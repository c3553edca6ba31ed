"""PersistentVolumes in the very form that the Go provisioner v2.9 creates them."""

import json
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]


def go_pv(
    name: str,
    provisioner: str,
    *,
    path: str = "/mnt/disks/disk1",
    hostname: str = "host-1",
    storage_class: str = "fast",
    mode: str = "Filesystem",
    alpha: bool = False,
    labels: Mapping[str, str] | None = None,
) -> Json:
    """With `alpha` the form that only API servers before 1.10 took."""
    requirement = {"key": "kubernetes.io/hostname", "operator": "In", "values": [hostname]}
    selector = {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}
    annotations = {"pv.kubernetes.io/provisioned-by": provisioner}
    spec: Json = {
        "accessModes": ["ReadWriteOnce"],
        "capacity": {"storage": "10Gi"},
        "local": {"path": path},
        "persistentVolumeReclaimPolicy": "Delete",
        "storageClassName": storage_class,
        "volumeMode": mode,
    }
    if alpha:
        annotations["volume.alpha.kubernetes.io/node-affinity"] = json.dumps(
            {"requiredDuringSchedulingIgnoredDuringExecution": selector}, separators=(",", ":")
        )
    else:
        spec["nodeAffinity"] = {"required": selector}
    metadata: Json = {"name": name, "annotations": annotations}
    if labels:
        metadata["labels"] = dict(labels)
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": spec}
