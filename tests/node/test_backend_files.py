"""The loop and folder backends: what they have in common, crashes at every step included, and what they don't."""

import contextlib
import itertools
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from contract.parameters import VolumeParameters
from daemon.backends import folder
from daemon.backends.folder import FolderBackend
from daemon.backends.loop import LoopBackend
from daemon.backends.recordfiles import RESERVE
from daemon.errors import BackendFailed, Damaged, Foreign, InUse, NoSpace, NotAuthorized, VolumeNotFound
from daemon.storage.backend import Backend
from daemon.storage.inventory import ForeignVolume, Volume
from daemon.storage.record import VolumeSpec, VolumeState
from host import blockdevice, foldertree, loopdevice, mounting
from tests.crashing import crash_before_change
from tests.waiting import eventually

MIB = 1024**2
SPEC = VolumeSpec("pvc-1", "uid-1", 8 * MIB, "Delete", VolumeParameters())
KINDS: dict[str, Callable[[Path, int | None], Backend]] = {"loop": LoopBackend, "folder": FolderBackend}
both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


async def started(kind: str, data: Path, capacity: int | None = 100 * MIB) -> Backend:
    """The backend as a new process has it."""
    backend = KINDS[kind](data, capacity)
    await backend.establish()
    return backend


async def formatted(backend: Backend, spec: VolumeSpec = SPEC) -> Volume:
    volume = await backend.create(spec)
    return await backend.rewrite(volume, spec.record(VolumeState.READY))


def files(data: Path) -> list[str]:
    return sorted(path.name for path in data.iterdir())


def write(place: Path) -> None:
    if place.is_dir():
        (place / "tree").mkdir()
        (place / "tree" / "file").write_text("data")
    else:
        descriptor = os.open(place, os.O_RDWR)
        os.pwrite(descriptor, b"data", 0)
        os.fsync(descriptor)
        os.close(descriptor)


def holds_data(place: Path) -> bool:
    if place.is_dir():
        return (place / "tree" / "file").exists()
    with place.open("rb") as file:
        return file.read(4) == b"data"


@both
async def test_life_of_a_volume(kind: str, data: Path) -> None:
    backend = await started(kind, data)
    volume = await backend.create(SPEC)
    assert volume.record == SPEC.record(VolumeState.FORMATTING if backend.on_device(volume.pool) else VolumeState.READY)
    assert volume.size == 8 * MIB
    volume = await backend.rewrite(volume, SPEC.record(VolumeState.READY))
    volume = await backend.rewrite(volume, replace(volume.record, policy="Retain"))
    assert (await backend.inspect()).volume("pvc-1") == volume
    volume = await backend.extend(volume, 12 * MIB)
    assert volume.size == 12 * MIB
    assert await backend.extend(volume, 4 * MIB) == volume
    restarted = await started(kind, data)
    inventory = await restarted.inspect()
    assert list(inventory.volumes) == [volume]
    assert not [*inventory.foreign, *inventory.damaged]
    await restarted.remove(volume)
    await restarted.remove(volume)
    assert files(data) == []
    with pytest.raises(VolumeNotFound):
        async with restarted.device(volume):
            pass
    with pytest.raises(VolumeNotFound):
        await restarted.rewrite(volume, volume.record)


@both
async def test_room_is_promised_once(kind: str, data: Path) -> None:
    backend = await started(kind, data, capacity=20 * MIB)
    pool_name = backend.pool_of(SPEC.parameters)
    volume = await backend.create(SPEC)
    pool = (await backend.inspect()).pool(pool_name)
    assert pool
    assert (pool.size, pool.ours, pool.free, pool.allocatable()) == (20 * MIB, 8 * MIB, 12 * MIB, 20 * MIB)
    with pytest.raises(NoSpace, match=r"16Mi of .* 12Mi"):
        await backend.create(replace(SPEC, pv="pvc-2", size=16 * MIB))
    with pytest.raises(NoSpace):
        await backend.extend(volume, 21 * MIB)
    assert (await backend.inspect()).volume("pvc-2") is None
    await backend.extend(volume, 20 * MIB)


