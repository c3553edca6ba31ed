"""One disk is offered once, by however many paths it stands in the folders."""

import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from daemon.static.configuration import BLOCK
from daemon.static.plan import DUPLICATE, INVALID_ENTRY
from daemon.static.volume import volume_name
from kube.resources import VOLUMES
from tests.node.conftest import MakeDisks
from tests.node.staticvolumes import Discovery, class_config, configured, discovery, folder_hangs, mount, unmount
from tests.node.test_static_in_use import process
from tests.unit.daemon.nodecluster import NODE
from tests.unit.daemon.static.gopv import go_pv
from tests.waiting import until

MIB = 1 << 20


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Discovery]:
    async with discovery(tmp_path / "api") as discovered:
        yield discovered


async def refused(node: Discovery, reason: str = DUPLICATE) -> str:
    """The message of the one event, on the Node."""
    ((about, said, message),) = await node.recorded_events()
    assert (about, said) == (NODE, reason)
    return message


async def test_one_device_under_two_of_its_names(node: Discovery, fast: Path, make_disks: MakeDisks) -> None:
    (disk,) = make_disks(1, 12 * MIB)
    for name in ("by-path-one", "by-id-one"):
        (fast / name).symlink_to(disk)
    for _ in range(3):
        assert await node.look(configured(class_config(fast, volume_mode=BLOCK))) == []
    assert set(await node.volumes()) == {"/host/fast/by-id-one"}
    message = await refused(node)
    assert message.startswith('path "/host/fast/by-path-one" is the same disk as "/host/fast/by-id-one"')
    assert node.value("stray_entries", storage_class="fast") == 1
    # What was first stays, whatever comes before it later.
    (fast / "a").symlink_to(disk)
    await node.look(configured(class_config(fast, volume_mode=BLOCK)))
    assert set(await node.volumes()) == {"/host/fast/by-id-one"}


async def test_one_device_in_two_classes(node: Discovery, fast: Path, slow: Path, make_disks: MakeDisks) -> None:
    (disk,) = make_disks(1, 12 * MIB)
    (fast / "one").symlink_to(disk)
    (slow / "other").symlink_to(disk)
    for order in ((class_config(slow, "slow"), class_config(fast)), (class_config(fast), class_config(slow, "slow"))):
        assert await node.look(configured(*order)) == []
        assert set(await node.volumes()) == {"/host/fast/one"}
    await refused(node)


@pytest.mark.parametrize("part", ["", "inside"])
async def test_one_filesystem_mounted_twice(node: Discovery, fast: Path, part: str) -> None:
    one = mount(fast / "m1")
    (one / "inside").mkdir()
    (fast / "m2").mkdir()
    subprocess.run(["mount", "--bind", one / part, fast / "m2"], check=True)
    assert await node.look(configured(class_config(fast))) == []
    assert set(await node.volumes()) == {"/host/fast/m1"}
    await refused(node)


async def test_folders_beside_each_other_are_two_volumes(node: Discovery, fast: Path, tmp_path: Path) -> None:
    for name in ("a", "ab"):
        (tmp_path / "plain" / name).mkdir(parents=True)
        (fast / name).mkdir()
        subprocess.run(["mount", "--bind", tmp_path / "plain" / name, fast / name], check=True)
    assert await node.look(configured(class_config(fast))) == []
    assert set(await node.volumes()) == {"/host/fast/a", "/host/fast/ab"}
    assert await node.recorded_events() == []


async def test_a_device_and_its_filesystem(node: Discovery, fast: Path, make_disks: MakeDisks) -> None:
    (disk,) = make_disks(1, 12 * MIB)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    (fast / "mounted").mkdir()
    subprocess.run(["mount", disk, fast / "mounted"], check=True)
    (fast / "z device").symlink_to(disk)
    try:
        await node.look(configured(class_config(fast)))
        assert set(await node.volumes()) == {"/host/fast/mounted"}
        await refused(node)
    finally:
        unmount(fast / "mounted")


async def test_a_device_that_is_mounted_elsewhere(
    node: Discovery, fast: Path, tmp_path: Path, make_disks: MakeDisks
) -> None:
    (disk,) = make_disks(1, 12 * MIB)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    (tmp_path / "elsewhere").mkdir()
    subprocess.run(["mount", disk, tmp_path / "elsewhere"], check=True)
    (fast / "device").symlink_to(disk)
    try:
        await node.look(configured(class_config(fast)))
        assert await node.volumes() == {}
        assert "is in use, something is mounted from it" in await refused(node, INVALID_ENTRY)
    finally:
        unmount(tmp_path / "elsewhere")
    await node.look(configured(class_config(fast)))
    assert set(await node.volumes()) == {"/host/fast/device"}


