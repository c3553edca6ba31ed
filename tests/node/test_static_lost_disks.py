"""Disks that were offered and are gone, or give no answer any more."""

import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemon.static import entries
from daemon.static.configuration import BLOCK
from daemon.static.entries import EntryKind
from daemon.static.plan import DISK_CHANGED, NOT_A_DEVICE, UNMOUNTED, UNRESPONSIVE, VANISHED
from daemon.static.volume import volume_name
from kube.resources import VOLUMES
from tests.node.conftest import MakeDisks
from tests.node.staticvolumes import Discovery, class_config, configured, discovery, folder_hangs, mount, unmount
from tests.unit.daemon.nodecluster import NODE
from tests.unit.daemon.static.shortdeadline import ShortDeadline
from tests.waiting import until

MIB = 1 << 20


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Discovery]:
    async with discovery(tmp_path / "api") as discovered:
        yield discovered


async def test_an_unmounted_filesystem_is_reported_on_its_volume(node: Discovery, fast: Path) -> None:
    chosen = configured(class_config(fast))
    mount(fast / "one")
    await node.look(chosen)
    unmount(fast / "one")
    assert await node.look(chosen) == []
    name = volume_name("one", NODE, "fast")
    words = f'path "{fast}/one" of PersistentVolume {name} is not a valid mount point: mount its filesystem again'
    assert await node.recorded_events() == [(name, UNMOUNTED, words)]
    mount(fast / "one")
    await node.look(chosen)
    assert node.value("stray_entries", storage_class="fast") == 0
    assert node.value("apiserver_requests_total", method="create") == 1


async def test_a_device_that_became_a_folder_is_reported_on_its_volume(
    node: Discovery, fast: Path, make_disks: MakeDisks
) -> None:
    chosen = configured(class_config(fast, volume_mode=BLOCK))
    (fast / "disk").symlink_to(make_disks(1, 12 * MIB)[0])
    await node.look(chosen)
    (fast / "disk").unlink()
    mount(fast / "disk")
    assert await node.look(chosen) == []
    name = volume_name("disk", NODE, "fast")
    ((about, reason, words),) = await node.recorded_events()
    assert (about, reason) == (name, NOT_A_DEVICE)
    assert "restore the device, or delete the PersistentVolume" in words


@pytest.mark.parametrize("left", ["nothing", "a link that leads nowhere"])
async def test_a_missing_disk_is_reported_once_on_its_volume(
    node: Discovery, fast: Path, make_disks: MakeDisks, left: str
) -> None:
    chosen = configured(class_config(fast, volume_mode=BLOCK))
    link = fast / "disk"
    [device] = make_disks(1, 12 * MIB)
    link.symlink_to(device)
    await node.look(chosen)
    link.unlink()
    if left != "nothing":
        link.symlink_to("/dev/pulled-out")
    for _ in range(2):
        assert await node.look(chosen) == []
    words = (
        f'path "/host/{fast.name}/disk" is gone: restore the disk or link, or delete the PersistentVolume if it is '
        "gone for good"
    )
    assert await node.recorded_events() == [(volume_name("disk", NODE, "fast"), VANISHED, words)]
    assert node.value("stray_entries", storage_class="fast") == 1
    link.unlink(missing_ok=True)
    link.symlink_to(device)
    await node.look(chosen)
    assert node.value("stray_entries", storage_class="fast") == 0


async def test_a_disk_that_hangs_is_invalid_and_the_others_are_served(
    node: Discovery, fast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = configured(class_config(fast))
    mount(fast / "was offered")
    await node.look(chosen)
    let_go, scanned = threading.Event(), list[str]()
    kind_of = entries._kind

    def slow(path: Path) -> EntryKind:
        if path.name != "alive":
            scanned.append(path.name)
            let_go.wait()
        return kind_of(path)

    monkeypatch.setattr(entries, "_kind", slow)
    node.discoverer._disk_threads = ShortDeadline(
        lambda place: place.name in ("new", "was offered") and not let_go.is_set()
    )
    mount(fast / "new")
    mount(fast / "alive")
    try:
        for _ in range(5):
            assert await node.look(chosen) == [], "the node stays ready"
        assert set(await node.volumes()) == {"/host/fast/alive", "/host/fast/was offered"}
        assert sorted(scanned) == ["new", "was offered"], "one look each, and so one thread"
        events = {(about, reason) for about, reason, _ in await node.recorded_events()}
        assert events == {(NODE, UNRESPONSIVE), (volume_name("was offered", NODE, "fast"), UNRESPONSIVE)}
        assert node.value("stray_entries", storage_class="fast") == 2
    finally:
        let_go.set()

    async def existing() -> bool:
        await node.look(chosen)
        return len(await node.volumes()) == 3 and node.value("stray_entries", storage_class="fast") == 0

    await until(existing)


async def test_a_disk_of_unknown_size_is_invalid_and_the_others_are_served(
    node: Discovery, fast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, size_of = threading.Event(), entries._capacity

    def slow(entry: entries.Entry) -> int:
        if entry.name == "dead":
            let_go.wait()
        return size_of(entry)

    monkeypatch.setattr(entries, "_capacity", slow)
    node.discoverer._disk_threads = ShortDeadline(lambda place: place.name == "dead")
    mount(fast / "dead")
    mount(fast / "later in the list")
    try:
        for _ in range(2):
            assert await node.look(configured(class_config(fast))) == []
        assert set(await node.volumes()) == {"/host/fast/later in the list"}
        assert [(about, reason) for about, reason, _ in await node.recorded_events()] == [(NODE, UNRESPONSIVE)]
    finally:
        let_go.set()


async def test_a_folder_that_hangs_is_the_classes_error(node: Discovery, fast: Path, slow: Path) -> None:
    mount(slow / "one")
    with folder_hangs(node, fast):
        [error] = await node.look(configured(class_config(fast), class_config(slow, "slow")))
        assert f'class fast: path "{fast}" gives no answer' in error
        assert set(await node.volumes()) == {"/host/slow/one"}


async def test_the_folder_itself_is_not_mounted(node: Discovery, fast: Path, make_disks: MakeDisks) -> None:
    """Below it is what the node has on its own disk: nothing, and links from before that lead to other disks."""
    one, two = make_disks(2, 12 * MIB)
    chosen = configured(class_config(fast, volume_mode=BLOCK))
    (fast / "b").symlink_to(two)
    mount(fast)
    for entry in ("a", "b"):
        (fast / entry).symlink_to(one if entry == "b" else two)
    await node.look(chosen)
    names = {entry: volume_name(entry, NODE, "fast") for entry in ("a", "b")}
    claim = {"claimRef": {"namespace": "default", "name": "claim", "uid": "claim-1"}}
    for name in names.values():
        await node.cluster.patch(VOLUMES, name, {"spec": claim})
        await node.cluster.patch(VOLUMES, name, {"status": {"phase": "Bound"}}, subresource="status")
    await until(lambda: {each.phase for each in node.cache.volumes()} == {"Bound"})
    unmount(fast)
    assert await node.look(chosen) == []
    assert set(await node.volumes()) == {"/host/fast/a", "/host/fast/b"}
    events = {(about, reason) for about, reason, _ in await node.recorded_events()}
    assert events == {(names["a"], VANISHED), (names["b"], DISK_CHANGED)}
