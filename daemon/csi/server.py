"""The sockets of the CSI driver, for root alone: that of the driver itself, and the one by which the kubelet finds it.

Both are below the kubelet's root: `plugins/<driver>/csi.sock` and `plugins_registry/<driver>-reg.sock`.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from grpclib.server import Server

from contract import names
from daemon.csi.identity import IdentityService
from daemon.csi.node import NodeService
from daemon.csi.registration import RETRY, RegistrationService
from daemon.csi.unserved import UnservedServices
from service.rootsocket import root_socket

if TYPE_CHECKING:
    from grpclib._typing import IServable

log = logging.getLogger(__name__)

_FOLDER_MODE = 0o750
"""Of folders that the kubelet has not made, as it makes them."""


def driver_socket(kubelet_root: Path) -> Path:
    return kubelet_root / "plugins" / names.CSI_DRIVER / "csi.sock"


def registration_socket(kubelet_root: Path) -> Path:
    return kubelet_root / "plugins_registry" / f"{names.CSI_DRIVER}-reg.sock"


@contextlib.asynccontextmanager
async def listening(
    kubelet_root: Path, identity: IdentityService, node: NodeService, registration: RegistrationService
) -> AsyncIterator[None]:
    """Serves both for as long as the context lasts. The driver's comes first and goes last, for the kubelet asks it
    as soon as it has found the other. Raises OSError when one can't be had."""
    async with (
        _serving(driver_socket(kubelet_root), [identity, node, UnservedServices()]),
        _registering(registration_socket(kubelet_root), registration),
    ):
        log.info("CSI is served on %s", driver_socket(kubelet_root))
        yield


@contextlib.asynccontextmanager
async def _registering(path: Path, registration: RegistrationService) -> AsyncIterator[None]:
    """Serves it, on a new socket whenever the kubelet needs to be shown one."""
    served: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def serve() -> None:
        while True:
            try:
                async with _serving(path, [registration]):
                    if not served.done():
                        served.set_result(None)
                    await registration.wait_for_new_socket()
            except OSError as error:
                if not served.done():
                    raise
                log.warning("%s can't be made anew: %s", path, error)
                await asyncio.sleep(RETRY)
            else:
                log.info("%s is made anew, for the kubelet to try again", path)

    task = asyncio.create_task(serve())
    try:
        await asyncio.wait({task, served}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


@contextlib.asynccontextmanager
async def _serving(path: Path, services: "Collection[IServable]") -> AsyncIterator[None]:
    for folder in (path.parent.parent, path.parent):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(_FOLDER_MODE)
    server = _Server(services)
    with root_socket(path) as bound:
        await server.start(sock=bound)
        try:
            yield
        finally:
            server.close()
            await server.wait_closed()


class _Server(Server):
    async def wait_closed(self) -> None:
        """Until no request is answered any more. From Python 3.12 on asyncio waits until all clients have hung up, too:
        the kubelet may keep a connection for as long as it likes, and would neither be shown a new socket nor let the
        daemon end."""
        for handler in list(self._handlers):
            await handler.wait_closed()
