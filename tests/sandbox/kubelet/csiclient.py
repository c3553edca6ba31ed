"""One CSI driver: its calls, and how their answers are judged.

Source: pkg/volume/csi/csi_client.go of Kubernetes 1.36.2. Each call has a connection of its own and two minutes, and
what the driver can do is asked anew before each use of it: a kubelet remembers nothing of a driver but its socket.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpclib import GRPCError, Status
from grpclib.client import Channel
from grpclib.exceptions import ProtocolError, StreamTerminatedError

from daemon.csi.client import apart
from daemon.csi.proto.csi_grpc import NodeStub
from daemon.csi.proto.csi_pb2 import (
    CapacityRange,
    NodeExpandVolumeRequest,
    NodeGetCapabilitiesRequest,
    NodeGetInfoRequest,
    NodeGetInfoResponse,
    NodeGetVolumeStatsRequest,
    NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest,
    NodeServiceCapability,
    NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest,
    VolumeCapability,
)
from tests.sandbox.kubelet.driver import CallFailed

CALL_SECONDS = 120.0
"""csiTimeout."""
BLOCK = "block"
"""The filesystem of a volume that is a device (fsTypeBlockName)."""

_RPC = NodeServiceCapability.RPC
_MODE = VolumeCapability.AccessMode
_UNCERTAIN = frozenset(
    {Status.CANCELLED, Status.DEADLINE_EXCEEDED, Status.UNAVAILABLE, Status.RESOURCE_EXHAUSTED, Status.ABORTED}
)
_INFEASIBLE = frozenset({Status.INVALID_ARGUMENT, Status.OUT_OF_RANGE, Status.NOT_FOUND})
_GO_NAMES = {Status.OK: "OK", Status.CANCELLED: "Canceled"}

Secrets = Mapping[str, bytes]
"""What a Secret holds."""

_SINGLE_WRITER = {
    "ReadWriteOnce": _MODE.SINGLE_NODE_WRITER,
    "ReadWriteOncePod": _MODE.SINGLE_NODE_WRITER,
    "ReadOnlyMany": _MODE.MULTI_NODE_READER_ONLY,
    "ReadWriteMany": _MODE.MULTI_NODE_MULTI_WRITER,
}
_MULTI_WRITER = _SINGLE_WRITER | {
    "ReadWriteOnce": _MODE.SINGLE_NODE_MULTI_WRITER,
    "ReadWriteOncePod": _MODE.SINGLE_NODE_SINGLE_WRITER,
}


class RpcFailed(CallFailed):
    """A call that the driver, or the way to it, failed; worded as Go's gRPC does."""

    def __init__(self, status: Status, description: str) -> None:
        super().__init__(f"rpc error: code = {_go_name(status)} desc = {description}")
        self.status = status
        self.uncertain = status in _UNCERTAIN  # isFinalError
        self.finished = not self.uncertain


class ExpansionFailed(CallFailed):
    """Of NodeExpand (expander.go)."""

    def __init__(self, failure: RpcFailed) -> None:
        self.infeasible = failure.status in _INFEASIBLE
        colon = "" if self.infeasible else " :"
        super().__init__(f"Expander.NodeExpand failed to expand the volume{colon} {failure}")
        self.in_use = failure.status is Status.FAILED_PRECONDITION
        """The driver does not expand a volume that is in use: no error to anybody, and tried no more meanwhile."""
        self.finished = failure.finished


def _go_name(status: Status) -> str:
    return _GO_NAMES.get(status) or "".join(word.capitalize() for word in status.name.split("_"))


def _texts(secrets: Secrets) -> dict[str, str]:
    """In CSI they are text: what is none can't be sent."""
    try:
        return {key: content.decode() for key, content in secrets.items()}
    except UnicodeDecodeError as error:
        words = "grpc: error while marshaling: string field contains invalid UTF-8"
        raise RpcFailed(Status.INTERNAL, words) from error


@dataclass(frozen=True)
class Use:
    """What a volume is to be used for: CSI's volume capability, before it is known what the driver distinguishes."""

    access_mode: str
    """Of Kubernetes: the first of the PersistentVolume's."""
    filesystem: str
    mount_options: Sequence[str] = ()

    def capability(self, *, multi_writer: bool) -> VolumeCapability:
        modes = _MULTI_WRITER if multi_writer else _SINGLE_WRITER
        mode = _MODE(mode=modes.get(self.access_mode, _MODE.UNKNOWN))
        if self.filesystem == BLOCK:
            return VolumeCapability(access_mode=mode, block=VolumeCapability.BlockVolume())
        mount = VolumeCapability.MountVolume(fs_type=self.filesystem, mount_flags=self.mount_options)
        return VolumeCapability(access_mode=mode, mount=mount)


