"""CSI volumes of pods: staged once on the node, published for each pod, and what is written down of them.

Source: pkg/volume/csi/{csi_plugin,csi_attacher,csi_mounter,csi_block}.go of Kubernetes 1.36.2. What must survive the
kubelet is in `vol_data.json`: beside the staging folder of a volume and in the pod's folder, and for a block volume in
a folder of the volume.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kube.informer import Informer
from tests.sandbox.kubelet import blockdevices
from tests.sandbox.kubelet.csiclient import BLOCK, CsiClient, Use
from tests.sandbox.kubelet.driver import CallFailed, Transient
from tests.sandbox.kubelet.layout import FOLDER_MODE, VolumeFolder, make_folders, own_by_group
from tests.sandbox.kubelet.registration import NotRegistered, Registered
from tests.sandbox.kubelet.secretrefs import SecretReader
from tests.sandbox.kubelet.sources import Csi, InlineCsi, changes_on_root_mismatch, fs_group

Json = dict[str, Any]

DATA_FILE = "vol_data.json"
_PLUGIN = "kubernetes.io/csi"
_log = logging.getLogger(__name__)


class ApplyGroupFailed(CallFailed):
    """The volume is mounted, and not as the pod needs it."""

    finished, uncertain = False, True


@dataclass(frozen=True)
class CsiVolume:
    """A volume of the node, however many pods use it."""

    driver: str
    handle: str
    name: str
    """Of its PersistentVolume."""
    block: bool


def volume_of(source: Csi) -> CsiVolume:
    return CsiVolume(source.driver, source.handle, source.name, source.block)


@dataclass(frozen=True)
class CsiPaths:
    """Where a kubelet of that root has the parts of CSI volumes."""

    root: Path

    @property
    def _plugin(self) -> Path:
        return self.root / "plugins" / _PLUGIN

    @property
    def _devices(self) -> Path:
        return self._plugin / "volumeDevices"

    def stage(self, volume: CsiVolume) -> Path:
        if volume.block:
            return self._devices / "staging" / volume.name
        digest = hashlib.sha256(volume.handle.encode()).hexdigest()
        return self._plugin / volume.driver / digest / "globalmount"

    def publish_folder(self, name: str) -> Path:
        """Of a block volume: where its pods' devices are bound by the driver."""
        return self._devices / "publish" / name

    def device_folder(self, name: str) -> Path:
        """Of a block volume: all that the kubelet keeps of it."""
        return self._devices / name

    def map_folder(self, name: str) -> Path:
        """Of a block volume: where the kubelet binds the devices of its pods (the global map path)."""
        return self.device_folder(name) / "dev"

    def data(self, folder: VolumeFolder) -> Path:
        """The file that tells a new kubelet which volume the pod's folder is of."""
        if folder.block:
            return self.device_folder(folder.name) / "data" / DATA_FILE
        return folder.path / DATA_FILE

    def target(self, folder: VolumeFolder) -> Path:
        """Where the driver publishes the volume for the pod."""
        return self.publish_folder(folder.name) / folder.pod_uid if folder.block else folder.path / "mount"

    def stats(self, folder: VolumeFolder) -> Path:
        """Where the driver is to look when it is asked how full the pod's volume is."""
        return self.map_folder(folder.name) / folder.pod_uid if folder.block else self.target(folder)