@both
async def test_without_a_limit_the_filesystem_is_the_limit(kind: str, data: Path) -> None:
    backend = await started(kind, data, capacity=None)
    before = (await backend.inspect()).pool(backend.pool_of(SPEC.parameters))
    figures = os.statvfs(data)
    assert before
    assert 0 < before.allocatable() <= figures.f_blocks * figures.f_frsize
    with pytest.raises(NoSpace):
        await backend.create(replace(SPEC, size=before.available() * 2))


@both
async def test_the_name_is_taken(kind: str, data: Path) -> None:
    backend = await started(kind, data)
    await formatted(backend)
    with pytest.raises(Foreign, match="uid-1, ready"):
        await backend.create(SPEC)
    with pytest.raises(Foreign, match="uid-1"):
        await backend.create(replace(SPEC, uid="uid-2"))
    namesake = Volume(replace(SPEC, uid="uid-2").record(VolumeState.READY), 8 * MIB, kind)
    with pytest.raises(VolumeNotFound):
        await backend.rewrite(namesake, namesake.record)
    with pytest.raises(NotAuthorized, match="uid: uid-1 for uid-2"):
        await backend.remove(namesake)
    assert (await backend.inspect()).volume("pvc-1")


@both
async def test_what_has_no_record_is_foreign(kind: str, data: Path) -> None:
    backend = await started(kind, data)
    foreign = data / ("pvc-1.img" if kind == "loop" else "pvc-1.folder")
    if kind == "loop":
        foreign.write_bytes(b"data")
    else:
        foreign.mkdir()
        write(foreign)
    inventory = await backend.inspect()
    assert list(inventory.foreign) == [ForeignVolume(foreign.name, kind, 4 if kind == "loop" else 0)]
    with pytest.raises(Foreign, match="move it away"):
        await backend.create(SPEC)
    await backend.remove(Volume(SPEC.record(VolumeState.READY), 4, kind))
    assert holds_data(foreign)
    assert files(data) == [foreign.name]


@both
async def test_a_link_that_leads_nowhere_is_foreign_too(kind: str, data: Path) -> None:
    backend = await started(kind, data)
    link = data / ("pvc-1.img" if kind == "loop" else "pvc-1.folder")
    link.symlink_to("nowhere")
    with pytest.raises(Foreign, match="move it away"):
        await backend.create(SPEC)
    assert files(data) == [link.name]


@both
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"record": "1"}', '{"record": "9", "pv": "pvc-1"}'])
async def test_a_broken_record_is_reported_and_left_alone(kind: str, data: Path, text: str) -> None:
    backend = await started(kind, data)
    volume = await formatted(backend)
    (data / "pvc-1.json").write_text(text)
    inventory = await (await started(kind, data)).inspect()
    assert not [*inventory.volumes, *inventory.foreign]
    (damaged,) = inventory.damaged
    assert damaged.name == "pvc-1"
    with pytest.raises(Damaged, match="restore"):
        await backend.create(SPEC)
    with pytest.raises(Damaged, match="restore"):
        await backend.remove(volume)
    assert len(files(data)) == 3, "data, record and reserve"
    assert (data / "pvc-1.json").read_text() == text


@both
async def test_a_record_under_another_name_is_damaged(kind: str, data: Path) -> None:
    backend = await started(kind, data)
    await formatted(backend)
    (data / "pvc-1.json").rename(data / "pvc-2.json")
    inventory = await backend.inspect()
    assert [damaged.name for damaged in inventory.damaged] == ["pvc-2"]
    assert len(list(inventory.foreign)) == 1


@both
async def test_data_that_vanished_is_damage_and_not_an_empty_volume(kind: str, data: Path) -> None:
    backend = await started(kind, data)
    await formatted(backend)
    if kind == "loop":
        (data / "pvc-1.img").unlink()
    else:
        (data / "pvc-1.folder").rmdir()
    inventory = await backend.inspect()
    assert list(inventory.volumes) == []
    assert "its data is gone" in next(iter(inventory.damaged)).reason


