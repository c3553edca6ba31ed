"""Which backend of a node a volume goes to, and that one that fails leaves the others alone."""

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PosixPath
from typing import Any
from unittest.mock import AsyncMock

import pytest

from contract.parameters import VolumeParameters
from contract.volume import DELETE
from daemon.backends import volumegroups
from daemon.backends.deviceclassbackend import DeviceClassBackend, backend_of_classes
from daemon.backends.folder import FolderBackend
from daemon.backends.loop import LoopBackend
from daemon.errors import BackendFailed, NoSpace, NotCloned, PoolMissing
from daemon.storage.deviceclasses import BINDMOUNT, LOOP, LVM, DeviceClass, DeviceSelector
from daemon.storage.inventory import Inventory
from daemon.storage.record import VolumeSpec
from host import diskthreads, loopdevice
from host.disks import Disk
from lvm import Report, configuration, report

MIB = 2**20


def spec(pv: str, device_class: str, size: int = 40 * MIB) -> VolumeSpec:
    return VolumeSpec(pv, f"uid-{pv}", size, DELETE, VolumeParameters(device_class=device_class))


@pytest.fixture
def classes(tmp_path: Path) -> dict[str, DeviceClass]:
    fast = DeviceClass("fast", LOOP, folder=tmp_path / "fast", capacity=100 * MIB, reserve=10 * MIB)
    slow = DeviceClass("slow", LOOP, folder=tmp_path / "slow", capacity=200 * MIB)
    plain = DeviceClass("plain", BINDMOUNT, folder=tmp_path / "plain", capacity=300 * MIB)
    return {"default": slow, "fast": fast, "slow": slow, "plain": plain}


@pytest.fixture
async def backend(classes: dict[str, DeviceClass], tmp_path: Path) -> DeviceClassBackend:
    for each in classes.values():
        each.folder.mkdir(exist_ok=True)
    backend = backend_of_classes(classes, tmp_path)
    await backend.establish()
    return backend


@pytest.mark.parametrize("device_class", ["fast", "plain"])
@pytest.mark.parametrize(
    ("asked", "told"), [({"raid": "raid1"}, "raid"), ({"stripes": 2}, "stripes"), ({"volume_group": "vg"}, "group vg")]
)
async def test_files_and_folders_are_no_mirrors(
    backend: DeviceClassBackend, device_class: str, asked: dict[str, Any], told: str
) -> None:
    """A class that asks for what only LVM can do has no capacity there, and no volume that is less than it says."""
    wanted = replace(spec("a", device_class), parameters=VolumeParameters(device_class=device_class, **asked))
    inventory = await backend.inspect()
    assert inventory.pool(backend.pool_of(wanted.parameters)) is None
    with pytest.raises(PoolMissing, match=told):
        await backend.create(wanted)
    assert (await backend.inspect()).volumes == []
    thin = VolumeParameters(device_class=device_class, thin=True)
    assert inventory.pool(backend.pool_of(thin)) is not None


async def test_each_class_has_its_own_room(backend: DeviceClassBackend) -> None:
    fast = await backend.create(spec("a", "fast"))
    plain = await backend.create(spec("b", "plain"))
    slow = await backend.create(spec("c", "default"))
    assert [fast.pool, plain.pool, slow.pool] == ["loop:fast", "folder:plain", "loop:slow"]
    assert [backend.on_device(volume.pool) for volume in (fast, plain, slow)] == [True, False, True]
    with pytest.raises(NoSpace):
        await backend.create(spec("d", "fast", 90 * MIB))

    seen = await backend.inspect()
    assert {volume.pv: volume.pool for volume in seen.volumes} == {"a": fast.pool, "b": plain.pool, "c": slow.pool}
    rooms = {pool.name: pool.available() for pool in seen.pools}
    assert rooms == {"loop:fast": 50 * MIB, "folder:plain": 260 * MIB, "loop:slow": 160 * MIB}

    grown = await backend.extend(plain, 50 * MIB)
    assert (grown.pool, grown.size) == ("folder:plain", 50 * MIB)
    async with backend.device(grown) as path:
        assert path.is_dir()
    for volume in (fast, grown, slow):
        await backend.remove(volume)
    assert not (await backend.inspect()).volumes


