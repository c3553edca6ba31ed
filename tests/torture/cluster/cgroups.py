"""The control groups of pods, in place of this machine's: folders in which daemons write what the kernel would hold a
pod to (tests/node/test_io_limits.py shows that it does). The kubelet makes that of a pod, and takes it away again."""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from host import mounting
from host.cgroup import ROOT


class ControlGroups:
    """Below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._pods = folder / "kubepods" / "burstable"
        self._pods.mkdir(parents=True)
        (folder / "cgroup.controllers").write_text("cpu io memory")

    def make(self, uid: str) -> None:
        group = self._pods / f"pod{uid}"
        group.mkdir(exist_ok=True)
        (group / "io.max").touch()

    def limits_of(self, uid: str) -> str:
        """What the pod is held to on the device of its volume, as `io.max` takes it. Empty: to nothing."""
        with contextlib.suppress(FileNotFoundError):
            # As a file of the kernel it would be replaced whole.
            return (self._pods / f"pod{uid}" / "io.max").read_text().partition("\n")[0]
        return ""

    def synchronize(self, uids: Collection[str]) -> None:
        """These are the pods that there are."""
        for uid in uids:
            self.make(uid)
        for group in self._pods.iterdir():
            if group.name.removeprefix("pod") not in uids:
                shutil.rmtree(group)


@contextlib.contextmanager
def control_groups() -> Iterator[ControlGroups]:
    """Those that programs see which start in here."""
    with tempfile.TemporaryDirectory(prefix="groups-") as folder:
        groups = ControlGroups(Path(folder))
        subprocess.run(["mount", "--bind", folder, ROOT], check=True)
        try:
            yield groups
        finally:
            mounting.unmount(ROOT)
