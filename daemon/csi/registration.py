"""How the kubelet learns of the CSI driver: it watches its folder `plugins_registry`, asks each socket there what it
is, and says what became of it.

Sources: pkg/kubelet/pluginmanager/pluginwatcher and operationexecutor. While the socket is there the driver counts as
registered, and a socket that goes takes the registration with it; so it is there exactly as long as the driver is
served. Only since Kubernetes 1.36 a kubelet that could not register a driver tries again; one before takes no more
notice of that socket, and has to be shown a new one.
"""

import asyncio
import logging

from grpclib.server import Stream

from contract import names
from daemon.cluster.events import NodeEvents
from daemon.csi.proto.pluginregistration_grpc import RegistrationBase
from daemon.csi.proto.pluginregistration_pb2 import (
    InfoRequest,
    PluginInfo,
    RegistrationStatus,
    RegistrationStatusResponse,
)
from service.rootsocket import SocketPathTooLong

log = logging.getLogger(__name__)

NOT_REGISTERED, REGISTERED = "CSIDriverNotRegistered", "CSIDriverRegistered"

_TYPE = "CSIPlugin"
_VERSIONS = ("1.0.0",)
"""Of CSI, as the kubelet compares them: it takes any 1.x for the same."""
SHORTER_ROOT = "run the kubelet with a shorter --root-dir, and set KUBELET_ROOT to it, or set CSI=false"
"""What to do when the path of a socket is too long."""
RETRY = 30.0
"""Seconds that a kubelet has to register by itself what it refused, before it is shown a new socket."""
PATIENCE = 120.0
"""Seconds that the kubelet has to come. It notices a new socket at once."""


class RegistrationService(RegistrationBase):
    """`problem` says why the kubelet does not use the driver, for readiness. Empty: it does, or has time yet."""

    def __init__(self, endpoint: str, events: NodeEvents, patience: float = PATIENCE, retry: float = RETRY) -> None:
        """`endpoint`: the path of the driver's socket, as the kubelet sees it. `patience` and `retry` in seconds."""
        self._endpoint = endpoint
        self._events = events
        self._patience = patience
        self._retry = retry
        self._refused = asyncio.Event()
        self.problem = ""
        self._registered = asyncio.Event()
        events.on_known(self._report)

    @property
    def registered(self) -> bool:
        """The kubelet has registered the driver since this daemon started."""
        return self._registered.is_set()

    async def GetInfo(self, stream: Stream[InfoRequest, PluginInfo]) -> None:
        await stream.recv_message()
        await stream.send_message(
            PluginInfo(type=_TYPE, name=names.CSI_DRIVER, endpoint=self._endpoint, supported_versions=list(_VERSIONS))
        )

    async def NotifyRegistrationStatus(self, stream: Stream[RegistrationStatus, RegistrationStatusResponse]) -> None:
        status = await stream.recv_message()
        await stream.send_message(RegistrationStatusResponse())
        if status is None:
            return
        if status.plugin_registered:
            self._registered.set()
            self._refused.clear()
            self._set_problem("")
            log.info("the kubelet registered the CSI driver")
        else:
            self._refused.set()
            self._set_problem(
                f"the kubelet does not register the CSI driver: {status.error[:500]}; it tries again, see its log"
            )

    def not_served(self, error: OSError) -> None:
        """To be called when the sockets can't be created."""
        remedy = SHORTER_ROOT if isinstance(error, SocketPathTooLong) else "see what is wrong with that folder"
        self._set_problem(f"the CSI driver is not served: {error}: {remedy}")

    async def wait_for_new_socket(self) -> None:
        """Until the kubelet has refused the driver, and has not registered it for a while after that."""
        while True:
            await self._refused.wait()
            await asyncio.sleep(self._retry)
            if self._refused.is_set():
                self._refused.clear()
                return

    async def watch(self) -> None:
        """Reports a problem when the kubelet does not register the driver in time."""
        try:
            await asyncio.wait_for(self._registered.wait(), self._patience)
        except TimeoutError:
            if not self.problem:
                self._set_problem(
                    "the kubelet did not ask for the CSI driver: set KUBELET_ROOT to its --root-dir, and mount its "
                    "folder plugins_registry into this pod"
                )

    def _set_problem(self, problem: str) -> None:
        before, self.problem = self.problem, problem
        if problem == before:
            return
        if problem:
            log.warning("%s", problem)
        self._report()
        if not problem:
            self._events.normal(REGISTERED, "the kubelet registered the CSI driver")

    def _report(self) -> None:
        if self.problem:
            self._events.warning(NOT_REGISTERED, self.problem)