@both
async def test_a_link_that_leads_nowhere_hides_no_other_volume(kind: str, data: Path, tmp_path: Path) -> None:
    """Somebody moved a volume to another disk, which is not mounted now."""
    backend = await started(kind, data)
    await formatted(backend)
    moved = data / {"loop": "pvc-1.img", "folder": "pvc-1.folder"}[kind]
    moved.rename(tmp_path / "moved")
    moved.symlink_to(tmp_path / "away")
    await backend.create(replace(SPEC, pv="pvc-2", uid="uid-2"))
    inventory = await backend.inspect()
    assert [volume.pv for volume in inventory.volumes] == ["pvc-2"]
    assert [damaged.name for damaged in inventory.damaged] == ["pvc-1"]


async def test_an_image_behind_a_link_is_not_left_there_without_a_word(data: Path, tmp_path: Path) -> None:
    backend = await started("loop", data)
    volume = await formatted(backend)
    link, moved = data / "pvc-1.img", tmp_path / "moved.img"
    link.rename(moved)
    link.symlink_to(moved)
    with pytest.raises(BackendFailed, match=str(moved)):
        await backend.remove(volume)
    assert moved.exists()
    moved.unlink()
    link.unlink()
    (left,) = (await backend.inspect()).volumes
    await backend.remove(left)
    assert not list((await backend.inspect()).volumes)


@both
async def test_a_folder_that_can_not_be_written_is_reported(kind: str, data: Path) -> None:
    data.parent.joinpath("data").write_text("a file is in the way")
    with pytest.raises(BackendFailed, match="administrator"):
        await started(kind, data)


MOST_CHANGES = 15
every_crash = pytest.mark.parametrize("changes", range(MOST_CHANGES + 1))


@both
@every_crash
async def test_killed_while_creating(kind: str, data: Path, changes: int) -> None:
    backend = await started(kind, data)
    with crash_before_change(changes, data) as death:
        await backend.create(SPEC)
    assert not (death.came and changes == MOST_CHANGES), "try more of them"
    backend = await started(kind, data)
    survivor = await left(backend, data)
    if survivor is None or survivor.record.state is VolumeState.FORMATTING:
        volume = await backend.create(SPEC)
        assert volume.size == 8 * MIB
        survivor = volume
    async with backend.device(survivor) as place:
        write(place)
        assert holds_data(place)
    await removed(backend, survivor)
    assert files(data) == []


@both
@every_crash
async def test_killed_while_removing(kind: str, data: Path, changes: int) -> None:
    backend = await started(kind, data)
    volume = await formatted(backend)
    async with backend.device(volume) as place:
        write(place)
    with crash_before_change(changes, data) as death:
        await removed(backend, volume)
    assert not (death.came and changes == MOST_CHANGES), "try more of them"
    backend = await started(kind, data)
    survivor = await left(backend, data)
    if survivor is None:
        return
    if survivor.record.state is VolumeState.READY:
        async with backend.device(survivor) as place:
            assert holds_data(place)
    else:
        # Somebody wants it again before the removal was done: it comes back whole and without the old data.
        again = await backend.create(SPEC)
        assert again.size == 8 * MIB
        if kind == "folder":
            async with backend.device(again) as place:
                assert list(place.iterdir()) == []
        survivor = again
    await removed(backend, survivor)
    assert files(data) == []


@both
@pytest.mark.parametrize("changes", range(4))
async def test_killed_while_rewriting(kind: str, data: Path, changes: int) -> None:
    backend = await started(kind, data)
    volume = await formatted(backend)
    after = replace(volume.record, policy="Retain")
    with crash_before_change(changes, data):
        await backend.rewrite(volume, after)
    backend = await started(kind, data)
    seen = (await backend.inspect()).volume("pvc-1")
    assert seen
    assert seen.record in (volume.record, after)
    assert (seen.record == after) == (changes >= 2)


async def left(backend: Backend, data: Path) -> Volume | None:
    """What a crash left of the volume: nothing at all, or one that can be used."""
    inventory = await backend.inspect()
    assert not [*inventory.foreign, *inventory.damaged]
    survivor = inventory.volume("pvc-1")
    assert survivor or files(data) == []
    return survivor