async def test_a_device_that_somebody_writes_to(node: Discovery, fast: Path, make_disks: MakeDisks) -> None:
    """Such as the cleaner of a daemon that was killed, when somebody deleted the PersistentVolume meanwhile."""
    (disk,) = make_disks(1, 12 * MIB)
    (fast / "device").symlink_to(disk)
    with process("sh", "-c", f"exec 7>>{disk}; echo ready; read end") as user:
        await node.look(configured(class_config(fast)))
        assert await node.volumes() == {}
        assert f"is in use, process {user.pid} (sh) has it open" in await refused(node, INVALID_ENTRY)
    await node.look(configured(class_config(fast)))
    assert set(await node.volumes()) == {"/host/fast/device"}


@pytest.fixture
def halves(tmp_path: Path) -> Iterator[list[Path]]:
    """Two loop devices over one file, and one over a device of these."""
    image = tmp_path / "halves"
    image.write_bytes(bytes(24 * MIB))

    def loop(*arguments: str | Path) -> Path:
        done = subprocess.run(["losetup", "--find", "--show", *arguments], check=True, capture_output=True, text=True)
        return Path(done.stdout.strip())

    devices: list[Path] = []
    try:
        devices.append(loop(image))
        devices.append(loop("--offset", str(12 * MIB), image))
        devices.append(loop("--sizelimit", str(12 * MIB), image))
        devices.append(loop(devices[1]))
        yield devices
    finally:
        for device in reversed(devices):
            subprocess.run(["losetup", "--detach", device], check=True)


async def test_loop_devices_over_one_file(node: Discovery, fast: Path, halves: list[Path]) -> None:
    whole, second, first, on_second = halves
    (fast / "a").symlink_to(first)
    (fast / "b").symlink_to(second)
    (fast / "c").symlink_to(whole)
    (fast / "d").symlink_to(on_second)
    await node.look(configured(class_config(fast, volume_mode=BLOCK)))
    assert set(await node.volumes()) == {"/host/fast/a", "/host/fast/b"}
    assert len(await node.recorded_events()) == 2


async def given(node: Discovery, entry: str, phase: str) -> str:
    """A PersistentVolume from before there was a look at what stands behind a path."""
    name = volume_name(entry, NODE, "fast")
    provisioner = f"local-volume-provisioner-{NODE}-{node.node.uid}"
    body = go_pv(name, provisioner, path=f"/host/fast/{entry}", mode=BLOCK)
    body["metadata"]["labels"] = {"volumes.k8s.elastic.co/node-affinity": NODE}
    if phase == "Bound":
        body["spec"]["claimRef"] = {"namespace": "default", "name": "claim", "uid": "claim-1"}
    await node.cluster.create(VOLUMES, body)
    await node.cluster.patch(VOLUMES, name, {"metadata": {"finalizers": None}})
    await node.cluster.patch(VOLUMES, name, {"status": {"phase": phase}}, subresource="status")
    await until(lambda: (cached := node.cache.get(name)) is not None and cached.phase == phase)
    return name


@pytest.mark.parametrize(("phases", "kept"), [(("Available", "Bound"), {"b"}), (("Bound", "Bound"), {"a", "b"})])
async def test_two_persistent_volumes_of_one_device_from_before(
    node: Discovery, fast: Path, make_disks: MakeDisks, phases: tuple[str, str], kept: set[str]
) -> None:
    (disk,) = make_disks(1, 12 * MIB)
    names = set()
    for entry, phase in zip(("a", "b"), phases, strict=True):
        (fast / entry).symlink_to(disk)
        names.add(await given(node, entry, phase))
    for _ in range(3):
        await node.look(configured(class_config(fast, volume_mode=BLOCK)))
        await until(lambda: {each.path for each in node.cache.volumes()} == {f"/host/fast/{entry}" for entry in kept})
    assert set(await node.volumes()) == {f"/host/fast/{entry}" for entry in kept}
    events = [each for each in await node.recorded_events() if each[1] == DUPLICATE]
    assert {about for about, *_ in events} == {NODE, *names}
    assert "is the same disk as" in events[0][2]


async def test_an_unresponsive_disk_keeps_its_identity(node: Discovery, fast: Path, slow: Path) -> None:
    """What can't be seen is not gone: its other path is not offered in its place."""
    one = mount(fast / "one")
    chosen = configured(class_config(fast), class_config(slow, "slow"))
    await node.look(chosen)
    (slow / "a").mkdir()
    subprocess.run(["mount", "--bind", one, slow / "a"], check=True)
    with folder_hangs(node, fast):
        assert len(await node.look(chosen)) == 1
        assert set(await node.volumes()) == {"/host/fast/one"}
    assert DUPLICATE in {reason for _, reason, _ in await node.recorded_events()}
