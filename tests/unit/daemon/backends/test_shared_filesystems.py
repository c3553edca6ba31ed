"""Classes of files and folders that are on one filesystem: what it has is there once."""

import os
from pathlib import Path

import pytest

from contract.parameters import VolumeParameters
from contract.volume import DELETE
from daemon.backends.deviceclassbackend import DeviceClassBackend, backend_of_classes, joined
from daemon.errors import NoSpace
from daemon.storage.deviceclasses import BINDMOUNT, LOOP, DeviceClass
from daemon.storage.freespace import Reservation
from daemon.storage.inventory import Pool, SharedFilesystem
from daemon.storage.record import VolumeSpec
from daemon.storage.volumes import Volumes
from tests.agreeing import Agreeing

MIB = 2**20


def pool(name: str, free: int, identity: str = "8:1", written: int | None = None) -> Pool:
    return Pool(name, free, free, 0, 1, filesystem=SharedFilesystem(identity, (name,), free, 0, written=written))


def test_pools_of_one_filesystem_know_of_each_other() -> None:
    pools = {
        each.name: each for each in joined([pool("a", 10), pool("b", 10), pool("c", 10, "8:2"), Pool("vg", 1, 1, 0, 1)])
    }
    assert {name: each.sharing() for name, each in pools.items()} == {"a": ("b",), "b": ("a",), "c": (), "vg": ()}


def test_what_is_written_in_images_is_room_of_images() -> None:
    """Of a filesystem with 100, images take 30 and 20: 50 are free."""
    first, second = joined([pool("a", 80, written=30), pool("b", 70, written=20)])
    assert first.filesystem
    assert second.filesystem
    assert first.filesystem.allocatable == second.filesystem.allocatable == 100


def test_folders_are_offered_the_whole_and_beside_images_what_is_free() -> None:
    folders, _ = joined([pool("a", 100), pool("b", 100)])
    assert folders.filesystem
    assert folders.filesystem.allocatable == 100
    beside, _ = joined([pool("a", 100), pool("b", 80, written=30)])
    assert beside.filesystem
    assert beside.filesystem.allocatable == 80


@pytest.fixture
def classes(tmp_path: Path) -> dict[str, DeviceClass]:
    for name in ("images", "folders"):
        (tmp_path / name).mkdir()
    return {
        "default": DeviceClass("default", LOOP, folder=tmp_path / "own", own_folder=True),
        "images": DeviceClass("images", LOOP, folder=tmp_path / "images"),
        "folders": DeviceClass("folders", BINDMOUNT, folder=tmp_path / "folders"),
    }


@pytest.fixture
def backend(classes: dict[str, DeviceClass], tmp_path: Path) -> DeviceClassBackend:
    return backend_of_classes(classes, tmp_path)


def spec(pv: str, device_class: str, size: int) -> VolumeSpec:
    return VolumeSpec(pv, f"uid-{pv}", size, DELETE, VolumeParameters(device_class=device_class))


async def test_one_filesystem_is_not_promised_twice(backend: DeviceClassBackend, tmp_path: Path) -> None:
    room = os.statvfs(tmp_path)
    all_but_a_little = int(room.f_bavail * room.f_frsize * 0.9)
    reservations = [Reservation("first", "loop:images", all_but_a_little)]
    volumes = Volumes(backend, tmp_path / "staging", Agreeing(), reservations=lambda: reservations)
    await volumes.start()
    pools = {each.name: each for each in volumes.inventory.pools}
    assert pools["loop"].sharing() == ("folder:folders", "loop:images")
    with pytest.raises(NoSpace):
        await volumes.prepare(spec("second", "folders", all_but_a_little))
    made = await volumes.prepare(spec("third", "folders", MIB))
    assert made.size == MIB
    shared = volumes.inventory.pool("loop")
    assert shared
    assert shared.filesystem
    assert shared.filesystem.ours == MIB
    await volumes.close()
