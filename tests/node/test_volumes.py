"""The life of volumes on real filesystems and mounts."""

import asyncio
import hashlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from contract.capacity import footprint
from contract.volume import DELETE, RETAIN
from daemon.backends import Backend
from daemon.backends.folder import FolderBackend
from daemon.backends.loop import LoopBackend
from daemon.errors import BackendFailed, Damaged, Foreign, InUse, NoSpace, NotAPodFolder, Occupied
from daemon.kubelet.podfolder import PodFolder
from daemon.storage import staging
from daemon.storage.record import Pool, State
from daemon.storage.staging import Staging
from daemon.storage.volumes import Volumes
from host import command, filesystem, loopdevice, mounting
from host.command import Completed
from tests.node.volume_node import MIB, Node, lvm_backend

CAPACITY = 4096 * MIB


@pytest.fixture
def loop_node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path, lambda: LoopBackend(tmp_path / "data", CAPACITY))
    yield node
    node.unmount_all()


@pytest.fixture
def folder_node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path, lambda: FolderBackend(tmp_path / "data", CAPACITY))
    yield node
    node.unmount_all()


@pytest.fixture
def lvm_node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    """The fixtures of LVM are asked for by name, so that the other kinds of node do without."""
    tools, group = request.getfixturevalue("lvm"), request.getfixturevalue("volume_group")

    def backend() -> Backend:
        return lvm_backend(tools, group, thin="lvm-thin" in request.node.callspec.id)

    node = Node(tmp_path, backend)
    yield node
    node.unmount_all()


@pytest.fixture(params=["loop", "folder"])
def node(request: pytest.FixtureRequest) -> Node:
    found = request.getfixturevalue(f"{request.param.split('-')[0]}_node")
    assert isinstance(found, Node)
    return found


