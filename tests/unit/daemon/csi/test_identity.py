"""The services Identity and Registration, and that a client of another gRPC, the one of C that Python's grpcio is, gets
the same answers: the kubelet's is Go's."""

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.protobuf.message import Message
from grpclib import Status
from grpclib.client import Channel, UnaryUnaryMethod

from contract import names
from daemon.csi import server
from daemon.csi.identity import IdentityService
from daemon.csi.node import NodeService, NodeState
from daemon.csi.proto.csi_pb2 import (
    GetPluginCapabilitiesRequest,
    GetPluginInfoRequest,
    GetPluginInfoResponse,
    NodePublishVolumeResponse,
    NodeStageVolumeRequest,
    NodeStageVolumeResponse,
    PluginCapability,
    ProbeRequest,
    VolumeCapability,
)
from daemon.csi.proto.pluginregistration_grpc import RegistrationStub
from daemon.csi.proto.pluginregistration_pb2 import InfoRequest, PluginInfo, RegistrationStatus
from daemon.csi.unserved import METHODS
from service.rootsocket import SocketPathTooLong
from tests.unit.daemon.csi.csinode import CsiNode, csi_node, refused
from tests.waiting import until


@pytest.fixture
async def csi(tmp_path: Path) -> AsyncIterator[CsiNode]:
    async with csi_node(tmp_path) as node:
        yield node


async def called(socket: Path, method: str, request: Message, answer: type[Message]) -> Any:
    """By grpcio. Raises grpc.RpcError."""

    def call() -> Any:
        # Its connection ends with the channel, and is not kept for others.
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"unix:{socket}", options) as channel:
            rpc = channel.unary_unary(
                method, request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString
            )
            return rpc(request, timeout=20)

    return await asyncio.to_thread(call)


async def test_the_driver_says_who_it_is_and_what_it_can_do(csi: CsiNode) -> None:
    info = await csi.identity.GetPluginInfo(GetPluginInfoRequest())
    assert (info.name, info.vendor_version) == (names.CSI_DRIVER, "1.2.3")
    found = await csi.identity.GetPluginCapabilities(GetPluginCapabilitiesRequest())
    services = [each.service.type for each in found.capabilities if each.HasField("service")]
    assert services == [PluginCapability.Service.VOLUME_ACCESSIBILITY_CONSTRAINTS], "and there is no controller service"
    [expansion] = [each.volume_expansion.type for each in found.capabilities if each.HasField("volume_expansion")]
    assert expansion == PluginCapability.VolumeExpansion.ONLINE
    assert (await csi.identity.Probe(ProbeRequest())).ready.value


async def test_the_kubelet_learns_of_it_and_says_what_became_of_that(csi: CsiNode) -> None:
    info = await csi.registration.GetInfo(InfoRequest())
    assert (info.type, info.name, info.endpoint) == ("CSIPlugin", names.CSI_DRIVER, str(csi.socket))
    assert list(info.supported_versions) == ["1.0.0"]
    failed = RegistrationStatus(plugin_registered=False, error="no such Node")
    await csi.registration.NotifyRegistrationStatus(failed)
    assert "no such Node" in csi.registered.problem
    await csi.registration.NotifyRegistrationStatus(RegistrationStatus(plugin_registered=True))
    assert csi.registered.problem == ""
    assert ("node-1", "CSIDriverNotRegistered") in [each[:2] for each in await csi.parts.warnings()]


async def test_a_kubelet_that_refused_the_driver_is_shown_a_new_socket(tmp_path: Path) -> None:
    """Before 1.36 it does not try again while the socket stays."""
    refused, taken = RegistrationStatus(plugin_registered=False, error="no API"), RegistrationStatus()
    taken.plugin_registered = True
    async with csi_node(tmp_path, retry=0.05) as csi:
        socket = server.registration_socket(csi.kubelet)
        first = socket.stat()
        await csi.registration.NotifyRegistrationStatus(refused)
        await until(lambda: socket.exists() and socket.stat().st_ctime_ns != first.st_ctime_ns, what="a new socket")
        async with Channel(path=str(socket)) as channel:
            kubelet = RegistrationStub(channel)
            assert (await kubelet.GetInfo(InfoRequest())).name == names.CSI_DRIVER
            second = socket.stat()
            await kubelet.NotifyRegistrationStatus(refused)
            await kubelet.NotifyRegistrationStatus(taken)
        assert csi.registered.problem == ""
        await asyncio.sleep(0.1)  # longer than a refusal waits
        assert socket.stat().st_ctime_ns == second.st_ctime_ns, "one that has registered it meanwhile is left alone"


