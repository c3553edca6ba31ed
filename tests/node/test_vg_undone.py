"""`vg create` that fails half way leaves each disk as it found it, and names one disk that it is given twice."""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from command.main import app
from daemon.backends import lvmgroups
from host import loopdevice
from lvm import Lvm, LvmError
from tests.node.conftest import MakeDisks
from tests.node.lvmmetadata import Metadata, remove, restored

MIB = 2**20


@pytest.fixture
def disks(make_disks: MakeDisks, metadata: Metadata) -> list[str]:
    devices = make_disks(2, 32 * MIB)
    metadata.show(*devices)
    return devices


def create(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["vg", "create", *arguments, "--data-dir", str(tmp_path), "--output", "json"])
    assert "Traceback" not in done.stderr
    return done.exit_code, done.stdout if done.exit_code == 0 else done.stderr


def content(disk: str) -> bytes:
    return Path(disk).read_bytes()


def test_one_disk_under_two_names_is_named_before_anything_is_changed(
    disks: list[str], metadata: Metadata, tmp_path: Path
) -> None:
    link = tmp_path / "by-id"
    link.symlink_to(disks[0])
    code, said = create(tmp_path, "twice", disks[0], str(link))
    assert code == 1
    assert f"nothing was changed, because one disk is named twice: {disks[0]} and {link} are one disk" in said
    assert not content(disks[0]).strip(b"\0")


def test_a_second_loop_device_of_one_file_is_the_same_disk(
    disks: list[str], metadata: Metadata, tmp_path: Path
) -> None:
    file = Path("/sys/block", Path(disks[0]).name, "loop/backing_file").read_text().strip()
    twin = subprocess.run(["losetup", "--find", "--show", file], check=True, capture_output=True, text=True).stdout
    try:
        code, said = create(tmp_path, "twice", disks[0], twin.strip())
        assert code == 1
        assert "two paths to one disk" in said
    finally:
        subprocess.run(["losetup", "--detach", twin.strip()], check=True)


@pytest.mark.parametrize("made", ["labels", "group"])
def test_what_was_begun_is_undone_when_it_fails_half_way(
    disks: list[str], metadata: Metadata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str
) -> None:
    create_group = Lvm.create_group

    async def fails(self: Lvm, name: str, devices: list[str], *, metadata_size: int | None = None) -> None:
        if made == "labels":
            metadata.run("pvcreate", devices[0])
        else:
            await create_group(self, name, devices, metadata_size=metadata_size)
        raise LvmError("lvm vgcreate", 5, "the disk is out")

    monkeypatch.setattr(Lvm, "create_group", fails)
    code, said = create(tmp_path, "half", *disks)
    assert (code, "the disk is out" in said) == (1, True)
    assert not any(content(disk).strip(b"\0") for disk in disks if made == "labels")
    monkeypatch.setattr(Lvm, "create_group", create_group)
    code, said = create(tmp_path, "half", *disks)
    assert code == 0, said
    assert json.loads(said)[0]["devices"] == sorted(disks)
    metadata.run("vgremove", "half")


def test_the_file_of_a_group_that_could_not_be_made_is_gone(
    metadata: Metadata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(self: Lvm, name: str, devices: list[str], *, metadata_size: int | None = None) -> None:
        raise LvmError("lvm vgcreate", 5, "no")

    monkeypatch.setattr(Lvm, "create_group", fails)
    code, _ = create(tmp_path, "filed", "--loop-size", "32Mi")
    assert code == 1
    assert not list((tmp_path / "groups").iterdir())


@pytest.fixture
def large(tmp_path: Path) -> Iterator[str]:
    """A sparse disk of 48 GiB."""
    image = tmp_path / "large"
    image.touch()
    os.truncate(image, 48 << 30)
    with loopdevice.attached(image) as device:
        yield str(device)


def test_ten_thousand_volumes_have_room_in_the_metadata(large: str, metadata: Metadata, tmp_path: Path) -> None:
    metadata.show(large)
    code, said = create(tmp_path, "many", large)
    assert code == 0, said
    try:
        assert restored(metadata, "many", tmp_path, 10_000)
        state = asyncio.run(metadata.state())
        group = state.group("many")
        assert group
        assert group.volume_count == 10_000
        assert lvmgroups.refusal(state, group) == ""
        assert (lvmgroups.room_for_volumes(group) or 0) > 1_000
    finally:
        remove(metadata, "many", tmp_path)


def test_no_room_is_offered_before_the_metadata_are_full(disks: list[str], metadata: Metadata, tmp_path: Path) -> None:
    """Of a group with LVM's own area: what is kept is enough to go on changing the volumes there are."""
    metadata.run("vgcreate", "--physicalextentsize=4k", "few", *disks)
    try:
        assert restored(metadata, "few", tmp_path, 800)
        state = asyncio.run(metadata.state())
        group = state.group("few")
        assert group
        refusal = lvmgroups.refusal(state, group)
        assert "metadata area of volume group few is nearly full" in refusal
        assert "`pvcreate --metadatasize 64m NEW && vgextend few NEW && pvchange --metadataignore y " in refusal
        assert lvmgroups.room_for_volumes(group) == 0
        one = next(iter(state.volumes_of("few"))).name
        for number in range(5):
            metadata.run("lvchange", f"--addtag=erased={number}", f"few/{one}")
        metadata.run("lvremove", "--yes", f"few/{one}")
    finally:
        remove(metadata, "few", tmp_path)
