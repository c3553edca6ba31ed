"""Mounts what pods want and unmounts what they don't, as the kubelet's volume manager does.

One task for each volume of each pod. What the real one does and drivers notice: operations on one volume never overlap
and those on different ones do; a failure is tried again after 0.5, 1, 2, 4 ... seconds; a mount that failed is never
unmounted, and one that is running is never interrupted: if nobody wants it when it is done, an unmount follows.
"""

import asyncio
import logging
import shutil
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, Protocol

from kube.backoff import Backoff
from kube.errors import ApiError
from tests.sandbox.kubelet.csi import CsiPlugin, CsiVolume, volume_of
from tests.sandbox.kubelet.driver import CallFailed, NotSupported
from tests.sandbox.kubelet.expansion import Expansion, Teller
from tests.sandbox.kubelet.layout import (
    CSI_FOLDER,
    EMPTY_DIR_FOLDER,
    EMPTY_DIR_PARENT_MODE,
    HOST_PATH_MODE,
    LOCAL_FOLDER,
    Layout,
    VolumeFolder,
    make_folders,
    own_by_group,
)
from tests.sandbox.kubelet.plugins import NoDriver, Plugins
from tests.sandbox.kubelet.sources import (
    Csi,
    EmptyDir,
    Flex,
    HostPath,
    InlineCsi,
    Local,
    Source,
    changes_on_root_mismatch,
    fs_group,
    mount_options,
    spec_options,
)
from tests.sandbox.kubelet.staged import StagedVolume

Json = dict[str, Any]

_RETRY = Backoff(first=0.5, factor=2, limit=122, jitter=0)
_log = logging.getLogger(__name__)


class Owner(Teller, Protocol):
    """The pod, as a volume sees it."""

    def volume_changed(self) -> None: ...


class StepFailed(CallFailed):
    """Not the mount itself, but a step before or after it; `step` is what the event begins with."""

    def __init__(self, step: str, error: Exception) -> None:
        super().__init__(str(error))
        self.step = step


_GROWING = "MountVolume.Setup failed while expanding volume"
_GROWING_DEVICE = "MapVolume.MarkVolumeAsMounted failed while expanding volume"