class CsiClient:
    """The driver that serves a socket. Methods raise RpcFailed."""

    def __init__(self, endpoint: Path) -> None:
        self.endpoint = endpoint

    async def info(self) -> NodeGetInfoResponse:
        found: NodeGetInfoResponse = await self._call("NodeGetInfo", NodeGetInfoRequest())
        return found

    async def stages(self) -> bool:
        return await self._can(_RPC.STAGE_UNSTAGE_VOLUME)

    async def expands(self) -> bool:
        return await self._can(_RPC.EXPAND_VOLUME)

    async def counts(self) -> bool:
        return await self._can(_RPC.GET_VOLUME_STATS)

    async def takes_groups(self) -> bool:
        """Whether it gives a volume to the pod's group by itself."""
        return await self._can(_RPC.VOLUME_MOUNT_GROUP)

    async def stage(
        self,
        handle: str,
        path: Path,
        use: Use,
        attributes: Mapping[str, str],
        group: int | None,
        secrets: Secrets,
    ) -> None:
        await self._call(
            "NodeStageVolume",
            NodeStageVolumeRequest(
                volume_id=handle,
                staging_target_path=str(path),
                volume_capability=await self._capability(use, group),
                secrets=_texts(secrets),
                volume_context=attributes,
            ),
        )

    async def unstage(self, handle: str, path: Path) -> None:
        request = NodeUnstageVolumeRequest(volume_id=handle, staging_target_path=str(path))
        await self._call("NodeUnstageVolume", request)

    async def publish(
        self,
        handle: str,
        staged: Path | None,
        path: Path,
        use: Use,
        context: Mapping[str, str],
        group: int | None,
        secrets: Secrets,
        *,
        read_only: bool,
    ) -> None:
        await self._call(
            "NodePublishVolume",
            NodePublishVolumeRequest(
                volume_id=handle,
                staging_target_path=str(staged or ""),
                target_path=str(path),
                volume_capability=await self._capability(use, group),
                readonly=read_only,
                secrets=_texts(secrets),
                volume_context=context,
            ),
        )

    async def unpublish(self, handle: str, path: Path) -> None:
        request = NodeUnpublishVolumeRequest(volume_id=handle, target_path=str(path))
        await self._call("NodeUnpublishVolume", request)

    async def expand(self, handle: str, path: Path, staged: Path, use: Use, size: int, secrets: Secrets) -> None:
        """`size` in bytes. Raises ExpansionFailed, too."""
        capability = await self._capability(use, None)
        try:
            request = NodeExpandVolumeRequest(
                volume_id=handle,
                volume_path=str(path),
                staging_target_path=str(staged),
                capacity_range=CapacityRange(required_bytes=size),
                volume_capability=capability,
                secrets=_texts(secrets),
            )
            await self._call("NodeExpandVolume", request)
        except RpcFailed as failure:
            raise ExpansionFailed(failure) from failure

    async def stats(self, handle: str, path: Path) -> NodeGetVolumeStatsResponse:
        request = NodeGetVolumeStatsRequest(volume_id=handle, volume_path=str(path))
        found: NodeGetVolumeStatsResponse = await self._call("NodeGetVolumeStats", request)
        return found

    async def _capability(self, use: Use, group: int | None) -> VolumeCapability:
        capability = use.capability(multi_writer=await self._can(_RPC.SINGLE_NODE_MULTI_WRITER))
        if group is not None and capability.WhichOneof("access_type") == "mount":
            capability.mount.volume_mount_group = str(group)
        return capability

    async def _can(self, capability: "NodeServiceCapability.RPC.Type") -> bool:
        found = await self._call("NodeGetCapabilities", NodeGetCapabilitiesRequest())
        return any(each.rpc.type == capability for each in found.capabilities)

    async def _call(self, rpc: str, request: Any) -> Any:
        try:
            return await apart(self._answer(rpc, request))
        except StreamTerminatedError as error:
            raise RpcFailed(Status.UNAVAILABLE, "error reading from server: EOF") from error

    async def _answer(self, rpc: str, request: Any) -> Any:
        try:
            async with Channel(path=str(self.endpoint)) as channel:
                return await getattr(NodeStub(channel), rpc)(request, timeout=CALL_SECONDS)
        except GRPCError as error:
            raise RpcFailed(error.status, error.message or "") from error
        except TimeoutError as error:
            raise RpcFailed(Status.DEADLINE_EXCEEDED, "context deadline exceeded") from error
        except (ProtocolError, asyncio.IncompleteReadError) as error:
            raise RpcFailed(Status.UNAVAILABLE, "error reading from server: EOF") from error
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            where = f"dial unix {self.endpoint}: connect: {reason}"
            raise RpcFailed(
                Status.UNAVAILABLE, f'connection error: desc = "transport: Error while dialing: {where}"'
            ) from error