async def test_a_copy_may_be_of_another_class_unless_one_is_a_folder(backend: DeviceClassBackend) -> None:
    fast = await backend.create(spec("a", "fast"))
    plain = await backend.create(spec("b", "plain"))
    assert await backend.clone_sharing_blocks(spec("c", "slow"), fast) is None
    for device_class, source in (("slow", plain), ("plain", fast), ("plain", plain)):
        with pytest.raises(NotCloned, match="plain folders"):
            await backend.clone_sharing_blocks(spec("c", device_class), source)
    assert (await backend.inspect()).volume("c") is None


async def test_a_class_that_the_node_does_not_have(backend: DeviceClassBackend) -> None:
    asked = spec("a", "nvme")
    assert backend.pool_of(asked.parameters) == "device class nvme"
    with pytest.raises(PoolMissing, match="there are default fast plain slow"):
        await backend.create(asked)


async def test_a_disk_that_is_not_mounted_is_no_room_and_nothing_is_gone(
    backend: DeviceClassBackend, classes: dict[str, DeviceClass]
) -> None:
    volume = await backend.create(spec("a", "fast"))
    away = classes["fast"].folder.rename(classes["fast"].folder.with_name("away"))
    await backend.establish()
    seen = await backend.inspect()
    assert not classes["fast"].folder.exists()
    assert seen.pool("loop:fast") is None
    assert {pool.name for pool in seen.pools} == {"loop:slow", "folder:plain"}
    for failing in (backend.create(spec("b", "fast")), backend.remove(volume), backend.extend(volume, 50 * MIB)):
        with pytest.raises(PoolMissing, match="mounts the disk"):
            await failing
    away.rename(classes["fast"].folder)
    assert (await backend.inspect()).volume("a") == volume


async def test_a_volume_of_two_classes_is_nobodys(backend: DeviceClassBackend, classes: dict[str, DeviceClass]) -> None:
    for device_class in ("fast", "slow"):
        await backend.create(spec("a", device_class))
    seen = await backend.inspect()
    assert seen.volume("a") is None
    assert {(each.name, each.pool) for each in seen.damaged} == {("a", "loop:fast"), ("a", "loop:slow")}


class Broken(LoopBackend):
    async def inspect(self) -> Inventory:
        raise BackendFailed("the disk is out")

    async def establish(self) -> None:
        raise BackendFailed("the disk is out")


async def test_one_that_fails_leaves_the_others_alone(classes: dict[str, DeviceClass], tmp_path: Path) -> None:
    two = {name: classes[name] for name in ("fast", "plain")}
    broken = Broken(tmp_path / "fast", pool="loop:fast")
    folder = FolderBackend(tmp_path / "plain", 100, pool="folder:plain")
    node = DeviceClassBackend({"fast": broken, "plain": folder}, two | {"default": two["plain"]})
    await node.establish()
    assert [pool.name for pool in (await node.inspect()).pools] == ["folder:plain"]

    alone = DeviceClassBackend({"default": broken}, {"default": replace(classes["fast"], name="default")})
    with pytest.raises(BackendFailed, match="the disk is out"):
        await alone.inspect()


