"""Which disk a PersistentVolume was made of: noted when it is offered, and looked at in each pass."""

import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from contract.names import DISK_ANNOTATION
from daemon.static import diskevidence
from daemon.static.configuration import BLOCK
from daemon.static.plan import DISK_CHANGED, DUPLICATE
from daemon.static.volume import volume_name
from host import superblock
from kube.errors import Forbidden
from kube.resources import VOLUMES
from tests.node.conftest import ByHand, MakeDisks
from tests.node.staticvolumes import Discovery, class_config, configured, discovery, mount, unmount
from tests.node.test_static_duplicates import given
from tests.unit.daemon.nodecluster import NODE
from tests.waiting import until

MIB = 1 << 20


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Discovery]:
    async with discovery(tmp_path / "api") as discovered:
        yield discovered


def lead(link: Path, device: str) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(device)


async def disk_of(node: Discovery, path: str) -> dict[str, str]:
    text = (await node.volumes())[path]["metadata"].get("annotations", {}).get(DISK_ANNOTATION, "{}")
    values: dict[str, str] = json.loads(text)
    return values


async def set_phase(node: Discovery, entry: str, phase: str) -> str:
    name = volume_name(entry, NODE, "fast")
    if phase in ("Bound", "Released"):
        claim = {"claimRef": {"namespace": "default", "name": "claim", "uid": "claim-1"}}
        await node.cluster.patch(VOLUMES, name, {"spec": claim})
    await node.cluster.patch(VOLUMES, name, {"status": {"phase": phase}}, subresource="status")
    await until(lambda: (cached := node.cache.get(name)) is not None and cached.phase == phase)
    return name


async def test_a_device_and_a_filesystem_say_what_they_are(node: Discovery, fast: Path, make_disks: MakeDisks) -> None:
    one, two = make_disks(2, 12 * MIB)
    lead(fast / "device", one)
    identifier = str(uuid4())
    subprocess.run(["mkfs.ext4", "-q", "-U", identifier, two], check=True)
    (fast / "filesystem").mkdir()
    subprocess.run(["mount", two, fast / "filesystem"], check=True)
    mount(fast / "memory")
    try:
        await node.look(configured(class_config(fast)))
        device = await disk_of(node, "/host/fast/device")
        assert device["loop"].startswith("inode ")
        assert device["size"] == str(12 * MIB)
        filesystem = await disk_of(node, "/host/fast/filesystem")
        assert filesystem["filesystem"] == identifier
        assert filesystem["loop"] != device["loop"]
        assert await disk_of(node, "/host/fast/memory") == {"source": "tmpfs tmpfs"}
    finally:
        unmount(fast / "filesystem")


@pytest.mark.parametrize(("kind", "option"), [("ext4", "-U"), ("xfs", "-muuid="), ("btrfs", "-U")])
async def test_the_uuid_of_a_filesystem(
    node: Discovery, fast: Path, make_disks: MakeDisks, kind: str, option: str
) -> None:
    [disk] = make_disks(1, 320 * MIB)
    identifier = str(uuid4())
    named = [option + identifier] if option.endswith("=") else [option, identifier]
    subprocess.run([f"mkfs.{kind}", "-q", *named, disk], check=True)
    (fast / "one").mkdir()
    subprocess.run(["mount", disk, fast / "one"], check=True)
    try:
        await node.look(configured(class_config(fast)))
        values = await disk_of(node, "/host/fast/one")
        assert (values["filesystem"], "folder" in values) == (identifier, False)
        assert values["loop"].startswith("inode "), "of btrfs on one device, too"
    finally:
        unmount(fast / "one")


@pytest.mark.parametrize("phase", ["Bound", "Released"])
async def test_swapped_links_are_reported_on_both(
    node: Discovery, fast: Path, make_disks: MakeDisks, phase: str
) -> None:
    disks = dict(zip("ab", make_disks(2, 12 * MIB), strict=True))
    chosen = configured(class_config(fast, volume_mode=BLOCK))
    for entry, device in disks.items():
        lead(fast / entry, device)
    await node.look(chosen)
    names = {await set_phase(node, entry, phase) for entry in disks}
    assert await node.look(chosen) == []
    assert await node.recorded_events() == []
    lead(fast / "a", disks["b"])
    lead(fast / "b", disks["a"])
    for _ in range(2):
        assert await node.look(chosen) == []
    events = await node.recorded_events()
    assert {(about, reason) for about, reason, _ in events} == {(name, DISK_CHANGED) for name in names}
    assert len(events) == 2, "once"
    assert all("leads to another disk than PersistentVolume" in message for *_, message in events)
    assert node.value("stray_entries", storage_class="fast") == 2
    assert node.value("changed_disks", storage_class="fast") == 2
    for entry, device in disks.items():
        lead(fast / entry, device)
    await node.look(chosen)
    assert node.value("changed_disks", storage_class="fast") == 0


