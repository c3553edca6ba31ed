"""Where the volumes of a node are mounted: once each at `<staging>/<pv>`, and from there into the folders of pods.

What is mounted, and by whom a volume is used, is asked of the kernel each time and never remembered, so a daemon that
was killed and started again knows as much as before. Who uses a volume is in the mount table; what is at one path is
asked for that path alone, because the table is long. All functions block, also on the disk: call them from a thread.
"""

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

from contract import names
from contract.volume import CSI
from daemon.errors import BackendFailed, FolderMissing, InUse, Occupied, VolumeNotFound
from host import blockdevice, loopdevice, mounting, mountpoint, mounttable, ownfolder, statvfs
from host.mounting import Attribute
from host.mountpoint import MountPoint
from host.mounttable import Mount
from host.openfile import Closing
from host.statvfs import FilesystemUsage

log = logging.getLogger(__name__)

_UNUSABLE = 0o000
"""Mode of a staging folder under its mount: whoever writes there when nothing is mounted fills the node's own disk."""


_OF_STAGING = {Attribute.NOSUID: "nosuid", Attribute.NODEV: "nodev"}
"""What the staging mount has and a pod's has only if its class says so, in the words of mount(8)."""

_NODES = ("devtmpfs", "tmpfs", "ramfs")
"""Filesystems that nodes of devices are in. None of them has a disk that may hang."""

_UNWRITABLE = frozenset({"ro", "emergency_ro"})
"""Options of a filesystem. ext4 shows the second one since Linux 6.15 when it stopped itself."""


class TargetPath(Hashable, Protocol):
    """Where a pod finds a volume, as CSI calls it: a folder outside of the staging folder that is mounted on."""

    @property
    def name(self) -> str:
        """That of the volume."""
        ...

    @property
    def path(self) -> Path:
        """As the mount table shows it. System calls use what is open."""
        ...

    @property
    def pod_uid(self) -> str: ...

    @property
    def source(self) -> str:
        """By which kind of volume source the kubelet mounts it."""
        ...

    def open(self) -> AbstractContextManager[int]:
        """The folder, or what is mounted on it, as a file descriptor. Raises FolderMissing."""
        ...

    def open_parent(self) -> AbstractContextManager[int]:
        """The folder that it is in. Raises FolderMissing."""
        ...


