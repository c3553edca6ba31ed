"""The lvm.conf that we write, read by LVM itself. No device-mapper needed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from daemon.backends.loop import volume_devices
from host import loopdevice
from lvm import Lvm, configuration


def lvmconfig(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "LVM_SYSTEM_DIR": str(folder), "LVM_SUPPRESS_FD_WARNINGS": "1"}
    command = ["lvm", "lvmconfig", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


@pytest.mark.parametrize("udev", [True, False])
def test_lvm_knows_every_setting(tmp_path: Path, udev: bool) -> None:
    configuration.write(tmp_path, configuration.text(udev=udev))
    assert "valid" in lvmconfig(tmp_path, "--validate")
    assert lvmconfig(tmp_path, "global/use_aio").strip() == "use_aio=0"
    assert lvmconfig(tmp_path, "devices/hints").strip() == 'hints="none"'
    assert "--clear-needs-check-flag" in lvmconfig(tmp_path, "global/thin_check_options")


def test_udev_is_waited_for_only_where_it_runs(tmp_path: Path) -> None:
    for udev in (True, False):
        configuration.write(tmp_path, configuration.text(udev=udev))
        for setting in ("activation/udev_sync", "activation/udev_rules"):
            _, _, value = lvmconfig(tmp_path, "--type=full", setting).strip().partition("=")
            assert value == str(int(udev))


async def test_a_node_without_any_group_is_a_normal_state(tmp_path: Path) -> None:
    state = await Lvm(tmp_path / "not" / "there" / "yet").report()
    assert state.group("elastic-local-vg") is None
    assert state.volume("elastic-local-vg", "pvc-1") is None


async def test_a_folder_that_somebody_removed_is_made_again(tmp_path: Path) -> None:
    """While the daemon runs. Without it LVM reports no JSON, which was taken for a node without volumes."""
    tools = Lvm(tmp_path / "lvm")
    await tools.report()
    shutil.rmtree(tmp_path / "lvm")
    await tools.report()
    assert (tmp_path / "lvm" / "lvm.conf").read_text() == configuration.text(udev=configuration.udev_runs())


async def test_lvm_does_not_look_into_volumes_that_are_files(tmp_path: Path) -> None:
    """A pod may write LVM's metadata to its block volume: a group of the name of ours would hide ours."""
    for name in ("pvc-1.img", "disk.img"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(16 << 20)
    (tmp_path / "pvc-1.json").touch()
    with loopdevice.attached(tmp_path / "pvc-1.img") as volume, loopdevice.attached(tmp_path / "disk.img") as disk:
        for device in (volume, disk):
            subprocess.run(["lvm", "pvcreate", device], check=True, capture_output=True)
        assert {volume, disk} <= {Path(each.path) for each in (await Lvm(tmp_path / "all").report()).devices}
        seen = {Path(each.path) for each in (await Lvm(tmp_path / "lvm", foreign=volume_devices).report()).devices}
        assert disk in seen
        assert volume not in seen
