"""How a PersistentVolume of ours looks when it is created."""

from contract import names, parameters, quantity, volume
from contract.volume import Json, Pin
from kube.records import Claim, StorageClass
from provisioner.decision import FILESYSTEM, Create


def volume_name(claim_uid: str) -> str:
    """The name follows from the claim, so that two who provision the same claim collide instead of making two."""
    return f"pvc-{claim_uid}"


def persistent_volume(claim: Claim, storage_class: StorageClass, create: Create) -> Json:
    """The manifest. Mount options travel in the driver's options: the kubelet refuses a FlexVolume with
    spec.mountOptions. A volume with a place is tied to it here, others by their first mount."""
    body: Json = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": volume_name(claim.uid),
            "annotations": {
                names.PROVISIONED_BY: storage_class.provisioner,
                names.GRANTED_ANNOTATION: str(create.size),
            },
        },
        "spec": {
            "capacity": {"storage": quantity.render(create.size)},
            "accessModes": list(claim.access_modes),
            "volumeMode": FILESYSTEM,
            "persistentVolumeReclaimPolicy": storage_class.reclaim_policy,
            "storageClassName": storage_class.name,
            "claimRef": {
                "kind": "PersistentVolumeClaim",
                "apiVersion": "v1",
                "namespace": claim.namespace,
                "name": claim.name,
                "uid": claim.uid,
                "resourceVersion": claim.resource_version,
            },
            "flexVolume": {
                "driver": names.DRIVER,
                "fsType": create.parameters.filesystem,
                "options": {
                    **parameters.to_options(create.parameters, create.size),
                    **(create.original.to_options() if create.original else {}),
                },
            },
        },
    }
    if create.place is not None:
        place = create.place
        pinning = volume.pinning(Pin(place.node, place.hostname, place.pool))
        body["metadata"]["annotations"] |= pinning["metadata"].pop("annotations")
        body["metadata"] |= pinning["metadata"]
        body["spec"] |= pinning["spec"]
    return body
