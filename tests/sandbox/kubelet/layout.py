"""The kubelet's folder: where a pod's things are, and what a new kubelet finds there.

Everything that must survive a kubelet is in these folders, as on a real node: there is no other database.
"""

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

EMPTY_DIR_FOLDER = "kubernetes.io~empty-dir"
LOCAL_FOLDER = "kubernetes.io~local-volume"

_FOLDER_MODE = 0o750
_GROUP_BITS = stat.S_IRGRP | stat.S_IWGRP
_GROUP_FOLDER_BITS = stat.S_ISGID | stat.S_IXGRP


@dataclass(frozen=True)
class VolumeFolder:
    """A volume's folder in a pod's folder."""

    path: Path

    @property
    def pod_uid(self) -> str:
        return self.path.parents[2].name

    @property
    def plugin(self) -> str:
        """The plugin's name with its slash: vendor/name."""
        return self.path.parent.name.replace("~", "/", 1)

    @property
    def name(self) -> str:
        return self.path.name

    def create(self) -> None:
        """Make the folder, all of it 0750 whatever the umask."""
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            folder.chmod(_FOLDER_MODE)

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

    def pod(self, uid: str) -> Path:
        return self.pods / uid

    def volume(self, uid: str, plugin: str, name: str) -> VolumeFolder:
        return VolumeFolder(self.pod(uid) / "volumes" / plugin.replace("/", "~") / name)

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
        for path in sorted(self.pods.glob("*/volumes/*~*/*")):
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


def own_by_group(folder: Path, group: int) -> None:
    """What fsGroup means: everything belongs to the group, which may read and write it (SetVolumeOwnership)."""
    for parent, _, files in os.walk(folder):
        for path in (Path(parent), *(Path(parent) / file for file in files)):
            found = path.lstat()
            os.lchown(path, -1, group)
            if stat.S_ISLNK(found.st_mode):
                continue
            bits = _GROUP_BITS | (_GROUP_FOLDER_BITS if stat.S_ISDIR(found.st_mode) else 0)
            path.chmod(stat.S_IMODE(found.st_mode) | bits)
