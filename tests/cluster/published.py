"""What nodes publish of their room, as the scheduler reads it."""

from contract import names, quantity
from kube.resources import CAPACITIES
from tests.sandbox.sandbox import Sandbox


async def room(sandbox: Sandbox, storage_class: str = "elastic-local") -> dict[str, int]:
    """Bytes that each node offers to the class, by hostname label."""
    return {
        item["nodeTopology"]["matchLabels"][names.HOSTNAME_LABEL]: quantity.parse(item["capacity"])
        for item in await sandbox.api.list(CAPACITIES, names.NAMESPACE)
        if item["storageClassName"] == storage_class
    }


async def has_room(sandbox: Sandbox, hostname: str, size: int) -> bool:
    return (await room(sandbox)).get(hostname) == size


async def is_all_free(sandbox: Sandbox) -> bool:
    """Whether every node offers all that it has. True again only a moment after the last volume went: changes are
    published together."""
    return await room(sandbox) == {node.hostname: quantity.parse(node.spec.capacity) for node in sandbox.nodes.values()}
