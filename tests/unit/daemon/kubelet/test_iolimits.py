"""Where the control group of a pod is, what is written there, and what is said where that can't be."""

import asyncio
import os
from pathlib import Path, PurePath

import pytest

from daemon.kubelet.iolimits import PodIoLimits, pod_groups
from host.cgroup import IoLimits, NoIoController

UID = "0b0e005c-39ec-4719-bbfe-78aadbc3e4ad"
SLICED = UID.replace("-", "_")
DEVICE = os.makedev(254, 7)
GROUPS = [
    f"kubepods/pod{UID}",
    f"kubepods/besteffort/pod{UID}",
    f"kubelet/kubepods/burstable/pod{UID}",
    f"kubepods.slice/kubepods-pod{SLICED}.slice",
    f"kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SLICED}.slice",
    f"kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{SLICED}.slice",
]
"""By both cgroup drivers of the kubelet, with and without --cgroup-root."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    for other in (
        "system.slice/ssh.service",
        "init.scope",
        "kubepods/burstable/pod11111111-2222-3333-4444-555555555555",
    ):
        (tmp_path / other).mkdir(parents=True)
    return tmp_path


def made(group: Path) -> Path:
    group.mkdir(parents=True)
    (group / "io.max").touch()
    return group / "io.max"


@pytest.mark.parametrize("group", GROUPS)
async def test_the_group_of_a_pod_is_found(root: Path, group: str) -> None:
    limit = made(root / group)
    await PodIoLimits(root).set(UID, DEVICE, IoLimits(read_bandwidth=5 << 20, write_iops=100))
    assert limit.read_text() == "254:7 rbps=5242880 wbps=max riops=max wiops=100\n"


async def test_a_group_that_the_kubelet_is_about_to_make_is_waited_for(root: Path) -> None:
    setting = asyncio.create_task(PodIoLimits(root).set(UID, DEVICE, IoLimits(write_bandwidth=1)))
    await asyncio.sleep(0)
    assert not setting.done()
    limit = made(root / GROUPS[1])
    await setting
    assert limit.read_text() == "254:7 rbps=max wbps=1 riops=max wiops=max\n"


async def refused(root: Path) -> str:
    with pytest.raises(NoIoController) as why:
        await PodIoLimits(root).set(UID, DEVICE, IoLimits(1))
    return str(why.value)


async def test_a_node_with_version_1_is_told(tmp_path: Path) -> None:
    (tmp_path / "unified").mkdir()
    (tmp_path / "unified" / "cgroup.controllers").touch()
    assert "version 2" in await refused(tmp_path)


async def test_a_controller_that_is_off_is_told(root: Path) -> None:
    (root / GROUPS[2]).mkdir(parents=True)
    assert f"the controller io is off in {root / GROUPS[2]}" in await refused(root)


async def test_a_pod_without_a_group_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.kubelet.iolimits._PATIENCE", 0.2)
    assert f"pod {UID} has no control group below {root}: let the kubelet make them" in await refused(root)


def test_no_two_classes_of_pods_share_a_group() -> None:
    for pods in ("/sys/fs/cgroup/kubepods", "/sys/fs/cgroup/kubelet.slice/kubelet-kubepods.slice"):
        assert len(set(pod_groups(PurePath(pods), UID))) == 3