class Staging:
    """The staging folder of one node."""

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.realpath(root))  # as the mount table shows it

    def path(self, pv: str) -> Path:
        return self._root / pv

    def make_folder(self, pv: str) -> Path:
        """The empty folder to mount the volume on."""
        ownfolder.establish(self._root)
        path = self.path(pv)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=_UNUSABLE)
        return path

    def stage_folder(self, pv: str, folder: Path) -> None:
        """The folder is on the staging path."""
        mounting.bind(folder, self.make_folder(pv), add=Attribute.NOSUID | Attribute.NODEV)

    def stage_device(self, pv: str, device: Path) -> None:
        """The node of a block device is on the staging path, and the device stays. Raises InUse when another one is
        there that is in use."""
        if staged := self.staged(pv):
            if staged.node == device.stat().st_rdev:
                return
            self.release(pv)  # it was the number of another device when that was staged
        ownfolder.establish(self._root)
        os.close(os.open(self.path(pv), os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _UNUSABLE))
        if loopdevice.is_loop(device):
            loopdevice.keep(device)
        mounting.bind(device, self.path(pv), add=Attribute.NOSUID | Attribute.NODEV)

    def staged(self, pv: str) -> MountPoint | None:
        """What is seen at the staging path of the volume, if something is mounted there."""
        return mountpoint.at(f"{self._root}/{pv}")

    def mounted(self, pv: str) -> Mount | None:
        """The staging mount of the volume, as the mount table has it."""
        return _on(self.path(pv))

    def raise_if_covered(self, pv: str, source: Path) -> None:
        """Raises Occupied when the staging path shows something else than this device, or folder: a pod would get that
        in place of its data. Nothing is mounted there, or what is, stays."""
        staged = self.staged(pv)
        if staged is not None:
            self._refuse_other(pv, staged, source)

    def device_number(self, pv: str) -> int:
        """Of the block device that the staged volume is on. Raises VolumeNotFound when nothing is staged, or a folder
        is."""
        staged = self.mounted(pv)
        if staged is None:
            raise VolumeNotFound(f"volume {pv} is not mounted at {self.path(pv)}")
        number = self.path(pv).stat().st_rdev if is_device(staged) else _device_below(staged)
        if not number:
            raise VolumeNotFound(f"volume {pv} is not on a device of its own")
        return number

    def folders(self) -> list[Path]:
        """Where filesystems of volumes are mounted now."""
        return [
            Path(mount.path)
            for mount in mounttable.read()
            if Path(mount.path).parent == self._root and not is_device(mount)
        ]

    def read_only(self) -> frozenset[str]:
        """Volumes whose filesystem the kernel made read-only: no class can ask for that (contract.filesystems)."""
        return frozenset(
            Path(mount.path).name
            for mount in mounttable.read()
            if Path(mount.path).parent == self._root and mount.filesystem_options & _UNWRITABLE
        )

    def users(self, pv: str) -> list[Mount]:
        """All mounts that show the volume or a part of it, but for the staging mount: pod folders and the kubelet's
        mounts for subPath. If somebody took the staging mount away, the pod folders that bear its name."""
        table = mounttable.read()
        # What somebody mounted over it is not what pods have.
        staged = next((mount for mount in table if mount.path == str(self.path(pv))), None)
        if staged is None:
            suffixes = (f"/{names.DRIVER_FOLDER}/{pv}", f"/{names.CSI_FOLDER}/{pv}/{names.CSI_MOUNT}")
            published = f"/{names.CSI_DEVICES}/{pv}/"
            return [mount for mount in table if mount.path.endswith(suffixes) or published in mount.path]
        return [mount for mount in table if is_part(mount, staged) and mount.path != staged.path]

    def idle(self) -> list[str]:
        """Volumes that have a staging mount and no users."""
        table = mounttable.read()
        elsewhere: dict[str, list[Mount]] = {}
        staged: dict[str, Mount] = {}
        for mount in table:
            if Path(mount.path).parent == self._root:
                staged.setdefault(Path(mount.path).name, mount)
            else:
                elsewhere.setdefault(mount.device, []).append(mount)
        return [
            pv
            for pv, mount in staged.items()
            if not any(is_part(each, mount) for each in elsewhere.get(mount.device, ()))
        ]

    def release(self, pv: str) -> None:
        """Unmounts the staging path and removes it, mounted or not. Raises InUse, naming who uses it."""
        users = self.users(pv)
        if users:
            raise InUse(f"volume {pv} is mounted at {users[0].path}: delete the pod that uses it")
        path = self.path(pv)
        with _device_let_go(path) if is_device(self.mounted(pv)) else contextlib.nullcontext():
            _unmount_all(path, path, pv)
        try:
            path.rmdir()
        except FileNotFoundError:
            pass
        except NotADirectoryError:
            path.unlink()
        except OSError as error:
            log.warning("can't remove the staging folder %s: %s", path, error.strerror, extra={"volume": pv})

    def refuse_second_pod(self, pv: str, target: TargetPath) -> None:
        """Raises InUse when another pod than the target's has the volume."""
        for user in self.users(pv):
            if target.pod_uid not in Path(user.path).parts:
                raise InUse(
                    f"volume {pv} is for one pod at a time, and mounted at {user.path}: delete the pod that uses it"
                )

    def bind(
        self, pv: str, source: Path, target: TargetPath, *, read_only: bool, options: tuple[str, ...] = ()
    ) -> bool:
        """Shows the staged volume, of that device or folder, in the pod's folder, and returns only when it is seen
        there: whether nothing was mounted there before.

        Nobody on the node may run what a pod made setuid, or open the devices that it made, so the staging mount is
        nosuid and nodev. In the pod, which its runtime confines, both work as in every volume of Kubernetes, unless
        `options`, the mount options of the class, say otherwise.

        Raises Occupied when the staging path or the folder shows something else, which stays there; for CSI also when
        the folder shows the volume in the other way, read-only or writable. After any other error there may be a
        mount on it, for the caller to take away.
        """
        with self._opened(pv) as folder:
            staged = mountpoint.at(folder)
            if staged is None:
                raise BackendFailed(
                    f"volume {pv} vanished from {self.path(pv)}: somebody unmounted it, the next try mounts it"
                )
            self._refuse_other(pv, staged, source)
            show = partial(
                mounting.bind,
                folder,
                add=Attribute.READ_ONLY if read_only else Attribute(0),
                drop=_dropped(options),
            )
            with target.open() as onto:
                shown = mountpoint.at(onto)
                bound = None if shown else show(onto)
            if shown is not None:
                if self._is_shown(pv, target, staged, shown, read_only):
                    return False
                self.unbind(target)
                with target.open() as onto:
                    bound = show(onto)
        if bound is None or self.shown(target) != bound:
            raise BackendFailed(
                f"volume {pv} was mounted at {target.path} but does not show there: something unmounts it"
            )
        return shown is None

    def _is_shown(self, pv: str, target: TargetPath, staged: MountPoint, shown: MountPoint, read_only: bool) -> bool:
        """False: the target shows the volume in the other way. Raises Occupied."""
        mount = _on(target.path)
        if mount is None or not shown.is_same(staged):
            what = mount.source if mount else "something"
            raise Occupied(f"{target.path} already shows {what}, which is not volume {pv}: unmount it on the node")
        if mount.read_only != read_only and target.source == CSI:
            way = "read-only" if mount.read_only else "writable"
            raise Occupied(f"{target.path} shows volume {pv} already, and {way}: unpublish it first")
        return mount.read_only == read_only

    def shown(self, target: TargetPath) -> MountPoint | None:
        """What is mounted on the target."""
        try:
            with target.open() as folder:
                return mountpoint.at(folder)
        except FolderMissing:
            return None

    def usage(self, pv: str, target: TargetPath) -> FilesystemUsage:
        """Of what the target shows. Raises VolumeNotFound when that is not the volume."""
        staged, shown = map(_uppermost, mounttable.read_at(self.path(pv), target.path))
        if staged is None or shown is None or not is_same(shown, staged):
            raise VolumeNotFound(f"volume {pv} is not mounted at {target.path}")
        with target.open() as folder:
            if is_device(staged):
                return FilesystemUsage(size=blockdevice.size(Path(f"/proc/self/fd/{folder}")))
            return statvfs.usage(folder)

    def unbind(self, target: TargetPath) -> None:
        """Unmounts all that lies on the pod's folder. A folder that does not exist is no error. Raises InUse."""
        with contextlib.suppress(FolderMissing), target.open_parent() as parent:
            _unmount_all(Path(f"/proc/self/fd/{parent}", target.path.name), target.path, target.name)

    def _opened(self, pv: str) -> Closing:
        """What one sees at the staging path. Raises BackendFailed when there is none."""
        try:
            return Closing(os.open(f"{self._root}/{pv}", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
        except FileNotFoundError:
            raise BackendFailed(f"volume {pv} vanished from {self.path(pv)}: the next try mounts it") from None

    def _refuse_other(self, pv: str, staged: MountPoint, source: Path) -> None:
        """Raises Occupied."""
        status = source.stat()
        if stat.S_ISBLK(status.st_mode):
            shows = status.st_rdev in (staged.device, staged.node)
        else:
            shows = (status.st_dev, status.st_ino) == (staged.device, staged.inode)
        if shows:
            return
        mount = self.mounted(pv)
        if mount is None or mount.filesystem != "btrfs" or _number(mount.source) not in (0, status.st_rdev):
            # The kernel has no number of its device for btrfs, and the name of that may have changed (vgrename).
            what = mount.source if mount else "something"
            raise Occupied(
                f"{self.path(pv)} shows {what}, which somebody mounted over volume {pv}: unmount that on the node "
                f"(umount {self.path(pv)})"
            )


@lru_cache  # those of a node's classes come again and again
def _dropped(options: tuple[str, ...]) -> Attribute:
    """Of what the staging mount has, what that of a pod has not."""
    return sum((each for each, word in _OF_STAGING.items() if word not in options), Attribute(0))


def _device_below(mount: Mount) -> int:
    """The number of the block device that a filesystem is on. 0: the table does not say, or it is a folder."""
    if mount.root != "/":
        return 0
    if mount.filesystem == "btrfs":  # the table has no number of its device
        return _number(mount.source)
    # Not by its name, which is that of the mount and may have changed since (vgrename).
    major, minor = map(int, mount.device.split(":"))
    return os.makedev(major, minor) if major else 0


def _number(device: str) -> int:
    """Of the device of that name. 0: there is none."""
    try:
        found = Path(device).stat()
    except OSError:
        return 0
    return found.st_rdev if stat.S_ISBLK(found.st_mode) else 0


def _on(path: Path) -> Mount | None:
    """What one sees at `path` when it is a mount point: the last of those stacked there."""
    (mounts,) = mounttable.read_at(path)
    return _uppermost(mounts)


def _uppermost(mounts: Sequence[Mount]) -> Mount | None:
    return mounts[-1] if mounts else None


def is_device(mount: Mount | None) -> bool:
    """Whether it shows the node of a block device, and no filesystem of its own."""
    return mount is not None and mount.filesystem in _NODES and blockdevice.is_block_device(Path(mount.path))


@contextlib.contextmanager
def _device_let_go(path: Path) -> Iterator[None]:
    """The loop device whose node is here, if it is one, goes with its last user."""
    number = path.stat().st_rdev
    yield
    if (device := blockdevice.find(number)) and loopdevice.is_loop(device):
        loopdevice.let_go(device)


def is_same(one: Mount, other: Mount) -> bool:
    """Whether two mounts show the same folder of the same filesystem."""
    return (one.device, one.root) == (other.device, other.root)


def is_part(mount: Mount, whole: Mount) -> bool:
    """Whether a mount shows what the other shows, or a folder in it."""
    return mount.device == whole.device and f"{mount.root}/".startswith(f"{whole.root.rstrip('/')}/")


def _unmount_all(handle: Path, path: Path, pv: str) -> None:
    """Unmounts through `handle` until the mount table shows nothing at `path`."""
    while _on(path) is not None:
        try:
            mounting.unmount(handle)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise InUse(f"volume {pv} at {path} is busy: stop the processes that use it") from error
            raise
