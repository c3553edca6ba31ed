"""I/O limits, by the kernel that keeps them: what a pod writes to its volume takes the time that its limit says."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.kubelet.iolimits import PodIoLimits
from host import mounting
from host.cgroup import IoLimits
from tests.node.volume_node import MIB, Node, on, started

_WRITER = """
import mmap, os, sys
with open(sys.argv[1], "w") as group:
    group.write(str(os.getpid()))
block = mmap.mmap(-1, 1 << 20)
descriptor = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600)
for _ in range(3):
    os.write(descriptor, block)
"""
"""In the pod's group, and past the page cache."""


@pytest.fixture
def hierarchy(tmp_path: Path) -> Iterator[Path]:
    """Of control groups, version 2. Where another one is in use it is that one."""
    folder = tmp_path / "cgroup"
    folder.mkdir()
    subprocess.run(["mount", "-t", "cgroup2", "cgroup2", folder], check=True)
    yield folder
    for group in sorted(folder.glob("kubepods-test.slice/**/"), reverse=True):
        group.rmdir()
    mounting.unmount(folder)


def pod_group(hierarchy: Path, uid: str) -> Path:
    """As the kubelet makes it."""
    group = (
        hierarchy / "kubepods-test.slice" / "test-kubepods.slice" / f"test-kubepods-pod{uid.replace('-', '_')}.slice"
    )
    (hierarchy / "cgroup.subtree_control").write_text("+io")
    for parent in reversed(group.relative_to(hierarchy).parents[:-1]):
        (hierarchy / parent).mkdir()
        (hierarchy / parent / "cgroup.subtree_control").write_text("+io")
    group.mkdir()
    return group


def write(group: Path, file: Path) -> float:
    """Seconds for 3 MiB."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-S", "-c", _WRITER, group / "cgroup.procs", file], check=True)
    return time.monotonic() - begun


@on("lvm-thick")
async def test_a_pod_writes_no_faster_than_its_limit(node: Node, hierarchy: Path) -> None:
    volumes = await started(node)
    folder = node.folder()
    await volumes.mount(node.spec(), folder, read_only=False)
    group = pod_group(hierarchy, folder.pod_uid)
    device = await volumes.device_number(node.pv)
    limits = IoLimits(write_bandwidth=MIB, read_iops=500)
    await PodIoLimits(hierarchy).set(folder.pod_uid, device, limits)
    assert (group / "io.max").read_text() == f"{limits.line(device)}\n"
    assert write(group, folder.path / "slow") >= 2
    await PodIoLimits(hierarchy).set(folder.pod_uid, device, IoLimits())
    assert (group / "io.max").read_text() == ""
    await volumes.unmount(folder)
