"""The target path of a block volume: a file below the kubelet's root. The CSI driver creates it, and bind-mounts the
volume's device node on it; the kubelet shows that to the pod.

    <kubelet root>/plugins/kubernetes.io/csi/volumeDevices/publish/<volume>/<pod uid>

The kubelet makes the folder of the volume, and binds that node once more onto a file of its own, which it names when it
asks for the volume's statistics: .../volumeDevices/<volume>/dev/<pod uid> (pkg/volume/csi/{csi_block,csi_plugin}.go).
Pods can't write anywhere on the way; it is matched and opened as strictly as their folders (daemon.kubelet.podfolder)
all the same.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from contract import names
from contract.volume import CSI
from daemon.errors import BackendFailed, FolderMissing, NotAPodFolder
from daemon.kubelet.podfolder import LONGEST_NAME, NAME, POD_UID, PodFolder

_BELOW_ROOT = re.compile(rf"/{re.escape(names.CSI_DEVICES)}/{NAME}/{POD_UID}", re.ASCII)
_MAPPED = re.compile(rf"/{re.escape(str(Path(names.CSI_DEVICES).parent))}/{NAME}/dev/{POD_UID}", re.ASCII)


@dataclass(frozen=True)
class PodDevice(PodFolder):
    """See the module. `path` is the file."""

    @classmethod
    def parse(cls, text: str, kubelet_root: Path, source: str = CSI) -> "PodDevice":
        """Reads the path of a request. Raises NotAPodFolder."""
        return cls._parse(_BELOW_ROOT, text, kubelet_root, source)

    @classmethod
    def parse_mapped(cls, text: str, kubelet_root: Path) -> "PodDevice":
        """Reads the path of the kubelet's own file. Raises NotAPodFolder."""
        return cls._parse(_MAPPED, text, kubelet_root, CSI)

    @classmethod
    def _parse(cls, pattern: re.Pattern[str], text: str, kubelet_root: Path, source: str) -> "PodDevice":
        resolved = os.path.realpath(kubelet_root)
        for root in (str(kubelet_root), resolved):
            match = pattern.fullmatch(text.removeprefix(root)) if text.startswith(root) else None
            if match and len(match["name"]) <= LONGEST_NAME:
                return cls(Path(resolved), match["uid"], match["name"], source)
        raise NotAPodFolder(
            f"{text[:300]!r} is not where the kubelet has block volumes shown below {kubelet_root}: if the kubelet "
            "runs with another --root-dir, start the daemon with that KUBELET_ROOT"
        )

    @property
    def _components(self) -> tuple[str, ...]:
        return (*names.CSI_DEVICES.split("/"), self.name, self.pod_uid)

    @contextlib.contextmanager
    def open(self) -> Iterator[int]:
        """The file, or the node that is mounted on it, as an O_PATH file descriptor. Raises FolderMissing, and
        NotAPodFolder for a link on the way."""
        with self.open_parent() as parent:
            try:
                current = os.open(self.pod_uid, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            except FileNotFoundError:
                raise FolderMissing(f"{self.path} does not exist") from None
            try:
                yield current
            finally:
                os.close(current)

    def make(self) -> None:
        """Makes the file in the folder that the kubelet made. Raises as `open_parent` does."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with self.open_parent() as parent, contextlib.suppress(FileExistsError):
            os.close(os.open(self.pod_uid, flags, 0o600, dir_fd=parent))

    def remove(self) -> None:
        """Removes the file, on which nothing is mounted any more. One that does not exist is no error."""
        try:
            with self.open_parent() as parent:
                os.unlink(self.pod_uid, dir_fd=parent)
        except (FolderMissing, FileNotFoundError):
            pass
        except OSError as error:
            raise BackendFailed(f"{self.path} can't be removed ({error.strerror}): see what it is") from error
