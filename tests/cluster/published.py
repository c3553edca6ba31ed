"""What nodes publish of their room, as the scheduler reads it."""

from contract import names, quantity
from kube.client import CAPACITIES
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
