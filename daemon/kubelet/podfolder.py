"""The folder of a pod that a volume is mounted in: the one thing in a request that the kubelet alone decides.

Name, options and even the `kubernetes.io/` keys of a mount can be written by whoever may create pods; the folder can't.
Everything the daemon believes about a request starts here, so the path must match the kubelet's pattern to the letter,
and is opened without following a link anywhere: a pod that swaps a folder of its own for a link gains
nothing. System calls then use the open directory (`/proc/self/fd/N`) and never the text again.
"""

import contextlib
import functools
import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from contract import names
from contract.volume import CSI, FLEX_VOLUME
from daemon.errors import BackendFailed, FolderMissing, NotAPodFolder
from host import nolinks
from host.openfile import Closing

# The API server makes UUIDs; a pod from a file on the node has 32 hexadecimal digits (pkg/kubelet/config/common.go).
POD_UID = r"(?P<uid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32})"
_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
NAME = rf"(?P<name>{_LABEL}(?:\.{_LABEL})*)"
LONGEST_NAME = 253  # of a DNS-1123 subdomain, which the names of PersistentVolumes are
_PLUGINS = {FLEX_VOLUME: names.DRIVER_FOLDER, CSI: names.CSI_FOLDER}
_LAST = {FLEX_VOLUME: (), CSI: (names.CSI_MOUNT,)}
"""What follows the name."""
_BELOW_ROOT = {
    source: re.compile(
        rf"/pods/{POD_UID}/volumes/{re.escape(plugin)}/{'/'.join((NAME, *_LAST[source]))}",
        re.ASCII,
    )
    for source, plugin in _PLUGINS.items()
}

_OPEN = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE = 0o750
"""Of a folder that a CSI driver makes, as the kubelet gives it to the folder above."""


@dataclass(frozen=True)
class PodFolder:
    """`<kubelet root>/pods/<pod uid>/volumes/<plugin>/<name>`, and for CSI `mount` below it, of which nothing needs to
    exist."""

    kubelet_root: Path
    """With links resolved, as the mount table shows it: administrators do move /var/lib/kubelet behind a link."""
    pod_uid: str
    name: str
    """Name of the PersistentVolume, or what a user called an inline volume: to be proven, not believed."""
    source: str = FLEX_VOLUME
    """By which kind of volume source the kubelet mounts it: FLEX_VOLUME or CSI."""

    @classmethod
    def parse(cls, text: str, kubelet_root: Path, source: str = FLEX_VOLUME) -> "PodFolder":
        """Reads the folder of a request. The kubelet's root may be written as configured or with its links resolved.
        Raises NotAPodFolder."""
        resolved = os.path.realpath(kubelet_root)
        for root in (str(kubelet_root), resolved):
            match = _BELOW_ROOT[source].fullmatch(text.removeprefix(root)) if text.startswith(root) else None
            if match and len(match["name"]) <= LONGEST_NAME:
                return cls(Path(resolved), match["uid"], match["name"], source)
        raise NotAPodFolder(
            f"{text[:300]!r} is not a folder that the kubelet makes for a volume of {_PLUGINS[source]} below "
            f"{kubelet_root}: if the kubelet runs with another --root-dir, start the daemon with that KUBELET_ROOT"
        )

    @property
    def path(self) -> Path:
        """For messages and for the mount table; system calls use `open` and `open_parent`."""
        return Path(self._text)

    @functools.cached_property
    def _text(self) -> str:
        return "/".join((str(self.kubelet_root), *self._components))

    @property
    def _components(self) -> tuple[str, ...]:
        return ("pods", self.pod_uid, "volumes", _PLUGINS[self.source], self.name, *_LAST[self.source])

    def open(self) -> AbstractContextManager[int]:
        """The folder as an O_PATH file descriptor: what is mounted on top of it, if anything is.

        Raises FolderMissing, and NotAPodFolder for a link or a file on the way.
        """
        return self._open(self._text, self._components)

    def open_parent(self) -> AbstractContextManager[int]:
        """The folder that it is in, for unmounting it there: a file descriptor of the folder itself would keep busy
        what is to be unmounted. Raises as `open` does."""
        return self._open(self._text.rpartition("/")[0], self._components[:-1])

    def make(self) -> None:
        """Makes the folder in the one that the kubelet made, as a CSI driver has to. Raises as `open_parent` does."""
        with self.open_parent() as parent, contextlib.suppress(FileExistsError):
            os.mkdir(self.path.name, _MODE, dir_fd=parent)

    def remove(self) -> None:
        """Removes the folder, on which nothing is mounted any more, as a CSI driver has to. One that does not exist is
        no error. Raises BackendFailed when somebody wrote into it."""
        try:
            with self.open_parent() as parent:
                os.rmdir(self.path.name, dir_fd=parent)
        except (FolderMissing, FileNotFoundError):
            pass
        except OSError as error:
            raise BackendFailed(
                f"{self.path} can't be removed ({error.strerror}): see what is in it, it is not on the volume"
            ) from error

    def _open(self, path: str, components: Sequence[str]) -> Closing:
        try:
            return Closing(nolinks.open_at(path, _OPEN))
        except OSError:
            return Closing(self._descend(components))  # to say which of them is missing, or what it is

    def _descend(self, components: Sequence[str]) -> int:
        try:
            current = os.open(self.kubelet_root, _OPEN)
        except OSError as error:
            raise NotAPodFolder(
                f"the kubelet's folder {self.kubelet_root} can't be opened ({error.strerror}): set KUBELET_ROOT right"
            ) from error
        try:
            for component in components:
                try:
                    below = os.open(component, _OPEN, dir_fd=current)
                except FileNotFoundError:
                    raise FolderMissing(f"{self.path} does not exist: the kubelet makes it before it mounts") from None
                except OSError as error:
                    raise NotAPodFolder(
                        f"{component!r} on the way to {self.path} is not a plain folder ({error.strerror}): "
                        "links are not followed, remove what stands there"
                    ) from error
                os.close(current)
                current = below
        except BaseException:
            os.close(current)
            raise
        return current
