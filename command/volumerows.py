"""The rows of `volumes`: the volumes on the nodes, joined with what the API server knows of them. Pure.

A node knows its volumes by their records and nothing of claims; the API server knows PersistentVolumes, claims and
pods, and nothing of what really lies on a disk. The two meet by the uid of the PersistentVolume.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from contract import names, quantity
from contract.parameters import ENCRYPTION, ParameterError
from contract.volume import RELEASED, PersistentVolume
from daemon.storage.inventory import Inventory, Volume, VolumeHealth
from daemon.storage.record import VolumeState
from kube.records import Node, Pod

READY, FORMATTING, FOREIGN, DAMAGED = "ready", "formatting", "foreign", "damaged"
SNAPSHOT = "snapshot"
"""Of a volume that is copied. It goes by itself."""
ORPHAN = "orphan"
"""Ours, and no PersistentVolume has it: kept under policy Retain, or left behind."""
PENDING = "pending"
"""The PersistentVolume is there, its volume not yet."""
RELEASED_STATE = "released"
"""Its claim is gone."""
DELETING = "deleting"
LOST = "lost"
"""Assigned to a node that the cluster does not have."""
UNSEEN = "unseen"
"""Its node was not asked, or did not answer, or can't see all of its storage now. A row of that state without a uid
names such storage."""


@dataclass(frozen=True)
class Row:
    """One volume. Sizes in bytes; None: not known here, as `used` is of what is not mounted."""

    volume: str
    uid: str
    node: str
    state: str
    size: int
    used: int | None = None
    filesystem: str = ""
    encryption: str = ""
    """LUKS2. Empty: it is not encrypted."""
    policy: str = ""
    pool: str = ""
    claim: str = ""
    source: str = ""
    """FLEX_VOLUME or CSI, of its PersistentVolume."""
    cluster: str = ""
    """Identity of the one that its record names."""
    pods: tuple[str, ...] = ()
    """Uids as the node knows them, namespace/name where the API server was asked."""
    remark: str = ""
    io_limits: str = ""
    """Of each of its pods, as the class has them. Empty: none, or the API server was not asked."""


def of_node(
    inventory: Inventory, node: str, used: Mapping[str, int], mounted_by: Mapping[str, tuple[str, ...]]
) -> list[Row]:
    """What a node says by itself. `used` and `mounted_by`, the uids of pods, are by name of the volume."""
    rows = [
        Row(
            volume=volume.pv,
            uid=volume.record.uid,
            node=node,
            state=volume.record.state.value,
            size=volume.size,
            used=used.get(volume.pv),
            filesystem=volume.record.filesystem,
            encryption=volume.record.encryption,
            policy=volume.record.policy,
            pool=volume.pool,
            cluster=volume.record.cluster,
            pods=mounted_by.get(volume.pv, ()),
            remark=_remark(volume),
        )
        for volume in inventory.volumes
    ]
    rows += [Row(entry.name, "", node, FOREIGN, entry.size, pool=entry.pool) for entry in inventory.foreign]
    rows += [Row(entry.name, "", node, DAMAGED, 0, pool=entry.pool, remark=entry.reason) for entry in inventory.damaged]
    rows += [
        Row(entry.pv, "", node, SNAPSHOT, entry.size, pool=entry.pool, remark=_snapshot_remark(entry))
        for entry in inventory.snapshots
    ]
    rows += [Row("-", "", node, UNSEEN, 0, pool=hidden.pool, remark=hidden.reason) for hidden in inventory.unavailable]
    return sorted(rows, key=lambda row: row.volume)


def _remark(volume: Volume) -> str:
    complaint = "" if volume.health is VolumeHealth.OK else volume.health.value
    if volume.record.state is not VolumeState.ERASING:
        return complaint
    return f"{100 * volume.record.erased // max(volume.device_size, 1)}% of its data is gone {complaint}".rstrip()


def _snapshot_remark(snapshot: Volume) -> str:
    return f"of {snapshot.record.snapshot_of} while that is copied {_remark(snapshot)}".rstrip()


def joined(
    node_rows: Iterable[Row],
    volumes: Collection[PersistentVolume],
    pods: Iterable[Pod],
    nodes: Sequence[Node],
    answered: Collection[str],
    cluster: str = "",
) -> list[Row]:
    """`node_rows` is what the nodes in `answered` said. What they hold gets its claim and pods; a PersistentVolume that
    none of them holds gets a row of its own. `cluster` is the identity of this one. Empty: it could not be read."""
    by_uid = {volume.uid: volume for volume in volumes}
    users = _users(pods)
    rows = [_known(row, by_uid.get(row.uid), users, cluster) for row in node_rows]
    seen = {row.uid for row in rows if row.uid}
    hidden = {(row.node, row.pool): row.remark for row in rows if row.state == UNSEEN and not row.uid}
    rows += [_without_node_row(volume, nodes, answered, users, hidden) for volume in volumes if volume.uid not in seen]
    return sorted(rows, key=lambda row: (row.node, row.volume))


def _users(pods: Iterable[Pod]) -> Mapping[str, tuple[str, ...]]:
    """Pods by claim, both as namespace/name."""
    users: dict[str, list[str]] = {}
    for pod in pods:
        for volume in pod.volumes:
            users.setdefault(f"{pod.namespace}/{volume.claim}", []).append(pod.key)
    return {claim: tuple(sorted(keys)) for claim, keys in users.items()}


def _known(row: Row, volume: PersistentVolume | None, users: Mapping[str, tuple[str, ...]], cluster: str) -> Row:
    if cluster and row.cluster not in ("", cluster):
        theirs = f"of another cluster ({row.cluster}): `elastic-local adopt {row.volume}` takes it over"
        return replace(row, state=FOREIGN, remark=theirs)
    if volume is None:
        return replace(row, state=ORPHAN) if row.state == READY else row
    state = row.state
    if state == READY and volume.deleting:
        state = DELETING
    elif state == READY and volume.phase == RELEASED:
        state = RELEASED_STATE
    claim = str(volume.claim or "")
    return replace(
        row,
        state=state,
        claim=claim,
        source=volume.source,
        pods=users.get(claim, ()),
        policy=volume.reclaim_policy,
        io_limits=io_limits(volume),
    )


def _without_node_row(
    volume: PersistentVolume,
    nodes: Sequence[Node],
    answered: Collection[str],
    users: Mapping[str, tuple[str, ...]],
    hidden: Mapping[tuple[str, str], str],
) -> Row:
    """`hidden`: why not all of a pool can be seen, by node and pool."""
    node = next((node for node in nodes if _is_on(volume, node)), None)
    claim = str(volume.claim or "")
    state, remark = PENDING, "the first mount chooses its node"
    if volume.pinned and node is None:
        state, remark = LOST, "no node of the cluster has its hostname"
    elif node and (
        why := hidden.get((node.name, volume.pool)) or hidden.get((node.name, volume.pool.partition("/")[0]))
    ):
        state, remark = UNSEEN, why
    elif node and node.name in answered:
        remark = "its node has not made it yet: see the events of the PersistentVolume"
    elif node:
        state, remark = UNSEEN, "its node did not answer"
    return Row(
        volume=volume.name,
        uid=volume.uid,
        node=node.name if node else ", ".join(volume.hostnames),
        state=state,
        size=volume.size,
        filesystem=volume.filesystem,
        encryption=volume.options.get(ENCRYPTION, ""),
        policy=volume.reclaim_policy,
        pool=volume.pool,
        claim=claim,
        source=volume.source,
        pods=users.get(claim, ()),
        remark=remark,
        io_limits=io_limits(volume),
    )


def io_limits(volume: PersistentVolume) -> str:
    """As `r=100Mi/s,2000/s w=500/s`."""
    try:
        asked = volume.parameters()
    except ParameterError:
        return ""
    ways = {"r": (asked.read_bandwidth, asked.read_iops), "w": (asked.write_bandwidth, asked.write_iops)}
    told = {
        way: [*([f"{quantity.humane(rate)}/s"] if rate else []), *([f"{iops}/s"] if iops else [])]
        for way, (rate, iops) in ways.items()
    }
    return " ".join(f"{way}={','.join(figures)}" for way, figures in told.items() if figures)


def _is_on(volume: PersistentVolume, node: Node) -> bool:
    if volume.node_label:
        return volume.node_label == names.node_label_value(node.name)
    return node.hostname in volume.hostnames
