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
from tests.sandbox.kubelet.driver import CallFailed, NotSupported
from tests.sandbox.kubelet.expansion import Expansion, Teller
from tests.sandbox.kubelet.layout import (
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
from tests.sandbox.kubelet.sources import EmptyDir, Flex, HostPath, Local, Source, fs_group, mount_options, spec_options

Json = dict[str, Any]

_RETRY = Backoff(first=0.5, factor=2, limit=122, jitter=0)
_log = logging.getLogger(__name__)


class Owner(Teller, Protocol):
    """The pod, as a volume sees it."""

    def volume_changed(self) -> None: ...


class ExpansionFailed(CallFailed):
    """The volume is mounted, but it is to grow before its pod may start, and did not."""


class PodVolume:
    """One volume of one pod, from the wish to have it until its folder is gone."""

    def __init__(
        self, plugins: Plugins, folder: VolumeFolder, expansion: Expansion, on_end: Callable[[VolumeFolder], None]
    ) -> None:
        self._plugins = plugins
        self._folder = folder
        self._expansion = expansion
        self._on_end = on_end
        self._source: Source | None = None
        self._pod: Json = {}
        self._owner: Owner | None = None
        self._changed = asyncio.Event()
        self.mounted = False
        self._uncertain = folder.path.exists()
        """There may be a mount: a kubelet before this one left the folder, or a step after the mount failed."""
        self._task = asyncio.create_task(self._run())

    @property
    def path(self) -> Path:
        """What containers see."""
        return Path(self._source.path) if isinstance(self._source, HostPath) else self._folder.path

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
        elif isinstance(error, ExpansionFailed):
            prefix = "MountVolume.Setup failed while expanding volume"
            self._owner.tell("FailedMount", f'{prefix} for volume "{name}" : {error}')
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
                    raise ExpansionFailed(str(error)) from error
        self.mounted, self._uncertain = True, False
        self._notify()

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
            await asyncio.to_thread(own_by_group, self._folder.path, group)

    async def _grow(self, source: Source, *, mounting: bool) -> None:
        if not isinstance(source, Flex) or not source.claim or self._owner is None:
            return
        driver = await self._plugins.find(source.driver)
        if driver.capabilities["requiresFSResize"]:
            await self._expansion.grow_if_due(driver, source, self._folder.path, self._owner, mounting=mounting)

    async def _unmount(self) -> None:
        path = self._folder.path
        if path.parent.name == EMPTY_DIR_FOLDER:
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
        self.mounted = self._uncertain = False
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

    def __init__(self, plugins: Plugins, layout: Layout, expansion: Expansion, live: Container[str]) -> None:
        """`live`: UIDs of the pods that somebody looks after; the folders of others go with their last volume."""
        self._plugins = plugins
        self._layout = layout
        self._expansion = expansion
        self._live = live
        self._volumes: dict[Path, PodVolume] = {}

    def reconstruct(self) -> None:
        """Take over what a kubelet before this one left: unmount what belongs to no live pod."""
        for folder in self._layout.volumes():
            if folder.path not in self._volumes:
                self._volumes[folder.path] = self._new(folder)
            if folder.pod_uid not in self._live:
                self._volumes[folder.path].release()

    def want(self, pod: Json, source: Source, owner: Owner) -> PodVolume:
        plugin = _plugin_name(source)
        folder = self._layout.volume(pod["metadata"]["uid"], plugin, source.name)
        volume = self._volumes.get(folder.path)
        if volume is None:
            volume = self._volumes[folder.path] = self._new(folder)
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

    def _new(self, folder: VolumeFolder) -> PodVolume:
        return PodVolume(self._plugins, folder, self._expansion, self._forget)

    def _forget(self, folder: VolumeFolder) -> None:
        del self._volumes[folder.path]
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
