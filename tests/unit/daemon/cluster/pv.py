"""A PersistentVolume of this node as the daemon reads it, for decisions that need no API server."""

from dataclasses import replace

from contract import names
from contract.volume import DELETE, PersistentVolume


def pv(name: str, size: int, **changes: object) -> PersistentVolume:
    made = PersistentVolume(
        name=name,
        uid=f"uid-{name}",
        resource_version="1",
        size=size,
        options={},
        filesystem="ext4",
        reclaim_policy=DELETE,
        storage_class="fast",
        provisioned_by="",
        claim=None,
        node_label="node-1",
        hostnames=("host-1",),
        pool="vg",
        phase="Bound",
        finalizers=(names.FINALIZER,),
        deleting=False,
    )
    return replace(made, **changes)  # type: ignore[arg-type]