async def removed(backend: Backend, volume: Volume) -> None:
    """Waits until the kernel has let go of the loop device: a program that scans devices may hold it for a moment."""
    if isinstance(backend, LoopBackend):
        image = backend._data(volume.pv)
        eventually(lambda: not image.exists() or loopdevice.find(image) is None)
    await backend.remove(volume)


async def test_sizes_of_images_are_whole_blocks(data: Path) -> None:
    backend = await started("loop", data)
    for asked, made in ((1, 4096), (4096, 4096), (4097, 8192), (8 * MIB, 8 * MIB)):
        volume = await backend.create(replace(SPEC, pv=f"pvc-{asked}", size=asked))
        assert volume.size == made
        async with backend.device(volume) as device:
            assert blockdevice.size(device) == made


async def test_an_image_that_vanished_does_not_grow_into_an_empty_one(data: Path) -> None:
    backend = await started("loop", data)
    volume = await formatted(backend)
    (data / "pvc-1.img").unlink()
    with pytest.raises(BackendFailed, match="administrator"):
        await backend.extend(volume, 9 * MIB)
    assert files(data) == [RESERVE, "pvc-1.json"]


async def test_images_are_sparse_and_for_root_alone(data: Path) -> None:
    await (await started("loop", data)).create(SPEC)
    status = (data / "pvc-1.img").stat()
    assert status.st_blocks == 0
    assert status.st_mode & 0o077 == 0
    assert data.stat().st_mode & 0o077 == 0


async def test_a_loop_volume_in_use_stays_and_grows(data: Path) -> None:
    backend = await started("loop", data)
    volume = await formatted(backend)
    async with backend.device(volume) as device:
        with pytest.raises(InUse, match=str(device)):
            await backend.remove(volume)
        assert (await backend.inspect()).volume("pvc-1") == volume
        volume = await backend.extend(volume, 9 * MIB)
        assert blockdevice.size(device) == 9 * MIB
        # As after a crash between growing the image and telling the device.
        os.truncate(data / "pvc-1.img", 10 * MIB)
        await backend.extend(volume, 10 * MIB)
        assert blockdevice.size(device) == 10 * MIB


async def test_a_folder_with_a_mount_inside_stays(data: Path, tmp_path: Path) -> None:
    backend = await started("folder", data)
    volume = await formatted(backend)
    inside = data / "pvc-1.folder" / "inside"
    inside.mkdir()
    mounting.bind(tmp_path, inside)
    with pytest.raises(InUse, match="inside"):
        await backend.remove(volume)
    assert (await backend.inspect()).volume("pvc-1") == volume
    mounting.unmount(inside)
    await backend.remove(volume)


FILESYSTEMS = {"tmpfs": [], "ext4": ["-q"], "xfs": ["-q"]}


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A filesystem of its own, of some hundred MiB at most."""
    kind, path, disk = request.param, tmp_path / "disk", tmp_path / "disk.img"
    path.mkdir()
    if kind == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", path], check=True)
    else:
        with disk.open("wb") as file:
            file.truncate(400 * MIB)
        subprocess.run([f"mkfs.{kind}", *FILESYSTEMS[kind], disk], check=True)
        subprocess.run(["mount", "-o", "loop", disk, path], check=True)
    try:
        yield path
    finally:
        mounting.unmount(path)


def fill(folder: Path) -> None:
    """Neither a byte nor a name more goes into the folder's filesystem."""
    with contextlib.suppress(OSError), (folder / "fill").open("wb", buffering=0) as file:
        for size in (MIB, 4096, 512):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
        os.fsync(file.fileno())
    with contextlib.suppress(OSError):
        for number in itertools.count():
            (folder / f"{number:0200}").write_text("x" * 600)
    with pytest.raises(OSError, match="No space left"):
        (folder / "more").write_bytes(bytes(4096))
    (folder / "more").unlink(missing_ok=True)


