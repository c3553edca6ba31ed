"""A device of one volume group gives no answer: a device-mapper device that is suspended keeps whoever reads it in the
kernel. LVM reads all devices for each command."""

import asyncio
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.backends.lvm import LvmBackend
from daemon.cluster.health import diagnose
from daemon.errors import VolumeError
from daemon.storage.deviceclasses import LVM, DeviceClass
from daemon.storage.inventory import VolumeHealth
from daemon.storage.volumes import Volumes
from host import command
from lvm import Lvm
from tests.agreeing import Agreeing
from tests.node.conftest import MakeDisks
from tests.node.volume_node import MIB, Node

pytestmark = pytest.mark.device_mapper

_OFFSET = 2048
"""Sectors: LVM must not find the same label on the device below."""


def dmsetup(*arguments: str) -> None:
    subprocess.run(["dmsetup", "--noudevsync", *arguments], check=True, capture_output=True)


@pytest.fixture
def devices(make_disks: MakeDisks) -> Iterator[dict[str, str]]:
    names = {name: f"{name}-{uuid.uuid4().hex[:8]}" for name in ("dead", "alive")}
    for name, disk in zip(names.values(), make_disks(2, 160 * MIB), strict=True):
        dmsetup("create", name, "--table", f"0 {150 * MIB // 512} linear {disk} {_OFFSET}")
    dmsetup("mknodes")
    yield names
    for name in names.values():
        dmsetup("resume", name)
        subprocess.run(["dmsetup", "--noudevsync", "remove", "--retry", name], check=False, capture_output=True)


def processes() -> int:
    return sum(path.read_bytes().startswith(b"lvm\0") for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())


async def test_other_groups_are_served_while_one_device_gives_no_answer(
    tmp_path: Path, devices: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_REAP_SECONDS", 1.0)
    tools = Lvm(tmp_path / "lvm", deadline=10)
    for name, device in devices.items():
        await tools.create_group(name, [f"/dev/mapper/{device}"])
    classes = {name: DeviceClass(name, LVM, group=name) for name in devices}
    node = Node(tmp_path, lambda: LvmBackend(tools, classes))
    volumes = Volumes(node.make_backend(), node.staging, Agreeing())
    await volumes.start()
    await volumes.prepare(node.spec(16 * MIB, pv="before", device_class="dead"))
    dmsetup("suspend", "--noflush", "--nolockfs", devices["dead"])
    with pytest.raises(VolumeError, match="LVM did not answer within 10 s"):
        await volumes.refresh()
    for _ in range(4):
        await volumes.refresh()
        assert processes() <= 1
    dead, alive = (volumes.inventory.pool(name) for name in ("dead", "alive"))
    assert dead
    assert alive
    assert "gives no answer, its disk hangs: see the kernel's log" in dead.blocked
    assert (alive.blocked, volumes.inventory.volume("before") is not None) == ("", True)
    assert "gives no answer" in volumes.inventory.why_unavailable("dead")
    folder = node.folder("other")
    await volumes.mount(node.spec(16 * MIB, pv="other", device_class="alive"), folder, read_only=False)
    (folder.path / "data").write_text("written")
    await volumes.unmount(folder)
    with pytest.raises(VolumeError, match="gives no answer, its disk hangs"):
        await volumes.extend(node.spec(32 * MIB, pv="before", device_class="dead"))
    assert diagnose(volumes.inventory, [], [], volumes.unresponsive()) == {"before": VolumeHealth.UNRESPONSIVE}
    dmsetup("resume", devices["dead"])
    async with asyncio.timeout(60):
        while (pool := volumes.inventory.pool("dead")) is None or pool.blocked:
            await volumes.refresh()
            await asyncio.sleep(0.2)
    assert diagnose(volumes.inventory, [], [], volumes.unresponsive()) == {}
    assert (await volumes.extend(node.spec(32 * MIB, pv="before", device_class="dead"))).size == 32 * MIB
    for name in devices:
        subprocess.run(["lvm", "vgremove", "--force", "--yes", name], check=True, capture_output=True)