async def test_an_unused_volume_whose_disk_was_replaced_is_offered_anew(
    node: Discovery, fast: Path, make_disks: MakeDisks
) -> None:
    [small], [large] = make_disks(1, 12 * MIB), make_disks(1, 24 * MIB)
    chosen = configured(class_config(fast, volume_mode=BLOCK))
    lead(fast / "disk", small)
    await node.look(chosen)
    name = await set_phase(node, "disk", "Available")
    lead(fast / "disk", large)
    await node.look(chosen)
    body = await node.cluster.get(VOLUMES, name)
    assert "deletionTimestamp" in body["metadata"], "no claim gets the other disk"
    assert [(about, reason) for about, reason, _ in await node.recorded_events()] == [(name, DISK_CHANGED)]
    await node.look(chosen)
    # That is the deleter's part.
    await node.cluster.patch(VOLUMES, name, {"metadata": {"finalizers": None}})
    await until(lambda: node.cache.get(name) is None)
    await node.look(chosen)
    assert (await node.volumes())["/host/fast/disk"]["spec"]["capacity"]["storage"] == "24Mi"
    assert (await disk_of(node, "/host/fast/disk"))["size"] == str(24 * MIB)
    assert len(await node.recorded_events()) == 1


async def test_an_unused_volume_whose_disk_can_not_be_compared(
    node: Discovery, fast: Path, make_disks: MakeDisks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another kind of disk is offered anew; one that can't be identified now is not gone."""
    [disk] = make_disks(1, 12 * MIB)
    chosen = configured(class_config(fast))
    mount(fast / "one")
    lead(fast / "two", disk)
    await node.look(chosen)
    one, two = [await set_phase(node, entry, "Available") for entry in ("one", "two")]
    unmount(fast / "one")
    subprocess.run(["mkfs.ext4", "-q", *(other := make_disks(1, 12 * MIB))], check=True)
    subprocess.run(["mount", *other, fast / "one"], check=True)

    def unreadable(_: int) -> None:
        raise OSError(5, "Input/output error")

    try:
        with monkeypatch.context() as patched:
            patched.setattr(diskevidence, "_serial", unreadable)
            patched.setattr(diskevidence, "_loop", unreadable)
            await node.look(chosen)
            assert "deletionTimestamp" not in (await node.cluster.get(VOLUMES, one))["metadata"]
        await node.look(chosen)
        assert "deletionTimestamp" in (await node.cluster.get(VOLUMES, one))["metadata"]
        assert "deletionTimestamp" not in (await node.cluster.get(VOLUMES, two))["metadata"]
    finally:
        unmount(fast / "one")


async def test_the_filesystem_of_a_disk_that_is_broken(
    node: Discovery, fast: Path, make_disks: MakeDisks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no other disk: the device still says which one it is."""
    [disk] = make_disks(1, 12 * MIB)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    (fast / "one").mkdir()
    subprocess.run(["mount", disk, fast / "one"], check=True)
    chosen = configured(class_config(fast))
    try:
        await node.look(chosen)
        await set_phase(node, "one", "Bound")

        def broken(_: int) -> str:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(superblock, "filesystem_uuid", broken)
        await node.look(chosen)
        assert await node.recorded_events() == []
    finally:
        unmount(fast / "one")


async def test_the_disk_of_a_released_volume_is_not_offered_by_another_name(
    node: Discovery, fast: Path, make_disks: MakeDisks
) -> None:
    [device] = make_disks(1, 12 * MIB)
    chosen = configured(class_config(fast, volume_mode=BLOCK))
    lead(fast / "a", device)
    await node.look(chosen)
    name = await set_phase(node, "a", "Released")
    (fast / "a").rename(fast / "b")
    await node.look(chosen)
    assert set(await node.volumes()) == {"/host/fast/a"}
    about, _, message = next(each for each in await node.recorded_events() if each[1] == DUPLICATE)
    assert about == NODE
    assert f'is the disk of PersistentVolume {name}, or a part of it, which was offered as "/host/fast/a"' in message


async def test_a_disk_whose_entry_the_pattern_leaves_out_by_now_is_not_offered_twice(
    node: Discovery, fast: Path, make_disks: MakeDisks
) -> None:
    [device] = make_disks(1, 12 * MIB)
    for entry in ("a", "b"):
        lead(fast / entry, device)
    await node.look(configured(class_config(fast, volume_mode=BLOCK)))
    await set_phase(node, "a", "Bound")
    await node.look(configured(class_config(fast, volume_mode=BLOCK, name_pattern="b*")))
    assert set(await node.volumes()) == {"/host/fast/a"}


@pytest.mark.parametrize(("phase", "noted"), [("Available", True), ("Bound", True), ("Released", False)])
async def test_one_from_before_is_told_its_disk_while_nobody_can_lose_by_it(
    node: Discovery, fast: Path, make_disks: MakeDisks, phase: str, noted: bool
) -> None:
    lead(fast / "disk", make_disks(1, 12 * MIB)[0])
    await given(node, "disk", phase)
    await node.look(configured(class_config(fast, volume_mode=BLOCK)))
    assert bool(await disk_of(node, "/host/fast/disk")) is noted


async def test_policies_of_an_older_version_refuse_that_and_it_is_said_once(
    node: Discovery,
    fast: Path,
    make_disks: MakeDisks,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lead(fast / "disk", make_disks(1, 12 * MIB)[0])
    await given(node, "disk", "Bound")

    async def refused(*_: Any, **__: Any) -> None:
        raise Forbidden(403, "Forbidden", "of its annotations only three may change")

    monkeypatch.setattr(node.cluster, "patch", refused)
    for _ in range(3):
        assert await node.look(configured(class_config(fast, volume_mode=BLOCK))) == []
    assert caplog.text.count("can't be told which disk it is: ") == 1


async def test_a_class_that_moves_to_another_folder(
    node: Discovery, fast: Path, slow: Path, make_disks: MakeDisks
) -> None:
    """An entry of the same name would have the same PersistentVolume, which is that of the other folder."""
    one, two = make_disks(2, 12 * MIB)
    lead(fast / "disk", one)
    lead(slow / "disk", two)
    name = await given(node, "disk", "Bound")
    moved = class_config(slow, "fast", volume_mode=BLOCK)
    for _ in range(2):
        assert await node.look(configured(moved)) == []
    assert await disk_of(node, "/host/fast/disk") == {}, "that is not its disk"
    ((about, _, message),) = await node.recorded_events()
    assert about == NODE
    assert f'"/host/slow/disk" can\'t be offered: its name {name} is that of "/host/fast/disk"' in message
    await node.look(configured(class_config(fast, volume_mode=BLOCK)))
    assert (await disk_of(node, "/host/fast/disk"))["size"] == str(12 * MIB)


async def test_a_partition(node: Discovery, fast: Path, make_disks: MakeDisks) -> None:
    [disk] = make_disks(1, 12 * MIB)
    subprocess.run(["addpart", disk, "1", "2048", "4096"], check=True)
    try:
        lead(fast / "part", f"{disk}p1")
        lead(fast / "whole", disk)
        await node.look(configured(class_config(fast, volume_mode=BLOCK)))
        values = await disk_of(node, "/host/fast/part")
        assert (values["partition"], values["size"]) == ("2048", str(4096 * 512))
        await set_phase(node, "part", "Released")
        subprocess.run(["delpart", disk, "1"], check=True)
        subprocess.run(["addpart", disk, "1", "8192", "4096"], check=True)
        await node.look(configured(class_config(fast, volume_mode=BLOCK)))
        assert DISK_CHANGED in {reason for _, reason, _ in await node.recorded_events()}
    finally:
        subprocess.run(["delpart", disk, "1"], check=True)


@pytest.mark.device_mapper
async def test_a_logical_volume(node: Discovery, fast: Path, volume_group: str, by_hand: ByHand) -> None:
    for name in ("one", "two"):
        by_hand("lvcreate", "--yes", "--size", "12m", "--name", name, volume_group)
    lead(fast / "disk", f"/dev/{volume_group}/one")
    chosen = configured(class_config(fast, volume_mode=BLOCK))
    await node.look(chosen)
    values = await disk_of(node, "/host/fast/disk")
    assert values["dm"].startswith("LVM-")
    await set_phase(node, "disk", "Released")
    by_hand("lvextend", "--size", "24m", f"{volume_group}/one")
    await node.look(chosen)
    assert await node.recorded_events() == [], "it has grown"
    by_hand("lvrename", volume_group, "one", "three")
    by_hand("lvrename", volume_group, "two", "one")
    await node.look(chosen)
    assert DISK_CHANGED in {reason for _, reason, _ in await node.recorded_events()}
