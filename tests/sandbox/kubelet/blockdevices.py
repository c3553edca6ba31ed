"""A device that a driver published, on its way into a pod.

Source: pkg/volume/util/volumepathhandler and MapBlockVolume of pkg/volume/util/util.go of Kubernetes 1.36.2: the device
is bound to a file of the pod's uid in the volume's map folder, a link in the pod's folder leads to it, and a loop
device on the bound file keeps the device open, so that no other can take its place unnoticed. All functions block and
raise CallFailed and OSError.
"""

import contextlib
import subprocess
from pathlib import Path

from host import mounttable
from tests.sandbox.kubelet.driver import CallFailed
from tests.sandbox.kubelet.layout import FOLDER_MODE, make_folders


def map_device(device: Path, bound: Path, link: Path) -> None:
    if not device.is_block_device():
        raise CallFailed(f"blkUtil.AttachFileDevice failed. globalMapPath:{bound.parent}, podUID: {bound.name}: "
                         f"{device} is not a block device")  # fmt: skip
    make_folders(bound.parent, FOLDER_MODE)
    bound.touch()
    if not _mounted(bound):
        _run("mount", "--bind", str(device), str(bound))
    make_folders(link.parent, FOLDER_MODE)
    link.unlink(missing_ok=True)
    link.symlink_to(device)
    if not loop_devices(bound):
        _run("losetup", "-f", str(bound))


def unmap_device(bound: Path, link: Path) -> None:
    """What is not there is no error."""
    for device in loop_devices(bound):
        _run("losetup", "-d", device)
    link.unlink(missing_ok=True)
    if _mounted(bound):
        _run("umount", str(bound))
    bound.unlink(missing_ok=True)


def loop_devices(file: Path) -> list[str]:
    """Those whose file it is, by name."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if backing.read_text().rstrip("\n") == str(file):
                found.append(f"/dev/{backing.parents[1].name}")
    return found


def _mounted(path: Path) -> bool:
    return any(mount.path == str(path) for mount in mounttable.read())


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CallFailed(f"{argv[0]} failed: {done.stderr.strip()}")
