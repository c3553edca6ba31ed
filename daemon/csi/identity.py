"""CSI's service Identity: who we are, and what we can do as a whole."""

from collections.abc import Callable

from google.protobuf.wrappers_pb2 import BoolValue
from grpclib.server import Stream

from contract import names
from daemon.csi.proto.csi_grpc import IdentityBase
from daemon.csi.proto.csi_pb2 import (
    GetPluginCapabilitiesRequest,
    GetPluginCapabilitiesResponse,
    GetPluginInfoRequest,
    GetPluginInfoResponse,
    PluginCapability,
    ProbeRequest,
    ProbeResponse,
)

_SERVICE, _EXPANSION = PluginCapability.Service, PluginCapability.VolumeExpansion


class IdentityService(IdentityBase):
    """`ready` says whether the storage of this node was inspected."""

    def __init__(self, version: str, ready: Callable[[], bool]) -> None:
        self._version = version
        self._ready = ready

    async def GetPluginInfo(self, stream: Stream[GetPluginInfoRequest, GetPluginInfoResponse]) -> None:
        await stream.recv_message()
        await stream.send_message(GetPluginInfoResponse(name=names.CSI_DRIVER, vendor_version=self._version))

    async def GetPluginCapabilities(
        self, stream: Stream[GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse]
    ) -> None:
        """No controller service: what it would do, the provisioner does through the API server."""
        await stream.recv_message()
        await stream.send_message(
            GetPluginCapabilitiesResponse(
                capabilities=[
                    PluginCapability(service=_SERVICE(type=_SERVICE.VOLUME_ACCESSIBILITY_CONSTRAINTS)),
                    PluginCapability(volume_expansion=_EXPANSION(type=_EXPANSION.ONLINE)),
                ]
            )
        )

    async def Probe(self, stream: Stream[ProbeRequest, ProbeResponse]) -> None:
        await stream.recv_message()
        await stream.send_message(ProbeResponse(ready=BoolValue(value=self._ready())))
