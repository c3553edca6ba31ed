"""`capacity`: how much capacity each node has for each class, as its daemon publishes it and the scheduler sees it."""

from collections.abc import Iterable
from dataclasses import dataclass

from command import nodeexec
from command.options import ApiAccess, Form
from command.running import cluster, patience, run
from command.table import Column, share, show, size
from contract import capacity as contract_capacity
from contract.capacity import Capacity
from kube.resources import CAPACITIES


@dataclass(frozen=True)
class Row:
    """Sizes in bytes."""

    node: str
    hostname: str
    storage_class: str
    pool: str
    allocatable: int
    """What volumes of the node may take together."""
    available: int


_COLUMNS = (
    Column[Row]("node", lambda row: row.node),
    Column[Row]("hostname", lambda row: row.hostname, wide=True),
    Column[Row]("class", lambda row: row.storage_class),
    Column[Row]("pool", lambda row: row.pool or "-"),
    Column[Row]("allocatable", lambda row: size(row.allocatable), right=True),
    Column[Row]("available", lambda row: size(row.available), right=True),
    Column[Row]("taken", lambda row: share(row.allocatable - row.available, row.allocatable)),
)


def capacity(namespace: str, access: ApiAccess, form: Form) -> None:
    namespace, found = run(_capacities(namespace, access))
    show(
        found,
        _COLUMNS,
        form,
        nothing=f"no node has published capacity in namespace {namespace}: `elastic-local doctor --cluster` says why",
        name=lambda row: f"csistoragecapacity/{contract_capacity.object_name(row.node, row.storage_class)}",
    )


async def _capacities(namespace: str, access: ApiAccess) -> tuple[str, list[Row]]:
    """Of the namespace in which daemons publish, which it says: their account, too, may list them there."""
    async with patience("asking the API server"), cluster(access) as connected:
        namespace = await nodeexec.namespace_of(connected, namespace)
        capacities = [contract_capacity.read(body) for body in await connected.list(CAPACITIES, namespace)]
    return namespace, rows(each for each in capacities if each is not None)


def rows(published: Iterable[Capacity]) -> list[Row]:
    capacity_rows = [
        Row(each.node, each.hostname, each.storage_class, each.pool, each.allocatable, each.available)
        for each in published
    ]
    return sorted(capacity_rows, key=lambda row: (row.node, row.storage_class))
