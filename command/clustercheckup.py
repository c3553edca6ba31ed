"""The check-up of the cluster, as an administrator or a daemon's account sees it. What is read is read first, the
verdicts are pure functions of it."""

from collections.abc import AsyncGenerator, Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from command import classcheckup, nodeexec, permissions, snapshotcheckup
from command.checkup import Finding, counted, first, ok, unknown, wrong
from contract import capacity as contract_capacity
from contract import names
from contract import volume as contract_volume
from contract.capacity import Capacity
from contract.volume import PersistentVolume
from kube.client import Cluster
from kube.errors import ApiError, NotFound
from kube.records import Node, StorageClass, read_node, read_storage_class
from kube.resources import CAPACITIES, CLASSES, LEASES, NAMESPACES, NODES, PODS, VOLUMES

Json = dict[str, Any]

_LEASE_AGE = 60.0
"""Seconds. It is renewed every two; more than this is no leader, or clocks that differ."""
_STUCK = 600.0
"""Seconds that a PersistentVolume may take to go."""


@dataclass(frozen=True)
class Published:
    """A capacity object: whose it is and when it was last written."""

    capacity: Capacity
    owner_uid: str
    written: datetime | None


async def findings(cluster: Cluster, namespace: str, only_node: str = "") -> AsyncGenerator[Finding, None]:
    """Each as soon as it is known. `namespace`: as `nodeexec.namespace_of` takes it. `only_node`: a node's own view,
    with no more than its daemon's account may read. Raises ApiError for what can't be listed."""
    try:
        if only_node:
            nodes = [read_node(await cluster.get(NODES, only_node))]
        else:
            nodes = [read_node(body) for body in await cluster.list(NODES)]
    except ApiError as error:
        yield wrong("API server", f"it does not return {only_node or 'the nodes'}: {error}", "kubectl get nodes")
        return
    yield ok("API server", f"it knows {only_node or counted(len(nodes), 'node')}")
    for node in nodes:
        yield hostname(node)
    namespace = await nodeexec.namespace_of(cluster, namespace)
    if not only_node and (elsewhere := await _namespace(cluster, namespace)):
        yield elsewhere
        return
    for finding in await _permissions(cluster, namespace):
        yield finding
    if not only_node:
        yield await classcheckup.look_at_driver_object(cluster)
    classes = [read_storage_class(body) for body in await cluster.list(CLASSES)]
    ours = [each for each in classes if each.provisioner in names.PROVISIONERS]
    for finding in classcheckup.storage_classes(ours):
        yield finding
    if not only_node:
        for each in ours:
            for finding in await classcheckup.look_at_secrets(cluster, each):
                yield finding
        yield await _leader(cluster, namespace)
        yield await _daemons(cluster, namespace)
    published = [each for each in map(_published, await cluster.list(CAPACITIES, namespace)) if each is not None]
    for node in nodes:
        yield capacity_of(node, ours, published, datetime.now(UTC), namespace)
    if not only_node:
        publishing = {each.capacity.node for each in published}
        yield await classcheckup.look_at_registration(cluster, ours, publishing, nodes)
        volumes = [(contract_volume.read(body), body) for body in await cluster.list(VOLUMES)]
        yield stuck([(pv, _age(body)) for pv, body in volumes if pv is not None], nodes)
        for finding in await snapshotcheckup.findings(cluster, namespace):
            yield finding


async def _namespace(cluster: Cluster, namespace: str) -> Finding | None:
    """Without it, what follows would only repeat that there is nothing."""
    try:
        await cluster.get(NAMESPACES, namespace)
    except NotFound:
        where = "kubectl get daemonsets --all-namespaces -l app.kubernetes.io/name=elastic-local"
        return wrong("namespace", f"there is no namespace {namespace}, so no daemon or provisioner in it", where)
    except ApiError:
        pass  # who may not see it may see what is in it
    return None


def hostname(node: Node) -> Finding:
    check = f"node {node.name}: hostname label"
    if not node.hostname:
        remedy = f"kubectl label node {node.name} {names.HOSTNAME_LABEL}={node.name}"
        return wrong(check, f"it has no label {names.HOSTNAME_LABEL}, so no volume can be assigned to it", remedy)
    return ok(check, node.hostname)


async def _permissions(cluster: Cluster, namespace: str) -> list[Finding]:
    me = await permissions.own_account(cluster, namespace)
    results = []
    for account in [me] if me else permissions.ACCOUNTS:
        check = f"permissions of the {account}"
        try:
            absent = await permissions.missing(cluster, account, namespace, own=bool(me))
        except ApiError as error:
            results.append(unknown(check, f"the API server does not answer: {error}", "ask as an administrator"))
            continue
        if absent:
            results.append(wrong(check, f"it may not {'; '.join(absent)}", "kubectl apply -k deploy/base"))
        else:
            results.append(ok(check, "all that it needs"))
    return results


async def _leader(cluster: Cluster, namespace: str) -> Finding:
    try:
        body = await cluster.get(LEASES, permissions.LEASE, namespace)
    except ApiError as error:
        remedy = f"kubectl -n {namespace} get pods -l app.kubernetes.io/component=provisioner"
        return wrong("provisioner", f"none has ever led: {error}", remedy)
    return leader(body["spec"], datetime.now(UTC), namespace)