@both
@pytest.mark.parametrize("small_disk", FILESYSTEMS, indirect=True)
async def test_a_full_disk_keeps_nobody_from_being_noted_or_removed(kind: str, small_disk: Path) -> None:
    data = small_disk / "data"
    backend = await started(kind, data, None)
    names = ("pvc-1", "pvc-2", "pvc-3")
    volumes = [await formatted(backend, replace(SPEC, pv=name)) for name in names]
    fill(small_disk)
    volumes = [await backend.rewrite(volume, replace(volume.record, policy="Retain")) for volume in volumes]
    backend = await started(kind, data, None)
    seen = await backend.inspect()
    assert not [*seen.foreign, *seen.damaged]
    assert sorted(volume.record.pv for volume in seen.volumes if volume.record.policy == "Retain") == [*names]
    for volume in volumes:
        await removed(backend, volume)
    assert files(data) == []


async def filling(backend: Backend, volume: Volume) -> None:
    async with backend.device(volume) as place:
        fill(place)


@pytest.mark.parametrize("small_disk", FILESYSTEMS, indirect=True)
async def test_a_pod_that_fills_the_disk_from_its_folder(small_disk: Path) -> None:
    backend = await started("folder", small_disk / "data", None)
    volume = await formatted(backend)
    await filling(backend, volume)
    await backend.remove(volume)
    assert files(small_disk / "data") == []


@both
@every_crash
@pytest.mark.parametrize("small_disk", ["tmpfs"], indirect=True)
async def test_killed_while_removing_from_a_full_disk(kind: str, small_disk: Path, changes: int) -> None:
    data = small_disk / "data"
    backend = await started(kind, data, None)
    volume = await formatted(backend)
    other = await formatted(backend, replace(SPEC, pv="pvc-2"))
    fill(small_disk)
    with crash_before_change(changes, data) as death:
        await removed(backend, volume)
    assert not (death.came and changes == MOST_CHANGES), "try more of them"
    backend = await started(kind, data, None)
    seen = await backend.inspect()
    assert not [*seen.foreign, *seen.damaged]
    assert seen.volume("pvc-2") == other
    if left := seen.volume("pvc-1"):
        await removed(backend, left)
    await removed(backend, other)
    assert files(data) == []


def deep_tree(top: Path, depth: int) -> None:
    at = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)


async def test_a_tree_of_any_depth_goes(data: Path) -> None:
    """Deeper than descriptors are many, and than Python calls itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    backend = await started("folder", data)
    volume = await formatted(backend)
    async with backend.device(volume) as place:
        deep_tree(place, 5000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        await backend.remove(volume)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert files(data) == []


@pytest.mark.parametrize("shape", ["files", "folders", "deep"])
def test_a_tree_goes_in_steps(tmp_path: Path, shape: str) -> None:
    """Each of which gets on, however short it is."""
    top = tmp_path / "top"
    top.mkdir()
    if shape == "files":
        for number in range(20):
            (top / str(number)).touch()
    elif shape == "folders":
        for number in range(20):
            (top / str(number) / "below").mkdir(parents=True)
    else:
        deep_tree(top, 20)
    steps = 1
    while not foldertree.remove(top, 0):
        steps += 1
        assert steps < 100
    assert steps > 10
    assert not top.exists()


async def test_a_volume_of_many_files_goes_however_many_steps_that_takes(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "_STEP_SECONDS", 0)
    backend = await started("folder", data)
    volume = await formatted(backend)
    async with backend.device(volume) as place:
        for number in range(5):
            (place / str(number)).touch()
    await backend.remove(volume)
    assert files(data) == []


def test_a_tree_of_folders_alone_on_a_full_disk(tmp_path: Path) -> None:
    """The top folder has no room for a single name more, and no file is there that could go first."""
    disk, path = tmp_path / "disk.img", tmp_path / "disk"
    path.mkdir()
    with disk.open("wb") as file:
        file.truncate(8 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-b", "1024", "-m", "0", "-O", "^has_journal", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, path], check=True)
    try:
        top = path / "top"
        names = ["a" * 200, "b" * 200, "c" * 200, "d" * 200, "e" * 130]
        for name in names:
            (top / name / "x" / "y").mkdir(parents=True)
        deep_tree(top / names[0] / "x", 40)
        fill(path)
        with pytest.raises(OSError, match="No space left"):
            (top / ("f" * 20)).mkdir()
        foldertree.remove(top)
        assert not top.exists()
    finally:
        mounting.unmount(path)
