"""The metadata of a volume group, kept on the node's own disk: LVM brings them back from there."""

import contextlib
import re
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.backends.lvm import LvmBackend
from host import loopdevice
from tests.node.lvmmetadata import Metadata
from tests.node.volume_node import MIB, lvm_backend


@pytest.fixture
def metadata(tmp_path: Path) -> Metadata:
    return Metadata(tmp_path / "lvm")


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[list[Path]]:
    images = [tmp_path / f"disk-{number}" for number in range(2)]
    with contextlib.ExitStack() as attached:
        devices = []
        for image in images:
            with image.open("wb") as file:
                file.truncate(32 * MIB)
            devices.append(attached.enter_context(loopdevice.attached(image)))
        yield devices


@pytest.fixture
def group(metadata: Metadata, disks: list[Path]) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    metadata.show(*map(str, disks))
    metadata.run("vgcreate", "--physicalextentsize=1m", name, *map(str, disks))
    yield name
    metadata.run("vgremove", "--force", "--force", "--yes", name, check=False)


@pytest.fixture
def backend(metadata: Metadata, group: str) -> LvmBackend:
    return lvm_backend(metadata.tools, group, thin=False)


@pytest.fixture
def backup(tmp_path: Path, group: str) -> Path:
    """Where LVM looks for it."""
    return tmp_path / "lvm" / "backup" / group


async def look(backend: LvmBackend) -> None:
    await backend.inspect()
    await backend.back_up()


def written(backup: Path) -> int:
    return backup.stat().st_ino


async def test_it_is_written_once_for_all_changes_since_the_last_look(
    metadata: Metadata, group: str, backend: LvmBackend, backup: Path
) -> None:
    for name in ("one", "two"):
        assert metadata.makes(group, name, 3)
    assert not backup.exists()
    await look(backend)
    assert re.findall(r"^\t\t(\w+) \{$", backup.read_text(), re.MULTILINE)[-2:] == ["one", "two"]

    before = written(backup)
    await look(backend)
    assert written(backup) == before

    metadata.run("lvchange", "--addtag=changed", f"{group}/one")
    await look(backend)
    assert '"changed"' in backup.read_text()


async def test_a_daemon_that_starts_writes_it(
    metadata: Metadata, group: str, backend: LvmBackend, backup: Path
) -> None:
    """The one before it may have been killed right after a change."""
    await look(backend)
    before = written(backup)
    assert metadata.makes(group, "one", 3)
    await look(lvm_backend(metadata.tools, group, thin=False))
    assert written(backup) != before


async def test_a_group_comes_back_whose_disk_lost_its_metadata(
    metadata: Metadata, disks: list[Path], group: str, backend: LvmBackend, backup: Path
) -> None:
    assert metadata.makes(group, "data", 40)
    await look(backend)
    uuids = {device.path: device.uuid for device in (await metadata.state()).devices}
    for disk in disks:
        subprocess.run(
            ["dd", "if=/dev/zero", f"of={disk}", "bs=1M", "count=1", "conv=fsync", "status=none"], check=True
        )
    assert not (await metadata.state()).groups

    for path in map(str, disks):
        metadata.run("pvcreate", f"--uuid={uuids[path]}", f"--restorefile={backup}", path)
    metadata.run("vgcfgrestore", f"--file={backup}", group)
    volume = (await metadata.state()).volume(group, "data")
    assert volume is not None
    assert volume.size == 40 * MIB


async def test_what_it_says_of_a_missing_disk_stays(
    metadata: Metadata,
    disks: list[Path],
    group: str,
    backend: LvmBackend,
    backup: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert metadata.makes(group, "data", 40)
    await look(backend)
    before = backup.read_text()
    metadata.hide(str(disks[1]))
    metadata.run("vgchange", "--addtag=changed", group)
    await look(backend)
    assert (await metadata.state()).groups[0].missing_devices == 1
    assert backup.read_text() == before
    assert not caplog.records  # each look would say so