class PodVolume:
    """One volume of one pod, from the wish to have it until its folder is gone."""

    def __init__(
        self,
        plugins: Plugins,
        csi: CsiPlugin,
        folder: VolumeFolder,
        expansion: Expansion,
        staged: StagedVolume | None,
        on_end: Callable[[VolumeFolder], None],
    ) -> None:
        """`staged`: of a CSI volume, and of no other."""
        self._plugins = plugins
        self._csi = csi
        self._staged = staged
        self._folder = folder
        self._expansion = expansion
        self._on_end = on_end
        self._source: Source | None = None
        self._pod: Json = {}
        self._owner: Owner | None = None
        self._changed = asyncio.Event()
        self.mounted = False
        self._reconstructed = self._uncertain = folder.exists
        """There may be a mount: a kubelet before this one left the folder, or a step after the mount failed."""
        if staged:
            staged.join(folder.path, self)
        self._task = asyncio.create_task(self._run())

    @property
    def path(self) -> Path:
        """What containers see."""
        if isinstance(self._source, HostPath):
            return Path(self._source.path)
        if self._folder.csi and not self._folder.block:
            return self._csi.paths.target(self._folder)
        return self._folder.path

    @property
    def folder(self) -> VolumeFolder:
        return self._folder

    @property
    def source(self) -> Source | None:
        """None: nobody wants it."""
        return self._source

    @property
    def holds_pod(self) -> bool:
        """Whether the pod has to stay until this volume is unmounted. A mount that still runs doesn't hold it."""
        return self.mounted or self._uncertain

    def want(self, source: Source, pod: Json, owner: Owner) -> None:
        self._source, self._pod, self._owner = source, pod, owner
        self._changed.set()

    def release(self) -> None:
        self._source = None
        self._changed.set()

    def look_again(self) -> None:
        """Claim or volume may have grown. Says nothing about who wants it: that may still be undecided."""
        if self._source is not None:
            self._changed.set()

    async def _run(self) -> None:
        failures = 0
        while True:
            # The first wait is for the first wish: until then nobody knows whether what is there is still wanted.
            await self._changed.wait()
            self._changed.clear()
            source = self._source
            try:
                if source is None:
                    if not self.holds_pod:
                        break
                    await self._unmount()
                elif not self.mounted:
                    await self._mount(source)
                else:
                    await self._grow(source, mounting=False)
                failures = 0
            except (CallFailed, NoDriver, OSError, ApiError) as error:
                failures += 1
                self._tell(source, error)
                await self._pause(_RETRY.delay(failures), wanted=source is not None)
        self._on_end(self._folder)

    async def _pause(self, seconds: float, wanted: bool) -> None:
        """Wait for the next try. Only another wish cuts it short."""
        deadline = asyncio.get_running_loop().time() + seconds
        while (self._source is not None) == wanted:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                break
            self._changed.clear()
        self._changed.set()

    def _tell(self, source: Source | None, error: Exception) -> None:
        name = self._folder.name
        if source is None or self._owner is None:
            # As the real one: a failing unmount makes no event, the pod only hangs.
            _log.error('UnmountVolume.TearDown failed for volume "%s" (%s): %s', name, self._folder.path, error)
        elif self.mounted:
            reason = "VolumeResizeFailed"
            self._owner.tell(reason, f'NodeExpandVolume.NodeExpandVolume failed for volume "{name}" : {error}')
        elif isinstance(error, StepFailed):
            reason = "FailedMapVolume" if self._folder.block else "FailedMount"
            self._owner.tell(reason, f'{error.step} for volume "{name}" : {error}')
        else:
            self._owner.tell("FailedMount", f'MountVolume.SetUp failed for volume "{name}" : {error}')

    async def _mount(self, source: Source) -> None:
        match source:
            case HostPath():
                _check_host_path(source)
            case EmptyDir():
                self._folder.create(EMPTY_DIR_PARENT_MODE)
                self._folder.path.chmod(0o777)
                await self._apply_group()
            case Local():
                await self._bind(source)
            case Flex():
                await self._set_up(source)
                self._uncertain = True
                try:
                    await self._grow(source, mounting=True)
                except (CallFailed, ApiError) as error:
                    raise StepFailed(_GROWING, error) from error
            case Csi():
                await self._set_up_csi(source)
            case InlineCsi():
                raise StepFailed("MountVolume.NewMounter initialization failed", self._csi.refusal_of_inline(source))
        self.mounted, self._uncertain, self._reconstructed = True, False, False
        self._notify()

    async def _set_up_csi(self, source: Csi) -> None:
        """GenerateMountVolumeFunc and GenerateMapVolumeFunc."""
        assert self._staged is not None
        block, folder = source.block, self._folder
        verb, set_up = ("MapVolume", "SetUpDevice") if block else ("MountVolume", "SetUp")
        staging = "MapVolume.SetUpDevice failed" if block else "MountVolume.MountDevice failed"
        publishing = "MapVolume.MapPodDevice failed" if block else "MountVolume.SetUp failed"
        async with self._staged.alone():
            try:
                self._csi.check(source)
            except CallFailed as error:
                raise StepFailed(
                    f"{verb}.New{'BlockVolumeMapper' if block else 'Mounter'} initialization failed", error
                ) from error
            if source.access_modes == ("ReadWriteOncePod",) and self._staged.is_used_elsewhere(folder.path):
                why = CallFailed("volume uses the ReadWriteOncePod access mode and is already in use by another pod")
                raise StepFailed(f"{verb}.{set_up} failed", why)
            try:
                await self._staged.stage(source, self._pod)
            except (CallFailed, OSError) as error:
                raise StepFailed(staging, error) from error
            try:
                await self._csi.publish(source, self._pod, folder)
            except CallFailed as error:
                if error.uncertain:
                    self._uncertain = True
                elif error.finished and not self._reconstructed:
                    self._uncertain = False
                raise StepFailed(publishing, error) from error
            self._uncertain = True
            if block:
                await self._map(source)
            try:
                await self._grow_csi(source, mounting=True)
            except (CallFailed, ApiError) as error:
                raise StepFailed(_GROWING_DEVICE if block else _GROWING, error) from error

    async def _map(self, source: Csi) -> None:
        try:
            await self._csi.map_device(self._folder)
        except (CallFailed, OSError) as error:
            raise StepFailed("MapVolume.MapBlockVolume failed", error) from error
        if self._owner is not None:
            paths = (
                f'globalMapPath "{self._csi.paths.map_folder(source.name)}"',
                f'volumeMapPath "{self._folder.path.parent}"',
            )
            for path in paths:
                message = f'MapVolume.MapPodDevice succeeded for volume "{source.name}" {path}'
                self._owner.tell("SuccessfulMountVolume", message, normal=True)

    async def _set_up(self, source: Flex) -> None:
        driver = await self._plugins.find(source.driver)
        if driver.capabilities["attach"]:
            raise CallFailed("the driver's init says that it attaches, and the sandbox has no attach controller")
        try:
            if self._folder.likely_mounted():
                return
        except FileNotFoundError:
            pass
        await driver.volume_name(spec_options(source))
        self._folder.create()
        try:
            try:
                await driver.mount(self._folder.path, mount_options(source, self._pod))
            except NotSupported:
                # The kubelet's own way is a bind of the device mount, which a driver without attach doesn't have.
                raise CallFailed("mount failed: exit status 32: special device does not exist") from None
        except CallFailed:
            try:
                self._folder.path.rmdir()
            except OSError as error:
                _log.warning("removing the folder of a failed mount: %s", error)
            raise
        if driver.capabilities["fsGroup"] and not source.read_only:
            await self._apply_group()

    async def _bind(self, source: Local) -> None:
        """Of pkg/volume/local, what is done for a volume that is a folder."""
        if not Path(source.path).is_dir():
            raise CallFailed(f"the sandbox's kubelet mounts local volumes that are folders, and {source.path} is none")
        self._folder.create()
        if not self._folder.likely_mounted():
            options = ["bind", *(["ro"] if source.read_only else []), *source.mount_options]
            await _run("mount", "-o", ",".join(options), source.path, str(self._folder.path))
        if not source.read_only:
            await self._apply_group()

    async def _apply_group(self) -> None:
        group = fs_group(self._pod)
        if group is not None:
            quick = changes_on_root_mismatch(self._pod)
            await asyncio.to_thread(own_by_group, self._folder.path, group, on_root_mismatch=quick)

    async def _grow(self, source: Source, *, mounting: bool) -> None:
        if isinstance(source, Csi) and self._staged:
            async with self._staged.alone():
                await self._grow_csi(source, mounting=mounting)
            return
        if not isinstance(source, Flex) or not source.claim or self._owner is None:
            return
        driver, options, path = await self._plugins.find(source.driver), spec_options(source), self._folder.path
        if driver.capabilities["requiresFSResize"]:

            async def grow(after: int, before: int) -> None:
                await driver.expandfs(options, path, after, before)

            await self._expansion.grow_if_due(grow, source, self._owner, mounting=mounting)

    async def _grow_csi(self, source: Csi, *, mounting: bool) -> None:
        async def grow(after: int, _before: int) -> None:
            await self._csi.expand(source, self._folder, after)

        if self._owner is not None:
            await self._expansion.grow_if_due(grow, source, self._owner, mounting=mounting)

    async def _unmount(self) -> None:
        path = self._folder.path
        if self._staged is not None:
            async with self._staged.shared():
                await self._csi.unpublish(self._folder)
        elif path.parent.name == EMPTY_DIR_FOLDER:
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
        elif path.parent.name == LOCAL_FOLDER:
            if path.exists() and self._folder.likely_mounted():
                await _run("umount", str(path))
            if path.exists():
                path.rmdir()
        elif path.exists():
            driver = await self._plugins.find(self._folder.plugin)
            try:
                await driver.unmount(path)
            except NotSupported:
                await _run("umount", str(path))
            if path.exists():
                path.rmdir()
        self.mounted = self._uncertain = self._reconstructed = False
        self._changed.set()
        self._notify()

    def _notify(self) -> None:
        if self._owner is not None:
            self._owner.volume_changed()


