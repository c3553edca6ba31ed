"""Claims that grow, and what the others do about it: for the tests of both protocols."""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from contract import names, quantity
from contract.volume import PersistentVolume
from kube.records import Claim
from kube.resources import CLAIMS, VOLUMES
from provisioner.expansion import ExpansionPlan, plan, status_patch, wanted_conditions
from tests.memorycluster import MemoryCluster
from tests.unit.provisioner.leader import PV, volume
from tests.unit.provisioner.leader import claim as stored
from tests.unit.provisioner.objects import (
    CLASS,
    claim,
)
from tests.waiting import until

FULL = "no capacity"
"""Why it is refused."""
AMOUNTS = {
    "asked": st.integers(1, 100),
    "given": st.integers(1, 50),
    "grant": st.integers(0, 50),
    "real": st.integers(0, 60),
    "behind": st.integers(0, 50),
    "raised": st.integers(0, 50),
    "has_capacity": st.booleans(),
}
"""What a claim asks for; what its volume began with, was granted beyond that, and really has; how far the claim's
status is behind, and spec.capacity beyond that."""


def grown(
    size: int, *, granted: int | None = 300, actual: int = 300, given: int = 300, **changes: Any
) -> PersistentVolume:
    """With `size` for its spec.capacity."""
    made = PersistentVolume(
        name=PV,
        uid="uid",
        resource_version="1",
        size=size,
        options={"size": str(given)} if given else {},
        filesystem="ext4",
        reclaim_policy="Delete",
        storage_class=CLASS,
        provisioned_by=names.PROVISIONER,
        claim=None,
        node_label="n1",
        hostnames=("host-n1",),
        pool="vg",
        phase="Bound",
        finalizers=(),
        deleting=False,
        made=True,
        granted=granted,
        actual=actual,
    )
    return replace(made, **changes)


def asking(size: int, *, has: int = 300, allocated: int = 0, status: str = "") -> Claim:
    return replace(claim(volumeName=PV), requested=size, capacity=has, allocated=allocated, resize_status=status)


def planned_again(
    volume: PersistentVolume, claim: Claim, refused: str, planned: ExpansionPlan, *, in_grace: bool
) -> ExpansionPlan:
    """A plan is a goal, and no swing: once it is written nothing is left to write."""
    settled = replace(volume, granted=planned.granted, size=planned.capacity, pre_resize=planned.pre_resize)
    rewritten = written(volume, claim, planned)
    again = plan(settled, rewritten, refused, in_grace=in_grace)
    assert status_patch(settled, rewritten, again, "") == {}
    return again


def written(volume: PersistentVolume, claim: Claim, planned: ExpansionPlan) -> Claim:
    """The claim with its status as planned."""
    found = replace(claim, allocated=planned.allocated or claim.allocated)
    if planned.step is None:
        return found
    conditions: dict[str, str | None] = dict(claim.resize_conditions)
    if volume.source == "csi":
        conditions |= wanted_conditions(planned.step, planned.refused)
    kept = tuple((kind, text) for kind, text in conditions.items() if text is not None)
    return replace(found, resize_status=planned.step, resize_conditions=kept)


# A term of leadership, and the others played: Kubernetes raises spec.capacity, the node does what it is granted.


async def bound(cluster: MemoryCluster, *, size: str = "1Gi", made: bool = True) -> None:
    """The claim of `data` has its volume."""
    await until(lambda: volume(cluster))
    body = volume(cluster)
    assert body
    body["status"] = {"phase": "Bound"}
    if made:
        body["metadata"]["annotations"] |= {
            names.MADE_ANNOTATION: "true",
            names.SIZE_ANNOTATION: str(quantity.parse(size)),
        }
    cluster.put(VOLUMES, body)
    asked = stored(cluster)
    asked["spec"]["volumeName"] = PV
    asked["status"] = {"phase": "Bound", "capacity": {"storage": size}}
    cluster.put(CLAIMS, asked)


def ask(cluster: MemoryCluster, size: str, *, raises_capacity: bool = True) -> None:
    body = stored(cluster)
    body["spec"]["resources"]["requests"]["storage"] = size
    cluster.put(CLAIMS, body)
    if raises_capacity:
        body["status"] |= {
            "allocatedResources": {"storage": size},
            "allocatedResourceStatuses": {"storage": "NodeResizePending"},
        }
        cluster.put(CLAIMS, body)
        kept = volume(cluster)
        assert kept
        kept["spec"]["capacity"]["storage"] = size
        cluster.put(VOLUMES, kept)


def node_has(cluster: MemoryCluster, size: str) -> None:
    body = volume(cluster)
    assert body
    body["metadata"]["annotations"][names.SIZE_ANNOTATION] = str(quantity.parse(size))
    cluster.put(VOLUMES, body)


def figures(cluster: MemoryCluster) -> tuple[str, str]:
    """Granted, and spec.capacity."""
    body = volume(cluster)
    assert body
    return (
        quantity.render(int(body["metadata"]["annotations"][names.GRANTED_ANNOTATION])),
        str(body["spec"]["capacity"]["storage"]),
    )
