"""The daemon, put together, while it starts."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from grpclib import Status
from grpclib.client import Channel

from contract import names
from daemon.backends.deviceclassbackend import backend_of_classes
from daemon.csi import server
from daemon.csi.proto.csi_grpc import NodeStub
from daemon.csi.proto.csi_pb2 import NodeGetInfoRequest
from daemon.kubelet import mounter
from daemon.node import Daemon
from daemon.settings import Settings
from daemon.storage.deviceclasses import BINDMOUNT
from daemon.storage.inventory import Inventory
from kube.client import Cluster
from kube.resources import NODES
from tests.ports import reserved_port
from tests.unit.daemon.csi.csinode import refused
from tests.unit.daemon.nodecluster import HOSTNAME, NODE, kind
from tests.unit.kube.apiserver import Answer, ApiServer, connected, page, status
from tests.waiting import until


def held(until_then: asyncio.Event, answer: Answer) -> Answer:
    async def wait(request: web.Request) -> web.StreamResponse:
        await until_then.wait()
        return await answer(request)

    return wait


@contextlib.asynccontextmanager
async def running(cluster: Cluster, folder: Path, kubelet: Path, looked: asyncio.Event) -> AsyncIterator[NodeStub]:
    """A daemon whose storage is not seen before `looked`, as the kubelet calls it."""
    with reserved_port() as port:
        chosen = Settings(
            NODE,
            driver_kind=BINDMOUNT,
            socket=folder / "socket",
            staging_dir=folder / "staging",
            kubelet_root=kubelet,
            data_dir=folder,
            flex_volume=False,
            listen_host="127.0.0.1",
            listen_port=port,
        )
        backend = backend_of_classes(chosen.classes, folder)
        inspect = backend.inspect

        async def inspect_then() -> Inventory:
            await looked.wait()
            return await inspect()

        backend.inspect = inspect_then  # type: ignore[method-assign]
        daemon = asyncio.create_task(Daemon(chosen, cluster, backend).run())
        try:
            await until(server.registration_socket(kubelet).exists)
            async with Channel(path=str(server.driver_socket(kubelet))) as channel:
                yield NodeStub(channel)
        finally:
            daemon.cancel()
            await asyncio.wait({daemon})


async def test_the_kubelet_is_told_what_the_start_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time the truth, and that it is worth another try: the kubelet registers the driver by NodeGetInfo."""
    monkeypatch.setattr(mounter, "_PATIENCE", 0.01)
    api = ApiServer()
    asked, looked, listed = asyncio.Event(), asyncio.Event(), asyncio.Event()
    api.next(f"GET /api/v1/nodes/{NODE}", held(asked, status(503, "ServiceUnavailable", "not now")))
    api.next("GET /api/v1/persistentvolumes", held(listed, page([], "1")))
    with tempfile.TemporaryDirectory(prefix="csi-") as short:  # a socket's path has at most 107 bytes
        async with connected(api, tmp_path, 60) as cluster, running(cluster, tmp_path, Path(short), looked) as kubelet:

            async def told(what: str) -> None:
                words = ""
                while what not in words:
                    code, words = await refused(kubelet.NodeGetInfo(NodeGetInfoRequest()))
                    assert code is Status.UNAVAILABLE
                    assert words.startswith("the elastic-local daemon of this node has not started up yet: ")

            async with asyncio.timeout(60):
                await told(f"the API server has not returned node {NODE} yet")
                asked.set()
                await told(f"the API server does not return node {NODE}: not now")
                await cluster.create(
                    NODES, {"metadata": {"name": NODE, "labels": {names.HOSTNAME_LABEL: HOSTNAME}}, **kind("Node")}
                )
                await told("the storage of this node is still being looked at")
                looked.set()
                await told("the API server has not listed the PersistentVolumes of this node yet")
                listed.set()
                monkeypatch.setattr(mounter, "_PATIENCE", 60)
                assert (await kubelet.NodeGetInfo(NodeGetInfoRequest())).node_id == NODE