def _check_host_path(source: HostPath) -> None:
    path = Path(source.path)
    if source.kind == "DirectoryOrCreate":
        make_folders(path, HOST_PATH_MODE)
    elif not path.is_dir():
        raise CallFailed(f"hostPath type check failed: {path} is not a directory")


async def _run(*argv: str) -> None:
    process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE, start_new_session=True)
    _, errors = await process.communicate()
    if process.returncode:
        raise CallFailed(f"{argv[0]} failed: {errors.decode().strip()}")


class VolumeManager:
    """All volumes of all pods of the node."""

    def __init__(
        self, plugins: Plugins, csi: CsiPlugin, layout: Layout, expansion: Expansion, live: Container[str]
    ) -> None:
        """`live`: UIDs of the pods that somebody looks after; the folders of others go with their last volume."""
        self._plugins = plugins
        self._csi = csi
        self._layout = layout
        self._expansion = expansion
        self._live = live
        self._volumes: dict[Path, PodVolume] = {}
        self._staged: dict[CsiVolume, StagedVolume] = {}

    def reconstruct(self) -> None:
        """Take over what a kubelet before this one left: unmount what belongs to no live pod."""
        for folder in self._layout.volumes():
            if folder.path not in self._volumes:
                csi = self._csi.volume_in(folder) if folder.csi else None
                if folder.csi and csi is None:
                    _log.error("%s does not say which volume it is of", folder.path)
                    continue
                self._volumes[folder.path] = self._new(folder, csi)
                if csi:
                    self._staged[csi].reconstruct()
            if folder.pod_uid not in self._live:
                self._volumes[folder.path].release()

    def want(self, pod: Json, source: Source, owner: Owner) -> PodVolume:
        plugin = _plugin_name(source)
        block = isinstance(source, Csi) and source.block
        folder = self._layout.volume(pod["metadata"]["uid"], plugin, source.name, block=block)
        volume = self._volumes.get(folder.path)
        if volume is None:
            csi = volume_of(source) if isinstance(source, Csi) else None
            volume = self._volumes[folder.path] = self._new(folder, csi)
        volume.want(source, pod, owner)
        return volume

    def release(self, uid: str) -> bool:
        """Nobody wants the pod's volumes any more. Whether all are unmounted that hold the pod."""
        volumes = [volume for path, volume in self._volumes.items() if VolumeFolder(path).pod_uid == uid]
        for volume in volumes:
            volume.release()
        return not any(volume.holds_pod for volume in volumes)

    def look_again(self) -> None:
        for volume in self._volumes.values():
            volume.look_again()

    def mounted(self) -> list[PodVolume]:
        """The volumes that pods have."""
        return [volume for volume in self._volumes.values() if volume.mounted]

    def _new(self, folder: VolumeFolder, csi: CsiVolume | None) -> PodVolume:
        staged = None
        if csi is not None:
            staged = self._staged.get(csi)
            if staged is None:
                staged = self._staged[csi] = StagedVolume(self._csi, csi, self._unstaged)
        return PodVolume(self._plugins, self._csi, folder, self._expansion, staged, self._forget)

    def _unstaged(self, volume: CsiVolume) -> None:
        del self._staged[volume]

    def _forget(self, folder: VolumeFolder) -> None:
        del self._volumes[folder.path]
        for staged in self._staged.values():
            staged.leave(folder.path)
        self.discard_folder(folder.pod_uid)

    def discard_folder(self, uid: str) -> None:
        """Remove the folder of a pod that is gone, once the last of its volumes is."""
        if uid in self._live or any(VolumeFolder(path).pod_uid == uid for path in self._volumes):
            return
        if not self._layout.discard_pod(uid):
            _log.error("orphaned pod %s: its volumes' folders hold files or mounts", uid)


def _plugin_name(source: Source) -> str:
    match source:
        case Flex(driver=driver):
            return driver
        case EmptyDir():
            return EMPTY_DIR_FOLDER.replace("~", "/", 1)
        case HostPath():
            return "kubernetes.io/host-path"
        case Local():
            return LOCAL_FOLDER.replace("~", "/", 1)
        case Csi() | InlineCsi():
            return CSI_FOLDER.replace("~", "/", 1)
