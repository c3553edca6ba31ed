"""The snapshot objects of a cluster: their CustomResourceDefinitions, and what tests make of them."""

from typing import Any

from contract import names
from contract.snapshot import CONTENT_KIND, GROUP, SNAPSHOT_KIND, VERSION
from kube.client import Cluster
from kube.resources import SNAPSHOT_CLASSES, SNAPSHOT_CONTENTS, SNAPSHOTS, Resource

Json = dict[str, Any]

CUSTOM_RESOURCES = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", namespaced=False)

_KINDS = {
    SNAPSHOT_CLASSES: "VolumeSnapshotClass",
    SNAPSHOTS: SNAPSHOT_KIND,
    SNAPSHOT_CONTENTS: CONTENT_KIND,
}


def definitions() -> list[Json]:
    """That the three kinds are served. What their schemas would say, the API server of the sandbox knows."""
    return [_definition(resource, kind) for resource, kind in _KINDS.items()]


def _definition(resource: Resource, kind: str) -> Json:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": str(resource)},
        "spec": {
            "group": resource.group,
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": resource.plural, "singular": kind.lower()},
            "scope": "Namespaced" if resource.namespaced else "Cluster",
            "versions": [{"name": resource.version, "served": True, "storage": True}],
        },
    }


async def install(cluster: Cluster) -> None:
    """The CustomResourceDefinitions. The controller stand-in runs in every sandbox and waits for them."""
    for definition in definitions():
        await cluster.create(CUSTOM_RESOURCES, definition)


def snapshot_class(name: str, policy: str = "Delete", driver: str = names.CSI_DRIVER) -> Json:
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "VolumeSnapshotClass",
        "metadata": {"name": name},
        "driver": driver,
        "deletionPolicy": policy,
    }


def snapshot(name: str, claim: str = "", snapshot_class: str = "elastic-local", *, content: str = "") -> Json:
    """A VolumeSnapshot of a claim, or for a content that is there already."""
    source = {"volumeSnapshotContentName": content} if content else {"persistentVolumeClaimName": claim}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": SNAPSHOT_KIND,
        "metadata": {"name": name},
        "spec": {"source": source, "volumeSnapshotClassName": snapshot_class},
    }


def content(name: str, namespace: str, snapshot: str, policy: str = "Delete", **source: str) -> Json:
    """A VolumeSnapshotContent that an administrator makes. `source`: volumeHandle or snapshotHandle."""
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": CONTENT_KIND,
        "metadata": {"name": name},
        "spec": {
            "deletionPolicy": policy,
            "driver": names.CSI_DRIVER,
            "source": source,
            "volumeSnapshotRef": {"namespace": namespace, "name": snapshot},
        },
    }


def from_snapshot(name: str) -> Json:
    """The part of a claim's spec that asks for the data of a snapshot."""
    return {"dataSource": {"apiGroup": GROUP, "kind": SNAPSHOT_KIND, "name": name}}
