"""Growing a mounted volume.

When a PersistentVolume is larger than its claim's status says, the kubelet has the driver grow the filesystem (and,
with a driver that attaches nothing, the volume itself), and then writes the new size into the claim's status.
"""

import asyncio
from collections import defaultdict
from pathlib import Path
from typing import Any

from contract import quantity
from kube.client import CLAIMS, VOLUMES, Cluster
from kube.informer import Informer
from tests.sandbox.kubelet.driver import CallFailed, Driver, NotSupported
from tests.sandbox.kubelet.sources import Flex, spec_options

Json = dict[str, Any]

_RESIZE_CONDITIONS = ("Resizing", "FileSystemResizePending", "NodeResizeError", "ControllerResizeError")


class Expansion:
    def __init__(self, cluster: Cluster, claims: Informer[Json], volumes: Informer[Json]) -> None:
        self._cluster = cluster
        self._claims = claims
        self._volumes = volumes
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def grow_if_due(self, driver: Driver, source: Flex, folder: Path) -> bool:
        """Whether the volume grew. Raises CallFailed, after the claim's status says so too, and ApiError."""
        claim, volume = self._claims.get(source.claim), self._volumes.get(source.name)
        if claim is None or volume is None or _sizes(claim, volume) is None:
            return False
        # Two pods of this node may share the claim: one call is enough.
        async with self._locks[source.claim]:
            namespace, _, name = source.claim.partition("/")
            claim = await self._cluster.get(CLAIMS, name, namespace)
            volume = await self._cluster.get(VOLUMES, source.name)
            sizes = _sizes(claim, volume)
            if sizes is None:
                return False
            try:
                await driver.expandfs(spec_options(source), folder, *sizes)
            except NotSupported:
                # The kubelet then resizes the device by itself, finds none, and calls that a success.
                pass
            except CallFailed as error:
                await self._write(claim, {"conditions": _failed(claim, str(error))})
                raise
            capacity = {"storage": volume["spec"]["capacity"]["storage"]}
            await self._write(claim, {"capacity": capacity, "conditions": _other_conditions(claim)})
            return True

    async def _write(self, claim: Json, status: Json) -> None:
        metadata = claim["metadata"]
        await self._cluster.patch(CLAIMS, metadata["name"], {"status": status}, metadata["namespace"], "status")


def _sizes(claim: Json, volume: Json) -> tuple[int, int] | None:
    """New and old size in bytes when the claim's volume is to grow."""
    status = claim.get("status") or {}
    if status.get("phase") != "Bound" or claim["spec"].get("volumeName") != volume["metadata"]["name"]:
        return None
    new = quantity.parse(str(volume["spec"]["capacity"]["storage"]))
    old = quantity.parse(str((status.get("capacity") or {}).get("storage") or "0"))
    return (new, old) if new > old > 0 else None


def _other_conditions(claim: Json) -> list[Json]:
    conditions = (claim.get("status") or {}).get("conditions") or []
    return [condition for condition in conditions if condition["type"] not in _RESIZE_CONDITIONS]


def _failed(claim: Json, message: str) -> list[Json]:
    condition = {"type": "NodeResizeError", "status": "True", "message": message}
    return [*((claim.get("status") or {}).get("conditions") or []), condition]