def on(*nodes: str) -> pytest.MarkDecorator:
    """Runs the test on these kinds of node in place of loop and folder. Those with LVM take seconds each."""
    params = [pytest.param(node, marks=[pytest.mark.device_mapper] if node.startswith("lvm") else []) for node in nodes]
    return pytest.mark.parametrize("node", params, indirect=True)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The programs that ran from here on."""
    seen: list[str] = []

    def note(completed: Completed) -> None:
        seen.append(completed.argv[0])

    monkeypatch.setattr(command, "observers", [note])
    return seen


async def started(node: Node) -> Volumes:
    volumes = node.volumes()
    await volumes.start()
    return volumes


def image(node: Node) -> Path:
    return node.root / "data" / f"{node.pv}.img"


def capacity(path: Path) -> int:
    """Bytes of the filesystem that is mounted there."""
    figures = os.statvfs(path)
    return figures.f_blocks * figures.f_frsize


@on("loop", "folder", "lvm-thick", "lvm-thin")
async def test_the_life_of_a_volume(node: Node) -> None:
    volumes = await started(node)
    assert (await volumes.prepare(node.wanted())).size == 32 * MIB
    assert node.mounts() == []
    folder = node.folder()
    await volumes.mount(node.wanted(), folder, read_only=False)
    (folder.path / "data").write_text("precious")
    (staged, shown) = node.mounts()
    assert (staged.path, shown.path) == (str(node.staging / node.pv), str(folder.path))
    with pytest.raises(InUse, match=f"mounted at {folder.path}: delete the pod"):
        await volumes.reclaim(node.pv, "uid", node.pool)

    volumes = await started(node)  # the daemon is another one
    await volumes.unmount(folder)
    assert node.mounts() == []
    folder.path.rmdir()
    assert list(node.staging.iterdir()) == []

    moved = node.folder()
    await volumes.mount(node.wanted(), moved, read_only=False)
    assert (moved.path / "data").read_text() == "precious"
    await volumes.unmount(moved)

    await node.reclaim(volumes)
    assert volumes.inventory.volume(node.pv) is None
    volumes = await started(node)
    assert not list(volumes.inventory.volumes)
    again = node.folder()
    await volumes.mount(node.wanted(uid="next"), again, read_only=False)
    assert not (again.path / "data").exists()


async def test_pods_of_a_node_share_the_volume(node: Node) -> None:
    volumes = await started(node)
    writer, reader = node.folder(), node.folder()
    await asyncio.gather(
        volumes.mount(node.wanted(), writer, read_only=False),
        volumes.mount(node.wanted(), reader, read_only=True),
    )
    (writer.path / "data").write_text("shared")
    assert (reader.path / "data").read_text() == "shared"
    with pytest.raises(OSError, match="Read-only file system"):
        (reader.path / "other").touch()
    assert len(node.mounts()) == 3
    await volumes.unmount(writer)
    assert [mount.path for mount in node.mounts()] == [str(node.staging / node.pv), str(reader.path)]
    await volumes.unmount(reader)
    assert node.mounts() == []


async def test_asked_again(node: Node) -> None:
    volumes = await started(node)
    folder = node.folder()
    await asyncio.gather(*(volumes.mount(node.wanted(), folder, read_only=False) for _ in range(5)))
    before = node.mounts()
    assert len(before) == 2
    await volumes.mount(node.wanted(), folder, read_only=False)
    await (await started(node)).mount(node.wanted(), folder, read_only=False)
    assert node.mounts() == before
    await asyncio.gather(*(volumes.unmount(folder) for _ in range(5)))
    await volumes.unmount(folder)
    assert node.mounts() == []


async def test_a_folder_mounted_the_other_way_is_corrected(node: Node) -> None:
    volumes = await started(node)
    folder = node.folder()
    for read_only in (True, False, True):
        await volumes.mount(node.wanted(), folder, read_only=read_only)
        (shown,) = node.mounted_on(folder)
        assert shown.read_only == read_only


@on("loop", "folder", "lvm-thick")
async def test_reclaim_unmounts_what_a_crash_left_staged(node: Node) -> None:
    volumes = await started(node)
    folder = node.folder()
    await volumes.mount(node.wanted(), folder, read_only=False)
    mounting.unmount(folder.path)
    assert len(node.mounts()) == 1
    await node.reclaim(volumes)
    assert node.mounts() == []
    assert not list((await started(node)).inventory.volumes)


async def test_a_part_of_the_volume_mounted_elsewhere_keeps_it(node: Node, tmp_path: Path) -> None:
    """As the kubelet does for subPath."""
    volumes = await started(node)
    folder = node.folder()
    await volumes.mount(node.wanted(), folder, read_only=False)
    (folder.path / "part").mkdir()
    subpath = tmp_path / "subpath"
    subpath.mkdir()
    mounting.bind(folder.path / "part", subpath)
    await volumes.unmount(folder)
    assert [mount.path for mount in node.mounts()] == [str(node.staging / node.pv), str(subpath)]
    with pytest.raises(InUse, match="subpath"):
        await volumes.reclaim(node.pv, "uid", node.pool)
    mounting.unmount(subpath)
    await volumes.reclaim(node.pv, "uid", node.pool)


async def test_a_volume_whose_staging_mount_somebody_took_away(node: Node) -> None:
    volumes = await started(node)
    first, second = node.folder(), node.folder()
    await volumes.mount(node.wanted(), first, read_only=False)
    (first.path / "data").touch()
    mounting.unmount(node.staging / node.pv)
    with pytest.raises(InUse, match=f"mounted at {first.path}"):
        await volumes.reclaim(node.pv, "uid", node.pool)
    await volumes.mount(node.wanted(), second, read_only=False)
    assert (second.path / "data").exists()
    await volumes.unmount(second)
    await volumes.unmount(first)
    assert node.mounts() == []


@pytest.mark.parametrize(
    ("node", "filesystem", "size", "more"),
    [
        # Growing a mounted ext4 takes CAP_SYS_RESOURCE, which not every machine of ours has; the guest does.
        pytest.param("lvm-thin", "ext4", 32, 64, marks=pytest.mark.device_mapper),
        pytest.param("lvm-thick", "xfs", 300, 400, marks=pytest.mark.device_mapper),
        ("loop", "xfs", 300, 400),
        ("loop", "btrfs", 256, 320),
    ],
    indirect=["node"],
)
async def test_growing(node: Node, filesystem: str, size: int, more: int) -> None:
    volumes = await started(node)
    folder = node.folder()
    small, large, larger = (node.wanted(mib * MIB, filesystem=filesystem) for mib in (size, more, more + size))
    await volumes.mount(small, folder, read_only=False)
    (shown,) = node.mounted_on(folder)
    assert shown.filesystem == filesystem
    before = capacity(folder.path)
    assert 0.6 * size * MIB < before <= size * MIB
    assert (await volumes.expand(large)).size == more * MIB
    online = capacity(folder.path)
    assert online - before > 0.7 * (more - size) * MIB
    await volumes.unmount(folder)
    assert (await volumes.expand(larger)).size == (more + size) * MIB
    await volumes.mount(larger, folder, read_only=False)
    assert capacity(folder.path) - online > 0.7 * size * MIB
    with pytest.raises(NoSpace, match="delete volumes on this node"):
        await volumes.expand(node.wanted(2 * 10**12, filesystem=filesystem))
    assert (await volumes.prepare(larger)).size == (more + size) * MIB


def checksummed(folder: Path, mib: int = 2) -> str:
    """Writes data and returns its checksum."""
    data = os.urandom(mib * MIB)
    with (folder / "data").open("wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def checksum(folder: Path) -> str:
    return hashlib.sha256((folder / "data").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("node", "filesystem", "size", "more"),
    [
        pytest.param("lvm-thick", "ext4", 32, 90, marks=pytest.mark.device_mapper),
        pytest.param("lvm-thin", "xfs", 300, 398, marks=pytest.mark.device_mapper),
        ("loop", "ext4", 32, 90),
        ("loop", "xfs", 300, 398),
        ("loop", "btrfs", 256, 322),
        ("folder", "ext4", 32, 90),
    ],
    indirect=["node"],
)
async def test_what_grew_while_nobody_used_it_grows_with_its_next_mount(
    node: Node, filesystem: str, size: int, more: int
) -> None:
    """The PersistentVolume says the new size; nobody called expand. ext4 grows before the mount where the kernel does
    not let us grow it after, and so both ways are tried, one here and one in the guest."""
    small, large = (node.wanted(mib * MIB, filesystem=filesystem) for mib in (size, more))
    folder = node.folder()
    volumes = await started(node)
    await volumes.mount(small, folder, read_only=False)
    before, written = capacity(folder.path), checksummed(folder.path)
    await volumes.unmount(folder)

    for daemon in (await started(node), await started(node)):
        assert await daemon.mount(large, folder, read_only=False) is None
        volume = daemon.inventory.volume(node.pv)
        assert volume
        granularity = daemon.inventory.pool(volume.pool).granularity  # type: ignore[union-attr]
        assert volume.size == footprint(more * MIB, large.parameters, granularity)  # to the extent
        if (await daemon.expand(large)) and node.make_backend().on_device(volume):
            assert capacity(folder.path) - before > 0.7 * (more - size) * MIB
        assert checksum(folder.path) == written
        await daemon.unmount(folder)


def figures(volumes: Volumes) -> set[Pool]:
    """What is taken and free; how full a thin pool is, changes with what is written."""
    return {replace(pool, thin=None) for pool in volumes.inventory.pools}


@on("loop", "lvm-thick", "lvm-thin")
async def test_without_room_it_is_mounted_as_it_is_and_grows_when_there_is(node: Node) -> None:
    folder = node.folder()
    volumes = await started(node)
    await volumes.mount(node.wanted(300 * MIB, filesystem="xfs"), folder, read_only=False)
    written = checksummed(folder.path)
    await volumes.unmount(folder)
    free = node.free(volumes)
    neighbour = node.wanted(free - 8 * MIB, pv=f"{node.pv}-neighbour", mkfs_options=("-E", "nodiscard"))
    await volumes.prepare(neighbour)
    before = figures(volumes)

    large = node.wanted(400 * MIB, filesystem="xfs")
    shortfall = await volumes.mount(large, folder, read_only=False)
    assert isinstance(shortfall, NoSpace)
    assert (shortfall.needed, shortfall.available) == (100 * MIB, 8 * MIB)
    with pytest.raises(NoSpace, match=r"needs 100Mi of .* on this node, which has 8Mi left for it: delete volumes"):
        await volumes.expand(large)
    assert figures(await started(node)) == before  # nothing half done
    assert checksum(folder.path) == written

    await node.reclaim(volumes, neighbour.pv)
    assert (await volumes.expand(large)).size == 400 * MIB
    assert capacity(folder.path) > 320 * MIB
    assert checksum(folder.path) == written
    assert node.free(volumes) == free - 100 * MIB


async def test_a_filesystem_that_can_not_grow_is_mounted_all_the_same(
    loop_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = await started(loop_node)
    await volumes.prepare(loop_node.wanted())
    await volumes.expand(loop_node.wanted(64 * MIB))

    async def refuse(*_: object) -> None:
        raise PermissionError("not for you")

    monkeypatch.setattr(filesystem, "grow", refuse)
    monkeypatch.setattr(filesystem, "grow_unmounted", refuse)
    folder = loop_node.folder()
    shortfall = await volumes.mount(loop_node.wanted(64 * MIB), folder, read_only=False)
    assert "does not fill it: not for you" in str(shortfall)
    assert len(loop_node.mounted_on(folder)) == 1
    with pytest.raises(BackendFailed, match="not for you"):
        await volumes.expand(loop_node.wanted(64 * MIB))


@on("loop", "lvm-thick")
async def test_many_mounts_at_once(node: Node) -> None:
    volumes = await started(node)
    # Under User-mode Linux each LVM command takes a third of a second, and LVM runs them one after the other.
    count = 25 if isinstance(node.make_backend(), LoopBackend) else 5
    pvs = [f"{node.pv}-{number}" for number in range(count)]
    folders = [(pv, node.folder(pv)) for pv in pvs for _ in range(2)]
    await asyncio.gather(
        *(volumes.mount(node.wanted(4 * MIB, pv=pv), folder, read_only=False) for pv, folder in folders)
    )
    assert len(node.mounts()) == 3 * count
    for pv, folder in folders:
        (shown,) = node.mounted_on(folder)
        (staged,) = (mount for mount in node.mounts() if mount.path == str(node.staging / pv))
        assert staging.is_same(shown, staged)
    await asyncio.gather(*(volumes.unmount(folder) for _, folder in folders))
    assert node.mounts() == []
    await asyncio.gather(*(node.reclaim(volumes, pv) for pv in pvs))
    assert not list((await started(node)).inventory.volumes)


async def test_options_of_the_class(loop_node: Node) -> None:
    wanted = loop_node.wanted(mkfs_options=("-b", "1024"), mount_options=("noatime", "nodev", "commit=30"))
    folder = loop_node.folder()
    await (await started(loop_node)).mount(wanted, folder, read_only=True)
    (shown,) = loop_node.mounted_on(folder)
    assert {"ro", "noatime", "nodev"} <= shown.options
    assert "commit=30" in shown.filesystem_options
    assert os.statvfs(folder.path).f_bsize == 1024


async def test_a_new_volume_is_not_checked_and_an_old_one_is(loop_node: Node, commands: list[str]) -> None:
    volumes = await started(loop_node)
    folder = loop_node.folder()
    await volumes.mount(loop_node.wanted(), folder, read_only=False)
    assert commands == ["mkfs.ext4", "mount"]
    await volumes.mount(loop_node.wanted(), loop_node.folder(), read_only=False)
    assert commands == ["mkfs.ext4", "mount"]
    loop_node.unmount_all()
    subprocess.run(
        ["debugfs", "-w", "-R", "set_super_value state 2", image(loop_node)], check=True, capture_output=True
    )
    await volumes.mount(loop_node.wanted(), folder, read_only=False)
    assert commands[2:5] == ["blkid", "e2fsck", "mount"]
    assert commands[5:] == (["resize2fs"] if filesystem.grows_mounted("ext4") else [])
    (shown,) = loop_node.mounted_on(folder)
    state = subprocess.run(["dumpe2fs", "-h", shown.source], check=True, capture_output=True, text=True).stdout
    assert "Filesystem state:         clean\n" in state


@pytest.mark.parametrize("damage", ["no signature", "something else"])
async def test_a_ready_volume_is_never_formatted(loop_node: Node, damage: str, commands: list[str]) -> None:
    volumes = await started(loop_node)
    await volumes.prepare(loop_node.wanted())
    commands.clear()
    if damage == "no signature":
        with image(loop_node).open("r+b") as file:
            file.write(bytes(4096))
    else:
        subprocess.run(["mkswap", image(loop_node)], check=True, capture_output=True)
    before = image(loop_node).read_bytes()
    folder = loop_node.folder()
    for daemon in (await started(loop_node), await started(loop_node)):
        with pytest.raises(Damaged, match="its data was not touched, on the node run `e2fsck"):
            await daemon.mount(loop_node.wanted(), folder, read_only=False)
    assert image(loop_node).read_bytes() == before
    assert loop_node.mounts() == []
    assert not [name for name in commands if name.startswith("mkfs")]


async def test_one_whose_making_was_cut_off_is_formatted_whatever_is_on_it(loop_node: Node) -> None:
    backend = loop_node.make_backend()
    await backend.establish()
    volume = await backend.create(loop_node.wanted())
    assert volume.record.state is State.FORMATTING
    subprocess.run(["mkfs.ext4", "-q", "-F", image(loop_node)], check=True)
    with image(loop_node).open("r+b") as file:
        file.seek(MIB)
        file.write(b"\xff" * 4 * MIB)
    folder = loop_node.folder()
    await (await started(loop_node)).mount(loop_node.wanted(), folder, read_only=False)
    assert [path.name for path in folder.path.iterdir()] == ["lost+found"]


async def test_one_that_a_container_still_shows_is_mounted_again(loop_node: Node) -> None:
    """Containers have mount namespaces of their own, whose mounts our table does not have. e2fsck refuses a filesystem
    that is mounted there, and that must not be taken for damage."""
    wanted, folder = loop_node.wanted(), loop_node.folder()
    daemon = await started(loop_node)
    await daemon.mount(wanted, folder, read_only=False)
    (folder.path / "file").write_text("kept")
    container = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with container:
        assert container.stdout is not None
        assert container.stdout.readline() == b"ready\n"
        await daemon.unmount(folder)
        assert loop_node.mounts() == []
        await (await started(loop_node)).mount(wanted, folder, read_only=False)
        assert (folder.path / "file").read_text() == "kept"
        container.communicate()


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
async def test_a_mkfs_that_outlived_its_daemon_is_waited_for(loop_node: Node, kind: str) -> None:
    """It holds the device for itself, as all of them do: two at once would write over each other."""
    wanted = loop_node.wanted(320 * MIB, filesystem=kind)
    backend = loop_node.make_backend()
    await backend.establish()
    folder = loop_node.folder()
    volumes = await started(loop_node)
    async with backend.device(await backend.create(wanted)) as device:
        orphan = os.open(device, os.O_RDWR | os.O_EXCL)
        try:
            with pytest.raises(BackendFailed, match=r"in use|busy"):
                await volumes.mount(wanted, folder, read_only=False)
        finally:
            os.close(orphan)
    assert loop_node.mounts() == []
    await volumes.mount(wanted, folder, read_only=False)
    assert len(loop_node.mounts()) == 2


async def test_what_is_not_ours_is_refused_and_left_alone(loop_node: Node) -> None:
    volumes = await started(loop_node)
    image(loop_node).write_bytes(b"a letter to grandmother")
    folder = loop_node.folder()
    with pytest.raises(Foreign, match="not of elastic-local"):
        await volumes.mount(loop_node.wanted(), folder, read_only=False)
    await volumes.reclaim(loop_node.pv, "uid", loop_node.pool)
    assert image(loop_node).read_bytes() == b"a letter to grandmother"
    assert loop_node.mounts() == []


async def test_another_tenants_volume_of_that_name(node: Node) -> None:
    volumes = await started(node)
    theirs, mine = node.folder(), node.folder()
    await volumes.mount(node.wanted(uid="theirs"), theirs, read_only=False)
    with pytest.raises(Foreign, match="does not show its data"):
        await volumes.mount(node.wanted(uid="mine"), mine, read_only=False)
    await volumes.reclaim(node.pv, "mine", node.pool)
    assert node.mounted_on(mine) == []
    assert len(node.mounted_on(theirs)) == 1


async def test_the_policy_is_kept_with_the_volume(node: Node) -> None:
    volumes = await started(node)
    for policy in (DELETE, RETAIN, DELETE):
        await volumes.prepare(node.wanted(policy=policy))
        (volume,) = (await started(node)).inventory.volumes
        assert (volume.record.policy, volume.record.state) == (policy, State.READY)
    await volumes.retain(node.pv, "another")
    await volumes.retain(node.pv, "uid")
    (volume,) = (await started(node)).inventory.volumes
    assert volume.record.policy == RETAIN


async def test_a_folder_that_shows_something_else(loop_node: Node, tmp_path: Path) -> None:
    volumes = await started(loop_node)
    folder, other = loop_node.folder(), tmp_path / "other"
    other.mkdir()
    mounting.bind(other, folder.path)
    with pytest.raises(Occupied, match="unmount it on the node"):
        await volumes.mount(loop_node.wanted(), folder, read_only=False)
    (shown,) = loop_node.mounts()
    assert shown.root.endswith("/other")
    await volumes.unmount(folder)
    assert loop_node.mounts() == []


async def test_unmount_takes_away_a_stack(loop_node: Node, tmp_path: Path) -> None:
    volumes = await started(loop_node)
    folder = loop_node.folder()
    await volumes.mount(loop_node.wanted(), folder, read_only=False)
    mounting.bind(tmp_path / "data", folder.path)
    mounting.bind(loop_node.staging / loop_node.pv, folder.path)
    await volumes.unmount(folder)
    assert loop_node.mounts() == []


async def test_unmount_needs_neither_volume_nor_record_nor_folder(loop_node: Node) -> None:
    volumes = await started(loop_node)
    folder = loop_node.folder()
    await volumes.mount(loop_node.wanted(), folder, read_only=False)
    for file in (loop_node.root / "data").iterdir():
        file.unlink()
    await (await started(loop_node)).unmount(folder)
    assert loop_node.mounts() == []
    folder.path.rmdir()
    await volumes.unmount(folder)


async def test_a_busy_folder_is_told_and_unmounted_later(loop_node: Node) -> None:
    volumes = await started(loop_node)
    folder = loop_node.folder()
    await volumes.mount(loop_node.wanted(), folder, read_only=False)
    with (folder.path / "open").open("w"), pytest.raises(InUse, match="stop the processes"):
        await volumes.unmount(folder)
    await volumes.unmount(folder)
    assert loop_node.mounts() == []


async def test_links_lead_nowhere(loop_node: Node, tmp_path: Path) -> None:
    volumes = await started(loop_node)
    victim = tmp_path / "victim"
    victim.mkdir()
    folder = loop_node.folder()
    folder.path.rmdir()
    folder.path.symlink_to(victim)
    with pytest.raises(NotAPodFolder, match="links are not followed"):
        await volumes.mount(loop_node.wanted(), folder, read_only=False)
    mounting.bind(tmp_path / "data", victim)
    await volumes.unmount(folder)
    assert [mount.path for mount in loop_node.mounts()] == [str(victim)]


@pytest.mark.parametrize("others", [False, True])
async def test_a_mount_that_fails_late_is_undone(node: Node, others: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = await started(node)
    folder, neighbour = node.folder(), node.folder()
    if others:
        await volumes.mount(node.wanted(), neighbour, read_only=False)

    def fail(pv: str, folder: PodFolder, *rest: object) -> None:
        assert len(node.mounted_on(folder)) == 1
        raise BackendFailed("it does not show")

    with monkeypatch.context() as patched:
        patched.setattr(staging, "_verify", fail)
        with pytest.raises(BackendFailed, match="it does not show"):
            await volumes.mount(node.wanted(), folder, read_only=False)
    assert node.mounted_on(folder) == []
    assert len(node.mounts()) == (2 if others else 0)
    await volumes.mount(node.wanted(), folder, read_only=False)


async def test_success_is_told_only_of_what_shows(loop_node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounting, "bind", lambda source, target, *, read_only: None)
    with pytest.raises(BackendFailed, match="does not show there"):
        await (await started(loop_node)).mount(loop_node.wanted(), loop_node.folder(), read_only=False)
    assert loop_node.mounts() == []


async def test_a_caller_that_gives_up_leaves_the_work_to_be_joined(loop_node: Node, commands: list[str]) -> None:
    volumes = await started(loop_node)
    folder = loop_node.folder()
    gave_up = asyncio.create_task(volumes.mount(loop_node.wanted(), folder, read_only=False))
    await asyncio.sleep(0.001)
    gave_up.cancel()
    await volumes.mount(loop_node.wanted(), folder, read_only=False)
    assert commands == ["mkfs.ext4", "mount"]
    assert len(loop_node.mounts()) == 2


def test_the_staging_folder_is_of_no_use_while_nothing_is_mounted(tmp_path: Path) -> None:
    assert Staging(tmp_path).make_folder("pv").stat().st_mode & 0o777 == 0


async def test_a_loop_device_goes_with_the_last_mount(loop_node: Node) -> None:
    volumes = await started(loop_node)
    folder = loop_node.folder()
    await volumes.mount(loop_node.wanted(), folder, read_only=False)
    assert loopdevice.find(image(loop_node))
    await volumes.unmount(folder)
    assert loopdevice.find(image(loop_node)) is None
