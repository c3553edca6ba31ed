"""The kubelet's folder: where a pod's things are, and what a new kubelet finds there.

Everything that must survive a kubelet is in these folders, as on a real node: there is no other database.
Source: pkg/kubelet/{kubelet,kubelet_pods}.go and pkg/volume/{flexvolume,csi,emptydir,local,hostpath} of Kubernetes
1.36.2.
"""

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

EMPTY_DIR_FOLDER = "kubernetes.io~empty-dir"
LOCAL_FOLDER = "kubernetes.io~local-volume"
CSI_FOLDER = "kubernetes.io~csi"
_DEVICES = "volumeDevices"

FOLDER_MODE = 0o750
"""Of all that the kubelet makes of a pod (setupDataDirs, makePodDataDirs, and SetUpAt of flexvolume and local)."""
EMPTY_DIR_PARENT_MODE = 0o755
"""It asks for 0777, of which the umask of its service leaves this, and then sets the volume's own folder right."""
HOST_PATH_MODE = 0o755
"""Of what `DirectoryOrCreate` makes (makeDir of pkg/volume/hostpath); the owner is root."""
_GROUP_BITS = stat.S_IRGRP | stat.S_IWGRP
_GROUP_FOLDER_BITS = stat.S_ISGID | stat.S_IXGRP


def make_folders(path: Path, mode: int) -> None:
    """The folder and those above it that are missing, with this mode whatever the umask."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        folder.chmod(mode)


@dataclass(frozen=True)
class VolumeFolder:
    """A volume's folder in a pod's folder, or the link there to one that is a device."""

    path: Path

    @property
    def pod_uid(self) -> str:
        return self.path.parents[2].name

    @property
    def plugin(self) -> str:
        """The plugin's name with its slash: vendor/name."""
        return self.path.parent.name.replace("~", "/", 1)

    @property
    def csi(self) -> bool:
        return self.path.parent.name == CSI_FOLDER

    @property
    def block(self) -> bool:
        return self.path.parents[1].name == _DEVICES

    @property
    def exists(self) -> bool:
        return os.path.lexists(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    def create(self, mode: int = FOLDER_MODE) -> None:
        """Make the folder, and what is missing above it: os.MkdirAll gives all of them one mode."""
        make_folders(self.path, mode)

    def likely_mounted(self) -> bool:
        """The kubelet's cheap question: another device than the parent's? Misses bind mounts on one filesystem.

        Raises FileNotFoundError.
        """
        return self.path.stat().st_dev != self.path.parent.stat().st_dev


@dataclass(frozen=True)
class Layout:
    root: Path

    @property
    def pods(self) -> Path:
        return self.root / "pods"

    def make(self) -> None:
        """What a kubelet makes when it starts, if it is missing."""
        make_folders(self.pods, FOLDER_MODE)

    def make_pod(self, uid: str) -> None:
        for folder in (self.pod(uid) / "volumes", self.pod(uid) / "plugins"):
            make_folders(folder, FOLDER_MODE)

    def pod(self, uid: str) -> Path:
        return self.pods / uid

    def volume(self, uid: str, plugin: str, name: str, *, block: bool = False) -> VolumeFolder:
        return VolumeFolder(self.pod(uid) / (_DEVICES if block else "volumes") / plugin.replace("/", "~") / name)

    def container(self, uid: str, name: str) -> Path:
        return self.pod(uid) / "containers" / name

    def pod_uids(self) -> list[str]:
        """Of the pods that have a folder, which may be more than there are."""
        return [path.name for path in self.pods.iterdir()]

    def containers(self, uid: str) -> list[Path]:
        """Folders of the pod's containers."""
        return list(self.pod(uid).glob("containers/*"))

    def volumes(self) -> Iterator[VolumeFolder]:
        """The volumes that a kubelet before this one left in the folder."""
        for kind in ("volumes", _DEVICES):
            for path in sorted(self.pods.glob(f"*/{kind}/*~*/*")):
                yield VolumeFolder(path)

    def discard_pod(self, uid: str) -> bool:
        """Remove a pod's folder. A volume's folder goes only when it is empty: it may be someone's data.

        Returns whether all of it is gone.
        """
        pod = self.pod(uid)
        shutil.rmtree(pod / "containers", ignore_errors=True)
        try:
            for folder, _, _ in os.walk(pod, topdown=False):
                Path(folder).rmdir()
        except OSError:
            return False
        return True


def own_by_group(folder: Path, group: int, *, on_root_mismatch: bool = False) -> None:
    """What fsGroup means: everything belongs to the group, which may read and write it (VolumeOwnership). With
    `on_root_mismatch` (fsGroupChangePolicy) only if the root of the volume says that this was not done yet."""
    if on_root_mismatch and _is_owned_by_group(folder, group):
        return
    for parent, _, files in os.walk(folder):
        for path in (Path(parent), *(Path(parent) / file for file in files)):
            found = path.lstat()
            os.lchown(path, -1, group)
            if stat.S_ISLNK(found.st_mode):
                continue
            bits = _GROUP_BITS | (_GROUP_FOLDER_BITS if stat.S_ISDIR(found.st_mode) else 0)
            path.chmod(stat.S_IMODE(found.st_mode) | bits)


def _is_owned_by_group(root: Path, group: int) -> bool:
    """As requiresPermissionChange sees it: for the owner, too, it wants to read, write and enter."""
    found = root.stat()
    wanted = _GROUP_BITS | _GROUP_FOLDER_BITS | stat.S_IRWXU
    return found.st_gid == group and found.st_mode & wanted == wanted
