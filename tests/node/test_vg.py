"""`elastic-local vg create` as a person or a Makefile types it, on disks and on a file."""

import asyncio
import json
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from command.main import app
from daemon.backends import volumegroups
from host import loopdevice
from lvm import Lvm
from tests.node.conftest import ByHand, MakeDisks

pytestmark = pytest.mark.device_mapper

_DISK = 64 << 20

Vg = Callable[..., Result]


@pytest.fixture
def vg(tmp_path: Path) -> Vg:
    """Runs `elastic-local vg` with a data folder of its own, which has the configuration of the `lvm` fixture."""

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["vg", *arguments, "--data-dir", str(tmp_path)])

    return run


def group_of(answer: Result) -> dict[str, Any]:
    assert answer.exit_code == 0, answer.stderr
    (group,) = json.loads(answer.stdout)
    assert isinstance(group, dict)
    return group


def refusal(answer: Result) -> str:
    assert answer.exit_code == 1, answer.stdout
    assert "Traceback" not in answer.stderr
    return answer.stderr


@pytest.fixture
def remove(by_hand: ByHand) -> Iterator[Callable[[str], None]]:
    names: list[str] = []
    yield names.append
    for name in names:
        by_hand("vgremove", "--force", "--yes", name)


def test_disks_become_a_group_and_asking_again_changes_nothing(
    vg: Vg, make_disks: MakeDisks, remove: Callable[[str], None]
) -> None:
    disks = make_disks(3, _DISK)
    first = group_of(vg("create", "two-disks", *disks[:2], "--output", "json"))
    remove("two-disks")
    assert first["devices"] == sorted(disks[:2])
    assert first["size"] == first["free"] > 2 * _DISK - (16 << 20)
    assert group_of(vg("create", "two-disks", *disks[:2], "--output", "json")) == first
    assert group_of(vg("create", "two-disks", "--any-disk", "--output", "json")) == first

    assert f"elastic-local vg extend two-disks {disks[2]}" in refusal(vg("create", "two-disks", disks[2]))
    assert "belongs to LVM" in refusal(vg("create", "another", disks[0]))
    assert [group["name"] for group in json.loads(vg("list", "--output", "json").stdout)] == ["two-disks"]
    assert "two-disks" in vg("list").stdout
    assert vg("list", "--output", "name").stdout == "two-disks\n"


def test_a_group_is_extended_and_removed(vg: Vg, make_disks: MakeDisks, by_hand: ByHand) -> None:
    disks = make_disks(2, _DISK)
    planned = vg("create", "short", disks[0], "--dry-run", "--output", "json")
    assert group_of(planned)["devices"] == [disks[0]]
    assert "nothing was changed" in planned.stderr
    assert "this node has no volume group" in vg("list").stderr
    first = group_of(vg("create", "short", disks[0], "--output", "json"))

    planned = vg("extend", "short", disks[1], "--dry-run", "--output", "json")
    assert group_of(planned)["devices"] == sorted(disks)
    assert json.loads(vg("list", "--output", "json").stdout) == [first]
    extended = group_of(vg("extend", "short", *disks, "--output", "json"))
    assert extended["devices"] == sorted(disks)
    assert extended["size"] > first["size"]
    assert group_of(vg("extend", "short", disks[1], "--output", "json")) == extended
    assert "there is: short" in refusal(vg("extend", "absent", disks[1]))

    by_hand("lvcreate", "--yes", "--name", "precious", "--size", "8m", "short")
    assert "precious" in refusal(vg("remove", "short"))
    by_hand("lvremove", "--yes", "short/precious")
    assert "would be removed" in vg("remove", "short", "--dry-run").stdout
    assert json.loads(vg("list", "--output", "json").stdout) == [extended]
    assert "is removed" in vg("remove", "short").stdout
    assert "this node has no volume group" in vg("list").stderr
    group_of(vg("create", "again", *disks, "--output", "json"))
    vg("remove", "again")


def test_a_group_on_a_file_goes_with_its_file(vg: Vg, tmp_path: Path) -> None:
    file = volumegroups.disk_file(tmp_path, "on-file")
    assert group_of(vg("create", "on-file", "--loop-size", "64Mi", "--dry-run", "--output", "json"))["devices"]
    assert not file.exists()
    group_of(vg("create", "on-file", "--loop-size", "64Mi", "--output", "json"))
    assert vg("remove", "on-file").exit_code == 0
    assert not file.exists()
    assert not [path for path in Path("/sys/block").glob("loop*/loop/backing_file") if str(file) in path.read_text()]


def test_the_file_of_a_group_that_was_renamed_stays_when_its_namesake_goes(
    vg: Vg, make_disks: MakeDisks, by_hand: ByHand, tmp_path: Path
) -> None:
    (disk,) = make_disks(1, _DISK)
    file = volumegroups.disk_file(tmp_path, "on-file")
    before = group_of(vg("create", "on-file", "--loop-size", "64Mi", "--output", "json"))
    try:
        by_hand("vgrename", "on-file", "renamed")
        group_of(vg("create", "on-file", disk, "--output", "json"))
        assert vg("remove", "on-file").exit_code == 0
        (renamed,) = json.loads(vg("list", "--output", "json").stdout)
        assert (renamed["name"], renamed["devices"]) == ("renamed", before["devices"])
        assert file.exists()
        vg("remove", "renamed")
    finally:
        if device := loopdevice.find(file):
            loopdevice.detach(device)


