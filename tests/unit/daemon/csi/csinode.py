"""The CSI driver on its sockets, with all of the daemon behind it and the sandbox's API server, and clients of it."""

import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpclib import GRPCError, Status
from grpclib.client import Channel

from contract import names
from contract.volume import CSI, NodeAssignment
from daemon.backends.files import FilesBackend
from daemon.backends.folder import FolderBackend
from daemon.cluster.events import NodeEvents
from daemon.cluster.nodevolumes import NodeAssigner
from daemon.csi import server
from daemon.csi.identity import IdentityService
from daemon.csi.node import NodeService
from daemon.csi.nodestate import NodeStatus
from daemon.csi.proto.csi_grpc import IdentityStub, NodeStub
from daemon.csi.proto.csi_pb2 import (
    CapacityRange,
    NodeExpandVolumeRequest,
    NodeGetVolumeStatsRequest,
    NodePublishVolumeRequest,
    NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest,
    VolumeCapability,
)
from daemon.csi.proto.pluginregistration_grpc import RegistrationStub
from daemon.csi.registration import RETRY, RegistrationService
from daemon.kubelet.authorization import Authorizer
from daemon.kubelet.iolimits import IoLimitController
from daemon.kubelet.mounter import Mounter, NodeContext
from daemon.storage.inventory import VolumeHealth
from kube.informer import Informer
from kube.records import Pod, read_pod
from kube.resources import CLAIMS, PODS, VOLUMES
from tests.unit.daemon.nodecluster import (
    CLASS,
    HOSTNAME,
    NODE,
    NodeParts,
    Unmounted,
    create_pv,
    kind,
    node_parts,
)
from tests.waiting import until

MODE = VolumeCapability.AccessMode
POD_UID = "11111111-2222-3333-4444-555555555555"


def capability(mode: "MODE.Mode" = MODE.SINGLE_NODE_MULTI_WRITER, *, block: bool = False) -> VolumeCapability:
    access = MODE(mode=mode)
    if block:
        return VolumeCapability(access_mode=access, block=VolumeCapability.BlockVolume())
    return VolumeCapability(access_mode=access, mount=VolumeCapability.MountVolume(fs_type="ext4"))


@dataclass
class CsiNode:
    parts: NodeParts
    kubelet: Path
    mounter: Mounter
    identity: IdentityStub
    node: NodeStub
    registration: RegistrationStub
    registered: RegistrationService
    observed: list[tuple[str, str]]
    """RPCs and how they were answered."""
    pool: str

    @property
    def socket(self) -> Path:
        return server.driver_socket(self.kubelet)

    async def volume(self, name: str = "pv", **more: Any) -> str:
        """A PersistentVolume with a claim that holds it."""
        more.setdefault("assignment", NodeAssignment(NODE, HOSTNAME, self.pool))
        await create_pv(self.parts.cluster, name, source=CSI, **more)
        claim = await self.parts.cluster.create(
            CLAIMS,
            {
                **kind("PersistentVolumeClaim"),
                "metadata": {"name": f"claim-{name}", "namespace": "default"},
                "spec": {
                    "accessModes": list(more.get("access_modes", ["ReadWriteOnce"])),
                    "volumeMode": more.get("mode", "Filesystem"),
                    "storageClassName": CLASS,
                    "volumeName": name,
                    "resources": {"requests": {"storage": "1Mi"}},
                },
            },
        )
        reference = {"namespace": "default", "name": f"claim-{name}", "uid": claim["metadata"]["uid"]}
        await self.parts.cluster.patch(VOLUMES, name, {"spec": {"claimRef": {**kind(claim["kind"]), **reference}}})
        return name

    async def pod(self, volume: str = "pv") -> str:
        """The uid of a pod of this node that has the claim of the volume; its folder is as the kubelet makes it."""
        pod = await self.parts.cluster.create(
            PODS,
            {
                **kind("Pod"),
                "metadata": {"name": f"pod-{uuid.uuid4()}", "namespace": "default"},
                "spec": {
                    "nodeName": NODE,
                    "containers": [{"name": "main", "image": "none"}],
                    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": f"claim-{volume}"}}],
                },
            },
        )
        self.pods[pod["metadata"]["uid"]] = pod["metadata"]["name"]
        uid: str = pod["metadata"]["uid"]
        self.target(uid, volume).parent.mkdir(mode=0o750, parents=True)
        return uid

    def __post_init__(self) -> None:
        self.pods: dict[str, str] = {}
        """Names by uid."""

    def target(self, uid: str, volume: str = "pv") -> Path:
        return self.kubelet / "pods" / uid / "volumes" / names.CSI_FOLDER / volume / names.CSI_MOUNT

    def staged(self, volume: str = "pv") -> Path:
        return self.kubelet / "plugins" / "kubernetes.io" / "csi" / names.CSI_DRIVER / volume / "globalmount"

    def stage(self, volume: str = "pv", **more: Any) -> NodeStageVolumeRequest:
        fields = {"volume_id": volume, "staging_target_path": str(self.staged(volume)), **more}
        fields.setdefault("volume_capability", capability())
        return NodeStageVolumeRequest(**fields)

    def unstage(self, volume: str = "pv", **more: Any) -> NodeUnstageVolumeRequest:
        fields = {"volume_id": volume, "staging_target_path": str(self.staged(volume)), **more}
        return NodeUnstageVolumeRequest(**fields)

    def publish(self, uid: str, volume: str = "pv", **more: Any) -> NodePublishVolumeRequest:
        fields = {
            "volume_id": volume,
            "staging_target_path": str(self.staged(volume)),
            "target_path": str(self.target(uid, volume)),
            "volume_context": {
                "csi.storage.k8s.io/pod.name": self.pods.get(uid, ""),
                "csi.storage.k8s.io/pod.namespace": "default",
                "csi.storage.k8s.io/pod.uid": uid,
                "csi.storage.k8s.io/ephemeral": "false",
            },
            **more,
        }
        fields.setdefault("volume_capability", capability())
        return NodePublishVolumeRequest(**fields)

    def unpublish(self, uid: str, volume: str = "pv", **more: Any) -> NodeUnpublishVolumeRequest:
        fields = {"volume_id": volume, "target_path": str(self.target(uid, volume)), **more}
        return NodeUnpublishVolumeRequest(**fields)

    def stats(self, uid: str, volume: str = "pv", **more: Any) -> NodeGetVolumeStatsRequest:
        fields = {"volume_id": volume, "volume_path": str(self.target(uid, volume)), **more}
        return NodeGetVolumeStatsRequest(**fields)

    def expand(self, uid: str, volume: str = "pv", *, size: int = 0, limit: int = 0, **more: Any) -> Any:
        fields = {
            "volume_id": volume,
            "volume_path": str(self.target(uid, volume)),
            "capacity_range": CapacityRange(required_bytes=size, limit_bytes=limit),
            **more,
        }
        return NodeExpandVolumeRequest(**fields)