def leader(spec: Json, now: datetime, namespace: str) -> Finding:
    holder, renewed = spec.get("holderIdentity"), _time(spec.get("renewTime"))
    remedy = f"kubectl -n {namespace} logs -l app.kubernetes.io/component=provisioner --tail 50"
    if not holder or renewed is None:
        return wrong("provisioner", "none leads now", remedy)
    age = (now - renewed).total_seconds()
    if age > _LEASE_AGE:
        return wrong("provisioner", f"{holder} last renewed its lease {age:.0f} s ago", remedy)
    if age < -_LEASE_AGE:
        return wrong("provisioner", f"the clock of {holder} is {-age:.0f} s ahead of this one", "timedatectl status")
    return ok("provisioner", f"{holder} leads")


async def _daemons(cluster: Cluster, namespace: str) -> Finding:
    try:
        return daemons(await cluster.list(PODS, namespace, label_selector=nodeexec.DAEMONS), namespace)
    except ApiError as error:
        return unknown("daemons", f"the API server does not list their pods: {error}", "ask as an administrator")


def daemons(pods: Iterable[Json], namespace: str) -> Finding:
    """Whether there is one that is ready on each node that has any. What a daemon published stays when it is not."""
    check, see = "daemons", f"kubectl -n {namespace} get pods -l app.kubernetes.io/component=daemon -o wide"
    ready, late = set(), dict[str, str]()
    for body in pods:
        node = body["spec"].get("nodeName") or "a pod without a node"
        if why := _not_ready(body):
            late.setdefault(node, why)
        else:
            ready.add(node)
    if missing := late.keys() - ready:
        return wrong(check, f"not ready: {first(f'{node} ({late[node]})' for node in missing)}", f"{see}; then its log")
    if not ready:
        return unknown(check, f"no pod of one is in namespace {namespace}", see)
    return ok(check, f"ready on {counted(len(ready), 'node')}")


def _not_ready(pod: Json) -> str:
    """Why a pod is not ready, in a word of Kubernetes. Empty: it is."""
    status = pod.get("status") or {}
    conditions = {each["type"]: each["status"] for each in status.get("conditions") or ()}
    if "deletionTimestamp" in pod["metadata"]:
        return "Terminating"
    if conditions.get("Ready") == "True":
        return ""
    containers = (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ()))
    waiting = ((each.get("state") or {}).get("waiting") or {} for each in containers)
    reasons = [str(each["reason"]) for each in waiting if each.get("reason")]
    return str(status.get("reason") or next(iter(reasons), "") or status.get("phase") or "Pending")


def capacity_of(
    node: Node,
    classes: Iterable[StorageClass],
    published: Iterable[Published],
    now: datetime,
    namespace: str = names.NAMESPACE,
) -> Finding:
    """The scheduler takes a node without an object for one without capacity."""
    check = f"node {node.name}: published capacity"
    logs = f"kubectl -n {namespace} get pods -l app.kubernetes.io/component=daemon -o wide | grep {node.name}"
    here = [each for each in published if each.capacity.node == names.node_label_value(node.name)]
    if not here:
        return wrong(check, "none: its daemon does not run, or can't reach the API server", logs)
    stale = sorted(each.capacity.storage_class for each in here if each.owner_uid not in ("", node.uid))
    if stale:
        return wrong(check, f"for {', '.join(stale)} it is that of an earlier node of this name", logs)
    elsewhere = sorted({each.capacity.hostname for each in here} - {node.hostname})
    if elsewhere:
        return wrong(check, f"it names the hostname {', '.join(elsewhere)}, the label is {node.hostname}", logs)
    absent = sorted({each.name for each in classes} - {each.capacity.storage_class for each in here})
    if absent:
        return wrong(check, f"none for {', '.join(absent)}", logs)
    written = [each.written for each in here if each.written]
    ahead = max(((each - now).total_seconds() for each in written), default=0.0)
    if ahead > _LEASE_AGE:
        return wrong(check, f"written {ahead:.0f} s in the future: clocks differ", "timedatectl status")
    last = f", last changed {_humane((now - max(written)).total_seconds())} ago" if written else ""
    return ok(check, f"for {counted(len(here), 'class', 'classes')}{last}")


def stuck(volumes: Iterable[tuple[PersistentVolume, float | None]], nodes: Collection[Node]) -> Finding:
    """PersistentVolumes that are being deleted for long, with the seconds since."""
    labels = {names.node_label_value(node.name) for node in nodes}
    late = [pv for pv, age in volumes if age is not None and age > _STUCK and names.FINALIZER in pv.finalizers]
    if not late:
        return ok("reclaim", "no volume waits for its node")
    gone = sorted(pv.name for pv in late if pv.node_label not in labels)
    message = f"waiting for more than {_STUCK / 60:.0f} minutes: {', '.join(sorted(pv.name for pv in late))}"
    if gone:
        return wrong(
            "reclaim", f"{message}; the node of {', '.join(gone)} is gone", "docs/operations.md, A node is lost"
        )
    return wrong("reclaim", message, f"kubectl describe pv {late[0].name}")


def _published(body: Json) -> Published | None:
    capacity = contract_capacity.read(body)
    if capacity is None:
        return None
    metadata = body["metadata"]
    owner = next((each["uid"] for each in metadata.get("ownerReferences") or [] if each["kind"] == "Node"), "")
    times = [_time(each.get("time")) for each in metadata.get("managedFields") or []]
    written = max((each for each in times if each), default=_time(metadata.get("creationTimestamp")))
    return Published(capacity, owner, written)


def _age(body: Json) -> float | None:
    since = _time(body["metadata"].get("deletionTimestamp"))
    return (datetime.now(UTC) - since).total_seconds() if since else None


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _humane(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