def test_a_disk_that_holds_something_is_not_added(vg: Vg, make_disks: MakeDisks, remove: Callable[[str], None]) -> None:
    disks = make_disks(2, _DISK)
    group_of(vg("create", "careful", disks[0], "--output", "json"))
    remove("careful")
    formatted(disks[1])
    before = beginning(disks[1])
    assert "holds ext4" in refusal(vg("extend", "careful", disks[1]))
    assert beginning(disks[1]) == before


def beginning(disk: str) -> bytes:
    with Path(disk).open("rb") as device:
        return device.read(1 << 20)


def formatted(disk: str) -> None:
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)


def partitioned(disk: str) -> None:
    """With the table of a PC: one partition of type Linux."""
    entry = struct.pack("<8sII", b"\x00\x02\x00\x02\x83\x02\x00\x02", 2048, 2048)
    _write(disk, 446, entry.ljust(64, b"\0") + b"\x55\xaa")


def written_to(disk: str) -> None:
    _write(disk, 4608, b"precious")


def _write(disk: str, offset: int, data: bytes) -> None:
    with Path(disk).open("r+b", buffering=0) as device:
        device.seek(offset)
        device.write(data)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (formatted, "it holds ext4"),
        (partitioned, "it holds dos"),
        (written_to, "it holds data of an unknown kind"),
    ],
)
def test_a_disk_that_holds_anything_is_refused_and_stays_as_it_is(
    vg: Vg, make_disks: MakeDisks, spoil: Callable[[str], None], message: str
) -> None:
    empty, spoilt = make_disks(2, 64 << 20)
    spoil(spoilt)
    before = beginning(spoilt)
    said = refusal(vg("create", "never", empty, spoilt))
    assert f"{spoilt} (64Mi): {message}" in said
    assert f"{empty} (64Mi): empty" in said
    assert beginning(spoilt) == before
    assert json.loads(vg("list", "--output", "json").stdout) == []


def test_a_disk_in_use_is_refused(vg: Vg, make_disks: MakeDisks, tmp_path: Path) -> None:
    (disk,) = make_disks(1, _DISK)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    folder = tmp_path / "mounted"
    folder.mkdir()
    subprocess.run(["mount", disk, str(folder)], check=True)
    try:
        assert f"it is mounted on {folder}" in refusal(vg("create", "never", disk))
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_group_on_a_file_is_there_again_after_a_restart(
    vg: Vg, lvm: Lvm, by_hand: ByHand, tmp_path: Path, remove: Callable[[str], None]
) -> None:
    file = volumegroups.disk_file(tmp_path, "on-file")
    try:
        first = group_of(vg("create", "on-file", "--loop-size", "64Mi", "--output", "json"))
        assert file.stat().st_size == 64 << 20
        assert first["devices"] == [str(loopdevice.find(file))]
        assert group_of(vg("create", "on-file", "--loop-size", "64Mi", "--output", "json")) == first

        by_hand("lvcreate", "--size=8m", "--name=kept", "on-file")
        by_hand("vgchange", "--activate=n", "on-file")
        subprocess.run(["losetup", "--detach", first["devices"][0]], check=True)  # as a restart of the node does
        assert json.loads(vg("list", "--output", "json").stdout) == []

        assert asyncio.run(volumegroups.attach_files(tmp_path))
        (again,) = json.loads(vg("list", "--output", "json").stdout)
        assert (again["name"], again["volumes"], again["ours"]) == ("on-file", 1, 0)
        by_hand("vgchange", "--activate=n", "on-file")
        by_hand("vgremove", "--force", "--yes", "on-file")
    finally:
        if device := loopdevice.find(file):
            subprocess.run(["losetup", "--detach", str(device)], check=True)


def test_a_file_that_does_not_fit_is_refused_with_what_is_left(vg: Vg) -> None:
    for dry_run in ((), ("--dry-run",)):
        assert "give a smaller --loop-size" in refusal(vg("create", "never", "--loop-size", "900Ti", *dry_run))


def test_a_name_that_no_group_can_have_makes_no_file(vg: Vg, tmp_path: Path) -> None:
    for name in ("../never", "below/never", "..", ""):
        refused = vg("create", name, "--loop-size", "32Mi")
        assert (refused.exit_code, "is not a valid name of a volume group" in refused.stderr) == (2, True)
    assert "`elastic-local vg create GROUP /dev/sdb`" in vg("create", "/dev/sdb").stderr
    assert not list(tmp_path.rglob("*never*"))


def test_only_devices_are_taken(vg: Vg, tmp_path: Path) -> None:
    assert "is no block device" in refusal(vg("create", "never", str(tmp_path)))
    assert "No such file" in refusal(vg("create", "never", "/dev/no-such-disk"))
    assert "--loop-size 10Gi" in refusal(vg("create", "never"))