@asynccontextmanager
async def csi_node(
    folder: Path,
    *,
    backend: type[FilesBackend] = FolderBackend,
    mounts: bool = False,
    knows_itself: bool = True,
    retry: float = RETRY,
) -> AsyncIterator[CsiNode]:
    """`mounts`: real ones, which need root; else they are noted only. `knows_itself`: it has found its Node. `retry`:
    seconds until a kubelet that refused the driver is shown a new socket."""
    # A socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="csi-") as short:
        kubelet = Path(short)
        async with node_parts(folder, backend) as parts:
            volumes: Any = parts.volumes if mounts else Unmounted(parts.volumes)
            pods = Informer[Pod](parts.cluster, PODS, read_pod, field_selector=f"spec.nodeName={NODE}")
            mounter = Mounter(volumes, kubelet, lambda: "it waits")
            assigner = NodeAssigner(
                parts.cluster,
                parts.node,
                parts.node_volumes,
                lambda: parts.volumes.inventory,
                lambda _: backend.POOL,
            )
            authorizer = Authorizer(parts.cluster, pods, parts.node, parts.node_volumes)
            io_limits = IoLimitController(parts.node_volumes, pods, volumes, parts.events)
            context = NodeContext(
                parts.cluster, parts.node, authorizer, assigner, parts.reconciler.enqueue, parts.events, io_limits
            )
            if knows_itself:
                mounter.set_context(context)
            observed: list[tuple[str, str]] = []
            status = NodeStatus(mounter, volumes, lambda: {"ill": VolumeHealth.READ_ONLY})
            service = NodeService(mounter, status, lambda rpc, code, _: observed.append((rpc, code)))
            events = NodeEvents(parts.events)
            events.set_node(parts.node.reference)
            registration = RegistrationService(str(server.driver_socket(kubelet)), events, retry=retry)
            identity = IdentityService("1.2.3", lambda: True)
            async with server.listening(kubelet, identity, service, registration):
                async with (
                    Channel(path=str(server.driver_socket(kubelet))) as driver,
                    Channel(path=str(server.registration_socket(kubelet))) as registrar,
                ):
                    yield CsiNode(
                        parts,
                        kubelet,
                        mounter,
                        IdentityStub(driver),
                        NodeStub(driver),
                        RegistrationStub(registrar),
                        registration,
                        observed,
                        backend.POOL,
                    )
                await until(lambda: _connections(kubelet) == 0, what="the server has seen that its clients are gone")


def _connections(kubelet: Path) -> int:
    """Of the two sockets, besides those that listen."""
    return Path("/proc/net/unix").read_text().count(f"{kubelet}/") - 2


async def refused(call: Any) -> tuple[Status, str]:
    """How a call failed."""
    try:
        answer = await call
    except GRPCError as error:
        return error.status, error.message or ""
    raise AssertionError(f"the call did not fail: {answer}")