class CsiPlugin:
    """Methods raise CallFailed, in the words of the real one, and OSError."""

    def __init__(
        self, secrets: SecretReader, root: Path, node: str, registered: Registered, csi_drivers: Informer[Json]
    ) -> None:
        """`csi_drivers`: the CSIDriver objects."""
        self.paths = CsiPaths(root)
        self._secrets = secrets
        self._node = node
        self._registered = registered
        self._csi_drivers = csi_drivers

    def check(self, source: Csi) -> None:
        """What is asked before anything is done (NewMounter, CanAttach)."""
        spec = self._spec(source.driver)
        modes = spec.get("volumeLifecycleModes") or ["Persistent"]
        if spec and "Persistent" not in modes:
            words = f'volume mode "Persistent" not supported by driver {source.driver}'
            raise CallFailed(f"{words} (only supports {_quoted(modes)})")
        if not spec or spec.get("attachRequired", True):
            # The real one waits for a VolumeAttachment.
            raise CallFailed(f"the CSIDriver {source.driver} requires attachment, and the sandbox has no attacher")

    def refusal_of_inline(self, source: InlineCsi) -> CallFailed:
        """Why a pod can't have a volume without a claim (supportsVolumeLifecycleMode)."""
        spec = self._spec(source.driver)
        modes = spec.get("volumeLifecycleModes") or ["Persistent"]
        words = f'volume mode "Ephemeral" not supported by driver {source.driver}'
        if not spec:
            return CallFailed(f"{words} (no CSIDriver object)")
        if "Ephemeral" in modes:
            return CallFailed("the sandbox's kubelet mounts no CSI volumes without a claim")
        return CallFailed(f"{words} (only supports {_quoted(modes)})")

    async def stage(self, source: Csi, pod: Json) -> None:
        """MountDevice, and SetUpDevice for a block volume."""
        volume = volume_of(source)
        words = "blockMapper.SetUpDevice failed to get CSI client" if source.block else (
            "attacher.MountDevice failed to create newCsiDriverClient"
        )  # fmt: skip
        client = self._client(source.driver, words)
        path = self.paths.stage(volume)
        stages = await client.stages()
        secrets = await self._secrets.to_stage(source) if stages else {}
        make_folders(path, FOLDER_MODE)
        if not source.block:
            _write(path.parent / DATA_FILE, {"volumeHandle": source.handle, "driverName": source.driver})
        if not stages:
            return
        group = fs_group(pod) if not source.block and await client.takes_groups() else None
        try:
            await client.stage(source.handle, path, _use(source), source.attributes, group, secrets)
        except CallFailed as error:
            if error.finished:
                self._clear_stage(volume)
            raise

    async def unstage(self, volume: CsiVolume) -> None:
        """UnmountDevice, and TearDownDevice for a block volume. What is not there is no error."""
        path = self.paths.stage(volume)
        if volume.block:
            client = self._client(volume.driver, "blockMapper.TearDownDevice failed to get CSI client")
            if path.exists() and await client.stages():
                await client.unstage(volume.handle, path)
                shutil.rmtree(path)
            self._clear_block(volume.name)
            return
        if not (path.parent / DATA_FILE).exists():
            return
        client = self._client(volume.driver, "attacher.UnmountDevice failed to create newCsiDriverClient")
        if await client.stages():
            await client.unstage(volume.handle, path)
        self._clear_stage(volume)

    async def publish(self, source: Csi, pod: Json, folder: VolumeFolder) -> None:
        """SetUpAt, and MapPodDevice with what the kubelet does for a device by itself."""
        words = "blockMapper.MapPodDevice" if source.block else "mounter.SetUpAt"
        client = self._client(source.driver, f"{words} failed to get CSI client")
        target, use = self.paths.target(folder), _use(source)
        stages = source.block or await client.stages()
        staged = self.paths.stage(volume_of(source)) if stages else None
        make_folders(target.parent, FOLDER_MODE)
        self._write_data(source, folder)
        secrets = await self._secrets.to_publish(source)
        group = fs_group(pod) if not source.block and await client.takes_groups() else None
        context = dict(source.attributes) | self._pod_info(source, pod)
        if source.block:
            use = replace(use, mount_options=())
        try:
            await client.publish(
                source.handle, staged, target, use, context, group, secrets, read_only=source.read_only
            )
        except CallFailed as error:
            if error.finished and not source.block:
                _clear_target(target)
            raise
        if not source.block and group is None:
            await self._apply_group(source, pod, target)

    async def map_device(self, folder: VolumeFolder) -> None:
        """What the kubelet does with the device that the driver published (MapBlockVolume)."""
        target, bound = self.paths.target(folder), self.paths.map_folder(folder.name) / folder.pod_uid
        await asyncio.to_thread(blockdevices.map_device, target.resolve(), bound, folder.path)

    async def unpublish(self, folder: VolumeFolder) -> None:
        """TearDownAt, and for a block volume UnmapBlockVolume and UnmapPodDevice."""
        data = self._read_data(folder)
        target = self.paths.target(folder)
        if folder.block:
            bound = self.paths.map_folder(folder.name) / folder.pod_uid
            await asyncio.to_thread(blockdevices.unmap_device, bound, folder.path)
        words = "blockMapper.UnmapPodDevice" if folder.block else "mounter.SetUpAt"
        client = self._client(data["driverName"], f"{words} failed to get CSI client")
        await client.unpublish(data["volumeHandle"], target)
        if not folder.block:
            _clear_target(target)

    async def expand(self, source: Csi, folder: VolumeFolder, size: int) -> None:
        """`size` in bytes (nodeExpandWithClient)."""
        client = self._client(source.driver, "Expander.NodeExpand failed to get CSI client")
        if not await client.expands():
            raise CallFailed(
                f"Expander.NodeExpand found CSI plugin {_PLUGIN}/{source.driver} to not support node expansion"
            )
        staged = self.paths.stage(volume_of(source))
        secrets = await self._secrets.to_expand(source)
        await client.expand(source.handle, self.paths.target(folder), staged, _use(source), size, secrets)

    def volume_in(self, folder: VolumeFolder) -> CsiVolume | None:
        """Which volume a pod's folder is of, as a kubelet before this one noted. None: it noted nothing
        (ConstructVolumeSpec)."""
        try:
            data = self._read_data(folder)
        except CallFailed:
            return None
        return CsiVolume(data["driverName"], data["volumeHandle"], data["specVolID"], folder.block)

    def client_of(self, driver: str) -> CsiClient | None:
        return self._registered.clients.get(driver)

    def _client(self, driver: str, words: str) -> CsiClient:
        try:
            return self._registered.client(driver)
        except NotRegistered as error:
            raise Transient(f"{_PLUGIN}: {words}: {error}") from error

    def _spec(self, driver: str) -> Json:
        found = self._csi_drivers.get(driver)
        return found["spec"] if found else {}

    def _pod_info(self, source: Csi, pod: Json) -> dict[str, str]:
        if not self._spec(source.driver).get("podInfoOnMount"):
            return {}
        metadata = pod["metadata"]
        prefix = "csi.storage.k8s.io/"
        return {
            f"{prefix}pod.name": metadata["name"],
            f"{prefix}pod.namespace": metadata["namespace"],
            f"{prefix}pod.uid": metadata["uid"],
            f"{prefix}serviceAccount.name": pod["spec"].get("serviceAccountName") or "default",
            f"{prefix}ephemeral": "false",
        }

    async def _apply_group(self, source: Csi, pod: Json, target: Path) -> None:
        """Of supportsFSGroup."""
        group, policy = fs_group(pod), self._spec(source.driver).get("fsGroupPolicy") or "ReadWriteOnceWithFSType"
        if group is None or policy == "None" or source.read_only:
            return
        once = {"ReadWriteOnce", "ReadWriteOncePod"} & set(source.access_modes)
        if policy != "File" and not (source.filesystem and once):
            return
        try:
            quick = changes_on_root_mismatch(pod)
            await asyncio.to_thread(own_by_group, target, group, on_root_mismatch=quick)
        except OSError as error:
            raise ApplyGroupFailed(f"applyFSGroup failed for vol {source.handle}: {error}") from error

    def _write_data(self, source: Csi, folder: VolumeFolder) -> None:
        attachment = hashlib.sha256(f"{source.handle}{source.driver}{self._node}".encode()).hexdigest()
        data = {
            "specVolID": source.name,
            "volumeHandle": source.handle,
            "driverName": source.driver,
            "nodeName": self._node,
            "attachmentID": f"csi-{attachment}",
        }
        _write(self.paths.data(folder), data if folder.block else data | {"volumeLifecycleMode": "Persistent"})

    def _read_data(self, folder: VolumeFolder) -> dict[str, str]:
        path = self.paths.data(folder)
        try:
            found: dict[str, str] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            what = "unmapper" if folder.block else "unmounter"
            raise CallFailed(f"{_PLUGIN}: {what} failed to load volume data file [{path.parent}]: {error}") from error
        return found

    def _clear_stage(self, volume: CsiVolume) -> None:
        if volume.block:
            self._clear_block(volume.name)
        else:
            _clear_target(self.paths.stage(volume))

    def _clear_block(self, name: str) -> None:
        """What is left of a block volume that no pod uses (cleanupOrphanDeviceFiles)."""
        for folder in (self.paths.publish_folder(name), self.paths.stage(CsiVolume("", "", name, block=True))):
            with contextlib.suppress(OSError):
                folder.rmdir()
        shutil.rmtree(self.paths.device_folder(name), ignore_errors=True)


def _quoted(words: list[str]) -> str:
    """As Go's %q writes a slice."""
    return f"[{' '.join(json.dumps(word) for word in words)}]"


def _use(source: Csi) -> Use:
    mode = source.access_modes[0] if source.access_modes else "ReadWriteOnce"
    return Use(mode, BLOCK if source.block else source.filesystem, () if source.block else source.mount_options)


def _write(path: Path, data: dict[str, str]) -> None:
    make_folders(path.parent, FOLDER_MODE)
    path.write_text(json.dumps(data, sort_keys=True, separators=(",", ":")))


def _clear_target(target: Path) -> None:
    """The driver is done with the folder; nothing of it stays but what is still mounted (removeMountDir)."""
    with contextlib.suppress(FileNotFoundError):
        if target.stat().st_dev != target.parent.stat().st_dev:
            return
    for remove in (target.rmdir, (target.parent / DATA_FILE).unlink, target.parent.rmdir):
        with contextlib.suppress(FileNotFoundError):
            remove()
