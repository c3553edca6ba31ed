"""The check-up of snapshots, as an administrator sees them: their kinds, the controller that all drivers share, the
rights and classes of our component, and whether anybody looks after them. What is read is read first, the verdicts are
pure functions of it.

Sources: cmd/snapshot-controller/main.go and deploy/kubernetes of kubernetes-csi/external-snapshotter v8.6.0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from command import permissions
from command.checkup import Finding, first, ok, unknown, wrong
from contract import names, snapshot
from contract.snapshot import SnapshotContent
from kube.client import Cluster
from kube.errors import ApiError
from kube.resources import LEASES, PODS, SNAPSHOT_CLASSES, SNAPSHOT_CONTENTS, SNAPSHOTS, Resource

Json = dict[str, Any]

NOT_SERVED = 404
"""The status of a list of a kind that there is not: a list names no object that could be missing."""
_CHECK = "snapshots"
_KINDS = (SNAPSHOTS, SNAPSHOT_CONTENTS, SNAPSHOT_CLASSES)
_LEASE = "snapshot-controller-leader"
_LABELS = ("app.kubernetes.io/name=snapshot-controller", "app in (snapshot-controller,csi-snapshot-controller)")
_LATE = 60.0
"""Seconds. The snapshot-controller renews its lease every few, and binds a VolumeSnapshot at once."""
_STUCK = 600.0
"""Seconds that a content may be without a word of its node, or take to go."""
_INSTALL = "install them: docs/operations.md, Snapshots"
_DEPLOY = "deploy an overlay with components/snapshots: docs/operations.md, Snapshots"


@dataclass(frozen=True)
class SnapshotState:
    """What a cluster has of snapshots."""

    absent: tuple[Resource, ...]
    """The kinds that the API server does not serve."""
    controller: str
    """What shows that a snapshot-controller runs. Empty: nothing."""
    lease_age: float | None
    """Seconds since the snapshot-controller renewed its lease. None: there is no lease."""
    snapshots: Sequence[Json]
    """VolumeSnapshots of all drivers."""
    classes: tuple[str, ...]
    """Names of the VolumeSnapshotClasses of our driver."""
    contents: Sequence[tuple[SnapshotContent, Json]]
    """Of our driver."""
    lacking: Mapping[str, Sequence[str]]
    """What our accounts may not do, of what the component gives them."""
    deployed: bool
    """Whether an account of ours has any of these rights."""


async def findings(cluster: Cluster, namespace: str) -> list[Finding]:
    try:
        state = await _state(cluster, namespace)
    except ApiError as error:
        return [unknown(_CHECK, f"the API server does not say what there is: {error}", "ask as an administrator")]
    return verdicts(state, datetime.now(UTC), namespace)


async def listed(cluster: Cluster, kind: Resource) -> list[Json] | None:
    """The objects of a kind, None where the API server does not serve it. Raises ApiError."""
    try:
        return await cluster.list(kind)
    except ApiError as error:
        if error.status == NOT_SERVED:
            return None
        raise


async def _state(cluster: Cluster, namespace: str) -> SnapshotState:
    """Raises ApiError."""
    served = {kind: await listed(cluster, kind) for kind in _KINDS}
    objects = {kind: found for kind, found in served.items() if found is not None}
    leases = await cluster.list(LEASES, field_selector=f"metadata.name={_LEASE}")
    renewed = [_time(lease["spec"].get("renewTime")) for lease in leases]
    ages = [(datetime.now(UTC) - time).total_seconds() for time in renewed if time]
    pods = [pod for label in _LABELS for pod in await cluster.list(PODS, label_selector=label)]
    running = [pod["metadata"]["name"] for pod in pods if (pod.get("status") or {}).get("phase") == "Running"]
    lacking, asked = {}, 0
    for account, rights in permissions.SNAPSHOTS.items():
        lacking[account] = await permissions.missing(cluster, account, namespace, own=False, rights=rights)
        asked += sum(len(right.verbs) for right in rights)
    read = [(snapshot.read(body), body) for body in objects.get(SNAPSHOT_CONTENTS, ())]
    return SnapshotState(
        tuple(kind for kind in _KINDS if kind not in objects),
        next(iter(running), ""),
        min(ages, default=None),
        objects.get(SNAPSHOTS, ()),
        tuple(
            body["metadata"]["name"]
            for body in objects.get(SNAPSHOT_CLASSES, ())
            if body.get("driver") == names.CSI_DRIVER
        ),
        [(content, body) for content, body in read if content is not None],
        lacking,
        deployed=sum(map(len, lacking.values())) < asked,
    )


def verdicts(state: SnapshotState, now: datetime, namespace: str = names.NAMESPACE) -> list[Finding]:
    if state.absent:
        return [_kinds(state)]
    return [_controller(state, now), _component(state), _contents(state, now, namespace)]


def _kinds(state: SnapshotState) -> Finding:
    absent = ", ".join(map(str, state.absent))
    if len(state.absent) < len(_KINDS):
        return wrong(_CHECK, f"the API server serves some of their kinds, and no {absent}", _INSTALL)
    if state.controller or state.lease_age is not None:
        return wrong(_CHECK, f"a snapshot-controller runs, and their kinds are not installed: no {absent}", _INSTALL)
    if state.deployed:
        return wrong(
            _CHECK, f"components/snapshots is deployed, and their kinds are not installed: no {absent}", _INSTALL
        )
    return ok(_CHECK, "not installed, and not wanted")


def _controller(state: SnapshotState, now: datetime) -> Finding:
    check = "snapshot-controller"
    waiting = [
        f"{body['metadata']['namespace']}/{body['metadata']['name']}"
        for body in state.snapshots
        if not _status(body) and "deletionTimestamp" not in body["metadata"] and (_age(body, now) or 0) > _LATE
    ]
    if waiting:
        return wrong(check, f"nobody takes notice of VolumeSnapshots, as of {first(waiting)}", _INSTALL)
    if state.lease_age is not None and state.lease_age > _LATE and not state.controller:
        return wrong(check, f"it last renewed its lease {state.lease_age:.0f} s ago", "see its pods and their log")
    if state.controller or state.lease_age is not None:
        return ok(check, f"{state.controller} runs" if state.controller else "it holds its lease")
    bound = any(_status(body).get("boundVolumeSnapshotContentName") for body in state.snapshots)
    if bound:
        return unknown(check, "neither its lease nor its pods are to be seen, but VolumeSnapshots were bound", _INSTALL)
    if not (state.deployed or state.classes):
        return unknown(check, "neither its lease nor its pods are to be seen, and we don't need it")
    return wrong(check, "the kinds of snapshots are installed, and it is not: neither its lease nor its pods", _INSTALL)


def _component(state: SnapshotState) -> Finding:
    check = "component snapshots"
    if not (state.deployed or state.classes):
        return ok(check, "not deployed, so there are no snapshots of our volumes")
    lacking = [f"the {account} may not {'; '.join(rights)}" for account, rights in state.lacking.items() if rights]
    if lacking:
        what = f"VolumeSnapshotClass {state.classes[0]} is there" if state.classes else "some of it is deployed"
        return wrong(check, f"{what}, and {', and '.join(lacking)}", _DEPLOY)
    if not state.classes:
        message = f"no VolumeSnapshotClass has the driver {names.CSI_DRIVER}, so nobody can ask for a snapshot"
        return wrong(check, message, "kubectl apply -f deploy/components/snapshots/classes.yaml")
    return ok(check, f"VolumeSnapshotClass {', '.join(sorted(state.classes))}")


def _contents(state: SnapshotState, now: datetime, namespace: str) -> Finding:
    """Whether each is assigned to a node, and its daemon or the provisioner works on it."""
    check = "VolumeSnapshotContents"
    unassigned: list[str] = []
    silent: list[str] = []
    staying: list[str] = []
    for content, body in state.contents:
        if content.deleting:
            gone_since = _seconds(body["metadata"]["deletionTimestamp"], now)
            if content.reclaimable and snapshot.FINALIZER in content.finalizers and gone_since > _STUCK:
                staying.append(content.name)
        elif not (content.ready or content.error or content.being_created) and (_age(body, now) or 0) > _STUCK:
            (silent if content.node_label else unassigned).append(content.name)
    if unassigned:
        log = f"kubectl -n {namespace} logs -l app.kubernetes.io/component=provisioner --tail 50"
        return wrong(check, f"the provisioner takes no notice of {first(unassigned)}", log)
    if silent:
        daemons = f"kubectl -n {namespace} get pods -l app.kubernetes.io/component=daemon -o wide"
        return wrong(check, f"the daemon of their node takes no notice of {first(silent)}", daemons)
    if staying:
        message = f"waiting for more than {_STUCK / 60:.0f} minutes to go: {first(staying)}"
        return wrong(check, message, f"kubectl describe volumesnapshotcontent {staying[0]}")
    return ok(check, f"{len(state.contents)} of ours, and none waits for us")


def _status(body: Json) -> Json:
    status: Json = body.get("status") or {}
    return status


def _age(body: Json, now: datetime) -> float | None:
    created = body["metadata"].get("creationTimestamp")
    return _seconds(created, now) if created else None


def _seconds(since: str, now: datetime) -> float:
    return (now - datetime.fromisoformat(since)).total_seconds()


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
