"""PersistentVolumes, nodes and volumes as the tests of the command need them."""

from typing import Any

from contract import names, volume
from contract.volume import NodeAssignment, PersistentVolume
from daemon.storage.inventory import Volume
from daemon.storage.record import Record, VolumeState
from kube.records import Node

GIB = 1 << 30
NODE = Node("node-1", "node-uid", "host-1", {}, deleting=False)
OTHER_NODE = Node("node-2", "node-uid-2", "host-2", {}, deleting=False)


def persistent_volume(name: str = "pvc-1", uid: str = "uid-1", *, pinned: bool = True, **spec: Any) -> PersistentVolume:
    body: dict[str, Any] = {
        "metadata": {"name": name, "uid": uid, "resourceVersion": "7"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": {"namespace": "default", "name": "data", "uid": "claim-uid"},
            "flexVolume": {"driver": names.DRIVER, "fsType": "ext4", "options": {"size": str(GIB)}},
            **spec,
        },
        "status": {"phase": "Bound"},
    }
    if pinned:
        assignment = volume.node_assignment_patch(NodeAssignment(NODE.name, NODE.hostname, "vg"))
        body["metadata"] |= assignment["metadata"]
        body["spec"] = {**assignment["spec"], **body["spec"]}
    read = volume.read(body)
    assert read is not None
    return read


def of_elastic(hostname: str = "host-1", **spec: Any) -> PersistentVolume:
    """As elastic/local-volume made them: an affinity, no finalizer, no annotation."""
    expression = {"key": names.HOSTNAME_LABEL, "operator": "In", "values": [hostname]}
    affinity = {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}
    return persistent_volume(pinned=False, nodeAffinity=affinity, **spec)


def held(uid: str = "uid-1", *, state: VolumeState = VolumeState.READY, pool: str = "vg") -> Volume:
    return Volume(Record("pvc-1", uid, "Retain", "ext4", state), GIB, pool)