@pytest.mark.parametrize("hanging", ["a group's file", "LVM's folder", "what remembers a group", "a volume's folder"])
async def test_what_lvm_needs_hangs_and_folders_are_served(
    classes: dict[str, DeviceClass], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hanging: str
) -> None:
    """From the start of a daemon on, whichever of it hangs."""
    classes["plain"].folder.mkdir(mode=0o700)
    program = tmp_path / "bin" / "lvm"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr(diskthreads.threads, "_deadline", 0.2)
    monkeypatch.setattr(volumegroups, "CALL_SECONDS", 0.2)
    monkeypatch.setattr(report, "state", lambda done: Report((), (), ()))
    monkeypatch.setattr(volumegroups, "look_at_all", AsyncMock(return_value=[Disk("/dev/not-there", 1 << 40)]))
    file = volumegroups.disk_file(tmp_path, "on-file")
    file.parent.mkdir()
    file.touch()
    hung, answers = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> bool:
        hung.set()
        return answers.wait(60)

    monkeypatch.setattr(loopdevice, "attach", lambda file: Path("/dev/loop0"))
    monkeypatch.setattr(loopdevice, "backing_files", dict)
    match hanging:
        case "a group's file":
            monkeypatch.setattr(loopdevice, "attach", hang)
        case "LVM's folder":
            monkeypatch.setattr(configuration, "write", hang)
        case "what remembers a group":
            monkeypatch.setattr(volumegroups, "_remember", hang)
        case _:
            silent = type("Silent", (PosixPath,), {"stat": hang})(tmp_path / "silent" / "a.img")
            monkeypatch.setattr(loopdevice, "backing_files", lambda: {Path("/dev/loop1"): silent})
    plain = dict.fromkeys(("default", "plain"), classes["plain"])
    of_lvm = DeviceClass("lvm", LVM, group="on-disks", devices=DeviceSelector())
    backend = backend_of_classes({**plain, "lvm": of_lvm}, tmp_path)
    try:
        async with asyncio.timeout(20):
            await backend.establish()
            assert [pool.name for pool in (await backend.inspect()).pools] == ["folder:plain"]
        assert hung.is_set()
    finally:
        answers.set()


async def test_what_is_being_written_survives_a_look_for_what_is_missing(
    backend: DeviceClassBackend, classes: dict[str, DeviceClass]
) -> None:
    """Establishing clears away what a crash left; of a class that is there, nothing was left by a crash."""
    classes["fast"].folder.rmdir()
    await backend.inspect()
    unfinished = classes["slow"].folder / ".a.new"
    unfinished.touch()
    await backend.establish()
    assert unfinished.exists()


async def test_the_inventory_says_which_pools_were_not_seen_and_why(
    backend: DeviceClassBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await backend.create(spec("a", "fast"))

    async def fail(_: LoopBackend) -> Inventory:
        raise BackendFailed("the node's disk said: Input/output error")

    assert (await backend.inspect()).why_unavailable(volume.pool) == ""
    with monkeypatch.context() as patched:
        patched.setattr(LoopBackend, "inspect", fail)
        seen = await backend.inspect()
    assert {each.pool for each in seen.unavailable} == {"loop:fast", "loop:slow"}
    assert "Input/output error" in seen.why_unavailable(volume.pool)
    assert seen.why_unavailable("folder:plain") == ""
    assert "does not show" in seen.why_unavailable("of another node")


def failing(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The system call, as it answers for this name when its disk is dying."""

    def answer(path: Any, *arguments: Any, **words: Any) -> Any:
        if str(path).endswith(name):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return call(path, *arguments, **words)

    return answer


async def test_a_folder_that_can_not_be_read_is_not_an_empty_one(
    backend: DeviceClassBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when its disk is dying: pathlib.Path.glob shows an empty folder then."""
    await backend.create(spec("a", "plain"))
    for name in ("listdir", "scandir"):  # pathlib's is the one, and from Python 3.13 on the other
        monkeypatch.setattr(os, name, failing(getattr(os, name), "plain"))
    assert "Input/output error" in (await backend.inspect()).why_unavailable("folder:plain")


@pytest.mark.parametrize(
    ("device_class", "data"), [("plain", "/a" + FolderBackend.SUFFIX), ("slow", "/a" + LoopBackend.SUFFIX)]
)
async def test_data_that_can_not_be_seen_is_not_gone(
    backend: DeviceClassBackend, monkeypatch: pytest.MonkeyPatch, device_class: str, data: str
) -> None:
    """To os.path.lexists, and from Python 3.14 on to Path.exists, it is not there."""
    volume = await backend.create(spec("a", device_class))
    with monkeypatch.context() as dying:
        for name in ("stat", "lstat", "open", "unlink", "readlink"):
            dying.setattr(os, name, failing(getattr(os, name), data))
        seen = await backend.inspect()
        assert seen.damaged == []
        assert "Input/output error" in seen.why_unavailable(volume.pool)
        with pytest.raises(BackendFailed, match="Input/output error"):
            await backend.remove(volume)
    (there,) = (await backend.inspect()).volumes
    assert there.pv == "a", "its record did not go before its data"
