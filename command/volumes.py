"""`volumes`: every volume of this node, or of the cluster, with its claim and what uses it."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import typer

from command import nodeexec
from command.options import ApiAccess, Form
from command.running import cluster, need_root, patience, run
from command.table import Column, show, size
from command.terminal import visible
from command.volumerows import Row, joined
from contract import names
from contract import volume as contract_volume
from contract.volume import PersistentVolume
from daemon.cluster.ownerlookup import read_cluster_uid
from kube.client import Cluster
from kube.errors import ApiError, Unreachable
from kube.kubeconfig import ConfigurationError
from kube.records import Pod, read_node, read_pod
from kube.resources import NODES, PODS, VOLUMES

GONE = "gone"
"""State of a volume that was there, with --watch."""
_WATCH_SECONDS = 2.0
"""Between two looks."""
_IMPATIENT = 5.0
"""Seconds for the API server, which only adds to the answer: what the node knows is shown without it."""
_LONGEST = 10.0
"""Seconds for each request to the API server, of which there are a dozen."""

_COLUMNS = (
    Column[Row]("node", lambda row: row.node or "-"),
    Column[Row]("volume", lambda row: row.volume),
    Column[Row]("claim", lambda row: row.claim or "-"),
    Column[Row]("pods", lambda row: " ".join(row.pods) or "-"),
    Column[Row]("size", lambda row: size(row.size), right=True),
    Column[Row]("used", lambda row: size(row.used), right=True),
    Column[Row]("filesystem", lambda row: row.filesystem or "-", wide=True),
    Column[Row]("encryption", lambda row: row.encryption or "-", wide=True),
    Column[Row]("source", lambda row: row.source or "-"),
    Column[Row]("pool", lambda row: row.pool or "-", wide=True),
    Column[Row]("limits", lambda row: row.io_limits or "-", wide=True),
    Column[Row]("policy", lambda row: row.policy or "-"),
    Column[Row]("state", lambda row: row.state),
    Column[Row]("remark", lambda row: row.remark),
)


@dataclass(frozen=True)
class Seen:
    """What one look found."""

    rows: list[Row]
    remarks: tuple[str, ...] = ()
    """Why it is not all that there is to say."""
    complete: bool = True
    """Whether each node, and the API server, answered."""
    silent: frozenset[str] = frozenset()
    """The nodes that did not."""


Look = Callable[[], Coroutine[Any, Any, Seen]]


def volumes(whole_cluster: bool, local: bool, watch: bool, namespace: str, access: ApiAccess, form: Form) -> None:
    def look() -> Coroutine[Any, Any, Seen]:
        return _of_cluster(namespace, access) if whole_cluster else _of_node(local, access)

    if watch:
        run(_watch(look, form))
    seen = run(look())
    _tell(seen.remarks)
    _show(seen.rows, form, nothing="no volumes" if whole_cluster else "no volumes on this node; with --cluster: of all")
    if not seen.complete:
        raise typer.Exit(1)


def _tell(remarks: Iterable[str]) -> None:
    for each in remarks:
        typer.echo(visible(each), err=True)


def _show(rows: list[Row], form: Form, *, nothing: str = "", titles: bool = True) -> None:
    show(rows, _COLUMNS, form, nothing=nothing, name=_name, titles=titles)


async def _watch(look: Look, form: Form) -> NoReturn:
    """All volumes, and then each that changes; what goes is shown once more as gone. Until it is interrupted. A remark
    is told when it was not one of the look before. Once there was an answer, an API server that gives none is waited
    for, and what nobody could see is not gone."""
    known: dict[tuple[str, str], Row] | None = None
    told: tuple[str, ...] = ()
    while True:
        try:
            seen = await look()
        except Unreachable as error:
            if known is None:
                raise
            seen = Seen(list(known.values()), (f"{error}: it is asked again until it answers",), complete=False)
        _tell(remark for remark in seen.remarks if remark not in told)
        told = seen.remarks
        now = {(row.node, row.volume): row for row in seen.rows}
        now |= {key: row for key, row in (known or {}).items() if row.node in seen.silent and key not in now}
        if changed := changes(known or {}, now):
            _show(changed, form, titles=known is None)
        known = now
        await asyncio.sleep(_WATCH_SECONDS)


def changes(before: Mapping[tuple[str, str], Row], now: Mapping[tuple[str, str], Row]) -> list[Row]:
    """The volumes that are not as they were, by node and name; how full one is, is no change."""
    changed = [row for key, row in now.items() if key not in before or _unfilled(before[key]) != _unfilled(row)]
    return changed + [replace(row, state=GONE) for key, row in before.items() if key not in now]


def _unfilled(row: Row) -> Row:
    return replace(row, used=None)


def _name(row: Row) -> str:
    """What has no PersistentVolume is nothing that kubectl knows."""
    return f"persistentvolume/{row.volume}" if row.source else ""


async def _of_node(local: bool, access: ApiAccess) -> Seen:
    from command import thisnode

    need_root("looking into the volumes of this node", "or add --cluster for those of all nodes")
    chosen = thisnode.chosen()
    async with patience("looking at the volumes of this node"):
        rows = await thisnode.rows(chosen)
    if local:
        return Seen(rows)
    try:
        async with patience("asking the API server for their claims"), cluster(access, _IMPATIENT) as connected:
            volumes, pods = await _known(connected)
            node = read_node(await connected.get(NODES, chosen.node_name))
            here, remarks = await _identity(connected)
    except (ApiError, ConfigurationError) as error:
        return Seen(rows, (f"without claims, and orphans are not marked: {error}",), complete=False)
    label = names.node_label_value(chosen.node_name)
    mine = [volume for volume in volumes if volume.node_label == label or volume.uid in {row.uid for row in rows}]
    return Seen(joined(rows, mine, pods, [node], {chosen.node_name}, here), remarks)


async def _of_cluster(namespace: str, access: ApiAccess) -> Seen:
    """The same of all nodes: it is not all when one did not answer."""
    answers = nodeexec.Answers()
    async with patience(lambda: str(answers)), cluster(access, _LONGEST) as connected:
        volumes, pods = await _known(connected)
        nodes = [read_node(body) for body in await connected.list(NODES)]
        namespace = await nodeexec.namespace_of(connected, namespace)
        await nodeexec.ask(connected, namespace, access, answers)
        here, remarks = await _identity(connected)
    remarks += tuple(f"node {node} did not answer: {why}" for node, why in sorted(answers.failures.items()))
    silent = sorted({node.name for node in nodes} - answers.nodes - answers.failures.keys())
    if silent:
        lacking = f"no daemon of namespace {namespace} runs on {', '.join(silent)}"
        remarks += (f"{lacking}: `elastic-local doctor --cluster` says more",)
    rows = joined(answers.rows, volumes, pods, nodes, answers.nodes, here)
    unseen = frozenset((*answers.failures, *silent))
    return Seen(rows, remarks, complete=not unseen, silent=unseen)


async def _identity(connected: Cluster) -> tuple[str, tuple[str, ...]]:
    """Empty for who may not read it: then volumes of other clusters look like orphans. And the remark about that."""
    try:
        return await read_cluster_uid(connected), ()
    except ApiError as error:
        return "", (f"volumes of other clusters are not marked: {error}",)


async def _known(connected: Cluster) -> tuple[list[PersistentVolume], list[Pod]]:
    volumes = [contract_volume.read(body) for body in await connected.list(VOLUMES)]
    pods = [read_pod(body) for body in await connected.list(PODS)]
    return [volume for volume in volumes if volume is not None], pods
