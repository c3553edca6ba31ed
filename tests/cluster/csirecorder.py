"""A CSI driver that notes how it is called, and answers as it is told: for tests of the sandbox's kubelet."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from grpclib import GRPCError, Status
from grpclib.const import Handler
from grpclib.server import Server, Stream

from daemon.csi.proto.csi_grpc import NodeBase
from daemon.csi.proto.csi_pb2 import (
    NodeExpandVolumeResponse,
    NodeGetCapabilitiesResponse,
    NodeGetInfoResponse,
    NodeGetVolumeStatsResponse,
    NodePublishVolumeResponse,
    NodeServiceCapability,
    NodeStageVolumeResponse,
    NodeUnpublishVolumeResponse,
    NodeUnstageVolumeResponse,
    Topology,
    VolumeUsage,
)
from daemon.csi.proto.pluginregistration_grpc import RegistrationBase
from daemon.csi.proto.pluginregistration_pb2 import PluginInfo, RegistrationStatusResponse
from tests.sandbox.nodes import Node

_RPC = NodeServiceCapability.RPC
_ALL = (
    _RPC.STAGE_UNSTAGE_VOLUME,
    _RPC.EXPAND_VOLUME,
    _RPC.GET_VOLUME_STATS,
    _RPC.SINGLE_NODE_MULTI_WRITER,
)


class CsiRecorder(NodeBase, RegistrationBase):
    def __init__(self, name: str, node: Node) -> None:
        self.name = name
        self.node = node
        self.capabilities: tuple[Any, ...] = _ALL
        self.calls: list[tuple[str, Any]] = []
        """RPCs and their requests, without those that only ask what the driver is."""
        self.failures: dict[str, Status] = {}
        """By RPC: how it fails until it is taken out."""
        self.statuses: list[Any] = []
        """What the kubelet said of its registration."""
        self.topology: dict[str, str] = {}
        self.limit = 0
        self.socket = node.kubelet_root / "plugins" / name / "csi.sock"
        self._registration = node.kubelet_root / "plugins_registry" / f"{name}-reg.sock"

    def __mapping__(self) -> dict[str, Handler]:
        return NodeBase.__mapping__(self) | RegistrationBase.__mapping__(self)

    @property
    def rpcs(self) -> list[str]:
        return [rpc.removeprefix("Node").removesuffix("Volume") for rpc, _ in self.calls]

    def requests(self, rpc: str) -> list[Any]:
        return [request for called, request in self.calls if called == rpc]

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Registered at the kubelet, as long as the context lasts."""
        async with AsyncExitStack() as stack:
            for path in (self.socket, self._registration):
                path.parent.mkdir(parents=True, exist_ok=True)
                server = Server([self])
                # Under another name first, as a socket is there before somebody listens on it.
                hidden = path.with_name(f".{os.getpid()}")
                await server.start(path=str(hidden))
                hidden.rename(path)
                stack.push_async_callback(server.wait_closed)
                stack.callback(server.close)
                stack.callback(path.unlink)
            yield

    async def _answer(self, rpc: str, stream: Stream[Any, Any], answer: Any) -> Any:
        request = await stream.recv_message()
        self.calls.append((rpc, request))
        if status := self.failures.get(rpc):
            raise GRPCError(status, "no such disk: plug one in")
        await stream.send_message(answer)
        return request

    async def NodeStageVolume(self, stream: Stream[Any, Any]) -> None:
        await self._answer("NodeStageVolume", stream, NodeStageVolumeResponse())

    async def NodeUnstageVolume(self, stream: Stream[Any, Any]) -> None:
        await self._answer("NodeUnstageVolume", stream, NodeUnstageVolumeResponse())

    async def NodePublishVolume(self, stream: Stream[Any, Any]) -> None:
        request = await self._answer("NodePublishVolume", stream, NodePublishVolumeResponse())
        Path(request.target_path).mkdir(exist_ok=True)

    async def NodeUnpublishVolume(self, stream: Stream[Any, Any]) -> None:
        await self._answer("NodeUnpublishVolume", stream, NodeUnpublishVolumeResponse())

    async def NodeExpandVolume(self, stream: Stream[Any, Any]) -> None:
        await self._answer("NodeExpandVolume", stream, NodeExpandVolumeResponse())

    async def NodeGetVolumeStats(self, stream: Stream[Any, Any]) -> None:
        usage = [
            VolumeUsage(unit=VolumeUsage.BYTES, total=100, used=40, available=60),
            VolumeUsage(unit=VolumeUsage.INODES, total=10, used=4, available=6),
        ]
        await self._answer("NodeGetVolumeStats", stream, NodeGetVolumeStatsResponse(usage=usage))

    async def NodeGetCapabilities(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        found = [NodeServiceCapability(rpc=_RPC(type=each)) for each in self.capabilities]
        await stream.send_message(NodeGetCapabilitiesResponse(capabilities=found))

    async def NodeGetInfo(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        if status := self.failures.get("NodeGetInfo"):
            raise GRPCError(status, "no such disk: plug one in")
        topology = Topology(segments=self.topology)
        await stream.send_message(
            NodeGetInfoResponse(node_id=self.node.name, max_volumes_per_node=self.limit, accessible_topology=topology)
        )

    async def GetInfo(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        await stream.send_message(
            PluginInfo(type="CSIPlugin", name=self.name, endpoint=str(self.socket), supported_versions=["1.0.0"])
        )

    async def NotifyRegistrationStatus(self, stream: Stream[Any, Any]) -> None:
        self.statuses.append(await stream.recv_message())
        await stream.send_message(RegistrationStatusResponse())
