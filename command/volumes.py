"""`volumes`: every volume of this node, or of the cluster, with its claim and what uses it."""

import typer

from command import nodeexec, thisnode
from command.options import Form
from command.running import cluster, patience, run
from command.table import Column, show, size
from command.volumerows import Row, joined
from contract import names
from contract import volume as contract_volume
from contract.volume import PersistentVolume
from daemon.cluster.ownerlookup import read_cluster_uid
from kube.client import Cluster
from kube.errors import ApiError
from kube.records import Pod, read_node, read_pod
from kube.resources import NODES, PODS, VOLUMES
from kube.transport import ConfigurationError

_IMPATIENT = 5.0
"""Seconds for the API server, which only adds to the answer: what the node knows is shown without it."""

_COLUMNS = (
    Column[Row]("node", lambda row: row.node or "-"),
    Column[Row]("volume", lambda row: row.volume),
    Column[Row]("claim", lambda row: row.claim or "-"),
    Column[Row]("pods", lambda row: " ".join(row.pods) or "-"),
    Column[Row]("size", lambda row: size(row.size), right=True),
    Column[Row]("used", lambda row: size(row.used), right=True),
    Column[Row]("filesystem", lambda row: row.filesystem or "-"),
    Column[Row]("source", lambda row: row.source or "-"),
    Column[Row]("policy", lambda row: row.policy or "-"),
    Column[Row]("state", lambda row: row.state),
    Column[Row]("remark", lambda row: row.remark),
)


def volumes(whole_cluster: bool, local: bool, namespace: str, kubeconfig: str | None, form: Form) -> None:
    work = _of_cluster(namespace, kubeconfig) if whole_cluster else _of_node(local, kubeconfig)
    show(run(work), _COLUMNS, form, nothing="no volumes")


async def _of_node(local: bool, kubeconfig: str | None) -> list[Row]:
    chosen = thisnode.chosen()
    async with patience("looking at the volumes of this node"):
        rows = await thisnode.rows(chosen)
    if local:
        return rows
    try:
        async with patience("asking the API server for their claims"), cluster(kubeconfig, _IMPATIENT) as connected:
            volumes, pods = await _known(connected)
            node = read_node(await connected.get(NODES, chosen.node_name))
            here = await _identity(connected)
    except (ApiError, ConfigurationError) as error:
        typer.echo(f"without claims, and orphans are not marked: {error}", err=True)
        return rows
    label = names.node_label_value(chosen.node_name)
    mine = [volume for volume in volumes if volume.node_label == label or volume.uid in {row.uid for row in rows}]
    return joined(rows, mine, pods, [node], {chosen.node_name}, here)


async def _of_cluster(namespace: str, kubeconfig: str | None) -> list[Row]:
    async with patience("asking the cluster and each of its nodes"), cluster(kubeconfig) as connected:
        volumes, pods = await _known(connected)
        nodes = [read_node(body) for body in await connected.list(NODES)]
        namespace = await nodeexec.namespace_of(connected, namespace)
        answers = await nodeexec.ask(connected, namespace, kubeconfig)
        here = await _identity(connected)
    for node, why in sorted(answers.failures.items()):
        typer.echo(f"node {node} did not answer: {why}", err=True)
    silent = sorted({node.name for node in nodes} - answers.nodes - answers.failures.keys())
    if silent:
        typer.echo(f"no daemon runs on {', '.join(silent)}: `elastic-local doctor --cluster` says more", err=True)
    return joined(answers.rows, volumes, pods, nodes, answers.nodes, here)


async def _identity(connected: Cluster) -> str:
    """Empty for who may not read it: then volumes of other clusters look like orphans."""
    try:
        return await read_cluster_uid(connected)
    except ApiError as error:
        typer.echo(f"volumes of other clusters are not marked: {error}", err=True)
        return ""


async def _known(connected: Cluster) -> tuple[list[PersistentVolume], list[Pod]]:
    volumes = [contract_volume.read(body) for body in await connected.list(VOLUMES)]
    pods = [read_pod(body) for body in await connected.list(PODS)]
    return [volume for volume in volumes if volume is not None], pods