async def test_a_path_that_nobody_could_connect_to_is_named_with_its_length(csi: CsiNode, tmp_path: Path) -> None:
    root = tmp_path / ("k" * 120)
    root.mkdir()
    identity = IdentityService("1.2.3", lambda: True)
    node = NodeService(csi.mounter, cast(NodeState, None), lambda *_: None)
    with pytest.raises(SocketPathTooLong, match="a socket's may have 107") as refused:
        async with server.listening(root, identity, node, csi.registered):
            pass
    assert not list(root.rglob("*.sock"))
    csi.registered.not_served(refused.value)
    assert f"{root}/plugins/" in csi.registered.problem
    assert "KUBELET_ROOT" in csi.registered.problem
    assert ("node-1", "CSIDriverNotRegistered") in [each[:2] for each in await csi.parts.warnings()]


async def test_its_sockets_are_for_root_alone(csi: CsiNode) -> None:
    for socket in (csi.socket, server.registration_socket(csi.kubelet)):
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(socket.parent.stat().st_mode) & 0o007 == 0


async def test_a_client_of_another_grpc_is_served(csi: CsiNode) -> None:
    """By the very bytes: a few of each kind, and an error."""
    info = await called(csi.socket, "/csi.v1.Identity/GetPluginInfo", GetPluginInfoRequest(), GetPluginInfoResponse)
    assert info.name == names.CSI_DRIVER
    found = await called(
        server.registration_socket(csi.kubelet), "/pluginregistration.Registration/GetInfo", InfoRequest(), PluginInfo
    )
    assert found.endpoint == str(csi.socket)
    await csi.volume()
    uid = await csi.pod()
    await called(csi.socket, "/csi.v1.Node/NodeStageVolume", csi.stage(), NodeStageVolumeResponse)
    await called(csi.socket, "/csi.v1.Node/NodePublishVolume", csi.publish(uid), NodePublishVolumeResponse)
    assert csi.target(uid).is_dir()
    for request, code in (
        (csi.stage(volume_capability=VolumeCapability()), grpc.StatusCode.INVALID_ARGUMENT),
        (csi.stage("absent"), grpc.StatusCode.NOT_FOUND),
    ):
        with pytest.raises(grpc.RpcError) as failed:
            await called(csi.socket, "/csi.v1.Node/NodeStageVolume", request, NodeStageVolumeResponse)
        assert failed.value.code() is code
        assert failed.value.details()


@pytest.mark.parametrize("method", METHODS)
async def test_what_it_does_not_serve_is_unimplemented(csi: CsiNode, method: str) -> None:
    """Also to clients that want a content-type, as grpclib's does and Go's."""
    async with Channel(path=str(csi.socket)) as channel:
        call = UnaryUnaryMethod(channel, method, NodeStageVolumeRequest, NodeStageVolumeResponse)
        status, words = await refused(call(csi.stage()))
    assert status is Status.UNIMPLEMENTED
    assert "without sidecars" in words


async def test_a_message_in_any_script_arrives(csi: CsiNode) -> None:
    """gRPC sends it percent-encoded; what a tenant wrote into it comes back shortened."""
    request = csi.stage("ü" * 5000, staging_target_path="/staged")
    with pytest.raises(grpc.RpcError) as failed:
        await called(csi.socket, "/csi.v1.Node/NodeStageVolume", request, NodeStageVolumeResponse)
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    details = failed.value.details() or ""
    assert "üüü" in details
    assert len(details) < 1000
