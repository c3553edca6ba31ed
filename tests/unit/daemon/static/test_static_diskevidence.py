"""What is read of disks of each kind, from sysfs as kernels show it."""

import errno
import os
from pathlib import Path

import pytest

from daemon.static import diskevidence
from daemon.static.diskrecord import Match

SECTORS = "2097152"


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "boot_id").write_text("boot-1\n")
    monkeypatch.setattr(diskevidence, "_SYSFS", tmp_path / "dev")
    monkeypatch.setattr(diskevidence, "_BOOT", tmp_path / "boot_id")
    (tmp_path / "dev").mkdir()
    return tmp_path


def disk(sysfs: Path, number: str, below: str, **attributes: str | bytes) -> Path:
    """`below`: its folder. Attributes have `__` for a slash."""
    folder = sysfs / "devices" / below
    folder.mkdir(parents=True)
    for name, content in {"size": SECTORS, "dev": number, "diskseq": "7", **attributes}.items():
        file = folder / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else f"{content}\n".encode())
    (sysfs / "dev" / number).symlink_to(folder)
    return folder


def seen(number: str) -> dict[str, str]:
    major, _, minor = number.partition(":")
    values = dict(diskevidence.of_device(os.makedev(int(major), int(minor))).values)
    assert values.pop("size") == str(int(SECTORS) * 512)
    assert values.pop("instance") == "boot-1 7"
    return values


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        (
            {"device__wwid": "naa.5000c500a1b2c3d4", "device__vpd_pg80": b"\0\x80\0\x10        ZC1ABCDE"},
            {"wwid": "naa.5000c500a1b2c3d4", "serial": "ZC1ABCDE"},
        ),
        (
            {"device__wwid": "t10.ATA     QEMU HARDDISK                           QM00001             "},
            {"wwid": "t10.ATA QEMU HARDDISK QM00001"},
        ),
        (
            {"wwid": "eui.0025385b71b0c1d2", "nsid": "1", "device__serial": "S4EV000000      "},
            {"wwid": "eui.0025385b71b0c1d2", "serial": "S4EV000000 namespace 1"},
        ),
        ({"serial": "vol-0123456789"}, {"serial": "vol-0123456789"}),
        ({"serial": ""}, {}),
        ({"device__cid": "fe014e50", "device__serial": "0x1"}, {"serial": "fe014e50"}),
        ({"dm__uuid": "LVM-abc"}, {"dm": "LVM-abc"}),
        (
            {"dm__uuid": f"CRYPT-LUKS2-{'0' * 32}-name-of-today"},
            {"dm": f"CRYPT-LUKS2-{'0' * 32}"},
        ),
        ({"dm__uuid": "mpath-3600a0b80000f"}, {"dm": "mpath-3600a0b80000f"}),
        ({"md__uuid": "1-2-3"}, {"md": "1-2-3"}),
    ],
)
def test_kinds_of_disks(sysfs: Path, attributes: dict[str, str | bytes], expected: dict[str, str]) -> None:
    disk(sysfs, "8:16", "sdb", **attributes)
    assert seen("8:16") == expected


def test_a_partition_is_a_place_on_its_disk(sysfs: Path) -> None:
    disk(sysfs, "8:16", "sdb", device__wwid="naa.5000c500a1b2c3d4")
    disk(sysfs, "8:17", "sdb/sdb1", partition="1", start="2048")
    assert seen("8:17") == {"wwid": "naa.5000c500a1b2c3d4", "partition": "2048"}
    assert list(diskevidence.proof(os.makedev(8, 17))) == ["start=2048", "../device/wwid=naa.5000c500a1b2c3d4"]


def test_what_a_job_knows_a_disk_by(sysfs: Path) -> None:
    disk(sysfs, "259:0", "nvme0n1", wwid="eui.0025385b71b0c1d2", nsid="1", device__serial="S4EV000000  ")
    lines = ["wwid=eui.0025385b71b0c1d2", "device/serial=S4EV000000  ", "nsid=1"]
    assert list(diskevidence.proof(os.makedev(259, 0))) == lines, "a shell takes off line ends, and no blanks"
    disk(sysfs, "253:0", "vda", serial="")
    boot = sysfs / "boot_id"
    assert list(diskevidence.proof(os.makedev(253, 0))) == [f"{boot}=boot-1", "diskseq=7"]
    disk(sysfs, "253:16", "vdb", diskseq="")
    assert list(diskevidence.proof(os.makedev(253, 16))) == [f"{boot}=boot-1", "dev=253:16"]


def test_without_sequence_numbers_it_has_that_of_the_device(sysfs: Path) -> None:
    folder = disk(sysfs, "253:0", "vda")
    (folder / "diskseq").unlink()
    assert diskevidence.of_device(os.makedev(253, 0)).values["instance"] == "boot-1 253:0"


def test_an_attribute_that_can_not_be_read_is_not_absent(sysfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(sysfs, "253:0", "vda", serial="a")
    read = Path.read_bytes

    def failing(number: int) -> None:
        def read_bytes(file: Path) -> bytes:
            if file.name == "serial":
                raise OSError(number, os.strerror(number))
            return read(file)

        monkeypatch.setattr(Path, "read_bytes", read_bytes)

    failing(errno.EINVAL)  # a SCSI disk without that page
    assert seen("253:0") == {}
    failing(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        diskevidence.of_device(os.makedev(253, 0))


def test_a_disk_renumbered_by_a_boot(sysfs: Path) -> None:
    disk(sysfs, "8:16", "sdb", device__wwid="naa.5000c500a1b2c3d4")
    disk(sysfs, "8:32", "sdc", device__wwid="naa.5000c500a1b2c3d5", diskseq="8")
    one, two = (diskevidence.of_device(os.makedev(8, minor)) for minor in (16, 32))
    for link, target in (("8:16", "sdc"), ("8:32", "sdb")):
        (sysfs / "dev" / link).unlink()
        (sysfs / "dev" / link).symlink_to(sysfs / "devices" / target)
    (sysfs / "boot_id").write_text("boot-2\n")
    assert one.is_now(diskevidence.of_device(os.makedev(8, 16))) is Match.OTHER
    assert one.is_now(diskevidence.of_device(os.makedev(8, 32))) is Match.SAME
    assert two.is_now(diskevidence.of_device(os.makedev(8, 16))) is Match.SAME
