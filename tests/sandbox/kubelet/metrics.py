"""How full the volumes of pods are, at `/metrics` as at the kubelet's port 10250.

Source: pkg/kubelet/metrics/collectors/volume_stats.go, pkg/volume/csi/csi_metrics.go and NodeGetVolumeStats of
pkg/volume/csi/csi_client.go of Kubernetes 1.36.2. A FlexVolume driver that attaches nothing has no such figures. What a
driver says of the condition of a volume is shown to nobody: CSIVolumeHealth is alpha and off.
"""

import logging
from collections.abc import Mapping

from aiohttp import web

from daemon.csi.proto.csi_pb2 import NodeGetVolumeStatsResponse, VolumeUsage
from tests.sandbox.kubelet.csi import CsiPlugin
from tests.sandbox.kubelet.csiclient import RpcFailed
from tests.sandbox.kubelet.sources import Csi
from tests.sandbox.kubelet.volumes import VolumeManager

_PREFIX = "kubelet_volume_stats_"
_log = logging.getLogger(__name__)


class VolumeStats:
    """The real one asks the drivers once a minute and serves what they said last; here they are asked each time."""

    def __init__(self, volumes: VolumeManager, csi: CsiPlugin) -> None:
        self._volumes = volumes
        self._csi = csi

    async def serve(self, port: int) -> None:
        """On the loopback interface, until the program ends."""
        application = web.Application()
        application.router.add_get("/metrics", self._metrics)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()

    async def _metrics(self, _request: web.Request) -> web.Response:
        lines: list[str] = []
        for claim, figures in (await self._collect()).items():
            namespace, _, name = claim.partition("/")
            labels = f'namespace="{namespace}",persistentvolumeclaim="{name}"'
            lines.extend(f"{_PREFIX}{figure}{{{labels}}} {value}\n" for figure, value in figures.items())
        return web.Response(text="".join(sorted(lines)))

    async def _collect(self) -> Mapping[str, dict[str, int]]:
        """By claim: one figure for each, however many pods have it."""
        found: dict[str, dict[str, int]] = {}
        for volume in self._volumes.mounted():
            source = volume.source
            client = self._csi.client_of(source.driver) if isinstance(source, Csi) else None
            if not isinstance(source, Csi) or client is None or source.claim in found:
                continue
            try:
                if await client.counts():
                    stats = await client.stats(source.handle, self._csi.paths.stats(volume.folder))
                    found[source.claim] = _figures(stats)
            except RpcFailed as error:
                _log.error("statistics of %s: %s", source.name, error)
        return found


def _figures(stats: NodeGetVolumeStatsResponse) -> dict[str, int]:
    """What is not said is 0."""
    usage = {each.unit: each for each in stats.usage}
    size, inodes = usage.get(VolumeUsage.BYTES, VolumeUsage()), usage.get(VolumeUsage.INODES, VolumeUsage())
    return {
        "capacity_bytes": size.total,
        "available_bytes": size.available,
        "used_bytes": size.used,
        "inodes": inodes.total,
        "inodes_free": inodes.available,
        "inodes_used": inodes.used,
    }
