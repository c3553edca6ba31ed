"""CSI's service Node: what the kubelet calls for a volume, from staging to its statistics.

NodeStageVolume makes the volume on this node, and NodePublishVolume mounts it. The staging mount of a volume is in a
folder of our own (daemon.storage.staging), for both drivers, so what the specification lets be mounted at
staging_target_path is not mounted there. A call whose caller gave up goes on, and the next one joins it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from grpclib import GRPCError, Status
from grpclib.server import Stream

from contract import names
from contract.volume import BLOCK, CSI, FILESYSTEM
from daemon.csi import codes
from daemon.csi.codes import invalid
from daemon.csi.proto.csi_grpc import NodeBase
from daemon.csi.proto.csi_pb2 import (
    NodeExpandVolumeRequest,
    NodeExpandVolumeResponse,
    NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse,
    NodeGetInfoRequest,
    NodeGetInfoResponse,
    NodeGetVolumeStatsRequest,
    NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest,
    NodePublishVolumeResponse,
    NodeServiceCapability,
    NodeStageVolumeRequest,
    NodeStageVolumeResponse,
    NodeUnpublishVolumeRequest,
    NodeUnpublishVolumeResponse,
    NodeUnstageVolumeRequest,
    NodeUnstageVolumeResponse,
    Topology,
    VolumeCapability,
    VolumeCondition,
    VolumeUsage,
)
from daemon.errors import NotAPodFolder, VolumeError, VolumeNotFound
from daemon.kubelet.authorization import PodHint
from daemon.kubelet.mounter import Mounter
from daemon.kubelet.poddevice import PodDevice
from daemon.kubelet.podfolder import PodFolder
from host.statvfs import FilesystemUsage
from kube.records import Node

log = logging.getLogger(__name__)

Request = TypeVar("Request")

_POD_NAME, _POD_NAMESPACE = "csi.storage.k8s.io/pod.name", "csi.storage.k8s.io/pod.namespace"
_EPHEMERAL = "csi.storage.k8s.io/ephemeral"
"""Keys that the kubelet adds to the volume context: podInfoOnMount (pkg/volume/csi/csi_util.go)."""

_MODE = VolumeCapability.AccessMode
_RPC = NodeServiceCapability.RPC
_CAPABILITIES = (
    _RPC.STAGE_UNSTAGE_VOLUME,
    _RPC.GET_VOLUME_STATS,
    _RPC.EXPAND_VOLUME,
    _RPC.VOLUME_CONDITION,
    _RPC.SINGLE_NODE_MULTI_WRITER,
)
_LONGEST_PATH = 4096


class NodeState(Protocol):
    """What the service needs of the node besides its volumes."""

    async def node(self) -> Node:
        """Our Node. Raises Undecided while the daemon has not started up."""
        ...

    def volume_limit(self) -> int:
        """How many volumes the node can hold. 0: no limit, or not known yet."""
        ...

    async def usage(self, name: str, folder: PodFolder) -> FilesystemUsage:
        """Of the volume that is mounted in the folder. Raises VolumeNotFound."""
        ...

    def condition(self, name: str) -> str:
        """What is wrong with the volume of that name. Empty: nothing."""
        ...


class NodeService(NodeBase):
    """`observe` gets the RPC, the name of its gRPC code and the seconds."""

    def __init__(self, mounter: Mounter, state: NodeState, observe: Callable[[str, str, float], None]) -> None:
        self._mounter = mounter
        self._state = state
        self._observe = observe

    async def NodeStageVolume(self, stream: Stream[NodeStageVolumeRequest, NodeStageVolumeResponse]) -> None:
        async def stage(request: NodeStageVolumeRequest) -> NodeStageVolumeResponse:
            _check_path("staging_target_path", request.staging_target_path)
            mode = _volume_mode(request.volume_capability)
            await self._mounter.stage(_volume_id(request.volume_id), mode, request.secrets)
            return NodeStageVolumeResponse()

        await self._answer("NodeStageVolume", stream, stage)

    async def NodeUnstageVolume(self, stream: Stream[NodeUnstageVolumeRequest, NodeUnstageVolumeResponse]) -> None:
        async def unstage(request: NodeUnstageVolumeRequest) -> NodeUnstageVolumeResponse:
            _check_path("staging_target_path", request.staging_target_path)
            await self._mounter.unstage(_volume_id(request.volume_id))
            return NodeUnstageVolumeResponse()

        await self._answer("NodeUnstageVolume", stream, unstage)

    async def NodePublishVolume(self, stream: Stream[NodePublishVolumeRequest, NodePublishVolumeResponse]) -> None:
        async def publish(request: NodePublishVolumeRequest) -> NodePublishVolumeResponse:
            _check_path("target_path", request.target_path)
            block = _volume_mode(request.volume_capability) == BLOCK
            volume_id, context = _volume_id(request.volume_id), request.volume_context
            if context.get(_EPHEMERAL) == "true":
                raise invalid("a volume written into a pod (CSI ephemeral inline) is not served: use a claim")
            if not request.staging_target_path:
                raise GRPCError(Status.FAILED_PRECONDITION, "staging_target_path is missing: stage the volume first")
            _check_path("staging_target_path", request.staging_target_path)
            hint = PodHint(context.get(_POD_NAMESPACE, ""), context.get(_POD_NAME, ""))
            folder = self._target(volume_id, request.target_path)
            if isinstance(folder, PodDevice) != block:
                raise invalid("volume_capability and target_path are of different volume modes")
            await self._mounter.mount(folder, hint, read_only=request.readonly)
            return NodePublishVolumeResponse()

        await self._answer("NodePublishVolume", stream, publish)

    async def NodeUnpublishVolume(
        self, stream: Stream[NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse]
    ) -> None:
        async def unpublish(request: NodeUnpublishVolumeRequest) -> NodeUnpublishVolumeResponse:
            await self._mounter.unmount(self._target(request.volume_id, request.target_path))
            return NodeUnpublishVolumeResponse()

        await self._answer("NodeUnpublishVolume", stream, unpublish)

    async def NodeGetVolumeStats(self, stream: Stream[NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse]) -> None:
        async def stats(request: NodeGetVolumeStatsRequest) -> NodeGetVolumeStatsResponse:
            folder = self._shown(request.volume_id, request.volume_path)
            usage = await self._state.usage(folder.name, folder)
            wrong = self._state.condition(folder.name)
            return NodeGetVolumeStatsResponse(
                usage=[
                    VolumeUsage(unit=VolumeUsage.BYTES, total=usage.size, used=usage.used, available=usage.available),
                    *([_inodes(usage)] if usage.inodes else []),
                ],
                volume_condition=VolumeCondition(abnormal=bool(wrong), message=wrong or "healthy"),
            )

        await self._answer("NodeGetVolumeStats", stream, stats)

    async def NodeExpandVolume(self, stream: Stream[NodeExpandVolumeRequest, NodeExpandVolumeResponse]) -> None:
        async def expand(request: NodeExpandVolumeRequest) -> NodeExpandVolumeResponse:
            if not request.volume_path:
                raise invalid("volume_path is missing")
            size, limit = request.capacity_range.required_bytes, request.capacity_range.limit_bytes
            if size < 0 or limit < 0:
                raise invalid("capacity_range is negative")
            if limit and size > limit:
                raise GRPCError(
                    Status.OUT_OF_RANGE, f"capacity_range asks for {size} bytes and for no more than {limit}"
                )
            mode = _volume_mode(request.volume_capability) if request.HasField("volume_capability") else ""
            capacity = await self._mounter.expand_staged(_volume_id(request.volume_id), size, mode)
            return NodeExpandVolumeResponse(capacity_bytes=capacity)

        await self._answer("NodeExpandVolume", stream, expand, codes.expansion_error)

    async def NodeGetCapabilities(
        self, stream: Stream[NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse]
    ) -> None:
        async def capabilities(request: NodeGetCapabilitiesRequest) -> NodeGetCapabilitiesResponse:
            return NodeGetCapabilitiesResponse(
                capabilities=[NodeServiceCapability(rpc=_RPC(type=each)) for each in _CAPABILITIES]
            )

        await self._answer("NodeGetCapabilities", stream, capabilities)

    async def NodeGetInfo(self, stream: Stream[NodeGetInfoRequest, NodeGetInfoResponse]) -> None:
        async def info(request: NodeGetInfoRequest) -> NodeGetInfoResponse:
            node = await self._state.node()
            return NodeGetInfoResponse(
                node_id=node.name,
                max_volumes_per_node=self._state.volume_limit(),
                accessible_topology=Topology(segments={names.HOSTNAME_LABEL: node.hostname}),
            )

        await self._answer("NodeGetInfo", stream, info)

    def _target(self, volume_id: str, path: str) -> PodFolder:
        """Where a pod finds that volume. The kubelet names it by the PersistentVolume, as it does the volume."""
        _check_path("the volume's path", path)
        try:
            folder = PodFolder.parse(path, self._mounter.kubelet_root, CSI)
        except NotAPodFolder:
            if f"/{names.CSI_DEVICES}/" not in path:
                raise
            folder = PodDevice.parse(path, self._mounter.kubelet_root)
        if folder.name != _volume_id(volume_id):
            raise invalid(f"{path[:300]!r} is not the folder of volume {volume_id[:253]!r}")
        return folder

    def _shown(self, volume_id: str, path: str) -> PodFolder:
        """As `_target`, of a path that the volume is at; and it may be one of the kubelet's own. A volume that is not
        there is not found."""
        if not path:
            raise invalid("volume_path is missing")
        try:
            device = PodDevice.parse_mapped(path, self._mounter.kubelet_root)
        except NotAPodFolder:
            try:
                return self._target(volume_id, path)
            except (NotAPodFolder, GRPCError) as error:
                _volume_id(volume_id)
                raise VolumeNotFound(f"volume {volume_id[:253]!r} is not at {path[:300]!r}") from error
        if device.name != _volume_id(volume_id):
            raise VolumeNotFound(f"volume {volume_id[:253]!r} is not at {path[:300]!r}")
        return device

    async def _answer(
        self,
        rpc: str,
        stream: Stream[Request, Any],
        serve: Callable[[Request], Awaitable[object]],
        refusal: Callable[[VolumeError], GRPCError] = codes.grpc_error,
    ) -> None:
        clock = asyncio.get_running_loop().time
        begun, code = clock(), Status.CANCELLED
        try:
            request = await stream.recv_message()
            if request is None:
                raise invalid("the request has no message")
            response = await _served(rpc, serve, request, refusal)
            code = Status.OK
            await stream.send_message(response)
        except GRPCError as error:
            code = error.status
            raise
        finally:
            self._observe(rpc, code.name, clock() - begun)


async def _served(
    rpc: str,
    serve: Callable[[Request], Awaitable[object]],
    request: Request,
    refusal: Callable[[VolumeError], GRPCError],
) -> object:
    """The response. Raises GRPCError for whatever goes wrong."""
    try:
        return await serve(request)
    except GRPCError:
        raise
    except VolumeError as error:
        log.info("%s is answered: %s", rpc, error)
        raise refusal(error) from error
    except Exception as fault:
        log.exception("%s failed by a fault of this program", rpc)
        raise GRPCError(
            Status.INTERNAL,
            f"the elastic-local daemon failed ({type(fault).__name__}): its log on this node says more",
        ) from fault


def _inodes(usage: FilesystemUsage) -> VolumeUsage:
    return VolumeUsage(
        unit=VolumeUsage.INODES,
        total=usage.inodes,
        used=usage.inodes_used,
        available=usage.inodes - usage.inodes_used,
    )


def _volume_id(text: str) -> str:
    if not text:
        raise invalid("volume_id is missing")
    return text


def _check_path(field: str, text: str) -> None:
    if not text:
        raise invalid(f"{field} is missing")
    if not text.startswith("/") or "\0" in text or len(text) > _LONGEST_PATH:
        raise invalid(f"{field} must be an absolute path")


def _volume_mode(capability: VolumeCapability) -> str:
    """FILESYSTEM or BLOCK. Raises GRPCError for a capability that is not whole."""
    kind = capability.WhichOneof("access_type")
    if kind is None:
        raise invalid("volume_capability is missing, or has neither block nor mount")
    if capability.access_mode.mode == _MODE.UNKNOWN:
        raise invalid("volume_capability has no access_mode")
    return BLOCK if kind == "block" else FILESYSTEM
